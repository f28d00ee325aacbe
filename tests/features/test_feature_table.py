import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import PairsSettings
from recsys.errors import BundleError, DataError
from recsys.features.encoding import encoder
from recsys.features.feature_table import FeatureTable, Role, check_alike, open_feature_table
from recsys.features.reader import cut_shards, no_ids, read_shard_rows
from recsys.features.spec import ColumnSpec, FeatureSpec
from tests.data.bad_rows import damage, no_utf8

NAMED: dict[str, Any] = {"numeric": ("price",), "categorical": ("brand",)}


def table(rows: int = 3, **columns: pa.Array | None) -> pa.Table:
    """Labelled rows with the standard names, columns added, replaced or, with None, removed."""
    standard: dict[str, pa.Array | None] = {
        "user_id": pa.array(range(rows), pa.int64()),
        "item_id": pa.array([f"i{row}" for row in range(rows)]),
        "price": pa.array(np.linspace(1, 2, rows)),
        "brand": pa.array(["a"] * rows),
        "label": pa.array([row % 2 for row in range(rows)], pa.int8()),
    }
    return pa.table({name: values for name, values in (standard | columns).items() if values is not None})


def write(path: Path, rows: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, **options)
    return path


def settings(path: Path, **values: Any) -> PairsSettings:
    return PairsSettings.model_validate({"pairs": {"path": str(path)} | NAMED | values, "run": {"work": str(path.parent / "work")}})


def opened(path: Path, role: Role = "path", spec: FeatureSpec | None = None, **values: Any) -> FeatureTable:
    return open_feature_table(settings(path, **values), role, spec)


def refusal(path: Path, role: Role = "path", spec: FeatureSpec | None = None, **values: Any) -> str:
    """The sentence that refuses the rows, without the place."""
    with pytest.raises((DataError, BundleError)) as caught:
        opened(path, role, spec, **values)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.parquet"


# ---- what is read


def test_standard_names_need_no_naming(file: Path) -> None:
    write(file, table(weight=pa.array([1.0, 2.0, 0.5])))
    rows = opened(file)
    assert (rows.ids, rows.labels, rows.user_id) == (("user_id", "item_id"), ("label", "weight"), "user_id")
    assert rows.id_types() == {"user_id": pa.int64(), "item_id": pa.string()}
    assert rows.columns == (ColumnSpec("price", "number"), ColumnSpec("brand", "word", words="string"))
    assert rows.columns_read == ["user_id", "item_id", "label", "weight", "price", "brand"]


def test_every_standard_name_may_be_another(file: Path) -> None:
    names = {"user_id": "household", "item_id": "product", "label": "bought", "weight": "share"}
    rows = opened(write(file, table(weight=pa.array([1.0] * 3)).rename_columns(names)), **names)
    assert (rows.ids, rows.labels) == (("household", "product"), ("bought", "share"))


def test_scoring_reads_neither_label_nor_weight_nor_what_is_ignored(file: Path) -> None:
    write(file, table(weight=pa.array(["x"] * 3), label=pa.array(["y"] * 3), note=pa.array([{"a": 1}] * 3)))
    assert opened(file, "score", ignore=("note",)).columns_read == ["user_id", "item_id", "price", "brand"]


def test_rows_to_score_lie_at_score_or_else_at_path(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(3))
    write(tmp_path / "b.parquet", table(5, label=None))
    assert opened(tmp_path / "a.parquet", "score").source.rows == 3
    assert opened(tmp_path / "a.parquet", "score", score=str(tmp_path / "b.parquet")).source.rows == 5
    assert opened(tmp_path / "a.parquet", "path", score=str(tmp_path / "b.parquet")).source.rows == 3


def test_training_needs_no_ids(file: Path) -> None:
    rows = opened(write(file, table(user_id=None, item_id=None)))
    assert (rows.ids, rows.user_id) == ((), None)
    assert opened(write(file, table(item_id=None))).ids == ("user_id",)
    assert opened(write(file, table(user_id=None))).user_id is None


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.bool_(), pa.null()], ids=str)
def test_a_numeric_column_may_be_of_every_numeric_type(file: Path, dtype: pa.DataType) -> None:
    values = pa.nulls(3) if dtype == pa.null() else pa.array([1, 0, None], pa.int8()).cast(pa.float32()).cast(dtype)
    assert opened(write(file, table(price=values))).columns[0] == ColumnSpec("price", "number")


