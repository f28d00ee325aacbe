import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.histories import Histories, drop_duplicates, from_table, to_table
from recsys.schema import DAY_US, histories_schema
from tests import shops
from tests.shops import Event

DRAWN = st.builds(
    Event,
    user=st.integers(0, 3),
    item=st.integers(0, 2),
    day=st.integers(0, 4).map(float),
    price=st.sampled_from([math.nan, 1.0, 2.0]),
    quantity=st.sampled_from([1.0, 2.0]),
    wanted=st.booleans(),
    look=st.sampled_from([-1, 1, 2]),
)
FOUR = pa.table({"user_id": pa.array([7, 8, 9, 12], pa.int64())})


class Row(NamedTuple):
    """One event with its user's id; a price of None is unknown, so that rows compare."""

    user: object
    ts: int
    item: int
    quantity: float
    price: float | None
    wanted: bool


def rows(batch: Histories) -> list[Row]:
    """Every event of a batch, users in order, by the offsets alone."""
    ids = batch.users.column("user_id").to_pylist()
    found: list[Row] = []
    for number, user in enumerate(ids):
        for event in range(int(batch.offsets[number]), int(batch.offsets[number + 1])):
            price = float(batch.price[event])
            found.append(
                Row(
                    user,
                    int(batch.ts[event]),
                    int(batch.item[event]),
                    float(batch.quantity[event]),
                    None if math.isnan(price) else price,
                    bool(batch.wanted[event]),
                )
            )
    return found


def four(events: list[Event]) -> Histories:
    return shops.group(events, FOUR)


def whole_number_of_events(batch: Histories) -> bool:
    return batch.offsets[0] == 0 and batch.offsets[-1] == len(batch.item) == len(batch.user_row)


def test_between_takes_the_start_and_leaves_the_end() -> None:
    batch = four([Event(1, 0, 2.0), Event(1, 1, 3.0), Event(3, 2, 4.0)])
    day = DAY_US
    assert batch.between(2 * day, 4 * day).item.tolist() == [0, 1]
    assert batch.between(2 * day + 1, 4 * day + 1).item.tolist() == [1, 2]
    assert batch.between(3 * day, 3 * day).offsets.tolist() == [0, 0, 0, 0, 0]


@given(st.lists(DRAWN, max_size=12), st.data())
def test_keep_leaves_every_event_with_its_user(events: list[Event], data: st.DataObject) -> None:
    batch = four(events)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(events), max_size=len(events))), bool)
    kept = batch.keep(mask)
    assert rows(kept) == [row for row, here in zip(rows(batch), mask, strict=True) if here]
    assert kept.users.equals(batch.users)
    assert whole_number_of_events(kept)


@given(st.lists(DRAWN, max_size=12), st.integers(0, 4), st.integers(0, 4))
def test_select_takes_a_range_of_users_with_all_their_events(events: list[Event], one: int, other: int) -> None:
    start, stop = sorted((one, other))
    chosen = four(events).select(start, stop)
    ids = [7, 8, 9, 12][start:stop]
    assert chosen.users.column("user_id").to_pylist() == ids
    assert rows(chosen) == [row for row in rows(four(events)) if row.user in ids]
    assert whole_number_of_events(chosen)


@given(st.lists(DRAWN, max_size=12), st.sets(st.integers(0, 3)))
def test_take_takes_the_named_users_with_all_their_events(events: list[Event], wanted: set[int]) -> None:
    chosen = four(events).take(np.array(sorted(wanted), np.int64))
    ids = [[7, 8, 9, 12][row] for row in sorted(wanted)]
    assert chosen.users.column("user_id").to_pylist() == ids
    assert rows(chosen) == [row for row in rows(four(events)) if row.user in ids]
    assert whole_number_of_events(chosen)


def test_user_row_says_whose_each_event_is() -> None:
    assert four([Event(3, 0, 1.0), Event(1, 0, 1.0), Event(3, 1, 1.0)]).user_row.tolist() == [1, 3, 3]


