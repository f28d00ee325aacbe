"""What a larger shop would need, CPUs, nodes and memory, for a night within so many hours: by this one's and what work took here.

Costs are those of `estimate`, times how long the work that lies in run.work took here against them. A larger shop is this one with more
users of the same kind, each with as many events, and more items.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from recsys.config import Settings
from recsys.data.shop import SHARD_EVENTS
from recsys.errors import ConfigError
from recsys.pipelines.estimate import TRAINING, Size, core_seconds, fit_seconds, gib_of, user_seconds

LEAST_SECONDS = 5.0  # of work of a kind: less says nothing of how long more would take


@dataclass(frozen=True)
class Plan:
    """For a night that trains, which is the longest."""

    size: Size
    core_hours: dict[str, float]
    """Of one core, by what they are spent on."""
    pace: dict[str, float]
    """How much longer than `estimate` says work took here, by kind; 1 where none was found. Counted in."""
    cpus: int
    nodes: int
    node_gib: float
    """Memory of one node."""
    shards: int
    minutes: float
    """With so many CPUs."""


def scaled(seen: Size, *, users: float | None, items: float | None) -> Size:
    """The size of the same shop with so many users and items, as many events for each user; absent, as many as were seen."""
    more = 1.0 if users is None else users / max(seen.users, 1)
    wanting = {day: (one * more, events * more) for day, (one, events) in seen.wanting.items()}
    return Size(seen.events * more, seen.users * more, seen.items if items is None else items, wanting)


def measured(work: Path, seen: Size, settings: Settings) -> dict[str, float]:
    """How much longer than `estimate` says the work that lies below run.work took here: `signals` and `score`."""

    def pace(stage: str, expected: Callable[[dict[str, Any]], float]) -> float:
        told = [(receipt["seconds"], expected(receipt)) for receipt in _receipts(work, stage) if "seconds" in receipt]
        spent, said = (sum(column) for column in zip(*told, strict=True)) if told else (0.0, 0.0)
        return spent / said if spent >= LEAST_SECONDS and said > 0 else 1.0

    user = user_seconds(seen.items)
    return {
        "signals": pace("signals", lambda _: fit_seconds(settings, seen)),
        "score": pace("score", lambda one: one.get("part", {}).get("users", 0) * user),
    }


def _receipts(work: Path, stage: str) -> Iterator[dict[str, Any]]:
    for file in sorted(work.glob(f"{stage}-*/receipts/*.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def plan(settings: Settings, size: Size, pace: dict[str, float], *, first: date, as_of: date, hours: float, node_cpus: int) -> Plan:
    """What a night of that size needs to end within so many hours, on nodes of so many CPUs.

    Raises:
        ConfigError: no number of nodes is enough, as one piece of work that is not divided takes longer.
    """
    for name, asked in (("users", size.users), ("items", size.items), ("hours", hours)):
        if not 0 < asked < math.inf:
            raise ConfigError(f"--{name}: must be a number above 0, got {asked}. Name one.")
    spent = core_seconds(settings, size, first=first, as_of=as_of)
    of = {"signals": "signals", **dict.fromkeys(("examples", "calibrate", "test", "score"), "score")}  # of the others no receipt tells
    spent = {name: seconds * (pace[of[name]] if name in of else 1.0) for name, seconds in spent.items()}
    left = hours * 3600 - TRAINING
    alone = {
        "the signals of one cut-off": fit_seconds(settings, size) * pace["signals"],
        f"training by {settings.train.workers} workers": spent["train"] / _workers(settings),
    }
    longest = max(alone, key=lambda name: alone[name])
    if alone[longest] >= left:
        raise ConfigError(
            f"--hours {hours:g}: {longest} alone takes {alone[longest] / 3600:.1f} h, beside {TRAINING / 60:.0f} min of starts. "
            "Give more hours, or raise train.workers; signals.max_users and examples.max_users bound a part of it."
        )
    total = sum(spent.values())
    cpus = max(1, math.ceil(total / left))
    nodes = math.ceil(cpus / node_cpus)
    shards = settings.run.shards or max(16, 1 << max(math.ceil(size.events / SHARD_EVENTS) - 1, 0).bit_length())
    return Plan(
        size=size,
        core_hours={name: seconds / 3600 for name, seconds in spent.items()},
        pace=pace,
        cpus=cpus,
        nodes=nodes,
        node_gib=gib_of(settings, size, cpus=node_cpus),
        shards=shards,
        minutes=(TRAINING + total / (nodes * node_cpus)) / 60,
    )


def _workers(settings: Settings) -> int:
    workers = settings.train.workers
    return workers if isinstance(workers, int) else workers[0]
