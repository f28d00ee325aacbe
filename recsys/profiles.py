"""A batch of users in memory: each one's events as a slice of flat arrays; `between` cuts them by time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.tables import ITEM, PRICE, QUANTITY, TS, WANTED


@dataclass(frozen=True)
class Profiles:
    """U users and their E events; the events of user u are positions offsets[u] to offsets[u + 1], in (ts, item) order."""

    users: pa.Table
    """U rows: user_id and the user's features."""
    offsets: np.ndarray
    """int64 (U + 1)."""
    item: np.ndarray
    """int32 (E), item codes."""
    ts: np.ndarray
    """int64 (E), microseconds since 1970 UTC."""
    quantity: np.ndarray
    """float32 (E)."""
    price: np.ndarray
    """float32 (E), for one unit; NaN where unknown."""
    wanted: np.ndarray
    """bool (E): the event's kind counts as wanted."""

    def __len__(self) -> int:
        return self.users.num_rows

    @property
    def user_row(self) -> np.ndarray:
        """int32 (E): which of the batch's users each event belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def keep(self, mask: np.ndarray) -> "Profiles":
        """The same users with only the events where `mask`, bool (E), holds."""
        kept_before = np.concatenate([[0], np.cumsum(mask)])
        return replace(
            self,
            offsets=kept_before[self.offsets].astype(np.int64),
            item=self.item[mask],
            ts=self.ts[mask],
            quantity=self.quantity[mask],
            price=self.price[mask],
            wanted=self.wanted[mask],
        )

    def between(self, start: int, end: int) -> "Profiles":
        """The same users with only the events of start <= ts < end, both in microseconds."""
        return self.keep((self.ts >= start) & (self.ts < end))

    def select(self, start: int, stop: int) -> "Profiles":
        """The users of rows start to stop, with all their events."""
        events = slice(self.offsets[start], self.offsets[stop])
        return Profiles(
            users=self.users.slice(start, stop - start),
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            item=self.item[events],
            ts=self.ts[events],
            quantity=self.quantity[events],
            price=self.price[events],
            wanted=self.wanted[events],
        )

    def take(self, rows: np.ndarray) -> "Profiles":
        """The users of the given rows, strictly ascending int array, with all their events."""
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        kept = self.keep(np.repeat(chosen, np.diff(self.offsets)))
        lengths = np.diff(kept.offsets)[rows]
        return replace(kept, users=self.users.take(rows), offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def from_table(table: pa.Table) -> Profiles:
    """Profiles of the rows of a table with `profiles_schema`."""
    table = table.combine_chunks()
    lists = {name: _one_array(table.column(name)) for name in (ITEM, TS, QUANTITY, PRICE, WANTED)}
    offsets = lists[ITEM].offsets.to_numpy()

    def flat(name: str) -> pa.Array:
        return lists[name].flatten()

    return Profiles(
        users=table.drop_columns(list(lists)),
        offsets=(offsets - offsets[0]).astype(np.int64),
        item=flat(ITEM).to_numpy(zero_copy_only=False),
        ts=pc.cast(flat(TS), pa.int64()).to_numpy(zero_copy_only=False),
        quantity=flat(QUANTITY).to_numpy(zero_copy_only=False),
        price=flat(PRICE).to_numpy(zero_copy_only=False),
        wanted=flat(WANTED).to_numpy(zero_copy_only=False),
    )


def to_table(profiles: Profiles, schema: pa.Schema) -> pa.Table:
    """The table with `profiles_schema` that `from_table` reads."""
    offsets = pa.array(profiles.offsets, pa.int32())
    columns = {
        ITEM: pa.array(profiles.item, pa.int32()),
        TS: pa.array(profiles.ts, pa.int64()).cast(schema.field(TS).type.value_type),
        QUANTITY: pa.array(profiles.quantity, pa.float32()),
        PRICE: pa.array(profiles.price, pa.float32()),
        WANTED: pa.array(profiles.wanted, pa.bool_()),
    }
    table = profiles.users
    for name, values in columns.items():
        table = table.append_column(schema.field(name), pa.ListArray.from_arrays(offsets, values))
    return table.select(schema.names).cast(schema)


def group(users: pa.Table, user_row: np.ndarray, events: Sequence[np.ndarray]) -> Profiles:
    """Profiles from events in any order.

    Args:
        users: U rows with user_id and features.
        user_row: int (E), the row of each event's user.
        events: item int32, ts int64, quantity float32, price float32, wanted bool; each (E).
    """
    item, ts, quantity, price, wanted = events
    order = np.lexsort((wanted, price, quantity, item, ts, user_row))  # by every column: equal events meet, input order is forgotten
    counts = np.bincount(user_row, minlength=users.num_rows)
    return Profiles(
        users=users,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=item[order],
        ts=ts[order],
        quantity=quantity[order],
        price=price[order],
        wanted=wanted[order],
    )


def drop_duplicates(profiles: Profiles) -> Profiles:
    """The profiles without events that equal their predecessor in every column; needs the order that `group` makes."""
    if len(profiles.item) == 0:
        return profiles
    user_row = profiles.user_row
    same = np.ones(len(profiles.item) - 1, bool)
    for column in (user_row, profiles.item, profiles.ts, profiles.quantity, profiles.wanted):
        same &= column[1:] == column[:-1]
    price = profiles.price
    same &= (price[1:] == price[:-1]) | (np.isnan(price[1:]) & np.isnan(price[:-1]))
    return profiles.keep(np.concatenate([[True], ~same]))


def _one_array(column: pa.ChunkedArray) -> pa.ListArray:
    """The column as one array; a table after `combine_chunks` has one chunk, or none where it has no rows."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.array([], column.type)


def shard_of(user_id: pa.Array | pa.ChunkedArray, shards: int) -> np.ndarray:
    """int32 (N): the shard of each user, by a hash that is the same on every machine and in every run."""
    values = user_id.to_numpy(zero_copy_only=False) if isinstance(user_id, pa.Array) else user_id.to_numpy()
    return (stable_hash(values) % np.uint64(shards)).astype(np.int32)


def stable_hash(ids: np.ndarray) -> np.ndarray:
    """uint64 (N): pandas' keyless hash of int64 or string ids."""
    from pandas.util import hash_array  # takes a quarter of a second to import, which Ray's start has time for

    if ids.dtype.kind in "iu":
        return hash_array(ids.astype(np.int64))
    return hash_array(ids.astype(object), categorize=True)


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 (N): splitmix64's finaliser (Steele, Lea, Flood 2014), a stable hash that numpy does in one go."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
