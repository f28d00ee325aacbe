"""Each user's best items while they are looked for: what rules forbid, and the heaps of what was found."""

from typing import NamedTuple

import numpy as np


class Barred(NamedTuple):
    """What rules forbid to U users of J items."""

    row: np.ndarray
    """int64 (U): which row of `shared` holds for the user."""
    shared: np.ndarray
    """uint16 (C, J), C audiences: 0 where no rule forbids them the item, else 1 + the place of the first rule that does."""
    offsets: np.ndarray
    """int64 (U + 1): row pointers of what is forbidden to a user alone."""
    item: np.ndarray
    """int32 (P), ascending within a user."""
    by: np.ndarray
    """uint16 (P): 1 + the place of the first rule that forbids the user the item alone."""

    def of(self, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """uint16 (N): 0 where the user may see the item, else 1 + the place of the first rule that forbids it."""
        by = self.shared[self.row[user_row], item]
        if not len(self.item):
            return by
        items = self.shared.shape[1]
        key = np.repeat(np.arange(len(self.row)), np.diff(self.offsets)) * items + self.item
        wanted = user_row * items + item
        place = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        alone = np.where(key[place] == wanted, self.by[place], 0).astype(np.uint16)
        return np.where((by == 0) | ((alone > 0) & (alone < by)), alone, by)

    def also(self, key: np.ndarray) -> "Barred":
        """With more pairs forbidden, by no rule: int64, user row x J + item."""
        items = self.shared.shape[1]
        mine = np.repeat(np.arange(len(self.row)), np.diff(self.offsets)) * items + self.item
        both, first = np.unique(np.concatenate([mine, key]), return_index=True)
        by = np.concatenate([self.by, np.full(len(key), np.iinfo(np.uint16).max, np.uint16)])[first]
        row, item = np.divmod(both, items)
        offsets = np.searchsorted(row, np.arange(len(self.row) + 1)).astype(np.int64)
        return self._replace(offsets=offsets, item=item.astype(np.int32), by=by)


class Heaps(NamedTuple):
    """For U users the best items so far, at most `limit`: those that a user may see, and those that the rules forbid; worst on top."""

    score: np.ndarray
    """float32 (U, 2, limit)."""
    item: np.ndarray
    """int32 (U, 2, limit)."""
    size: np.ndarray
    """int64 (U, 2)."""


def empty_heaps(users: int, limit: int) -> Heaps:
    """Empty ones."""
    shape = (users, 2, limit)
    return Heaps(np.empty(shape, np.float32), np.empty(shape, np.int32), np.zeros((users, 2), np.int64))
