"""Inputs, Parquet, CSV or JSON lines: their columns, identity and parts; all read before work starts."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from typing_extensions import override

from recsys.data.files import UNREADABLE, Form, open_parquet, parquet_footer, parse_text, text_footer
from recsys.data.iceberg import check_field_ids
from recsys.data.listing import list_input
from recsys.data.types import common_type, family
from recsys.errors import DataError
from recsys.storage import digest, filesystem

FOOTERS = 8  # read at once: they are small and far away
BATCH_ROWS = 65_536  # of one batch of `batches`
log = logging.getLogger("recsys")


@dataclass(frozen=True)
class File:
    """One file of an input; one of text is one row group."""

    path: str
    name: str
    """As of `listing.Found`."""
    size: int
    modified_ns: int
    rows: int
    row_groups: int
    partition: Mapping[str, Any] = field(default_factory=dict)
    """Columns that hold one value in the whole file, as its path or the table's log says."""


class Columns(dict[str, pa.DataType]):
    """The type of every column that some file has; one that cannot be read from all files is refused when it is asked for.

    So a column that nobody asks for does no harm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, str] = {}
        """Column -> the sentence that refuses it."""

    @override
    def __getitem__(self, column: str) -> pa.DataType:
        if column in self.faults:
            raise DataError(self.faults[column])
        return super().__getitem__(column)


@dataclass(frozen=True)
class Input:
    """One input table: its files in path order and their columns."""

    setting: str
    """That names the location, such as shop.events."""
    location: str
    files: tuple[File, ...]
    columns: Mapping[str, pa.DataType]
    storage_options: Mapping[str, str]
    form: Form = "parquet"
    delta: bool = False
    """A column that a file lacks is null there, and what the log says of a file stands."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> entries of the folder that are no part of the table."""

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def is_text(self) -> bool:
        """CSV or JSON lines: files without footers, which were read to open them."""
        return self.form != "parquet"

    @functools.cached_property
    def file_of(self) -> Mapping[str, File]:
        """Each file by its path."""
        return {file.path: file for file in self.files}

    def identity(self) -> str:
        """Digest of the files' names below the location, sizes, times and rows: the same wherever the location is."""
        return digest([[file.name, file.size, file.modified_ns, file.rows] for file in self.files])

    def require(self, column: str, *, setting: str) -> pa.DataType:
        """The type of a column.

        Raises:
            DataError: the input, or one of its files, has no such column; or files differ in its type.
        """
        if column not in self.columns:
            raise DataError(f"{self.location}: column '{column}' is missing; seen {', '.join(self.columns)}. Add it, or set {setting}.")
        return self.columns[column]


def log_files(*inputs: Input | None) -> None:
    """A line for each input: how many files and rows are read, and what was left out."""
    for source in inputs:
        if source is not None:
            left_out = ", ".join(f"{reason} {count:,}" for reason, count in sorted(source.left_out.items())) or "nothing"
            log.info("%s: %s file(s), %s rows; left out: %s", source.setting, f"{len(source.files):,}", f"{source.rows:,}", left_out)


