"""What a night will take, before it is begun: seconds and memory from what was seen of the shop and from what nights cost elsewhere."""

from dataclasses import dataclass
from datetime import date, timedelta

from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample
from recsys.data.shop import ShopInputs

# Seconds on one core, fitted to nights of three kinds of shops; `docs/log.md` has them beside what this says of them.
START = 60.0  # of a night, whatever its size: imports, Ray, actors of each stage
EVENT = 1.4e-6  # read, cleaned and grouped
SIGNALS = 14.0  # of a cut-off, whatever its size
SIGNALS_USER = 2.5e-4  # of a cut-off, of those that signals are fitted on
USER = 3.5e-3  # candidates, features, scores, list and reasons of one user
EXAMPLE = 2e-5  # of an epoch
KEPT = 3.0  # examples of a wanted event: its item is found among the candidates half the time, and negatives beside it
GIB = 2.0**30
DRIVER, ACTOR = 0.9, 0.55  # GiB
EVENT_BYTES = 60


@dataclass(frozen=True)
class Estimate:
    """Of a night, for so many CPUs."""

    cpus: int
    first_minutes: float
    """Where a challenger is trained, tested and fitted again, as on the first night."""
    champion_minutes: float
    """Where the champion scores alone."""
    gib: float
    """Memory of all processes together."""


def estimate(inputs: ShopInputs, sample: ShopSample, *, as_of: date, cpus: int) -> Estimate:
    """What the night of as_of takes on so many CPUs."""
    settings = inputs.settings
    share = max(sample.rows["events"], 1) / inputs.events.rows
    scale = 1 / share  # users grow slower than events do: this says too much rather than too little
    users = sample.users * scale
    fitted = min(users, settings.signals.max_users)
    before = as_of - timedelta(days=settings.window.label_days)
    windows = [label_windows(settings.window, as_of=day, first=inputs.first) for day in (before, as_of)]
    cutoffs = {*windows[0], *windows[1], before, as_of}
    looked = examples = 0.0
    for days in windows:
        for day in days:
            wanting = sample.wanting[day]
            part = min(1.0, settings.examples.max_users / max(wanting.users * scale, 1))
            looked += wanting.users * scale * part
            examples += wanting.events * scale * part * KEPT
    read = inputs.events.rows * EVENT
    signals = SIGNALS + fitted * SIGNALS_USER
    score = users * USER
    test = min(users, settings.champion.max_users) * USER
    epochs = settings.train.epochs * 1.5  # of those that find their number, and of the refit
    train = examples * EXAMPLE * epochs
    first = START + (read + signals * len(cutoffs) + looked * USER + train + test + score) / cpus
    champion = START / 2 + (read + signals + score) / cpus
    memory = DRIVER + ACTOR * cpus + inputs.events.rows * EVENT_BYTES / GIB / 8
    return Estimate(cpus, first / 60, champion / 60, memory)
