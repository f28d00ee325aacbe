"""Users taken out of the table: no row, no file and no statistic of it names them, and all else stands as it was."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from deltalake import DeltaTable

from recsys.publishing import erase
from recsys.publishing.erase import Erased, erase_users, forget_history, holding, nights_with
from recsys.publishing.table import published_nights
from tests.nights import NEXT, NIGHT, OTHER_RUN, SHARD_0, SHARD_1, stage
from tests.publishing.test_table import by_polars, commit

ANN = pa.array(["ann", "nobody"])


def bytes_with(folder: Path, word: str) -> list[str]:
    """Files below a folder that hold the word: as it stands, or in a column once it is read."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            text = path.read_bytes()
            if path.suffix == ".parquet":
                text += str(pa.parquet.read_table(path, partitioning=None).to_pylist()).encode()
            if word.encode() in text:
                found.append(str(path.relative_to(folder)))
    return found


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two nights with ann in both, in one of them alone in her file; files that a commit removed, and some of a run given up."""
    table = tmp_path / "table"
    commit(table, stage(table, SHARD_0, SHARD_1))
    commit(table, stage(table, {"ann": ["tea"]}, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)
    commit(table, stage(table, {"ann": ["milk"]}, {"bob": ["tea"], "cid": ["eggs"]}, as_of=NEXT), as_of=NEXT)
    stage(table, SHARD_0, as_of=NEXT, run_id="cccc")
    return table


def without_ann(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row for row in rows if "ann" not in row]


def test_no_byte_below_the_table_names_the_user_and_the_others_lists_stand(table: Path) -> None:
    before, nights = by_polars(table), published_nights(str(table))
    assert len(bytes_with(table, "ann")) >= 4
    files, held = holding(str(table), ANN, {})
    assert files >= 8
    assert held
    assert nights_with(str(table), ANN, {}) == [Erased(NEXT, 1, 1), Erased(NIGHT, 1, 1)]
    erase_users(str(table), ANN, {})
    assert nights_with(str(table), ANN, {}) == []
    assert by_polars(table) == without_ann(before) != before
    assert holding(str(table), ANN, {})[1]  # the log still tells
    forget_history(str(table), {})
    assert holding(str(table), ANN, {})[1] == bytes_with(table, "ann") == []
    assert by_polars(table) == without_ann(before)
    told = published_nights(str(table))
    assert [(one.as_of, one.run_id) for one in told] == [(one.as_of, one.run_id) for one in nights]
    assert [one.model_version for one in told] == [one.model_version for one in nights]
    assert [one.published_utc for one in told] == [one.published_utc for one in nights]
    assert [one.rows for one in told] == [2, 3]
    assert DeltaTable(str(table)).metadata().configuration["delta.logRetentionDuration"] == "interval 30 days"


def test_again_there_is_nothing_to_erase_and_the_next_night_is_published(table: Path) -> None:
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    stands = by_polars(table)
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    assert by_polars(table) == stands
    nights = published_nights(str(table))
    commit(table, stage(table, SHARD_1, as_of=NEXT, run_id="dddd"), as_of=NEXT, run_id="dddd")
    assert [night.run_id for night in published_nights(str(table))] == ["dddd", nights[1].run_id]


@pytest.mark.parametrize("step", ["_commit", "reclaim", "remove_leftovers"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_broken_off_anywhere_and_begun_again_it_ends_the_same(
    table: Path, step: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = by_polars(table)
    nights = {night.as_of: night.published_utc for night in published_nights(str(table))}
    calls = 0
    whole = getattr(erase, step)

    def broken(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(erase, step, broken)
        with suppress(KeyboardInterrupt):
            erase_users(str(table), ANN, {})
            forget_history(str(table), {})
            assert step != "_commit"
            assert after
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    assert by_polars(table) == without_ann(before)
    assert bytes_with(table, "ann") == []
    assert {night.as_of: night.published_utc for night in published_nights(str(table))} == nights


def test_what_the_log_noted_before_an_older_checkpoint_is_kept(tmp_path: Path) -> None:
    table = tmp_path / "table"
    commit(table, stage(table, SHARD_1))  # without ann: no commit of the erasure would note it
    commit(table, stage(table, SHARD_1, as_of=NEXT, run_id=OTHER_RUN), as_of=NEXT, run_id=OTHER_RUN)
    DeltaTable(str(table)).create_checkpoint()  # as Delta makes one every hundred versions: a cleaner log may begin there
    commit(table, stage(table, SHARD_0, as_of=NEXT), as_of=NEXT)
    nights = {night.as_of: night.published_utc for night in published_nights(str(table))}
    assert None not in nights.values()
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    assert {night.as_of: night.published_utc for night in published_nights(str(table))} == nights
    assert bytes_with(table, "ann") == []
    log = sorted((table / "_delta_log").glob("*.json"))
    assert len(log) == len(nights) + 2  # a note of each night, and the two changes of how long the log lasts


def test_a_file_that_cannot_be_read_may_hold_anybody(table: Path) -> None:
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    (table / "of-another.parquet").write_bytes(b"no Parquet")
    assert holding(str(table), ANN, {})[1] == ["of-another.parquet"]


def test_where_all_rows_of_a_night_go_the_night_goes(tmp_path: Path) -> None:
    table = tmp_path / "table"
    commit(table, stage(table, {"ann": ["tea"]}))
    commit(table, stage(table, SHARD_1, as_of=NEXT), as_of=NEXT)
    erase_users(str(table), ANN, {})
    forget_history(str(table), {})
    assert [night.as_of for night in published_nights(str(table))] == [NEXT]
    assert bytes_with(table, "ann") == []
