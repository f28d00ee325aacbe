"""Compiled loops over candidate rows: places within each user's, and columns laid side by side."""

import numpy as np

from recsys.compiled import jit

BLOCK = 64  # rows that are turned at once: their cells stay in the cache


@jit
def log_places(score: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64 (N): log(1 + place) of each score among its user's, best first from 0, ties in row order; NaN counts as the lowest.

    Args:
        score: float32 (N), rows of a user side by side.
        starts: int64 (U + 1), row pointers of the users.
    """
    logs = np.empty(len(score))
    for user in range(len(starts) - 1):
        first, last = starts[user], starts[user + 1]
        present = np.flatnonzero(~np.isnan(score[first:last]))
        order = present[np.argsort(-score[first:last][present], kind="mergesort")]
        for place in range(len(order)):
            logs[first + order[place]] = np.log1p(place)
        place = len(order)
        for row in range(first, last):
            if np.isnan(score[row]):
                logs[row] = np.log1p(place)
                place += 1
    return logs


@jit
def side_by_side(columns: np.ndarray) -> np.ndarray:
    """float32 (N, F) of float32 (F, N), NaN for what is not finite."""
    width, rows = columns.shape
    turned = np.empty((rows, width), np.float32)
    for start in range(0, rows, BLOCK):
        for column in range(width):
            for row in range(start, min(start + BLOCK, rows)):
                value = columns[column, row]
                turned[row, column] = value if np.isfinite(value) else np.float32(np.nan)
    return turned
