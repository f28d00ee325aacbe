import json
import os
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError

from recsys.errors import ConfigError, PublishError
from recsys.publishing import delta, staging
from recsys.publishing import table as table_module
from recsys.publishing.delta import TABLE_PROPERTIES, add_action, table_files
from recsys.publishing.staging import Part
from recsys.publishing.table import commit_night, published_nights, published_run, read_night, take_back
from recsys.schema import recommendations_schema
from recsys.storage import delta_location, filesystem
from tests.nights import NEXT, NIGHT, OTHER_RUN, RUN, SHARD_0, SHARD_1, STRING, parts_on_disk, rows_of, stage


def commit(table: Path, parts: list[Part], *, as_of: date = NIGHT, run_id: str = RUN, keep_nights: int = 30) -> int | None:
    return commit_night(
        str(table),
        parts,
        as_of=as_of,
        run_id=run_id,
        model_version="m1",
        user_id=STRING,
        item_id=STRING,
        keep_nights=keep_nights,
    )


def by_polars(table: Path) -> list[tuple[Any, ...]]:
    return pl.read_delta(str(table)).sort("as_of", "user_id", "rank").select("as_of", "user_id", "rank", "item_id", "score").rows()


def by_duckdb(table: Path) -> list[tuple[Any, ...]]:
    """What DuckDB sees in the files of the table's newest version; its Delta extension cannot be fetched without a network."""
    files = DeltaTable(str(table)).file_uris()
    query = "SELECT as_of, user_id, rank, item_id, score FROM read_parquet($files, hive_partitioning = true) ORDER BY ALL"
    with duckdb.connect() as connection:
        return connection.execute(query, {"files": files}).fetchall()


EXPECTED = [
    (NIGHT, "ann", 1, "milk", 1.0),
    (NIGHT, "ann", 2, "eggs", 0.5),
    (NIGHT, "ann", 3, "tea", None),
    (NIGHT, "bob", 1, "tea", 1.0),
    (NIGHT, "bob", 2, "milk", None),
    (NIGHT, "cid", 1, "eggs", 1.0),
    (NIGHT, "cid", 2, "milk", 0.5),
    (NIGHT, "cid", 3, "tea", None),
]