@pytest.mark.parametrize("row_group_size", [1, 3])
def test_lists_of_numbers_have_the_length_of_their_type_or_of_the_first_that_has_values(file: Path, row_group_size: int) -> None:
    fixed = pa.array([None, [1.0, 2.0, 3.0], None], pa.list_(pa.float32(), 3))
    free = pa.array([None, [], [1, 2]], pa.list_(pa.int8()))
    write(file, table(fixed=fixed, free=free, nothing=pa.nulls(3, pa.list_(pa.float32()))), row_group_size=row_group_size)
    rows = opened(file, numeric=("price", "fixed", "free", "nothing"))
    assert [(column.kind, column.width) for column in rows.columns[:4]] == [
        ("number", 1),
        ("numbers", 3),
        ("numbers", 2),
        ("numbers", 1),
    ]


def test_a_multivalued_column_has_the_width_of_its_rule(file: Path) -> None:
    write(file, table(tags=pa.array([["a"], [], None])))
    rows = opened(file, multivalued=("tags",), columns={"tags": {"max_values": 4}})
    assert rows.columns[-1] == ColumnSpec("tags", "words", width=4, words="string")


def test_whole_numbers_in_one_file_and_fractions_in_the_next_are_one_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(price=pa.array([1, 2, 3]), label=pa.array([0, 1, 0])))
    write(tmp_path / "b.parquet", table(price=pa.array([1.5, None, 2]), label=pa.array([0.0, None, 1.0])))
    rows = opened(tmp_path)
    assert read_column(rows, "price") == [1, 2, 3, 1.5, None, 2]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_list_column_may_be_empty_throughout_a_file(tmp_path: Path, order: str) -> None:
    write(tmp_path / f"{order[0]}.parquet", table(tags=pa.array([[], [], None], pa.list_(pa.null()))))
    write(tmp_path / f"{order[1]}.parquet", table(tags=pa.array([["x"], [], None])))
    assert opened(tmp_path, multivalued=("tags",)).source.columns["tags"].value_type == pa.string()


def test_lists_of_whole_numbers_and_of_fractions_are_one_column(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(v=pa.array([[1, 2]] * 3)))
    write(tmp_path / "b.parquet", table(v=pa.array([[1.5, 2]] * 3)))
    assert opened(tmp_path, numeric=("price", "v")).source.columns["v"].value_type == pa.float64()


def test_names_with_dots_and_blanks_and_other_letters_are_names(file: Path) -> None:
    nested = pa.array([{"b": [1, 2]}] * 3)
    names = {"user_id": "user.id", "price": "price.in €", "brand": "user"}
    write(file, table(**{"price.in": nested}).rename_columns(names), row_group_size=2)
    rows = opened(file, user_id="user.id", numeric=("price.in €",), categorical=("user",), ignore=("price.in",))
    assert read_column(rows, "user.id") == [0, 1, 2]
    assert read_column(rows, "price.in €") == [1.0, 1.5, 2.0]
    assert [(group.low, group.high) for shard in cut_shards(rows, size=1) for group in shard.groups] == [(0, 1), (2, 2)]


def read_column(rows: FeatureTable, name: str) -> list[Any]:
    return [
        value
        for shard in cut_shards(rows, size=10**9)
        for batch in read_shard_rows(rows, shard.unit())
        for value in batch.columns.column(name).to_pylist()
    ]


