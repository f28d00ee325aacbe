from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.inputs import open_input
from recsys.errors import DataError
from recsys.features.encoding import Encoder
from recsys.features.side_tables import SideTable, write_side_table
from recsys.features.spec import ColumnSpec

AGE, CITY = ColumnSpec("age", "number", table="users"), ColumnSpec("city", "word", table="users")
STRINGS = ["ann", "bob", "a b", "ünal"]
NUMBERS = [7, -3, 2**62, 0]


def users(ids: pa.Array, **columns: pa.Array) -> pa.Table:
    return pa.table({"user_id": ids, **columns})


def made(folder: Path, *parts: pa.Table, columns: Sequence[ColumnSpec] = (), vocabularies: Any = None) -> SideTable:
    """The table, a file a part, encoded, written and opened."""
    write(folder, *parts, columns=columns, vocabularies=vocabularies)
    return SideTable(folder, "users")


def write(folder: Path, *parts: pa.Table, columns: Sequence[ColumnSpec] = (), vocabularies: Any = None) -> dict[str, Any]:
    source = folder / "source"
    source.mkdir()
    for number, part in enumerate(parts):
        pq.write_table(part, source / f"{number}.parquet", row_group_size=2)
    opened = open_input("pairs.users", str(source), {})
    return write_side_table(opened, "user_id", Encoder(columns, vocabularies or {}), folder, "users")


def refusal(folder: Path, *parts: pa.Table, columns: Sequence[ColumnSpec] = ()) -> str:
    with pytest.raises(DataError) as caught:
        write(folder, *parts, columns=columns)
    return str(caught.value).removeprefix(f"{folder / 'source'}: ")


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(NUMBERS),
        pa.array([7, 3, 2**31, 0], pa.uint32()),
        pa.array([7, -3, 100, 0], pa.int8()),
        pa.array(STRINGS),
        pa.array(STRINGS, pa.large_string()),
        pa.array(STRINGS).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_every_id_is_found_where_it_stands(tmp_path: Path, ids: pa.Array) -> None:
    table = made(tmp_path, users(ids))
    assert table.find(ids).tolist() == [0, 1, 2, 3]
    assert table.find(ids.take(pa.array([2, 2, 0]))).tolist() == [2, 2, 0]
    assert table.find(ids.slice(1, 2)).tolist() == [1, 2]
    assert table.find(ids.slice(0, 0)).tolist() == []


@pytest.mark.parametrize(
    ("ids", "asked"),
    [
        (pa.array(NUMBERS), pa.array([None, 8, -(2**63), 2**63 - 1, None, 7, 1])),
        (pa.array(STRINGS), pa.array([None, "eve", "Ann", "z", None, "ann", "an"])),
    ],
    ids=["int64", "string"],
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_null_and_unknown_ids_have_no_row(tmp_path: Path, ids: pa.Array, asked: pa.Array, dictionary: bool) -> None:
    table = made(tmp_path, users(ids))
    found = table.find(asked.dictionary_encode() if dictionary else asked)
    assert found.tolist() == [-1, -1, -1, -1, -1, 0, -1]
    assert found.dtype == np.int64
    assert table.find(pa.nulls(2, asked.type)).tolist() == [-1, -1]


def test_a_row_is_encoded_as_it_stands_over_all_files_and_row_groups(tmp_path: Path) -> None:
    age, city = pa.array([30.0, None, 50.0, 60.0, 70.0]), pa.array(["b", "a", None, "zz", "b"])
    whole = users(pa.array([5, 3, 9, 1, 2]), age=age, city=city)
    table = made(tmp_path, whole.slice(0, 3), whole.slice(3), columns=(AGE, CITY), vocabularies={"city": ("a", "b")})
    rows = table.find(pa.array([2, 5, 3, 9]))
    dense, codes = table.dense[rows], table.codes[rows]
    np.testing.assert_array_equal(dense[:, 0], np.array([70, 30, np.nan, 50], np.float32))
    assert codes[:, 0].tolist() == [2, 2, 1, 0]
    assert (dense.dtype, codes.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("columns", [(), (AGE,), (CITY,)], ids=["none", "numbers", "words"])
def test_a_table_may_have_no_feature_of_a_kind(tmp_path: Path, columns: tuple[ColumnSpec, ...]) -> None:
    table = made(
        tmp_path,
        users(pa.array([5, 3]), age=pa.array([1.0, 2.0]), city=pa.array(["a", "a"])),
        columns=columns,
        vocabularies={"city": ("a",)},
    )
    rows = table.find(pa.array([3, 5, 3]))
    dense, codes = table.dense[rows], table.codes[rows]
    assert dense.shape == (3, int(AGE in columns))
    assert codes.shape == (3, int(CITY in columns))


def test_the_receipt_says_how_many_rows_there_are(tmp_path: Path) -> None:
    assert write(tmp_path, users(pa.array([5, 3])), users(pa.array([1]))) == {"rows": 3, "words": {}}


def test_an_empty_table_is_refused_before_it_is_encoded(tmp_path: Path) -> None:
    assert refusal(tmp_path, users(pa.array([], pa.int64()))) == "pairs.users has no rows in 1 file(s). Nothing can be made of it."


def test_an_empty_file_beside_a_full_one_is_fine(tmp_path: Path) -> None:
    assert made(tmp_path, users(pa.array([], pa.int64())), users(pa.array([4]))).find(pa.array([4])).tolist() == [0]


@pytest.mark.parametrize(("ids", "twice"), [(pa.array([5, 3, 9, 3]), "3"), (pa.array(["a", "b", "b"]), "b")], ids=["int64", "string"])
def test_an_id_that_stands_there_twice_is_refused(tmp_path: Path, ids: pa.Array, twice: str) -> None:
    expected = f"column 'user_id' must have each id once, got {twice} twice. Drop one row."
    assert refusal(tmp_path, users(ids.slice(0, 2)), users(ids.slice(2))) == expected


@pytest.mark.parametrize(
    "ids", [pa.array([5, None, 9]), pa.array(["a", "b", None]), pa.array(["a", "", "b"]), pa.array([" ", "a", "b"])], ids=str
)
def test_a_null_empty_or_blank_id_is_refused(tmp_path: Path, ids: pa.Array) -> None:
    assert refusal(tmp_path, users(ids)) == "column 'user_id' must have no nulls or empty ids, got 1. Drop those rows."


def test_a_row_that_cannot_be_encoded_is_refused_with_its_number(tmp_path: Path) -> None:
    part = users(pa.array([5, 3, 9]), age=pa.array([[1.0, 2.0], [3.0, 4.0], [5.0]]))
    column = ColumnSpec("age", "numbers", table="users", width=2)
    expected = "row 2: age: a list of another length (1 in 1 rows). Mend the row."
    assert refusal(tmp_path, part, columns=(column,)) == expected


def test_a_refused_table_leaves_no_array_behind(tmp_path: Path) -> None:
    refusal(tmp_path, users(pa.array([5, 5])))
    assert not (tmp_path / "users-keys.npy").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([5, 3], pa.int32()), pa.array([9], pa.int64())),
        (pa.array(["a", "b"]), pa.array(["c"], pa.large_string())),
        (pa.array(["a", "b"], pa.large_string()), pa.array(["c"]).dictionary_encode()),
    ],
    ids=["integers", "strings", "dictionary"],
)
def test_files_may_keep_ids_in_types_that_are_read_alike(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    table = made(tmp_path, users(one), users(other))
    assert table.find(one).tolist() == [0, 1]
    assert table.find(other).tolist() == [2]
