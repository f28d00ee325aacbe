"""Raw model output -> the chance that the user buys the item within label_days, for the score column only.

Negatives are sampled for training, so the model's own probabilities are too high. A calibration is a non-decreasing function of the
raw output, fitted on all candidates of users in a window that the model never saw. Lists are ordered by the raw output, so where a
calibration ties two rows no list changes.

Two kinds are fitted, and the one that does better on users it was not fitted on is kept. Both aim at Platt's targets
(N1 + 1) / (N1 + 2) and 1 / (N0 + 2) instead of 1 and 0, N1 and N0 being the rows bought and not, so that nothing is ever certain:

* "platt": 1 / (1 + exp(-(slope raw + intercept))), slope >= 0 (Platt 1999, Probabilistic outputs for support vector machines);
* "isotonic": the non-decreasing function nearest to the targets (Zadrozny and Elkan 2002, Transforming classifier scores into
  accurate multiclass probability estimates), with straight lines from the middle of each step to that of the next.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import scipy

from recsys.metrics import EPSILON, log_loss

Kind = Literal["platt", "isotonic"]


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration; `to_json` and `from_json` lose no bit."""

    kind: Kind
    slope: float = 1.0
    """Of "platt"."""
    intercept: float = 0.0
    """Of "platt"."""
    knots: tuple[float, ...] = ()
    """Of "isotonic": raw outputs, ascending."""
    chances: tuple[float, ...] = ()
    """Of "isotonic": the chance at each knot, increasing; straight between knots, and below the first and above the last it stays."""

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """The chance of each row: float32 (B,) within (0, 1), never smaller for a larger raw output."""
        if self.kind == "platt":
            chance = scipy.special.expit(self.slope * raw.astype(np.float64) + self.intercept)
        else:
            above = np.searchsorted(self.knots, raw, side="right")
            chance = np.interp(raw, self.knots, self.chances)
            # on a steep line the last bit may step over the next knot's chance
            chance = np.minimum(chance, np.append(self.chances, self.chances[-1])[above])
        return np.clip(chance, EPSILON, 1 - EPSILON).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibration":
        """What `to_json` made."""
        knots, chances = tuple(values["knots"]), tuple(values["chances"])
        return cls(values["kind"], values["slope"], values["intercept"], knots, chances)


@dataclass(frozen=True)
class Calibrated:
    """A calibration and what its choice rests on."""

    calibration: Calibration
    held_out: Mapping[str, float]
    """Log loss of "sigmoid", the model's own probabilities, and of each kind, on users that the kinds were not fitted on; empty
    where all rows are of one half of the users."""


def fit_calibration(raw: np.ndarray, label: np.ndarray, group: np.ndarray) -> Calibrated:
    """The better kind by log loss on a half of the users after a fit on the other, fitted on all; Platt of equals.

    The result does not depend on the order of rows.

    Args:
        raw: float32 (N), finite, N > 0; all candidates of each user, not sampled.
        label: bool (N): bought in the window.
        group: uint64 (N): stable hash of the row's user; a user's rows are in one half together.
    """
    assert len(raw), "a calibration needs rows"
    order = np.lexsort((label, raw))  # sums then come out the same however users were cut into shards
    raw, label, group = raw[order].astype(np.float64), label[order], group[order]
    held = (group >> np.uint64(32)) % np.uint64(2) == 1  # a middle bit: shards go by the low ones, samples by the high ones
    if held.all() or not held.any():
        return Calibrated(_platt(raw, label), {})
    kinds = {"platt": _platt, "isotonic": _isotonic}
    losses = {"sigmoid": log_loss(label[held], scipy.special.expit(raw[held]))}
    losses |= {kind: log_loss(label[held], fitted(raw[~held], label[~held])(raw[held])) for kind, fitted in kinds.items()}
    best = min(get_args(Kind), key=losses.__getitem__)
    return Calibrated(kinds[best](raw, label), losses)


def _targets(label: np.ndarray) -> np.ndarray:
    bought = int(label.sum())
    return np.where(label, (bought + 1) / (bought + 2), 1 / (len(label) - bought + 2))


def _platt(raw: np.ndarray, label: np.ndarray) -> Calibration:
    """Slope and intercept of the smallest mean cross-entropy to the targets."""
    target = _targets(label)
    centre, spread = raw.mean(), raw.std() or 1.0  # one scale for both unknowns
    scaled = (raw - centre) / spread

    def loss(unknown: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = unknown
        score = slope * scaled + intercept
        off = scipy.special.expit(score) - target
        return float(np.mean(np.logaddexp(0.0, score) - target * score)), np.array([np.mean(off * scaled), np.mean(off)])

    start = np.array([1.0, scipy.special.logit(target.mean())])
    found = scipy.optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)], options={"ftol": 1e-14, "gtol": 1e-9}
    )
    slope = float(found.x[0] / spread)
    return Calibration("platt", slope=slope, intercept=float(found.x[1] - slope * centre))


def _isotonic(raw: np.ndarray, label: np.ndarray) -> Calibration:
    """A line through the blocks of the isotonic regression on the targets, each at the mean of its raw outputs; `raw` ascends.

    Steps would give whole blocks of rows one chance, a few dozen chances in all, and move at every fit. (Oron and Flournoy 2017,
    Centered isotonic regression)
    """
    value, first, count = np.unique(raw, return_index=True, return_counts=True)  # equal outputs are one point
    mean = np.add.reduceat(_targets(label), first) / count
    fitted = scipy.optimize.isotonic_regression(mean, weights=count)
    start = fitted.blocks[:-1]
    centre = np.add.reduceat(count * value, start) / np.add.reduceat(count, start)
    return Calibration("isotonic", knots=tuple(centre.tolist()), chances=tuple(fitted.x[start].tolist()))
