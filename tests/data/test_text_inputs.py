"""A shop in CSV or JSON lines, written by other tools, against the same shop in Parquet; and times that are numbers or text."""

import gzip
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.cleaning import clean
from recsys.data.inputs import read
from recsys.data.sample import ShopSample, look_at
from recsys.data.shop import ShopInputs, open_shop
from recsys.data.types import midnight
from recsys.errors import DataError, Mistakes

END = date(2024, 6, 6)
Write = Callable[[pd.DataFrame, Path], Path]


def as_parquet(table: pd.DataFrame, place: Path) -> Path:
    path = place.with_suffix(".parquet")
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    return path


def as_csv(table: pd.DataFrame, place: Path) -> Path:
    path = place.with_suffix(".csv")
    table.to_csv(path, index=False)
    return path


def as_semicolons(table: pd.DataFrame, place: Path) -> Path:
    path = place.with_suffix(".csv.gz")
    table.to_csv(path, index=False, sep=";", encoding="utf-8-sig")
    return path


def as_tabs_in_two_files(table: pd.DataFrame, place: Path) -> Path:
    place.mkdir()
    half = len(table) // 2
    table[:half].to_csv(place / "a.tsv", index=False, sep="\t")
    table[half:].to_csv(place / "b.tsv", index=False, sep="\t")
    return place


def as_json_lines(table: pd.DataFrame, place: Path) -> Path:
    path = place.with_suffix(".jsonl.gz")
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in table.to_dict("records"):
            values = {name: value.isoformat() if isinstance(value, pd.Timestamp) else value for name, value in row.items()}
            file.write(json.dumps({name: None if value != value else value for name, value in values.items()}) + "\n")
    return path


def opened(write: Write, folder: Path) -> ShopInputs:
    """A shop of text ids with zeros before them and times without a zone, its tables written so."""
    planted = synthetic.shop(folder / "planted", users=60, items=80, days=98, seed=1, end=END, events_per_user=20, kinds=True)
    events = pq.read_table(planted.events).to_pandas()
    items, users = (pq.read_table(place).to_pandas() for place in (planted.items, planted.users))
    for table in (events, items, users):
        for name in {"user_id", "item_id"} & set(table.columns):
            table[name] = table[name].map("{:05d}".format)
    events["ts"] = events["ts"].dt.tz_localize(None).dt.floor("s")
    events.loc[events.index[3], "item_id"] = None
    tables = {"events": events, "items": items, "users": users}
    shop = {name: str(write(table, folder / name)) for name, table in tables.items()}
    features = {"item_categorical": ["category"], "item_numeric": ["size"], "user_categorical": ["age"]}
    values = {"shop": shop | {"timezone": "UTC", "label_kinds": ["purchase"]}, "features": features}
    values |= {"window": {"label_days": 14, "cutoffs": 2}, "run": {"work": str(folder / "work")}}
    return open_shop(Settings.model_validate(values), as_of=END)


def looked(inputs: ShopInputs) -> ShopSample:
    mistakes = Mistakes()
    seen = look_at(inputs, mistakes, as_of=END)
    mistakes.end()
    return seen


@pytest.mark.parametrize("write", [as_csv, as_semicolons, as_tabs_in_two_files, as_json_lines])
def test_a_shop_in_text_is_the_shop_in_parquet(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "parquet").mkdir()
    text, parquet = opened(write, tmp_path / "text"), opened(as_parquet, tmp_path / "parquet")
    assert (text.user_id, text.item_id, text.first, text.last) == (pa.string(), pa.string(), parquet.first, parquet.last)
    assert looked(text) == looked(parquet)
    assert looked(text).rejected["events"] == {"null_item_id": 1}
    for table, columns in (("items", ["item_id", "category", "size", "name", "available"]), ("users", ["user_id", "age"])):
        one, other = (
            pa.concat_tables(read(getattr(inputs, table), file, None, columns) for file in getattr(inputs, table).files)
            for inputs in (text, parquet)
        )
        assert one.to_pylist() == other.cast(one.schema).to_pylist()


def test_files_of_two_forms_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "a.csv").write_text("user_id,item_id,ts\n1,2,2024-01-01\n")
    (folder / "b.jsonl").write_text('{"user_id": 1}\n')
    settings = Settings.model_validate({"shop": {"events": str(folder)}, "run": {"work": str(tmp_path / "work")}})
    with pytest.raises(DataError, match=rf"^{folder}: files must be of one form, got {folder}/a.csv and {folder}/b.jsonl\. Move "):
        open_shop(settings, as_of=END)


