import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import PairsSettings
from recsys.data.row_groups import row_groups
from recsys.features.feature_table import FeatureTable, open_feature_table
from recsys.features.reader import Shard, cut_shards, read_shard_rows
from tests.features.test_feature_table import csv_file, opened, table, write

NAMED: dict[str, Any] = {"numeric": ("price",), "categorical": ("brand",)}


def layout(
    folder: Path, files: Sequence[Sequence[Sequence[Any]]], *, statistics: bool = True, key: pa.DataType | None = None
) -> FeatureTable:
    """Rows whose users stand in files of row groups as given; their prices count the rows."""
    number = 0
    for place, groups in enumerate(files):
        schema = pa.schema([("user_id", key or pa.int64()), ("item_id", pa.int64()), ("price", pa.float64())])
        with pq.ParquetWriter(folder / f"{place:05d}.parquet", schema, write_statistics=statistics) as writer:
            for users in groups:
                size = len(users)
                columns = [
                    pa.array(users, schema.field(0).type),
                    pa.array([1] * size, pa.int64()),
                    pa.array(np.arange(number, number + size, dtype=np.float64)),
                ]
                writer.write_table(pa.table(columns, schema=schema), row_group_size=max(size, 1))
                number += size
    return opened(folder, "score", categorical=())


def users_of(rows: FeatureTable, shard: Shard) -> list[Any]:
    return [user for batch in read_shard_rows(rows, shard.unit()) for user in batch.columns.column("user_id").to_pylist()]


def check_cut(rows: FeatureTable, size: int) -> tuple[Shard, ...]:
    """The shards, after everything that must hold of any of them was checked against the rows."""
    shards = cut_shards(rows, size=size)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    groups = [(group.path, group.number) for shard in shards for group in shard.groups]
    everything = row_groups(rows.source, rows.columns_read)
    assert sorted(groups) == [(group.path, group.number) for group in everything]  # each in one shard
    for shard in shards:
        assert len(shard.groups) == 1 or sum(group.size for group in shard.groups) <= size
    for before, after in pairwise(shards):  # no room was left
        assert sum(group.size for group in before.groups) + after.groups[0].size > size
    seen = [users_of(rows, shard) for shard in shards]
    for shard, users in zip(shards, seen, strict=True):
        unit = shard.unit()
        present = [user for user in users if user is not None]
        if unit["low"] is not None and present:
            assert unit["low"] == min(present)
            assert unit["high"] == max(present)
        if shard.shared is None:
            continue
        elsewhere = {user for other, theirs in zip(shards, seen, strict=True) if other is not shard for user in theirs}
        alone = set(present) - set(shard.shared)
        assert not alone & elsewhere
    return shards


GROUPS = st.lists(st.lists(st.lists(st.integers(-3, 12), max_size=4), min_size=1, max_size=3), min_size=1, max_size=4)


@given(GROUPS, st.booleans(), st.sampled_from([1, 400, 1000, 10**6]), st.booleans())
def test_shards_hold_every_row_group_once_and_share_no_user_unknowingly(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[list[int]]], in_order: bool, size: int, strings: bool
) -> None:
    if not any(users for groups in files for users in groups):
        return
    if in_order:
        users = iter(sorted(user for groups in files for group in groups for user in group))
        files = [[[next(users) for _ in group] for group in groups] for groups in files]
    named: list[list[list[Any]]] = (
        [[[f"u{user + 3:02d}" for user in group] for group in groups] for groups in files] if strings else cast(Any, files)
    )
    rows = layout(tmp_path_factory.mktemp("rows"), named, key=pa.string() if strings else None)
    shards = check_cut(rows, size)
    if in_order:
        assert all(shard.shared is not None and len(shard.shared) <= 2 for shard in shards)


@given(GROUPS, st.sampled_from([1, 600, 10**6]))
def test_rows_are_read_with_their_numbers_within_their_files(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[list[int]]], size: int
) -> None:
    if not any(users for groups in files for users in groups):
        return
    rows = layout(tmp_path_factory.mktemp("rows"), files)
    whole = {file.path: pq.read_table(file.path).column("price").to_pylist() for file in rows.source.files}
    count = 0
    for shard in cut_shards(rows, size=size):
        for batch in read_shard_rows(rows, shard.unit()):
            last = batch.first_row + batch.columns.num_rows
            assert batch.columns.column("price").to_pylist() == whole[batch.path][batch.first_row : last]
            count += batch.columns.num_rows
    assert count == rows.source.rows


