"""Estimates of nights against what such nights took: docs/log.md, 2026-11-30 and 2026-11-29."""

from datetime import date
from typing import Any, NamedTuple

import pytest

from recsys.config import Settings
from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample, Wanting
from recsys.pipelines.estimate import Estimate, estimate


class Night(NamedTuple):
    """A shop, and what its nights took on two cores."""

    day: date
    first: date
    events: int
    users: int
    bought: int
    wanting: Wanting
    minutes: float
    champion: float | None
    gib: float | None
    settings: dict[str, dict[str, Any]] | None = None


SMALL: dict[str, dict[str, Any]] = {"model": {"hidden": [128, 64]}, "train": {"epochs": 2}}
NIGHTS = {
    "demo": Night(
        date(2017, 12, 1), date(2017, 1, 1), 1_450_209, 2_461, 65_094, Wanting(2_024, 111_163), 271 / 60, 45 / 60, 3.8, SMALL
    ),
    "food_reviews": Night(date(2014, 3, 1), date(2000, 8, 9), 121_892, 14_273, 8_298, Wanting(1_500, 3_100), 181 / 60, 34 / 60, 2.4),
    "5,000 users": Night(date(2026, 1, 1), date(2025, 1, 1), 198_560, 5_000, 3_208, Wanting(4_850, 15_250), 209 / 60, 23 / 60, None),
    "40,000 users": Night(
        date(2026, 1, 1), date(2025, 1, 1), 1_587_517, 40_000, 11_969, Wanting(38_800, 121_850), 507 / 60, 52 / 60, 3.4
    ),
    "a million": Night(
        date(2026, 1, 1), date(2025, 1, 1), 39_272_704, 1_000_000, 100_000, Wanting(930_000, 3_010_000), 3045 / 60, None, None
    ),
}


def estimated(night: Night, *, cpus: int = 2, looked_at: float = 1.0) -> Estimate:
    settings = Settings.model_validate({"shop": {"events": "events"}, **(night.settings or {})})
    starts = {
        start
        for as_of in (date.fromordinal(night.day.toordinal() - 28), night.day)
        for start in label_windows(settings.window, as_of=as_of, first=night.first)
    }
    wanting = Wanting(round(night.wanting.users * looked_at), round(night.wanting.events * looked_at))
    sample = ShopSample(
        rows={"events": round(night.events * looked_at)},
        rejected={},
        kinds={},
        wanted=round(night.events * looked_at),
        with_history=round(night.users * looked_at),
        users=round(night.users * looked_at),
        items=night.bought,
        available=night.bought,
        bought=night.bought,
        wanting=dict.fromkeys(starts, wanting),
    )
    return estimate(settings, sample, events=night.events, first=night.first, as_of=night.day, cpus=cpus)


@pytest.mark.parametrize("night", NIGHTS.values(), ids=NIGHTS)
def test_what_nights_took_is_foretold_within_a_half(night: Night) -> None:
    told = estimated(night)
    assert 1 / 1.5 < told.first_minutes / night.minutes < 1.5
    if night.champion is not None:
        assert 1 / 1.7 < told.champion_minutes / night.champion < 1.7
    if night.gib is not None:
        assert 1 / 1.5 < told.gib / night.gib < 1.5


def test_more_cpus_take_less_time_and_more_memory() -> None:
    two, eight = (estimated(NIGHTS["a million"], cpus=cpus) for cpus in (2, 8))
    assert two.first_minutes / 4 < eight.first_minutes < two.first_minutes / 3
    assert eight.champion_minutes < two.champion_minutes / 3
    assert eight.gib > two.gib


def test_a_part_of_the_events_foretells_what_all_do() -> None:
    whole, part = (estimated(NIGHTS["a million"], looked_at=share) for share in (1.0, 0.25))
    assert part.first_minutes == pytest.approx(whole.first_minutes, rel=1e-4)
