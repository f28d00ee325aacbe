import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import Settings
from recsys.data import dataset, synthetic
from recsys.data.cleaning import build_catalog, clean
from recsys.data.dataset import ShopDataset
from recsys.data.histories import to_table
from recsys.data.inputs import read
from recsys.data.shop import ShopInputs, open_shop
from recsys.data.types import midnight, utc
from recsys.errors import DataError
from recsys.hashing import shard_of
from recsys.pipelines.ingest import ingest
from recsys.schema import (
    AVAILABLE,
    DISLIKED,
    ITEM,
    ITEM_ID,
    KIND,
    LOOK,
    NAME,
    OTHER_LOOK,
    PRICE,
    QUANTITY,
    TIMESTAMP,
    TS,
    USER_ID,
    WANTED,
    events_schema,
)
from tests.data.bad_rows import bad_rows, no_utf8

END = date(2024, 3, 1)
LAST = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)  # the moment before END
TOO_LATE = datetime(2024, 3, 1, tzinfo=UTC)


def settings(**shop: Any) -> Settings:
    return Settings.model_validate({"shop": {"events": "events", **shop}})


def cleaned(raw: pa.Table, ids: pa.DataType | None = None, **shop: Any) -> tuple[pa.Table, dict[str, int]]:
    ids = ids or pa.int64()
    kept, rejected = clean(raw, settings=settings(**shop), user_id=ids, item_id=ids, end=midnight(END))
    assert kept.schema == events_schema(ids, ids)
    assert kept.num_rows + rejected.total() == raw.num_rows
    return kept, dict(rejected)


def events(**columns: Any) -> pa.Table:
    """Good rows, with columns replaced or added."""
    rows = max((len(values) for values in columns.values()), default=1)
    default = {USER_ID: pa.array([1] * rows), ITEM_ID: pa.array([5] * rows), TS: pa.array([LAST] * rows, TIMESTAMP)}
    return pa.table(default | columns)


# ---- rows that cannot be used


def test_a_row_with_several_faults_is_counted_once_under_the_first() -> None:
    nothing, early, late = None, LAST, TOO_LATE
    rows = [
        (None, None, nothing, -1.0),  # null_user_id
        (1, None, nothing, -1.0),  # null_item_id
        (None, 5, late, 1.0),  # null_user_id
        (1, 5, nothing, -1.0),  # null_ts
        (1, 5, late, -1.0),  # future_ts
        (1, 5, late, 1.0),  # future_ts
        (1, 5, early, -1.0),  # negative_quantity
        (1, 5, early, math.nan),  # negative_quantity
        (1, 5, early, math.inf),  # negative_quantity
        (2, 6, early, 0.0),
        (3, 7, early, None),
    ]
    user, item, ts, quantity = (list(column) for column in zip(*rows, strict=True))
    raw = pa.table({USER_ID: user, ITEM_ID: item, TS: pa.array(ts, TIMESTAMP), QUANTITY: quantity})
    kept, rejected = cleaned(raw)
    assert rejected == {"null_user_id": 2, "null_item_id": 1, "null_ts": 1, "future_ts": 2, "negative_quantity": 3}
    assert kept.select([USER_ID, ITEM_ID, TS, QUANTITY]).to_pylist() == [
        {USER_ID: 2, ITEM_ID: 6, TS: LAST, QUANTITY: 0.0},
        {USER_ID: 3, ITEM_ID: 7, TS: LAST, QUANTITY: 1.0},  # a null quantity is 1
    ]


def test_without_quantity_and_price_columns_quantity_is_1_and_price_null() -> None:
    kept, rejected = cleaned(events())
    assert (kept[QUANTITY].to_pylist(), kept[PRICE].to_pylist(), rejected) == ([1.0], [None], {})


def test_a_bad_price_becomes_null_and_the_row_stays() -> None:
    kept, rejected = cleaned(events(price=pa.array([2.5, 0.0, -1.0, math.nan, math.inf, None])))
    assert kept[PRICE].to_pylist() == [2.5, 0.0, None, None, None, None]
    assert rejected == {}


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(21, 2)], ids=str)
def test_quantities_and_prices_may_be_any_number(dtype: pa.DataType) -> None:
    numbers = pa.array([3, None, -1]).cast(dtype)
    kept, rejected = cleaned(events(quantity=numbers, price=numbers))
    assert (kept[QUANTITY].to_pylist(), kept[PRICE].to_pylist(), rejected) == ([3.0, 1.0], [3.0, None], {"negative_quantity": 1})


def test_columns_are_read_under_the_shop_s_names() -> None:
    raw = pa.table({"buyer": [7], "sku": [8], "when": pa.array([LAST], TIMESTAMP), "n": [2], "paid": [0.5], "what": ["view"]})
    columns = {USER_ID: "buyer", ITEM_ID: "sku", TS: "when", QUANTITY: "n", PRICE: "paid", KIND: "what"}
    kept, _ = cleaned(raw, columns=columns, label_kinds=["purchase"])
    assert kept.to_pylist() == [{USER_ID: 7, ITEM_ID: 8, TS: LAST, QUANTITY: 2.0, PRICE: 0.5, LOOK: OTHER_LOOK}]


