"""What the shop supplies by ids: its own candidates (`rank.candidates`), and the lists that its rules name.

Supplied candidates replace what the sources propose and nothing else: the model, its features and the shop's rules are those of every
night.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.inputs import Input, read
from recsys.data.keyed import Key, user_ids
from recsys.data.shop import list_name
from recsys.data.types import clean_ids, readable
from recsys.hashing import stable_hash
from recsys.schema import ITEM_ID, USER_ID
from recsys.storage import load_arrays, save_array

SUPPLIED = "given"  # the source's name


@dataclass(frozen=True)
class Supplied:
    """N candidates of U users: users ascending, each one's in the order of the input."""

    user_row: np.ndarray
    """int64 (N)."""
    item: np.ndarray
    """int32 (N), item codes."""

    def select(self, start: int, stop: int) -> "Supplied":
        """Those of the user rows start to stop, which become 0 on."""
        first, last = np.searchsorted(self.user_row, (start, stop))
        return Supplied(self.user_row[first:last] - start, self.item[first:last])

    def take(self, rows: np.ndarray) -> "Supplied":
        """Those of the given user rows, strictly ascending, which become 0 on."""
        place = np.minimum(np.searchsorted(rows, self.user_row), max(len(rows) - 1, 0))
        kept = rows[place] == self.user_row if len(rows) else np.zeros(len(self.user_row), bool)
        return Supplied(place[kept], self.item[kept])


def load(path: Path) -> Supplied:
    """One shard's candidates, as `save_arrays` wrote them."""
    return Supplied(**load_arrays(path))


def rows_of(table: pa.Table, user_id: pa.Array, catalog: Catalog) -> tuple[Supplied, dict[str, int]]:
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
    return Supplied(row[order], code[order]), {reason: count for reason, count in rejected.items() if count}


# Lists of ids ---------------------------------------------------------------------------------------------------------------------


def write_list(
    path: Path,
    source: Input,
    *,
    what: str,
    columns: config.Columns,
    types: Sequence[pa.DataType],
    catalog: Catalog,
    key: Key | None = None,
) -> dict[str, int]:
    """Counts of a list's rows, and the file that `Rules` maps into memory: one copy a node, however many actors read it.

    A user is known by the stable hash of the id: two string ids in 2^64 could be taken for each other. Rows with a null id, and ids
    that the catalog does not hold, say nothing; the latter are counted as `unknown`.

    Args:
        path: of the .npy file: `items` bool (I); `users` uint64 hashes, ascending; `pairs` uint64 (2, P), hashes ascending and item
            codes.
        types: of user and item ids.
        key: that user ids are kept under.
    """
    rows = unknown = 0
    listed = np.zeros(len(catalog), bool)
    found: list[np.ndarray] = [np.empty((2, 0), np.uint64)]
    for file in source.files:
        wanted = [column for column, without in ((columns.user_id, "items"), (columns.item_id, "users")) if what != without]
        raw = read(source, file, None, wanted)
        rows += raw.num_rows
        hashes = items = np.zeros(raw.num_rows, np.uint64)
        known = np.ones(raw.num_rows, bool)
        if what != "items":
            with readable(file.path, columns.user_id):
                user = user_ids(raw.column(columns.user_id), types[0], key)
            known &= pc.is_valid(user).to_numpy()
            nothing = "" if types[0] == pa.string() else 0  # numpy makes floats of integers with nulls, and floats hash otherwise
            hashes = stable_hash(pc.fill_null(user, nothing).to_numpy())
        if what != "users":
            with readable(file.path, columns.item_id):
                item = clean_ids(raw.column(columns.item_id), types[1])
            code = pc.index_in(item, value_set=catalog.item_id)
            unknown += code.null_count
            known &= pc.is_valid(code).to_numpy()
            items = pc.fill_null(code, 0).to_numpy().astype(np.uint64)
            listed[items[known].astype(np.int64)] = True
        found.append(np.stack([hashes[known], items[known]]))
    pairs = np.concatenate(found, axis=1)
    made = {"items": lambda: listed, "users": lambda: np.unique(pairs[0]), "pairs": lambda: pairs[:, np.lexsort((pairs[1], pairs[0]))]}
    save_array(path, made[what]())
    return {"rows": rows, "unknown": unknown}


def read_list(lists: Path | None, place: int, what: str) -> np.ndarray:
    """A file of `write_list`, mapped into memory: of the rule at that place in the settings, and `items`, `users` or `pairs`."""
    assert lists is not None, "a rule with lists acts only where there are some"
    return np.load(lists / f"{list_name(place, what)}.npy", mmap_mode="r", allow_pickle=False)
