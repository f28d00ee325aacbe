"""The Delta table beneath the recommendations: opened, created, its files listed and reclaimed."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from recsys.errors import PublishError
from recsys.publishing.staging import Part
from recsys.schema import AS_OF, MODEL_VERSION, RUN_ID, differences
from recsys.storage import delta_location, filesystem

RECLAIM_HOURS = 7 * 24  # Delta's own default: how long files that no night refers to stay on disk
# A checkpoint forgets removed files older than this, and what is forgotten is never reclaimed (delta-rs#3644): so much longer.
CHANGE_FEED = {"delta.enableChangeDataFeed": "true"}  # readers ask the table what a version added and removed
TABLE_PROPERTIES = {"delta.deletedFileRetentionDuration": "interval 365 days", **CHANGE_FEED}
PART = re.compile(rf"{AS_OF}=\d{{4}}-\d\d-\d\d/\.?part-\d{{5,}}-[\w.-]+\.parquet(\.[0-9a-f]{{32}})?")  # as staged, or on its way there
TERMINAL = re.compile(r"\x1b\[[0-9;]*m|\u21b3")  # colours and arrows in deltalake's messages


def open_table(path: str, storage_options: Mapping[str, str], *, version: int | None = None) -> DeltaTable | None:
    """The table as it is, or was at a version; None where there is none.

    Raises:
        PublishError: something else lies there, or the store cannot be reached.
    """
    with _told(path), suppress(TableNotFoundError):
        uri, options = delta_location(path, storage_options)
        return DeltaTable(uri, version=version, storage_options=options)
    return None


@contextmanager
def _told(path: str) -> Iterator[None]:
    """A block that reads a table's log; what is wrong with it, or with the store, is one sentence."""
    try:
        yield
    except (DeltaError, OSError) as error:  # the latter where a store cannot be reached
        said = " ".join(TERMINAL.sub("", str(error)).split())
        raise PublishError(
            f"{path}: cannot be opened as a Delta table: {said}. Check table.path, the store and its credentials."
        ) from error


def history(table: DeltaTable) -> list[dict[str, Any]]:
    """What the log tells of every commit that it still holds, newest first.

    Raises:
        PublishError: the log is damaged, or the store cannot be reached.
    """
    with _told(table.table_uri):
        return table.history()


def create_table(path: str, schema: pa.Schema, storage_options: Mapping[str, str]) -> DeltaTable:
    """The table, made where there is none."""
    uri, options = delta_location(path, storage_options)
    return DeltaTable.create(uri, schema, mode="ignore", partition_by=[AS_OF], configuration=TABLE_PROPERTIES, storage_options=options)


def check_table(table: DeltaTable, schema: pa.Schema, *, where: str) -> None:
    """Nothing, where the table has these columns, by name, and is partitioned by as_of.

    Raises:
        PublishError: it differs.
    """
    partition = table.metadata().partition_columns
    seen = {field.name: field for field in pa.schema(table.schema().to_arrow())}
    # By name, as readers go: a column that came later stands last. One that is still to come may be absent.
    named = [seen.pop(field.name, field if field.nullable else None) for field in schema]
    wrong = differences(pa.schema([field for field in (*named, *seen.values()) if field is not None]), schema)
    if partition != [AS_OF]:
        wrong = f"must be partitioned by {AS_OF}, got {', '.join(partition) or 'no partitions'}"
    if wrong:
        raise PublishError(f"{where}: {wrong}. Set table.path to a new folder, or move the old table away.")


def add_columns(table: DeltaTable, schema: pa.Schema) -> None:
    """The nullable columns that the table was made before, added to it: old nights have nulls there."""
    known = {field.name for field in table.schema().fields}
    absent = pa.schema([field for field in schema if field.name not in known])
    if absent.names:
        table.alter.add_columns(Schema.from_arrow(absent).fields)


def feed_changes(table: DeltaTable) -> None:
    """The change data feed, on for a table that was made before it was: in a version of its own."""
    if not CHANGE_FEED.items() <= table.metadata().configuration.items():
        table.alter.set_table_properties(CHANGE_FEED)


