"""Raw model output -> the chance that the user buys the item within label_days, for the score column only.

Negatives are sampled for training, a number for each of a user's positives, so the model's own probabilities are too high, and it
hardly learns how much a user buys. A calibration is a non-decreasing function of the raw output, fitted on all candidates of users in
a window that the model never saw. Lists are ordered by the raw output, so where a calibration ties two rows no list changes.

Two kinds are fitted, each of the raw output alone and of the raw output plus a parabola in the logarithm of the user's purchases ("by
activity"; its coefficients are those of a logistic regression on all three), and what does better on users it was not fitted on is
kept. All aim at Platt's targets
(N1 + 1) / (N1 + 2) and 1 / (N0 + 2) instead of 1 and 0, N1 and N0 being the rows bought and not, so that nothing is ever certain:

* "platt": 1 / (1 + exp(-(slope raw + intercept))), slope >= 0 (Platt 1999, Probabilistic outputs for support vector machines);
* "isotonic": the non-decreasing function nearest to the targets (Zadrozny and Elkan 2002, Transforming classifier scores into
  accurate multiclass probability estimates), with straight lines from the middle of each step to that of the next.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy

from recsys.metrics import EPSILON, log_loss

Kind = Literal["platt", "isotonic"]
Fit = Callable[..., "Calibration"]  # of raw outputs, ascending, labels, and purchases
BY_ACTIVITY = " by activity"  # what is said of a kind that is


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
    activity: tuple[float, ...] = ()
    """Of both, added to the raw output: times log(1 + purchases of the user), and times its square; empty where not by activity."""

    @property
    def name(self) -> str:
        """The kind, and whether it is by activity."""
        return f"{self.kind}{BY_ACTIVITY if self.activity else ''}"

    def __call__(self, raw: np.ndarray, purchases: np.ndarray) -> np.ndarray:
        """The chance of each row: float32 (B,) within (0, 1), for the same user never smaller for a larger raw output.

        Args:
            raw: float32 (B,).
            purchases: (B,): of the row's user before the night, a day an item.
        """
        raw = raw.astype(np.float64)
        if self.activity:
            raw = raw + _powers(purchases) @ self.activity
        if self.kind == "platt":
            chance = scipy.special.expit(self.slope * raw + self.intercept)
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
        series = (tuple(values.get(name, ())) for name in ("knots", "chances", "activity"))
        return cls(values["kind"], values["slope"], values["intercept"], *series)


@dataclass(frozen=True)
class Calibrated:
    """A calibration and what its choice rests on."""

    calibration: Calibration
    held_out: Mapping[str, float]
    """Log loss of "sigmoid", the model's own probabilities, and of each kind, on users that the kinds were not fitted on; empty
    where all rows are of one half of the users."""


def fit_calibration(raw: np.ndarray, label: np.ndarray, group: np.ndarray, purchases: np.ndarray) -> Calibrated:
    """The best kind by log loss on a half of the users after a fit on the other, fitted on all; the first of equals.

    The result does not depend on the order of rows.

    Args:
        raw: float32 (N), finite, N > 0; all candidates of each user, not sampled.
        label: bool (N): bought in the window.
        group: uint64 (N): stable hash of the row's user; a user's rows are in one half together.
        purchases: (N): of the row's user, as in `Calibration`.
    """
    assert len(raw), "a calibration needs rows"
    order = np.lexsort((label, purchases, raw))  # sums then come out the same however users were cut into shards
    raw, label, group, purchases = raw[order].astype(np.float64), label[order], group[order], purchases[order]
    held = (group >> np.uint64(32)) % np.uint64(2) == 1  # a middle bit: shards go by the low ones, samples by the high ones
    if held.all() or not held.any():
        return Calibrated(_platt(raw, label), {})
    kinds = {"platt": _platt, "isotonic": _isotonic}
    kinds |= {f"{kind}{BY_ACTIVITY}": functools.partial(_by_activity, fitted) for kind, fitted in kinds.items()}
    losses = {"sigmoid": log_loss(label[held], scipy.special.expit(raw[held]))}
    for name, fitted in kinds.items():
        losses[name] = log_loss(label[held], fitted(raw[~held], label[~held], purchases[~held])(raw[held], purchases[held]))
    best = min(kinds, key=losses.__getitem__)
    return Calibrated(kinds[best](raw, label, purchases), losses)


def _by_activity(kind: Fit, raw: np.ndarray, label: np.ndarray, purchases: np.ndarray) -> Calibration:
    """A kind of the raw output plus what the user's activity adds to it."""
    powers = _powers(purchases)
    slope, *more = _logistic(np.column_stack([raw, powers]), _targets(label))[1]
    if slope <= 0:  # an output that tells nothing
        return kind(raw, label)
    activity = tuple(float(weight / slope) for weight in more)
    raw = raw + powers @ activity
    order = np.lexsort((label, raw))
    return replace(kind(raw[order], label[order]), activity=activity)


def _powers(purchases: np.ndarray) -> np.ndarray:
    logs = np.log1p(purchases.astype(np.float64))
    return np.column_stack([logs, logs**2])


def _targets(label: np.ndarray) -> np.ndarray:
    bought = int(label.sum())
    return np.where(label, (bought + 1) / (bought + 2), 1 / (len(label) - bought + 2))


def _platt(raw: np.ndarray, label: np.ndarray, purchases: np.ndarray | None = None) -> Calibration:
    """Slope and intercept of the smallest mean cross-entropy to the targets."""
    intercept, (slope,) = _logistic(raw[:, None], _targets(label))
    return Calibration("platt", slope=slope, intercept=intercept)


def _logistic(columns: np.ndarray, target: np.ndarray) -> tuple[float, list[float]]:
    """Intercept and weights of the smallest mean cross-entropy to the targets; the first column's weight is at least 0.

    Args:
        columns: float64 (N, F).
        target: float64 (N) within (0, 1).
    """
    centre, spread = columns.mean(axis=0), columns.std(axis=0)
    spread[spread == 0] = 1.0  # one scale for all unknowns
    scaled = (columns - centre) / spread

    def loss(unknown: np.ndarray) -> tuple[float, np.ndarray]:
        score = scaled @ unknown[:-1] + unknown[-1]
        off = scipy.special.expit(score) - target
        return float(np.mean(np.logaddexp(0.0, score) - target * score)), np.append(off @ scaled, off.sum()) / len(off)

    start = np.append(np.eye(1, columns.shape[1])[0], scipy.special.logit(target.mean()))
    bounds = [(0.0, None)] + [(None, None)] * columns.shape[1]
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9})
    weights = found.x[:-1] / spread
    return float(found.x[-1] - weights @ centre), weights.tolist()


def _isotonic(raw: np.ndarray, label: np.ndarray, purchases: np.ndarray | None = None) -> Calibration:
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