def test_columns_of_joined_tables_are_features_too(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.parquet", table(price=None, brand=None))
    users = write(tmp_path / "users.parquet", pa.table({"user_id": [0, 1], "age": [1, 2]}))
    items = write(tmp_path / "items" / "a.parquet", pa.table({"item_id": ["i0"], "brand": ["a"], "price": [0.5]})).parent
    found = opened(rows, users=str(users), items=str(items), numeric=("price", "age"))
    assert found.columns == (
        ColumnSpec("age", "number", table="users"),
        ColumnSpec("price", "number", table="items"),
        ColumnSpec("brand", "word", table="items", words="string"),
    )
    assert found.columns_read == ["user_id", "item_id", "label"]
    assert (found.key_of("users"), found.key_of("items")) == ("user_id", "item_id")


# ---- CSV


def csv_file(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as opened_file:
        csv.writer(opened_file).writerows([header, *rows])
    return path


def test_ids_and_words_of_a_csv_are_text_as_it_is_written_and_numbers_are_numbers(tmp_path: Path) -> None:
    lines = [["007", "x", 0.5, "010", 0], ["7", "y", "", "", 1], ["", "z", "NA", "2024-01-01", 1], [" ", "z", 2, "True", 1]]
    rows = opened(csv_file(tmp_path / "rows.csv", ["user_id", "item_id", "price", "brand", "label"], lines), format="csv")
    assert rows.id_types() == {"user_id": pa.string(), "item_id": pa.string()}
    assert read_column(rows, "price") == [0.5, None, None, 2.0]
    assert read_column(rows, "user_id") == ["007", "7", None, " "]
    assert read_column(rows, "brand") == ["010", None, "2024-01-01", "True"]
    assert rows.columns[1].words == "string"


def test_ids_of_a_csv_are_numbers_where_the_settings_say_so(tmp_path: Path) -> None:
    header = ["user_id", "item_id", "price", "brand", "label"]
    rows = opened(
        csv_file(tmp_path / "rows.csv", header, [["007", 1, 0.5, "a", 0], ["", 2, 1, "b", 1]]), format="csv", csv_ids="number"
    )
    assert rows.id_types() == {"user_id": pa.int64(), "item_id": pa.int64()}
    assert read_column(rows, "user_id") == [7, None]
    csv_file(tmp_path / "rows.csv", header, [["7.0", 1, 0.5, "a", 0]])
    assert "invalid value '7.0'" in refusal(tmp_path / "rows.csv", format="csv", csv_ids="number")


def test_a_joined_table_of_ids_of_another_type_than_a_csvs_is_refused_with_the_setting(tmp_path: Path) -> None:
    rows = csv_file(tmp_path / "rows.csv", ["user_id", "item_id", "price", "brand", "label"], [[7, 8, 0.5, "a", 0]])
    users = write(tmp_path / "users.parquet", pa.table({"user_id": [7], "age": [3]}))
    values = {"format": "csv", "users": str(users), "numeric": ("price", "age")}
    assert "got int64. Convert one of them, or set pairs.csv_ids." in refusal(rows, **values)
    assert opened(rows, csv_ids="number", ignore=(), **values).id_types()["user_id"] == pa.int64()


def test_words_of_a_csv_are_read_as_the_model_knows_them(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["user_id", "item_id", "price", "brand"], [[1, "x", 0.5, "007"]])
    for kind, words, seen in (("string", ("007",), "007"), ("integer", ("7",), 7), ("", ("007",), "007")):
        trained = spec_of(PRICE, ColumnSpec("brand", "word", words=kind), brand=words)
        assert read_column(opened(path, "score", trained, format="csv"), "brand") == [seen]


@pytest.mark.parametrize(
    ("kind", "values", "seen"),
    [("string", pa.array([7]), "int64"), ("integer", pa.array(["7"]), "string"), ("bool", pa.array(["true"]), "string")],
)
def test_words_of_another_type_than_the_model_was_trained_on_are_refused(file: Path, kind: str, values: pa.Array, seen: str) -> None:
    trained = spec_of(PRICE, ColumnSpec("brand", "word", words=kind), brand=("7",))
    assert refusal(write(file, table(1, brand=values)), "score", trained) == (
        f"column 'brand' must hold words of type {kind} such as 7, got {seen}. Convert it, or train again."
    )


LATIN = no_utf8(b"a", b"Caf\xe9", b"b")


@pytest.mark.parametrize("name", ["brand", "item_id"])
def test_words_and_ids_that_are_no_utf8_are_refused_before_work_starts(file: Path, name: str) -> None:
    write(file, table(**{name: LATIN}))
    assert refusal(file).startswith(f"column '{name}' cannot be read: Invalid UTF8")


def test_text_of_rows_that_did_not_change_is_not_read_again(file: Path) -> None:
    opened(write(file, table()))
    damage(file)
    opened(file)
    os.utime(file, ns=(0, 0))
    assert "cannot be read" in refusal(file)


@pytest.mark.parametrize("name", ["user_id", "town"])
def test_words_of_a_side_table_that_are_no_utf8_are_refused_unless_nobody_asked_for_them(tmp_path: Path, name: str) -> None:
    rows = write(tmp_path / "rows.parquet", table(user_id=pa.array(["a", "b", "c"])))
    users = {"user_id": pa.array(["a", "b", "c"]), "town": pa.array(["x", "y", "z"]), "item_id": LATIN}
    asked: dict[str, Any] = {"users": str(tmp_path / "users.parquet"), "categorical": ("brand", "town")}
    write(tmp_path / "users.parquet", pa.table(users))
    opened(rows, **asked)
    write(tmp_path / "users.parquet", pa.table(users | {name: LATIN}))
    with pytest.raises(DataError, match=rf"users\.parquet: column '{name}' cannot be read: Invalid UTF8"):
        opened(rows, **asked)


def test_words_and_ids_that_are_no_utf8_any_more_are_one_sentence_with_file_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    rows = opened(write(path, table(item_id=pa.array(["a", "Caf\u00e9", "b"]))))
    write(path, table(brand=LATIN, item_id=pa.array(["a", "Caf\u00e9", "b"])))
    with pytest.raises(DataError, match=r"rows\.parquet: column 'brand' cannot be read: Invalid UTF8"):
        list(read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit()))
    write(path, table(item_id=LATIN))
    with pytest.raises(DataError, match=r"rows\.parquet: changed while the run read it\."):
        list(read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit()))

    def same(*_: object) -> None:
        """As of a store whose times are of the same second."""

    monkeypatch.setattr("recsys.data.inputs._check_same", same)
    (batch,) = read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit())
    with pytest.raises(DataError, match=r"rows\.parquet: column 'item_id' cannot be read: Invalid UTF8"):
        no_ids(rows, batch)