def test_polars_and_duckdb_read_what_was_published(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    commit(tmp_path, parts)
    assert by_polars(tmp_path) == EXPECTED
    assert by_duckdb(tmp_path) == EXPECTED
    published = pl.read_delta(str(tmp_path))
    assert published.columns == recommendations_schema(STRING, STRING).names
    assert published.filter(pl.col("rank") == 1)["sources"].to_list() == [["own"]] * 3


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    rows = rows_of({7: [30, 10], 2**40: [10]}, user_id=pa.int64(), item_id=pa.int64())
    part = staging.stage(str(tmp_path), rows, as_of=NIGHT, run_id=RUN, shard=0)
    types = {"user_id": pa.int64(), "item_id": pa.int64()}
    staging.audit(str(tmp_path), [part], as_of=NIGHT, k=2, **types)
    commit_night(str(tmp_path), [part], as_of=NIGHT, run_id=RUN, model_version="m1", keep_nights=3, **types)
    assert by_polars(tmp_path) == by_duckdb(tmp_path)
    assert by_polars(tmp_path) == [(NIGHT, 7, 1, 30, 1.0), (NIGHT, 7, 2, 10, None), (NIGHT, 2**40, 1, 10, None)]
    assert read_night(str(tmp_path), as_of=NIGHT, user_id=2**40)["item_id"].to_pylist() == [10]


def test_a_reader_never_sees_staged_parts(tmp_path: Path) -> None:
    stage(tmp_path, SHARD_0)
    assert published_run(str(tmp_path), as_of=NIGHT) is None
    assert published_nights(str(tmp_path)) == []
    commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    stage(tmp_path, {"ann": ["bread"]}, run_id=OTHER_RUN)
    stage(tmp_path, {"ann": ["bread"]}, as_of=NEXT)
    assert by_polars(tmp_path) == by_duckdb(tmp_path) == EXPECTED
    assert read_night(str(tmp_path), as_of=NIGHT).num_rows == len(EXPECTED)


def test_staging_other_rows_under_the_same_run_leaves_the_published_night_alone(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    other = stage(tmp_path, {"ann": ["bread"]}, SHARD_1)
    assert by_polars(tmp_path) == EXPECTED
    commit(tmp_path, other)  # shard 1 is the same part in both
    assert [row[1:4] for row in by_polars(tmp_path)] == [
        ("ann", 1, "bread"),
        ("cid", 1, "eggs"),
        ("cid", 2, "milk"),
        ("cid", 3, "tea"),
    ]
    log = (tmp_path / "_delta_log" / f"{2:020}.json").read_text().splitlines()
    touched = [json.loads(line)[action]["path"] for line in log for action in ("add", "remove") if action in json.loads(line)]
    assert len(touched) == len(set(touched)) == 2, "a path added and removed in one commit is read differently by readers"


def test_a_shard_without_rows_adds_nothing_to_the_night(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0, {}, SHARD_1))
    assert by_polars(tmp_path) == EXPECTED


def test_commit_replaces_only_its_night(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    version = commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT)
    next_night = [(NEXT, *row[1:]) for row in EXPECTED if row[1] == "cid"]
    assert by_polars(tmp_path) == EXPECTED + next_night

    parts = stage(tmp_path, {"dan": ["bread"]}, run_id=OTHER_RUN)
    assert commit(tmp_path, parts, run_id=OTHER_RUN) == (version or 0) + 1
    assert by_polars(tmp_path) == by_duckdb(tmp_path) == [(NIGHT, "dan", 1, "bread", None), *next_night]
    assert published_run(str(tmp_path), as_of=NIGHT) == OTHER_RUN
    assert published_run(str(tmp_path), as_of=NEXT) == RUN


def test_the_same_run_makes_no_second_commit(tmp_path: Path) -> None:
    version = commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    assert version == DeltaTable(str(tmp_path)).version()
    assert commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1)) is None
    assert DeltaTable(str(tmp_path)).version() == version