def open_input(
    setting: str,
    location: str,
    storage_options: Mapping[str, str],
    *,
    form: Form | None = "parquet",
    types: Mapping[str, pa.DataType] = {},
    may_be_empty: bool = False,
    version: int | None = None,
) -> Input:
    """The input at a path or URI: a file, a folder whose files are one table, or a Delta table: Parquet, CSV with header, JSON lines.

    Of Parquet only footers are read; the others, which have none, are read.

    Args:
        setting: that names the location, for messages.
        form: of the files; None, what their endings say.
        types: of columns of a CSV, which else are what their values look like.
        may_be_empty: files without rows are fine.
        version: of a Delta table, or a snapshot's id of an Iceberg table; None, the newest.

    Raises:
        DataError: as `list_input`; no rows, or a file that cannot be read.
    """
    store, path = filesystem(location, storage_options)
    listing = list_input(setting, location, store, path, storage_options, form=form, version=version)
    files: list[File] = []
    columns = Columns()
    told = listing.form
    footer = functools.partial(parquet_footer, store) if told == "parquet" else functools.partial(text_footer, store, told, types)
    with ThreadPoolExecutor(FOOTERS) as pool:
        footers = pool.map(footer, [entry.path for entry in listing.files])
        last: tuple[pa.Schema, list[str]] | None = None
        for entry, (schema, rows, row_groups) in zip(listing.files, footers, strict=True):
            files.append(File(entry.path, entry.name, entry.size, entry.modified_ns, rows, row_groups, entry.partition))
            if listing.field_ids is not None:
                check_field_ids(entry.path, schema, listing.field_ids)
            mine = (schema, list(entry.partition))
            if listing.schema is not None or (last is not None and mine[1] == last[1] and schema.equals(last[0])):
                continue  # of ten thousand files most are alike, and a Delta table has its schema
            last = mine
            _add_columns(columns, setting, files, schema, listing.partitions)
    if listing.schema is not None:
        columns.update({field.name: field.type for field in listing.schema})
    found = Input(setting, location, tuple(files), columns, dict(storage_options), told, listing.schema is not None, listing.left_out)
    if found.rows == 0 and not may_be_empty:
        raise DataError(f"{location}: {setting} has no rows in {len(files)} file(s). Nothing can be made of it.")
    return found


def _add_columns(columns: Columns, setting: str, files: list[File], schema: pa.Schema, partitions: Mapping[str, pa.DataType]) -> None:
    """Add the columns of the last of the files, whose schema is given, to those of the files before it."""
    first, file = files[0], files[-1]
    seen = {name: partitions[name] for name in file.partition} | {field.name: field.type for field in schema}
    if len(set(schema.names)) < len(schema):
        raise DataError(f"{file.path}: column names must differ, got {', '.join(schema.names)}. Rename one of each two.")
    if file is not first:
        for name in columns.keys() ^ seen.keys():
            columns.faults.setdefault(
                name,
                f"{file.path}: column '{name}' is not in every file of {setting} ({first.path} differs). "
                "Write all files with the same columns.",
            )
    for name, dtype in seen.items():
        known = columns.get(name, dtype)
        common = common_type(known, dtype)
        if common is None:
            columns.faults.setdefault(
                name,
                f"{file.path}: column '{name}' must be {known} as in {first.path}, got {dtype}. Write all files with the same types.",
            )
        columns[name] = known if known == dtype or common is None else _wider(known, dtype, common)


