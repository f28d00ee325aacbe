"""What a night will take, before it is begun: minutes and memory, from what was seen of the shop and what nights of other shops took.

The costs are fitted to the nights of five shops, from 2,461 to a million users: docs/log.md, 2026-11-30, holds them beside what this
says of them: 1.0 to 1.2 times what nights that train took, 0.9 to 1.5 times what the champion's did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from recsys.config import Settings
from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample

TRAINING, SCORING = 110.0, 28.0  # seconds whatever the size: Ray, imports, actors of each stage; of nights that train, and others
# Seconds on one core
EVENT = 1.4e-6  # read, cleaned and grouped
FIT, FIT_USER, FIT_ITEM, FIT_EVENT = 2.0, 2.2e-4, 1.5e-4, 4e-6  # signals of one cut-off
SUM_EVENT = 8e-7  # of all users, fitted on or not: read again and summed by item, by one process a cut-off
USER, USER_ITEM = 1.2e-3, 2.2e-8  # candidates, features, scores and list of one user; and for each item that was wanted lately
ROW, ROW_WEIGHT = 1.3e-5, 8.3e-11  # an example in an epoch; and for each weight of the network
KEPT = 2.7  # examples of an event in a label window, wanted ones and others
EPOCHS = 8  # of one fit, those that find how many there are to be, and the refit: early stopping leaves no more of ten
INPUTS = 60  # of the network, about
TEST = 2.0  # of a user's cost where lists are held against baselines
GIB, GIB_CPU, GIB_ITEM, GIB_USER = 1.0, 0.7, 2e-5, 2e-5  # driver and Ray; actor; of the signals


@dataclass(frozen=True)
class Estimate:
    """Of a night."""

    first_minutes: float
    """Where a challenger is trained, tested and fitted again, as on the first night."""
    champion_minutes: float
    """Where the champion scores alone."""
    gib: float
    """Memory of all processes together."""


@dataclass(frozen=True)
class Size:
    """What a night's cost grows with."""

    events: float
    users: float
    items: float
    """That somebody wanted within window.history_days before the date."""
    wanting: Mapping[date, tuple[float, float]]
    """First day of each label window -> users who want something in it, and what they want."""


def size_of(sample: ShopSample, *, events: int) -> Size:
    """The shop's, of all its events, of which the sample may be a part."""
    scale = events / max(sample.rows["events"], 1)  # users grow slower than events: this says too much rather than too little
    wanting = {day: (one.users * scale, one.events * scale) for day, one in sample.wanting.items()}
    return Size(events, sample.users * scale, sample.bought, wanting)


def user_seconds(items: float) -> float:
    """Of one core: candidates, features, scores, list and rows of one user."""
    return USER + USER_ITEM * items


def fit_seconds(settings: Settings, size: Size) -> float:
    """Of one core: the signals of one cut-off."""
    fitted = min(size.users, settings.signals.max_users)
    return (
        FIT
        + SUM_EVENT * size.events
        + FIT_USER * fitted
        + FIT_ITEM * size.items
        + FIT_EVENT * size.events * fitted / max(size.users, 1)
    )


def core_seconds(settings: Settings, size: Size, *, first: date, as_of: date) -> dict[str, float]:
    """Seconds of one core by what they are spent on, of a night that trains. The champion reads, scores, and has signals of one day.

    Args:
        first: day of the first event.
    """
    before = as_of - timedelta(days=settings.window.label_days)
    fits = [label_windows(settings.window, as_of=day, first=first) for day in (before, as_of)]
    parts = {day: min(1.0, settings.examples.max_users / max(users, 1)) for day, (users, _) in size.wanting.items()}
    user = user_seconds(size.items)
    rows = sum(size.wanting[day][1] * parts[day] * KEPT for days in fits for day in days)
    widths = [INPUTS, *settings.model.hidden, 1]
    weights = sum(one * other for one, other in pairwise(widths))
    cutoffs = len({*fits[0], *fits[1], before, as_of}) + 1  # and the choice of what ALS weighs
    return {
        "read": size.events * EVENT,
        "signals": fit_seconds(settings, size) * cutoffs,
        "examples": sum(users * parts[day] for day, (users, _) in size.wanting.items()) * user,
        "train": rows * (ROW + ROW_WEIGHT * weights) * min(2 * settings.train.epochs, EPOCHS),
        "calibrate": 2 * min(size.users, settings.examples.max_users) * user,
        "test": min(size.users, settings.champion.max_users) * user * TEST,
        "score": size.users * user,
    }


def gib_of(settings: Settings, size: Size, *, cpus: int) -> float:
    """Memory, in GiB, of the driver, an actor for each CPU, and the signals, of which the actors of a node share one copy."""
    return GIB + GIB_CPU * cpus + GIB_ITEM * size.items + GIB_USER * min(size.users, settings.signals.max_users)


def estimate(settings: Settings, sample: ShopSample, *, events: int, first: date, as_of: date, cpus: int) -> Estimate:
    """What the night of as_of takes on so many CPUs.

    Args:
        sample: what was seen, of all events or a part of them.
        events: rows of events in all.
        first: day of the first event.
    """
    size = size_of(sample, events=events)
    spent = core_seconds(settings, size, first=first, as_of=as_of)
    scored = spent["read"] + spent["score"] + fit_seconds(settings, size)
    training, champion = TRAINING + sum(spent.values()) / cpus, SCORING + scored / cpus
    return Estimate(training / 60, champion / 60, gib_of(settings, size, cpus=cpus))