@pytest.mark.parametrize(
    ("form", "ending", "content", "message"),
    [
        ("text that is no JSON", "jsonl", '{"user_id": 1}\nno\n', r"not a file of JSON objects, one a line: "),
        ("a short row", "csv", "user_id,item_id,ts\n1,2\n", r"not a CSV file with a header: .*Expected 3 columns, got 2"),
        ("no UTF-8", "csv", b"user_id,item_id,ts\n\xe4,2,2024-01-01\n", r"not a CSV file with a header: .*UTF8"),
    ],
)
def test_text_that_cannot_be_read_is_one_sentence(form: str, ending: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"events.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = Settings.model_validate({"shop": {"events": str(path)}, "run": {"work": str(tmp_path / "work")}})
    with pytest.raises(DataError, match=f"^{path}: {message}"):
        open_shop(settings, as_of=END)


# ---- times that are numbers or text


def cleaned(ts: pa.Array, **shop: str) -> tuple[list[str], dict[str, int]]:
    """The times that are kept, and what was rejected."""
    settings = Settings.model_validate({"shop": {"events": "events", **shop}})
    raw = pa.table({"user_id": [1] * len(ts), "item_id": [2] * len(ts), "ts": ts})
    kept, rejected = clean(raw, settings=settings, user_id=pa.int64(), item_id=pa.int64(), end=midnight(END))
    return [moment.isoformat() for moment in kept["ts"].to_pylist()], dict(rejected)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
def test_whole_numbers_are_times_of_the_unit(unit: str, factor: int) -> None:
    numbers = pa.array([1_700_000_000 * factor, None, 0])
    assert cleaned(numbers, ts_format=unit) == (["2023-11-14T22:13:20+00:00", "1970-01-01T00:00:00+00:00"], {"null_ts": 1})


def test_numbers_beyond_the_year_9999_are_rejected() -> None:
    assert cleaned(pa.array([2**62, 1]), ts_format="s") == (["1970-01-01T00:00:01+00:00"], {"out_of_range_ts": 1})


def test_text_is_read_by_its_pattern_in_the_shops_zone() -> None:
    text = pa.array(["01.06.2024 14:30", "31.06.2024 10:00", "2024-06-01", None, "07.06.2024 00:00"])
    kept, rejected = cleaned(text, ts_format="%d.%m.%Y %H:%M", timezone="Europe/Berlin")
    assert (kept, rejected) == (["2024-06-01T12:30:00+00:00"], {"unreadable_ts": 2, "null_ts": 1, "future_ts": 1})


def test_text_with_a_zone_of_its_own_needs_none() -> None:
    kept, rejected = cleaned(pa.array(["2024-06-01T14:30:00+0200", "2024-06-01T14:30:00Z"]), ts_format="%Y-%m-%dT%H:%M:%S%z")
    assert (kept, rejected) == (["2024-06-01T12:30:00+00:00", "2024-06-01T14:30:00+00:00"], {})


@pytest.mark.parametrize(
    ("ts", "shop", "message"),
    [
        (pa.array([1_700_000_000]), {}, r"must be timestamp, got int64. Set shop.columns.ts, and shop.ts_format to how it is written."),
        (pa.array(["1.2.2024"]), {}, r"must be timestamp, got string. Set shop.columns.ts, and shop.ts_format to how it is written."),
        (pa.array([1.5]), {}, r"must be timestamp, got double. Set shop.columns.ts or convert it."),
        (
            pa.array(["1"]),
            {"ts_format": "s"},
            r"must be whole numbers, as shop.ts_format is 's', got string. Mend or remove shop.ts_format.",
        ),
        (pa.array([1]), {"ts_format": "%Y"}, r"must be text, as shop.ts_format is '%Y', got int64. Mend or remove shop.ts_format."),
        (pa.array(["2024"]), {"ts_format": "%Y"}, r'has times without a zone \(string\). Set shop.timezone, for example to "UTC".'),
    ],
)
def test_times_that_are_not_as_told_are_refused(ts: pa.Array, shop: dict[str, str], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1], "item_id": [2], "ts": ts}), tmp_path / "events.parquet")
    values = {"shop": {"events": str(tmp_path / "events.parquet"), **shop}, "run": {"work": str(tmp_path / "work")}}
    with pytest.raises(DataError, match=f"column 'ts' {message}"):
        open_shop(Settings.model_validate(values), as_of=END)


def test_the_span_of_times_in_numbers_is_known_from_footers_and_of_text_from_the_rows(tmp_path: Path) -> None:
    seconds = [1_700_000_000 + 86_400 * day for day in range(200)]
    days = [date.fromtimestamp(second) for second in seconds]
    for name, ts, form in (("a", seconds, "s"), ("b", [f"{day:%Y/%m/%d}" for day in days], "%Y/%m/%d")):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"user_id": [1] * 200, "item_id": [2] * 200, "ts": ts}), path)
        shop = {"events": str(path), "ts_format": form, "timezone": "UTC"}
        inputs = open_shop(Settings.model_validate({"shop": shop, "run": {"work": str(tmp_path / "work")}}), as_of=END)
        assert (inputs.first, inputs.last) == (date(2023, 11, 14), date(2024, 5, 31))
