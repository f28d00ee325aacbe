"""Nights exported to a real Redis, a real PostgreSQL and a file: what they hold is what Polars reads from the table."""

import gzip
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import redis

from recsys.errors import ConfigError, PublishError
from recsys.publishing import changes
from recsys.publishing.export import Exported, export
from recsys.publishing.table import take_back
from tests.nights import NEXT, NIGHT, listed, publish, rows_of
from tests.servers import postgres_server, redis_server
from tests.verbs import ROOT, Ended

THIRD = date(2017, 12, 3)
FIRST: dict[Any, list[str]] = {f"user {number}": ["milk", "eggs", f"tea {number % 3}"] for number in range(40)}
OF_THE_RUN = {"as_of", "run_id", "model_version", "carried_from"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three nights: in the second a user is new, one is gone, one has another list, all others stay; the third is the first again."""
    second = FIRST | {"new": ["salt"], "user 7": ["tea 1", "milk"]}
    del second["user 3"]
    for as_of, lists in ((NIGHT, FIRST), (NEXT, second), (THIRD, FIRST)):
        publish(tmp_path / "table", as_of, rows_of(lists), ids=pa.string())
    return tmp_path / "table"


def expected(table: Path, night: date) -> dict[str, list[dict[str, Any]]]:
    """The night's lists as Polars reads them, without what is of the run."""
    return {
        user: [{k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows] for user, rows in listed(table, night).items()
    }


def counts(done: Exported) -> tuple[int, int, int]:
    assert done.changes is not None
    return done.changes.upserts, done.changes.deletes, done.changes.same


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("servers") / "redis", password="much secret") as address:
        yield address


@pytest.fixture
def client(address: str) -> redis.Redis:
    found = redis.Redis.from_url(address, password="much secret", decode_responses=True)
    found.flushall()
    return found


def held(client: redis.Redis, name: str = "recommendations") -> dict[str, list[dict[str, Any]]]:
    keys = list(client.scan_iter(f"{name}:user:*"))
    values = {key.removeprefix(f"{name}:user:"): json.loads(client.get(key))["items"] for key in keys}  # type: ignore[arg-type]
    return {user: [{"user_id": user, **row} for row in rows] for user, rows in values.items()}


def to_redis(table: Path, address: str, as_of: date | None, **options: Any) -> Exported:
    return export(str(table), address, as_of=as_of, name="recommendations", password="much secret", **options)


def test_a_redis_holds_the_night_and_the_next_one_by_its_changes(table: Path, address: str, client: redis.Redis) -> None:
    client.set("recommendations:user:stale", json.dumps({"run_id": "old", "items": []}))  # of a time without a night's name
    client.set("other", "untouched")
    assert counts(to_redis(table, address, NIGHT)) == (40, 0, 0)
    assert held(client) == expected(table, NIGHT)
    assert json.loads(client.get("recommendations:night")) == {"as_of": "2017-12-01", "run_id": f"run-{NIGHT}"}  # type: ignore[arg-type]
    assert counts(to_redis(table, address, NEXT)) == (2, 1, 38)
    assert held(client) == expected(table, NEXT)
    assert counts(to_redis(table, address, NEXT)) == (0, 0, 40)  # again: nothing to do
    assert counts(to_redis(table, address, NEXT, full=True)) == (40, 0, 0)
    assert held(client) == expected(table, NEXT)
    assert (client.get("other"), client.get("recommendations:export")) == ("untouched", None)


def test_a_night_that_was_made_anew_or_taken_back_is_no_base_for_changes(table: Path, address: str, client: redis.Redis) -> None:
    to_redis(table, address, THIRD)
    take_back(str(table), to=NEXT)
    assert counts(to_redis(table, address, None)) == (40, 0, 0)  # the newest that stands, whole
    assert held(client) == expected(table, NEXT)


KILLED = """
import os, signal, sys
from recsys.publishing import changes, redis_target
changes.BUCKET_ROWS = 20
made = redis_target.redis.Redis.mset
count = 0
def mset(self, values):
    global count
    made(self, values)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
redis_target.redis.Redis.mset = mset
from datetime import date
from recsys.publishing.export import export
export(sys.argv[1], sys.argv[2], as_of=date.fromisoformat(sys.argv[3]), name="recommendations", password="much secret")
"""


def killed(table: Path, address: str, as_of: date) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(table), address, as_of.isoformat()], cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL


