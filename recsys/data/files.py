"""One file opened: Parquet or CSV, and what its footer tells."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.errors import DataError

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what Arrow raises of a damaged file; the last of a name of a column


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


def csv_footer(store: pafs.FileSystem, types: Mapping[str, pa.DataType], path: str) -> tuple[pa.Schema, int, int]:
    """What `parquet_footer` tells, of a CSV file."""
    try:
        with store.open_input_file(path) as handle:
            table = read_csv(handle, path, types)
            return table.schema, table.num_rows, 1
    except UNREADABLE as error:
        raise DataError(f"{path}: not a CSV file with a header: {error}. Mend it, or write Parquet.") from error


def read_csv(handle: pa.NativeFile, path: str, types: Mapping[str, pa.DataType], columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of these types, the others of what their values look like; all columns unless some are named. Empty text is null."""
    compression = pa.Codec.detect(path).name if re.search(r"\.(gz|bz2|zst|lz4)$", path, re.IGNORECASE) else None
    stream = pa.CompressedInputStream(handle, compression) if compression else handle
    known = {name: dtype for name, dtype in types.items() if not pa.types.is_null(dtype)}
    table = pcsv.read_csv(stream, convert_options=pcsv.ConvertOptions(include_columns=columns, column_types=known))
    for place, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            text = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
            table = table.set_column(place, table.schema.names[place], text)
    return table
