"""What runs that were given up leave below the table's root, and what clearing it away leaves alone."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recsys.engine.lease import leased
from recsys.publishing.delta import RECLAIM_HOURS, leftovers, remove_leftovers
from recsys.publishing.staging import missing
from tests.nights import NEXT, NIGHT, OTHER_RUN, SHARD_0, SHARD_1, parts_on_disk, stage
from tests.publishing.test_table import EXPECTED, by_polars, commit
from tests.verbs import Ended


def names(table: Path) -> set[str]:
    return {str(Path(info.path).relative_to(table)) for info in leftovers(str(table), {})}


def test_parts_that_no_commit_names_are_leftovers_and_those_that_stand_or_stood_are_not(tmp_path: Path) -> None:
    table = tmp_path / "table"
    assert names(table) == set()
    first = stage(table, SHARD_0, SHARD_1)
    assert names(table) == {part["path"] for part in first}  # where there is no table yet, all are
    commit(table, first)
    assert names(table) == set()
    commit(table, stage(table, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)  # the first run's are removed, and stay for readers
    (given_up,) = stage(table, SHARD_0, as_of=NEXT)
    (piece,) = [table / f"as_of={NEXT}" / f".part-00001-aaaa-12345678.parquet.{'0' * 32}"]
    piece.write_bytes(b"half of a part")
    (table / "notes.txt").write_text("of the shop")
    (table / f"as_of={NIGHT}" / "other.parquet").write_bytes(b"of another writer")
    assert names(table) == {given_up["path"], str(piece.relative_to(table))}

    before = by_polars(table)
    on_disk = parts_on_disk(table)
    remove_leftovers(str(table), leftovers(str(table), {}), {})
    assert on_disk - parts_on_disk(table) == {given_up["path"], str(piece.relative_to(table))}
    assert by_polars(table) == before
    assert {part["path"] for part in first} <= parts_on_disk(table)
    assert missing(str(table), [given_up]) == [given_up]  # a run that goes on from there scores that shard again


def test_what_a_commit_removed_long_ago_is_left_to_the_next_commit(tmp_path: Path) -> None:
    table = tmp_path / "table"
    first = stage(table, SHARD_0)
    commit(table, first)
    commit(table, stage(table, SHARD_1, run_id=OTHER_RUN), run_id=OTHER_RUN)
    long_ago = time.time() - (RECLAIM_HOURS + 1) * 3600
    os.utime(table / first[0]["path"], (long_ago, long_ago))
    assert names(table) == set()


def test_the_verb_clears_away_and_gives_way_to_a_run(tmp_path: Path, run: Callable[..., Ended]) -> None:
    table = tmp_path / "table"
    commit(table, stage(table, SHARD_0, SHARD_1))
    stage(table, SHARD_0, as_of=NEXT)
    file = tmp_path / "shop.toml"
    file.write_text(f'[shop]\nevents = "{tmp_path}/events"\n[table]\npath = "{table}"\n')
    shown = run("publish", "clean", "--config", str(file), "--dry-run")
    assert (shown.status, "Would remove: 1 files" in shown.out) == (0, True)
    assert len(names(table)) == 1
    code = f"""
import sys
from recsys.engine.lease import leased
with leased({str(table)!r}, {{}}, what="the night of 2017-12-02"):
    print("works", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "works\n"
        refused = run("publish", "clean", "--config", str(file))
        assert refused.status == 6
        assert "works on this table" in refused.err
        assert len(names(table)) == 1
    finally:
        other.communicate("")
    shown = run("publish", "clean", "--config", str(file))
    assert (shown.status, "Removed: 1 files" in shown.out) == (0, True)
    assert names(table) == set()
    assert by_polars(table) == EXPECTED
    with leased(str(table), {}, what="the next night"):
        pass


@pytest.mark.parametrize("name", ["part-00000-aaaa-12345678.parquet", "part-123456-run.1_x-12345678.parquet"])
def test_a_part_is_known_by_its_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "table" / "as_of=2017-12-01"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"")
    (folder / f"{name}.crc").write_bytes(b"")
    assert names(tmp_path / "table") == {f"as_of=2017-12-01/{name}"}