def test_an_export_that_was_killed_goes_on_where_it_was(
    table: Path, address: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(table, address, NIGHT)
    assert 0 < len(held(client)) < 40
    monkeypatch.setattr(changes, "BUCKET_ROWS", 20)
    done = to_redis(table, address, NIGHT)
    assert held(client) == expected(table, NIGHT)
    assert 0 < done.rows < 3 * 40  # two of its parts were written before


def test_after_a_killed_export_another_night_is_written_whole(table: Path, address: str, client: redis.Redis) -> None:
    to_redis(table, address, NIGHT)
    client.set("recommendations:export", json.dumps({"this": {"to": f"run-{NEXT}", "since": f"run-{NIGHT}"}, "parts": 0}))
    client.set("recommendations:user:user 7", json.dumps({"run_id": f"run-{NEXT}", "items": []}))  # it had written this
    assert counts(to_redis(table, address, THIRD)) == (40, 0, 0)  # by changes from the first night, equal to the third, that would stay
    assert held(client) == expected(table, THIRD)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("servers") / "postgres") as address:
        yield address


def in_database(database: str, name: str) -> dict[str, list[dict[str, Any]]]:
    with psycopg.connect(database, row_factory=psycopg.rows.dict_row) as connection:
        rows = connection.execute(f"SELECT * FROM {name} ORDER BY user_id, rank").fetchall()  # type: ignore[call-overload]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["user_id"], []).append(row)
    return found


