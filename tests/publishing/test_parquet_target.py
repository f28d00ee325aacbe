"""Nights exported to a folder of Parquet, read by DuckDB as an analyst reads them: what is current is one whole night, always."""

import json
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from recsys.errors import ConfigError, PublishError
from recsys.publishing.erase import erase_users
from recsys.publishing.export import export
from tests.nights import NEXT, NIGHT, publish, rows_of
from tests.verbs import ROOT

THIRD = date(2017, 12, 3)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three nights of 40, 41 and 39 users."""
    for as_of, users in ((NIGHT, 40), (NEXT, 41), (THIRD, 39)):
        publish(tmp_path / "table", as_of, rows_of({f"user {number}": ["milk", "eggs"] for number in range(users)}), ids=pa.string())
    return tmp_path / "table"


def current(folder: Path) -> list[tuple[Any, ...]]:
    """User, rank and item of what current.json names, by DuckDB."""
    name = json.loads((folder / "current.json").read_text())["folder"]
    query = f"SELECT as_of, user_id, rank, item_id FROM read_parquet('{folder / name}/*.parquet') ORDER BY ALL"
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def published(table: Path, night: date) -> list[tuple[Any, ...]]:
    """The same of the table, by Polars."""
    rows = pl.scan_delta(str(table)).filter(pl.col("as_of") == night).select("as_of", "user_id", "rank", "item_id").collect()
    return sorted(rows.rows())


def test_the_current_folder_is_the_whole_night_and_the_one_before_stays(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    (folder / "mine").mkdir(parents=True)
    (folder / "2001-01-01-mine").mkdir()
    for night, left in ((NIGHT, 1), (NEXT, 2), (THIRD, 2)):
        done = export(str(table), f"parquet:{folder}", as_of=night, name="")
        assert current(folder) == published(table, night)
        assert done.rows == len(published(table, night))
        assert len([path for path in folder.iterdir() if path.is_dir() and "mine" not in path.name]) == left
    names = {path.name for path in folder.iterdir()}
    told = json.loads((folder / "current.json").read_text())
    assert told["as_of"] == "2017-12-03"
    assert names > {"mine", "2001-01-01-mine"}  # what no export made stays
    assert {name[:10] for name in names - {"current.json", "mine", "2001-01-01-mine"}} == {"2017-12-02", "2017-12-03"}
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert export(str(table), f"parquet:{folder}", as_of=None, name="").rows == 0  # the newest, once more: no file is touched
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == times
    assert current(folder) == published(table, THIRD)
    columns = set(pl.read_parquet(folder / told["folder"] / "*.parquet").columns)
    assert columns == set(pl.scan_delta(str(table)).collect_schema().names())


KILLED = """
import os, signal, sys
from recsys.publishing import changes, parquet_target
changes.BUCKET_ROWS = 20
write, count = parquet_target.write_file, 0
def stop(*told):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(*told)
parquet_target.write_file = stop
from datetime import date
from recsys.publishing.export import export
export(sys.argv[1], "parquet:" + sys.argv[2], as_of=date(2017, 12, 2), name="")
"""


@pytest.mark.parametrize("write", [1, 3, 5, 6])
def test_an_export_that_was_killed_leaves_the_night_before_and_the_same_command_ends_it(
    table: Path, tmp_path: Path, write: int
) -> None:
    folder = tmp_path / "lists"
    export(str(table), f"parquet:{folder}", as_of=NIGHT, name="")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(table), str(folder), str(write)], cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert current(folder) == published(table, NIGHT)
    export(str(table), f"parquet:{folder}", as_of=NEXT, name="")  # in one part, where the other made five
    assert current(folder) == published(table, NEXT)


def test_in_full_nothing_of_before_is_left(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    for night in (NIGHT, NEXT):
        export(str(table), f"parquet:{folder}", as_of=night, name="")
    gone = "user 7"
    erase_users(str(table), pa.array([gone]), {})
    again = export(str(table), f"parquet:{folder}", as_of=NEXT, name="")
    assert (again.rows, gone in str(current(folder))) == (0, True)  # the run that is current: no file is touched
    for number in (1, 2):
        assert export(str(table), f"parquet:{folder}", as_of=NEXT, name="", full=True).rows == 2 * 40
        assert current(folder) == published(table, NEXT)
        assert gone not in str(current(folder))
        assert {path.name for path in folder.iterdir()} == {"current.json", f"2017-12-02-run-2017-12-02-{number}"}
    assert export(str(table), f"parquet:{folder}", as_of=NEXT, name="").rows == 0
    export(str(table), f"parquet:{folder}", as_of=THIRD, name="")
    assert current(folder) == published(table, THIRD)


FULL_KILLED = """
import os, signal, sys
from datetime import date
from recsys.publishing.parquet_target import ParquetTarget
count = 0
def or_killed(real):
    def step(self, *told, **more):
        global count
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *told, **more)
    return step
ParquetTarget._say, ParquetTarget._remove = or_killed(ParquetTarget._say), or_killed(ParquetTarget._remove)
from recsys.publishing.export import export
export(sys.argv[1], "parquet:" + sys.argv[2], as_of=date(2017, 12, 2), name="", full=True)
"""


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_one_in_full_that_was_killed_is_ended_by_the_same_command(table: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "lists"
    for night in (NIGHT, NEXT):
        export(str(table), f"parquet:{folder}", as_of=night, name="")
    ended = subprocess.run([sys.executable, "-c", FULL_KILLED, str(table), str(folder), str(step)], cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert current(folder) == published(table, NEXT)
    export(str(table), f"parquet:{folder}", as_of=NEXT, name="", full=True)
    assert current(folder) == published(table, NEXT)
    assert len(list(folder.iterdir())) == 2


def test_what_cannot_be_is_one_sentence(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lists"
    with pytest.raises(PublishError, match=r"^--to parquet:.*: holds whole nights\. Leave --since out, or use jobs\.changes\."):
        export(str(table), f"parquet:{folder}", as_of=NEXT, since=NIGHT, name="")
    with pytest.raises(
        ConfigError, match=r"^--to parquet:: must begin with redis://, postgresql://, iceberg:// or parquet:, or be a file"
    ):
        export(str(table), "parquet:", as_of=NEXT, name="")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^--to = .*must be a folder that can be made"):
        export(str(table), f"parquet:{tmp_path / 'file'}", as_of=NEXT, name="")
    folder.mkdir()
    for damaged in (
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"folder": "../mine", "before": null}',
        b'{"folder": "2017-12-01-a", "before": ".."}',
    ):
        (folder / "current.json").write_bytes(damaged)
        with pytest.raises(PublishError, match=r"^--to parquet:.*: cannot take the lists: "):
            export(str(table), f"parquet:{folder}", as_of=NEXT, name="")
