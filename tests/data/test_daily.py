"""Facts of items by day: read, counted by reason, and told as of a date."""

from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.data.daily import FIRST, ROWS_AHEAD, clean_daily, hash_days, means, names

CUTOFF = date(2024, 3, 1)
NOW = (CUTOFF - FIRST).days
IDS = pa.array([10, 20, 30], pa.int64())


def settings(*columns: str) -> config.Settings:
    return config.Settings.model_validate({"shop": {"events": "e", "daily": "d"}, "features": {"daily_numeric": columns}})


def part(*rows: tuple[int, int, float | None]) -> pa.Table:
    """Of item, day after the cut-off, and price."""
    items, days, prices = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {
        "item_id": pa.array(items, pa.int64()),
        "day": pa.array([NOW + day for day in days], pa.int32()),
        "price": pa.array(prices, pa.float32()),
    }
    return pa.table(columns).sort_by("day")


def codes(ids: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.index_in(ids, value_set=IDS), -1).to_numpy()


def told(*parts: pa.Table, days: int = 28) -> np.ndarray:
    return means(parts, codes, ["price"], items=3, cutoff=CUTOFF, days=days)


def test_means_are_of_the_window_ahead_and_against_the_days_before() -> None:
    rows = [(10, 0, 2.0), (10, 27, 4.0), (10, 28, 99.0), (10, -1, 5.0), (10, -91, 6.0), (10, -92, 99.0)]
    found = told(part(*rows, (20, 3, None), (20, -4, 1.0), (99, 1, 7.0)))
    assert names(["price"]) == ("price_ahead", "price_change", ROWS_AHEAD)
    np.testing.assert_allclose(found[0], [3.0, np.nan, np.nan])  # the last: no row tells
    np.testing.assert_allclose(found[1], [3.0 - 5.5, np.nan, np.nan])
    np.testing.assert_allclose(found[2], [2 / 28, 1 / 28, 0])
    assert found.dtype == np.float32


def test_without_columns_nothing_is_told() -> None:
    assert names([]) == ()
    assert means([], codes, [], items=3, cutoff=CUTOFF, days=28).shape == (0, 3)


ROW = st.tuples(st.sampled_from([10, 20, 30, 99]), st.integers(-120, 60), st.one_of(st.none(), st.floats(-1e3, 1e3, width=32)))


@given(rows=st.lists(ROW, max_size=20), cut=st.integers(0, 20), data=st.data())
def test_neither_parts_nor_order_change_anything_nor_do_rows_of_other_days(
    rows: list[tuple[int, int, float | None]], cut: int, data: st.DataObject
) -> None:
    whole = told(part(*rows))
    mixed = data.draw(st.permutations(rows))
    np.testing.assert_array_equal(told(part(*mixed[cut:]), part(*mixed[:cut])), whole)
    near = [row for row in rows if -91 <= row[1] < 28]
    np.testing.assert_array_equal(told(part(*near)), whole)


@given(rows=st.lists(ROW, min_size=1, max_size=12), data=st.data())
def test_a_day_s_hash_is_its_rows(rows: list[tuple[int, int, float | None]], data: st.DataObject) -> None:
    found = hash_days(part(*rows))
    assert hash_days(part(*data.draw(st.permutations(rows)))) == found
    assert found.keys() == {str(NOW + day) for _, day, _ in rows}
    item, day, _ = rows[0]
    changed = hash_days(part((item, day, 1234.5), *rows[1:]))
    assert {name for name in found if changed[name] != found[name]} == {str(NOW + day)}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([date(2024, 3, 2), date(1969, 12, 31), None], pa.date32()),
        ([datetime(2024, 3, 2, 23, 59), datetime(1969, 12, 31, 1), None], pa.timestamp("ns")),
        ([datetime(2024, 3, 2, 23, 59, tzinfo=UTC), datetime(1969, 12, 31, 1, tzinfo=UTC), None], pa.timestamp("ms", "Europe/Berlin")),
    ],
    ids=["date", "without a zone", "with one"],
)
def test_days_are_those_of_utc_and_bad_rows_are_counted(values: list[Any], dtype: pa.DataType) -> None:
    raw = pa.table({"item_id": [1, 2, 3], "date": pa.array(values, dtype), "price": pa.array([1, None, 3], pa.int32())})
    nobody = pa.table(
        {"item_id": pa.array([None], pa.int64()), "date": pa.array([values[0]], dtype), "price": pa.array([5], pa.int32())}
    )
    kept, rejected = clean_daily(pa.concat_tables([raw, nobody]), settings("price"), pa.int64(), "daily.parquet")
    assert rejected == Counter(null_item_id=1, null_date=1)
    assert kept.to_pylist() == [{"item_id": 2, "day": -1, "price": None}, {"item_id": 1, "day": NOW + 1, "price": 1.0}]