def test_a_database_holds_the_night_and_the_next_one_by_its_changes(table: Path, database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA shop")
    for night, seen in ((NIGHT, (40, 0, 0)), (NEXT, (2, 1, 38)), (NEXT, (0, 0, 40)), (NIGHT, (2, 1, 38))):
        assert counts(export(str(table), database, as_of=night, name="shop.lists")) == seen
        assert in_database(database, "shop.lists") == expected(table, night)
        with psycopg.connect(database) as connection:
            assert connection.execute("SELECT * FROM shop.lists_night").fetchall() == [(night, f"run-{night}")]
    assert counts(export(str(table), database, as_of=NEXT, name="shop.lists", full=True)) == (40, 0, 0)
    assert in_database(database, "shop.lists") == expected(table, NEXT)


def test_ids_that_are_numbers_are_numbers_there(tmp_path: Path, database: str) -> None:
    publish(tmp_path / "numbers", NIGHT, rows_of({7: ["milk"], -3: ["tea", "eggs"]}, user_id=pa.int64()), ids=pa.int64())
    export(str(tmp_path / "numbers"), database, as_of=None, name="numbers")
    assert list(in_database(database, "numbers")) == [-3, 7]


def test_a_reader_sees_one_night_or_the_other_and_a_killed_export_changes_nothing(table: Path, database: str) -> None:
    export(str(table), database, as_of=NIGHT, name="seen")
    before = in_database(database, "seen")
    slow = """
import sys, time
from datetime import date
from recsys.publishing import postgres_target
was = postgres_target.parts_of
def parts_of(folder, what):
    if what == "deletes":
        print("writing", flush=True)
        time.sleep(60)
    return was(folder, what)
postgres_target.parts_of = parts_of
from recsys.publishing.export import export
export(sys.argv[1], sys.argv[2], as_of=date.fromisoformat(sys.argv[3]), name="seen")
"""
    command = [sys.executable, "-c", slow, str(table), database, NEXT.isoformat()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        assert in_database(database, "seen") == before  # in the middle of it
        process.kill()
    until = time.monotonic() + 30
    done = export(str(table), database, as_of=NEXT, name="seen")
    assert time.monotonic() < until
    assert counts(done) == (2, 1, 38)
    assert in_database(database, "seen") == expected(table, NEXT)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_file_has_a_line_a_user_and_says_who_has_no_list_any_more(table: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"lists.{ending}"

    def lines() -> list[dict[str, Any]]:
        text = gzip.decompress(file.read_bytes()).decode() if ending.endswith("gz") else file.read_text()
        return [json.loads(line) for line in text.splitlines()]

    export(str(table), str(file), as_of=NIGHT, name="")
    assert {line["user_id"]: [{"user_id": line["user_id"], **row} for row in line["items"]] for line in lines()} == expected(
        table, NIGHT
    )
    done = export(str(table), str(file), as_of=NEXT, since=NIGHT, name="")
    assert counts(done) == (2, 1, 38)
    assert {line["user_id"]: line["as_of"] for line in lines() if "items" in line} == {"new": "2017-12-02", "user 7": "2017-12-02"}
    assert [line for line in lines() if "items" not in line] == [{"user_id": "user 3", "deleted": True}]


def test_the_verb_says_what_it_wrote_and_how_fast(
    table: Path, address: str, client: redis.Redis, tmp_path: Path, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.toml").write_text(f'[shop]\nevents = "nowhere"\n[table]\npath = "{table}"\n')
    monkeypatch.setenv("SERVED_BY", "much secret")
    arguments = ("export", "--config", str(tmp_path / "shop.toml"), "--to", address, "--as-of", "2017-12-02")
    ended = run(*arguments, "--password-env", "SERVED_BY", "--name", "lists")
    words = " ".join(ended.out.split())
    assert ended.status == 0, ended.err
    assert words.startswith(f"In {address}: Night 2017-12-02, from nothing: 40 lists written, 0 deleted, 0 as they were; 117 rows in")
    assert words.endswith("rows/s.")
    assert held(client, "lists") == expected(table, NEXT)
    refused = run(*arguments, "--since", "2017-12-01")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "says itself which night it holds" in refused.err


@pytest.mark.parametrize(
    ("to", "error", "message"),
    [
        ("redis://:word@127.0.0.1:1/0", ConfigError, r"^--to: must hold no password, "),
        ("postgresql://shop@127.0.0.1:1/x?password=word", ConfigError, r"^--to: must hold no password, "),
        (
            "mysql://shop@127.0.0.1/x",
            ConfigError,
            r"^--to mysql://shop@127.0.0.1/x: must begin with redis://, postgresql://, iceberg:// or parquet:",
        ),
        ("parquet:s3://key:word@bucket/lists", ConfigError, r"^--to: must hold no password, "),
        ("lists.csv", ConfigError, r"^--to lists.csv: must begin with"),
        ("redis://127.0.0.1:1/0", PublishError, r"^--to redis://127.0.0.1:1/0: the Redis cannot take the lists: .*[Cc]onnect"),
        (
            "postgresql://shop@127.0.0.1:1/x",
            PublishError,
            r"^--to postgresql://shop@127.0.0.1:1/x: the PostgreSQL cannot take the lists: .*refused",
        ),
        ("/nowhere.jsonl", PublishError, r"night 2017-11-01 must be published to be exported; the newest are 2017-12-03, 2017-12-02"),
    ],
)
def test_what_cannot_be_is_one_sentence(table: Path, to: str, error: type[Exception], message: str) -> None:
    day = date(2017, 11, 1) if to == "/nowhere.jsonl" else None
    with pytest.raises(error, match=message) as caught:
        export(str(table), to, as_of=day, name="lists")
    assert "word" not in str(caught.value).replace("password", "")


def test_a_wrong_password_is_one_sentence(table: Path, address: str) -> None:
    with pytest.raises(PublishError, match=r"the Redis cannot take the lists: .*(password|[Aa]uthentication)"):
        export(str(table), address, as_of=None, name="lists", password="wrong")
