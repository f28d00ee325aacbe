"""What a shop's own past says of its settings: how far ahead a list looks, how far back a night, whether things are bought again."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.guess import Guess
from recsys.hashing import stable_hash
from recsys.schema import DAY_US, ITEM_ID, LOOK, TS, USER_ID, WANTED

LABEL_DAYS = (7, 14, 28, 56, 91)
HISTORY_DAYS = (91, 182, 365, 730, 1095, 1825)
SPANS = 5  # label lengths that a first night needs behind it
RETURN = 0.5  # of the returns lie within a label length
KEPT = 0.9  # of what is known of those who wanted something lately lies within window.history_days
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Past:
    """What was seen of the events that are wanted."""

    first: date
    last: date
    guesses: list[Guess]
    repeats: float
    """Share of what users wanted on a day that they had wanted on an earlier one."""


def guess_past(events: pa.Table, *, today: date) -> Past:
    """Windows for a shop of these usable events, of users who are there with all of theirs; events after today are left out.

    Args:
        events: user_id, item_id, ts and look, as `cleaning.clean` keeps them; at least one is wanted and not after today.
    """
    wanted = events.filter(pc.equal(events.column(LOOK), WANTED))
    day = wanted.column(TS).cast(pa.int64()).to_numpy() // DAY_US
    ours = day <= (today - EPOCH).days
    wanted, day = wanted.filter(pa.array(ours)), day[ours]
    user = stable_hash(wanted.column(USER_ID).to_numpy())
    item = stable_hash(wanted.column(ITEM_ID).to_numpy())
    first, last = int(day.min()), int(day.max())
    guesses = [_label_days(user, day)]
    guesses.append(_history_days(user, day, label_days=guesses[0].value))
    return Past(EPOCH + timedelta(days=first), EPOCH + timedelta(days=last), guesses, _repeats(user, item, day))


def _label_days(user: np.ndarray, day: np.ndarray) -> Guess:
    """The shortest length within which half of all returns lie, of those that the shop's time allows."""
    span = int(day.max() - day.min()) + 1
    allowed = [days for days in LABEL_DAYS if days * SPANS <= span] or [LABEL_DAYS[0]]
    gaps = _gaps(user, day)
    if not len(gaps):
        return Guess(
            "window", "label_days", min(28, allowed[-1]), "nobody came back on another day, so nothing tells how far to look ahead"
        )
    within = {days: float((gaps <= days).mean()) for days in allowed}
    days = next((days for days in allowed if within[days] >= RETURN), allowed[-1])
    shares = ", ".join(f"{one} days {share:.0%}" for one, share in within.items())
    return Guess("window", "label_days", days, f"of all returns of a user on another day come within {shares}")


def _gaps(user: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Days from each day on which a user wanted something to the next one."""
    order = np.lexsort((day, user))
    user, day = user[order], day[order]
    same = user[1:] == user[:-1]
    gaps = np.diff(day)[same]
    return gaps[gaps > 0]


def _history_days(user: np.ndarray, day: np.ndarray, *, label_days: int) -> Guess:
    """The shortest look back that holds nearly all of what is known of users who wanted something in the last label length."""
    last = int(day.max())
    lately = np.isin(user, np.unique(user[day > last - label_days]))
    ages = last - label_days - day[lately & (day <= last - label_days)]
    if not len(ages):
        return Guess(
            "window", "history_days", 365, "those who wanted something lately have no past, so nothing tells how far to look back"
        )
    within = {days: float((ages < days).mean()) for days in HISTORY_DAYS}
    days = next((days for days in HISTORY_DAYS if within[days] >= KEPT), HISTORY_DAYS[-1])
    shares = ", ".join(f"{one} days {share:.0%}" for one, share in within.items() if one <= days)
    return Guess("window", "history_days", days, f"of what users who came lately had wanted before lie within {shares}")


def _repeats(user: np.ndarray, item: np.ndarray, day: np.ndarray) -> float:
    order = np.lexsort((day, item, user))
    user, item, day = user[order], item[order], day[order]
    pair = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    distinct = np.concatenate([[True], ~(pair & (day[1:] == day[:-1]))])
    again = np.concatenate([[False], pair]) & distinct
    return float(again.sum() / max(distinct.sum(), 1))
