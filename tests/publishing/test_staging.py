import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import DataError, PublishError
from recsys.publishing import staging
from tests.nights import NEXT, NIGHT, OTHER_RUN, RUN, SHARD_0, SHARD_1, audit, audit_rows, change, parts_on_disk, rows_of, stage


def test_the_receipt_says_what_was_staged(tmp_path: Path) -> None:
    (part,) = stage(tmp_path, SHARD_0)
    file = tmp_path / part["path"]
    assert part["path"].startswith(f"as_of=2017-12-01/part-00000-{RUN}-")
    assert (part["size"], part["rows"], part["users"]) == (file.stat().st_size, 3 + 2, 2)
    assert json.loads(json.dumps(part)) == part
    stats = json.loads(part["stats"])
    assert stats["numRecords"] == 5
    assert (stats["minValues"]["user_id"], stats["maxValues"]["user_id"]) == ("ann", "bob")
    assert (stats["minValues"]["score"], stats["maxValues"]["score"], stats["nullCount"]["score"]) == (0.5, 1.0, 2)
    assert "as_of" not in pq.read_schema(file).names


def test_the_same_rows_staged_again_are_the_same_part(tmp_path: Path) -> None:
    first, again = stage(tmp_path, SHARD_0)[0], stage(tmp_path, SHARD_0)[0]
    assert (first["path"], first["size"], first["stats"]) == (again["path"], again["size"], again["stats"])
    assert len(parts_on_disk(tmp_path)) == 1


def test_as_of_may_be_among_the_columns_staged(tmp_path: Path) -> None:
    rows = rows_of(SHARD_0)
    dated = rows.add_column(0, pa.field("as_of", pa.date32(), nullable=False), pa.array([NIGHT] * 5, pa.date32()))
    part = staging.stage(str(tmp_path), dated, as_of=NIGHT, run_id=RUN, shard=0)
    assert part["path"] == stage(tmp_path, SHARD_0)[0]["path"]


def test_rows_of_another_table_are_not_staged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'reason' is missing"):
        staging.stage(str(tmp_path), rows_of(SHARD_0).drop_columns(["reason"]), as_of=NIGHT, run_id=RUN, shard=0)
    assert parts_on_disk(tmp_path) == set()


def test_a_shard_without_rows_has_a_receipt_and_no_file(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, {}, SHARD_1)
    assert (parts[1]["rows"], parts[1]["users"], parts[1]["size"]) == (0, 0, 0)
    assert len(parts_on_disk(tmp_path)) == 2
    assert audit(tmp_path, parts).rows == 8


def test_a_process_killed_while_staging_leaves_no_part(tmp_path: Path) -> None:
    # The child stages the same part again and again; in its third write it kills itself when half of the bytes are out.
    program = """
import os, signal, sys
from datetime import date, timedelta
from pathlib import Path
import pyarrow.parquet as pq
from recsys.publishing import staging

class Half:
    def __init__(self, stream):
        self.stream = stream
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def write(self, content):
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)

real = Path.open
def half(file, mode="r"):
    return Half(real(file, mode)) if mode == "wb" else real(file, mode)

rows = pq.read_table(sys.argv[1])
for shard in range(3):
    if shard == 2:
        Path.open = half
    staging.stage(sys.argv[2], rows, as_of=date(2017, 12, 1), run_id="aaaa", shard=shard)
"""
    pq.write_table(rows_of(SHARD_0), tmp_path / "rows.parquet")
    table = tmp_path / "table"
    command = [sys.executable, "-c", program, str(tmp_path / "rows.parquet"), str(table)]
    child = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert len(parts_on_disk(table)) == 3, "the child was killed before it wrote"
    whole = sorted(table.glob("as_of=*/part-*"))
    assert [file.name[: len("part-00000")] for file in whole] == ["part-00000", "part-00001"]
    assert [pq.read_metadata(file).num_rows for file in whole] == [5, 5]


def test_audit_counts_rows_users_short_lists_and_sources(tmp_path: Path) -> None:
    counts = audit(tmp_path, stage(tmp_path, SHARD_0, SHARD_1))
    assert counts == staging.Audit(rows=3 + 2 + 3, users=2 + 1, short_users=1, sources={"own": 2 + 1 + 2, "popular": 1 + 1 + 1})


def test_audit_does_not_mind_the_order_of_rows(tmp_path: Path) -> None:
    rows = rows_of(SHARD_0).take(pa.array([4, 1, 0, 3, 2]))
    assert audit_rows(tmp_path, rows).users == 2