def test_rows_without_an_id_are_those_where_it_is_null_empty_or_blank(file: Path) -> None:
    rows = opened(write(file, table(5, item_id=pa.array(["a", None, "", " ", "b"]))))
    (batch,) = read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit())
    assert {reason: mask.tolist() for reason, mask in no_ids(rows, batch).items()} == {"no item_id": [False, True, True, True, False]}


@pytest.mark.parametrize("name", ["user_id", "item_id", "weight"])
def test_an_optional_column_that_the_settings_state_must_be_there(file: Path, name: str) -> None:
    values: dict[str, Any] = {name: "mine"}
    assert refusal(write(file, table()), **values).startswith("column 'mine' is missing; seen user_id, item_id, price")


@pytest.mark.parametrize(("name", "like"), [("Weight", "weight"), ("wieght", None), ("User_ID", "user_id"), ("itemid", "item_id")])
def test_an_unnamed_column_that_looks_like_one_of_ours_is_asked_about(file: Path, name: str, like: str | None) -> None:
    columns: dict[str, Any] = {name: pa.array([1, 2, 3])} | ({like: None} if like else {})
    write(file, table(**columns))
    hint = f" It looks like {like}: set pairs.{like}, or rename it. Else add" if like else " Add"
    assert refusal(file).startswith(f"column '{name}' is not named in [pairs].{hint} it to numeric")
    opened(file, ignore=(name,))


def test_a_column_with_the_name_of_an_input_of_another_is_refused(file: Path) -> None:
    values = {"numeric": ("price", "price is missing"), "columns": {"price": {"indicator": True}}}
    assert refusal(write(file, table(**{"price is missing": pa.array([1, 2, 3])})), **values) == (
        "column 'price is missing' has the name of an input made of another column. Rename it."
    )


def test_a_csv_folder_is_one_table_though_its_files_guess_other_types(tmp_path: Path) -> None:
    header = ["user_id", "item_id", "price", "brand", "label"]
    csv_file(tmp_path / "a.csv", [*header, "note"], [[1, "x", 1, "", 0, "n"]])
    csv_file(tmp_path / "b.csv", [*header, "note"], [[2, "y", 0.5, "b", 1, "n"], [3, "z", "", "c", 1, ""]])
    rows = opened(tmp_path, format="csv", ignore=("note",))
    assert read_column(rows, "price") == [1.0, 0.5, None]
    for batch in read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit()):
        assert {name: batch.columns.schema.field(name).type for name in rows.columns_read} == {
            name: rows.source.columns[name] for name in rows.columns_read
        }
        assert batch.columns.schema.names == rows.columns_read
    assert len(cut_shards(rows, size=10**9)) == 1


def test_a_csv_column_that_is_whole_for_long_may_end_in_fractions(tmp_path: Path) -> None:
    rows = [[row, "x", 1, "a", 0] for row in range(200_000)]  # more than the block that types are guessed from
    path = csv_file(tmp_path / "rows.csv", ["user_id", "item_id", "price", "brand", "label"], [*rows, [9, "y", 0.5, "b", 1]])
    assert path.stat().st_size > 2**21
    assert read_column(opened(path, format="csv"), "price")[-2:] == [1.0, 0.5]


def test_an_original_csv_names_its_columns_itself(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["p0", "weight", "user_id", "y"], [[0, 255, 3, 1], [7, 8, 9, 0]])
    rows = original(path)
    assert [column.name for column in rows.columns] == ["p0", "weight", "user_id"]
    assert (rows.labels, rows.ids, rows.user_id) == (("y",), (), None)
    assert read_column(rows, "weight") == [255, 8]
    assert rows.columns_read == ["y", "p0", "weight", "user_id"]


