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
    step = timedelta(days=window.label_days)
    last = FIRST + (as_of - FIRST) // step * step - step
    days = [last - step * number for number in reversed(range(window.cutoffs))]
    return [day for day in days if day - step >= first]


def learns_from(window: Window, *, first: date) -> date:
    """The earliest date that a model can be trained as of: two windows lie before it, and history before them."""
    step = timedelta(days=window.label_days)
    return FIRST + -((FIRST - first - step) // step) * step + 2 * step
