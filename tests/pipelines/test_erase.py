"""`jobs.erase` on two nights of a shop: nobody can find the users any more, the others' lists stand, and the next night goes on."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog

from recsys.data import synthetic
from recsys.errors import ConfigError
from recsys.pipelines import erase as module
from recsys.pipelines.erase import read_ids
from recsys.publishing.table import published_nights
from recsys.ranking.registry import Registry
from tests.contents import content
from tests.small import small_file
from tests.verbs import Ended

Run = Callable[..., Ended]
DAY = date(2024, 6, 6)
LOOSE = {"min_overlap": 0.0, "max_drift": 100.0, "max_score_shift": 100.0, "max_source_change": 1.0, "min_source_kept": 0.0}
NIGHTLY = ("nightly", "--config")


def person(number: int) -> str:
    return f"person-{number:05d}@example.org"


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for file in folder.glob("*.parquet"):
        pq.write_table(change(pq.read_table(file)), file)


def named(table: pa.Table) -> pa.Table:
    ids = pa.array([person(user) for user in table["user_id"].to_pylist()])
    return table.set_column(table.schema.get_field_index("user_id"), "user_id", ids)


@pytest.fixture
def shop(tmp_path: Path) -> synthetic.Planted:
    """Ids that are easily found again."""
    made = synthetic.shop(
        tmp_path / "shop", users=60, items=60, days=98, seed=3, end=DAY + timedelta(days=2), events_per_user=20, with_users=False
    )
    rewrite(made.events, named)
    gate = {"max_baseline_loss": 1.0, "min_items": 0.0, "max_concentration_rise": 1.0, "min_users": 0.0} | LOOSE
    places = "".join(f'[[exports]]\nto = "{place}"\n' for place in (f"parquet:{tmp_path}/made/lists", iceberg(tmp_path)))
    (tmp_path / "shop.toml").write_text(small_file(tmp_path, gate=gate, signals={"factors": 4}) + places)
    return made


def iceberg(folder: Path) -> str:
    return f"iceberg://house/shop.lists?type=sql&uri=sqlite:///{folder}/made/catalog.db&warehouse=file://{folder}/made/warehouse"


def in_iceberg(folder: Path) -> polars.DataFrame:
    """As `by_polars`, by pyiceberg."""
    catalog = load_catalog("house", type="sql", uri=f"sqlite:///{folder}/made/catalog.db")
    rows = polars.from_arrow(catalog.load_table("shop.lists").scan().to_arrow())
    catalog.close()
    assert isinstance(rows, polars.DataFrame)
    return rows.select("as_of", "user_id", "rank", "item_id", "score", "run_id").sort("as_of", "user_id", "rank")


def by_polars(folder: Path) -> polars.DataFrame:
    table = polars.scan_delta(str(folder / "made" / "table")).select("as_of", "user_id", "rank", "item_id", "score", "run_id")
    return table.sort("as_of", "user_id", "rank").collect()


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_erased_people_are_nowhere_and_the_next_night_knows_nothing_of_them(
    shop: synthetic.Planted, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, table = str(tmp_path / "shop.toml"), str(tmp_path / "made" / "table")
    for day in (DAY, DAY + timedelta(days=1)):
        night = run(*NIGHTLY, config, "--as-of", str(day))
        assert night.status == 0, night.err
    record = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())
    everybody = by_polars(tmp_path)
    assert in_iceberg(tmp_path).equals(everybody)
    assert len(list((tmp_path / "made" / "lists").iterdir())) == 3  # two nights, and what says which is current
    shown = [one["user_id"] for one in record["sample"]]
    gone = [shown[0], next(user for user in everybody["user_id"].unique().sort() if user not in shown)]
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([*gone, "", f" {gone[0]} ", person(99_999)]) + "\n")
    command = ("erase", "--config", config, "--ids", str(ids))

    refused = run(*command)
    assert refused.status == 1
    assert "shop.events = " in refused.err
    assert "must hold none of the users to erase, got 2 of 3 in" in refused.err
    assert by_polars(tmp_path).equals(everybody)

    rewrite(shop.events, lambda rows: rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=pa.array(gone)))))
    published = {night.as_of: night.published_utc for night in published_nights(table)}

    def killed(*arguments: Any) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "shutil", SimpleNamespace(rmtree=killed))  # when the table and the pages are done
        assert run(*command).status != 0
    ended = run(*command)
    assert ended.status == 0, ended.err
    for file in (tmp_path / "made").rglob("*"):
        if file.is_file():
            assert not any(user in content(file) for user in gone), file
    assert "None of" in ended.out
    assert by_polars(tmp_path).equals(everybody.filter(~polars.col("user_id").is_in(gone)))
    assert in_iceberg(tmp_path).equals(by_polars(tmp_path))
    assert len(list((tmp_path / "made" / "lists").iterdir())) == 2
    assert {night.as_of: night.published_utc for night in published_nights(table)} == published
    (certificate,) = (json.loads(file.read_text()) for file in (tmp_path / "made" / "reports" / "erasures").glob("*.json"))
    assert (certificate["users"], certificate["pages"]) == (3, [f"{DAY}.json", f"{DAY + timedelta(days=1)}.json"])
    rows = everybody.filter(polars.col("user_id").is_in(gone)).group_by("as_of").len().sort("as_of", descending=True).rows()
    assert len(rows) == 2
    assert [(night["as_of"], night["rows"]) for night in certificate["nights"]] == [(day.isoformat(), count) for day, count in rows]
    assert certificate["exports"] == [f"parquet:{tmp_path}/made/lists", "iceberg://house/shop.lists"]
    assert certificate["work_files"] > 20  # as the run that was killed had found them
    assert certificate["bundles"] == Registry(tmp_path / "made" / "bundles").versions()
    told = run("bundles", "list", "--config", config)
    assert "was trained before 3 users were erased" in told.out

    again = run(*NIGHTLY, config, "--as-of", str(DAY + timedelta(days=2)))
    assert again.status == 0, again.err
    new = by_polars(tmp_path).filter(polars.col("as_of") == DAY + timedelta(days=2))
    assert new["user_id"].n_unique() == everybody["user_id"].n_unique() - 2
    assert set(new["user_id"]).isdisjoint(gone)


def test_ids_are_lines_of_the_type_of_the_shop_s(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("12\n\n 7 \n12\n-3\n")
    assert read_ids(file, pa.int64()).to_pylist() == [12, 7, -3]
    assert read_ids(file, pa.string()).to_pylist() == ["12", "7", "-3"]
    file.write_text("12\nann\n")
    with pytest.raises(ConfigError, match=r"user ids are int64, got 'ann' on line 2\. Nothing was erased; mend it\.$"):
        read_ids(file, pa.int64())
    file.write_text("\n \n")
    with pytest.raises(ConfigError, match="must list the ids to erase, one a line, got none"):
        read_ids(file, pa.int64())
    with pytest.raises(ConfigError, match="must be a text file with an id on each line"):
        read_ids(tmp_path / "nowhere", pa.int64())


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("2024-01-01.json", '{"sample": [{"user_id": 7}]}', True),
        ("2024-01-01.json", '{"rows": 7, "sample": [{"user_id": 70}]}', False),
        ("2024-01-01.html", "<h3>User 7</h3>", True),
        ("2024-01-01.html", "<h3>User 70</h3> 7 rows", False),
        ("2024-01-01.json", '{"sample": [', True),  # damaged: it may name anybody
        ("note.txt", "user 7", False),  # a number says nothing where no column says what it is
    ],
)
def test_a_number_is_found_where_it_is_a_user(tmp_path: Path, name: str, text: str, named: bool) -> None:
    (tmp_path / name).write_text(text)
    assert bool([*module._naming([tmp_path / name], pa.array([7]))]) == named


@pytest.mark.parametrize(
    ("text", "named"), [("seen ann@example.org.", True), ("joann@example.org", False), ("ann@example.organ", False)]
)
def test_a_long_id_is_found_in_any_file(tmp_path: Path, text: str, named: bool) -> None:
    (tmp_path / "any.bin").write_bytes(b"\x00" + text.encode() + b"\xff")
    assert bool([*module._naming([tmp_path / "any.bin"], pa.array(["ann@example.org"]))]) == named