def test_audit_names_a_missing_part(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    (tmp_path / parts[1]["path"]).unlink()
    with pytest.raises(PublishError, match=r"part-00001-aaaa-.*Score again shard 1\."):
        audit(tmp_path, parts)
    assert staging.missing(str(tmp_path), parts) == [parts[1]]


def test_audit_names_a_truncated_part(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    os.truncate(tmp_path / parts[0]["path"], parts[0]["size"] - 1)
    with pytest.raises(PublishError, match=r"part-00000-aaaa-.*Score again shard 0\."):
        audit(tmp_path, parts)


@pytest.mark.parametrize("column", ["item_id", "reason"])
def test_audit_names_a_damaged_part_of_the_right_size(tmp_path: Path, column: str) -> None:
    # Letters in a text that compression leaves as it is: without checksums the text would just be another one.
    text = "The quick brown fox jumps over 13 lazy dogs"
    rows = change(rows_of(SHARD_1), column, ["a", "b", text])
    part = staging.stage(str(tmp_path), rows, as_of=NIGHT, run_id=RUN, shard=0)
    file = tmp_path / part["path"]
    file.write_bytes(file.read_bytes().replace(b"lazy", b"hazy", 1))  # the first is in the data, later ones in statistics
    assert text.replace("lazy", "hazy") in pq.read_table(file, partitioning=None)[column].to_pylist()
    with pytest.raises(PublishError, match=r"part-00000-aaaa-.*cannot be read.*Score shard 0 again"):
        audit(tmp_path, [part])


def test_audit_names_a_user_with_an_item_twice(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="user bob must have each item once, got tea twice"):
        audit_rows(tmp_path, rows_of({"ann": ["milk", "tea"], "bob": ["tea", "eggs", "tea"]}))


@pytest.mark.parametrize("ranks", [[1, 2, 4], [0, 1, 2], [1, 2, 2], [2, 3, 4]])
def test_audit_names_a_user_with_wrong_ranks(tmp_path: Path, ranks: list[int]) -> None:
    rows = change(rows_of({"ann": ["milk"], "bob": ["tea", "eggs", "milk"]}), "rank", [1, *ranks])
    with pytest.raises(PublishError, match=f"ranks of user bob must be .* got {', '.join(map(str, ranks))}"):
        audit_rows(tmp_path, rows)


def test_audit_refuses_more_than_k_items(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="user cid must have at most k = 2 items, got 3"):
        audit(tmp_path, stage(tmp_path, {"bob": ["tea"], **SHARD_1}), k=2)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_audit_refuses_a_score_that_is_no_number(tmp_path: Path, score: float) -> None:
    with pytest.raises(PublishError, match="scores must be finite or null"):
        audit_rows(tmp_path, change(rows_of(SHARD_1), "score", [None, score, 0.5]))


def test_statistics_stay_json_whatever_the_scores(tmp_path: Path) -> None:
    rows = change(rows_of(SHARD_1), "score", [float("nan"), float("inf"), 0.5])
    stats = staging.stage(str(tmp_path), rows, as_of=NIGHT, run_id=RUN, shard=0)["stats"]
    assert "NaN" not in stats
    assert "Infinity" not in stats
    assert json.loads(stats)["maxValues"]["score"] == 0.5


def test_audit_allows_null_scores_alone(tmp_path: Path) -> None:
    assert audit_rows(tmp_path, change(rows_of(SHARD_1), "score", [None] * 3)).rows == 3


def test_audit_refuses_two_runs_in_one_night(tmp_path: Path) -> None:
    first = stage(tmp_path, SHARD_0)
    second = staging.stage(str(tmp_path), rows_of(SHARD_1, OTHER_RUN), as_of=NIGHT, run_id=OTHER_RUN, shard=1)
    with pytest.raises(PublishError, match="one run_id, got aaaa, bbbb"):
        audit(tmp_path, [*first, second])


def test_audit_refuses_a_shard_staged_twice(tmp_path: Path) -> None:
    parts = stage(tmp_path, SHARD_0, SHARD_1)
    with pytest.raises(PublishError, match="every shard must be staged once, got 1 twice"):
        audit(tmp_path, [*parts, parts[1]])


def test_audit_refuses_a_part_of_another_night(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="must lie below as_of=2017-12-01/"):
        audit(tmp_path, stage(tmp_path, SHARD_0, as_of=NEXT))


def test_audit_refuses_a_night_without_rows(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="a night must have rows, got none in 2 parts"):
        audit(tmp_path, stage(tmp_path, {}, {}))


def test_audit_refuses_other_columns(tmp_path: Path) -> None:
    rows = rows_of({7: ["milk"]}, user_id=pa.int64())
    with pytest.raises(PublishError, match=r"must have columns .*user_id string.* got .*user_id int64.*Score shard 0 again"):
        audit_rows(tmp_path, rows)


def test_audit_refuses_a_receipt_of_other_counts(tmp_path: Path) -> None:
    (part,) = stage(tmp_path, SHARD_0)
    with pytest.raises(PublishError, match="must hold 5 rows of 3 users as its receipt says, got 5 of 2"):
        audit(tmp_path, [{**part, "users": 3}])
