"""`jobs.init` on shops of six shapes, as their makers write them: columns, times, kinds and windows are guessed, and the file works."""

import csv
import json
import tomllib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars
import pyarrow.parquet as pq
import pytest

from recsys import config
from recsys.data import synthetic
from tests.verbs import Ended

Run = Callable[..., Ended]
START = datetime(2023, 1, 1, tzinfo=UTC)
DAYS = 300


class Sale(NamedTuple):
    """One purchase of a made shop."""

    user: int
    item: int
    at: datetime


def sales(*, users: int = 60, items: int = 40, every: float = 10.0, again: bool = True, seed: int = 0) -> list[Sale]:
    """Purchases of users who come back after `every` days on average, in the order of time."""
    random = np.random.default_rng(seed)
    made: list[Sale] = []
    for user in range(users):
        day, had = random.uniform(0, 30), set[int]()
        while day < DAYS:
            item = int(random.integers(items))
            if again or item not in had:
                had.add(item)
                made.append(Sale(user, item, START + timedelta(days=day)))
            day += random.exponential(every)
    return sorted(made, key=lambda sale: sale.at)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


class Shape(NamedTuple):
    """A shop's files, and what must be guessed."""

    places: dict[str, Path]
    expected: dict[str, Any]
    last: date
    unsure: set[str]


def films(folder: Path) -> Shape:
    """MovieLens: seconds since 1970, camel case, nothing twice."""
    made = sales(again=False)
    ratings = write_csv(
        folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], [(u, i, 4.5, int(at.timestamp())) for u, i, at in made]
    )
    movies = write_csv(folder / "movies.csv", ["movieId", "title", "genres"], [(i, f"Film {i}", f"G{i % 4}|X") for i in range(40)])
    shop = {"columns": {"user_id": "userId", "item_id": "movieId", "ts": "timestamp", "name": "title"}, "ts_format": "s"}
    return Shape(
        {"events": ratings, "items": movies}, {"shop": shop, "features": {"item_categorical": ["genres"]}}, made[-1].at.date(), set()
    )


def clicks(folder: Path) -> Shape:
    """RetailRocket: milliseconds, views and carts before purchases, no tables beside."""
    rows: list[Sequence[Any]] = []
    for user, item, at in (made := sales()):
        ms = int(at.timestamp() * 1000)
        rows += [(ms - 60_000 * k, user, "view", item, "") for k in (3, 2)] + [(ms - 50_000, user, "addtocart", item, "")]
        rows.append((ms, user, "transaction", item, len(rows)))
    events = write_csv(folder / "events.csv", ["timestamp", "visitorid", "event", "itemid", "transactionid"], rows)
    shop = {"columns": {"user_id": "visitorid", "item_id": "itemid", "ts": "timestamp", "kind": "event"}}
    return Shape(
        {"events": events},
        {"shop": shop | {"ts_format": "ms", "label_kinds": ["transaction"], "look_kinds": ["view", "addtocart"]}},
        made[-1].at.date(),
        set(),
    )


def invoices(folder: Path) -> Shape:
    """Online Retail: one table of lines, ids with fractions and gaps, text of an American clock without a zone, semicolons."""
    made = sales(every=30.0)
    rows = [
        (
            536_365 + n,
            f"{i + 10_000}B",
            f"A thing, number {i}",
            2,
            f"{at.month}/{at.day}/{at.year} {at.hour}:{at.minute:02d}",
            2.55,
            u if n % 50 else "",
            "UK",
        )
        for n, (u, i, at) in enumerate(made)
    ]
    header = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
    events = write_csv(folder / "retail.csv", header, rows, delimiter=";")
    columns = {"user_id": "CustomerID", "item_id": "StockCode", "ts": "InvoiceDate", "quantity": "Quantity", "price": "UnitPrice"}
    shop = {"columns": columns, "ts_format": "%m/%d/%Y %H:%M", "timezone": "UTC"}
    return Shape({"events": events}, {"shop": shop}, made[-1].at.date(), {"timezone"})


def clothes(folder: Path) -> Shape:
    """H&M: days, hashed users, ids with zeros in front, tables of items and users."""
    made = sales(every=5.0)
    header = ["t_dat", "customer_id", "article_id", "price", "sales_channel_id"]
    rows = [(at.date(), f"{u:064x}", f"{i:010d}", round(0.01 + i / 999, 5), 1 + i % 2) for u, i, at in made]
    events = write_csv(folder / "transactions.csv", header, rows)
    items = write_csv(
        folder / "articles.csv",
        ["article_id", "prod_name", "product_type_no", "colour_group_name", "detail_desc"],
        [(f"{i:010d}", f"Top {i}", 250 + i % 5, f"Colour {i % 3}", f"A long text on the thing {i}, " * 4) for i in range(40)],
    )
    users = write_csv(
        folder / "customers.csv", ["customer_id", "age", "postal_code"], [(f"{u:064x}", 20 + u * 0.5, f"{u:032x}") for u in range(60)]
    )
    columns = {"user_id": "customer_id", "item_id": "article_id", "ts": "t_dat", "name": "prod_name"}
    features = {"item_categorical": ["product_type_no", "colour_group_name"], "user_numeric": ["age"]}
    expected = {"shop": {"columns": columns, "timezone": "UTC"}, "features": features}
    return Shape({"events": events, "items": items, "users": users}, expected, made[-1].at.date(), {"timezone"})