def test_users_in_order_without_seams_share_nothing(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 1], [2, 3]], [[4, 5]]])
    assert [shard.shared for shard in check_cut(rows, 1)] == [(), (), ()]


def test_a_user_on_both_sides_of_a_seam_is_shared_by_the_shards_beside_it(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 2], [2, 2]], [[2, 3]], [[4, 5]]])
    assert [shard.shared for shard in check_cut(rows, 1)] == [(2,), (2,), (2,), ()]


def test_files_in_another_order_than_their_users_are_in_order_nonetheless(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[7, 8], [8, 9]], [[1, 2]], [[3, 6]]])
    shards = check_cut(rows, 1)
    assert [shard.shared for shard in shards] == [(), (), (8,), (8,)]
    assert [users_of(rows, shard)[0] for shard in shards] == [1, 3, 7, 8]


def test_an_empty_row_group_does_not_hide_the_order(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 2]], [[]], [[3, 4]]])
    write(tmp_path / "00001.parquet", pq.read_table(tmp_path / "00001.parquet"))
    assert [shard.shared for shard in check_cut(rows, 1)] == [(), ()]


def test_users_out_of_order_may_be_anywhere(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 5], [3, 9]]])
    assert [shard.shared for shard in check_cut(rows, 1)] == [None, None]


def test_without_statistics_users_may_be_anywhere(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 2], [3, 4]]], statistics=False)
    assert [shard.shared for shard in check_cut(rows, 1)] == [None, None]


def test_one_row_group_without_a_known_user_makes_them_scattered(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 2], [None, None], [3, 4]]])
    assert {shard.shared for shard in check_cut(rows, 1)} == {None}


@pytest.mark.parametrize(
    ("files", "statistics"),
    [([[[5, 9], [1, 7]]], True), ([[[1]], [[2]]], False), ([[[1, None], [None]]], True), ([[[3, 4]], [[1, 2]]], True)],
)
def test_one_shard_shares_nothing_and_its_bounds_hold_whatever_the_order(
    tmp_path: Path, files: list[list[list[int]]], statistics: bool
) -> None:
    rows = layout(tmp_path, files, statistics=statistics)
    (shard,) = check_cut(rows, 10**6)
    assert shard.shared == ()


def test_csv_files_are_one_row_group_each_without_bounds(tmp_path: Path) -> None:
    for name in "ab":
        csv_file(tmp_path / f"{name}.csv", ["user_id", "item_id", "price", "brand", "label"], [[1, "x", 0.5, "a", 0]])
    rows = opened(tmp_path, format="csv")
    assert [shard.unit() for shard in cut_shards(rows, size=10**9)] == [
        {
            "shard": 0,
            "runs": [(str(tmp_path / "a.csv"), [0], 0), (str(tmp_path / "b.csv"), [0], 0)],
            "shared": [],
            "low": None,
            "high": None,
        }
    ]
    assert [shard.shared for shard in cut_shards(rows, size=1)] == [None, None]


def test_unsigned_and_dictionary_ids_have_bounds(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1, 2**31], [2**31, 2**32 - 1]]], key=pa.uint32())
    assert [shard.shared for shard in check_cut(rows, 1)] == [(2**31,), (2**31,)]
    write(tmp_path / "d" / "a.parquet", table(4, user_id=pa.array(["a", "b", "b", "ü"]).dictionary_encode()), row_group_size=2)
    assert [shard.shared for shard in cut_shards(opened(tmp_path / "d", "score"), size=1)] == [("b",), ("b",)]


def test_a_constant_column_counts_as_many_bytes_as_any_other(tmp_path: Path) -> None:
    rows = 200_000
    constant, random = np.zeros(rows), np.random.default_rng(0).normal(size=rows)
    sizes: list[int] = []
    for name, values in (("constant", constant), ("random", random)):
        path = write(tmp_path / f"{name}.parquet", table(rows, price=pa.array(values), brand=None))
        found = opened(path, "score", categorical=())
        (group,) = row_groups(found.source, ["price"])
        sizes.append(group.size)
        assert group.size >= rows * 8
    assert sizes[1] < sizes[0] * 1.2


def test_only_columns_that_are_read_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(1000, note=pa.array(["x" * 100 + str(row) for row in range(1000)])))
    found = opened(path, "score", ignore=("note",))
    (shard,) = cut_shards(found, size=10**9)
    assert 1000 * (8 + 4 + 8 + 4) <= shard.groups[0].size < 50_000


