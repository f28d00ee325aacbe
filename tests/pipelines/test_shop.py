import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle
from deltalake import DeltaTable

from jobs import printing
from recsys.config import Columns, Gate, Report, Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.data.types import midnight
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task
from recsys.errors import BundleError, GateError
from recsys.evaluation import backtest
from recsys.pipelines import champion
from recsys.pipelines.examples import _examples_task, training_cutoffs
from recsys.pipelines.night_record import read_record, recorded
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import ShopState, examples_of, fit_signals, read_signals, share_of, shop_state
from recsys.pipelines.train import _calibrate_task, train_shop
from recsys.publishing.gate import NAMES, Quality
from recsys.publishing.release import Published
from recsys.publishing.table import published_nights, read_night
from recsys.ranking import bundle
from recsys.ranking.bundle import Bundle
from recsys.ranking.registry import Registry
from recsys.schema import AS_OF, DAY_US, ITEM_ID, RANK, REASON, RUN_ID, SCORE, SOURCE, TS, USER_ID, recommendations_schema
from recsys.training.fit import Trained
from tests.pages import cells

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DAY = date(2024, 6, 6)  # a label window ends on it
K = 7
NEWCOMER = 5  # a user without an event; no planted id


class Night(NamedTuple):
    """A planted shop's published night; seven shards, two actors."""

    planted: synthetic.Planted
    settings: Settings
    state: ShopState
    trained: Trained
    published: Published
    table: pa.Table

    def with_run(self, table: Path, **run: int) -> Settings:
        """The settings with another table and another cut of the work."""
        settings = self.settings.model_dump(exclude_unset=True)
        return Settings.model_validate({**settings, "table": {"path": str(table)}, "run": settings["run"] | run})


