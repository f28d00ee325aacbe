"""Arrow types and values made one: ids, words, numbers and times, whatever way a shop wrote them."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.schema import TIMESTAMP


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


def midnight(day: date) -> int:
    """Microseconds since 1970 of the day's first moment, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def utc(column: pa.Array | pa.ChunkedArray, timezone: str | None) -> pa.Array | pa.ChunkedArray:
    """The times as UTC microseconds; those without a zone are taken to be in `timezone`.

    A time that a clock change makes ambiguous is the earlier one; one that it skips is the moment after the gap.
    """
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if column.type.tz is None:
        assert timezone is not None
        column = pc.assume_timezone(column, arrow_zone(timezone), ambiguous="earliest", nonexistent="latest")
    return column.cast(TIMESTAMP, safe=False)  # nanoseconds are cut off


def arrow_zone(timezone: str) -> str:
    """The zone as Arrow is told it: UTC by its offset, as a name it looks up in the system's time zone data, which slim images lack."""
    return "+00:00" if timezone in ("UTC", "Etc/UTC") else timezone


def as_text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A categorical column as strings."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def clean_ids(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """The ids in the kept type, int64 or string; an empty string is no id, and null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(dtype)
    if dtype == pa.string():
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return column