def test_commit_records_who_made_it(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    entry = DeltaTable(str(tmp_path)).history(1)[0]
    assert {key: entry[key] for key in ("as_of", "run_id", "model_version", "rows")} == {
        "as_of": "2017-12-01",
        "run_id": RUN,
        "model_version": "m1",
        "rows": 8,
    }


def test_commit_refuses_a_part_that_is_gone(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    (tmp_path / parts[0]["path"]).unlink()
    with pytest.raises(PublishError, match="Score again shard 0"):
        commit(tmp_path, parts)
    assert published_nights(str(tmp_path)) == []


def test_commit_refuses_a_table_of_other_id_types(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0))
    rows = rows_of({7: ["milk"]}, user_id=pa.int64())
    part = staging.stage(str(tmp_path), rows, as_of=NEXT, run_id=RUN, shard=0)
    with pytest.raises(PublishError, match=r"must have columns \(user_id int64 not null\), got \(user_id string not null\)\. Set"):
        commit_night(
            str(tmp_path),
            [part],
            as_of=NEXT,
            run_id=RUN,
            model_version="m1",
            user_id=pa.int64(),
            item_id=STRING,
            keep_nights=3,
        )
    assert [night.as_of for night in published_nights(str(tmp_path))] == [NIGHT]


def old_table(table: Path) -> None:
    """A table as it was made before reasons named categories, with one night of SHARD_0."""
    schema = recommendations_schema(STRING, STRING)
    old = schema.remove(schema.get_field_index("reason_category"))
    rows = rows_of(SHARD_0).drop_columns(["reason_category"])
    rows = rows.append_column(pa.field("as_of", pa.date32(), nullable=False), pa.array([NIGHT] * rows.num_rows))
    write_deltalake(str(table), rows.select(old.names).cast(old), partition_by=["as_of"], configuration=TABLE_PROPERTIES)


def test_a_night_is_published_into_a_table_of_before_a_column_came(tmp_path: Path) -> None:
    old_table(tmp_path)
    assert read_night(str(tmp_path), as_of=NIGHT)["reason_category"].to_pylist() == [None] * 5  # not there yet, and read
    parts = stage(tmp_path, SHARD_1, as_of=NEXT)
    assert commit(tmp_path, parts, as_of=NEXT) == 2  # 1 added the column
    query = "SELECT as_of, reason_category FROM read_parquet($files, hive_partitioning = true, union_by_name = true) ORDER BY ALL"
    expected = [*[(NIGHT, None)] * 5, (NEXT, "drinks"), *[(NEXT, None)] * 2]
    assert (
        pl.read_delta(str(tmp_path)).select("as_of", "reason_category").sort("as_of", "reason_category", nulls_last=True).rows()
        == expected
    )
    with duckdb.connect() as connection:
        assert connection.execute(query, {"files": DeltaTable(str(tmp_path)).file_uris()}).fetchall() == expected
    assert by_polars(tmp_path) == [*EXPECTED[:5], *((NEXT, *row[1:]) for row in EXPECTED[5:])]
    for night in (NIGHT, NEXT):
        assert read_night(str(tmp_path), as_of=night).schema.equals(recommendations_schema(STRING, STRING))
    assert commit(tmp_path, parts, as_of=NEXT) is None
    assert (
        commit(tmp_path, stage(tmp_path, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN) == 3
    )  # the old night anew, and no column twice
    assert [(night.as_of, night.version) for night in published_nights(str(tmp_path))] == [(NEXT, 2), (NIGHT, 3)]


def test_two_nights_at_once_add_a_column_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_table(tmp_path)
    meanwhile(monkeypatch, lambda: commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT))
    parts = stage(tmp_path, SHARD_1, run_id=OTHER_RUN)
    assert commit(tmp_path, parts, run_id=OTHER_RUN) == 3
    assert DeltaTable(str(tmp_path)).schema().to_json().count("reason_category") == 1
    assert [row[:3] for row in by_polars(tmp_path)] == [(night, "cid", rank) for night in (NIGHT, NEXT) for rank in (1, 2, 3)]


def test_a_column_that_must_have_values_is_not_added(tmp_path: Path) -> None:
    schema = recommendations_schema(STRING, STRING)
    DeltaTable.create(str(tmp_path), schema.remove(schema.get_field_index("reason_kind")), partition_by=["as_of"])
    with pytest.raises(PublishError, match=r"must have columns \(reason_kind string not null\), got \(as_of"):
        commit(tmp_path, stage(tmp_path, SHARD_0))


def test_commit_refuses_a_table_with_other_partitions(tmp_path: Path) -> None:
    DeltaTable.create(str(tmp_path), recommendations_schema(STRING, STRING))
    with pytest.raises(PublishError, match="must be partitioned by as_of, got no partitions"):
        commit(tmp_path, stage(tmp_path, SHARD_0))


def meanwhile(monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    """Let `other` happen once, after the next commit has opened the table and before it writes."""
    real = table_module.check_table

    def checked(*args: Any, **named: Any) -> None:
        monkeypatch.setattr(table_module, "check_table", real)
        other()
        real(*args, **named)

    monkeypatch.setattr(table_module, "check_table", checked)


@pytest.mark.parametrize("stands", [False, True])
def test_two_runs_of_one_night_never_stand_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stands: bool) -> None:
    if stands:
        commit(tmp_path, stage(tmp_path, {"zoe": ["tea"]}, run_id="zzzz"), run_id="zzzz")
    else:
        commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT)
    other = stage(tmp_path, SHARD_1, run_id=OTHER_RUN)
    parts = stage(tmp_path, SHARD_0)
    meanwhile(monkeypatch, lambda: commit(tmp_path, other, run_id=OTHER_RUN))
    with pytest.raises(PublishError, match="published by another run during this commit"):
        commit(tmp_path, parts)
    assert read_night(str(tmp_path), as_of=NIGHT)["run_id"].unique().to_pylist() == [OTHER_RUN]


