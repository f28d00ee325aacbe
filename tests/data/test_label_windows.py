from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import Window
from recsys.data.label_windows import FIRST, label_windows, learns_from

days = st.dates(date(1999, 1, 1), date(2030, 1, 1))


def test_windows_lie_side_by_side_with_as_much_history_before_them():
    window = Window(label_days=14, cutoffs=3)
    dates = [date(2024, 4, 25), date(2024, 5, 9), date(2024, 5, 23)]
    assert label_windows(window, as_of=date(2024, 6, 6), first=date(2024, 3, 1)) == dates
    assert label_windows(window, as_of=date(2024, 6, 19), first=date(2024, 4, 11)) == dates  # the next begins a day later
    assert label_windows(window, as_of=date(2024, 6, 20), first=date(2024, 4, 11)) == [*dates[1:], date(2024, 6, 6)]
    assert label_windows(window, as_of=date(2024, 6, 6), first=date(2024, 4, 12)) == dates[1:]


@given(as_of=days, first=days, label_days=st.integers(1, 90), cutoffs=st.integers(2, 9))
def test_windows_are_on_a_calendar_that_knows_nothing_of_tonight(as_of: date, first: date, label_days: int, cutoffs: int):
    window = Window(label_days=label_days, cutoffs=cutoffs)
    step = timedelta(days=label_days)
    found = label_windows(window, as_of=as_of, first=first)
    every = [FIRST + step * number for number in range((date(2030, 1, 1) - FIRST) // step)]
    assert found == [day for day in every if day + step <= as_of][-cutoffs:][-len(found) or len(every) :]
    assert all(day - step >= first for day in found)
    assert len(found) == cutoffs or not found or found[0] - 2 * step < first


@given(first=days, label_days=st.integers(1, 90), test_days=st.integers(0, 40))
def test_a_model_is_trained_from_the_first_day_on_that_has_two_windows_behind_it(first: date, label_days: int, test_days: int):
    window = Window(label_days=label_days, cutoffs=5)
    said = learns_from(window, first=first, test_days=test_days)
    day = date.fromisoformat(said.split()[1]) - timedelta(days=test_days)
    assert said == f"Use {day + timedelta(days=test_days)} or a later date, or a smaller window.label_days."
    assert len(label_windows(window, as_of=day, first=first)) == 2
    assert len(label_windows(window, as_of=day - timedelta(days=1), first=first)) == 1


@pytest.mark.parametrize("label_days", [28, 300_000, 10**6])
@pytest.mark.parametrize("as_of", [date.min, date(2017, 1, 1), date.max])
def test_no_date_and_no_window_is_out_of_range(as_of: date, label_days: int):
    window = Window(label_days=label_days, cutoffs=9)
    assert label_windows(window, as_of=as_of, first=date(9999, 12, 1)) == []
    for day in label_windows(window, as_of=as_of, first=date.min):
        assert (day - date.min).days >= label_days
        assert (as_of - day).days >= label_days
    assert learns_from(window, first=date(9999, 12, 1)) == "Use a smaller window.label_days."
