"""Which files an input consists of, and the columns that stand in paths and logs: folders of Hive, Delta tables, links, endings."""

import gzip
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, Schema, write_deltalake
from deltalake.schema import PrimitiveType

from recsys.data.inputs import Input, batches, open_input, read
from recsys.data.row_groups import row_groups
from recsys.errors import DataError


def write(path: Path, users: Sequence[int], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": pa.array(users, pa.int64())} | columns), path)
    return path


def opened(path: Path, **options: Any) -> Input:
    return open_input("shop.events", str(path), {}, **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    return str(caught.value)


def rows(found: Input, *columns: str) -> list[tuple[Any, ...]]:
    """All rows as `read` gives them, and the same as `batches` gives them."""
    names = list(columns)
    whole = pa.concat_tables(read(found, file, None, names) for file in found.files)
    parts = [batch for group in row_groups(found, names) for batch in batches(found, group.path, [group.number], names)]
    assert [row for batch in parts for row in batch.to_pylist()] == whole.to_pylist()
    return [tuple(row.values()) for row in whole.to_pylist()]


# ---- Hive


def test_a_folder_name_value_is_a_column(tmp_path: Path) -> None:
    write(tmp_path / "kind=view" / "a.parquet", [1, 2])
    write(tmp_path / "kind=purchase" / "a.parquet", [3])
    found = opened(tmp_path)
    assert found.columns == {"kind": pa.string(), "user_id": pa.int64()}
    assert rows(found, "user_id", "kind") == [(3, "purchase"), (1, "view"), (2, "view")]
    assert rows(found, "kind") == [("purchase",), ("view",), ("view",)]  # no column of the files at all


@pytest.mark.parametrize(
    ("texts", "values", "dtype"),
    [
        (["1", "20"], [1, 20], pa.int64()),
        (["01", "20"], ["01", "20"], pa.string()),  # as a number it would be another word
        (["2024-01-31", "2024-02-29"], [date(2024, 1, 31), date(2024, 2, 29)], pa.date32()),
        (["2024-01-31", "2024-02-30"], ["2024-01-31", "2024-02-30"], pa.string()),
        (
            ["2024-01-31 12%3A30%3A00", "2024-02-01 00%3A00%3A00"],
            [datetime(2024, 1, 31, 12, 30), datetime(2024, 2, 1)],
            pa.timestamp("us"),
        ),
        (["false", "true"], [False, True], pa.bool_()),
        (["a%2Fb", "x y%3D%C3%BC"], ["a/b", "x y=ü"], pa.string()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None], pa.int64()),
        (["__HIVE_DEFAULT_PARTITION__", "a"], [None, "a"], pa.string()),
        (["99999999999999999999"], ["99999999999999999999"], pa.string()),
    ],
)
def test_the_values_in_paths_are_of_the_type_that_keeps_them_all(
    tmp_path: Path, texts: list[str], values: list[Any], dtype: pa.DataType
):
    for number, text in enumerate(texts):
        write(tmp_path / f"x={text}" / "a.parquet", [number])
    found = opened(tmp_path)
    assert found.columns["x"] == dtype
    assert sorted(rows(found, "user_id", "x")) == list(enumerate(values))


def test_levels_of_folders_are_columns_and_the_location_itself_is_none(tmp_path: Path) -> None:
    shop = tmp_path / "shop=1"
    write(shop / "year=2024" / "month=1" / "a.parquet", [1])
    write(shop / "year=2024" / "_kind=view" / "a.parquet", [2])  # Spark hides _ too, but never a column's value
    found = opened(shop)
    assert set(found.columns) == {"user_id", "year", "month", "_kind"}
    assert rows(found, "year", "user_id") == [(2024, 2), (2024, 1)]
    with pytest.raises(DataError, match=r"column 'month' is not in every file of shop\.events"):
        found.require("month", setting="x")


def test_a_column_in_path_and_file_must_say_the_same(tmp_path: Path) -> None:
    write(tmp_path / "kind=a" / "a.parquet", [1, 2], kind=pa.array(["a", None]))
    write(tmp_path / "kind=b" / "a.parquet", [3], kind=pa.array(["a"]))
    found = opened(tmp_path)
    assert read(found, found.files[0], None, ["kind"]).column("kind").to_pylist() == ["a", None]
    with pytest.raises(DataError, match=r"b/a\.parquet: column 'kind' must be b as the path says, got other values in the file"):
        read(found, found.files[1], None, ["kind"])


def test_a_column_in_the_path_has_its_part_in_a_row_groups_size(tmp_path: Path) -> None:
    write(tmp_path / "kind=1" / "a.parquet", [1, 2, 3])
    (without,) = row_groups(opened(tmp_path), ["user_id"])
    (with_kind,) = row_groups(opened(tmp_path), ["user_id", "kind"])
    assert with_kind.size - without.size == 3 * 8  # of int64, as it is read


def test_the_bounds_of_a_key_in_the_path_are_its_value(tmp_path: Path) -> None:
    write(tmp_path / "user_id=7" / "a.parquet", [0]).unlink()
    pq.write_table(pa.table({"x": [1.0, 2.0]}), tmp_path / "user_id=7" / "a.parquet")
    (group,) = row_groups(opened(tmp_path), ["user_id", "x"], key="user_id")
    assert (group.low, group.high, group.rows) == (7, 7, 2)


def test_csv_folders_have_columns_in_paths_and_compressed_files(tmp_path: Path) -> None:
    for name, user in (("a.CSV", 1), ("b.csv.gz", 2)):
        path = tmp_path / f"kind={name[0]}" / name
        path.parent.mkdir()
        content = f"user_id,x\n{user},0.5\n".encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert rows_csv(opened(tmp_path, form="csv")) == [(1, 0.5, "a"), (2, 0.5, "b")]


def rows_csv(found: Input) -> list[tuple[Any, ...]]:
    names = ["user_id", "x", "kind"]
    groups = row_groups(found, names)
    return [tuple(row.values()) for group in groups for batch in batches(found, group.path, [0], names) for row in batch.to_pylist()]


# ---- Delta and its kin


def delta(path: Path, users: Sequence[int], **options: Any) -> None:
    kinds = [("view", "a/b ü")[user % 2] for user in users]
    write_deltalake(path, pa.table({"user_id": pa.array(users, pa.int64()), "kind": kinds}), **options)


def test_a_delta_table_has_the_rows_of_its_newest_version(tmp_path: Path) -> None:
    delta(tmp_path, range(6), partition_by=["kind"])
    before = opened(tmp_path).identity()
    DeltaTable(tmp_path).delete("user_id >= 3")
    found = opened(tmp_path)
    assert sorted(rows(found, "user_id", "kind")) == [(0, "view"), (1, "a/b ü"), (2, "view")]
    assert found.identity() != before
    DeltaTable(tmp_path).restore(0)
    assert opened(tmp_path).identity() == before


def test_a_delta_table_of_no_rows_is_empty(tmp_path: Path) -> None:
    delta(tmp_path, [1])
    DeltaTable(tmp_path).delete()
    assert refusal(tmp_path) == f"{tmp_path}: shop.events has no rows in 0 file(s). Nothing can be made of it."
    assert opened(tmp_path, may_be_empty=True).rows == 0


def test_a_column_that_came_to_a_delta_table_later_is_null_before(tmp_path: Path) -> None:
    delta(tmp_path, [1])
    DeltaTable(tmp_path).alter.add_columns(Schema([Field("price", PrimitiveType("double"))]).fields)
    write_deltalake(tmp_path, pa.table({"user_id": [2], "kind": ["view"], "price": [1.5]}), mode="append")
    assert sorted(rows(opened(tmp_path), "user_id", "price")) == [(1, None), (2, 1.5)]


def test_times_of_a_delta_table_are_those_of_its_schema(tmp_path: Path) -> None:
    times = pa.array([datetime(2024, 1, 1, 12, tzinfo=UTC)], pa.timestamp("us", "UTC"))
    write_deltalake(tmp_path, pa.table({"ts": times, "user_id": [1]}))
    (path,) = tmp_path.glob("*.parquet")
    pq.write_table(pa.table({"ts": times, "user_id": [1]}), path, use_deprecated_int96_timestamps=True)  # as Spark writes it
    found = opened(tmp_path)
    assert read(found, found.files[0], None, ["ts"]).column("ts").type == pa.timestamp("us", "UTC")


def test_a_part_of_a_delta_table_and_a_folder_of_them_are_refused(tmp_path: Path) -> None:
    delta(tmp_path / "t", range(4), partition_by=["kind"])
    assert refusal(tmp_path / "t" / "kind=view") == (
        f"{tmp_path}/t/kind=view: is a part of the Delta table {tmp_path}/t, whose log alone says what is in it. Name the table."
    )
    assert refusal(tmp_path).startswith(f"{tmp_path}/t: is a Delta table, whose files cannot be read without its log. Name it in")
    assert "got a Delta table" in refusal(tmp_path / "t", form="csv")


def test_a_file_that_the_log_names_and_nobody_has_is_said_to_be_gone(tmp_path: Path) -> None:
    delta(tmp_path, [1])
    (lost,) = tmp_path.glob("*.parquet")
    lost.unlink()
    assert refusal(tmp_path).startswith(f"{lost}: is gone, though the listing or the table's log names it. ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"protocol":{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["typeWidening"],"writerFeatures":["typeWidening"]}}',
            "the Delta table needs 'typeWidening', which cannot be read",
        ),
        (
            '{"protocol":{"minReaderVersion":2,"minWriterVersion":5}}\n'
            '{"metaData":{"id":"x","format":{"provider":"parquet","options":{}},"schemaString":SCHEMA,"partitionColumns":[],'
            '"configuration":{"delta.columnMapping.mode":"name","delta.columnMapping.maxColumnId":"2"}}}',
            "the Delta table maps column names",
        ),
    ],
)
def test_a_delta_table_whose_files_say_too_little_is_refused(tmp_path: Path, line: str, said: str) -> None:
    delta(tmp_path, [1])
    fields: list[dict[str, Any]] = [
        {"name": name, "type": dtype, "nullable": True} for name, dtype in (("user_id", "long"), ("kind", "string"))
    ]
    for number, entry in enumerate(fields):
        entry["metadata"] = {"delta.columnMapping.id": number + 1, "delta.columnMapping.physicalName": f"col-{number}"}
    schema = json.dumps(json.dumps({"type": "struct", "fields": fields}))
    (tmp_path / "_delta_log" / f"{1:020d}.json").write_text(line.replace("SCHEMA", schema) + "\n")
    assert said in refusal(tmp_path)


