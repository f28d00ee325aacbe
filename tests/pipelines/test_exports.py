"""`[[exports]]`: lists handed on at the end of a run, told where that failed, made up for by the next; gone back and erased there."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog

from recsys import config
from recsys.errors import ConfigError, PublishError
from recsys.pipelines.exports import check_exports, hand_on, hand_on_standing, refuse_failed
from recsys.pipelines.runs import NightRun
from tests.nights import NEXT, NIGHT, publish, rows_of
from tests.verbs import ROOT, Ended

Run = Callable[..., Ended]
NOWHERE = "redis://127.0.0.1:1/0"


def add(table: Path, as_of: date, users: int) -> None:
    publish(table, as_of, rows_of({f"user {number}": ["milk", "eggs"] for number in range(users)}), ids=pa.string())


def iceberg(tmp_path: Path) -> str:
    return f"iceberg://house/shop.lists?type=sql&uri=sqlite:///{tmp_path}/catalog.db&warehouse=file://{tmp_path}/warehouse"


def settings(tmp_path: Path, *places: str, more: str = "") -> Path:
    file = tmp_path / "shop.toml"
    exports = "".join(f'[[exports]]\nto = "{place}"\n{more}' for place in places)
    file.write_text(f'[shop]\nevents = "nowhere"\n[table]\npath = "{tmp_path}/table"\n{exports}')
    return file


def newest(folder: Path) -> pl.DataFrame:
    """What a folder of Parquet holds as current."""
    return pl.read_parquet(folder / json.loads((folder / "current.json").read_text())["folder"] / "*.parquet").sort("user_id", "rank")


def in_table(table: Path, night: date) -> pl.DataFrame:
    return pl.scan_delta(str(table)).filter(pl.col("as_of") == night).sort("user_id", "rank").collect()


def in_iceberg(tmp_path: Path) -> dict[Any, int]:
    """Night -> rows, by pyiceberg."""
    catalog = load_catalog("house", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db")
    rows = pl.from_arrow(catalog.load_table("shop.lists").scan().to_arrow())
    catalog.close()
    assert isinstance(rows, pl.DataFrame)
    return dict(rows.group_by("as_of").len().rows())


def test_one_place_that_fails_takes_nothing_from_the_others_and_is_told(tmp_path: Path) -> None:
    add(tmp_path / "table", NIGHT, 3)
    given = config.load(settings(tmp_path, f"parquet:{tmp_path}/first", NOWHERE, iceberg(tmp_path), f"{tmp_path}/lists.jsonl"))
    handed = hand_on(given.table.path, given.exports, storage_options={})
    assert list(handed) == [f"parquet:{tmp_path}/first", NOWHERE, "iceberg://house/shop.lists", f"{tmp_path}/lists.jsonl"]
    assert [place for place, said in handed.items() if said] == [NOWHERE]
    assert newest(tmp_path / "first").drop("as_of", strict=False).height == 6
    assert in_iceberg(tmp_path) == {NIGHT: 6}
    assert len((tmp_path / "lists.jsonl").read_text().splitlines()) == 3
    run = NightRun(str(NIGHT), "table", state="published", rows=6, users=3, model_version="m")
    run.exported(handed)
    assert run.sentence.endswith(f" {NOWHERE} still holds what was before: {handed[NOWHERE]}")
    assert run.remark == f"{NOWHERE} still holds what was before: {handed[NOWHERE]}"
    with pytest.raises(
        PublishError, match=rf"^Taken back, but {NOWHERE} still holds what was before: --to {NOWHERE}: the Redis cannot"
    ):
        refuse_failed(handed, done="Taken back")
    refuse_failed({"there": ""}, done="Taken back")


def test_a_run_that_finds_another_at_work_leaves_it_to_that_one(tmp_path: Path) -> None:
    add(tmp_path / "table", NIGHT, 3)
    given = config.load(settings(tmp_path, f"parquet:{tmp_path}/lists"))
    at_work = "import sys\nfrom recsys.engine.lease import leased\nwith leased(sys.argv[1], {}, what='a night'): print(); input()"
    command = [sys.executable, "-c", at_work, given.table.path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert hand_on_standing(given, what="handing on") == {}
        other.communicate(b"\n", timeout=60)
    assert not (tmp_path / "lists").exists()
    assert hand_on_standing(given, what="handing on") == {f"parquet:{tmp_path}/lists": ""}
    assert newest(tmp_path / "lists").height == 6


def test_going_back_is_handed_on(tmp_path: Path, run: Run) -> None:
    for night, users in ((NIGHT, 3), (NEXT, 4)):
        add(tmp_path / "table", night, users)
    file = settings(tmp_path, f"parquet:{tmp_path}/lists", iceberg(tmp_path))
    given = config.load(file)
    hand_on(given.table.path, given.exports, storage_options={})
    assert (newest(tmp_path / "lists").height, in_iceberg(tmp_path)) == (8, {NIGHT: 6, NEXT: 8})
    ended = run("publish", "rollback", "--config", str(file), "--to", str(NIGHT))
    assert ended.status == 0, ended.err
    assert (newest(tmp_path / "lists").height, in_iceberg(tmp_path)) == (6, {NIGHT: 6})
    settings(tmp_path, NOWHERE)
    add(tmp_path / "table", NEXT + timedelta(days=1), 4)
    failed = run("publish", "rollback", "--config", str(file), "--to", str(NIGHT))
    assert failed.status == 1
    assert f"The nights after {NIGHT} are taken back, but {NOWHERE} still holds what was before" in failed.err


@pytest.mark.parametrize(
    ("place", "more", "message"),
    [
        ("mysql://h/x", "", r"^--to mysql://h/x: must begin with"),
        ("redis://:word@h/0", "", r"^--to: must hold no password"),
        ("iceberg://house/lists", "", r"must be iceberg://CATALOG/NAMESPACE\.TABLE"),
        ("redis://h/0", 'password_env = "NOT_THERE"\n', r'^exports\.password_env = "NOT_THERE": the environment variable must hold'),
        ("redis://h/0", 'password_file = "/not/there"\n', r'^exports\.password_file = "/not/there": the file must hold a value'),
    ],
)
def test_what_is_no_place_is_said_before_the_night(tmp_path: Path, place: str, more: str, message: str) -> None:
    given = config.load(settings(tmp_path, place, more=more))
    with pytest.raises(ConfigError, match=message):
        check_exports(given.exports)


def test_a_place_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    twice = config.load(settings(tmp_path, NOWHERE, NOWHERE))
    with pytest.raises(ConfigError, match=rf"^exports: {NOWHERE} is named twice\. Remove one, or give it another name\.$"):
        check_exports(twice.exports)


def test_places_with_names_of_their_own_are_told_apart(tmp_path: Path) -> None:
    add(tmp_path / "table", NIGHT, 3)
    given = config.load(settings(tmp_path, NOWHERE, more='name = "lists"\n'))
    assert list(hand_on(given.table.path, given.exports, storage_options={})) == [f"{NOWHERE} as lists"]
