"""The least and the greatest value of a column: as footers say, or, where they do not, of the column, in Arrow and in parallel."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.files import open_parquet
from recsys.data.inputs import FOOTERS, File, Input, read
from recsys.storage import filesystem


def bounds(source: Input, column: str, *, usable: Callable[[Any], Any] = lambda values: values) -> tuple[Any, Any]:
    """The least and the greatest value of a column.

    Args:
        usable: Arrow values of the column, of any of its files, as those to compare, in their order; null where a value has no part.

    Returns:
        (None, None) where no value is left.

    Raises:
        DataError: a file cannot be read.
    """

    def of_group(unsaid: tuple[File, int]) -> tuple[Any, Any]:
        return _ends(usable(read(source, unsaid[0], [unsaid[1]], [column]).column(0)))

    found: list[tuple[Any, Any]] = []
    unsaid: list[tuple[File, int]] = []
    with ThreadPoolExecutor(FOOTERS) as pool:
        for file, said in zip(source.files, pool.map(functools.partial(_said, source, column=column), source.files), strict=True):
            for group, ends in enumerate(said):
                kept = None if ends is None else usable(ends)
                if kept is None or kept.null_count:  # what has no part may hide what has
                    unsaid.append((file, group))
                else:
                    found.append(_ends(kept))
        found += pool.map(of_group, unsaid)
    ends = [end for both in found for end in both if end is not None]
    return (min(ends), max(ends)) if ends else (None, None)


def _ends(values: pa.Array | pa.ChunkedArray) -> tuple[Any, Any]:
    both = pc.min_max(values)
    return both["min"].as_py(), both["max"].as_py()


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
    integers = {"INT32": pa.int32(), "INT64": pa.int64()}.get(leaves[place].physical_type)
    said: list[pa.Array | None] = []
    for group in range(file.row_groups):
        statistics = parquet.metadata.row_group(group).column(place).statistics
        if integers is None or statistics is None or not statistics.has_min_max:
            said.append(None)
        else:  # as integers: a time may be of a year that Python has no word for
            raw = pa.array([statistics.min_raw, statistics.max_raw], integers)
            said.append(raw.cast(parquet.schema_arrow.field(column).type))
    return said
