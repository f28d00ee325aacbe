"""Arrow types and values made one: ids, words, numbers and times, whatever way a shop wrote them."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.schema import DAY_US, TIMESTAMP

Column = TypeVar("Column", pa.Array, pa.ChunkedArray)
UNITS = ("s", "ms", "us", "ns")
# What dates of Python, Delta and SQL can say, in microseconds since 1970: of the years 1 to 9999, UTC, the first and the last.
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999


def id_type(dtype: pa.DataType, *, where: str, column: str) -> pa.DataType:
    """The type an id column is kept in: int64 or string.

    Raises:
        DataError: any other type; unsigned 64-bit too, as Delta has no such type.
    """
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_integer(dtype) and not pa.types.is_uint64(dtype):
        return pa.int64()
    raise DataError(
        f"{where}: column '{column}' must be an integer of at most 64 signed bits or a string, got {dtype}. Convert it before the run."
    )


def least_bytes(leaf: pq.ColumnSchema) -> int:
    """Bytes that one value of a leaf takes when it is read, at least."""
    return {"BOOLEAN": 1, "INT64": 8, "DOUBLE": 8, "INT96": 8}.get(leaf.physical_type, 4)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type of a column that is `one` in some files and `other` in the next; None where that is a mistake."""
    if pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_list(one) and is_list(other):
        values = common_type(one.value_type, other.value_type)
        return one if values == one.value_type else None if values is None else pa.list_(values)
    families = {family(one), family(other)}
    if len(families) == 1:
        return other if pa.types.is_decimal(other) else one  # the narrower reader decides whether it takes decimals
    return pa.float64() if families == {"integer", "float"} else None  # as pandas writes integers with and without nulls


def family(dtype: pa.DataType) -> str:
    """Types that one reader casts to one: a column may be string in one file and dictionary in the next."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return "string"
    if pa.types.is_integer(dtype) and not pa.types.is_uint64(dtype):
        return "integer"
    if pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        return "float"
    if pa.types.is_timestamp(dtype):
        return "timestamp with zone" if dtype.tz else "timestamp without zone"
    return str(dtype)


def is_list(dtype: pa.DataType) -> bool:
    """A list, large list or fixed-size list."""
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)


def is_number(dtype: pa.DataType) -> bool:
    """What a numeric column may be, dictionary-encoded or not; a column of nulls only too."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype)


def is_word(dtype: pa.DataType) -> bool:
    """What a categorical column may be, dictionary-encoded or not; a column of nulls only too."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return family(dtype) == "string" or pa.types.is_integer(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype)


def word_kind(dtype: pa.DataType) -> str:
    """What words of a type, or of lists of it, are: string, integer or bool; "" for a column of nulls only."""
    value = dtype.value_type if is_list(dtype) else dtype
    value = value.value_type if pa.types.is_dictionary(value) else value
    return "integer" if pa.types.is_integer(value) else "" if pa.types.is_null(value) else family(value)


def midnight(day: date) -> int:
    """Microseconds since 1970 of the day's first moment, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def day_of(time_us: int) -> date:
    """The day, UTC, of a time in microseconds since 1970."""
    return date(1970, 1, 1) + timedelta(days=time_us // DAY_US)


def times(column: Column, form: str | None) -> Column:
    """The times as timestamps, of numbers of a unit or of text; null where text is not written so. Timestamps and dates stay.

    Args:
        form: as shop.ts_format.
    """
    if form is None or pa.types.is_null(column.type):
        return column
    if form in UNITS:
        return column.cast(pa.int64()).cast(pa.timestamp(form, tz="UTC"))
    import pandas as pd  # which takes a quarter of a second to import

    text = as_text(column)
    found = pd.to_datetime(text.to_pandas(), format=form, errors="coerce", utc=True)
    made = pa.array(found, pa.timestamp("us", tz="UTC" if "%z" in form else None))
    return pa.chunked_array([made]) if isinstance(text, pa.ChunkedArray) else made


def utc(column: Column, timezone: str | None) -> Column:
    """The times as UTC microseconds; those without a zone are taken to be in `timezone`. Null outside of the years 1 to 9999, UTC.

    A time that a clock change makes ambiguous is the earlier one; one that it skips is the moment after the gap.
    """
    dtype = column.type
    if pa.types.is_null(dtype):
        return column.cast(TIMESTAMP)
    days = pa.types.is_date32(dtype)
    unit_us = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": None}["ms" if pa.types.is_date(dtype) else dtype.unit]
    if unit_us is not None:  # nanoseconds reach from 1677 to 2262
        numbers = column.cast(pa.int32()).cast(pa.int64()) if days else column.cast(pa.int64())
        times = pa.timestamp("us", getattr(dtype, "tz", None))
        column = pc.multiply(_within(numbers, DAY_US if days else unit_us), DAY_US if days else unit_us).cast(times)
    if column.type.tz is None:
        assert timezone is not None
        column = pc.assume_timezone(column, arrow_zone(timezone), ambiguous="earliest", nonexistent="latest")
    column = column.cast(TIMESTAMP, safe=False)  # nanoseconds are cut off
    return _within(column.cast(pa.int64()), 1).cast(TIMESTAMP)


def arrow_zone(timezone: str) -> str:
    """The zone as Arrow is told it: UTC by its offset, as a name it looks up in the system's time zone data, which slim images lack."""
    return "+00:00" if timezone in ("UTC", "Etc/UTC") else timezone


def _within(numbers: Column, unit_us: int) -> Column:
    """Times as numbers of a unit, null outside of the years 1 to 9999."""
    first, last = (number // unit_us for number in (FIRST_US, LAST_US))
    good = pc.and_(pc.greater_equal(numbers, first), pc.less_equal(numbers, last))
    return pc.if_else(good, numbers, pa.scalar(None, pa.int64()))


def as_text(column: Column) -> Column:
    """A categorical column as strings.

    Raises:
        pa.ArrowException: bytes that are no UTF-8, or another type.
    """
    column = _plain(column)
    if family(column.type) == "string":
        column = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())  # back again, it is checked
    return column.cast(pa.string())


def check_text(values: pa.Array) -> None:
    """Nothing, where the words of a column, or of its lists, are UTF-8 or no text.

    Raises:
        pa.ArrowInvalid: they are not.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary
    if is_list(values.type):
        check_text(values.flatten())
    elif family(values.type) == "string":
        as_text(values)


def _plain(column: Column) -> Column:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


@contextmanager
def readable(path: str, column: str) -> Generator[None]:
    """A block that makes values of one column usable.

    Raises:
        DataError: they cannot be, as bytes that are no UTF-8.
    """
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{path}: column '{column}' cannot be read: {error}. Write it again, text as UTF-8.") from error


def clean_ids(column: Column, dtype: pa.DataType) -> Column:
    """The ids in the kept type, int64 or string; an empty string, or one of blanks only, is no id, and null.

    Raises:
        pa.ArrowException: bytes that are no UTF-8, or another type.
    """
    if dtype != pa.string():
        return _plain(column).cast(dtype)
    column = as_text(column)
    nothing = pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))
    return pc.if_else(nothing, pa.scalar(None, pa.string()), column) if pc.any(nothing).as_py() else column