def test_a_commit_gives_way_to_another_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, stage(tmp_path, {"zoe": ["tea"]}, as_of=NEXT, run_id="zzzz"), as_of=NEXT, run_id="zzzz")
    other = stage(tmp_path, SHARD_1, as_of=NEXT)
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    meanwhile(monkeypatch, lambda: commit(tmp_path, other, as_of=NEXT))
    commit(tmp_path, parts)
    assert [(night.as_of, night.run_id, night.rows) for night in published_nights(str(tmp_path))] == [
        (NEXT, RUN, 3),
        (NIGHT, RUN, 8),
    ]


def test_old_nights_are_removed_but_staged_parts_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "RECLAIM_HOURS", 0)
    days = [date(2017, 12, day) for day in (1, 2, 3, 4)]
    old, *_ = [stage(tmp_path, SHARD_0, as_of=day) for day in days]
    fresh = stage(tmp_path, {"ann": ["new"]}, as_of=days[0], run_id="running")
    aged = stage(tmp_path, {"ann": ["aged"]}, as_of=date(2017, 12, 9), run_id="running")
    os.utime(tmp_path / aged[0]["path"], (0, 0))
    for day in days:
        commit(tmp_path, stage(tmp_path, SHARD_0, as_of=day), as_of=day, keep_nights=2)
    assert [night.as_of for night in published_nights(str(tmp_path))] == [days[3], days[2]]
    assert {row[0] for row in by_polars(tmp_path)} == {days[2], days[3]}
    left = parts_on_disk(tmp_path)
    assert old[0]["path"] not in left
    assert {fresh[0]["path"], aged[0]["path"]} <= left
    assert len(left) == 2 + 2


def test_a_running_night_may_stage_again_what_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = stage(tmp_path, SHARD_0)
    commit(tmp_path, parts)
    commit(tmp_path, stage(tmp_path, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)
    os.utime(tmp_path / parts[0]["path"], (0, 0))
    stage(tmp_path, SHARD_0)  # the first run again, under the name of the part that was removed
    real = DeltaTable.vacuum

    def vacuum_later(table: DeltaTable, _hours: int, **named: Any) -> list[str]:
        return real(table, 0, **named)  # as if RECLAIM_HOURS had passed since the removal

    monkeypatch.setattr(DeltaTable, "vacuum", vacuum_later)
    commit(tmp_path, stage(tmp_path, SHARD_0, as_of=NEXT), as_of=NEXT)
    assert staging.missing(str(tmp_path), parts) == []


def test_a_superseded_night_can_be_restored_until_it_is_reclaimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    before = commit(tmp_path, parts)
    for part in parts:
        os.utime(tmp_path / part["path"], (0, 0))  # what counts is when a part was removed, not when it was written
    commit(tmp_path, stage(tmp_path, {"dan": ["bread"]}, run_id=OTHER_RUN), run_id=OTHER_RUN)
    commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT, keep_nights=1)
    assert len(parts_on_disk(tmp_path)) == 2 + 1 + 1, "RECLAIM_HOURS have not passed"
    DeltaTable(str(tmp_path)).restore(before or 0)
    assert by_polars(tmp_path) == EXPECTED

    monkeypatch.setattr(delta, "RECLAIM_HOURS", 0)
    commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT)
    assert len(parts_on_disk(tmp_path)) == 2 + 1, "the restored night and the next; the superseded run is gone"
    assert by_polars(tmp_path)[: len(EXPECTED)] == EXPECTED


def test_removed_parts_are_reclaimed_after_a_checkpoint_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0))
    commit(tmp_path, stage(tmp_path, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)
    DeltaTable(str(tmp_path)).create_checkpoint()
    monkeypatch.setattr(delta, "RECLAIM_HOURS", 0)
    commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT), as_of=NEXT)
    assert len(parts_on_disk(tmp_path)) == 2


def test_reclaiming_adds_no_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "RECLAIM_HOURS", 0)
    commit(tmp_path, stage(tmp_path, SHARD_0))
    parts = stage(tmp_path, SHARD_1, run_id=OTHER_RUN)
    version = commit(tmp_path, parts, run_id=OTHER_RUN)
    assert commit(tmp_path, parts, run_id=OTHER_RUN) is None
    assert DeltaTable(str(tmp_path)).version() == version


