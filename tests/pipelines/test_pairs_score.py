import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import config
from recsys.errors import BundleError, PublishError
from recsys.features.feature_table import open_feature_table
from recsys.features.reader import Reader, cut_shards
from recsys.pipelines import pairs_features, pairs_score, pairs_train
from recsys.ranking import bundle
from recsys.ranking.bundle import Bundle
from recsys.ranking.network import build
from recsys.ranking.scorer import Scorer
from recsys.ranking.split_scorer import SplitScorer

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
DAY, K = date(2026, 1, 1), 5
USERS, ITEMS, ROWS = 60, 40, 3_000
Layout = Literal["clustered", "scattered"]


def users() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    age = rng.normal(40, 12, USERS).astype(np.float32)
    age[::7] = np.nan
    segment = np.array(["gold", "silver", None])[rng.integers(0, 3, USERS)]
    return pd.DataFrame({"user_id": np.arange(USERS) * 3 - 30, "age": age, "segment": segment})


def items() -> pd.DataFrame:
    """Each item has a twin of the same features, so that users' rows tie."""
    rng = np.random.default_rng(2)
    half = ITEMS // 2
    tags = [[f"t{tag}" for tag in rng.integers(0, 6, rng.integers(0, 5))] for _ in range(half)]
    price, brand = np.exp(rng.normal(size=half)), rng.integers(0, 9, half)
    features = pd.DataFrame({"price": price, "brand": brand, "tags": tags})
    return pd.concat([features, features], ignore_index=True).assign(item_id=[f"i{number}" for number in range(ITEMS)])


def rows() -> pd.DataFrame:
    """Rows in the order of users; some pairs stand there twice, and some of those with the same features."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "user_id": np.sort(rng.integers(0, USERS, ROWS)) * 3 - 30,
            "item_id": [f"i{number}" for number in rng.integers(0, ITEMS, ROWS)],
            "clicks": rng.integers(0, 4, ROWS).astype(np.int16),  # few values: many ties
        }
    )
    age = frame.merge(users(), on="user_id")["age"].fillna(40)
    frame["label"] = (rng.random(ROWS) < 1 / (1 + np.exp(-(frame["clicks"] - 1.5 + (age - 40) / 12)))).astype(np.int8)
    return frame


def write(frame: pd.DataFrame, folder: Path, *, files: int) -> Path:
    folder.mkdir(parents=True)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for number in range(files):
        start, end = len(frame) * number // files, len(frame) * (number + 1) // files
        pq.write_table(table.slice(start, end - start), folder / f"{number}.parquet", row_group_size=170)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with ids alone beside tables of users and items, and the same rows written out; in order of users, and shuffled."""
    folder = tmp_path_factory.mktemp("pairs")
    users().to_parquet(folder / "users.parquet")
    items().to_parquet(folder / "items.parquet")
    wide = rows().merge(users(), on="user_id").merge(items(), on="item_id").sort_values("user_id", kind="stable")
    for name, frame in (("joined", rows()), ("wide", wide)):
        write(frame, folder / name / "clustered", files=3)
        write(frame.sample(frac=1, random_state=0), folder / name / "scattered", files=3)
    return folder


def settings(data: Path, out: Path, *, form: str = "joined", layout: Layout = "clustered", **sections: Any) -> config.PairsSettings:
    side_tables = {"users": str(data / "users.parquet"), "items": str(data / "items.parquet")} if form == "joined" else {}
    values = {
        "pairs": {
            "path": str(data / form / layout),
            "numeric": ["clicks", "age", "price"],
            "categorical": ["segment", "brand"],
            "multivalued": ["tags"],
            "columns": {"price": {"log1p": True}, "age": {"indicator": True}},
            **side_tables,
        },
        "model": {"hidden": [16, 8]},
        "train": {"epochs": 2, "batch_size": 128, "learning_rate": 0.01},
        "rank": {"k": K},
        "table": {"path": str(out / "table")},
        "run": {"work": str(out / "work"), "shard_bytes": 20_000},
    }
    return config.PairsSettings.model_validate({**values, **{name: {**values[name], **changes} for name, changes in sections.items()}})


