"""The least and the greatest value of a column: as footers say, or, where they do not, of the column, in Arrow and in parallel."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.files import open_parquet
from recsys.data.inputs import FOOTERS, File, Input, read
from recsys.data.kept import Kept
from recsys.storage import filesystem


def bounds(
    source: Input,
    column: str,
    *,
    usable: Callable[[Any], Any],
    below: int,
    what: str,
    kept: Kept,
) -> tuple[Any, Any]:
    """The least and the greatest value of a column. What footers do not say is read, and kept.

    Args:
        usable: Arrow values of the column, of any of its files, as integers to compare, in their order; null where a value has no part.
        below: values from it on have no part.
        what: the column and what else `usable` depends on.
        kept: of earlier commands and for later ones, what was read.

    Returns:
        (None, None) where no value is left.

    Raises:
        DataError: a file cannot be read.
    """

    def of_group(file: File, number: int) -> tuple[Any, Any]:
        return _ends(usable(read(source, file, [number], [column]).column(0)))

    def of_group_below(file: File, number: int) -> tuple[Any, Any]:
        values = usable(read(source, file, [number], [column]).column(0))
        return _ends(pc.if_else(pc.less(values, below), values, pa.scalar(None, values.type)))

    found: list[tuple[Any, Any]] = []
    unsaid: list[tuple[File, int]] = []
    with ThreadPoolExecutor(FOOTERS) as pool:
        for file, said in zip(source.files, pool.map(functools.partial(_said, source, column=column), source.files), strict=True):
            for group, ends in enumerate(said):
                told = None if ends is None else usable(ends)
                if told is None or told.null_count or _beyond(_ends(told), below):  # what has no part may hide what has
                    unsaid.append((file, group))
                else:
                    found.append(_ends(told))
    read_ends = kept.of_row_groups(source, what, unsaid, of_group)
    late = [group for group, ends in zip(unsaid, read_ends, strict=True) if _beyond(ends, below)]
    found += [ends for ends in read_ends if not _beyond(ends, below)]
    found += kept.of_row_groups(source, f"{what} below {below}", late, of_group_below)
    ends = [end for both in found for end in both if end is not None]
    return (min(ends), max(ends)) if ends else (None, None)


def _beyond(ends: Sequence[Any], below: int) -> bool:
    """Whether some value lies beyond, and has no part."""
    return ends[1] is not None and ends[1] >= below


def _ends(values: pa.Array | pa.ChunkedArray) -> tuple[Any, Any]:
    both = pc.min_max(values)
    return both["min"].as_py(), both["max"].as_py()


def _said(source: Input, file: File, column: str) -> list[pa.Array | None]:
    """For each row group the least and the greatest value as path, log or footer says; None where it does not."""
    if column in file.partition:
        return [pa.array([file.partition[column]], source.columns[column])] * bool(file.rows)
    if source.is_text:
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
