"""Inputs, Parquet or CSV: where they lie, their columns, identity and parts; all read before work starts."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.data.types import common_type, least_bytes
from recsys.errors import DataError
from recsys.storage import digest, filesystem

FOOTERS = 8  # read at once: they are small and far away
BATCH_ROWS = 65_536  # of one batch of `batches`


@dataclass(frozen=True)
class File:
    """One file of an input; a CSV file is one row group."""

    path: str
    size: int
    modified_ns: int
    rows: int
    row_groups: int


@dataclass(frozen=True)
class Input:
    """One input table: its files in path order and the columns they share."""

    setting: str
    """That names the location, such as shop.events."""
    location: str
    files: tuple[File, ...]
    columns: Mapping[str, pa.DataType]
    storage_options: Mapping[str, str]
    csv: bool = False

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def identity(self) -> str:
        """Digest of the paths, sizes and modification times of the files."""
        return digest([[file.path, file.size, file.modified_ns] for file in self.files])

    def require(self, column: str, *, setting: str) -> pa.DataType:
        """The type of a column.

        Raises:
            DataError: the input has no such column.
        """
        if column not in self.columns:
            raise DataError(f"{self.location}: column '{column}' is missing; seen {', '.join(self.columns)}. Add it, or set {setting}.")
        return self.columns[column]


def open_input(
    setting: str, location: str, storage_options: Mapping[str, str], *, csv: bool = False, may_be_empty: bool = False
) -> Input:
    """The input at a path or URI: a Parquet file, or a folder whose `*.parquet` files are one table; or CSV with a header.

    Files whose names start with `.` or `_` are passed over. Of Parquet only footers are read; CSV, which has none, is read.

    Args:
        setting: that names the location, for messages.
        may_be_empty: files without rows are fine.

    Raises:
        DataError: nothing there, no rows, a file that cannot be read, or files whose columns differ.
    """
    suffix = ".csv" if csv else ".parquet"
    store, path = filesystem(location, storage_options)
    try:
        info = store.get_file_info(path)
    except OSError as error:
        raise DataError(f"{location}: cannot be reached: {error}. Check {setting} and the credentials.") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{location}: no such file or folder. Check {setting}; relative paths start where the command runs.")
    if info.type == pafs.FileType.File:
        found = [info]
    else:
        listed = store.get_file_info(pafs.FileSelector(path, recursive=True))
        found = sorted(
            (entry for entry in listed if entry.type == pafs.FileType.File and _is_data(entry.path, path, suffix)),
            key=lambda entry: entry.path,
        )
    if not found:
        raise DataError(f"{location}: the folder has no *{suffix} file. Check {setting}.")
    files: list[File] = []
    columns: dict[str, pa.DataType] = {}
    footer = functools.partial(_csv_footer if csv else _footer, store)
    with ThreadPoolExecutor(FOOTERS) as pool:
        footers = pool.map(footer, [entry.path for entry in found])
        last: pa.Schema | None = None
        for entry, (schema, rows, row_groups) in zip(found, footers, strict=True):
            files.append(File(entry.path, entry.size, entry.mtime_ns or 0, rows, row_groups))
            if last is not None and schema.equals(last):  # of ten thousand files most are alike
                continue
            last = schema
            seen = {field.name: field.type for field in schema}
            if len(seen) < len(schema):
                raise DataError(f"{entry.path}: column names must differ, got {', '.join(schema.names)}. Rename one of each two.")
            if columns and (lacking := sorted(columns.keys() ^ seen.keys())):
                raise DataError(
                    f"{entry.path}: column '{lacking[0]}' is not in every file of {setting} ({files[0].path} differs). "
                    "Write all files with the same columns."
                )
            for column, dtype in seen.items():
                known = columns.setdefault(column, dtype)
                common = known if known == dtype else common_type(known, dtype)
                if common is not None:
                    columns[column] = common
                else:
                    raise DataError(
                        f"{entry.path}: column '{column}' must be {columns[column]} as in {files[0].path}, got {dtype}. "
                        "Write all files with the same types."
                    )
    if sum(file.rows for file in files) == 0 and not may_be_empty:
        raise DataError(f"{location}: {setting} has no rows in {len(files)} file(s). Nothing can be made of it.")
    return Input(setting, location, tuple(files), columns, dict(storage_options), csv)


def read(source: Input, file: File, row_groups: Sequence[int] | None, columns: Sequence[str]) -> pa.Table:
    """The given columns of one file, or of some of its row groups."""
    store, _ = filesystem(source.location, source.storage_options)
    with store.open_input_file(file.path) as handle:
        parquet = pq.ParquetFile(handle)
        if row_groups is None:
            return parquet.read(columns=list(columns), use_threads=False)
        return parquet.read_row_groups(list(row_groups), columns=list(columns), use_threads=False)


def batches(source: Input, path: str, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The given columns of row groups of one file, at most BATCH_ROWS rows at a time and no more in memory."""
    store, _ = filesystem(source.location, source.storage_options)
    with store.open_input_file(path) as handle:
        if source.csv:
            yield from _read_csv(handle, {name: source.columns[name] for name in columns}).to_batches(BATCH_ROWS)
            return
        # words are looked up once for each page's dictionary instead of once a row
        words = [name for name in columns if pa.types.is_string(source.columns[name])]
        parquet = pq.ParquetFile(handle, read_dictionary=words, pre_buffer=False)
        yield from parquet.iter_batches(BATCH_ROWS, row_groups=list(row_groups), columns=list(columns), use_threads=False)


