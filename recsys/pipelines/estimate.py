"""What a night will take, before it is begun: minutes and memory, from what was seen of the shop and what nights of other shops took.

The costs are fitted to the nights of five shops, from 2,461 to a million users: docs/log.md, 2026-11-30, holds them beside what this
says of them: 1.0 to 1.2 times what nights that train took, 0.9 to 1.5 times what the champion's did.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise

from recsys.config import Settings
from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample

TRAINING, SCORING = (
    110.0,
    28.0,
)  # seconds of a night whatever its size: Ray, imports, actors of each stage; where it trains, and where not
# Seconds on one core
EVENT = 1.4e-6  # read, cleaned and grouped
FIT, FIT_USER, FIT_ITEM, FIT_EVENT = 2.0, 2.2e-4, 1.5e-4, 4e-6  # signals of one cut-off
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


def estimate(settings: Settings, sample: ShopSample, *, events: int, first: date, as_of: date, cpus: int) -> Estimate:
    """What the night of as_of takes on so many CPUs.

    Args:
        sample: what was seen, of all events or a part of them.
        events: rows of events in all.
        first: day of the first event.
    """
    scale = events / max(sample.rows["events"], 1)  # users grow slower than events: this says too much rather than too little
    users = sample.users * scale
    user = USER + USER_ITEM * sample.bought
    fitted = min(users, settings.signals.max_users)
    before = as_of - timedelta(days=settings.window.label_days)
    fits = [label_windows(settings.window, as_of=day, first=first) for day in (before, as_of)]
    parts = {day: min(1.0, settings.examples.max_users / max(one.users * scale, 1)) for day, one in sample.wanting.items()}
    signals = FIT + FIT_USER * fitted + FIT_ITEM * sample.bought + FIT_EVENT * events * fitted / max(users, 1)
    looked = sum(one.users * scale * parts[day] for day, one in sample.wanting.items())
    rows = sum(sample.wanting[day].events * scale * parts[day] * KEPT for days in fits for day in days)
    widths = [INPUTS, *settings.model.hidden, 1]
    weights = sum(one * other for one, other in pairwise(widths))
    train = rows * (ROW + ROW_WEIGHT * weights) * min(2 * settings.train.epochs, EPOCHS)
    calibrate = 2 * min(users, settings.examples.max_users) * user
    test = min(users, settings.champion.max_users) * user * TEST
    cutoffs = len({*fits[0], *fits[1], before, as_of}) + 1  # and the choice of what ALS weighs
    scored = events * EVENT + users * user
    work = scored + signals * cutoffs + looked * user + train + calibrate + test
    memory = GIB + GIB_CPU * cpus + GIB_ITEM * sample.bought + GIB_USER * fitted
    return Estimate((TRAINING + work / cpus) / 60, (SCORING + (scored + signals) / cpus) / 60, memory)