def test_a_delta_table_with_deletion_vectors_is_refused(tmp_path: Path) -> None:
    delta(tmp_path, [1, 2])
    (log,) = (tmp_path / "_delta_log").glob("*.json")
    features = '"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["deletionVectors"],"writerFeatures":["deletionVectors"]'
    lines = [f'{{"protocol":{{{features}}}}}' if '"protocol"' in line else line for line in log.read_text().splitlines()]
    vector = (
        '"deletionVector":{"storageType":"u","pathOrInlineDv":"ab^-aqEH.-t@S}K{vb[*k^","offset":4,"sizeInBytes":40,"cardinality":1}'
    )
    log.write_text("\n".join(line[:-2] + f",{vector}}}}}" if '"add"' in line else line for line in lines))
    assert refusal(tmp_path).startswith(f"{tmp_path}: the Delta table has deletion vectors, which cannot be read. Run REORG")


def test_tables_of_another_format_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", [1])
    (tmp_path / ".hoodie").mkdir()
    (tmp_path / ".hoodie" / "hoodie.properties").write_text("{}")
    assert refusal(tmp_path).startswith(f"{tmp_path}: is a Hudi table")


def test_an_earlier_version_of_a_delta_table_is_read_where_it_is_named(tmp_path: Path) -> None:
    for users in ([1, 2], [3]):
        write_deltalake(str(tmp_path / "t"), pa.table({"user_id": users}), mode="append")
    assert opened(tmp_path / "t").rows == 3
    assert opened(tmp_path / "t", version=0).rows == 2
    assert "cannot be read as a Delta table" in refusal(tmp_path / "t", version=7)
    write(tmp_path / "plain" / "a.parquet", [1])
    assert "shop.versions needs a Delta or an Iceberg table, got files" in refusal(tmp_path / "plain", version=0)


