"""Facts of items by day, as far as the shop plans ahead: prices, promotions, places on a shelf or a page, stock.

A row says what holds of an item on a day, or in the days from it on until the shop's next row; what it says of days after a date was
known on that date, as it was planned. Of each item and cut-off this makes the mean of every column over the rows of the label window
after it, and how that differs from the mean over the USUAL_DAYS before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.inputs import Input
from recsys.data.types import clean_ids, readable, times, utc
from recsys.errors import DataError
from recsys.hashing import row_hashes
from recsys.schema import DAY_US, ITEM_ID

DAY = "day"  # days since 1970-01-01, int32
USUAL_DAYS = 91
ROWS_AHEAD = "daily_rows"
MODULUS = 1 << 64
FIRST = date(1970, 1, 1)


def names(columns: Sequence[str]) -> tuple[str, ...]:
    """What is known of an item as of a date, in the order of `means`; nothing without columns."""
    return (*(f"{name}_{what}" for name in columns for what in ("ahead", "change")), *([ROWS_AHEAD] if columns else []))


def check_daily(source: Input, settings: Settings, number: Callable[..., None]) -> None:
    """Refuse a table without a date, or without the columns that features.daily_numeric names.

    Args:
        number: refuses a column that is no number.

    Raises:
        DataError: one of them.
    """
    column = settings.shop.columns.date
    dtype = source.require(column, setting="shop.columns.date")
    if not (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)):
        todo = "Convert it, or set shop.columns.date."
        raise DataError(f"{source.location}: column '{column}' must be date or timestamp, got {dtype}. {todo}")
    for name in settings.features.daily_numeric:
        number(source, name, setting="features.daily_numeric", required=True)


def clean_daily(raw: pa.Table, settings: Settings, item_id: pa.DataType, where: str) -> tuple[pa.Table, Counter[str]]:
    """item_id, day and float32 columns of the rows that can be used, by day; counts of null_item_id and null_date.

    Raises:
        DataError: an id is no UTF-8, in the file `where`.
    """
    columns = settings.shop.columns
    with readable(where, columns.item_id):
        items = clean_ids(raw.column(columns.item_id), item_id)
    at = raw.column(columns.date)
    at = at.cast(pa.timestamp("us")) if pa.types.is_date(at.type) else at
    when = utc(times(at, None), settings.shop.timezone or "UTC").cast(pa.int64())
    day = np.floor_divide(when.to_numpy().astype(np.float64), DAY_US)  # exact: 285 years are 2^53 microseconds; null is NaN
    table = pa.table({ITEM_ID: items, DAY: pa.array(day, pa.int32(), from_pandas=True)})
    for name in settings.features.daily_numeric:
        table = table.append_column(name, raw.column(name).cast(pa.float64()).cast(pa.float32()))
    rejected: Counter[str] = Counter()
    for reason, column in (("null_item_id", ITEM_ID), ("null_date", DAY)):
        if nulls := table.column(column).null_count:
            rejected[reason] = nulls
            table = table.filter(pc.is_valid(table.column(column)))
    return table.sort_by(DAY).combine_chunks(), rejected


def hash_days(table: pa.Table) -> dict[str, int]:
    """Of each day the sum of its rows' hashes, modulo 2^64, as JSON holds it."""
    days, starts = np.unique(table.column(DAY).to_numpy(), return_index=True)
    hashes = row_hashes(table)
    sums = np.add.reduceat(hashes, starts) if len(starts) else hashes
    return {str(day): int(value) for day, value in zip(days.tolist(), sums.tolist(), strict=True)}


def means(
    parts: Iterable[pa.Table],
    codes: Callable[[pa.ChunkedArray], np.ndarray],
    columns: Sequence[str],
    *,
    items: int,
    cutoff: date,
    days: int,
) -> np.ndarray:
    """float32 (F, I): what is known of every item as of a cut-off, in the order of `names`; NaN where no row tells.

    Args:
        parts: as `clean_daily` makes them, in any order: sums are exact up to 2^-20, so it does not matter.
        codes: item ids -> int codes, -1 for items that the catalog lacks.
        items: I, the size of the catalog.
        days: of the window after the cut-off.
    """
    now = (cutoff - FIRST).days
    ahead, before = np.zeros((2, len(columns), 2, items))  # of each column the sum, and how many tell
    rows = np.zeros(items)
    for part in parts:
        day = part.column(DAY).to_numpy()
        first, middle, last = np.searchsorted(day, (now - USUAL_DAYS, now, now + days))
        mine = part.slice(first, last - first)
        code = codes(mine.column(ITEM_ID))
        known = code >= 0
        later = (np.arange(len(code)) >= middle - first) & known
        rows += np.bincount(code[later], minlength=items)
        for place, name in enumerate(columns):
            value = np.rint(mine.column(name).to_numpy().astype(np.float64) * 2**20) / 2**20
            for total, chosen in ((ahead, later), (before, known & ~later)):
                told = chosen & np.isfinite(value)
                total[place, 0] += np.bincount(code[told], weights=value[told], minlength=items)
                total[place, 1] += np.bincount(code[told], minlength=items)
    with np.errstate(invalid="ignore"):
        planned, usual = (total[:, 0] / np.where(total[:, 1] > 0, total[:, 1], np.nan) for total in (ahead, before))
    pairs = [values for place in range(len(columns)) for values in (planned[place], planned[place] - usual[place])]
    return np.array([*pairs, *([rows / days] if len(columns) else [])], np.float32).reshape(-1, items)