def original(path: Path, role: Role = "path", **values: Any) -> FeatureTable:
    given = {"pairs": {"path": str(path), "format": "original_csv"} | values, "run": {"work": str(path.parent / "work")}}
    return open_feature_table(PairsSettings.model_validate(given), role)


def test_what_is_ignored_of_an_original_csv_is_no_feature(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["name", "a", "b", "y"], [["n", 1, 2, 0]])
    assert [column.name for column in original(path, ignore=["name"]).columns] == ["a", "b"]


def test_an_original_csv_whose_label_is_called_weight_is_read_once(tmp_path: Path) -> None:
    assert original(csv_file(tmp_path / "rows.csv", ["a", "weight"], [[1, 0]])).columns_read == ["weight", "a"]


def original_refusal(path: Path, role: Role = "path", **values: Any) -> str:
    with pytest.raises(DataError) as caught:
        original(path, role, **values)
    return str(caught.value).removeprefix(f"{path}: ")


def test_an_original_csv_cannot_be_scored(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["a", "y"], [[1, 0]])
    assert original_refusal(path, "score") == (
        "rows of the original CSV have no user_id and item_id, so no lists. Use pairs.format = 'csv'."
    )


def test_a_word_in_an_original_csv_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["a", "b", "y"], [[1, "x", 0]])
    assert original_refusal(path) == (
        "column 'b' must hold numbers, truth values, or lists of them of one length, got string. Convert or ignore it."
    )
    path = csv_file(tmp_path / "rows.csv", ["a", "y"], [[1, "yes"]])
    assert original_refusal(path) == "column 'y' must be a number or a truth value, got string. Convert it."


def test_a_rule_for_a_column_that_an_original_csv_lacks_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["a", "b", "y"], [[1, 2, 0]])
    assert original(path, columns={"b": {"scale": "none"}}).columns[1] == ColumnSpec("b", "number")
    assert original_refusal(path, columns={"c": {"scale": "none"}}) == (
        "pairs.columns names 'c', the features are a, b. Mend the name."
    )


def test_an_original_csv_of_a_label_only_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["y"], [[1]])
    assert original_refusal(path) == "at least one feature column is needed. Name them in [pairs]."


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Empty CSV file"),
        ("user_id,item_id,label\n1,2\n", "CSV parse error: Expected 3 columns, got 2: 1,2"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert refusal(path, format="csv") == f"not a CSV file with a header: {why}. Mend it, or write Parquet."


def test_a_csv_with_a_header_only_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["user_id", "item_id", "price", "brand", "label"], [])
    assert refusal(path, format="csv") == "pairs.path has no rows in 1 file(s). Nothing can be made of it."


def test_a_csv_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["a", "a", "label"], [[1, 2, 0]])
    assert refusal(path, format="csv") == "column names must differ, got a, a, label. Rename one of each two."


def test_a_csv_file_where_parquet_is_meant_is_refused_with_the_setting(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "rows.csv", ["a", "label"], [[1, 0]])
    assert refusal(path) == "pairs.format is parquet, got a CSV file. Set pairs.format to 'csv' or 'original_csv'."


# ---- what is refused


def test_a_missing_column_is_refused(file: Path) -> None:
    write(file, table(brand=None))
    seen = f"{file}: user_id, item_id, price, label"
    assert refusal(file) == f"column 'brand' is missing; seen {seen}. Add it, or remove it from [pairs]."


@pytest.mark.parametrize("role", ["path", "test"])
def test_a_missing_label_is_refused_in_training(file: Path, role: Role) -> None:
    write(file, table(label=None))
    assert refusal(file, role) == "column 'label' is missing; seen user_id, item_id, price, brand. Add it, or set pairs.label."


@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_missing_id_is_refused_in_scoring(file: Path, name: str) -> None:
    write(file, table().drop_columns(name))
    seen = ", ".join(column for column in table().column_names if column != name)
    assert refusal(file, "score") == f"column '{name}' is missing; seen {seen}. Add it, or set pairs.{name}."


def test_a_column_that_nobody_named_is_refused(file: Path) -> None:
    write(file, table(colour=pa.array(["red"] * 3)))
    assert refusal(file) == ("column 'colour' is not named in [pairs]. Add it to numeric, categorical or multivalued, or to ignore.")
    assert opened(file, ignore=("colour",)).columns == opened(file, ignore=("colour", "never there")).columns


def only_x(role: str) -> dict[str, Any]:
    """Settings that name x as the only feature."""
    return {"numeric": (), "categorical": (), role: ("x",)}