class Made(NamedTuple):
    """A bundle for each form of the rows, and what training on the joined form printed."""

    bundles: dict[str, Bundle]
    fitted: pairs_train.Fitted


@pytest.fixture(scope="module")
def made(while_in_process: Callable[[], AbstractContextManager[None]], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("bundles")
    told = settings(data, out, pairs={"test": str(data / "joined" / "scattered")})
    with while_in_process():
        fitted = pairs_train.train(told, open_feature_table(told, "path"), open_feature_table(told, "test"))
    wide = settings(data, out, form="wide")
    spec = pairs_features.fit_spec(wide, open_feature_table(wide, "path"))
    model = build(spec, wide.model, seed=1)
    written = bundle.save(out / "wide", model, spec, settings=wide.model_dump(mode="json"), window={}, metrics={})
    return Made({"joined": fitted.trained.bundle, "wide": written}, fitted)


def published(told: config.PairsSettings) -> pl.DataFrame:
    return pl.read_delta(told.table.path).filter(pl.col("as_of") == DAY).sort("user_id", "rank")


def expected(told: config.PairsSettings, made: Bundle) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every row's score by `Keras predict` and our raw output, and by pandas the best k of each user."""
    opened = open_feature_table(told, "score", made.spec)
    tables = pairs_features.write_side_tables(told, opened, made.spec).path
    reader = Reader(opened, made.spec, tables)
    frames: list[pd.DataFrame] = []
    model = made.keras_model()
    score = Scorer(made)
    for shard in cut_shards(opened, size=10**9):
        for batch, inputs in reader(shard.unit()):
            keras_inputs = [made.spec.normalise(inputs.dense), inputs.codes]
            raw = (
                SplitScorer(made, reader.side_tables)(*list(reader.parts(shard.unit()))[len(frames)][1:])
                if reader.side_tables
                else None
            )
            frames.append(
                pd.DataFrame(
                    {
                        "user_id": batch.columns.column("user_id").to_numpy(),
                        "item_id": batch.columns.column("item_id").to_pylist(),
                        "keras": model.predict(keras_inputs, verbose=0)[:, 0],
                        "raw": score(inputs.dense, inputs.codes) if raw is None else raw,
                    }
                )
            )
    everything = pd.concat(frames)
    order = everything.assign(worst=-everything["raw"]).sort_values(["user_id", "worst", "item_id"])
    return everything, order.drop_duplicates(["user_id", "item_id"]).groupby("user_id").head(K)


@pytest.mark.timeout(200)
def test_training_on_rows_joined_to_tables_learns_and_prints_metrics_of_the_test_rows(made: Made):
    fitted = made.fitted
    assert fitted.trained.examples["rows"] == ROWS
    assert fitted.rejected == {}
    assert 0.1 * ROWS < fitted.trained.examples["held_out"] < 0.3 * ROWS
    assert [record["phase"] for record in fitted.trained.history] == ["validate", "validate"]
    assert fitted.test is not None
    assert fitted.test["rows"] == ROWS
    assert fitted.test["auc"] > 0.75
    assert fitted.test.keys() >= {"accuracy", "precision", "recall", "f1", "auc", "loss"}


@pytest.mark.parametrize("form", ["joined", "wide"])
@pytest.mark.parametrize(
    ("layout", "shard_bytes", "actors"), [("clustered", 20_000, 2), ("scattered", 20_000, 1), ("scattered", 10**9, 2)]
)
def test_lists_and_scores_are_those_of_keras_and_pandas(
    made: Made, data: Path, tmp_path: Path, form: str, layout: Layout, shard_bytes: int, actors: int
):
    told = settings(data, tmp_path, form=form, layout=layout, run={"shard_bytes": shard_bytes, "actors": actors})
    model = made.bundles[form]
    opened = open_feature_table(told, "score", model.spec)
    assert len(cut_shards(opened, size=shard_bytes)) in ([1] if shard_bytes == 10**9 else range(8, 22))
    night = pairs_score.score(told, opened, model, as_of=DAY, all_scores=str(tmp_path / "all"))
    everything, best = expected(told, model)
    assert (night.rows, night.rejected, night.clustered) == (ROWS, {}, layout == "clustered" or shard_bytes == 10**9)

    lists = published(told)
    assert lists["user_id"].to_list() == best["user_id"].to_list()
    assert lists["item_id"].to_list() == best["item_id"].to_list()
    assert lists["rank"].to_list() == (best.groupby("user_id").cumcount() + 1).to_list()
    np.testing.assert_allclose(lists["score"].to_numpy(), best["keras"], atol=1e-5)
    assert best.duplicated(["user_id", "raw"]).any()  # there were ties to break

    scores = pl.read_parquet(tmp_path / "all" / "*.parquet").sort("user_id", "item_id", "score").to_pandas()
    wanted = everything.sort_values(["user_id", "item_id", "keras"])
    assert scores["item_id"].to_list() == wanted["item_id"].to_list()
    np.testing.assert_allclose(scores["score"], wanted["keras"], atol=1e-5)


def test_rows_that_cannot_be_scored_are_counted_and_stored_and_have_no_score(made: Made, data: Path, tmp_path: Path):
    frame = rows().head(400)
    frame["user_id"] = frame["user_id"].astype("Int64")
    frame.loc[3, "user_id"] = pd.NA
    frame.loc[4, "item_id"] = None
    frame.loc[5:7, "user_id"] = 10**6
    frame.loc[8, "item_id"] = ""
    frame.loc[9, "item_id"] = " "
    write(frame, tmp_path / "rows", files=1)
    told = settings(data, tmp_path, pairs={"score": str(tmp_path / "rows")})
    night = pairs_score.score(
        told,
        open_feature_table(told, "score", made.bundles["joined"].spec),
        made.bundles["joined"],
        as_of=DAY,
        all_scores=str(tmp_path / "all"),
    )
    reasons = {"no user_id": 1, "no item_id": 3, "user_id is not in pairs.users": 3}
    assert (night.rows, night.rejected, night.published.scored) == (400, reasons, 393)
    stored = pl.concat([pl.read_parquet(path) for path in tmp_path.glob("work/score_pairs-*/rejected-*.parquet")])
    assert sorted(stored["row"].to_list()) == [3, 4, 5, 6, 7, 8, 9]
    assert set(stored["path"]) == {str(tmp_path / "rows" / "0.parquet")}
    scores = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "all").iterdir())])
    assert scores["score"].is_null().to_list() == [3 <= row <= 9 for row in range(400)]