@pytest.mark.parametrize(
    ("kinds", "label_kinds", "wanted"),
    [
        (["purchase", "view", None, "Purchase"], ["purchase"], [True, False, False, False]),
        (["purchase", "view", None, "basket"], ["purchase", "basket"], [True, False, False, True]),
        (["purchase", "view", None, "basket"], None, [True, True, True, True]),
        (None, ["purchase"], [True]),  # no such column: all
        ([1, 2, None, 1], ["1"], [True, False, False, True]),
    ],
)
def test_label_kinds_say_what_is_wanted_and_drop_nothing(kinds: list[Any] | None, label_kinds: Any, wanted: list[bool]) -> None:
    plain = events() if kinds is None else events(kind=pa.array(kinds))
    assert cleaned(plain, label_kinds=label_kinds)[0][LOOK].to_pylist() == [WANTED if one else OTHER_LOOK for one in wanted]
    if kinds is not None:
        encoded = events(kind=pa.array(kinds).dictionary_encode())
        assert cleaned(encoded, label_kinds=label_kinds)[0][LOOK].to_pylist() == [WANTED if one else OTHER_LOOK for one in wanted]


def test_kinds_of_looks_and_values_say_what_an_event_is() -> None:
    kinds = ["cart", "purchase", "view", None, "purchase", "cart", "purchase", "wish", "purchase"]
    raw = events(kind=pa.array(kinds), value=pa.array([1, 4, 1, 1, 3, 5, None, 9, 5]))
    told: dict[str, Any] = {"label_kinds": ["purchase"], "look_kinds": ["view", "cart"]}
    view, cart = OTHER_LOOK + 1, OTHER_LOOK + 2
    plain = [cart, WANTED, view, OTHER_LOOK, WANTED, cart, WANTED, OTHER_LOOK, WANTED]
    assert cleaned(raw, **told)[0][LOOK].to_pylist() == plain
    disliked = [DISLIKED if place == 4 else look for place, look in enumerate(plain)]  # 3 < 4; one without a value counts as liked
    assert cleaned(raw, **told, least_value=4)[0][LOOK].to_pylist() == disliked
    every = cleaned(raw, least_value=4.5)[0][LOOK].to_pylist()
    assert every == [DISLIKED, DISLIKED, DISLIKED, DISLIKED, DISLIKED, WANTED, WANTED, WANTED, WANTED]


# ---- ids


@pytest.mark.parametrize(
    "dtype", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string())], ids=str
)
def test_text_ids_of_any_encoding_become_strings_and_an_empty_or_blank_one_is_null(dtype: pa.DataType) -> None:
    plain = pa.array(["b", "", "a ", None, " \t"])
    ids = plain.dictionary_encode().cast(dtype) if pa.types.is_dictionary(dtype) else plain.cast(dtype)
    kept, rejected = cleaned(events(user_id=ids, item_id=pa.array(["x"] * 5).cast(pa.large_string())), pa.string())
    assert (kept[USER_ID].to_pylist(), rejected) == (["b", "a "], {"null_user_id": 3})
    kept, rejected = cleaned(events(user_id=pa.array(["x"] * 5), item_id=ids), pa.string())
    assert (kept[ITEM_ID].to_pylist(), rejected) == (["b", "a "], {"null_item_id": 3})


def test_bytes_that_are_no_utf8_are_one_sentence_with_file_and_column(tmp_path: Path) -> None:
    latin = no_utf8(b"a", b"Caf\xe9")
    shop = settings(label_kinds=["a"])
    for column, ids in ((USER_ID, pa.string()), (KIND, pa.int64())):
        raw = events(**{USER_ID: pa.array([1, 2]), column: latin})
        for table in (raw, raw.set_column(raw.schema.get_field_index(column), column, latin.dictionary_encode())):
            with pytest.raises(
                DataError, match=rf"events/b\.parquet: column '{column}' cannot be read: Invalid UTF8 .* text as UTF-8\."
            ):
                clean(table, settings=shop, user_id=ids, item_id=pa.int64(), end=midnight(END), where="events/b.parquet")
    items = pa.table({ITEM_ID: [3, 7], "name": ["x", "y"], "shelf": ["a", "b"]})
    for column in ("name", "shelf"):
        mixed = items.set_column(items.schema.get_field_index(column), column, latin)
        with pytest.raises(DataError, match=rf"items\.parquet: column '{column}' cannot be read"):
            catalog(tmp_path, mixed, [3], features={"item_categorical": ["shelf"]})


def test_a_damaged_file_of_items_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    inputs = opened(tmp_path, events=history(), items=pa.table({ITEM_ID: range(1_000)}))
    whole = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "items.parquet").write_bytes(b"PAR1" + bytes(500) + whole[504:])
    with pytest.raises(DataError, match=r"(?s)items\.parquet: cannot be read: .*Write the file again"):
        build_catalog(inputs, pa.array([3]))