# ---- endings and links


@pytest.mark.parametrize("name", ["b.PARQUET", "b.parq", "b.pq", "b.parquet.snappy", "b.gz.parquet"])
def test_all_endings_of_parquet_are_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", [1])
    write(tmp_path / name, [2])
    assert opened(tmp_path).rows == 1 + 1


@pytest.mark.parametrize("name", ["b", "b.orc", "b.csv", "b.parquet.tmp", "sub/part-00000"])
def test_a_file_of_an_unknown_ending_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", [1])
    write(tmp_path / name, [2])
    assert refusal(tmp_path) == (
        f"{tmp_path}/{name}: must end in .parquet to be read as a part of shop.events (1 such file(s)). "
        "Rename it, move it away, or let its name start with _ to leave it out."
    )
    assert opened(tmp_path / name).rows == 1  # named itself, any file is read


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1])
    write(tmp_path / "_temporary" / "0" / "a.parquet", [2])
    write(tmp_path / ".a.parquet.crc", [2])
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "day_$folder$").write_text("")
    found = opened(tmp_path)
    assert (found.rows, found.left_out) == (1, {"hidden": 3, "empty": 1})


def test_a_folder_of_nothing_but_what_is_left_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "x").write_text("")
    assert refusal(tmp_path) == f"{tmp_path}: the folder has no *.parquet file (left out: empty 1, hidden 1). Check shop.events."


