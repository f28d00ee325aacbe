import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import config
from recsys.data.catalog import Catalog, read_catalog, write_catalog
from recsys.data.cleaning import build_catalog
from recsys.data.shop import ShopInputs, open_shop
from recsys.data.vectors import unit_vectors
from recsys.errors import DataError

LISTS = [[3.0, 4.0], None, [0.0, 0.0], [float("nan"), 1.0], [0.0, -2.0], [1.0, None]]


@pytest.mark.parametrize(
    "dtype", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.float16())], ids=str
)
def test_vectors_have_length_1_and_what_has_no_direction_is_counted(dtype: pa.DataType) -> None:
    lists = [one and [number if number is None else np.float16(number) for number in one] for one in LISTS]
    found, unusable = unit_vectors(
        pa.chunked_array([pa.array(lists[:2], dtype), pa.array(lists[2:], dtype)]), where="items", name="text"
    )
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0, 0], [0, 0], [0, -1], [0, 0]], rtol=1e-6)
    assert found.dtype == np.float32
    assert unusable == 3  # zeros, a NaN, a null within; not the null, which says that there is none


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"items: column 'text' holds vectors of 2 and 3 numbers; one length was expected\. Make all"):
        unit_vectors(pa.chunked_array([pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]])]), where="items", name="text")


def test_numbers_beyond_float32_are_rounded_or_no_vector() -> None:
    whole, none = unit_vectors(pa.chunked_array([pa.array([[2**24 + 1, 0]], pa.list_(pa.int64()))]), where="items", name="text")
    assert (whole.tolist(), none) == ([[1, 0]], 0)
    large, unusable = unit_vectors(pa.chunked_array([pa.array([[1e300, 0.0]])]), where="items", name="text")
    assert (large.tolist(), unusable) == ([[0, 0]], 1)


def test_of_no_vector_at_all_there_are_no_numbers() -> None:
    found, unusable = unit_vectors(pa.chunked_array([pa.array([None, None], pa.list_(pa.float32()))]), where="items", name="text")
    assert (found.shape, unusable) == ((2, 0), 0)


def opened(folder: Path, *tables: pa.Table, vectors: tuple[str, ...] = ("text",)) -> ShopInputs:
    (folder / "items").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / "items" / f"{number}.parquet")
    day = pa.array([0, 100 * 86_400_000_000], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [7, 9], "ts": day}), folder / "events.parquet")
    shop = config.Shop(events=str(folder / "events.parquet"), items=str(folder / "items"))
    features = config.Features(item_vectors=vectors)
    return open_shop(config.Settings(shop=shop, features=features, run=config.Run(work=str(folder / "work"))), as_of=date(1970, 4, 1))


def test_the_catalog_holds_the_vectors_of_all_files_in_the_order_of_its_items(tmp_path: Path) -> None:
    one = pa.table({"item_id": [5, 3], "text": pa.array([[0.0, 2.0], [1.0, 0.0]], pa.list_(pa.float64()))})
    other = pa.table({"item_id": [4, 3], "text": pa.array([None, [0.0, 1.0]], pa.list_(pa.float64()))})
    built, rejected = build_catalog(opened(tmp_path, one, other), pa.array([7, 9]))
    assert built.table.column("item_id").to_pylist() == [3, 4, 5, 7, 9]
    assert built.table.column_names == ["item_id", "available"]
    assert built.vectors["text"].tolist() == [
        [1, 0],
        [0, 0],
        [0, 1],
        [0, 0],
        [0, 0],
    ]  # of duplicates the first; none for what events know
    assert rejected == {"duplicate_item_id": 1}


def test_a_catalog_that_was_written_is_read_again_with_vectors_mapped(tmp_path: Path) -> None:
    vectors = {"b": np.eye(2, dtype=np.float32), "a": np.ones((2, 1), np.float32)}
    write_catalog(Catalog(pa.table({"item_id": [1, 2], "available": [True, False]}), vectors), tmp_path)
    again = read_catalog(tmp_path)
    assert list(again.vectors) == ["b", "a"]
    assert isinstance(again.vectors["b"], np.memmap)
    assert again.vectors["b"].tolist() == [[1, 0], [0, 1]]
    assert pq.read_schema(tmp_path / "catalog.parquet").names == ["item_id", "available"]
    assert json.loads(pq.read_schema(tmp_path / "catalog.parquet").metadata[b"item_vectors"]) == ["b", "a"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a"]), r"column 'text' must be a list of numbers to be a vector, got string\. Convert it"),
        (pa.array([["a"]]), r"column 'text' must be a list of numbers to be a vector, got list<"),
        (None, r"text"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused_before_work_starts(tmp_path: Path, column: pa.Array | None, message: str) -> None:
    table = pa.table({"item_id": [7]} | ({"text": column} if column is not None else {}))
    with pytest.raises(DataError, match=message):
        opened(tmp_path, table)


def test_settings_name_a_vector_column_once_and_need_items() -> None:
    with pytest.raises(ValueError, match="item column 'text' is named twice"):
        config.Settings(
            shop=config.Shop(events="e", items="i"), features=config.Features(item_numeric=("text",), item_vectors=("text",))
        )
    with pytest.raises(ValueError, match=r"features names item columns but shop\.items is absent"):
        config.Settings(shop=config.Shop(events="e"), features=config.Features(item_vectors=("text",)))


V32 = pa.list_(pa.float32())
ROWS = [[3.0, 4.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (V32, pa.list_(pa.float64())),
        (V32, pa.large_list(pa.float32())),
        (pa.list_(pa.float32(), 2), V32),
        (pa.list_(pa.field("element", pa.float32())), V32),  # as Spark names it
        (V32, pa.list_(pa.int64())),
    ],
    ids=str,
)
def test_files_may_write_vectors_as_other_lists(tmp_path: Path, one: pa.DataType, other: pa.DataType) -> None:
    tables = [pa.table({"item_id": ids, "text": pa.array(ROWS, dtype)}) for ids, dtype in (([1, 2], one), ([3, 4], other))]
    built, _ = build_catalog(opened(tmp_path, *tables), pa.array([7, 9]))
    np.testing.assert_allclose(built.vectors["text"][:4], [[0.6, 0.8], [0, 1]] * 2, rtol=1e-6)


def test_a_file_of_nulls_alone_has_no_vectors(tmp_path: Path) -> None:
    tables = [
        pa.table({"item_id": [1, 2], "text": pa.array(ROWS, V32)}),
        pa.table({"item_id": [3], "text": pa.nulls(1)}),
    ]
    built, rejected = build_catalog(opened(tmp_path, *tables), pa.array([7, 9]))
    assert not built.vectors["text"][2:].any()
    assert rejected == {}


def test_json_lines_hold_vectors_too(tmp_path: Path) -> None:
    inputs = opened(tmp_path, pa.table({"item_id": [1], "text": pa.array(ROWS[:1], V32)}))
    lines = [{"item_id": 1, "text": [3, 4]}, {"item_id": 2, "text": None}, {"item_id": 4, "text": [0, -1.5]}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shop = inputs.settings.shop.model_copy(update={"items": str(tmp_path / "items.jsonl")})
    again = open_shop(inputs.settings.model_copy(update={"shop": shop}), as_of=date(1970, 4, 1))
    built, _ = build_catalog(again, pa.array([7, 9]))
    np.testing.assert_allclose(built.vectors["text"][:3], [[0.6, 0.8], [0, 0], [0, -1]], rtol=1e-6)
