"""Raw outputs -> each user's list: best first, ties by item id, the first k."""

from dataclasses import dataclass

import numpy as np

from recsys.candidates import Candidates


@dataclass(frozen=True)
class Ranked:
    """M rows of lists: users ascending, ranks 1, 2, … within each."""

    row: np.ndarray
    """int64 (M): which candidate row it is."""
    rank: np.ndarray
    """int32 (M), from 1."""


def top(candidates: Candidates, raw: np.ndarray, *, k: int) -> Ranked:
    """The k candidates of each user with the highest raw output; all of them where a user has fewer.

    Ties break by item code, which is item id order.

    Args:
        raw: float32 (N), no NaN.
    """
    order = np.lexsort((candidates.item, -raw, candidates.user_row))
    user = candidates.user_row[order]
    place = np.arange(len(order)) - np.searchsorted(user, user)
    kept = place < k
    return Ranked(order[kept], (place[kept] + 1).astype(np.int32))


def as_lists(ranked: Ranked, candidates: Candidates, items: np.ndarray, *, users: int, k: int) -> np.ndarray:
    """int32 (U, k) item codes in rank order, -1 beyond a list's end.

    Args:
        items: int32 (J), item code of each active position.
    """
    lists = np.full((users, k), -1, np.int32)
    lists[candidates.user_row[ranked.row], ranked.rank - 1] = items[candidates.item[ranked.row]]
    return lists