def _wider(one: pa.DataType, other: pa.DataType, common: pa.DataType) -> pa.DataType:
    """The type that holds the values of both, such as int64 of int32 and int64; where Arrow knows none, the common one, plain."""
    if pa.types.is_decimal(common):
        return common  # beside floats too: whoever takes no decimals is to see them
    one, other, common = (dtype.value_type if pa.types.is_dictionary(dtype) else dtype for dtype in (one, other, common))
    try:
        schemas = [pa.schema([("x", dtype)]) for dtype in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return common


def read(source: Input, file: File, row_groups: Sequence[int] | None, columns: Sequence[str]) -> pa.Table:
    """The given columns of one file, or of some of its row groups, of the types that the input says; decimals are float64.

    Raises:
        DataError: the file cannot be read.
    """
    store, _ = filesystem(source.location, source.storage_options)
    try:
        with store.open_input_file(file.path) as handle:
            if source.is_text:
                table = _parse_text(source, file, handle, columns)
            else:
                parquet = open_parquet(handle)
                inside = _inside(source, file, columns, parquet.schema_arrow.names)
                numbers = list(range(file.row_groups)) if row_groups is None else list(row_groups)
                table = parquet.read_row_groups(numbers, columns=inside, use_threads=False)
            found = [_of_type(_column(source, file, table, name), source.columns[name], file, name) for name in columns]
        _check_same(source, store, file)
        return pa.table(found, names=list(columns))
    except UNREADABLE as error:
        raise _unreadable(file.path, error) from error


def batches(source: Input, path: str, row_groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The given columns of row groups of one file, at most BATCH_ROWS rows at a time and no more in memory.

    Raises:
        DataError: the file cannot be read.
    """
    store, _ = filesystem(source.location, source.storage_options)
    file = source.file_of[path]
    try:
        with store.open_input_file(path) as handle:
            for batch in _batches(source, file, handle, row_groups, columns):
                if batch.schema.names == list(columns):
                    yield batch
                else:
                    yield pa.record_batch([_column(source, file, batch, name) for name in columns], names=list(columns))
        _check_same(source, store, file)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _batches(
    source: Input, file: File, handle: pa.NativeFile, row_groups: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Of the columns those that stand in the file."""
    if source.is_text:
        yield from _parse_text(source, file, handle, columns).to_batches(BATCH_ROWS)
        return
    metadata = open_parquet(handle).metadata
    inside = _inside(source, file, columns, metadata.schema.to_arrow_schema().names)
    # words are looked up once for each page's dictionary instead of once a row
    words = [name for name in inside if pa.types.is_string(source.columns[name])]
    parquet = open_parquet(handle, metadata=metadata, read_dictionary=words, pre_buffer=False)
    yield from parquet.iter_batches(BATCH_ROWS, row_groups=list(row_groups), columns=inside, use_threads=False)


def _check_same(source: Input, store: pafs.FileSystem, file: File) -> None:
    """Nothing, where the file that was just read is the one that was opened: what is made of it is kept under that one's name.

    Raises:
        DataError: it has another size or time now.
    """
    if source.delta:
        return  # the files of a table never change, and its log's times are its own
    info = store.get_file_info(file.path)
    allowed = 0 if isinstance(store, pafs.LocalFileSystem) else 1_000_000_000  # stores list fractions of seconds and tell whole ones
    if info.size != file.size or abs((info.mtime_ns or 0) - file.modified_ns) > allowed:
        raise DataError(f"{file.path}: changed while the run read it. Write a shop's files under other names, then run again.")


def _parse_text(source: Input, file: File, handle: pa.NativeFile, columns: Sequence[str]) -> pa.Table:
    inside = [name for name in columns if name not in file.partition]
    return parse_text(handle, source.form, file.path, {name: source.columns[name] for name in inside}, inside)


def _inside(source: Input, file: File, columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that are read from the file, which has those names; the others come from its path or the log, or are null."""
    inside = [name for name in columns if name in names and not (source.delta and name in file.partition)]
    for name in columns:
        if name not in inside and name not in file.partition and not source.delta:
            raise DataError(f"{file.path}: column '{name}' is missing; seen {', '.join(names)}. Write the file again.")
    return inside


def _column(source: Input, file: File, rows: pa.Table | pa.RecordBatch, name: str) -> pa.Array | pa.ChunkedArray:
    """A column of rows of one file, wherever it stands.

    Raises:
        DataError: the path says something else than the file.
    """
    if name not in rows.schema.names:
        value = file.partition.get(name)
        dtype = source.columns[name]
        return pa.nulls(rows.num_rows, dtype) if value is None else pa.repeat(pa.scalar(value, dtype), rows.num_rows)
    column = rows.column(name)
    if name in file.partition and family(column.type) in ("string", "integer", "bool"):
        plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        said = str(file.partition[name])
        if pc.any(pc.not_equal(plain.cast(pa.string()), said)).as_py():
            raise DataError(
                f"{file.path}: column '{name}' must be {said} as the path says, got other values in the file. Drop one of them."
            )
    return column


def _of_type(column: pa.ChunkedArray, dtype: pa.DataType, file: File, name: str) -> pa.ChunkedArray:
    if pa.types.is_decimal(dtype):
        dtype = pa.float64()  # some files may hold floats
    if column.type == dtype or pa.types.is_dictionary(dtype):
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), dtype)])
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(dtype, safe=not pa.types.is_timestamp(dtype))  # nanoseconds are cut off
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path}: column '{name}' must be {dtype}, got {column.type} that is not: {error}. Convert it.") from error


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read: {error}. Write the file again.")
