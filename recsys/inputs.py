"""Parquet inputs: where they lie, their columns, their identity, and how they are cut into parts; all read before work starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.errors import ConfigError, DataError
from recsys.work import digest


@dataclass(frozen=True)
class File:
    """One Parquet file of an input."""

    path: str
    size: int
    modified_ns: int
    rows: int
    row_groups: int


@dataclass(frozen=True)
class Input:
    """One input table: its files in path order and the columns they share."""

    name: str
    location: str
    files: tuple[File, ...]
    columns: Mapping[str, pa.DataType]
    storage_options: Mapping[str, str]

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


def filesystem(location: str, storage_options: Mapping[str, str]) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system of a path or URI, and the path within it; a plain path becomes absolute.

    Raises:
        ConfigError: a scheme that is not known, or an option the store does not take.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    unknown = sorted(storage_options.keys() - {"region", "endpoint"})
    if unknown:
        raise ConfigError(f"{location}: storage_options may be region and endpoint, got '{unknown[0]}'. Put it in the environment.")
    if location.startswith("s3://") and storage_options:
        endpoint = urlsplit(storage_options.get("endpoint", ""))
        store = pafs.S3FileSystem(
            region=storage_options.get("region"), endpoint_override=endpoint.netloc or None, scheme=endpoint.scheme or None
        )
        return store, location.removeprefix("s3://").rstrip("/")
    try:
        store, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{location}: cannot be opened: {error}. Check the URI.") from error
    return store, root.rstrip("/")


def open_input(name: str, location: str, storage_options: Mapping[str, str]) -> Input:
    """The input at a path or URI: a Parquet file, or a folder whose `*.parquet` files are one table.

    Files whose names start with `.` or `_` are passed over. Only footers are read.

    Raises:
        DataError: nothing there, no rows, a file that is not Parquet, or files whose columns differ.
    """
    store, path = filesystem(location, storage_options)
    try:
        info = store.get_file_info(path)
    except OSError as error:
        raise DataError(f"{location}: cannot be reached: {error}. Check shop.{name} and the credentials.") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{location}: no such file or folder. Check shop.{name}; relative paths start where the command runs.")
    if info.type == pafs.FileType.File:
        found = [info]
    else:
        listed = store.get_file_info(pafs.FileSelector(path, recursive=True))
        found = sorted(
            (entry for entry in listed if entry.type == pafs.FileType.File and _is_data(entry.path, path)),
            key=lambda entry: entry.path,
        )
    if not found:
        raise DataError(f"{location}: the folder has no *.parquet file. Check shop.{name}.")
    files: list[File] = []
    columns: dict[str, pa.DataType] = {}
    for entry in found:
        footer = _footer(store, entry.path)
        seen = {field.name: field.type for field in footer.schema.to_arrow_schema()}
        if columns and (lacking := sorted(columns.keys() ^ seen.keys())):
            raise DataError(
                f"{entry.path}: column '{lacking[0]}' is not in every file of shop.{name} ({files[0].path} differs). "
                "Write all files with the same columns."
            )
        for column, dtype in seen.items():
            if columns.setdefault(column, dtype) != dtype and _family(columns[column]) != _family(dtype):
                raise DataError(
                    f"{entry.path}: column '{column}' must be {columns[column]} as in {files[0].path}, got {dtype}. "
                    "Write all files with the same types."
                )
        modified = entry.mtime_ns
        files.append(File(entry.path, entry.size, modified or 0, footer.metadata.num_rows, footer.metadata.num_row_groups))
    if sum(file.rows for file in files) == 0:
        raise DataError(f"{location}: shop.{name} has no rows in {len(files)} file(s). Nothing can be learned from it.")
    return Input(name, location, tuple(files), columns, dict(storage_options))


def read(source: Input, file: File, row_groups: Sequence[int] | None, columns: Sequence[str]) -> pa.Table:
    """The given columns of one file, or of some of its row groups."""
    store, _ = filesystem(source.location, source.storage_options)
    with store.open_input_file(file.path) as handle:
        parquet = pq.ParquetFile(handle)
        if row_groups is None:
            return parquet.read(columns=list(columns), use_threads=False)
        return parquet.read_row_groups(list(row_groups), columns=list(columns), use_threads=False)


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


def _is_data(path: str, root: str) -> bool:
    parts = path.removeprefix(root).strip("/").split("/")
    return path.endswith(".parquet") and not any(part.startswith((".", "_")) for part in parts)


def _footer(store: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        with store.open_input_file(path) as handle:
            return pq.ParquetFile(handle)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}. Remove it or write it again.") from error


def _family(dtype: pa.DataType) -> str:
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
