"""Nights listed in an Iceberg table, read by pyiceberg and by Polars: what they hold is what Polars reads from the Delta table."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.transforms import IdentityTransform

from recsys.errors import ConfigError, PublishError
from recsys.publishing import iceberg_target
from recsys.publishing.export import export
from recsys.publishing.iceberg_target import Followed, follow
from recsys.publishing.table import take_back
from recsys.schema import CARRIED_FROM, recommendations_schema
from tests.nights import NEXT, NIGHT, publish, rows_of
from tests.verbs import ROOT, Ended

THIRD = date(2017, 12, 3)
NAME = "shop.lists"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two nights."""
    for as_of, users in ((NIGHT, 40), (NEXT, 41)):
        add(tmp_path / "shop", as_of, users)
    return tmp_path / "shop"


def add(table: Path, as_of: date, users: int) -> None:
    publish(table, as_of, rows_of({f"user {number}": ["milk", "eggs"] for number in range(users)}), ids=pa.string())


@pytest.fixture
def to(tmp_path: Path) -> str:
    return f"iceberg://house/{NAME}?type=sql&uri=sqlite:///{tmp_path}/catalog.db&warehouse=file://{tmp_path}/warehouse"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    made = load_catalog("house", type="sql", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    yield made
    made.close()


def by_polars(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.sort("as_of", "user_id", "rank").collect()


def listed(table: Path) -> pl.DataFrame:
    return by_polars(pl.scan_delta(str(table)))


def held(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """What two readers see: the same."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # else Polars advises a plug-in
    found = catalog.load_table(NAME)
    rows = by_polars(pl.scan_iceberg(found.metadata_location))
    seen = pl.from_arrow(found.scan().to_arrow())
    assert isinstance(seen, pl.DataFrame)
    assert seen.sort("as_of", "user_id", "rank").equals(rows)
    return rows


def test_the_iceberg_table_lists_the_nights_in_the_table_s_own_files(
    table: Path, to: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert follow(str(table), to) == Followed(2, NEXT, 2, 0, 2 * (40 + 41))
    assert held(catalog, monkeypatch).equals(listed(table))
    assert follow(str(table), to) == Followed(2, NEXT, 0, 0, 0)
    assert len(catalog.load_table(NAME).snapshots()) == 1
    add(table, THIRD, 39)
    assert follow(str(table), to) == Followed(3, THIRD, 1, 0, 2 * 39)
    assert held(catalog, monkeypatch).equals(listed(table))
    take_back(str(table), to=NIGHT)
    assert follow(str(table), to) == Followed(1, NIGHT, 0, 2, 0)
    assert held(catalog, monkeypatch).equals(listed(table))
    of_night = catalog.load_table(NAME).scan(row_filter=f"as_of = '{NIGHT}' and user_id = 'user 7'").to_arrow()
    assert of_night.column("item_id").to_pylist() == ["milk", "eggs"]
    mine = {str(file) for file in table.rglob("*.parquet")}
    files = [task.file for task in catalog.load_table(NAME).scan().plan_files()]
    assert {file.file_path.removeprefix("file://") for file in files} <= mine  # nothing is copied
    user_id = catalog.load_table(NAME).schema().find_field("user_id").field_id
    assert all(user_id not in file.lower_bounds and 4 in file.lower_bounds for file in files)  # no metadata names a user


def test_one_row_group_is_read_where_one_night_is_asked_for(table: Path, to: str, catalog: Catalog) -> None:
    follow(str(table), to)
    assert len(list(catalog.load_table(NAME).scan(row_filter=f"as_of = '{NEXT}'").plan_files())) == 1


KILLED = """
import os, signal, sys
from pyiceberg.catalog.sql import SqlCatalog
real = SqlCatalog.commit_table
def commit_table(*told):
    if sys.argv[3] == "after":
        real(*told)
    os.kill(os.getpid(), signal.SIGKILL)
SqlCatalog.commit_table = commit_table
from recsys.publishing.iceberg_target import follow
follow(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_export_that_was_killed_leaves_one_whole_state_and_the_same_command_ends_it(
    table: Path, to: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    follow(str(table), to)
    before = held(catalog, monkeypatch)
    add(table, THIRD, 39)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(table), to, moment], cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert held(catalog, monkeypatch).equals(before if moment == "before" else listed(table))
    done = follow(str(table), to)
    assert done.added == (1 if moment == "before" else 0)
    assert held(catalog, monkeypatch).equals(listed(table))


def test_a_commit_that_another_one_overtakes_is_worked_out_anew(
    table: Path, to: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(str(table), to)
    add(table, THIRD, 39)
    real, others = iceberg_target._data_file, 0

    def data_file(*told: Any) -> Any:
        nonlocal others
        others += 1
        if others == 1:
            follow(str(table), to)  # of another process, meanwhile
        return real(*told)

    monkeypatch.setattr(iceberg_target, "_data_file", data_file)
    assert follow(str(table), to) == Followed(3, THIRD, 0, 0, 0)
    assert others == 2
    assert held(catalog, monkeypatch).equals(listed(table))


def test_what_was_erased_is_in_no_snapshot_and_no_metadata_is_left_of_it(
    table: Path, to: str, catalog: Catalog, tmp_path: Path
) -> None:
    follow(str(table), to)
    take_back(str(table), to=NIGHT)
    follow(str(table), to)
    assert len(catalog.load_table(NAME).snapshots()) == 2
    follow(str(table), to, forget=True)
    found = catalog.load_table(NAME)
    (snapshot,) = found.snapshots()
    manifests = {one.manifest_path for one in snapshot.manifests(found.io)} | {snapshot.manifest_list}
    assert {f"file://{file}" for file in (tmp_path / "warehouse").rglob("*.avro")} == manifests


def test_a_snapshot_that_somebody_tagged_stays(table: Path, to: str, catalog: Catalog) -> None:
    follow(str(table), to)
    tagged = catalog.load_table(NAME).current_snapshot()
    assert tagged is not None
    catalog.load_table(NAME).manage_snapshots().create_tag(tagged.snapshot_id, "audit").commit()
    add(table, THIRD, 39)
    follow(str(table), to, forget=True)
    assert tagged.snapshot_id in {one.snapshot_id for one in catalog.load_table(NAME).snapshots()}


def test_a_table_of_before_a_column_came_gets_it(table: Path, to: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recommendations_schema(pa.string(), pa.string())
    iceberg_target._opened(catalog, NAME, before.remove(before.get_field_index(CARRIED_FROM)))  # as an earlier release made it
    assert CARRIED_FROM not in catalog.load_table(NAME).schema().column_names
    follow(str(table), to)
    assert held(catalog, monkeypatch).equals(listed(table))


def test_the_verb_says_what_it_did(table: Path, to: str, tmp_path: Path, run: Callable[..., Ended]) -> None:
    (tmp_path / "shop.toml").write_text(f'[shop]\nevents = "nowhere"\n[table]\npath = "{table}"\n')
    ended = run("export", "--config", str(tmp_path / "shop.toml"), "--to", to)
    assert ended.status == 0, ended.err
    assert " ".join(ended.out.split()).startswith(
        f"In iceberg://house/{NAME}: 2 nights, 2017-12-02 the newest: 2 files added, 0 removed; 162 rows in"
    )


@pytest.mark.parametrize(
    ("to", "error", "message"),
    [
        ("iceberg://house/lists", ConfigError, r"must be iceberg://CATALOG/NAMESPACE\.TABLE\. Mend it\.$"),
        ("iceberg:///shop.lists", ConfigError, r"must be iceberg://CATALOG/NAMESPACE\.TABLE\."),
        ("iceberg://house/shop.lists?s3.secret-access-key=word", ConfigError, r"^--to: must hold no secret, "),
        ("iceberg://house/shop.lists?uri=postgresql://me:word@h/x", ConfigError, r"^--to: must hold no secret, "),
        ("iceberg://nobody/shop.lists", PublishError, r"^--to iceberg://nobody/shop\.lists: the catalog 'nobody' cannot be opened: "),
        (
            "iceberg://house/shop.lists?type=rest&uri=http://127.0.0.1:1",
            PublishError,
            r"^--to iceberg://house/shop\.lists: the catalog '?.*cannot be opened: .*[Cc]onnect",
        ),
        (
            "iceberg://house/shop.lists?type=sql&uri=sqlite:////nowhere/x.db",
            PublishError,
            r"^--to iceberg://house/shop\.lists: the catalog 'house' cannot be opened: .*unable to open database",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(table: Path, to: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        export(str(table), to, as_of=None, name="")
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_somebody_else_s_is_left_alone(table: Path, to: str, catalog: Catalog, tmp_path: Path) -> None:
    catalog.create_namespace("shop")
    other = catalog.create_table(NAME, schema=pa.schema({"as_of": pa.date32()}))
    with pytest.raises(PublishError, match=r"must be partitioned by as_of and made by this export, got another table"):
        follow(str(table), to)
    assert other.refresh().current_snapshot() is None
    catalog.drop_table(NAME)
    follow(str(table), to)
    mine = catalog.load_table(NAME)
    add(tmp_path / "another", NIGHT, 3)
    with pytest.raises(PublishError, match=r"must hold nothing but files of .*another, got file://.*shop/as_of=2017-12-01/part-"):
        follow(str(tmp_path / "another"), to)
    assert mine.refresh().metadata_location == mine.metadata_location
    assert mine.spec().fields[0].transform == IdentityTransform()


def test_there_must_be_a_night_and_it_takes_all_of_them(table: Path, to: str, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"a night must be published to be exported, got none\. Run jobs\.nightly\.$"):
        follow(str(tmp_path / "nowhere"), to)
    for as_of, since in ((NIGHT, None), (None, NIGHT)):
        with pytest.raises(ConfigError, match=r"an Iceberg table holds all nights\. Leave --as-of and --since out\.$"):
            export(str(table), to, as_of=as_of, since=since, name="")