def test_items_may_be_written_as_other_types_in_each_file(tmp_path: Path) -> None:
    plain = pa.table({ITEM_ID: pa.array([3], pa.int32()), "shelf": ["a"], "available": [False]})
    other = pa.table({ITEM_ID: [7], "shelf": pa.array(["b"]).dictionary_encode(), "available": pa.nulls(1)})
    opened(tmp_path, events=history())
    (tmp_path / "items").mkdir()
    for name, table in (("a", plain), ("b", other)):
        pq.write_table(table, tmp_path / "items" / f"{name}.parquet")
    shop = {"events": str(tmp_path / "events.parquet"), "items": str(tmp_path / "items")}
    inputs = reopened(tmp_path, shop, features={"item_categorical": ["shelf"]})
    built, _ = build_catalog(inputs, pa.array([3]))
    assert built.table.column("shelf").to_pylist() == ["a", "b"]
    assert built.table.column(AVAILABLE).to_pylist() == [False, False]  # null is not available


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int32(), pa.uint32(), pa.int64()], ids=str)
def test_whole_number_ids_become_int64_and_zero_is_an_id(dtype: pa.DataType) -> None:
    kept, rejected = cleaned(events(user_id=pa.array([0, None, 7], dtype)))
    assert (kept[USER_ID].to_pylist(), rejected) == ([0, 7], {"null_user_id": 1})


def test_uint64_ids_are_refused_before_any_row_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'user_id' must be an integer of at most 64 signed bits or a string, got uint64"):
        opened(tmp_path, events=history(user_id=pa.array([1, 2], pa.uint64())))


# ---- times


def moments(*texts: str) -> list[datetime]:
    return [datetime.fromisoformat(f"{text}+00:00") for text in texts]


def test_times_without_a_zone_are_those_of_the_shop_s_clocks() -> None:
    naive = pa.array([datetime(2024, 1, 15, 0, 30), datetime(2024, 7, 1, 0, 30), None], pa.timestamp("s"))
    assert utc(naive, "Europe/Berlin").to_pylist() == [*moments("2024-01-14T23:30", "2024-06-30T22:30"), None]
    assert utc(naive, "UTC").to_pylist() == [*moments("2024-01-15T00:30", "2024-07-01T00:30"), None]
    assert utc(naive, "UTC").type == TIMESTAMP


def test_a_clock_change_s_doubled_hour_is_the_earlier_one_and_a_skipped_time_is_the_moment_after() -> None:
    doubled, skipped = datetime(2024, 10, 27, 2, 30), datetime(2024, 3, 31, 2, 30)
    naive = pa.array([doubled, skipped], pa.timestamp("us"))
    assert utc(naive, "Europe/Berlin").to_pylist() == moments("2024-10-27T00:30", "2024-03-31T01:00")


def test_times_with_a_zone_keep_their_moment_whatever_the_shop_s_zone() -> None:
    zoned = pa.array(moments("2024-07-01T00:30"), pa.timestamp("ms", tz="America/New_York"))
    assert utc(zoned, "Europe/Berlin").to_pylist() == utc(zoned, None).to_pylist() == moments("2024-07-01T00:30")


def test_nanoseconds_are_cut_off_and_a_day_is_its_midnight() -> None:
    assert utc(pa.array([1_999], pa.timestamp("ns", tz="UTC")), None).cast(pa.int64()).to_pylist() == [1]
    assert utc(pa.array([date(2024, 7, 1)]), "Europe/Berlin").to_pylist() == moments("2024-06-30T22:00")


def test_times_without_a_zone_are_refused_without_shop_timezone(tmp_path: Path) -> None:
    naive = history(ts=pa.array([datetime(2024, 1, 1), datetime(2024, 2, 29)], pa.timestamp("us")))
    with pytest.raises(DataError, match=r"column 'ts' has times without a zone .* Set shop\.timezone, for example"):
        opened(tmp_path, events=naive)
    with pytest.raises(DataError, match="'Mars/Olympus' is no IANA time zone"):
        opened(tmp_path, events=naive, timezone="Mars/Olympus")
    sources = opened(tmp_path, events=naive, timezone="Europe/Berlin")
    assert (sources.first, sources.last) == (date(2023, 12, 31), date(2024, 2, 28))  # 23:00 UTC of the day before


@pytest.mark.parametrize("kind", ["zoned", "naive", "date"])
def test_one_event_of_a_far_year_does_not_move_the_span(tmp_path: Path, kind: str) -> None:
    days = [datetime(2024, 1, 1), datetime(2024, 2, 29), datetime(2100, 1, 1)]
    ts = {
        "zoned": pa.array([day.replace(tzinfo=UTC) for day in days], TIMESTAMP),
        "naive": pa.array(days, pa.timestamp("us")),
        "date": pa.array([day.date() for day in days]),
    }[kind]
    events = pa.table({USER_ID: pa.array([1, 2, 3]), ITEM_ID: pa.array([3, 7, 7]), TS: ts})
    sources = opened(tmp_path, events=events, timezone="UTC")
    assert (sources.first, sources.last) == (date(2024, 1, 1), date(2024, 2, 29))


