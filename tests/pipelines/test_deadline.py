"""A night that its deadline cuts off: the most active users have new lists, the others keep those of the night before."""

import dataclasses
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.engine import units
from recsys.engine.ending import Cut
from recsys.errors import ConfigError, DeadlineError
from recsys.evaluation.report import carried_text
from recsys.pipelines import deadline as module
from recsys.pipelines.champion import Chosen
from recsys.pipelines.deadline import QUARTERS, Deadline, next_deadline
from recsys.pipelines.night_record import recorded
from recsys.pipelines.nightly import nightly
from recsys.pipelines.runs import kept_run
from recsys.pipelines.score import release_of, score_shop
from recsys.pipelines.signals import ShopState, shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing.carry import ids_of
from recsys.publishing.release import Published
from recsys.publishing.table import published_nights, read_night
from recsys.ranking.bundle import Bundle
from recsys.schema import CARRIED_FROM, ITEM_ID, MODEL_VERSION, RANK, RUN_ID, USER_ID
from tests.small import small
from tests.verbs import Ended

pytestmark = pytest.mark.ray

DAY = date(2024, 6, 6)
NEXT = DAY + timedelta(days=1)
SHARDS = 3
FAR = Deadline(datetime(2100, 1, 1, tzinfo=UTC), time.time() + 1e6, time.time() + 1e6)
ROWS = [USER_ID, RANK, ITEM_ID, "score", "source", "reason"]


class Shop(NamedTuple):
    settings: Settings
    bundle: Bundle
    gone: int
    """An item of the first night that is not available on the second."""


def state_of(settings: Settings, day: date) -> ShopState:
    return shop_state(open_shop(settings, as_of=day), end=day)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, while_in_process: Callable[[], AbstractContextManager[None]]) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("late")
    planted = synthetic.shop(folder / "shop", users=90, items=60, days=98, seed=8, end=NEXT + timedelta(days=7), events_per_user=30)
    gate = {"max_unknown_items": 0, "max_drift": 100.0, "max_score_shift": 100.0, "min_overlap": 0.0, "max_short_rise": 1.0}
    places = {"table": {"path": str(folder / "table")}, "report": {"path": str(folder / "reports")}}
    settings = small(planted, folder / "work", run={"shards": SHARDS}, gate=gate, **places)
    with while_in_process():
        state = state_of(settings, DAY)
        bundle = train_shop(state, as_of=DAY).bundle
        score_shop(state, bundle, as_of=DAY)
        gone = pc.mode(read_night(settings.table.path, as_of=DAY).column(ITEM_ID))[0]["mode"].as_py()
        assert planted.items is not None
        (file,) = planted.items.rglob("*.parquet")
        items = pq.read_table(file)
        sold = pc.and_(items.column("available"), pc.not_equal(items.column(ITEM_ID), gone))
        pq.write_table(items.set_column(items.schema.get_field_index("available"), "available", sold), file)
        yield Shop(settings, bundle, gone)


def stop_after(patch: pytest.MonkeyPatch, finished: int) -> Deadline:
    """A deadline that comes when so many units of scoring are finished."""

    def tell(name: str, value: float, **tags: str) -> None:
        if (name, tags.get("stage")) == ("units_done", "score") and value >= finished:
            raise Cut

    patch.setattr(units, "tell", tell)
    return dataclasses.replace(FAR, at=FAR.at + timedelta(seconds=finished), stop=FAR.stop if finished else 0.0)


def night(shop: Shop, deadline: Deadline | None) -> tuple[ShopState, Published, pa.Table]:
    state = state_of(shop.settings, NEXT)
    with recorded(state, shop.bundle, as_of=NEXT, deadline=deadline):
        published = score_shop(state, shop.bundle, as_of=NEXT, deadline=deadline)
    return state, published, read_night(shop.settings.table.path, as_of=NEXT)


