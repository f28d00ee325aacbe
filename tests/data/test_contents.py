from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recsys.data import contents
from recsys.data.contents import Contents
from recsys.data.histories import drop_duplicates
from recsys.data.label_windows import FIRST
from recsys.hashing import stable_hash
from tests import shops
from tests.shops import Event

USERS = pa.table({"user_id": np.arange(6) * 7})
ITEMS = stable_hash(np.arange(9))
event = st.builds(
    Event,
    user=st.integers(0, 5),
    item=st.integers(0, 8),
    day=st.integers(-40, 400).map(lambda half: half / 2),
    price=st.sampled_from([float("nan"), 0.0, 1.5]),
    quantity=st.sampled_from([1.0, 2.0]),
    wanted=st.booleans(),
    look=st.sampled_from([-1, 1, 2]),
)


def counted(events: list[Event], *, label_days: int = 7, cuts: tuple[int, ...] = ()) -> Contents:
    histories = drop_duplicates(shops.group(events, USERS))
    edges = [0, *cuts, len(histories)]
    parts = [histories.select(start, stop) for start, stop in pairwise(edges)]
    counts = [{"hashes": contents.hash_days(part, ITEMS), **contents.count(part, label_days=label_days)} for part in parts]
    return contents.total(counts, label_days=label_days)


@given(events=st.lists(event, max_size=40), label_days=st.integers(1, 30), day=st.integers(-30, 230))
def test_users_are_counted_by_their_first_day_and_by_the_windows_that_they_wanted_something_in(
    events: list[Event], label_days: int, day: int
):
    found = counted(events, label_days=label_days)
    assert found.users_before(FIRST + timedelta(days=day)) == len({one.user for one in events if one.day < day})
    wanting = defaultdict(set)
    for one in events:
        if one.wanted:
            wanting[one.day // label_days].add(one.user)
    for window in range(-30 // label_days - 1, 230 // label_days + 1):
        start = FIRST + timedelta(days=window * label_days)
        assert found.users_wanting(start) == len(wanting[window])


few = st.builds(
    Event,
    user=st.integers(0, 1),
    item=st.integers(0, 1),
    day=st.integers(0, 12).map(lambda half: half / 2),
    price=st.just(1.0),
    quantity=st.just(1.0),
    wanted=st.booleans(),
    look=st.sampled_from([-1, 1, 2]),
)


@given(events=st.lists(few, max_size=20), day=st.integers(-1, 8))
@example(events=[Event(0, 0, 1.0), Event(0, 0, 1.5)], day=5)  # twice on one day
@example(events=[Event(0, 0, 1.0), Event(0, 0, 2.0), Event(0, 0, 3.0, wanted=False)], day=2)  # the second is of the day itself
def test_what_was_wanted_on_an_earlier_day_is_wanted_again(events: list[Event], day: int):
    wanted = {(one.user, one.item, one.day // 1) for one in events if one.wanted and one.day < day}
    again = {(user, item, on) for user, item, on in wanted if any((user, item) == other[:2] and other[2] < on for other in wanted)}
    assert counted(events).repeats_before(FIRST + timedelta(days=day)) == (len(again) / len(wanted) if wanted else 0)


@given(events=st.lists(event, max_size=30), cut=st.integers(0, 6))
def test_the_same_events_are_the_same_in_any_order_and_however_users_are_cut_up(events: list[Event], cut: int):
    assert counted(events) == counted(events[::-1], cuts=(cut,))


@given(events=st.lists(event, min_size=1, max_size=20), start=st.integers(-25, 205), days=st.integers(1, 60), data=st.data())
def test_a_change_within_the_days_is_seen_and_one_outside_is_not(events: list[Event], start: int, days: int, data: st.DataObject):
    span = FIRST + timedelta(days=start), FIRST + timedelta(days=start + days)
    before = counted(events).of_days(*span)
    number = data.draw(st.integers(0, len(events) - 1))
    old = events[number]
    changes = [old._replace(user=(old.user + 1) % 6), old._replace(item=(old.item + 1) % 9), old._replace(quantity=3.0)]
    changes += [old._replace(price=7.25), old._replace(wanted=not old.wanted), old._replace(day=old.day + 0.125)]
    for change in changes:
        others = [*events[:number], change, *events[number + 1 :]]
        same = {str(one) for one in others if start <= one.day < start + days} == {
            str(one) for one in events if start <= one.day < start + days
        }
        assert (counted(others).of_days(*span) == before) == same


def test_a_day_that_no_window_begins_on_is_a_mistake():
    with pytest.raises(AssertionError, match="no label window begins on 1970-01-02"):
        counted([]).users_wanting(FIRST + timedelta(days=1))