def table_files(table: DeltaTable) -> list[dict[str, Any]]:
    """The files the table consists of: path, bytes, rows, night, and the run and model that its statistics name.

    Raises:
        PublishError: the log does not tell, or cannot be read.
    """
    names = {"path": "path", "size_bytes": "size", "num_records": "rows", f"partition.{AS_OF}": AS_OF}
    names |= {f"min.{name}": name for name in (RUN_ID, MODEL_VERSION)}
    with _told(table.table_uri):
        files = pa.table(table.get_add_actions(flatten=True))
    if missing := [name.split(".")[-1] for name in names if name not in files.column_names]:
        raise PublishError(
            f"{table.table_uri}: must be a table of recommendations, by night, got files that do not tell "
            f"{', '.join(missing)}. Set table.path to the table that jobs.nightly published."
        )
    found = files.select(list(names)).rename_columns(names).to_pylist()
    for file in found:
        if odd := [name for name, value in file.items() if value is None]:
            raise PublishError(
                f"{table.table_uri}: its log must tell {', '.join(names.values())} of every file, got no {odd[0]} of {file['path']}. "
                "The log is damaged, or something else wrote to the table: go back to a version of before, or set table.path anew."
            )
    return found


def add_action(part: Part, as_of: date) -> AddAction:
    """What makes a staged part one of the night's files."""
    return AddAction(part["path"], part["size"], {AS_OF: as_of.isoformat()}, part["modified_ms"], True, part["stats"])


def remove_action(file: dict[str, Any], now_ms: int) -> RemoveAction:
    """What takes a file out of the table."""
    return RemoveAction(file["path"], True, now_ms, file["size"], {AS_OF: file[AS_OF].isoformat()})


def leftovers(path: str, storage_options: Mapping[str, str]) -> list[pafs.FileInfo]:
    """The parts below the table's root that no commit knows, whole ones and pieces: of runs that were given up, or of one that works on
    the table now. Files that a commit removed are not among them: `reclaim` deletes those in their time.

    Raises:
        PublishError: something else lies there, or the store cannot be reached.
    """
    store, root = filesystem(path, storage_options)
    try:
        found = store.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    except OSError as error:
        raise PublishError(f"{path}: cannot be reached: {error}. Check table.path, the store and its credentials.") from error
    table = open_table(path, storage_options)
    known: set[str] = set()
    if table is not None:
        removed = table.vacuum(0, dry_run=True, enforce_retention_duration=False)
        known = {file["path"] for file in table_files(table)} | {unquote(name) for name in removed}
    parts = [(info, info.path.removeprefix(f"{root}/")) for info in found if info.is_file]
    return [info for info, name in parts if PART.fullmatch(name) and name not in known]


def remove_leftovers(path: str, left: Sequence[pafs.FileInfo], storage_options: Mapping[str, str]) -> None:
    """Delete what `leftovers` found; only while no run works on the table."""
    store, _ = filesystem(path, storage_options)
    for info in left:
        store.delete_file(info.path)


def reclaim(path: str, storage_options: Mapping[str, str], *, hours: int | None = None) -> None:
    """Delete what the log says was removed so many hours ago, RECLAIM_HOURS unless told otherwise, unless it was written again since: a
    running night may stage it.

    Only a dry run is left to deltalake: each real one deletes all it ever listed again, and adds two versions to the table.
    """
    table = open_table(path, storage_options)
    assert table is not None, f"{path}: no table after a commit"
    store, root = filesystem(path, storage_options)
    hours = RECLAIM_HOURS if hours is None else hours
    names = table.vacuum(hours, dry_run=True, enforce_retention_duration=False)
    for info in store.get_file_info([f"{root}/{name}" for name in names]):
        if info.is_file and time.time_ns() - info.mtime_ns > hours * 3600 * 1_000_000_000:
            store.delete_file(info.path)