WRONG = {
    "struct": pa.array([{"a": 1}] * 3),
    "decimal": pa.array([1, 2, 3]).cast(pa.decimal128(21, 2)),
    "timestamp": pa.array([1, 2, 3], pa.timestamp("us")),
    "map": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    "date": pa.array([1, 2, 3], pa.date32()),
    "binary": pa.array([b"a"] * 3),
    "list of lists": pa.array([[[1.0]]] * 3),
    "list of structs": pa.array([[{"a": 1}]] * 3),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("role", "wanted"),
    [
        ("numeric", "numbers, truth values, or lists of them of one length"),
        ("categorical", "words: strings, integers or truth values"),
        ("multivalued", "lists of strings, integers or truth values"),
    ],
)
def test_a_type_without_an_encoding_is_refused_by_name(file: Path, wrong: str, role: str, wanted: str) -> None:
    write(file, table(x=WRONG[wrong], price=None, brand=None))
    seen = pq.read_schema(file).field("x").type
    found = refusal(file, **only_x(role))
    assert found == f"column 'x' must hold {wanted}, got {seen}. Convert or ignore it."


@pytest.mark.parametrize(
    ("role", "values", "wanted"),
    [
        ("numeric", pa.array(["1"] * 3), "numbers, truth values, or lists of them of one length"),
        ("numeric", pa.array([["1"]] * 3), "numbers, truth values, or lists of them of one length"),
        ("categorical", pa.array([1.0] * 3), "words: strings, integers or truth values"),
        ("categorical", pa.array([["a"]] * 3), "words: strings, integers or truth values"),
        ("multivalued", pa.array(["a"] * 3), "lists of strings, integers or truth values"),
        ("multivalued", pa.array([[1.0]] * 3), "lists of strings, integers or truth values"),
    ],
)
def test_words_and_numbers_and_lists_are_not_mistaken_for_each_other(file: Path, role: str, values: pa.Array, wanted: str) -> None:
    write(file, table(x=values, price=None, brand=None))
    seen = pq.read_schema(file).field("x").type
    found = refusal(file, **only_x(role))
    assert found == f"column 'x' must hold {wanted}, got {seen}. Convert or ignore it."


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_decimal_in_any_file_is_refused(tmp_path: Path, order: str) -> None:
    write(tmp_path / f"{order[0]}.parquet", table())
    write(tmp_path / f"{order[1]}.parquet", table(price=WRONG["decimal"]))
    assert refusal(tmp_path).startswith("column 'price' must hold numbers")


@pytest.mark.parametrize("column", ["label", "weight"])
def test_a_label_or_weight_of_words_is_refused(file: Path, column: str) -> None:
    write(file, table(**{column: pa.array(["yes", "no", "yes"])}))
    assert refusal(file) == f"column '{column}' must be a number or a truth value, got string. Convert it."


@pytest.mark.parametrize("name", ["user_id", "item_id"])
@pytest.mark.parametrize("dtype", [pa.float64(), pa.uint64(), pa.date32(), pa.null()], ids=str)
@pytest.mark.parametrize(("role", "alone"), [("path", True), ("path", False), ("score", False)])
def test_an_id_that_is_neither_integer_nor_string_is_refused(
    file: Path, name: str, role: Role, dtype: pa.DataType, alone: bool
) -> None:
    values = pa.nulls(3, dtype) if dtype in (pa.null(), pa.date32()) else pa.array([1, 2, 3]).cast(dtype)
    other = {"user_id": "item_id", "item_id": "user_id"}[name]
    rows = table().drop_columns([name, other] if alone else name).append_column(name, values)
    write(file, rows)
    assert refusal(file, role) == (
        f"column '{name}' must be an integer of at most 64 signed bits or a string, got {dtype}. Convert it before the run."
    )


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "the folder has no *.parquet file. Check pairs.path."
    assert refusal(tmp_path, format="csv") == "the folder has no *.csv file. Check pairs.path."
    assert refusal(tmp_path / "x") == "no such file or folder. Check pairs.path; relative paths start where the command runs."


def test_two_columns_of_one_name_are_refused(file: Path) -> None:
    write(file, pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]))
    assert refusal(file) == "column names must differ, got a, a. Rename one of each two."


def test_no_feature_at_all_is_refused(file: Path) -> None:
    write(file, table(price=None, brand=None))
    assert refusal(file, numeric=(), categorical=()) == "at least one feature column is needed. Name them in [pairs]."


def side_tables(tmp_path: Path, users: pa.Table, **values: Any) -> str:
    """The sentence that refuses the users table; its place is {users}, that of the rows {rows}."""
    path = write(tmp_path / "users.parquet", users)
    rows = write(tmp_path / "rows.parquet", table())
    with pytest.raises(DataError) as caught:
        opened(rows, users=str(path), **values)
    return str(caught.value).replace(str(path), "{users}").replace(str(rows), "{rows}")


