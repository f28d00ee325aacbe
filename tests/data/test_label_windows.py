from datetime import date, timedelta

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


@given(first=days, label_days=st.integers(1, 90))
def test_a_model_is_trained_from_the_first_day_on_that_has_two_windows_behind_it(first: date, label_days: int):
    window = Window(label_days=label_days, cutoffs=5)
    day = learns_from(window, first=first)
    assert len(label_windows(window, as_of=day, first=first)) == 2
    assert len(label_windows(window, as_of=day - timedelta(days=1), first=first)) == 1
