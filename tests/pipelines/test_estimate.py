"""Estimates of nights against what such nights took: docs/log.md, 2026-11-30 and 2026-11-29."""

import json
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recsys.config import Settings
from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample, Wanting
from recsys.errors import ConfigError
from recsys.pipelines.estimate import Estimate, estimate, fit_seconds, size_of, user_seconds
from recsys.pipelines.plan import measured, plan, scaled


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


def sampled(night: Night, *, looked_at: float = 1.0) -> tuple[Settings, ShopSample]:
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
    return settings, sample


def estimated(night: Night, *, cpus: int = 2, looked_at: float = 1.0) -> Estimate:
    settings, sample = sampled(night, looked_at=looked_at)
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


@pytest.mark.parametrize(("small", "large"), [("5,000 users", "40,000 users"), ("40,000 users", "a million")])
def test_a_plan_from_a_smaller_shop_is_what_the_larger_one_took(small: str, large: str) -> None:
    here, there = NIGHTS[small], NIGHTS[large]
    settings, sample = sampled(here)
    size = scaled(size_of(sample, events=here.events), users=there.users, items=there.bought)
    as_here = {"signals": 1.0, "score": 1.0}
    made = plan(settings, size, as_here, first=here.first, as_of=here.day, hours=there.minutes / 60 * 1.5, node_cpus=2)
    assert made.nodes == 1  # two CPUs did it, in less than half as long again
    assert 1 / 1.5 < made.minutes / there.minutes < 1.5
    assert size.events == pytest.approx(there.events, rel=0.05)


def test_more_hours_need_fewer_cpus_and_a_slower_machine_more() -> None:
    night = NIGHTS["a million"]
    settings, sample = sampled(night)
    size = scaled(size_of(sample, events=night.events), users=5e7, items=1e6)
    told = {"first": night.first, "as_of": night.day, "node_cpus": 16}
    needed = {
        (hours, pace): plan(settings, size, {"signals": 1.0, "score": pace}, hours=hours, **told).cpus
        for hours in (3.0, 6.0)
        for pace in (1.0, 2.0)
    }
    assert needed[3.0, 1.0] == pytest.approx(2 * needed[6.0, 1.0], rel=0.1)
    assert needed[3.0, 1.0] < needed[3.0, 2.0] <= 2 * needed[3.0, 1.0]
    made = plan(settings, size, {"signals": 1.0, "score": 1.0}, hours=3.0, **told)
    assert (made.nodes - 1) * 16 < made.cpus <= made.nodes * 16
    assert made.minutes <= 180
    assert made.node_gib > plan(settings, scaled(size, users=None, items=1e5), made.pace, hours=3.0, **told).node_gib


def test_what_no_number_of_nodes_makes_faster_is_said() -> None:
    night = NIGHTS["a million"]
    settings, sample = sampled(night)
    size = scaled(size_of(sample, events=night.events), users=None, items=1e8)
    with pytest.raises(ConfigError, match=r"--hours 0\.1: the signals of one cut-off alone takes .* h, beside 2 min of starts"):
        plan(settings, size, {"signals": 1.0, "score": 1.0}, first=night.first, as_of=night.day, hours=0.1, node_cpus=2)


@pytest.mark.parametrize("users", [float("nan"), float("inf")])
def test_what_is_no_number_of_users_is_said(users: float) -> None:
    night = NIGHTS["a million"]
    settings, sample = sampled(night)
    size = scaled(size_of(sample, events=night.events), users=users, items=None)
    with pytest.raises(ConfigError, match=r"^--users: must be a number above 0, got (nan|inf)\. Name one\.$"):
        plan(settings, size, {"signals": 1.0, "score": 1.0}, first=night.first, as_of=night.day, hours=3.0, node_cpus=2)


def test_the_pace_is_that_of_receipts_and_of_too_few_none(tmp_path: Path) -> None:
    settings, sample = sampled(NIGHTS["40,000 users"])
    seen = size_of(sample, events=NIGHTS["40,000 users"].events)
    assert measured(tmp_path, seen, settings) == {"signals": 1.0, "score": 1.0}

    def receipt(stage: str, name: str, told: dict[str, Any]) -> None:
        place = tmp_path / f"{stage}-0123456789abcdef" / "receipts" / f"{name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(told))

    for number in (1, 2):
        receipt("score", f"part-0000{number}", {"seconds": 30.0, "part": {"users": 1_000}})
    receipt("score", "carried", {"parts": []})
    receipt("signals", "2025-12-04", {"seconds": 4.0})
    found = measured(tmp_path, seen, settings)
    assert found == {"signals": 1.0, "score": pytest.approx(60.0 / (2_000 * user_seconds(seen.items)))}
    receipt("signals", "2025-12-05", {"seconds": 2.0})
    assert measured(tmp_path, seen, settings)["signals"] == pytest.approx(3.0 / fit_seconds(settings, seen))