def test_a_joined_table_with_ids_of_another_type_is_refused(tmp_path: Path) -> None:
    assert side_tables(tmp_path, pa.table({"user_id": ["1"], "age": [1]}), numeric=("price", "age")) == (
        "{users}: column 'user_id' must be int64 as in {rows}, got string. Convert one of them."
    )
    assert side_tables(tmp_path, pa.table({"user_id": [1.0], "age": [1]}), numeric=("price", "age")) == (
        "{users}: column 'user_id' must be an integer of at most 64 signed bits or a string, got double. Convert it before the run."
    )


def test_a_joined_table_without_its_key_is_refused(tmp_path: Path) -> None:
    assert side_tables(tmp_path, pa.table({"id": [1], "age": [1]}), numeric=("price", "age")) == (
        "{users}: column 'user_id' is missing; seen id, age. Add it, or set pairs.user_id."
    )


def test_a_column_in_two_tables_is_refused(tmp_path: Path) -> None:
    assert side_tables(tmp_path, pa.table({"user_id": [1], "price": [1.0]})) == (
        "{rows}: column 'price' must stand in one table, got 2. Drop one."
    )


def test_a_column_of_a_joined_table_that_nobody_named_is_refused(tmp_path: Path) -> None:
    assert side_tables(tmp_path, pa.table({"user_id": [1], "age": [1]})) == (
        "{users}: column 'age' is not named in [pairs]. Add it to numeric, categorical or multivalued, or to ignore."
    )


def test_rows_to_be_joined_need_both_ids(tmp_path: Path) -> None:
    users = write(tmp_path / "users.parquet", pa.table({"user_id": [1], "age": [1]}))
    rows = write(tmp_path / "rows.parquet", table(user_id=None))
    found = refusal(rows, users=str(users), numeric=("price", "age"))
    assert found == "column 'user_id' is missing; seen item_id, price, brand, label. Add it, or set pairs.user_id."


# ---- against a bundle


def spec_of(*columns: ColumnSpec, **vocabularies: tuple[str, ...]) -> FeatureSpec:
    return FeatureSpec((), (), (), (), vocabularies, columns=columns)


PRICE, BRAND = ColumnSpec("price", "number"), ColumnSpec("brand", "word")


def test_rows_like_those_of_the_training_have_the_bundles_columns(file: Path) -> None:
    trained = ColumnSpec("price", "number", divide=9.0)
    assert opened(write(file, table()), "score", spec_of(trained, BRAND, brand=("a",))).columns == (trained, BRAND)


def test_a_bundle_that_was_fed_other_columns_is_refused(file: Path) -> None:
    write(file, table())
    assert refusal(file, "score", spec_of(PRICE)) == (
        "the bundle was fed price; [pairs] differs in 'brand'. Train again, or name the same."
    )
    assert refusal(file, "score", spec_of()) == (
        "the bundle was trained by the shop door, whose features only it makes. Train one with this [pairs] section."
    )


def test_a_column_that_was_a_list_in_training_is_refused_as_a_number(file: Path) -> None:
    write(file, table())
    assert refusal(file, "score", spec_of(ColumnSpec("price", "numbers", width=3), BRAND, brand=("a",))) == (
        "column 'price' must be as the model was trained: a numbers column of rows, got double in rows. Convert it, or train again."
    )


def test_a_column_that_stood_in_another_table_in_training_is_refused(file: Path) -> None:
    write(file, table())
    assert refusal(file, "score", spec_of(ColumnSpec("price", "number", table="items"), BRAND, brand=("a",))) == (
        "column 'price' must be as the model was trained: a number column of items, got double in rows. Convert it, or train again."
    )


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (pa.array([1, 2, 3]), "int64"),
        (pa.array([1, 2, 3], pa.uint8()), "uint8"),
        (pa.array([True] * 3), "bool"),
        (pa.array([1, 2, 3]).dictionary_encode(), "int64"),
    ],
)
def test_words_of_another_type_than_the_vocabularys_are_refused(file: Path, values: pa.Array, seen: str) -> None:
    write(file, table(brand=values))
    assert refusal(file, "score", spec_of(PRICE, BRAND, brand=("a", "b", "c", "d"))) == (
        f"column 'brand' must hold words such as a, b, c, got {seen}. Convert it, or train again."
    )