@dataclass(frozen=True)
class RowGroup:
    """One row group, as its file's footer tells; a CSV file is one."""

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
    if source.csv:
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
        of_key = -1 if key is None else names.index(key)
        last[:] = [(schema, read, of_key)]
        return read, of_key

    def groups(file: File) -> list[RowGroup]:
        with store.open_input_file(file.path) as handle:
            metadata = pq.read_metadata(handle)
        read, of_key = places(metadata.schema)
        found: list[RowGroup] = []
        first = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            low = high = None
            if key is not None and (statistics := group.column(of_key).statistics) is not None and statistics.has_min_max:
                low, high = statistics.min, statistics.max
            # a dictionary of one value takes next to no bytes in the file, and as many as any other column when it is read
            chunks = ((group.column(place), width) for place, width in read)
            size = sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk, width in chunks)
            found.append(RowGroup(file.path, number, first, group.num_rows, size, low, high))
            first += group.num_rows
        return [group for group in found if group.rows]

    with ThreadPoolExecutor(FOOTERS) as pool:
        return [group for found in pool.map(groups, source.files) for group in found]


def bounds(source: Input, column: str, *, below: Any = None) -> tuple[Any, Any]:
    """The least and the greatest value of a column: from footers where they hold statistics, else from the column itself.

    Args:
        below: values from this one on have no part; None: all have.

    Returns:
        (None, None) where no value is left.
    """
    low: Any = None
    high: Any = None
    store, _ = filesystem(source.location, source.storage_options)
    for file in source.files:
        with store.open_input_file(file.path) as handle:
            parquet = pq.ParquetFile(handle)
            leaves = [parquet.metadata.schema.column(i).path for i in range(parquet.metadata.num_columns)]
            position = leaves.index(column)
            for group in range(file.row_groups):
                statistics = parquet.metadata.row_group(group).column(position).statistics
                if statistics is not None and statistics.has_min_max and (below is None or statistics.max < below):
                    values = [statistics.min, statistics.max]
                else:
                    read = parquet.read_row_group(group, [column]).column(0).to_pylist()
                    values = [value for value in read if value is not None and (below is None or value < below)]
                if values:
                    low = min(values) if low is None else min(low, *values)
                    high = max(values) if high is None else max(high, *values)
    return low, high


def _is_data(path: str, root: str, suffix: str) -> bool:
    parts = path.removeprefix(root).strip("/").split("/")
    return path.endswith(suffix) and not any(part.startswith((".", "_")) for part in parts)


def _footer(store: pafs.FileSystem, path: str) -> tuple[pa.Schema, int, int]:
    """Columns, rows and row groups of a Parquet file."""
    try:
        with store.open_input_file(path) as handle:
            parquet = pq.ParquetFile(handle)
            return parquet.schema_arrow, parquet.metadata.num_rows, parquet.metadata.num_row_groups
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}. Remove it or write it again.") from error


def _csv_footer(store: pafs.FileSystem, path: str) -> tuple[pa.Schema, int, int]:
    """What `_footer` tells, of a CSV file."""
    try:
        with store.open_input_file(path) as handle:
            table = _read_csv(handle, None)
            return table.schema, table.num_rows, 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a CSV file with a header: {error}. Mend it, or write Parquet.") from error


def _read_csv(handle: pa.NativeFile, types: Mapping[str, pa.DataType] | None) -> pa.Table:
    """The columns of these types; None: all columns, of the types that their values have."""
    if types is not None:
        known = {name: dtype for name, dtype in types.items() if not pa.types.is_null(dtype)}
        return pcsv.read_csv(handle, convert_options=pcsv.ConvertOptions(include_columns=list(types), column_types=known))
    return pcsv.read_csv(handle)


def _column_of(path: str, columns: Mapping[str, pa.DataType]) -> str:
    """The column that a leaf of a Parquet file is part of; names may have dots."""
    while path not in columns and "." in path:
        path = path.rpartition(".")[0]
    return path