def test_a_night_older_than_those_kept_is_refused(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0, as_of=NEXT), as_of=NEXT)
    with pytest.raises(PublishError, match="2017-12-01 is older than the newest 1, which are kept"):
        commit(tmp_path, stage(tmp_path, SHARD_0), keep_nights=1)
    assert [night.as_of for night in published_nights(str(tmp_path))] == [NEXT]


def test_nights_tell_run_model_rows_version_and_time(tmp_path: Path) -> None:
    started = time.time()
    first = commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    second = commit(tmp_path, stage(tmp_path, SHARD_1, as_of=NEXT, run_id=OTHER_RUN), as_of=NEXT, run_id=OTHER_RUN)
    newest, oldest = published_nights(str(tmp_path))
    assert (newest.as_of, newest.run_id, newest.model_version, newest.rows, newest.version) == (NEXT, OTHER_RUN, "m1", 3, second)
    assert (oldest.as_of, oldest.run_id, oldest.rows, oldest.version) == (NIGHT, RUN, 8, first)
    assert oldest.published_utc is not None
    assert -1 < oldest.published_utc.timestamp() - started < 60


def test_a_run_published_again_tells_its_newest_version(tmp_path: Path) -> None:
    commit(tmp_path, stage(tmp_path, SHARD_0))
    commit(tmp_path, stage(tmp_path, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)
    version = commit(tmp_path, stage(tmp_path, SHARD_0))
    assert [(night.run_id, night.version) for night in published_nights(str(tmp_path))] == [(RUN, version)]


def test_a_night_that_something_else_wrote_to_is_named_and_can_be_published_again(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0)
    commit(tmp_path, parts)
    stranger = add_action(stage(tmp_path, SHARD_1, run_id="zzzz")[0], NIGHT)
    DeltaTable(str(tmp_path)).create_write_transaction([stranger], "append", recommendations_schema(STRING, STRING), ["as_of"])
    with pytest.raises(PublishError, match="night 2017-12-01 must be of one run, got aaaa, zzzz"):
        published_run(str(tmp_path), as_of=NIGHT)
    commit(tmp_path, parts)
    assert published_run(str(tmp_path), as_of=NIGHT) == RUN
    assert read_night(str(tmp_path), as_of=NIGHT).num_rows == 5


def test_rollback_takes_back_later_nights_in_one_commit_and_leaves_the_others(tmp_path: Path) -> None:
    days = [NIGHT - timedelta(days=1), NIGHT, NEXT, NEXT + timedelta(days=1)]
    for number, day in enumerate(days):
        commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1, as_of=day, run_id=f"run{number}"), as_of=day, run_id=f"run{number}")
    rows, version = by_polars(tmp_path), DeltaTable(str(tmp_path)).version()
    reader = pl.scan_delta(str(tmp_path), version=version)
    assert take_back(str(tmp_path), to=NIGHT) == days[:1:-1]
    table = DeltaTable(str(tmp_path))
    assert (table.version(), table.history(1)[0]["rollback_to"]) == (version + 1, "2017-12-01")
    assert [night.as_of for night in published_nights(str(tmp_path))] == [NIGHT, days[0]]
    assert by_polars(tmp_path) == by_duckdb(tmp_path) == [row for row in rows if row[0] <= NIGHT]
    assert len(reader.collect()) == len(rows)  # who reads what was there before is not disturbed

    assert take_back(str(tmp_path), to=NIGHT) == []
    assert DeltaTable(str(tmp_path)).version() == version + 1
    commit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1, as_of=NEXT, run_id="run2"), as_of=NEXT, run_id="run2")
    assert [night.run_id for night in published_nights(str(tmp_path))] == ["run2", "run1", "run0"]


def test_rollback_goes_to_a_published_night_alone(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="night 2017-12-01 must be published to go back to it, got no nights"):
        take_back(str(tmp_path), to=NIGHT)
    commit(tmp_path, stage(tmp_path, SHARD_0))
    with pytest.raises(PublishError, match="night 2017-12-02 must be published to go back to it, got 2017-12-01"):
        take_back(str(tmp_path), to=NEXT)