def test_row_groups_that_follow_each_other_are_read_in_one_go(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[1], [5], [9]], [[2], [6], [7]]])
    (shard,) = cut_shards(rows, size=10**9)
    first, second = (file.path for file in rows.source.files)
    assert shard.unit()["runs"] == [(first, [0], 0), (second, [0], 0), (first, [1], 1), (second, [1, 2], 1), (first, [2], 2)]
    assert users_of(rows, shard) == [1, 2, 5, 6, 7, 9]


def test_row_groups_of_one_file_are_read_in_the_order_of_their_users(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[3], [1, 1], [2]]])
    (shard,) = cut_shards(rows, size=10**9)
    (only,) = (file.path for file in rows.source.files)
    assert shard.unit()["runs"] == [(only, [1, 2], 1), (only, [0], 0)]
    assert [(batch.first_row, batch.columns.num_rows) for batch in read_shard_rows(rows, shard.unit())] == [(1, 3), (0, 1)]


def test_rows_are_counted_on_over_batches_and_row_groups(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[range(70_000), range(70_000, 140_000)]])
    (shard,) = cut_shards(rows, size=10**9)
    batches = list(read_shard_rows(rows, shard.unit()))
    assert len(batches) > 2
    for batch in batches:
        assert batch.columns.column("price")[0].as_py() == batch.first_row
        assert batch.columns.column("user_id")[-1].as_py() == batch.first_row + batch.columns.num_rows - 1


def test_row_groups_that_start_with_one_user_are_in_order(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[5, 9]], [[5, 5]]])
    assert [(users_of(rows, shard), shard.shared) for shard in check_cut(rows, 1)] == [([5, 5], (5,)), ([5, 9], (5,))]


def test_a_shard_takes_row_groups_as_long_as_there_is_room(tmp_path: Path) -> None:
    rows = layout(tmp_path, [[[user] for user in range(7)]])
    (size,) = {group.size for group in row_groups(rows.source, rows.columns_read)}
    assert [len(shard.groups) for shard in check_cut(rows, 3 * size)] == [3, 3, 1]
    assert [len(shard.groups) for shard in check_cut(rows, 3 * size - 1)] == [2, 2, 2, 1]


def test_files_of_several_schemas_are_cut_alike(tmp_path: Path) -> None:
    for number in range(4):
        rows = table(user_id=pa.array([3 * number, 3 * number, 3 * number + 1]))
        names = rows.column_names[number % 2 :] + rows.column_names[: number % 2]
        write(tmp_path / f"{number}.parquet", rows.select(names))
    shards = cut_shards(opened(tmp_path, "score"), size=1)
    assert [(shard.groups[0].low, shard.groups[0].high) for shard in shards] == [(0, 1), (3, 4), (6, 7), (9, 10)]
    assert len({shard.groups[0].size for shard in shards}) == 1


def test_many_small_files_end_in_few_shards(tmp_path: Path) -> None:
    started = time.perf_counter()
    rows = layout(tmp_path, [[[user]] for user in range(300)])
    (shard,) = cut_shards(rows, size=10**9)
    assert (len(shard.groups), shard.shared) == (300, ())
    assert time.perf_counter() - started < 30


def test_what_joined_tables_add_to_a_row_counts_in_a_shard_s_bytes(tmp_path: Path) -> None:
    ids = pa.table({"user_id": np.arange(4_000), "item_id": np.arange(4_000), "label": np.zeros(4_000)})
    write(tmp_path / "rows.parquet", ids, row_group_size=1_000)
    users = pa.table({"user_id": np.arange(4_000), **{f"f{number}": np.zeros(4_000) for number in range(60)}})
    pq.write_table(users, tmp_path / "users.parquet")
    names = [name for name in users.column_names if name != "user_id"]
    told = {"pairs": {"path": str(tmp_path / "rows.parquet"), "users": str(tmp_path / "users.parquet"), "numeric": names}}
    rows = open_feature_table(PairsSettings.model_validate(told), "path")
    # a row itself has 24 bytes and its dictionaries', its user 240
    assert len(cut_shards(rows, size=10**9)) == 1
    assert len(cut_shards(rows, size=600_000)) == 2
    assert len(cut_shards(rows, size=300_000)) == 4