@pytest.mark.parametrize(
    "values", [pa.array(["1", "2", "3"]), pa.array([1, 2, 3], pa.uint64()), pa.nulls(3)], ids=lambda values: str(values.type)
)
def test_words_that_are_written_alike_are_the_same_words(file: Path, values: pa.Array) -> None:
    write(file, table(brand=values))
    assert opened(file, "score", spec_of(PRICE, BRAND, brand=("1", "3"))).columns == (PRICE, BRAND)


def test_lists_of_words_of_another_type_are_refused(file: Path) -> None:
    write(file, table(brand=None, tags=pa.array([[1]] * 3)))
    spec = spec_of(PRICE, ColumnSpec("tags", "words", width=2), tags=("a",))
    assert refusal(file, "score", spec, categorical=(), multivalued=("tags",)) == (
        f"column 'tags' must hold words such as a, got {pq.read_schema(file).field('tags').type}. Convert it, or train again."
    ).replace("list<element: int64>", "int64")


def test_the_key_of_a_user_is_the_same_for_every_type_of_its_id(tmp_path: Path) -> None:
    keys: dict[str, list[np.ndarray]] = {"number": [], "word": []}
    for name, values in (("int64", pa.array([3, None, -1])), ("int8", pa.array([3, None, -1], pa.int8()))):
        keys["number"].append(user_keys(tmp_path / f"{name}.parquet", values))
    for name, words in (("string", pa.array(["a", None, "ü"])), ("large", pa.array(["a", None, "ü"], pa.large_string()))):
        keys["word"] += [
            user_keys(tmp_path / f"{name}.parquet", words),
            user_keys(tmp_path / f"{name}d.parquet", words.dictionary_encode()),
        ]
    for found in keys.values():
        assert len({key.tobytes() for key in found}) == 1
        assert len(set(found[0].tolist())) == 3


def user_keys(path: Path, users: pa.Array) -> np.ndarray:
    rows = opened(write(path, table(user_id=users)), "score")
    (batch,) = read_shard_rows(rows, cut_shards(rows, size=10**9)[0].unit())
    return rows.user_keys(batch.columns)


def test_what_is_read_can_be_encoded(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", table(tags=pa.array([["x"], [], None]), v=pa.array([[1, 2]] * 3)), row_group_size=2)
    write(
        tmp_path / "b.parquet",
        table(
            tags=pa.array([[], [], None], pa.list_(pa.null())), v=pa.array([[0.5, 2]] * 3, pa.list_(pa.float32(), 2)), brand=pa.nulls(3)
        ),
    )
    rows = opened(tmp_path, "path", numeric=("price", "v"), multivalued=("tags",), words={"max_values": 2})
    spec = FeatureSpec(
        dense=("price", "v[0]", "v[1]"),
        mean=(0.0,) * 3,
        scale=(1.0,) * 3,
        codes=("brand", "tags", "tags"),
        vocabularies={"brand": ("a",), "tags": ("x",)},
        fill=(0.0,) * 3,
        limit=(8.0,) * 3,
        columns=rows.columns,
    )
    read = [
        encoder(spec, "rows")(batch.columns) for shard in cut_shards(rows, size=10**9) for batch in read_shard_rows(rows, shard.unit())
    ]
    assert [part.unfit for part in read] == [{}] * len(read)
    assert np.vstack([part.codes for part in read]).tolist() == [[1, 1, 0], *[[1, 0, 0]] * 2, *[[0, 0, 0]] * 3]
    assert np.vstack([part.dense for part in read])[:, 1].tolist() == [1, 1, 1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("column", "there"),
    [("brand", pa.array([1, 2])), ("size", pa.array([[1.0], [2.0]])), ("size", pa.array([1, 2], pa.int8()))],
    ids=["words of another kind", "a list", "another number"],
)
def test_test_rows_must_become_the_same_inputs_as_the_training_rows(tmp_path: Path, column: str, there: pa.Array) -> None:
    ids = {"user_id": pa.array([1, 2]), "item_id": pa.array([3, 4]), "label": pa.array([0, 1])}
    rows = ids | {"brand": pa.array(["a", "b"]), "size": pa.array([0.5, 1.5])}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    pq.write_table(pa.table(rows | {column: there}), tmp_path / "test.parquet")
    told = settings(tmp_path / "train.parquet", test=str(tmp_path / "test.parquet"), numeric=["size"])
    both = open_feature_table(told, "path"), open_feature_table(told, "test")
    if there.type == pa.int8():  # any number will do
        check_alike(*both)
        return
    with pytest.raises(DataError, match=rf"test\.parquet: column '{column}' must be .* as in .*train\.parquet, got .*\. Convert one\."):
        check_alike(*both)