def reviews(folder: Path) -> Shape:
    """Amazon's reviews: JSON lines, names of their own, prose."""
    made = sales(every=40.0, again=False)
    path = folder / "reviews.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for user, item, at in made:
            row = {
                "reviewerID": f"A{user}X",
                "asin": f"B00{item}",
                "overall": 1.0 + (user + item) % 5,
                "unixReviewTime": int(at.timestamp()),
            }
            file.write(json.dumps(row | {"reviewText": "Very good. " * 9, "verified": True}) + "\n")
    columns = {"user_id": "reviewerID", "item_id": "asin", "ts": "unixReviewTime", "value": "overall"}
    shop = {"columns": columns, "ts_format": "s", "least_value": 4.0}
    return Shape({"events": path}, {"shop": shop}, made[-1].at.date(), {"least_value"})


def planted(folder: Path) -> Shape:
    """Parquet in our own names: views beside purchases, tables of items and users, times in UTC."""
    end = date(2024, 1, 1)
    made = synthetic.shop(folder / "shop", users=80, items=60, days=DAYS, seed=0, end=end, kinds=True, vectors=5)
    features = {"item_categorical": ["category", "brand"], "item_numeric": ["size", "price"], "user_categorical": ["age", "region"]}
    features["item_vectors"] = ["vector"]
    expected = {"shop": {"label_kinds": ["purchase"], "look_kinds": ["view"]}, "features": features}
    assert made.items
    assert made.users
    return Shape({"events": made.events, "items": made.items, "users": made.users}, expected, end - timedelta(days=1), set())


@pytest.mark.parametrize("shape", [films, clicks, invoices, clothes, reviews, planted])
def test_a_shop_is_understood_and_its_settings_open_it(shape: Callable[[Path], Shape], run: Run, tmp_path: Path) -> None:
    made = shape(tmp_path)
    out = tmp_path / "settings" / "my.toml"
    out.parent.mkdir()
    options = [part for name, place in made.places.items() for part in (f"--{name}", str(place))]
    ended = run("init", *options, "--out", str(out))
    assert (ended.status, ended.err) == (0, "")
    assert f"--config {out} --as-of {made.last + timedelta(days=1)}" in " ".join(ended.out.split())
    values = tomllib.loads(out.read_text())
    shop = {name: value for name, value in values["shop"].items() if name not in (*made.places, "ignore")}
    assert {"shop": shop, "features": values.get("features", {})} == {"features": {}} | made.expected
    assert {name: values["shop"][name] for name in made.places} == {name: str(place) for name, place in made.places.items()}
    assert values["table"]["path"] == str(tmp_path / "settings" / "my" / "table")
    lines = out.read_text().splitlines()
    assert {lines[number + 1].split(" = ")[0] for number, line in enumerate(lines) if line.startswith("# CHECK: ")} == made.unsure
    for number, line in enumerate(lines):  # every guess has its reason above it
        if " = " in line and line.split(" = ")[0] in (
            "ts_format",
            "timezone",
            "label_kinds",
            "least_value",
            "item_categorical",
            "label_days",
        ):
            assert lines[number - 1].startswith("# ")
    config.load(out)


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_strangers_csv_becomes_a_table_by_what_the_verbs_print(run: Run, tmp_path: Path) -> None:
    made = synthetic.shop(tmp_path / "shop", users=80, items=60, days=200, seed=0, end=date(2024, 1, 1), kinds=True)
    table = pq.read_table(made.events).to_pandas()
    table = table.assign(timestamp=table["ts"].astype("datetime64[ms, UTC]").astype("int64"), transactionid=range(len(table)))
    table = table.rename(columns={"user_id": "visitorid", "item_id": "itemid", "kind": "event"})
    table[["timestamp", "visitorid", "event", "itemid", "transactionid"]].to_csv(tmp_path / "events.csv.gz", index=False)
    settings = str(tmp_path / "shop.toml")
    ended = run("init", "--events", str(tmp_path / "events.csv.gz"), "--out", settings)
    for verb in ("check", "nightly"):
        assert ended.status == 0, ended.err
        ended = run(verb, "--config", settings, "--as-of", "2024-01-01")
    assert ended.status == 0, ended.err
    shown = run("show", "--config", settings, "--user", str(table["visitorid"][0]))
    assert f"Recommendations of user {table['visitorid'][0]} as of 2024-01-01" in shown.out
    rows = polars.scan_delta(str(tmp_path / "shop" / "table")).collect()
    assert (rows.height, rows["user_id"].n_unique(), rows["user_id"].dtype) == (80 * 10, 80, polars.String)


