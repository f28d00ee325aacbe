"""Does the published score mean what it says? Chances of all candidates beside what was bought, by decile and by segment.

Rows are counted in narrow cells of the raw output, so that shards add up and memory does not grow with users; deciles are put
together from cells afterwards. "before" is the model's own probability, "after" what is published.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import expit

from recsys import metrics
from recsys.features import examples
from recsys.ranking.recommend import ScoredUsers

STEP, EDGE = 0.05, 12.0  # of a raw output's cell; chances beyond the edges, 6e-6 from 0 and 1, share the outermost cells
CELLS = round(2 * EDGE / STEP)
OCTAVE = 8  # activity classes in a doubling of a user's number of purchases
CLASSES = 16 * OCTAVE
COLUMNS = ("rows", "bought", "before", "after", "loss_before", "loss_after")  # sums in a cell
THIRDS = 3


def count(batch: ScoredUsers, *, chance: Callable[[np.ndarray, np.ndarray], np.ndarray], end: int) -> dict[str, np.ndarray]:
    """The batch's sums; those of several batches or shards are added array by array.

    Args:
        chance: raw outputs and their users' purchases -> the score column.
        end: of the label window, microseconds; it starts at the signals' cutoff.

    Returns:
        `users` (CLASSES), users whom the model stands behind; `cells` (CLASSES + 2, CELLS, COLUMNS), all their candidates by the
        user's activity class, and again by whether the user bought the item before: no, yes.
    """
    users, candidates = batch.users, batch.candidates
    label = examples.bought(candidates, users, window=batch.histories.between(int(users.signals.cutoff), end))
    kept = batch.modelled[candidates.user_row]
    mine, raw, label = candidates.keep(kept), batch.raw[kept], label[kept]
    classes = np.minimum(np.log2(np.maximum(users.activity, 1)) * OCTAVE, CLASSES - 1).astype(np.int64)
    own = mine.rank[:, mine.names.index("own")] > 0 if "own" in mine.names else np.zeros(len(mine), bool)
    cell = np.clip((raw + EDGE) / STEP, 0, CELLS - 1).astype(np.int64)
    before, after = expit(raw.astype(np.float64)), chance(raw, users.activity[mine.user_row]).astype(np.float64)
    columns = (np.ones(len(raw)), label, before, after, metrics.log_losses(label, before), metrics.log_losses(label, after))
    size = (CLASSES + 2) * CELLS
    cells = np.zeros((size, len(COLUMNS)))
    for group in (classes[mine.user_row], CLASSES + own):
        for column, values in enumerate(columns):
            cells[:, column] += np.bincount(group * CELLS + cell, weights=values, minlength=size)
    return {
        "users": np.bincount(classes[batch.modelled], minlength=CLASSES),
        "cells": cells.reshape(CLASSES + 2, CELLS, len(COLUMNS)),
    }


def zero() -> dict[str, np.ndarray]:
    """The sums of no batch."""
    return {"users": np.zeros(CLASSES, np.int64), "cells": np.zeros((CLASSES + 2, CELLS, len(COLUMNS)))}


def summary(sums: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Figures of all rows, with `segments`, the same of each segment by name; None without rows.

    Figures: rows; bought, the share of them; ece and log_loss before and after; deciles of rows by raw output, lowest first, each
    with rows, bought and the mean chance before and after.
    """
    cells, users = sums["cells"], sums["users"]
    if not users.sum():
        return None
    segments: dict[str, dict[str, Any]] = {}
    third = metrics.equal_mass(users, THIRDS)
    there = np.flatnonzero(users)
    for number in range(THIRDS):
        if len(mine := there[third[there] == number]):
            low, high = _fewest(mine[0]), _fewest(mine[-1] + 1) - 1
            segments[f"users with {low:,} to {high:,} purchases"] = _figures(cells[mine].sum(axis=0))
    for number, name in enumerate(("items not bought before", "items bought before")):
        if cells[CLASSES + number].any():
            segments[name] = _figures(cells[CLASSES + number])
    return {"users": int(users.sum()), **_figures(cells[:CLASSES].sum(axis=0)), "segments": segments}


def _fewest(activity: int) -> int:
    """The smallest number of purchases of an activity class."""
    return int(np.ceil(2 ** (activity / OCTAVE)))


def _figures(cells: np.ndarray) -> dict[str, Any]:
    decile = metrics.equal_mass(cells[:, 0])
    bins = np.stack([np.bincount(decile, weights=values) for values in cells.T], axis=1)
    bins = bins[bins[:, 0] > 0]
    rows, bought, before, after, loss_before, loss_after = bins.T
    total = float(rows.sum())
    return {
        "rows": int(total),
        "bought": float(bought.sum() / total),
        "ece": {
            "before": metrics.calibration_error(rows, bought, before),
            "after": metrics.calibration_error(rows, bought, after),
        },
        "log_loss": {"before": float(loss_before.sum() / total), "after": float(loss_after.sum() / total)},
        "deciles": [
            {"rows": int(one[0]), "bought": float(one[1] / one[0]), "before": float(one[2] / one[0]), "after": float(one[3] / one[0])}
            for one in bins
        ],
    }