def test_rollback_gives_way_to_a_night_that_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day, run in ((NIGHT, "one"), (NEXT, "two")):
        commit(tmp_path, stage(tmp_path, SHARD_0, as_of=day, run_id=run), as_of=day, run_id=run)
    between = NIGHT - timedelta(days=1)
    once = [lambda: commit(tmp_path, stage(tmp_path, SHARD_0, as_of=between, run_id="old"), as_of=between, run_id="old")]
    opened = table_files

    def files(table: DeltaTable) -> list[dict[str, Any]]:
        found = opened(table)
        if once:
            once.pop()()
        return found

    monkeypatch.setattr(table_module, "table_files", files)
    assert take_back(str(tmp_path), to=NIGHT) == [NEXT]
    assert [night.as_of for night in published_nights(str(tmp_path))] == [NIGHT, between]


def test_read_returns_one_user_by_rank(tmp_path: Path) -> None:
    part = staging.stage(str(tmp_path), rows_of(SHARD_0).take(pa.array([4, 2, 0, 1, 3])), as_of=NIGHT, run_id=RUN, shard=0)
    commit(tmp_path, [part])
    night = read_night(str(tmp_path), as_of=NIGHT)
    assert night.schema.equals(recommendations_schema(STRING, STRING))
    assert night["user_id"].to_pylist() == ["ann"] * 3 + ["bob"] * 2
    one = read_night(str(tmp_path), as_of=NIGHT, user_id="bob")
    assert list(zip(one["rank"].to_pylist(), one["item_id"].to_pylist(), strict=True)) == [(1, "tea"), (2, "milk")]
    assert read_night(str(tmp_path), as_of=NIGHT, user_id="nobody").num_rows == 0


def test_read_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="night 2017-12-01 must be published to be read; there are none"):
        read_night(str(tmp_path / "none"), as_of=NIGHT)
    commit(tmp_path, stage(tmp_path, SHARD_0))
    with pytest.raises(PublishError, match="the newest is 2017-12-01"):
        read_night(str(tmp_path), as_of=NEXT)
    with pytest.raises(PublishError, match="user ids are string, got 7"):
        read_night(str(tmp_path), as_of=NIGHT, user_id=7)


def test_a_path_may_be_relative_a_uri_or_hold_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("var/my table", f"file://{tmp_path}/other"):
        part = staging.stage(path, rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0)
        commit_night(
            path,
            [part],
            as_of=NIGHT,
            run_id=RUN,
            model_version="m1",
            user_id=STRING,
            item_id=STRING,
            keep_nights=3,
        )
        assert read_night(path, as_of=NIGHT).num_rows == 5
        assert published_run(path, as_of=NIGHT) == RUN
    assert {path.name for path in tmp_path.iterdir()} == {"var", "other"}


def test_an_object_store_gets_the_options_in_both_dialects() -> None:
    options = {"region": "eu-west-1", "endpoint": "http://localhost:9000"}
    store, root = filesystem("s3://bucket/shop/table/", options)
    assert isinstance(store, pafs.S3FileSystem)
    assert (store.region, root) == ("eu-west-1", "bucket/shop/table")
    assert delta_location("s3://bucket/shop/table", options) == (
        "s3://bucket/shop/table",
        {"aws_region": "eu-west-1", "aws_endpoint": "http://localhost:9000", "aws_allow_http": "true"},
    )
    with pytest.raises(ConfigError, match="may be region and endpoint, got 'secret'"):
        filesystem("s3://bucket/table", {"secret": "x"})


def test_a_commit_whose_answer_was_lost_is_told_as_the_commit_that_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, real, calls = tmp_path / "table", DeltaTable.create_write_transaction, 0

    def lost(self: DeltaTable, *arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        real(self, *arguments, **options)
        raise CommitFailedError("the store did it, and tells of another version that is there")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    assert commit(table, stage(table, SHARD_0, SHARD_1)) == 1
    assert calls == 1
    assert by_polars(table) == EXPECTED