@pytest.mark.parametrize(("every", "days"), [(4.0, 7), (12.0, 14), (60.0, 56)])
def test_windows_are_as_long_as_users_take_to_come_back(every: float, days: int, run: Run, tmp_path: Path) -> None:
    made = sales(every=every, users=150)
    events = write_csv(tmp_path / "e.csv", ["user_id", "item_id", "ts"], [(f"u{u}", f"i{i}", at.isoformat()) for u, i, at in made])
    assert run("init", "--events", str(events), "--out", str(tmp_path / "s.toml")).status == 0
    assert tomllib.loads((tmp_path / "s.toml").read_text())["window"]["label_days"] == days


def test_what_is_not_sure_is_asked_on_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        (f"u{u}", f"i{i}", at.replace(tzinfo=None).isoformat(), "used" if n % 3 else "kept") for n, (u, i, at) in enumerate(sales())
    ]
    events = write_csv(tmp_path / "e.csv", ["user_id", "item_id", "ts", "action"], rows)
    arguments = ("init", "--events", str(events), "--out")
    assert run(*arguments, str(tmp_path / "unasked.toml")).status == 0
    assert tomllib.loads((tmp_path / "unasked.toml").read_text())["shop"]["label_kinds"] == ["kept"]
    assert "# CHECK: what lists are to foretell" in (tmp_path / "unasked.toml").read_text()
    asked: list[str] = []

    def answer(prompt: str = "") -> str:
        asked.append(prompt)
        return ["Europe/Berlin", "used"][len(asked) - 1]

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    ended = run(*arguments, str(tmp_path / "asked.toml"))
    assert ended.status == 0, ended.err
    shop = tomllib.loads((tmp_path / "asked.toml").read_text())["shop"]
    assert (shop["timezone"], shop["label_kinds"]) == ("Europe/Berlin", ["used"])
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"e": "a,b\n1.5,x\n2.5,x\n"}, "e.csv: a column must say which item an event is of"),
        ({"e": "user_id,item_id,word\nu,i,x\nu,i,y\nv,j,z\n"}, "e.csv: a column must hold the times of events"),
        ({"e": "user_id,item_id,ts\nu,i,2023-01-01\n", "items": "x\n1.5\n2.5\n"}, "column must say which item a row is of"),
        (
            {"e": "user_id,item_id,ts\nu,i,2023-01-01\nv,i,2023-01-02\nu,j,2023-01-02\n", "items": "sku,x\ni,1\nj,2\n"},
            "Rename one of them.",
        ),
        (
            {"e": "user_id,item_id,ts\nu,i,2199-01-01\nv,i,2199-01-02\nu,j,2199-01-02\n"},
            "can be used with user_id, item_id, ts as its columns",
        ),
        ({}, "e.csv: no such file or folder. Check --events"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence_and_nothing_is_written(
    files: dict[str, str], message: str, run: Run, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    more = ("--items", str(tmp_path / "items.csv")) if "items" in files else ()
    ended = run("init", "--events", str(tmp_path / "e.csv"), *more, "--out", str(tmp_path / "s.toml"))
    assert (ended.status, ended.err.count("\n")) == (1, 1), ended.err
    assert message in ended.err
    assert not (tmp_path / "s.toml").exists()


def test_places_are_as_settings_take_them(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [(f"u{u}", f"i{i}", at.isoformat()) for u, i, at in sales()]
    write_csv(tmp_path / "e.csv", ["user_id", "item_id", "ts"], rows)
    assert run("init", "--events", "~/e.csv", "--out", str(tmp_path / "s.toml")).status == 0
    assert tomllib.loads((tmp_path / "s.toml").read_text())["shop"]["events"] == str(tmp_path / "e.csv")
    refused = run("init", "--events", "s3://me:word@bucket/e", "--out", str(tmp_path / "t.toml"))
    assert (refused.status, refused.err.count("\n"), "must name no user and no password" in refused.err) == (1, 1, True)
    assert "word@" not in refused.err


def test_a_file_that_stands_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("mine")
    ended = run("init", "--events", "nowhere", "--out", str(tmp_path / "s.toml"))
    assert (ended.status, ended.err) == (1, f"--out {tmp_path}/s.toml: must not exist yet. Name another file, or remove it.\n")
    assert (tmp_path / "s.toml").read_text() == "mine"