def test_a_second_run_does_nothing_and_a_lost_file_is_made_again(made: Made, data: Path, tmp_path: Path):
    told = settings(data, tmp_path, layout="scattered")
    model = made.bundles["joined"]

    def run(told: config.PairsSettings = told) -> pairs_score.PairsRun:
        return pairs_score.score(
            told, open_feature_table(told, "score", model.spec), model, as_of=DAY, all_scores=str(tmp_path / "all")
        )

    first = run()
    assert first.published.version is not None
    receipts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/receipts/*")}
    again = run()
    assert (again.published.version, again.published.seconds, again.rejected) == (None, 0.0, first.rejected)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/receipts/*")} == receipts
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copy2)
    elsewhere = run(settings(tmp_path / "copy", tmp_path, layout="scattered"))  # the same files under another path
    assert (elsewhere.published.version, elsewhere.published.seconds) == (None, 0.0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/*/receipts/*")} == receipts
    lost = [sorted((tmp_path / "all").iterdir())[1], next(tmp_path.glob("work/score_pairs-*/shard-00002.arrow"))]
    before = lost[0].read_bytes()
    for path in lost:
        path.unlink()
    run()
    assert lost[0].read_bytes() == before
    changed = [path.stem for path, written in receipts.items() if path.stat().st_mtime_ns != written]
    assert sorted(changed) == ["shard-00001", "shard-00002"]


