"""The row groups of an input: the parts that its files can be read in, as their footers tell."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.files import open_parquet
from recsys.data.inputs import FOOTERS, File, Input
from recsys.data.types import least_bytes
from recsys.storage import filesystem


@dataclass(frozen=True)
class RowGroup:
    """One row group, as its file's footer tells; a file of text is one."""

    path: str
    number: int
    first_row: int
    """Of the file's rows."""
    rows: int
    size: int
    """Bytes of the columns that are read, decoded."""
    low: Any
    """At most the least value of the key column; None where the footer does not say."""
    high: Any
    """At least the greatest one."""


def row_groups(source: Input, columns: Sequence[str], *, key: str | None = None) -> list[RowGroup]:
    """All row groups that have rows, in the order of the files.

    Args:
        columns: that are to be read.
        key: the column whose least and greatest values are wanted.
    """
    if source.is_text:
        return [RowGroup(file.path, 0, 0, file.rows, file.size, None, None) for file in source.files if file.rows]
    store, _ = filesystem(source.location, source.storage_options)
    wanted = set(columns)
    last: list[tuple[pq.ParquetSchema, list[tuple[int, int]], int]] = []  # of ten thousand files most are alike

    def places(schema: pq.ParquetSchema) -> tuple[list[tuple[int, int]], int]:
        """Place and width of the leaves that are read, and the place of the key."""
        for known, read, of_key in last:
            if known.equals(schema):
                return read, of_key
        leaves = [schema.column(place) for place in range(len(schema))]
        names = [_column_of(leaf.path, source.columns) for leaf in leaves]
        read = [(place, least_bytes(leaves[place])) for place, name in enumerate(names) if name in wanted]
        of_key = names.index(key) if key in names else -1
        last[:] = [(schema, read, of_key)]
        return read, of_key

    def groups(file: File) -> list[RowGroup]:
        with store.open_input_file(file.path) as handle:
            metadata = open_parquet(handle).metadata
        read, of_key = places(metadata.schema)
        found: list[RowGroup] = []
        first = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            low = high = None
            if key in file.partition:
                low = high = file.partition[key]
            elif of_key >= 0 and (statistics := group.column(of_key).statistics) is not None and statistics.has_min_max:
                low, high = statistics.min, statistics.max
            # a dictionary of one value takes next to no bytes in the file, and as many as any other column when it is read
            chunks = ((group.column(place), width) for place, width in read)
            size = sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk, width in chunks)
            size += group.num_rows * 8 * len(wanted & file.partition.keys())
            found.append(RowGroup(file.path, number, first, group.num_rows, size, low, high))
            first += group.num_rows
        return [group for group in found if group.rows]

    with ThreadPoolExecutor(FOOTERS) as pool:
        return [group for found in pool.map(groups, source.files) for group in found]


def _column_of(path: str, columns: Mapping[str, pa.DataType]) -> str:
    """The column that a leaf of a Parquet file is part of; names may have dots."""
    while path not in columns and "." in path:
        path = path.rpartition(".")[0]
    return path