def of_year(number: int, unit: str) -> int:
    """The year's first day as a number of units since 1970."""
    return round((number - 1970) * 365.2425 * 86_400) * {"s": 1, "ms": 10**3, "us": 10**6}[unit]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_a_time_that_no_date_can_say_is_rejected_and_the_others_stay(unit: str, zone: str | None) -> None:
    least, most = -(2**63), 2**63 - 1
    numbers = [of_year(2024, unit), of_year(-40, unit), of_year(55_000, unit), least, most, None, of_year(9000, unit)]
    ts = pa.array(numbers, pa.int64()).cast(pa.timestamp(unit, tz=zone))
    kept, rejected = cleaned(events(ts=ts), timezone="Europe/Berlin")
    assert rejected == {"out_of_range_ts": 4, "null_ts": 1, "future_ts": 1}
    assert kept[TS].to_pylist()[0].year in (2023, 2024)


def test_times_on_the_edge_are_judged_by_their_moment() -> None:
    first, last = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)
    edges = pa.array([first, last], pa.timestamp("us"))
    assert utc(edges, "UTC").to_pylist() == [first.replace(tzinfo=UTC), last.replace(tzinfo=UTC)]
    assert [moment is None for moment in utc(edges, "Asia/Tokyo").to_pylist()] == [True, False]  # the day before the first
    assert [moment is None for moment in utc(edges, "America/New_York").to_pylist()] == [False, True]


def test_days_that_no_date_can_say_are_rejected() -> None:
    days = pa.array([0, 2**31 - 1, -(2**31), None], pa.int32()).cast(pa.date32())
    assert cleaned(events(ts=days), timezone="UTC")[1] == {"out_of_range_ts": 2, "null_ts": 1}


def test_a_file_whose_times_are_all_null_is_rejected_by_reason() -> None:
    assert cleaned(events(ts=pa.nulls(3)))[1] == {"null_ts": 3}


@pytest.mark.parametrize("options", [{}, {"write_statistics": False}, {"use_deprecated_int96_timestamps": True}], ids=str)
def test_times_that_no_date_can_say_do_not_move_the_span(tmp_path: Path, options: dict[str, Any]) -> None:
    far = [253_402_300_799_000_000] if "use_deprecated_int96_timestamps" in options else [of_year(55_000, "us"), of_year(-5, "us")]
    ts = pa.array([of_year(2024, "us"), of_year(2024, "us") + 55 * 86_400 * 10**6, *far]).cast(TIMESTAMP)
    events = pa.table({USER_ID: range(len(ts)), ITEM_ID: range(len(ts)), TS: ts})
    opened(tmp_path, events=history())
    pq.write_table(events, tmp_path / "events.parquet", **options)
    sources = reopened(tmp_path, {"events": str(tmp_path / "events.parquet"), "timezone": "UTC"})
    assert (sources.first, sources.last) == (date(2024, 1, 1), date(2024, 2, 25))


def test_the_last_day_there_is_is_refused_as_any_other_late_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--as-of 9999-12-31: more than"):
        open_shop(opened(tmp_path, events=history()).settings, as_of=date(9999, 12, 31))


# ---- shards


def test_a_user_s_shard_is_the_same_on_every_machine() -> None:
    assert shard_of(pa.array([0, 1, -5, 2**62]), 7).tolist() == [0, 6, 5, 0]
    assert shard_of(pa.array(["", "ann", "bob", "zoë"]), 7).tolist() == [6, 0, 6, 6]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(1, 20))
def test_a_user_s_shard_does_not_depend_on_the_other_users(ids: list[int], shards: int) -> None:
    for kind in (pa.array(ids, pa.int64()), pa.array([str(one) for one in ids])):
        whole = shard_of(pa.chunked_array([kind, kind]), shards)
        alone = [int(shard_of(kind.slice(row, 1), shards)[0]) for row in range(len(ids))]
        assert whole.tolist() == alone * 2
        assert max(alone) < shards


def test_shards_hold_about_the_same_number_of_users() -> None:
    for ids in (pa.array(range(0, 30_000, 3)), pa.array([f"user-{number:05d}" for number in range(10_000)])):
        counts = np.bincount(shard_of(ids, 16), minlength=16)
        assert counts.min() > 0.8 * 10_000 / 16
        assert counts.max() < 1.2 * 10_000 / 16


# ---- catalog


def history(**columns: Any) -> pa.Table:
    """Two events that span January and February 2024."""
    days = pa.array([datetime(2024, 1, 1, tzinfo=UTC), LAST], TIMESTAMP)
    return pa.table({USER_ID: pa.array([1, 2]), ITEM_ID: pa.array([3, 7]), TS: days} | columns)


def opened(folder: Path, *, events: pa.Table, items: pa.Table | str | None = None, features: Any = None, **shop: Any) -> ShopInputs:
    for name, table in {"events": events, "items": items}.items():
        if isinstance(table, str):
            shop[name] = table
        elif table is not None:
            pq.write_table(table, folder / f"{name}.parquet")
            shop[name] = str(folder / f"{name}.parquet")
    return reopened(folder, shop, features=features or {})


