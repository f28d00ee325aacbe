"""The recommendation table, night by night: staged parts made visible by one atomic commit; its history, and reading it back.

The table is a Delta table partitioned by as_of, one partition a night.

Files that no night refers to any more, because it was published anew or is too old, stay on disk for RECLAIM_HOURS, so that
readers finish and earlier versions can be restored. Files that no commit ever referred to are never deleted: they may be the
parts of a running night. So the parts of a run that was given up stay until someone removes them.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from recsys.errors import PublishError
from recsys.inputs import filesystem
from recsys.staging import Part, refuse_missing
from recsys.tables import AS_OF, ITEM_ID, MODEL_VERSION, RANK, RUN_ID, USER_ID, differences, recommendations_schema

RECLAIM_HOURS = 7 * 24  # Delta's own default: how long files that no night refers to stay on disk
# A checkpoint forgets removed files older than this, and what is forgotten is never reclaimed (delta-rs#3644): so much longer.
TABLE_PROPERTIES = {"delta.deletedFileRetentionDuration": "interval 365 days"}
TERMINAL = re.compile(r"\x1b\[[0-9;]*m|\u21b3")  # colours and arrows in deltalake's messages
ATTEMPTS = 10  # commits of other nights that one commit gives way to


@dataclass(frozen=True)
class Night:
    """One published night."""

    as_of: date
    run_id: str
    model_version: str
    rows: int
    version: int | None
    """Of the table, at which it was published; None when Delta has removed that log entry (after 30 days by default)."""
    published_utc: datetime | None
    """None as for version."""


def commit(
    path: str,
    parts: Sequence[Part],
    *,
    as_of: date,
    run_id: str,
    model_version: str,
    user_id: pa.DataType,
    item_id: pa.DataType,
    keep_nights: int,
    notes: Mapping[str, str] = {},
    storage_options: Mapping[str, str] = {},
) -> int | None:
    """The table's version at which these parts are the night, and None when they already are.

    One commit adds the parts, removes what stood at `as_of`, and removes the nights beyond the newest `keep_nights`; a reader
    sees all of it or nothing. Creates the table where there is none; a table of before a nullable column came gets it, in a
    version of its own, null in all its nights. Then reclaims files removed RECLAIM_HOURS ago.

    Args:
        notes: kept with the commit, in the table's history.

    A commit of another night that comes between is given way to; one of the same night is not, as it may be the newer.

    Raises:
        PublishError: the table has other columns, a part is not there, the night is older than those kept, or another writer
            published the same night meanwhile. Nothing was published.
    """
    staged = {part["path"]: part for part in parts if part["rows"]}
    assert staged, "audit refuses a night without rows"
    schema = recommendations_schema(user_id, item_id)
    metadata = {
        AS_OF: as_of.isoformat(),
        RUN_ID: run_id,
        MODEL_VERSION: model_version,
        "rows": sum(part["rows"] for part in staged.values()),
        **notes,
    }
    # 0 retries: only then does deltalake refuse when the table has moved on since it was opened. With retries it re-applies the
    # removals it derived before, and two writers of one night leave both their lists in it (seen with 1.6.6).
    properties = CommitProperties(custom_metadata=metadata, max_commit_retries=0)
    before: set[str] | None = None
    version = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            table = _open(path, storage_options) or _create(path, schema, storage_options)
            _check_table(table, schema, where=path)
            _add_columns(table, schema)
            files = _files(table)
            standing = {file["path"] for file in files if file[AS_OF] == as_of}
            if standing == staged.keys():
                break
            if before is not None and standing != before:
                raise PublishError(
                    f"{path}: night {as_of} was published by another run during this commit. "
                    "See that one job publishes a night, and run again to replace what stands."
                )
            before = standing
            kept = set(sorted({as_of, *(file[AS_OF] for file in files)}, reverse=True)[:keep_nights])
            if as_of not in kept:
                raise PublishError(
                    f"{path}: night {as_of} is older than the newest {keep_nights}, which are kept (since {min(kept)}). "
                    "Raise table.keep_nights to publish it."
                )
            refuse_missing(path, parts, storage_options)
            # Not mode "overwrite": it would add and remove a path in one commit where old and new night share a part.
            actions = [_add(staged[name], as_of) for name in sorted(staged.keys() - standing)]
            removed = [file for file in files if file[AS_OF] not in kept or file["path"] in standing - staged.keys()]
            now_ms = time.time_ns() // 1_000_000
            table.create_write_transaction(
                [*actions, *(_remove(file, now_ms) for file in removed)], "append", schema, [AS_OF], commit_properties=properties
            )
            version = table.version() + 1  # the handle stays where it was opened
            break
        except CommitFailedError as error:
            if attempt == ATTEMPTS:
                raise PublishError(
                    f"{path}: {ATTEMPTS} commits of night {as_of} were overtaken by other writers: {error}. Run again."
                ) from error
    _reclaim(path, storage_options)
    return version


def rollback(path: str, *, to: date, storage_options: Mapping[str, str] = {}) -> list[date]:
    """The nights after `to`, newest first, taken back by one commit; the others stay. Empty where there is none.

    Their files stay on disk for RECLAIM_HOURS, so that what took them back can be undone by publishing them again.

    Raises:
        PublishError: there is no table, `to` is not a night of it, or other writers came between again and again.
    """
    for _ in range(ATTEMPTS):
        table = _open(path, storage_options)
        files = _files(table) if table else []
        known = sorted({file[AS_OF] for file in files}, reverse=True)
        if table is None or to not in known:
            raise PublishError(
                f"{path}: night {to} must be published to go back to it, got {', '.join(map(str, known)) or 'no nights'}. Choose one."
            )
        removed = [file for file in files if file[AS_OF] > to]
        if not removed:
            return []
        now_ms = time.time_ns() // 1_000_000
        schema, properties = table.schema(), CommitProperties(custom_metadata={"rollback_to": to.isoformat()}, max_commit_retries=0)
        try:
            table.create_write_transaction(
                [_remove(file, now_ms) for file in removed], "append", schema, [AS_OF], commit_properties=properties
            )
        except CommitFailedError:
            continue
        return [day for day in known if day > to]
    raise PublishError(f"{path}: {ATTEMPTS} commits of the way back to {to} were overtaken by other writers. Run again.")


def published(path: str, *, as_of: date, storage_options: Mapping[str, str] = {}) -> str | None:
    """The run_id that stands at `as_of`; None where there is no such night or no table."""
    return next((night.run_id for night in nights(path, storage_options=storage_options) if night.as_of == as_of), None)


def nights(path: str, storage_options: Mapping[str, str] = {}) -> list[Night]:
    """The published nights, newest first; empty where there is no table.

    Raises:
        PublishError: a night holds rows of several runs, so something else has written to the table.
    """
    table = _open(path, storage_options)
    if table is None:
        return []
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in table.history():  # newest first
        if RUN_ID in entry and AS_OF in entry:
            entries.setdefault((entry[AS_OF], entry[RUN_ID]), entry)
    found = []
    by_night: dict[date, list[dict[str, Any]]] = {}
    for file in _files(table):
        by_night.setdefault(file[AS_OF], []).append(file)
    for as_of, files in sorted(by_night.items(), reverse=True):
        runs = {(file[RUN_ID], file[MODEL_VERSION]) for file in files}
        if len(runs) > 1:
            raise PublishError(
                f"{path}: night {as_of} must be of one run, got {', '.join(sorted(str(run) for run, _ in runs))}. "
                "Something else wrote to the table; publish the night again."
            )
        ((run_id, model_version),) = runs
        entry = entries.get((as_of.isoformat(), run_id))
        version = entry["version"] if entry else None
        published_utc = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC) if entry else None
        found.append(Night(as_of, run_id, model_version, sum(file["rows"] for file in files), version, published_utc))
    return found


def read(path: str, *, as_of: date, user_id: str | int | None = None, storage_options: Mapping[str, str] = {}) -> pa.Table:
    """The rows of one night, or those of one user in it, by user and rank; only row groups that may hold the user are read.

    Columns are those of `recommendations_schema`, in its order; one that the table was made before is null.

    Raises:
        PublishError: there is no table, no such night, or `user_id` is not of the table's type.
    """
    table = _open(path, storage_options)
    known = {file[AS_OF] for file in _files(table)} if table else set()
    if table is None or as_of not in known:
        seen = f"the newest is {max(known)}" if known else "there are none"
        raise PublishError(f"{path}: night {as_of} must be published to be read; {seen}. Run jobs.nightly --as-of {as_of}.")
    rows = table.to_pyarrow_dataset()
    wanted = pc.field(AS_OF) == as_of
    if user_id is not None:
        dtype = rows.schema.field(USER_ID).type
        if isinstance(user_id, str) != pa.types.is_string(dtype):
            raise PublishError(f"{path}: user ids are {dtype}, got {user_id!r}. Pass one of that type.")
        wanted &= pc.field(USER_ID) == pa.scalar(user_id, dtype)
    found = rows.to_table(filter=wanted).sort_by([(USER_ID, "ascending"), (RANK, "ascending")])
    schema = recommendations_schema(rows.schema.field(USER_ID).type, rows.schema.field(ITEM_ID).type)
    for field in schema:
        if field.nullable and field.name not in found.column_names:
            found = found.append_column(field, pa.nulls(found.num_rows, field.type))
    return found.select(schema.names)


def batches(path: str, *, as_of: date, columns: Sequence[str], storage_options: Mapping[str, str] = {}) -> Iterator[pa.RecordBatch]:
    """The rows of a published night batch by batch, in any order."""
    table = _open(path, storage_options)
    assert table is not None, f"{path}: no table"
    yield from table.to_pyarrow_dataset().to_batches(columns=list(columns), filter=pc.field(AS_OF) == as_of)


def _open(path: str, storage_options: Mapping[str, str]) -> DeltaTable | None:
    try:
        uri, options = _delta(path, storage_options)
        return DeltaTable(uri, storage_options=options)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:  # the latter where a store cannot be reached
        said = " ".join(TERMINAL.sub("", str(error)).split())
        raise PublishError(
            f"{path}: cannot be opened as a Delta table: {said}. Check table.path, the store and its credentials."
        ) from error


def _create(path: str, schema: pa.Schema, storage_options: Mapping[str, str]) -> DeltaTable:
    uri, options = _delta(path, storage_options)
    return DeltaTable.create(uri, schema, mode="ignore", partition_by=[AS_OF], configuration=TABLE_PROPERTIES, storage_options=options)


def _check_table(table: DeltaTable, schema: pa.Schema, *, where: str) -> None:
    partition = table.metadata().partition_columns
    seen = {field.name: field for field in pa.schema(table.schema().to_arrow())}
    # By name, as readers go: a column that came later stands last. One that is still to come may be absent.
    named = [seen.pop(field.name, field if field.nullable else None) for field in schema]
    wrong = differences(pa.schema([field for field in (*named, *seen.values()) if field is not None]), schema)
    if partition != [AS_OF]:
        wrong = f"must be partitioned by {AS_OF}, got {', '.join(partition) or 'no partitions'}"
    if wrong:
        raise PublishError(f"{where}: {wrong}. Set table.path to a new folder, or move the old table away.")


def _add_columns(table: DeltaTable, schema: pa.Schema) -> None:
    """The nullable columns that the table was made before, added to it: old nights have nulls there."""
    known = {field.name for field in table.schema().fields}
    absent = pa.schema([field for field in schema if field.name not in known])
    if absent.names:
        table.alter.add_columns(Schema.from_arrow(absent).fields)


def _files(table: DeltaTable) -> list[dict[str, Any]]:
    """The files the table consists of: path, bytes, rows, night, and the run and model that its statistics name."""
    names = {"path": "path", "size_bytes": "size", "num_records": "rows", f"partition.{AS_OF}": AS_OF}
    names |= {f"min.{name}": name for name in (RUN_ID, MODEL_VERSION)}
    files = pa.table(table.get_add_actions(flatten=True))
    return files.select(list(names)).rename_columns(names).to_pylist()


def _add(part: Part, as_of: date) -> AddAction:
    return AddAction(part["path"], part["size"], {AS_OF: as_of.isoformat()}, part["modified_ms"], True, part["stats"])


def _remove(file: dict[str, Any], now_ms: int) -> RemoveAction:
    return RemoveAction(file["path"], True, now_ms, file["size"], {AS_OF: file[AS_OF].isoformat()})


def _reclaim(path: str, storage_options: Mapping[str, str]) -> None:
    """Delete what the log says was removed RECLAIM_HOURS ago, unless it was written again since: a running night may stage it.

    Only a dry run is left to deltalake: each real one deletes all it ever listed again, and adds two versions to the table.
    """
    table = _open(path, storage_options)
    assert table is not None, f"{path}: no table after a commit"
    store, root = filesystem(path, storage_options)
    names = table.vacuum(RECLAIM_HOURS, dry_run=True, enforce_retention_duration=False)
    for info in store.get_file_info([f"{root}/{name}" for name in names]):
        if info.is_file and time.time_ns() - info.mtime_ns > RECLAIM_HOURS * 3600 * 1_000_000_000:
            store.delete_file(info.path)


def _delta(path: str, storage_options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The table's root and the options as deltalake takes them."""
    if "://" not in path:
        return str(Path(path).absolute()), {}
    names = {"region": "aws_region", "endpoint": "aws_endpoint"}
    options = {names[key]: value for key, value in storage_options.items()}
    if storage_options.get("endpoint", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return path, options
