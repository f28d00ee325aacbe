"""One file opened: Parquet, CSV or JSON lines, and what its footer tells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from recsys.errors import DataError

Form = Literal["parquet", "csv", "json"]
DELIMITERS = (",", ";", "|", "\t")
HEADER = 65_536  # bytes that a CSV's header is looked for in
COMPRESSED = re.compile(r"\.(gz|bz2|zst|lz4)$", re.IGNORECASE)
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what Arrow raises of a damaged file; the last of a name of a column


@dataclass(frozen=True)
class Found:
    """One file of an input, not opened yet."""

    path: str
    name: str
    """The path from the folder or table that is read on: the same wherever that lies."""
    size: int
    modified_ns: int
    partition: Mapping[str, Any] = field(default_factory=dict)
    """Columns that stand in the path, or in the log, and hold one value in the whole file."""


@dataclass(frozen=True)
class Listing:
    """The files of an input in path order."""

    files: tuple[Found, ...]
    partitions: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types of the columns of `Found.partition`."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> entries passed over: hidden, empty, linked twice."""
    form: Form = "parquet"
    schema: pa.Schema | None = None
    """Of a Delta or Iceberg table, whose files may lack columns that came later; None elsewhere."""
    field_ids: Mapping[str, int] | None = None
    """Of an Iceberg table: column -> the number that it goes by, whatever it was called when a file was written."""


def open_parquet(handle: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """A Parquet file; int96 holds microseconds, which reach from the year 1 to beyond 9999, where nanoseconds would turn over."""
    return pq.ParquetFile(handle, coerce_int96_timestamp_unit="us", page_checksum_verification=True, **options)


def parquet_footer(store: pafs.FileSystem, path: str) -> tuple[pa.Schema, int, int]:
    """Columns, rows and row groups of a Parquet file."""
    try:
        with store.open_input_file(path) as handle:
            parquet = open_parquet(handle)
            return parquet.schema_arrow, parquet.metadata.num_rows, parquet.metadata.num_row_groups
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: is gone, though the listing or the table's log names it. Restore it, or write the table again."
        ) from error
    except UNREADABLE as error:
        raise DataError(f"{path}: not a Parquet file: {error}. Remove it or write it again.") from error


def text_footer(store: pafs.FileSystem, form: Form, types: Mapping[str, pa.DataType], path: str) -> tuple[pa.Schema, int, int]:
    """What `parquet_footer` tells, of a file of CSV or JSON lines, which is read for it."""
    try:
        with store.open_input_file(path) as handle:
            table = parse_text(handle, form, path, types)
            return table.schema, table.num_rows, 1
    except UNREADABLE as error:
        what = "a CSV file with a header" if form == "csv" else "a file of JSON objects, one a line"
        raise DataError(f"{path}: not {what}: {error}. Mend it, or write Parquet.") from error


def parse_text(
    handle: pa.NativeFile, form: Form, path: str, types: Mapping[str, pa.DataType], columns: Sequence[str] | None = None
) -> pa.Table:
    """Columns of a file of CSV, of these types where they are among them, or of JSON lines; the others of what their values look like.

    All columns unless some are named. Empty text of a CSV is null; of DELIMITERS, what its header has most of parts its columns.
    """
    compression = pa.Codec.detect(path).name if COMPRESSED.search(path) else None
    text = (pa.CompressedInputStream(handle, compression) if compression else handle).read()
    if form == "json":
        table = pajson.read_json(pa.BufferReader(text))
        return table if columns is None else table.select(columns)
    header = text[:HEADER].split(b"\n", 1)[0].decode("utf-8", errors="replace")
    begin = pcsv.ParseOptions(delimiter=max(DELIMITERS, key=header.count))
    known = {name: dtype for name, dtype in types.items() if not pa.types.is_null(dtype)}
    asked = pcsv.ConvertOptions(include_columns=columns, column_types=known)
    table = pcsv.read_csv(pa.BufferReader(text), parse_options=begin, convert_options=asked)
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            words = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            table = table.set_column(place, table.schema.names[place], words)
    return table