def reopened(folder: Path, shop: dict[str, Any], **given: Any) -> ShopInputs:
    values = {"shop": shop, "window": {"label_days": 7}, "run": {"work": str(folder / "work")}} | given
    return open_shop(Settings.model_validate(values), as_of=END)


def catalog(folder: Path, items: pa.Table | None, seen: list[Any], **given: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    built, rejected = build_catalog(opened(folder, events=history(), items=items, **given), pa.array(seen))
    return built.table.to_pylist(), dict(rejected)


def test_without_items_the_catalog_is_what_events_hold_and_all_of_it_is_available(tmp_path: Path) -> None:
    rows, rejected = catalog(tmp_path, None, [7, 3, 5])
    assert rows == [{ITEM_ID: item, AVAILABLE: True} for item in (3, 5, 7)]
    assert rejected == {}


def test_items_that_only_events_know_are_in_the_catalog_and_not_available(tmp_path: Path) -> None:
    items = pa.table({ITEM_ID: [9, 5], "shelf": [1, 2], "weight": ["x", "y"]})
    rows, rejected = catalog(tmp_path, items, [7, 9, 3], features={"item_categorical": ["weight"], "item_numeric": ["shelf"]})
    assert rows == [
        {ITEM_ID: 3, AVAILABLE: False, "weight": None, "shelf": None},
        {ITEM_ID: 5, AVAILABLE: True, "weight": "y", "shelf": 2.0},
        {ITEM_ID: 7, AVAILABLE: False, "weight": None, "shelf": None},
        {ITEM_ID: 9, AVAILABLE: True, "weight": "x", "shelf": 1.0},
    ]
    assert rejected == {}


def test_of_duplicate_items_the_first_stands_and_the_others_are_counted(tmp_path: Path) -> None:
    items = pa.table({ITEM_ID: [5, 3, None, 5, 3, 5, None], NAME: ["a", "b", "c", "d", "e", "f", "g"]})
    rows, rejected = catalog(tmp_path, items, [3])
    assert [(row[ITEM_ID], row[NAME]) for row in rows] == [(3, "b"), (5, "a")]
    assert rejected == {"null_item_id": 2, "duplicate_item_id": 3}


def test_an_item_is_available_where_the_shop_says_so(tmp_path: Path) -> None:
    items = pa.table({ITEM_ID: [1, 2, 3], "on_sale": [True, False, None]})
    rows, _ = catalog(tmp_path, items, [3], columns={AVAILABLE: "on_sale"})
    assert [row[AVAILABLE] for row in rows] == [True, False, False]


def test_a_name_may_be_a_feature_too(tmp_path: Path) -> None:
    items = pa.table({ITEM_ID: [1, 2], NAME: ["soap", "rope"]})
    rows, _ = catalog(tmp_path, items, [], features={"item_categorical": ["name"]})
    assert [row[NAME] for row in rows] == ["soap", "rope"]


# ---- kinds and columns as shops write them


def test_label_kinds_without_a_column_of_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, events=history(), label_kinds=["purchase"])
    assert str(caught.value) == (
        f"{tmp_path}/events.parquet: column 'kind' is missing; seen user_id, item_id, ts. Add it, or set shop.columns.kind."
    )


def test_a_column_that_nobody_asks_for_may_be_in_some_files_and_of_any_type(tmp_path: Path) -> None:
    for name, table in {"a": history(kind=[1.5, 2.5], note=["x", "y"]), "b": history(coupon=[b"x", None], note=[1, 2])}.items():
        (tmp_path / "events").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "events" / f"{name}.parquet")
    shop = {"events": str(tmp_path / "events")}
    assert reopened(tmp_path, shop).events.rows == 4
    for kind, said in (("note", "must be string"), ("coupon", "is not in every file of shop.events"), ("kind", "is not in every file")):
        asked = shop | {"label_kinds": ["purchase"], "columns": {"kind": kind}}
        with pytest.raises(DataError, match=rf"b\.parquet: column '{kind}' {said}"):
            reopened(tmp_path, asked)


def test_a_column_of_nulls_is_a_column_without_a_value(tmp_path: Path) -> None:
    nothing = pa.nulls(2)
    items = pa.table({ITEM_ID: [3, 7], "shelf": nothing, "weight": nothing, NAME: nothing})
    features = {"item_categorical": ["shelf"], "item_numeric": ["weight"]}
    inputs = opened(tmp_path, events=history(price=nothing, quantity=nothing, kind=nothing), items=items, features=features)
    raw = read(inputs.events, inputs.events.files[0], None, [USER_ID, ITEM_ID, TS, PRICE, QUANTITY])
    kept, rejected = clean(raw, settings=inputs.settings, user_id=inputs.user_id, item_id=inputs.item_id, end=midnight(END))
    assert (kept.column(PRICE).to_pylist(), kept.column(QUANTITY).to_pylist(), dict(rejected)) == ([None, None], [1.0, 1.0], {})
    built, _ = build_catalog(inputs, pa.array([3, 7]))
    assert built.table.column("shelf").to_pylist() == built.table.column("weight").to_pylist() == [None, None]


