"""Users' histories: each user's events as a slice of flat arrays, cut by time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.schema import DAY_US, ITEM, LOOK, PRICE, QUANTITY, TS, WANTED


@dataclass(frozen=True)
class Histories:
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
    look: np.ndarray
    """int8 (E): WANTED, DISLIKED, or which kind of look the event is, as `schema.LOOK` has it."""

    def __len__(self) -> int:
        return self.users.num_rows

    @property
    def wanted(self) -> np.ndarray:
        """bool (E): the event is what lists are to foretell."""
        return self.look == WANTED

    @property
    def user_row(self) -> np.ndarray:
        """int32 (E): which of the batch's users each event belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def keep(self, mask: np.ndarray) -> "Histories":
        """The same users with only the events where `mask`, bool (E), holds."""
        kept_before = np.concatenate([[0], np.cumsum(mask)])
        return replace(
            self,
            offsets=kept_before[self.offsets].astype(np.int64),
            item=self.item[mask],
            ts=self.ts[mask],
            quantity=self.quantity[mask],
            price=self.price[mask],
            look=self.look[mask],
        )

    def between(self, start: int, end: int) -> "Histories":
        """The same users with only the events of start <= ts < end, both in microseconds."""
        return self.keep((self.ts >= start) & (self.ts < end))

    def select(self, start: int, stop: int) -> "Histories":
        """The users of rows start to stop, with all their events."""
        events = slice(self.offsets[start], self.offsets[stop])
        return Histories(
            users=self.users.slice(start, stop - start),
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            item=self.item[events],
            ts=self.ts[events],
            quantity=self.quantity[events],
            price=self.price[events],
            look=self.look[events],
        )

    def take(self, rows: np.ndarray) -> "Histories":
        """The users of the given rows, strictly ascending int array, with all their events."""
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        kept = self.keep(np.repeat(chosen, np.diff(self.offsets)))
        lengths = np.diff(kept.offsets)[rows]
        return replace(kept, users=self.users.take(rows), offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def read_histories(folder: Path, shard: str) -> Histories:
    """One shard of what an ingest wrote into the folder."""
    return from_table(pq.ParquetFile(folder / f"histories-{shard}.parquet").read(use_threads=False))


def from_table(table: pa.Table) -> Histories:
    """Histories of the rows of a table with `histories_schema`."""
    table = table.combine_chunks()
    lists = {name: _one_array(table.column(name)) for name in (ITEM, TS, QUANTITY, PRICE, LOOK)}
    offsets = lists[ITEM].offsets.to_numpy()

    def flat(name: str) -> pa.Array:
        return lists[name].flatten()

    return Histories(
        users=table.drop_columns(list(lists)),
        offsets=(offsets - offsets[0]).astype(np.int64),
        item=flat(ITEM).to_numpy(zero_copy_only=False),
        ts=pc.cast(flat(TS), pa.int64()).to_numpy(zero_copy_only=False),
        quantity=flat(QUANTITY).to_numpy(zero_copy_only=False),
        price=flat(PRICE).to_numpy(zero_copy_only=False),
        look=flat(LOOK).to_numpy(zero_copy_only=False),
    )


def to_table(histories: Histories, schema: pa.Schema) -> pa.Table:
    """The table with `histories_schema` that `from_table` reads."""
    offsets = pa.array(histories.offsets, pa.int32())
    columns = {
        ITEM: pa.array(histories.item, pa.int32()),
        TS: pa.array(histories.ts, pa.int64()).cast(schema.field(TS).type.value_type),
        QUANTITY: pa.array(histories.quantity, pa.float32()),
        PRICE: pa.array(histories.price, pa.float32()),
        LOOK: pa.array(histories.look, pa.int8()),
    }
    table = histories.users
    for name, values in columns.items():
        table = table.append_column(schema.field(name), pa.ListArray.from_arrays(offsets, values))
    return table.select(schema.names).cast(schema)


def group_events(users: pa.Table, user_row: np.ndarray, events: Sequence[np.ndarray]) -> Histories:
    """Histories from events in any order.

    Args:
        users: U rows with user_id and features.
        user_row: int (E), the row of each event's user.
        events: item int32, ts int64, quantity float32, price float32, look int8; each (E).
    """
    item, ts, quantity, price, look = events
    order = np.lexsort((look, price, quantity, item, ts, user_row))  # by every column: equal events meet, input order is forgotten
    counts = np.bincount(user_row, minlength=users.num_rows)
    return Histories(
        users=users,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item=item[order],
        ts=ts[order],
        quantity=quantity[order],
        price=price[order],
        look=look[order],
    )


def merge(one: Histories, other: Histories) -> tuple[Histories, np.ndarray]:
    """The events of both, in the order of `group_events`, those of the second behind equal ones; and bool (E): which are the second's.

    Args:
        one, other: of the same users.
    """
    assert len(one) == len(other), "histories of other users cannot be merged"
    counts = np.diff(one.offsets), np.diff(other.offsets)
    both = np.concatenate([np.repeat(counts[1] > 0, counts[0]), np.ones(len(other.item), bool)])  # of users who have more
    user_row = np.concatenate([one.user_row, other.user_row])
    names = ("look", "price", "quantity", "item", "ts")
    columns = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    new = np.arange(len(user_row)) >= len(one.item)
    moved = np.flatnonzero(both)
    moved = moved[np.lexsort((new[moved], *(columns[name][moved] for name in names), user_row[moved]))]
    order = np.empty(len(user_row), np.int64)
    places = np.repeat(counts[1] > 0, counts[0] + counts[1])
    order[places], order[~places] = moved, np.flatnonzero(~both)
    offsets = np.concatenate([[0], np.cumsum(counts[0] + counts[1])]).astype(np.int64)
    return Histories(users=other.users, offsets=offsets, **{name: columns[name][order] for name in names}), new[order]


def drop_duplicates(histories: Histories) -> Histories:
    """The histories without events that `distinct_events` leaves out."""
    return histories.keep(distinct_events(histories))


def distinct_events(histories: Histories) -> np.ndarray:
    """bool (E): events that differ from their predecessor in some column; needs the order that `group_events` makes."""
    if len(histories.item) == 0:
        return np.zeros(0, bool)
    user_row = histories.user_row
    same = np.ones(len(histories.item) - 1, bool)
    for column in (user_row, histories.item, histories.ts, histories.quantity, histories.look):
        same &= column[1:] == column[:-1]
    price = histories.price
    same &= (price[1:] == price[:-1]) | (np.isnan(price[1:]) & np.isnan(price[:-1]))
    return np.concatenate([[True], ~same])


def _one_array(column: pa.ChunkedArray) -> pa.ListArray:
    """The column as one array; a table after `combine_chunks` has one chunk, or none where it has no rows."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.array([], column.type)


def purchase_days(histories: Histories, *, cutoff: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `event_days`, of what is wanted."""
    return event_days(histories, histories.wanted, cutoff=cutoff)


def event_days(histories: Histories, chosen: np.ndarray, *, cutoff: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row int64, item code int64 and day int64 of every distinct (user, item, day) among chosen events, bool (E), in that order.

    Days count back from the cutoff: 0 is the last 24 hours before it.
    """
    days = (cutoff - 1 - histories.ts[chosen]) // DAY_US
    key = histories.user_row[chosen].astype(np.int64)
    order = np.lexsort((days, histories.item[chosen], key))
    user, item, days = key[order], histories.item[chosen][order].astype(np.int64), days[order]
    new = np.ones(len(user), bool)
    new[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1]) | (days[1:] != days[:-1])
    return user[new], item[new], days[new]