@given(st.lists(DRAWN, max_size=12), st.randoms())
def test_group_sorts_by_user_time_and_item_whatever_the_order_of_input(events: list[Event], random: Random) -> None:
    batch = four(events)
    expected = sorted((event.user, event.day, event.item) for event in events)
    assert [(row.user, row.ts, row.item) for row in rows(batch)] == [
        ([7, 8, 9, 12][user], round(day * DAY_US), item) for user, day, item in expected
    ]
    shuffled = list(events)
    random.shuffle(shuffled)
    assert rows(four(shuffled)) == rows(batch)


@given(st.lists(DRAWN, max_size=12))
def test_drop_duplicates_drops_exact_duplicates_and_nothing_else(events: list[Event]) -> None:
    batch = four(events)
    kept = drop_duplicates(batch)
    assert rows(kept) == list(dict.fromkeys(rows(batch)))
    assert whole_number_of_events(kept)


@pytest.mark.parametrize(
    "other",
    [
        Event(1, 2, 3.0, price=5.0),
        Event(0, 1, 3.0, price=5.0),
        Event(0, 2, 3.5, price=5.0),
        Event(0, 2, 3.0, price=5.5),
        Event(0, 2, 3.0),
        Event(0, 2, 3.0, price=5.0, quantity=2.0),
        Event(0, 2, 3.0, price=5.0, wanted=False),
    ],
)
def test_events_that_differ_in_one_column_are_no_duplicates(other: Event) -> None:
    event = Event(0, 2, 3.0, price=5.0)
    assert len(drop_duplicates(four([event, other, event])).item) == 2


def test_unknown_prices_are_equal_where_duplicates_are_dropped() -> None:
    assert len(drop_duplicates(four([Event(2, 1, 1.0), Event(2, 1, 1.0)])).item) == 1


def table_of(batch: Histories) -> pa.Table:
    fields = [field for field in batch.users.schema if field.name != "user_id"]
    return to_table(batch, histories_schema(batch.users.schema.field("user_id").type, fields))


def strings() -> Histories:
    return shops.whole()


def integers() -> Histories:
    return four([Event(3, 2, 4.0, price=1.5), Event(1, 0, 2.0, wanted=False), Event(3, 0, 5.0, quantity=3.0)])


@pytest.mark.parametrize("make", [strings, integers])
def test_profiles_come_back_from_their_table(make: Callable[[], Histories]) -> None:
    batch = make()
    table = table_of(batch)
    back = from_table(table)
    assert rows(back) == rows(batch)
    assert back.users.cast(batch.users.schema).equals(batch.users)
    assert [array.dtype for array in (back.offsets, back.item, back.ts, back.quantity, back.price, back.wanted)] == [
        np.int64,
        np.int32,
        np.int64,
        np.float32,
        np.float32,
        np.bool_,
    ]
    assert table_of(back).equals(table) or math.isnan(back.price.sum())  # Arrow holds that NaN differs from NaN


@pytest.mark.parametrize(("start", "length"), [(0, 2), (1, 3), (3, 1), (4, 0)])
def test_profiles_of_some_rows_of_a_table_are_those_users(start: int, length: int) -> None:
    table = table_of(integers())
    assert rows(from_table(table.slice(start, length))) == rows(integers().select(start, start + length))


def test_profiles_of_a_table_in_chunks_are_those_of_the_whole() -> None:
    table = table_of(strings())
    assert rows(from_table(pa.concat_tables([table.slice(2), table.slice(0, 2)]))) == rows(strings().select(2, 5)) + rows(
        strings().select(0, 2)
    )


def test_a_shop_without_users_and_users_without_events_have_profiles() -> None:
    nobody = four([]).select(2, 2)
    assert rows(from_table(table_of(nobody))) == []
    assert len(from_table(table_of(nobody))) == 0
    quiet = from_table(table_of(four([])))
    assert (len(quiet), quiet.offsets.tolist()) == (4, [0, 0, 0, 0, 0])
    assert rows(drop_duplicates(quiet)) == []


def test_an_unknown_price_in_a_table_is_nan() -> None:
    table = table_of(integers())
    prices = pa.array([[], [None], [], [1.5, None]], table.schema.field("price").type)
    back = from_table(table.set_column(table.schema.get_field_index("price"), table.schema.field("price"), prices))
    assert [None if math.isnan(price) else price for price in back.price.tolist()] == [None, 1.5, None]