def test_the_most_active_users_are_reached_and_the_others_keep_their_rows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_night(shop.settings.table.path, as_of=DAY)
    _, _, whole = night(shop, None)
    assert whole.column(CARRIED_FROM).null_count == whole.num_rows

    state, published, cut = night(shop, stop_after(monkeypatch, 2 * SHARDS))  # two quarters of every shard
    assert published.version is not None
    fresh = cut.filter(pc.is_null(cut.column(CARRIED_FROM)))
    carried = cut.filter(pc.is_valid(cut.column(CARRIED_FROM)))
    users = pc.unique(fresh.column(USER_ID))
    assert fresh.select(ROWS).equals(whole.filter(pc.is_in(whole.column(USER_ID), value_set=users)).select(ROWS))

    counts: dict[int, int] = {}
    reached = set(users.to_pylist())
    for shard in state.dataset.shards:
        histories = state.dataset.histories(shard)
        mine = dict(zip(histories.users.column(USER_ID).to_pylist(), np.diff(histories.offsets).tolist(), strict=True))
        assert min(mine[user] for user in mine if user in reached) >= max(mine[user] for user in mine if user not in reached)
        assert abs(sum(user in reached for user in mine) - len(mine) / 2) <= 1
        counts |= mine

    late = set(carried.column(USER_ID).to_pylist())
    assert late == {user for user in counts if user not in reached} & set(before.column(USER_ID).to_pylist())
    assert set(carried.column(CARRIED_FROM).to_pylist()) == {DAY}
    assert len(pc.unique(cut.column(RUN_ID))) == len(pc.unique(cut.column(MODEL_VERSION))) == 1
    kept = before.filter(pc.and_(pc.is_in(before.column(USER_ID), value_set=pa.array(late)), pc.not_equal(before[ITEM_ID], shop.gone)))
    unranked = [name for name in ROWS if name != RANK]
    assert carried.select(unranked).equals(kept.select(unranked))
    for user in late:
        ranks = carried.filter(pc.equal(carried.column(USER_ID), user)).column(RANK).to_pylist()
        assert ranks == list(range(1, len(ranks) + 1))
    assert kept.num_rows < before.filter(pc.is_in(before.column(USER_ID), value_set=pa.array(late))).num_rows

    assert published.carried == {"users": len(late), "without": len(counts) - len(reached) - len(late), "since": str(DAY)}
    assert published.carried is not None
    page = (Path(shop.settings.report.path) / f"{NEXT}.html").read_text()
    assert carried_text(published.carried) in page
    assert f"{len(late):,} keep their rows of {DAY}" in page


def test_a_deadline_that_does_not_come_changes_no_list(shop: Shop) -> None:
    _, _, whole = night(shop, None)
    _, published, late = night(shop, FAR)
    assert published.carried is None
    assert late.select([*ROWS, CARRIED_FROM]).equals(whole.select([*ROWS, CARRIED_FROM]))
    assert "keep their rows" not in (Path(shop.settings.report.path) / f"{NEXT}.html").read_text()


def test_what_was_carried_twice_says_the_night_that_made_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    night(shop, stop_after(monkeypatch, SHARDS))
    state = state_of(shop.settings, NEXT + timedelta(days=1))
    score_shop(state, shop.bundle, as_of=NEXT + timedelta(days=1), deadline=stop_after(monkeypatch, SHARDS))
    table = read_night(shop.settings.table.path, as_of=NEXT + timedelta(days=1))
    assert set(table.column(CARRIED_FROM).to_pylist()) >= {None, DAY}


def test_who_was_reached_and_has_no_list_keeps_none(shop: Shop) -> None:
    state = state_of(shop.settings, NEXT)
    release, _ = release_of(state, shop.bundle, as_of=NEXT, deadline=FAR)
    before = read_night(shop.settings.table.path, as_of=DAY)
    barred = before.column(USER_ID)[0].as_py()
    nothing: Any = {"rows": 0}
    carried = module.carry(state, release, {"part-00000-0": {"part": nothing, "without": [barred]}}, FAR)
    kept = set(ids_of(release, carried.parts).to_pylist())
    assert kept == set(before.column(USER_ID).to_pylist()) - {barred}
    assert carried.users == len(kept)


def test_a_deadline_before_anybody_was_scored_publishes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = published_nights(shop.settings.table.path)
    day = NEXT + timedelta(days=2)
    with pytest.raises(DeadlineError, match=r"one user to be scored before it, got none, it came while the signals .* Nothing was"):
        score_shop(state_of(shop.settings, day), shop.bundle, as_of=day, deadline=stop_after(monkeypatch, 0))
    assert published_nights(shop.settings.table.path) == nights
    assert DeadlineError.status == 7


