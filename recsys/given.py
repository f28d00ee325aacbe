"""The shop's own candidates, `rank.candidates`: rows of (user, item) opened, checked, and cut by shard of users.

They replace what the sources propose and nothing else: the model, its features and the shop's rules are those of every night.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog import Catalog
from recsys.tables import ITEM_ID, USER_ID
from recsys.work import load_arrays

GIVEN = "given"  # the source's name


@dataclass(frozen=True)
class Given:
    """N candidates of U users: users ascending, each one's in the order of the input."""

    user_row: np.ndarray
    """int64 (N)."""
    item: np.ndarray
    """int32 (N), item codes."""

    def select(self, start: int, stop: int) -> "Given":
        """Those of the user rows start to stop, which become 0 on."""
        first, last = np.searchsorted(self.user_row, (start, stop))
        return Given(self.user_row[first:last] - start, self.item[first:last])


def load(path: Path) -> Given:
    """One shard's candidates, as `save_arrays` wrote them."""
    return Given(**load_arrays(path))


def rows_of(table: pa.Table, user_id: pa.Array, catalog: Catalog) -> tuple[Given, dict[str, int]]:
    """The candidates of a shard's users, and the rows that cannot be used, by reason.

    Args:
        table: user_id and item_id without nulls, of any users of the shard.
        user_id: the shard's users; a user's place there is its row.

    Returns:
        Reasons: unknown_user, of whom neither events nor users tell; unknown_item, not in the catalog; duplicate, a pair
        that stands there before.
    """
    user = pc.index_in(table.column(USER_ID), value_set=user_id)
    item = pc.index_in(table.column(ITEM_ID), value_set=catalog.item_id)
    unknown_user, unknown_item = user.is_null().to_numpy(), item.is_null().to_numpy()
    usable = np.flatnonzero(~(unknown_user | unknown_item))
    row = pc.fill_null(user, 0).to_numpy().astype(np.int64)[usable]
    code = pc.fill_null(item, 0).to_numpy().astype(np.int32)[usable]
    _, first = np.unique(row * len(catalog) + code, return_index=True)
    first.sort()
    order = first[np.argsort(row[first], kind="stable")]
    rejected = Counter(
        unknown_user=int(unknown_user.sum()),
        unknown_item=int((unknown_item & ~unknown_user).sum()),
        duplicate=len(row) - len(first),
    )
    return Given(row[order], code[order]), {reason: count for reason, count in rejected.items() if count}