def test_a_catalog_of_files_that_differ_is_one_catalog(tmp_path: Path) -> None:
    """In width, in being null, in dictionaries, in what may be null."""
    files = [
        pa.table({ITEM_ID: pa.array([3], pa.int32()), "shelf": pa.array(["a"]).dictionary_encode(), "weight": pa.nulls(1)}),
        pa.table(
            {ITEM_ID: pa.array([7], pa.int64()), "shelf": pa.array(["b"], pa.large_string()), "weight": pa.array([1.5], pa.float32())}
        ),
        pa.table(
            [[9], [None], [2]],
            schema=pa.schema([pa.field(ITEM_ID, pa.int64(), nullable=False), ("shelf", pa.null()), ("weight", pa.int64())]),
        ),
    ]
    (tmp_path / "items").mkdir()
    for number, table in enumerate(files):
        pq.write_table(table, tmp_path / "items" / f"{number}.parquet")
    features = {"item_categorical": ["shelf"], "item_numeric": ["weight"]}
    inputs = opened(tmp_path, events=history(), features=features, items=str(tmp_path / "items"))
    rows = build_catalog(inputs, pa.array([3, 7]))[0].table.to_pylist()
    assert [(row[ITEM_ID], row["shelf"], row["weight"]) for row in rows] == [(3, "a", None), (7, "b", 1.5), (9, None, 2.0)]


# ---- the whole of it, on Ray

SHOP_END = date(2024, 6, 1)
BAD = {"null_user": 4, "null_item": 3, "null_ts": 5, "future_ts": 2, "negative_quantity": 6, "duplicates": 7}


class Shop(NamedTuple):
    """A planted shop with bad rows, and the settings to read it."""

    planted: synthetic.Planted
    settings: Settings

    def sources(self, **changed: str) -> ShopInputs:
        shop = self.settings.shop.model_copy(update=changed)
        return open_shop(self.settings.model_copy(update={"shop": shop}), as_of=SHOP_END)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    planted = synthetic.shop(folder, users=150, items=90, days=100, seed=5, end=SHOP_END, kinds=True, events_per_user=25)
    assert bad_rows(planted, seed=5, **BAD) == BAD
    assert planted.users is not None
    extra = {USER_ID: [1, None, int(planted.user_ids[0].as_py()), 10**6], "age": ["65+"] * 4, "region": ["north"] * 4}
    known = pq.read_table(planted.users).schema
    pq.write_table(pa.table(extra, schema=known), planted.users / "z-more.parquet")
    values = {
        "shop": {"events": str(planted.events), "items": str(planted.items), "users": str(planted.users), "label_kinds": ["purchase"]},
        "features": {"item_categorical": ["category"], "user_categorical": ["age", "region"]},
        "window": {"label_days": 14},
        "run": {"work": str(folder / "work"), "shards": 16},
    }
    return Shop(planted, Settings.model_validate(values))


@pytest.fixture(scope="module")
def done(two_actors: None, shop: Shop) -> ShopDataset:
    """Of 16 shards."""
    return ingest(shop.sources(), end=SHOP_END)


def profiles_of(finished: ShopDataset) -> pa.Table:
    """All histories in user_id order."""
    tables = [to_table(finished.histories(shard), finished.schema) for shard in finished.shards]
    return pa.concat_tables(tables).sort_by(USER_ID).combine_chunks()


def good_rows(shop: Shop) -> pd.DataFrame:
    """The shop's usable events without duplicates, by pandas alone; `item` is the rank of the item's id."""
    frame = pq.read_table(shop.planted.events).to_pandas().drop_duplicates()
    frame = frame.dropna(subset=[USER_ID, ITEM_ID, TS])
    frame = frame[(frame[TS] < pd.Timestamp(SHOP_END, tz="UTC")) & (frame[QUANTITY] >= 0)]
    ids = np.union1d(shop.planted.item_ids.to_numpy(), frame[ITEM_ID])
    return frame.assign(**{ITEM: np.searchsorted(ids, frame[ITEM_ID])}).sort_values([USER_ID, TS, ITEM])


@pytest.mark.ray
def test_bad_rows_are_counted_by_reason_and_kept_and_rejected_are_what_was_read(shop: Shop, done: ShopDataset) -> None:
    assert done.rejected["events"] == {
        "duplicate": 7,
        "future_ts": 2,
        "negative_quantity": 6,
        "null_item_id": 3,
        "null_ts": 5,
        "null_user_id": 4,
    }
    assert done.rejected["users"] == {"duplicate_user_id": 1, "null_user_id": 1}
    assert "items" not in done.rejected
    assert done.rows["events"] == shop.planted.rows + sum(BAD.values()) == done.rows["events kept"] + sum(BAD.values())
    assert done.rows["items"] == done.rows["catalog"] == 90
    assert done.rows["users kept"] == 150 + 2  # those without an event too