def test_no_file_is_read_twice_however_it_is_linked(tmp_path: Path) -> None:
    shop, elsewhere = tmp_path / "shop", tmp_path / "elsewhere"
    write(shop / "day=1" / "a.parquet", [1])
    write(elsewhere / "b.parquet", [2])
    (shop / "day=1" / "back").symlink_to(shop)
    (shop / "a_latest").symlink_to("day=1")
    (shop / "again.parquet").symlink_to(shop / "day=1" / "a.parquet")
    (shop / "day=2").symlink_to(elsewhere)
    found = opened(shop)
    assert rows(found, "user_id", "day") == [(1, 1), (2, 2)]
    assert found.left_out == {"linked twice": 3}


def test_a_link_into_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    write(tmp_path / ".v1" / "a.parquet", [1])
    (tmp_path / "current").symlink_to(".v1")
    assert opened(tmp_path).rows == 1


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1])
    (tmp_path / "b.parquet").symlink_to("gone.parquet")
    assert refusal(tmp_path) == f"{tmp_path}/b.parquet: is a link to what is not there, gone.parquet. Mend or remove it."


def test_a_file_without_row_groups_is_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1])
    with pq.ParquetWriter(tmp_path / "b.parquet", pa.schema([("user_id", pa.int64())])):
        pass
    assert rows(opened(tmp_path), "user_id") == [(1,)]


# ---- files that differ


def test_files_are_read_in_their_common_type(tmp_path: Path) -> None:
    """Nothing, narrow and wide numbers, words and dictionaries: one table can be made of them."""
    write(tmp_path / "a.parquet", [1], x=pa.nulls(1), n=pa.array([3], pa.int32()), w=pa.array(["a"]).dictionary_encode())
    write(tmp_path / "b.parquet", [2], x=pa.array([1.5]), n=pa.array([2**40]), w=pa.array(["b"], pa.large_string()))
    write(tmp_path / "c.parquet", [3], x=pa.array([2], pa.int32()), n=pa.array([None], pa.int32()), w=pa.nulls(1))
    found = opened(tmp_path)
    tables = [read(found, file, None, ["x", "n", "w"]) for file in found.files]
    assert len(rows(found, "user_id")) == 3
    assert [
        value
        for group in row_groups(found, ["w"])
        for batch in batches(found, group.path, [0], ["w"])
        for value in batch[0].to_pylist()
    ] == ["a", "b", None]
    assert pa.concat_tables(tables).to_pydict() == {"x": [None, 1.5, 2.0], "n": [3, 2**40, None], "w": ["a", "b", None]}


def test_decimals_beside_floats_are_read_as_floats(tmp_path: Path) -> None:
    for name, price in (("a", [Decimal("1.50")]), ("b", [0.125])):
        write(tmp_path / f"{name}.parquet", [1], price=pa.array(price))
    found = opened(tmp_path)
    assert pa.types.is_decimal(found.columns["price"])
    assert pa.concat_tables(read(found, file, None, ["price"]) for file in found.files).to_pydict() == {"price": [1.5, 0.125]}


def test_a_file_with_damaged_pages_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user_id": range(1000)}), path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)
    found = opened(path)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: .* Write the file again\.$"):
        read(found, found.files[0], None, ["user_id"])
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: .* Write the file again\.$"):
        list(batches(found, str(path), [0], ["user_id"]))


def test_a_value_that_is_not_what_was_written_is_known_by_its_page_s_checksum(tmp_path: Path) -> None:
    """Bare values decode whatever their bytes are: without the checksum another number would be read."""
    path = tmp_path / "a.parquet"
    options: dict[str, Any] = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"user_id": range(1000)}), path, **options)
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    found = opened(path)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: .*CRC.* Write the file again\.$"):
        read(found, found.files[0], None, ["user_id"])
