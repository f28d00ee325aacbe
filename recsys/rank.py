"""Raw outputs -> each user's list: best first, ties by item id, the first k."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recsys.candidates import Candidates


@dataclass(frozen=True)
class Ranked:
    """M rows of lists: users ascending, ranks 1, 2, … within each."""

    row: np.ndarray
    """int64 (M): which of the rows it is."""
    rank: np.ndarray
    """int32 (M), from 1."""


def top(user_row: np.ndarray, item: np.ndarray, raw: np.ndarray, *, k: int) -> Ranked:
    """The k rows of each user with the highest raw output; all of them where a user has fewer.

    Ties break by item, so what stands there must be in the order of item ids.

    Args:
        user_row: int (N), from 0, in any order.
        item: int (N).
        raw: float32 (N), no NaN.
    """
    bits = (raw + np.float32(0)).view(np.uint32)  # + 0: -0.0 and 0.0 are a tie
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # unsigned integers in the order of the floats
    key = (user_row.astype(np.uint64) << np.uint64(32)) | ~ascending
    order = np.argsort(key)  # one key of 64 bits sorts several times faster than three
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
        order[tied] = order[tied][np.lexsort((item[order[tied]], ordered[tied]))]
    user = user_row[order]
    place = np.arange(len(order)) - np.searchsorted(user, user)
    kept = place < k
    return Ranked(order[kept], (place[kept] + 1).astype(np.int32))


def as_lists(ranked: Ranked, candidates: "Candidates", items: np.ndarray, *, users: int, k: int) -> np.ndarray:
    """int32 (U, k) item codes in rank order, -1 beyond a list's end.

    Args:
        items: int32 (J), item code of each active position.
    """
    lists = np.full((users, k), -1, np.int32)
    lists[candidates.user_row[ranked.row], ranked.rank - 1] = items[candidates.item[ranked.row]]
    return lists
