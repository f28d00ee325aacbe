"""The windows that labels are read from, on a fixed calendar: what one night learned from serves the nights after it."""

from datetime import date, timedelta

from recsys.config import Window

FIRST = date(1970, 1, 1)


def label_windows(window: Window, *, as_of: date, first: date) -> list[date]:
    """The first days of the windows that a model as of a date learns from, oldest first; each is the cut-off of its examples.

    A window begins at every multiple of label_days from 1970-01-01 on, so the last one ends at as_of or less than label_days before
    it. Those with less than label_days of history before them are left out.

    Args:
        first: day of the first event.
    """
    last = (as_of - FIRST).days // window.label_days - 1
    oldest = -((FIRST - first).days // window.label_days) + 1  # windows by their number from FIRST on: of a large one no date may be
    return [_begin(number, window) for number in range(max(oldest, last - window.cutoffs + 1), last + 1)]


def learns_from(window: Window, *, first: date, test_days: int = 0) -> str:
    """From when on a model can be trained, as the next step of an error: two windows lie before that date, and history before them.

    Args:
        test_days: so many days more are for a test.
    """
    try:
        earliest = _begin(-((FIRST - first).days // window.label_days) + 3, window) + timedelta(days=test_days)
    except OverflowError:  # windows of thousands of years
        return "Use a smaller window.label_days."
    return f"Use {earliest} or a later date, or a smaller window.label_days."


def _begin(number: int, window: Window) -> date:
    return FIRST + timedelta(days=number * window.label_days)