@pytest.fixture(scope="module", autouse=True)
def by_value(two_actors: None) -> Iterator[None]:
    """Workers cannot import this file."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def night(two_actors: None, tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    planted = synthetic.shop(folder, users=210, items=150, days=98, seed=8, end=DAY, events_per_user=35)
    assert planted.users is not None
    newcomer = pa.table({USER_ID: [NEWCOMER], "age": ["65+"], "region": ["north"]})
    pq.write_table(newcomer, planted.users / "newcomer.parquet")
    settings = Settings.model_validate(
        {
            "shop": {"events": str(planted.events), "items": str(planted.items), "users": str(planted.users)},
            "features": {"item_categorical": ["category", "brand"], "item_numeric": ["size"], "user_categorical": ["age"]},
            "window": {"label_days": 14, "history_days": 90, "cutoffs": 3},
            "signals": {"factors": 8, "als_iterations": 5, "als_l2": 10.0, "als_alpha": 2.0, "ease_l2": 20.0, "group_users": 10},
            "candidates": {"per_user": 60},
            "model": {"hidden": [16]},
            "train": {"epochs": 2, "batch_size": 128, "learning_rate": 0.01},
            "rank": {"k": K},
            "run": {"work": str(folder / "work"), "shards": 7, "actors": 2},
            "table": {"path": str(folder / "table")},
        }
    )
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    trained = train_shop(state, as_of=DAY)
    published = score_shop(state, trained.bundle, as_of=DAY)
    return Night(planted, settings, state, trained, published, read_night(settings.table.path, as_of=DAY))


def modified(folder: str | Path) -> dict[Path, int]:
    """When each file below a folder was written; of those that every use touches 0."""

    def written(path: Path) -> int:
        touched = path.name in ("stage.json", "lasting") or (path.parent.name == "receipts" and (path.parents[1] / "lasting").exists())
        return 0 if touched else path.stat().st_mtime_ns

    return {path: written(path) for path in Path(folder).rglob("*") if path.is_file()}


def lists(table: pa.Table) -> dict[int, list[int]]:
    """Item ids in rank order by user."""
    found: dict[int, list[int]] = {}
    for row in table.sort_by([(USER_ID, "ascending"), (RANK, "ascending")]).select([USER_ID, ITEM_ID]).to_pylist():
        found.setdefault(row[USER_ID], []).append(row[ITEM_ID])
    return found


# ---- the table


def test_every_user_has_ranks_1_to_k_of_distinct_available_items(night: Night) -> None:
    table = night.table
    table.validate(full=True)
    assert pa.schema(table.schema).names == recommendations_schema(pa.int64(), pa.int64()).names
    found = lists(table)
    assert found.keys() == {*night.planted.user_ids.to_pylist(), NEWCOMER}
    ranks = table[RANK].to_numpy().reshape(-1, K)
    assert (ranks == np.arange(1, K + 1)).all()
    assert all(len(set(items)) == K for items in found.values())
    gone = set(night.planted.item_ids.filter(pa.array(~night.planted.available)).to_pylist())
    bought = set(pq.read_table(night.planted.events)[ITEM_ID].to_pylist())
    assert gone & bought  # what could have been recommended
    assert not gone & set(table[ITEM_ID].to_pylist())


def test_what_is_printed_of_the_night_is_what_the_table_holds(night: Night) -> None:
    assert (night.published.rows, night.published.users, night.published.short_users) == (211 * K, 211, 0)
    assert night.published.version == 1  # the table was made as version 0
    assert set(night.table[RUN_ID].to_pylist()) == {night.published.run_id}
    assert set(night.table[AS_OF].to_pylist()) == {DAY}
    assert set(night.table["model_version"].to_pylist()) == {night.trained.bundle.model_version}


def test_a_user_without_history_gets_what_users_alike_buy_and_no_score(night: Night) -> None:
    newcomer = pc.equal(night.table[USER_ID], NEWCOMER)
    assert set(night.table.filter(newcomer)[SOURCE].to_pylist()) == {"group"}
    assert set(night.table.filter(pc.invert(newcomer))[SOURCE].to_pylist()).isdisjoint({"group"})
    assert night.table.filter(newcomer)[SCORE].null_count == K
    others = night.table.filter(pc.invert(newcomer))
    assert others[SCORE].null_count == 0
    assert 0 < pc.min(others[SCORE]).as_py() < pc.max(others[SCORE]).as_py() < 1
    assert all(night.table[REASON].to_pylist())


def test_scores_are_the_bundle_s_calibration_of_what_orders_the_lists(night: Night) -> None:
    calibration = night.trained.bundle.calibration
    assert calibration is not None
    about = night.trained.bundle.about["metrics"]["calibration"]
    losses = about["held_out_log_loss"]
    assert about["kind"] == calibration.name == min(losses, key=losses.__getitem__)
    assert losses.keys() == {"sigmoid", "platt", "isotonic", "platt by activity", "isotonic by activity"}
    score = night.table.filter(pc.not_equal(night.table[USER_ID], NEWCOMER))[SCORE].to_numpy().reshape(-1, K)
    assert (np.diff(score, axis=1) <= 0).all()
    # all candidates of the newest window, by weights that did not see it
    validated = bundle.load(night.trained.bundle.folder.parent / "validated")
    assert validated.calibration is None
    (stage,) = Path(night.settings.run.work).glob("calibrate-*")
    about = json.loads((stage / "stage.json").read_text())
    assert (about["model"], about["cutoff"]) == (validated.model_version, "2024-05-23")
    counts = [json.loads(path.read_text()) for path in stage.glob("receipts/*.json")]
    (examples,) = Path(night.settings.run.work).glob("examples-*/receipts")
    newest = [json.loads(path.read_text()) for path in examples.glob("2024-05-23-*.json")]
    assert sum(one["rows"] for one in counts) == 210 * 60  # of all but the newcomer
    assert sum(one["rows"] for one in counts) > sum(one["candidates"] for one in newest) > sum(one["rows"] for one in newest)


def test_a_calibration_takes_about_so_many_users_as_the_settings_say(night: Night) -> None:
    settings = Settings.model_validate(night.settings.model_dump(exclude_unset=True) | {"calibration": {"max_users": 70}})
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    share = share_of(state.dataset.contents.users_before(date(2024, 5, 23)), 70)
    arrays = read_signals(state, date(2024, 5, 18)).arrays()
    work = Path(night.settings.run.work) / "few"
    task = _calibrate_task(state, (str(night.trained.bundle.folder), "cpu"), arrays, work)
    assert task("users-00003", {"shard": "00003"})["rows"] > 0
    with np.load(work / "users-00003.npz") as file:
        group = file["group"]
    users = len(state.dataset.histories("00003"))
    assert 0 < len(np.unique(group)) < 0.7 * users
    assert group.max() <= share * 2.0**64


def test_polars_and_duckdb_read_the_same_rows(night: Night) -> None:
    path = night.settings.table.path
    columns = [USER_ID, RANK, ITEM_ID, SCORE, REASON]
    by_polars = polars.read_delta(path).filter(polars.col(AS_OF) == DAY).sort(USER_ID, RANK).select(columns).to_arrow()
    files = DeltaTable(path).file_uris()
    # The extension that has delta_scan is fetched from the network.
    query = f"SELECT {', '.join(columns)} FROM read_parquet($files, hive_partitioning = true) WHERE as_of = $day ORDER BY user_id, rank"
    by_duckdb = duckdb.execute(query, {"files": files, "day": DAY}).fetchall()
    expected = night.table.select(columns).to_pylist()
    assert by_polars.to_pylist() == expected
    assert by_duckdb == [tuple(row.values()) for row in expected]


def test_lists_recover_the_planted_taste_better_than_popularity(night: Night) -> None:
    planted = night.planted
    code = {item: number for number, item in enumerate(planted.item_ids.to_pylist())}
    events = pq.read_table(planted.events)
    month = events.filter(pc.greater_equal(events[TS].cast(pa.int64()), midnight(DAY) - 28 * DAY_US))
    sold = np.bincount([code[item] for item in month[ITEM_ID].to_pylist()], minlength=150)
    popular = np.argsort(-np.where(planted.available, sold, -1), kind="stable")[:K]

    found = lists(night.table)
    ours: list[float] = []
    theirs: list[float] = []
    staples: list[float] = []
    for user, user_id in enumerate(planted.user_ids.to_pylist()):
        mine = [code[item] for item in found[user_id]]
        ours.append(planted.liked(user)[mine].mean())
        theirs.append(planted.liked(user)[popular].mean())
        own = planted.staples(user)[planted.available[planted.staples(user)]]
        if len(own):
            staples.append(np.isin(own, mine).sum() / min(K, len(own)) - np.isin(own, popular).sum() / min(K, len(own)))
    assert np.mean(ours) > np.mean(theirs) + 0.5
    assert np.mean(staples) > 0.5


# ---- again, cut otherwise, and disturbed


def test_running_again_changes_no_file_and_makes_no_commit(night: Night) -> None:
    work, table = modified(night.settings.run.work), modified(night.settings.table.path)
    version = DeltaTable(night.settings.table.path).version()
    state = shop_state(open_shop(night.settings, as_of=DAY), end=DAY)
    trained = train_shop(state, as_of=DAY)
    again = score_shop(state, trained.bundle, as_of=DAY)
    assert (again.run_id, again.version, again.rows, again.seconds) == (night.published.run_id, None, night.published.rows, 0.0)
    assert (trained.examples, trained.history) == (night.trained.examples, night.trained.history)
    assert modified(night.settings.run.work) == work
    assert modified(night.settings.table.path) == table
    assert DeltaTable(night.settings.table.path).version() == version


def test_the_same_files_under_another_path_are_the_same_night(night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("events", "items", "users"):
        shutil.copytree(Path(night.settings.shop.events).parent / name, tmp_path / "copy" / name, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    told = night.settings.model_dump(exclude_unset=True)
    told["shop"] = {name: f"copy/{name}" for name in ("events", "items", "users")}
    told["run"]["work"] = os.path.relpath(told["run"]["work"])
    told["table"]["path"] = os.path.relpath(told["table"]["path"])
    work = modified(night.settings.run.work)
    state = shop_state(open_shop(Settings.model_validate(told), as_of=DAY), end=DAY)
    trained = train_shop(state, as_of=DAY)
    again = score_shop(state, trained.bundle, as_of=DAY)
    assert (again.run_id, again.version, again.seconds) == (night.published.run_id, None, 0.0)
    assert modified(night.settings.run.work) == work


def test_three_shards_and_one_actor_give_the_same_table(night: Night, tmp_path: Path) -> None:
    settings = night.with_run(tmp_path / "table", shards=3, actors=1)
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    assert len(state.dataset.shards) == 3
    score_shop(state, night.trained.bundle, as_of=DAY)
    assert read_night(settings.table.path, as_of=DAY).equals(night.table)


def dies_once(marker: Path) -> Any:
    """The score stage's task, whose actor is killed at the first sight of the fourth shard, when the part is staged."""

    def make(*arguments: Any) -> Task:
        from recsys.pipelines.score import _score_task

        score = _score_task(*arguments)

        def task(name: str, unit: dict[str, Any]) -> Receipt:
            receipt = score(name, unit)
            if unit["shard"] == "00003" and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return receipt

        return task

    return make


