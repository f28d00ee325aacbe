"""Iceberg tables, written by pyiceberg, as the inputs of a shop."""

import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import DataScan, FileScanTask, Table
from pyiceberg.transforms import IdentityTransform

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.inputs import Input, open_input, read
from recsys.data.sample import look_at
from recsys.data.shop import ShopInputs, open_shop
from recsys.errors import DataError, Mistakes

END = date(2024, 6, 6)
ROWS = pa.table({"user_id": pa.array([1, 2, 3], pa.int64()), "item_id": ["a", "b", "c"], "kind": ["view", "buy", "view"]})


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    made = SqlCatalog("shop", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    made.create_namespace("shop")
    yield made
    made.close()


def table_of(catalog: SqlCatalog, name: str, *parts: pa.Table, by: str | None = None) -> Table:
    """A table with a snapshot for each part."""
    table = catalog.create_table(f"shop.{name}", schema=parts[0].schema)
    if by is not None:
        with table.update_spec() as update:
            update.add_field(by, IdentityTransform(), by)
    for part in parts:
        table.append(part)
    return table


def place(table: Table) -> str:
    """The table's folder, without its scheme."""
    return table.location().removeprefix("file://")


def opened(where: str, **options: Any) -> Input:
    return open_input("shop.events", where, {}, form=None, **options)


def values(source: Input, *columns: str) -> list[dict[str, Any]]:
    rows = pa.concat_tables([read(source, file, None, columns) for file in source.files])
    return rows.sort_by([(name, "ascending") for name in columns]).to_pylist()


def test_a_table_is_read_by_its_folder_and_by_its_metadata_and_as_it_was(catalog: SqlCatalog) -> None:
    table = table_of(catalog, "events", ROWS.slice(0, 2), ROWS.slice(2))
    for where in (place(table), table.metadata_location.removeprefix("file://")):
        source = opened(where)
        assert (source.rows, len(source.files), dict(source.columns)["item_id"]) == (3, 2, pa.string())
        assert values(source, "user_id", "item_id", "kind") == ROWS.to_pylist()
    assert opened(place(table)).identity() == opened(table.metadata_location.removeprefix("file://")).identity()
    first = table.snapshots()[0].snapshot_id
    assert values(opened(place(table), version=first), "user_id") == [{"user_id": 1}, {"user_id": 2}]
    with pytest.raises(DataError, match=rf"snapshot 5 must be one of the table, the last are {first}, "):
        opened(place(table), version=5)


def test_a_column_that_came_later_is_null_before_and_one_that_was_renamed_is_refused(catalog: SqlCatalog) -> None:
    table = table_of(catalog, "events", ROWS)
    with table.update_schema() as update:
        from pyiceberg.types import DoubleType

        update.add_column("price", DoubleType())
    table.append(ROWS.slice(0, 1).append_column("price", pa.array([0.5])))
    assert [row["price"] for row in values(opened(place(table)), "user_id", "price")] == [0.5, None, None, None]
    with table.update_schema() as update:
        update.rename_column("kind", "what")
    with pytest.raises(DataError, match=r"column 'kind' was written before the Iceberg table's columns were renamed \(now what\)"):
        opened(place(table))


def test_a_partition_column_is_a_column(catalog: SqlCatalog) -> None:
    table = table_of(catalog, "events", ROWS, by="kind")
    source = opened(place(table))
    assert sorted(file.partition["kind"] for file in source.files) == ["buy", "view"]
    assert values(source, "user_id", "kind") == ROWS.select(["user_id", "kind"]).to_pylist()


def test_deleted_rows_are_gone_or_the_table_is_refused(catalog: SqlCatalog) -> None:
    table = table_of(catalog, "events", ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyiceberg rewrites the file and says so
        table.delete("user_id == 2")
    assert values(opened(place(table)), "user_id") == [{"user_id": 1}, {"user_id": 3}]


def test_files_with_rows_deleted_beside_them_are_refused(catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    table, real = table_of(catalog, "events", ROWS), DataScan.plan_files

    def plan_files(scan: DataScan) -> list[FileScanTask]:  # pyiceberg writes no delete files: as if another engine had
        return [FileScanTask(task.file, delete_files={task.file}) for task in real(scan)]

    monkeypatch.setattr(DataScan, "plan_files", plan_files)
    with pytest.raises(DataError, match=r"has rows deleted beside file:.*, which cannot be read\. Rewrite its data files first"):
        opened(place(table))


def test_what_is_no_table_is_one_sentence(catalog: SqlCatalog, tmp_path: Path) -> None:
    table = table_of(catalog, "events", ROWS)
    folder = Path(place(table)) / "metadata"
    newest = Path(table.metadata_location.removeprefix("file://"))
    (folder / newest.name.replace("-", "-other-", 1)).write_bytes(newest.read_bytes())
    with pytest.raises(DataError, match=r"has 2 newest metadata files, of which its catalog knows the one\. Name that file\."):
        opened(place(table))
    assert opened(str(newest)).rows == 3
    newest.write_text("{}")
    with pytest.raises(DataError, match=r"cannot be read as an Iceberg table: .* Check shop.events"):
        opened(str(newest))
    newest.write_text("no json")
    with pytest.raises(DataError, match=r"cannot be read as an Iceberg table: "):
        opened(str(newest))


def shop_of(folder: Path, events: str, items: str) -> ShopInputs:
    values = {"shop": {"events": events, "items": items}, "features": {"item_categorical": ["category"]}}
    return open_shop(Settings.model_validate(values | {"run": {"work": str(folder / "work")}}), as_of=END)


def test_a_shop_of_iceberg_tables_is_the_shop_of_its_files(catalog: SqlCatalog, tmp_path: Path) -> None:
    planted = synthetic.shop(tmp_path / "shop", users=60, items=80, days=150, seed=1, end=END, events_per_user=20)
    assert planted.items is not None
    tables = {name: table_of(catalog, name, _read(where)) for name, where in (("events", planted.events), ("items", planted.items))}
    looked = []
    for number, (events, items) in enumerate(
        ((str(planted.events), str(planted.items)), (place(tables["events"]), place(tables["items"])))
    ):
        inputs, mistakes = shop_of(tmp_path / str(number), events, items), Mistakes()
        looked.append((inputs.first, inputs.last, look_at(inputs, mistakes, as_of=END)))
        mistakes.end()
    assert looked[0] == looked[1]


def _read(folder: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(folder)