def test_a_challenger_for_which_there_is_no_time_is_given_up_and_the_champion_scores(shop: Shop, tmp_path: Path) -> None:
    places = {"table": {"path": str(tmp_path / "table")}, "report": {"path": str(tmp_path / "reports")}}
    champion = {"path": str(tmp_path / "bundles"), "every_days": 1}
    values = shop.settings.model_dump(mode="json", exclude_unset=True) | places | {"champion": champion}
    settings = Settings.model_validate(values | {"gate": values["gate"] | {"max_baseline_loss": 1.0}})
    no_time = dataclasses.replace(FAR, learn=0.0)
    said: list[Chosen] = []

    def make(day: date, deadline: Deadline | None) -> None:
        nightly(open_shop(settings, as_of=day), as_of=day, deadline=deadline, on_chosen=said.append)

    with pytest.raises(DeadlineError, match="needs a model that can score, got none, it came while the first one was trained"):
        make(DAY, no_time)
    assert published_nights(settings.table.path) == []
    make(DAY, FAR)
    make(NEXT, no_time)
    assert [(chosen.cut_off, chosen.due) for chosen in said] == [(False, None), (True, NEXT + timedelta(days=1))]
    assert said[0].bundle.model_version == said[1].bundle.model_version
    assert [night.as_of for night in published_nights(settings.table.path)] == [NEXT, DAY]
    assert set(read_night(settings.table.path, as_of=NEXT).column(CARRIED_FROM).to_pylist()) == {None}
    with pytest.raises(DeadlineError, match="got none, it came while the shop was read"):
        make(NEXT + timedelta(days=1), dataclasses.replace(FAR, stop=0.0))


def test_a_first_night_has_nothing_to_keep(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = shop.settings.table.model_copy(update={"path": str(tmp_path / "table")})
    settings = shop.settings.model_copy(update={"table": table})
    with pytest.raises(DeadlineError, match="needs a night before, whose rows those keep who were not reached"):
        score_shop(state_of(settings, DAY), shop.bundle, as_of=DAY, deadline=stop_after(monkeypatch, 1))
    assert published_nights(settings.table.path) == []


# ---- when it is


def settings_of(folder: Path, zone: str | None = None) -> Settings:
    shop = {"events": "events"} | ({"timezone": zone} if zone else {})
    return Settings.model_validate(
        {"shop": shop, "report": {"path": str(folder / "reports")}, "table": {"path": str(folder / "table")}}
    )


@pytest.mark.parametrize("hour", ["6 o'clock", "25:00", "", "06:00+02:00"])
def test_what_is_no_time_of_day_is_refused(hour: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--deadline: must be a time of day such as 06:00, got "):
        next_deadline(settings_of(tmp_path), hour)


@pytest.mark.parametrize("zone", ["no zone", "../etc/passwd", "Europe"])
def test_a_deadline_in_no_zone_is_refused(zone: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^shop\.timezone: '.*' is no IANA time zone\."):
        next_deadline(settings_of(tmp_path, zone), "06:00")


def test_it_is_the_next_time_that_the_shop_s_clock_shows_it(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for zone, hours in (("Asia/Kolkata", 5.5), ("UTC", 0)):
        for hour in ("00:00", "23:59"):
            at = next_deadline(settings_of(tmp_path, zone), hour).at
            assert timedelta(0) < at - now <= timedelta(days=1, minutes=1)
            assert f"{at + timedelta(hours=hours):%H:%M}" == hour


def test_room_for_scoring_and_publishing_is_what_they_took_last_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    first = next_deadline(settings, "00:00")
    left = first.at.timestamp() - time.time()
    assert first.at.timestamp() - first.stop == pytest.approx(module.SHARE * left, rel=0.05)
    assert first.stop - first.learn == pytest.approx(module.SHARE_SCORING * left, rel=0.05)
    with kept_run(settings, as_of=DAY) as run:
        run.seconds |= {"publish": 40.0, "score": 100.0}
        run.published(Published("run", "model", 1, 10, 1, 0, 10, None, 1.0))
    second = next_deadline(settings, "00:00")
    assert second.at.timestamp() - second.stop == pytest.approx(module.ROOM * 40.0)
    assert second.stop - second.learn == pytest.approx(module.ROOM * 100.0)


def test_a_backfill_has_no_deadline(tmp_path: Path, run: Callable[..., Ended]) -> None:
    (tmp_path / "shop.toml").write_text(f'[shop]\nevents = "{tmp_path}/events"\n[table]\npath = "{tmp_path}/table"\n')
    told: Any = run("nightly", "--config", str(tmp_path / "shop.toml"), "--backfill", "2024-06-01..2024-06-02", "--deadline", "06:00")
    assert told.status == 1
    assert "nights that lie behind have none. Leave one out." in told.err


def test_quarters_are_all_users_once() -> None:
    histories: Any = types.SimpleNamespace(offsets=np.concatenate([[0], np.cumsum([3, 1, 3, 0, 9, 3])]))
    quarters = [module.quarter_of(histories, number).tolist() for number in range(QUARTERS)]
    assert quarters == [[0, 4], [2, 5], [1], [3]]