def test_a_folder_of_other_scores_is_refused(made: Made, data: Path, tmp_path: Path):
    told = settings(data, tmp_path)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "shard-00000-other.parquet").touch()
    with pytest.raises(PublishError, match=r"must be empty or hold this run's scores, got shard-00000-other\.parquet\."):
        pairs_score.score(
            told,
            open_feature_table(told, "score", made.bundles["joined"].spec),
            made.bundles["joined"],
            as_of=DAY,
            all_scores=str(tmp_path / "all"),
        )


def test_a_bundle_of_other_rules_for_columns_is_refused(made: Made, data: Path, tmp_path: Path):
    told = settings(data, tmp_path, pairs={"scaling": {"scale": "minmax"}})
    with pytest.raises(BundleError, match=r"was trained with pairs\.scaling = "):
        pairs_score.check_bundle(made.bundles["joined"], told)
    with pytest.raises(BundleError, match=r"column 'age' must be as the model was trained: a number column of users"):
        open_feature_table(settings(data, tmp_path, form="wide"), "score", made.bundles["joined"].spec)


# ---- killed in the middle

# The verb on a Ray of two CPUs, its later shards slow enough to be killed in; the actor of the second shard kills itself, once.
SLOWLY = """
import functools, os, pathlib, runpy, signal, sys, time
from recsys.engine import connect
from recsys.pipelines import pairs_score

marker = pathlib.Path(sys.argv.pop(1))

def shard_task(*arguments):
    from recsys.pipelines.pairs_score import _shard_task
    score = _shard_task(*arguments)
    def task(name, unit):
        time.sleep(60 if unit["shard"] > 9 else 0.7)
        if unit["shard"] == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return score(name, unit)
    return task

pairs_score._shard_task = shard_task
connect.connect = functools.partial(connect.connect, cpus=2)
runpy.run_module("jobs.score_pairs", run_name="__main__", alter_sys=False)
"""


@pytest.mark.timeout(200)
def test_an_actor_and_the_driver_are_killed_and_the_same_command_ends_with_the_undisturbed_table(
    made: Made, data: Path, tmp_path: Path
):
    model = made.bundles["joined"]
    told = settings(data, tmp_path, layout="scattered")
    lines: list[str] = []
    for section, values in told.model_dump(mode="json", exclude_unset=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if key != "columns"]
    lines += ["[pairs.columns]", "price.log1p = true", "age.indicator = true"]
    (tmp_path / "pairs.toml").write_text("\n".join(lines))
    arguments = ["--config", str(tmp_path / "pairs.toml"), "--bundle", str(model.folder), "--as-of", DAY.isoformat()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def receipts() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("work/score_pairs-*/receipts/*.json")}

    log = tmp_path / "first.log"
    with log.open("w") as file:
        command = [sys.executable, "-c", SLOWLY, str(tmp_path / "marker"), *arguments]
        first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        while len(receipts()) < 3 or not any("00001" in path.stem for path in receipts()):
            assert first.poll() is None, log.read_text()
            time.sleep(0.05)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (tmp_path / "marker").exists()  # an actor was killed, and its shard done by another
    time.sleep(2)  # its actors end what they have begun
    before = receipts()
    shards = len(cut_shards(open_feature_table(told, "score", model.spec), size=told.run.shard_bytes))
    assert 3 <= len(before) < shards
    assert not (tmp_path / "table" / "_delta_log").exists()

    second = subprocess.run(
        [sys.executable, "-m", "jobs.score_pairs", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr
    after = receipts()
    assert len(after) == shards
    assert {path: after[path] for path in before} == before

    undisturbed = settings(data, tmp_path, layout="scattered", table={"path": str(tmp_path / "undisturbed")})
    pairs_score.score(undisturbed, open_feature_table(undisturbed, "score", model.spec), model, as_of=DAY)
    assert published(told).equals(published(undisturbed))