@pytest.mark.ray
def test_a_profile_s_events_are_those_of_a_groupby(shop: Shop, done: ShopDataset) -> None:
    frame = good_rows(shop)
    frame = frame.assign(**{LOOK: np.where(frame[KIND] == "purchase", WANTED, OTHER_LOOK)})
    table = profiles_of(done)
    seen = {row[USER_ID]: row for row in table.to_pylist()}
    assert len(frame.groupby(USER_ID)) == 150
    for user, rows in frame.groupby(USER_ID):
        profile = seen.pop(user)
        assert profile[ITEM] == rows[ITEM].tolist()
        assert profile[TS] == rows[TS].dt.to_pydatetime().tolist()
        assert profile[LOOK] == rows[LOOK].tolist()
        np.testing.assert_array_equal(profile[QUANTITY], rows[QUANTITY].astype(np.float32))
        np.testing.assert_array_equal(profile[PRICE], rows[PRICE].astype(np.float32))
    assert [(user, row[ITEM]) for user, row in seen.items()] == [(1, []), (10**6, [])]  # users without an event
    assert done.catalog().item_id.to_pylist() == shop.planted.item_ids.to_pylist()
    assert done.first == frame[TS].min().date()


@pytest.mark.ray
def test_users_have_the_features_of_the_users_table_and_nulls_where_it_lacks_them(shop: Shop, done: ShopDataset) -> None:
    assert shop.planted.users is not None
    known = pa.concat_tables(pq.read_table(file) for file in sorted(shop.planted.users.iterdir())).drop_null()
    ages = {row[USER_ID]: row["age"] for row in reversed(pq.read_table(shop.planted.users).to_pylist()) if row[USER_ID] is not None}
    assert known.num_rows > 100
    table = profiles_of(done)
    assert dict(zip(table[USER_ID].to_pylist(), table["age"].to_pylist(), strict=True)) == {
        user: ages.get(user) for user in table[USER_ID].to_pylist()
    }
    counts = pc.value_counts(table["age"].drop_null()).to_pylist()
    assert done.user_vocabularies["age"] == tuple(sorted(row["values"] for row in counts))


@pytest.mark.ray
def test_no_user_is_in_two_shards(done: ShopDataset) -> None:
    users = {shard: done.histories(shard).users.column(USER_ID) for shard in done.shards}
    assert sum(len(ids) for ids in users.values()) == len(set().union(*(ids.to_pylist() for ids in users.values()))) == 152
    for shard, ids in users.items():
        assert set(shard_of(ids, 16).tolist()) <= {int(shard)}


@pytest.mark.ray
@pytest.mark.usefixtures("two_actors")
def test_a_second_ingest_does_no_unit_again(shop: Shop, done: ShopDataset) -> None:
    def modified() -> dict[Path, int]:
        made = [*done.folder.rglob("*"), *done.cleaned.glob("*.arrow")]
        return {path: path.stat().st_mtime_ns for path in made if path.is_file() and path.name != "stage.json"}

    before = modified()
    assert len(list((done.cleaned / "receipts").iterdir())) == 4 + 2  # files of events and users
    assert len(list((done.folder / "receipts").iterdir())) == 3 + 16  # the start, the catalog, the base, shards
    again = ingest(shop.sources(), end=SHOP_END)
    assert modified() == before
    assert again == done