def test_a_scoring_task_that_was_killed_and_a_part_that_was_lost_change_nothing(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = night.with_run(tmp_path / "table")
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    monkeypatch.setattr("recsys.pipelines.score._score_task", dies_once(tmp_path / "died"))
    first = score_shop(state, night.trained.bundle, as_of=DAY)
    assert (tmp_path / "died").exists()
    assert read_night(settings.table.path, as_of=DAY).equals(night.table)

    parts = sorted((tmp_path / "table").rglob("part-*.parquet"))
    assert len(parts) == 7
    before = modified(tmp_path / "table")
    parts[2].unlink()
    second = score_shop(state, night.trained.bundle, as_of=DAY)
    assert (first.version, second.version) == (1, None)
    assert read_night(settings.table.path, as_of=DAY).equals(night.table)
    after = modified(tmp_path / "table")
    assert [path for path in before if after[path] != before[path]] == [parts[2]]  # the other shards were not scored again


def test_a_copied_bundle_gives_the_same_run(night: Night, tmp_path: Path) -> None:
    shutil.copytree(night.trained.bundle.folder, tmp_path / "bundle")
    again = score_shop(night.state, bundle.load(tmp_path / "bundle"), as_of=DAY)
    assert (again.run_id, again.version) == (night.published.run_id, None)


# ---- rules


class Ruled(NamedTuple):
    """The night again under rules of every kind, with the model that never heard of them."""

    settings: Settings
    state: ShopState
    published: Published
    table: pa.Table


@pytest.fixture(scope="module")
def ruled(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Ruled:
    folder = tmp_path_factory.mktemp("ruled")
    users = night.planted.user_ids.to_pylist()
    best = [items[0] for items in lists(night.table).values()]
    recalled = [item for item, _ in Counter(best).most_common(3)]
    pq.write_table(pa.table({ITEM_ID: recalled}), folder / "recalled.parquet")
    returned = {USER_ID: users[:50] * 2, ITEM_ID: [lists(night.table)[user][place] for place in (1, 2) for user in users[:50]]}
    pq.write_table(pa.table(returned), folder / "returned.parquet")
    pq.write_table(pa.table({USER_ID: users[100:130]}), folder / "testers.parquet")
    liked = [item for item, _ in Counter(night.table[ITEM_ID].to_pylist()).most_common(16)]
    pq.write_table(pa.table({ITEM_ID: liked[10:]}), folder / "trial.parquet")  # fewer than K
    rules: list[dict[str, Any]] = [
        {"name": "lately", "kind": "bought", "days": 5},
        {"name": "no brand 1", "kind": "column", "column": "brand", "never": ["brand 1"]},
        {
            "name": "not in the north",
            "kind": "column",
            "column": "category",
            "never": ["category 0"],
            "audience": {"column": "region", "values": ["north"]},
        },
        {"name": "price", "kind": "range", "column": "price", "min": 1.05, "max": 5.0},
        {"name": "recalled", "kind": "items", "never": str(folder / "recalled.parquet")},
        {"name": "trial", "kind": "items", "only": str(folder / "trial.parquet"), "audience": {"ids": str(folder / "testers.parquet")}},
        {"name": "returned", "kind": "pairs", "never": str(folder / "returned.parquet")},
        {"name": "variety", "kind": "cap", "column": "category", "at_most": 2},
    ]
    settings = Settings.model_validate(
        night.settings.model_dump(exclude_unset=True)
        | {"rules": rules, "rank": {"k": K, "diversity": 0.2}, "table": {"path": str(folder / "table")}}
        | {"run": night.settings.run.model_dump() | {"work": str(folder / "work")}}
    )
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    published = score_shop(state, night.trained.bundle, as_of=DAY)
    return Ruled(settings, state, published, read_night(settings.table.path, as_of=DAY))


def test_no_row_of_a_night_breaks_a_rule_as_the_shop_s_own_tables_tell(night: Night, ruled: Ruled) -> None:
    planted = night.planted
    assert planted.users is not None
    assert planted.items is not None
    events, items = pq.read_table(planted.events), pq.read_table(planted.items).to_pylist()
    late = events.filter(pc.greater_equal(events[TS].cast(pa.int64()), midnight(DAY) - 5 * DAY_US))
    lately = set(zip(late[USER_ID].to_pylist(), late[ITEM_ID].to_pylist(), strict=True))
    by_id = {row[ITEM_ID]: row for row in items}
    north = set(pq.read_table(planted.users, filters=[("region", "=", "north")])[USER_ID].to_pylist())
    folder = Path(ruled.settings.table.path).parent
    recalled = set(pq.read_table(folder / "recalled.parquet")[ITEM_ID].to_pylist())
    trial = set(pq.read_table(folder / "trial.parquet")[ITEM_ID].to_pylist())
    testers = set(pq.read_table(folder / "testers.parquet")[USER_ID].to_pylist())
    returned = {(row[USER_ID], row[ITEM_ID]) for row in pq.read_table(folder / "returned.parquet").to_pylist()}

    def broken(user: int, item: int) -> list[str]:
        row = by_id[item]
        rules = {
            "available": not row["available"],
            "lately": (user, item) in lately,
            "no brand 1": row["brand"] == "brand 1",
            "not in the north": user in north and row["category"] == "category 0",
            "price": not 1.05 <= row["price"] <= 5.0,
            "recalled": item in recalled,
            "trial": user in testers and item not in trial,
            "returned": (user, item) in returned,
        }
        return [name for name, breaks in rules.items() if breaks]

    before, after = lists(night.table), lists(ruled.table)
    assert after.keys() == before.keys()
    without = Counter(name for user, ids in before.items() for item in ids for name in broken(user, item)[:1])
    assert without.keys() == {rule.name for rule in ruled.settings.rules} - {"variety"}  # what each would have let through
    assert not [(user, item) for user, ids in after.items() for item in ids if broken(user, item)]
    most = [max(Counter(by_id[item]["category"] for item in ids).values()) for ids in before.values()]
    assert max(most) > 2
    assert all(max(Counter(by_id[item]["category"] for item in ids).values()) <= 2 for ids in after.values())


def test_what_rules_took_is_in_the_receipts_the_run_s_record_and_the_commit(ruled: Ruled) -> None:
    told = ruled.published
    assert list(told.dropped) == ["available", *(rule.name for rule in ruled.settings.rules)]
    assert all(told.dropped.values())
    lengths = Counter(ruled.table[USER_ID].to_pylist())
    assert told.short_users == sum(told.short.values()) == sum(count < K for count in lengths.values())
    assert told.short_users > 0
    (stage,) = Path(ruled.settings.run.work).glob("score-*")
    receipts = [json.loads(path.read_text()) for path in stage.glob("receipts/*.json")]
    assert sum((Counter(receipt["dropped"]) for receipt in receipts), Counter[str]()) == dict(told.dropped)
    record = json.loads((stage / "run.json").read_text())
    assert (record["dropped"], record["short"], record["run_id"]) == (told.dropped, told.short, told.run_id)
    entry = DeltaTable(ruled.settings.table.path).history(1)[0]
    assert (json.loads(entry["dropped"]), json.loads(entry["short_users"])) == (told.dropped, told.short)
    counts = json.loads((ruled.state.rules.path / "receipts" / "004-items.json").read_text())
    assert (counts["rows"], counts["unknown"]) == (3, 0)


def test_a_night_under_rules_again_changes_no_file(night: Night, ruled: Ruled) -> None:
    work = modified(ruled.settings.run.work)
    state = shop_state(open_shop(ruled.settings, as_of=DAY), end=DAY)
    again = score_shop(state, night.trained.bundle, as_of=DAY)
    assert (again.version, again.dropped, again.short) == (None, ruled.published.dropped, ruled.published.short)
    assert modified(ruled.settings.run.work) == work


def test_other_lists_and_caps_make_another_run_and_no_other_examples(ruled: Ruled, tmp_path: Path) -> None:
    def state(changed: dict[str, dict[str, Any]]) -> ShopState:
        told = [rule.model_dump() | changed.get(rule.name, {}) for rule in ruled.settings.rules]
        rules = [{key: value for key, value in rule.items() if value is not None} for rule in told]
        settings = Settings.model_validate(ruled.settings.model_dump(exclude_unset=True) | {"rules": rules})
        return shop_state(open_shop(settings, as_of=DAY), end=DAY)

    pq.write_table(pa.table({ITEM_ID: [1000]}), tmp_path / "recalled.parquet")
    more = state({"recalled": {"never": str(tmp_path / "recalled.parquet")}, "variety": {"at_most": 1}})
    assert more.examples.digest == ruled.state.examples.digest
    assert more.dataset.digest == ruled.state.dataset.digest
    assert more.rules.digest != ruled.state.rules.digest
    other = state({"lately": {"days": 6}})
    assert other.examples.digest != ruled.state.examples.digest
    assert other.dataset.digest == ruled.state.dataset.digest
    # the same path with another list in it
    pq.write_table(pa.table({ITEM_ID: [1000, 1007]}), tmp_path / "recalled.parquet")
    tonight = state({"recalled": {"never": str(tmp_path / "recalled.parquet")}, "variety": {"at_most": 1}})
    assert tonight.rules.digest != more.rules.digest
    assert tonight.examples.digest == more.examples.digest


# ---- the gate


@pytest.mark.usefixtures("in_process")
def test_a_night_that_most_of_the_catalog_is_gone_for_is_stopped_and_may_be_let_through(night: Night, tmp_path: Path) -> None:
    def state(**shop: Any) -> ShopState:
        sections = {"shop": night.settings.shop.model_copy(update=shop), "report": Report(path=str(reports))}
        told = night.with_run(tmp_path / "table").model_copy(update=sections)
        return shop_state(open_shop(told, as_of=DAY), end=DAY)

    model, path, reports = night.trained.bundle, str(tmp_path / "table"), tmp_path / "reports"
    eve, eve_before = DAY - timedelta(days=1), DAY - timedelta(days=2)
    score_shop(state(), model, as_of=eve_before)
    with recorded(state(), model, as_of=eve):
        verdict = score_shop(state(), model, as_of=eve).verdict
    assert verdict is not None
    assert (verdict.before, verdict.failed()) == (eve_before, [])  # a normal night passes every check
    assert len(verdict.checks) == len(NAMES) - 2  # group_gap and group_gap_rise need groups

    items = pq.read_table(night.planted.items)
    (tmp_path / "items").mkdir()
    gone = pa.array(np.arange(items.num_rows) % 3 == 0)
    pq.write_table(items.append_column("here", gone), tmp_path / "items" / "items.parquet")
    third = state(items=str(tmp_path / "items"), columns=Columns(available="here"))
    days, whole = training_cutoffs(third, DAY), state()
    assert (examples_of(third, days), third.examples.digest) == (examples_of(whole, days), whole.examples.digest)  # none made again
    with (
        pytest.raises(
            GateError,
            match=rf"gate: overlap .* must be at least 0\.6, got 0\.\d+ against night {eve}.*\(items.* too\.\).*--override overlap",
        ) as stopped,
        recorded(third, model, as_of=DAY),
    ):
        score_shop(third, model, as_of=DAY)
    assert stopped.value.status == 5
    assert [one.as_of for one in published_nights(path)] == [eve, eve_before]
    page = (reports / f"{DAY}-stopped.html").read_text()
    assert re.search(r"Stopped by the gate: .*items must be at least 0\.6,\s+got 0\.\d+", page, re.DOTALL)
    assert all(row[0] in str(stopped.value) for row in cells(page, "gate") if row[3] == "FAILED")
    assert [row[0] for row in cells(page, "nights")] == [str(DAY), str(eve), str(eve_before)]
    tonight, night_before, unknown = (row[4] for row in cells(page, "nights"))  # distinct items
    assert int(tonight) < 0.6 * int(night_before)
    assert unknown == "-"  # no page was made of it
    assert not (reports / f"{DAY}.html").exists()

    failed = dict.fromkeys(NAMES, "the rest moved to another shop")
    with recorded(third, model, as_of=DAY):
        assert score_shop(third, model, as_of=DAY, overrides=failed).version is not None
    assert re.search(r"Published, though .*items.* might fail by hand", (reports / f"{DAY}.html").read_text())
    kept = DeltaTable(path).history(1)[0]
    assert json.loads(kept["overrides"]) == failed
    assert json.loads(kept["gate"])["items"] < 0.6
    assert score_shop(third, model, as_of=DAY).verdict is None  # what stands is not judged again


def without_categories(items: pa.Table) -> pa.Table:
    for name in ("category", "brand"):
        items = items.set_column(items.column_names.index(name), name, pa.nulls(items.num_rows, items[name].type))
    return items


def in_another_unit(items: pa.Table) -> pa.Table:
    return items.set_column(items.column_names.index("size"), "size", pc.multiply(items["size"], 1000.0))


def every_other_under_another_id(events: pa.Table) -> pa.Table:
    """Half of each user's events under the id that a second system gave the user."""
    other = pa.array(np.where(np.arange(events.num_rows) % 2, 10_000_000, 0))
    return events.set_column(events.column_names.index(USER_ID), USER_ID, pc.add(events[USER_ID], other))


# The size of an item is no taste on this shop, so a thousand times as much moves the scores by .11 alone, less than the default stops.
ORDINARY_DRIFT = 0.05  # the shop's night after moves them by .01: it is published under this limit


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("which", "fault", "checks"),
    [
        pytest.param("items", without_categories, {"source_kept"}, id="a source that is empty"),
        pytest.param("items", in_another_unit, {"drift"}, id="a feature in another unit"),
        pytest.param("events", every_other_under_another_id, {"users"}, id="users twice"),
    ],
)
def test_a_night_made_of_a_broken_table_is_stopped(
    which: str, fault: Callable[[pa.Table], pa.Table], checks: set[str], night: Night, tmp_path: Path
) -> None:
    shutil.copytree(night.settings.table.path, tmp_path / "table")
    folder = tmp_path / which
    folder.mkdir()
    pq.write_table(fault(pq.read_table(getattr(night.planted, which))), folder / "broken.parquet")
    changed = {"shop": night.settings.shop.model_copy(update={which: str(folder)}), "gate": Gate(max_drift=ORDINARY_DRIFT)}
    told = night.with_run(tmp_path / "table").model_copy(update=changed)
    after = DAY + timedelta(days=1)
    with pytest.raises(GateError) as stopped:
        score_shop(shop_state(open_shop(told, as_of=after), end=after), night.trained.bundle, as_of=after)
    assert all(check in str(stopped.value) for check in checks)
    assert [one.as_of for one in published_nights(told.table.path)] == [DAY]


@pytest.mark.usefixtures("in_process")
def test_the_night_after_of_a_whole_table_moves_the_scores_by_less(night: Night, tmp_path: Path) -> None:
    shutil.copytree(night.settings.table.path, tmp_path / "table")
    told = night.with_run(tmp_path / "table").model_copy(update={"gate": Gate(max_drift=ORDINARY_DRIFT)})
    after = DAY + timedelta(days=1)
    score_shop(shop_state(open_shop(told, as_of=after), end=after), night.trained.bundle, as_of=after)
    assert [one.as_of for one in published_nights(told.table.path)] == [after, DAY]


# ---- given candidates


@pytest.mark.usefixtures("in_process")
def test_only_given_items_are_listed_and_users_without_one_get_no_list(
    night: Night, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planted = night.planted
    users, items = planted.user_ids.to_pylist(), planted.item_ids.to_pylist()
    chosen = {user: items[number % 40 : 150 : 11] for number, user in enumerate([NEWCOMER, *users[:100]])}
    rows = [(user, item) for user, mine in chosen.items() for item in reversed(mine)]
    rows += [*rows[:5], (users[0], None), (None, items[0]), (-1, items[0]), (users[0], -1)]
    (tmp_path / "given").mkdir()
    for part in range(2):
        mine = rows[part::2]
        table = pa.table({USER_ID: pa.array([u for u, _ in mine], pa.int64()), ITEM_ID: pa.array([i for _, i in mine], pa.int64())})
        pq.write_table(table, tmp_path / "given" / f"{part}.parquet", row_group_size=50)
    settings = night.with_run(tmp_path / "table").model_dump(exclude_unset=True)
    settings["rank"]["candidates"] = str(tmp_path / "given")
    caplog.set_level("INFO", "recsys")
    state = shop_state(open_shop(Settings.model_validate(settings), as_of=DAY), end=DAY)
    assert f"supplied: {len(rows):,} rows read, rejected: duplicate 5, null_id 2, unknown_item 1, unknown_user 1" in caplog.text
    assert f"supplied: 110 of 211 users have no row in {tmp_path / 'given'} and get no list" in caplog.text
    trained = train_shop(state, as_of=DAY)
    assert trained.bundle.model_version != night.trained.bundle.model_version  # it learns from rows drawn to look like them
    with pytest.raises(BundleError, match=r"learned to rank what the sources propose, .* rank given candidates\. Train again\."):
        score_shop(state, night.trained.bundle, as_of=DAY)
    published = score_shop(state, trained.bundle, as_of=DAY)
    assert published.run_id != night.published.run_id
    table = read_night(str(tmp_path / "table"), as_of=DAY)
    gone = {item for item, available in zip(items, planted.available, strict=True) if not available}
    found = lists(table)
    assert found.keys() == chosen.keys()
    for user, mine in found.items():
        allowed = set(chosen[user]) - gone
        assert set(mine) <= allowed
        assert len(mine) == min(K, len(allowed))
    assert pc.min(pc.list_value_length(table["sources"])).as_py() > 0
    both = table.select([USER_ID, ITEM_ID, "reason_kind"]).join(
        night.table.select([USER_ID, ITEM_ID, "reason_kind"]), [USER_ID, ITEM_ID], right_suffix="_proposed", join_type="inner"
    )
    assert both.num_rows > 30
    assert pc.sum(pc.equal(both["reason_kind"], "given")).as_py() == 0


# ---- the champion


@pytest.mark.usefixtures("in_process")
def test_a_challenger_wins_where_it_is_not_worse_and_only_then_is_fitted_on_all_data(night: Night, tmp_path: Path) -> None:
    def state(**train: Any) -> ShopState:
        settings = night.settings.model_dump(exclude_unset=True)
        told = Settings.model_validate({**settings, "train": settings["train"] | train})
        return shop_state(open_shop(told, as_of=DAY), end=DAY)

    def trainings() -> set[str]:
        return {path.name for path in Path(night.settings.run.work).glob("train-*")}

    good, bad = state(), state(learning_rate=1e-9, epochs=1)
    registry = Registry(tmp_path / "bundles")
    first = champion.choose(good, registry, as_of=DAY)
    assert first.decision is not None
    assert (first.decision.why, first.decision.promoted) == ("the first", True)
    assert first.bundle.model_version == night.trained.bundle.model_version  # the refit as of the night
    assert first.tested is not None
    assert first.metrics is not None
    assert first.tested.bundle.about["window"]["as_of"] == (DAY - timedelta(days=14)).isoformat()
    again = champion.choose(good, registry, as_of=DAY)
    assert (again.bundle, again.decision) == (first.bundle, first.decision)  # as when the night was killed after it had decided
    assert again.refit is not None
    assert again.refit.bundle.model_version == first.bundle.model_version
    assert len(registry.decisions()) == 1

    before = trainings()
    refused = champion.choose(bad, registry, as_of=DAY)
    made = refused.decision
    assert made is not None
    assert made.low is not None
    assert made.difference is not None
    assert not made.promoted
    assert made.difference < 0
    assert made.low <= -0.01
    assert refused.metrics is not None
    assert made.users == refused.metrics["users"]["all"] > 100
    ours, theirs = refused.metrics, first.metrics
    assert made.difference == pytest.approx(ours["models"]["mlp"]["all"]["ndcg@10"] - theirs["models"]["mlp"]["all"]["ndcg@10"])
    assert (refused.bundle, refused.refit) == (first.bundle, None)
    assert len(trainings() - before) == 1  # the challenger's own, and no refit
    assert champion.choose(bad, registry, as_of=DAY).decision == made

    other = Registry(tmp_path / "others")
    champion.choose(bad, other, as_of=DAY)
    promoted = champion.choose(good, other, as_of=DAY)
    assert promoted.decision is not None
    assert promoted.decision.difference == pytest.approx(-made.difference)
    assert promoted.decision.promoted
    assert promoted.bundle.model_version == first.bundle.model_version

    earlier = champion.choose(good, other, as_of=DAY - timedelta(days=1))
    assert earlier.decision is None
    assert earlier.bundle.about["window"]["as_of"] == (DAY - timedelta(days=14)).isoformat()
    assert len(other.decisions()) == 2


@pytest.mark.usefixtures("in_process")
def test_between_two_challengers_the_champion_scores_without_one(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(tmp_path)
    first = champion.choose(night.state, registry, as_of=DAY)
    made = modified(night.settings.run.work)
    chosen = champion.choose(night.state, registry, as_of=DAY + timedelta(days=2))
    assert modified(night.settings.run.work) == made
    assert first.decision is not None
    assert first.decision.baselines["all"]["baseline"] in backtest.MODELS[1:]
    quality = Quality(baselines=first.decision.baselines)  # what was measured holds until the next
    assert chosen == champion.Chosen(first.bundle, due=DAY + timedelta(days=3), quality=quality)  # a quarter of 14 days
    printing.decision(chosen)
    assert "the champion's; a challenger is due on 2024-06-09" in " ".join(capsys.readouterr().out.split())
    for days, due in ((9, DAY + timedelta(days=9)), (10**9, date.max)):
        told = night.settings.model_dump(exclude_unset=True) | {"champion": {"every_days": days}}
        assert champion.next_challenger(Settings.model_validate(told), registry) == due

    # the night of the next one: no label window is full that was not before, so it is the same
    again = champion.choose(night.state, registry, as_of=DAY + timedelta(days=3))
    assert (again.bundle, again.met, again.decision) == (first.bundle, first.decision, None)
    assert (again.refit, again.metrics, again.quality, again.due) == (None, None, quality, None)
    printing.decision(again)
    assert "the champion's: tonight's challenger met it on 2024-06-06." in " ".join(capsys.readouterr().out.split())
    assert len(registry.decisions()) == 1


@pytest.mark.usefixtures("in_process")
def test_the_next_night_learns_from_what_the_night_before_made(night: Night, tmp_path: Path) -> None:
    """Its events are no part of any label window yet; a late one is part of some, and these alone are made again."""
    shutil.copytree(night.planted.events, tmp_path / "events")

    def add(name: str, user: int, item: int, day: datetime) -> ShopState:
        rows = pa.table(
            {USER_ID: [user], ITEM_ID: [item], TS: pa.array([day], pa.timestamp("us", "UTC")), "quantity": [1], "price": [2.5]}
        )
        pq.write_table(rows, tmp_path / "events" / f"{name}.parquet")
        told = night.settings.model_dump(exclude_unset=True)
        settings = Settings.model_validate({**told, "shop": told["shop"] | {"events": str(tmp_path / "events")}})
        tomorrow = DAY + timedelta(days=1)
        return shop_state(open_shop(settings, as_of=tomorrow), end=tomorrow)

    def made(stage: Stage) -> dict[str, int]:
        return Counter(path.name[:10] for path in (stage.path / "receipts").glob("*.json"))

    user = night.planted.user_ids[0].as_py()
    state = add("new", user, 1, datetime(2024, 6, 6, 12, tzinfo=UTC))  # and an item before all others, so that every code is another
    assert len(state.dataset.catalog()) == len(night.state.dataset.catalog()) + 1
    before = modified(night.settings.run.work)
    again = train_shop(state, as_of=DAY + timedelta(days=1))
    assert modified(night.settings.run.work) == before
    assert again.bundle.model_version == night.trained.bundle.model_version
    signals, examples = made(state.signals), made(state.examples)

    state = add("late", user, 1, datetime(2024, 5, 10, 12, tzinfo=UTC))  # in the second of three windows
    late = train_shop(state, as_of=DAY + timedelta(days=1))
    assert late.bundle.model_version != again.bundle.model_version
    more = {day: made(state.signals)[day] - signals[day] for day in ("2024-04-25", "2024-05-09", "2024-05-23")}
    assert more == {"2024-04-25": 0, "2024-05-09": 0, "2024-05-23": 1}
    more = {day: made(state.examples)[day] - examples[day] for day in more}
    assert more == {"2024-04-25": 0, "2024-05-09": 7, "2024-05-23": 7}


@pytest.mark.usefixtures("in_process")
def test_fewer_users_give_some_of_the_rows_that_all_give(night: Night, tmp_path: Path) -> None:
    def rows(users: int, folder: str) -> tuple[pa.Table, set[int]]:
        told = night.settings.model_dump(exclude_unset=True) | {"examples": {"max_users": users}}
        state = replace(night.state, inputs=replace(night.state.inputs, settings=Settings.model_validate(told)))
        state = replace(state, examples=Stage(tmp_path / folder, "examples", {"users": users}))
        (path,) = fit_signals(state, [date(2024, 5, 9)])
        task = _examples_task(state, {"2024-05-09": path})
        for shard in state.dataset.shards:
            task(f"of-{shard}", {"cutoff": "2024-05-09", "shard": shard})
        table = pa.concat_tables(pa.ipc.open_file(path).read_all() for path in sorted(state.examples.path.glob("of-*.arrow")))
        return table, set(table[USER_ID].to_pylist())

    wanting = night.state.dataset.contents.users_wanting(date(2024, 5, 9))
    every, everybody = rows(wanting, "all")
    assert wanting / 2 < len(everybody) <= wanting
    half, some = rows(wanting // 2, "half")
    few, fewer = rows(wanting // 4, "few")
    assert fewer < some < everybody
    assert wanting / 3 < len(some) < wanting / 1.5
    for table, users in ((half, some), (few, fewer)):
        expected = every.filter(pc.is_in(every[USER_ID], pa.array(sorted(users))))
        for column in expected.column_names:
            found, wanted = (np.array(one[column].combine_chunks().to_pylist()) for one in (table, expected))
            np.testing.assert_array_equal(found, wanted)


def popular_only(trained: Trained, folder: Path) -> Bundle:
    """A model of the same inputs that knows nothing but what everybody buys."""
    import keras

    model = keras.saving.load_model(trained.bundle.folder / "model.keras")
    place = trained.bundle.spec.dense.index("popularity_28d")
    for layer in model.layers:
        for variable in layer.trainable_variables:
            told = np.zeros(variable.shape, np.float32)
            if variable.path.endswith("kernel"):
                told[place if len(told) > 16 else 0, 0] = 1.0
            elif variable.shape[0] > 1:
                told[0] = 20.0  # relu lets all through
            variable.assign(told)
    about = trained.bundle.about
    return bundle.save(
        folder, model, trained.bundle.spec, **{name: about[name] for name in ("settings", "decided", "window")}, metrics={}
    )


@pytest.mark.usefixtures("in_process")
def test_a_popular_only_model_given_by_hand_is_stopped_for_its_lists_before_tonight(night: Night, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "bundles")
    first = champion.choose(night.state, registry, as_of=DAY)
    assert champion.quality_of(night.state, registry, first.bundle, as_of=DAY) == first.quality  # the champion itself
    assert first.quality.ndcg is None
    assert first.tested is not None
    poor = popular_only(first.tested, tmp_path / "poor")
    alone = champion.quality_of(night.state, Registry(tmp_path / "none"), poor, as_of=DAY)
    quality = champion.quality_of(night.state, registry, poor, as_of=DAY)
    assert alone == replace(quality, ndcg=None)
    assert quality.ndcg is not None
    assert quality.ndcg < -0.01
    state = shop_state(open_shop(night.with_run(tmp_path / "table"), as_of=DAY), end=DAY)
    with pytest.raises(GateError, match=r"gate: ndcg .* must be at least -0\.01, got -0\.\d+.*--override ndcg"):
        score_shop(state, poor, as_of=DAY, quality=quality)
    assert score_shop(state, first.bundle, as_of=DAY, quality=first.quality).version is not None


@pytest.mark.usefixtures("in_process")
def test_a_model_below_a_baseline_is_stopped_or_gives_way_to_its_order(
    night: Night, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eve = DAY - timedelta(days=1)
    tested = champion.choose(night.state, Registry(tmp_path / "bundles"), as_of=DAY).tested
    assert tested is not None
    poor = popular_only(tested, tmp_path / "poor")
    told = night.with_run(tmp_path / "table").model_dump(exclude_unset=True) | {"report": {"path": str(tmp_path / "reports")}}
    settings = Settings.model_validate(told)
    quality = champion.quality_of(night.state, Registry(tmp_path / "none"), poor, as_of=DAY)
    best = quality.baselines["all"]
    assert best["high"] < 0
    assert score_shop(shop_state(open_shop(settings, as_of=eve), end=eve), tested.bundle, as_of=eve).version is not None
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    with pytest.raises(GateError, match=rf"gate: baseline \(.*{best['baseline']}\) must be at least 0, got -0\.\d+"):
        score_shop(state, poor, as_of=DAY, quality=quality)

    # the settings let the baseline's order step in, unlike the night before's or not
    willing = Settings.model_validate({**told, "gate": {"fallback": True}})
    state = shop_state(open_shop(willing, as_of=DAY), end=DAY)
    with recorded(state, poor, as_of=DAY, quality=quality):
        published = score_shop(state, poor, as_of=DAY, quality=quality)
    assert published.version is not None
    rows = polars.scan_delta(settings.table.path).filter(polars.col("as_of") == DAY).collect()
    assert rows["model_version"].unique().to_list() == [f"baseline-{best['baseline']}"]
    assert rows["score"].null_count() == len(rows)
    record = read_record(tmp_path / "reports" / f"{DAY}.json")
    assert record is not None
    assert record["fallback"] == best
    said = f"The lists are in the order of {best['baseline']}"
    assert said in (tmp_path / "reports" / f"{DAY}.html").read_text()
    printing.published(published, state, as_of=DAY, overrides={})
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("in_process")
def test_a_champion_of_other_features_gives_way(night: Night, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    champion.choose(night.state, registry, as_of=DAY)
    settings = night.settings.model_dump(exclude_unset=True)
    told = Settings.model_validate({**settings, "features": settings["features"] | {"item_numeric": []}})
    chosen = champion.choose(shop_state(open_shop(told, as_of=DAY), end=DAY), registry, as_of=DAY)
    assert chosen.decision is not None
    assert chosen.decision.promoted
    assert chosen.decision.why.startswith("the champion cannot score under tonight's settings: ")
    assert "features.item_numeric" in chosen.decision.why
