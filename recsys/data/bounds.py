"""The least and the greatest value of a column: as footers say, or, where they do not, of the column, in Arrow and in parallel."""

import functools
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.files import open_parquet
from recsys.data.inputs import FOOTERS, File, Input, read
from recsys.storage import filesystem

FIRST_US = int(datetime(1, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000  # of Python's calendar


def bounds(source: Input, column: str, *, below: Any = None) -> tuple[Any, Any]:
    """The least and the greatest value of a column; times in microseconds, those before the year 1 left aside.

    Args:
        below: values from this one on have no part; None: all have.

    Returns:
        (None, None) where no value is left.

    Raises:
        DataError: a file cannot be read.
    """
    dtype = source.columns[column]
    if pa.types.is_timestamp(dtype):
        dtype = pa.timestamp("us", dtype.tz)

    def usable(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        if pa.types.is_timestamp(dtype):
            values = values.cast(dtype, safe=False)  # nanoseconds are cut off
            values = values.filter(pc.greater_equal(values.cast(pa.int64()), FIRST_US))
        return values if below is None else values.filter(pc.less(values.cast(dtype), pa.scalar(below, dtype)))

    def of_group(unsaid: tuple[File, int]) -> pa.Array:
        return _ends(usable(read(source, unsaid[0], [unsaid[1]], [column]).column(0)), dtype)

    found: list[pa.Array] = []
    unsaid: list[tuple[File, int]] = []
    with ThreadPoolExecutor(FOOTERS) as pool:
        for file, said in zip(source.files, pool.map(functools.partial(_said, source, column=column), source.files), strict=True):
            for group, ends in enumerate(said):
                if ends is not None and len(kept := usable(ends)) == len(ends):
                    found.append(_ends(kept, dtype))
                else:
                    unsaid.append((file, group))
        found += pool.map(of_group, unsaid)
    both = pc.min_max(pa.chunked_array(found, dtype))
    return both["min"].as_py(), both["max"].as_py()


def _ends(values: pa.Array | pa.ChunkedArray, dtype: pa.DataType) -> pa.Array:
    """The least and the greatest value; nulls where there is none."""
    both = pc.min_max(values.cast(dtype))
    return pa.array([both["min"].cast(dtype), both["max"].cast(dtype)], dtype)


def _said(source: Input, file: File, column: str) -> list[pa.Array | None]:
    """For each row group the least and the greatest value as path, log or footer says; None where it does not."""
    if column in file.partition:
        return [pa.array([file.partition[column]], source.columns[column])] * bool(file.rows)
    if source.csv:
        return [None]
    store, _ = filesystem(source.location, source.storage_options)
    with store.open_input_file(file.path) as handle:
        parquet = open_parquet(handle)
    leaves = [parquet.metadata.schema.column(place) for place in range(parquet.metadata.num_columns)]
    place = next((place for place, leaf in enumerate(leaves) if leaf.path == column), None)
    if place is None:  # added to a Delta table after the file was written
        return []
    dtype = parquet.schema_arrow.field(column).type
    said: list[pa.Array | None] = []
    for group in range(file.row_groups):
        statistics = parquet.metadata.row_group(group).column(place).statistics
        if statistics is None or not statistics.has_min_max or leaves[place].physical_type == "INT96":
            said.append(None)
        elif pa.types.is_timestamp(dtype):  # as integers: Python's calendar ends with the year 9999
            said.append(pa.array([statistics.min_raw, statistics.max_raw], pa.int64()).cast(dtype))
        else:
            said.append(pa.array([statistics.min, statistics.max], dtype))
    return said