@pytest.mark.ray
@pytest.mark.usefixtures("two_actors")
def test_shuffled_and_doubled_events_in_one_file_and_one_shard_change_no_profile(
    shop: Shop, done: ShopDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(shop.planted.events)
    order = np.random.default_rng(0).permutation(2 * len(table)) % len(table)
    pq.write_table(table.take(pa.array(order)), tmp_path / "events.parquet", row_group_size=999)
    run = shop.settings.run.model_copy(update={"shards": 1})
    other = Shop(shop.planted, shop.settings.model_copy(update={"run": run}))
    monkeypatch.setattr(dataset, "PART_BYTES", (tmp_path / "events.parquet").stat().st_size // 2)
    sources = other.sources(events=str(tmp_path / "events.parquet"))
    single = ingest(sources, end=SHOP_END)
    assert single.shards == ("00000",)
    parts = [path.name for path in sorted(single.cleaned.glob("receipts/events-*"))]
    assert len(parts) >= 2  # of one file's row groups
    assert profiles_of(single).equals(profiles_of(done))
    assert single.rejected["events"]["duplicate"] == done.rows["events kept"] + 2 * 7
    assert single.rejected["events"]["null_ts"] == 2 * 5
    assert single.user_vocabularies == done.user_vocabularies


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_kinds_in_the_path_are_the_kinds_of_the_events(shop: Shop, done: ShopDataset, tmp_path: Path) -> None:
    table = pq.read_table(shop.planted.events)
    for kind in pc.unique(table.column(KIND)).to_pylist():
        (tmp_path / f"{KIND}={kind}").mkdir()
        rows = table.filter(pc.equal(table.column(KIND), kind)).drop_columns(KIND)
        pq.write_table(rows, tmp_path / f"{KIND}={kind}" / "part.parquet")
    assert profiles_of(ingest(shop.sources(events=str(tmp_path)), end=SHOP_END)).equals(profiles_of(done))


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_damaged_items_are_found_before_events_are_read(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pq.read_table(shop.planted.items), path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(20)
    path.write_bytes(content)
    run = shop.settings.run.model_copy(update={"work": str(tmp_path / "work")})
    other = Shop(shop.planted, shop.settings.model_copy(update={"run": run}))
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: .* Write the file again\.$"):
        ingest(other.sources(items=str(path)), end=SHOP_END)
    assert not list((tmp_path / "work").rglob("events-*"))


# ---- one night after the other


class Nights:
    """A shop that a file of events comes to every night, ingested in one work folder, and wholly anew in others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(3)
        (folder / "events").mkdir()
        self.items(range(10, 40))
        self.users({user: "abc"[user % 3] for user in range(0, 300, 2)})
        for day in range(24):
            rows = 200
            self.night(day, rng.integers(0, 150, rows).tolist(), rng.integers(10, 40, rows).tolist())

    def night(self, day: int, users: list[int], items: list[int]) -> None:
        ts = pa.array(
            [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day, minutes=place % 60) for place in range(len(users))], TIMESTAMP
        )
        table = pa.table({USER_ID: users, ITEM_ID: items, TS: ts, PRICE: [None if user % 7 == 0 else user / 8 for user in users]})
        pq.write_table(table, self.folder / "events" / f"{day:03d}.parquet")

    def items(self, ids: Iterable[int]) -> None:
        items = sorted(ids)
        pq.write_table(pa.table({ITEM_ID: items, "brand": [f"b{item % 5}" for item in items]}), self.folder / "items.parquet")

    def users(self, ages: dict[int, str]) -> None:
        pq.write_table(pa.table({USER_ID: list(ages), "age": list(ages.values())}), self.folder / "users.parquet")

    def ingest(self, day: int, work: str = "work") -> ShopDataset:
        end = date(2024, 1, 1) + timedelta(days=day)
        shop = {"events": str(self.folder / "events")} | {name: str(self.folder / f"{name}.parquet") for name in ("items", "users")}
        values = {
            "shop": shop,
            "features": {"item_categorical": ["brand"], "user_categorical": ["age"]},
            "window": {"label_days": 5},
            "run": {"work": str(self.folder / work), "shards": 3},
        }
        return ingest(open_shop(Settings.model_validate(values), as_of=end), end=end)

    def same(self, day: int) -> ShopDataset:
        """The night's ingest, which must be that of a work folder without another night's."""
        found, anew = self.ingest(day), self.ingest(day, f"anew-{day}")
        assert anew.base is None
        assert found.digest == anew.digest
        places = ("folder", "cleaned")
        assert replace(found, **{place: getattr(anew, place) for place in places}) == anew
        assert found.catalog().table.equals(anew.catalog().table)
        for shard in anew.shards:
            one, other = found.histories(shard), anew.histories(shard)
            assert one.users.equals(other.users)
            for name in ("offsets", "item", "ts", "quantity", "price", "wanted"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
                assert getattr(one, name).dtype == getattr(other, name).dtype
        return found


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_an_ingest_that_adds_a_night_is_one_of_everything(tmp_path: Path) -> None:
    shop = Nights(tmp_path)
    first = shop.same(24)
    assert first.base is None
    receipts = first.cleaned / "receipts"
    cleaned = {path.name: path.stat().st_size for path in receipts.iterdir()}
    assert len(cleaned) == 24 + 1

    # items before, between and behind all others, one that ITEMS does not know, new users, a night of before once more
    shop.night(24, [0, 0, 2, 301, 303, 5, 5], [3, 20, 99, 99, 5, 11, 11])
    shop.items([*range(4, 40), 55])
    second = shop.same(25)
    assert second.base is not None
    assert len({path.name for path in receipts.iterdir()} - cleaned.keys()) == 1
    assert second.rejected == first.rejected
    first_file = pq.read_table(tmp_path / "events" / "003.parquet")
    pq.write_table(first_file, tmp_path / "events" / "025.parquet")  # sent twice
    shop.users({user: "abcd"[user % 4] for user in range(4, 320, 2)})  # two are gone, others are new, ages have changed
    third = shop.same(26)
    assert third.base is not None
    assert third.base.receipts.keys() == set(third.shards)
    assert third.rejected["events"]["duplicate"] >= len(first_file)
    assert len({path.name for path in receipts.iterdir()} - cleaned.keys()) == 3  # the nights' and the users'

    # an older night again, and a file that has changed: neither begins with what holds more, or other events
    assert shop.same(20).base is None
    shop.night(2, [1, 2, 3], [10, 11, 12])
    assert shop.same(26).base is None

    # what is added has grown to more than an eighth
    for day in range(26, 30):
        shop.night(day, list(range(200)), [10 + number % 30 for number in range(200)])
    assert shop.same(30).base is None
    assert shop.same(30).base is None
