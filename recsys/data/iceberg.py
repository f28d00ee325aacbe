"""Iceberg tables as inputs: the data files of a snapshot, as pyiceberg reads its metadata; refused where files alone are not it."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from recsys.data.files import Found, Listing
from recsys.errors import DataError, one_line

FIELD_ID = b"PARQUET:field_id"


def iceberg_files(
    setting: str, location: str, metadata: str, path: str, storage_options: Mapping[str, str], *, version: int | None
) -> Listing:
    """The files of a snapshot of an Iceberg table.

    Args:
        metadata: path of the metadata file, within the file system of the location.
        path: of the location: of the table's folder, or of the metadata file.
        version: the snapshot's id; None, the current one.

    Raises:
        DataError: pyiceberg is not installed, the metadata cannot be read, there is no such snapshot, rows were deleted beside files,
            or a file is no Parquet.
    """
    try:
        from pyiceberg.exceptions import NoSuchTableError, ValidationError
        from pyiceberg.io.pyarrow import schema_to_pyarrow
        from pyiceberg.table import StaticTable
        from pyiceberg.transforms import IdentityTransform
    except ImportError as error:
        raise DataError(f"{location}: is an Iceberg table, which pyiceberg reads. Install recsys[iceberg], on every node.") from error
    scheme = re.match(r"\w+://", location)
    properties = {f"s3.{name}": value for name, value in storage_options.items()} if scheme else {}
    try:
        table = StaticTable.from_metadata(f"{scheme[0] if scheme else ''}{metadata}", properties)
        if version is not None and table.snapshot_by_id(version) is None:
            known = ", ".join(str(one.snapshot_id) for one in table.snapshots()[-5:]) or "none"
            raise DataError(f"{location}: snapshot {version} must be one of the table, the last are {known}. Mend shop.versions.")
        tasks = list(table.scan(snapshot_id=version).plan_files())
        snapshot = table.snapshot_by_id(version) if version is not None else None
        schema = table.schemas()[snapshot.schema_id] if snapshot and snapshot.schema_id is not None else table.schema()
        fields = [pa.field(field.name, _plain(field.type)) for field in schema_to_pyarrow(schema, include_field_ids=False)]
        specs = table.specs()
    except (OSError, ValueError, KeyError, NoSuchTableError, ValidationError) as error:
        said = one_line(error)
        raise DataError(f"{location}: cannot be read as an Iceberg table: {said}. Check {setting} and the credentials.") from error
    found: list[Found] = []
    partitions: dict[str, pa.DataType] = {}
    root = path.removesuffix(metadata) if path != metadata else path.rsplit("/", 2)[0]
    for task in tasks:
        file = task.file
        if task.delete_files:
            raise DataError(
                f"{location}: the Iceberg table has rows deleted beside {file.file_path}, which cannot be read. Rewrite its data "
                "files first, as Spark's rewrite_data_files does."
            )
        if str(file.file_format).rpartition(".")[2].lower() != "parquet":
            raise DataError(f"{location}: {file.file_path} must be Parquet, got {file.file_format}. Rewrite the table's data files.")
        named: dict[str, Any] = {}
        for place, part in enumerate(specs[file.spec_id].fields):
            if isinstance(part.transform, IdentityTransform):
                column = schema.find_column_name(part.source_id)
                if column is not None:
                    named[column] = file.partition[place]
                    partitions[column] = pa.schema(fields).field(column).type
        place = unquote(re.sub(r"^file:(//)?", "", file.file_path)) if not scheme else file.file_path.removeprefix(scheme[0])
        if "://" in place:
            raise DataError(f"{location}: {file.file_path} lies in another kind of store than the table. Copy the table as a whole.")
        found.append(Found(place, place.removeprefix(root).strip("/"), file.file_size_in_bytes, 0, named))
    ids = {field.name: field.field_id for field in schema.fields}
    return Listing(tuple(sorted(found, key=lambda one: one.path)), partitions, {}, schema=pa.schema(fields), field_ids=ids)


def check_field_ids(path: str, schema: pa.Schema, ids: Mapping[str, int]) -> None:
    """Refuse a file whose columns were called otherwise when it was written, or mean something else by a name of now.

    Args:
        schema: of the file, as its footer says.
        ids: as of `Listing`.

    Raises:
        DataError: some were.
    """
    names = {number: name for name, number in ids.items()}
    for field in schema:
        number = (field.metadata or {}).get(FIELD_ID)
        if number is None:
            continue
        now = names.get(int(number))
        if (now is not None and now != field.name) or (now is None and field.name in ids):
            raise DataError(
                f"{path}: column '{field.name}' was written before the Iceberg table's columns were renamed (now {now or 'dropped'}), "
                "which cannot be read. Rewrite the table's data files, as Spark's rewrite_data_files does."
            )


def _plain(dtype: pa.DataType) -> pa.DataType:
    """Strings as the files have them: pyiceberg says large ones."""
    return pa.string() if pa.types.is_large_string(dtype) else dtype
