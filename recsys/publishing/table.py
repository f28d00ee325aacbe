"""The recommendation table, night by night: staged parts made visible by one atomic commit; its history, and reading it back.

The table is a Delta table partitioned by as_of, one partition a night.

Files that no night refers to any more, because it was published anew or is too old, stay on disk for RECLAIM_HOURS, so that
readers finish and earlier versions can be restored. Files that no commit ever referred to may be the parts of a running night: those of
runs that were given up stay until `leftovers` are removed by hand, under the table's lease.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError, DeltaError

from recsys.errors import PublishError
from recsys.publishing.delta import (
    TERMINAL,
    add_action,
    add_columns,
    check_table,
    create_table,
    feed_changes,
    history,
    open_table,
    reclaim,
    remove_action,
    table_files,
)
from recsys.publishing.staging import Part, refuse_missing
from recsys.schema import AS_OF, ITEM_ID, MODEL_VERSION, RANK, REASON, RUN_ID, SCORE, USER_ID, complete, recommendations_schema

log = logging.getLogger("recsys")
USER_KEY = "user_key"  # a note of each commit
PUBLISHED = "published_utc"  # a note of a commit that repeats those of an earlier one: when that was made
ATTEMPTS = 10  # commits of other nights that one commit gives way to


@dataclass(frozen=True)
class PublishedNight:
    """One published night."""

    as_of: date
    run_id: str
    model_version: str
    rows: int
    version: int | None
    """Of the table, at which it was published; None when Delta has removed that log entry (after 30 days by default)."""
    published_utc: datetime | None
    """None as for version."""
    user_key: str | None = None
    """Fingerprint of the key that user ids are digests by; None where they are the shop's own, or as for version."""


def commit_night(
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
            table = open_table(path, storage_options) or create_table(path, schema, storage_options)
            check_table(table, schema, where=path)
            add_columns(table, schema)
            feed_changes(table)
            files = table_files(table)
            standing = {file["path"] for file in files if file[AS_OF] == as_of}
            if standing == staged.keys():
                if before is not None:  # the store did our commit, and its answer was lost
                    version = next((one.version for one in published_nights(path, storage_options) if one.as_of == as_of), None)
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
            actions = [add_action(staged[name], as_of) for name in sorted(staged.keys() - standing)]
            removed = [file for file in files if file[AS_OF] not in kept or file["path"] in standing - staged.keys()]
            now_ms = time.time_ns() // 1_000_000
            table.create_write_transaction(
                [*actions, *(remove_action(file, now_ms) for file in removed)], "append", schema, [AS_OF], commit_properties=properties
            )
            version = table.version() + 1  # the handle stays where it was opened
            break
        except CommitFailedError as error:
            if attempt == ATTEMPTS:
                raise PublishError(
                    f"{path}: {ATTEMPTS} commits of night {as_of} were overtaken by other writers: {error}. Run again."
                ) from error
        except (DeltaError, OSError) as error:
            raise _no_commit(path, error) from error
    try:
        reclaim(path, storage_options)
    except (PublishError, DeltaError, OSError) as error:  # the night stands; old files wait for the next one
        log.warning("%s: night %s stands; files of older ones could not be removed: %s", path, as_of, error)
    return version


def take_back(path: str, *, to: date, storage_options: Mapping[str, str] = {}) -> list[date]:
    """The nights after `to`, newest first, taken back by one commit; the others stay. Empty where there is none.

    Their files stay on disk for RECLAIM_HOURS, so that what took them back can be undone by publishing them again.

    Raises:
        PublishError: there is no table, `to` is not a night of it, or other writers came between again and again.
    """
    for _ in range(ATTEMPTS):
        table = open_table(path, storage_options)
        files = table_files(table) if table else []
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
                [remove_action(file, now_ms) for file in removed], "append", schema, [AS_OF], commit_properties=properties
            )
        except CommitFailedError:
            continue
        except (DeltaError, OSError) as error:
            raise _no_commit(path, error) from error
        return [day for day in known if day > to]
    raise PublishError(f"{path}: {ATTEMPTS} commits of the way back to {to} were overtaken by other writers. Run again.")


def _no_commit(path: str, error: Exception) -> PublishError:
    """What to say where the table's log cannot be written, as on a full disk."""
    said = " ".join(TERMINAL.sub("", str(error)).split())[:300]
    return PublishError(f"{path}: the commit cannot be made: {said}. Mend that, and run again.")


def published_run(path: str, *, as_of: date, storage_options: Mapping[str, str] = {}) -> str | None:
    """The run_id that stands at `as_of`; None where there is no such night or no table."""
    return next((night.run_id for night in published_nights(path, storage_options=storage_options) if night.as_of == as_of), None)


def published_nights(path: str, storage_options: Mapping[str, str] = {}) -> list[PublishedNight]:
    """The published nights, newest first; empty where there is no table.

    Raises:
        PublishError: a night holds rows of several runs, so something else has written to the table.
    """
    table = open_table(path, storage_options)
    if table is None:
        return []
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in history(table):
        if RUN_ID in entry and AS_OF in entry:
            entries.setdefault((entry[AS_OF], entry[RUN_ID]), entry)
    found = []
    by_night: dict[date, list[dict[str, Any]]] = {}
    for file in table_files(table):
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
        if entry and PUBLISHED in entry:
            published_utc = datetime.fromisoformat(entry[PUBLISHED])
        user_key = (entry or {}).get(USER_KEY) or None
        rows = sum(file["rows"] for file in files)
        found.append(PublishedNight(as_of, run_id, model_version, rows, version, published_utc, user_key))
    return found


def read_night(path: str, *, as_of: date, user_id: str | int | None = None, storage_options: Mapping[str, str] = {}) -> pa.Table:
    """The rows of one night, or those of one user in it, by user and rank; only row groups that may hold the user are read.

    Columns are those of `recommendations_schema`, in its order; one that the table was made before is null.

    Raises:
        PublishError: there is no table, no such night, a file of it is damaged, or `user_id` is not of the table's type.
    """
    table = open_table(path, storage_options)
    known = {file[AS_OF] for file in table_files(table)} if table else set()
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
    with readable(path, as_of):
        found = rows.to_table(filter=wanted)
    found = found.sort_by([(USER_ID, "ascending"), (RANK, "ascending")])
    schema = recommendations_schema(rows.schema.field(USER_ID).type, rows.schema.field(ITEM_ID).type)
    return complete(found, schema)


def night_of_item(path: str, *, as_of: date, item_id: str | int, storage_options: Mapping[str, str] = {}) -> pa.Table:
    """The rows of one night that recommend an item, by rank and user: user_id, rank, score and reason.

    Raises:
        PublishError: there is no table, or a file of it is damaged.
    """
    table = open_table(path, storage_options)
    if table is None:
        raise PublishError(f"{path}: no table there. Run jobs.nightly.")
    rows = table.to_pyarrow_dataset()
    wanted = (pc.field(AS_OF) == as_of) & (pc.field(ITEM_ID) == pa.scalar(item_id, rows.schema.field(ITEM_ID).type))
    with readable(path, as_of):
        found = rows.to_table(columns=[USER_ID, RANK, SCORE, REASON], filter=wanted)
    return found.sort_by([(RANK, "ascending"), (USER_ID, "ascending")])


def table_schema(path: str, storage_options: Mapping[str, str] = {}) -> pa.Schema:
    """The columns of a table that is there, in their order, as its readers see them."""
    table = open_table(path, storage_options)
    assert table is not None, f"{path}: no table"
    return table.to_pyarrow_dataset().schema


def night_batches(
    path: str, *, as_of: date, columns: Sequence[str], storage_options: Mapping[str, str] = {}
) -> Iterator[pa.RecordBatch]:
    """The rows of a published night batch by batch, in any order.

    Raises:
        PublishError: a file of it is damaged.
    """
    table = open_table(path, storage_options)
    assert table is not None, f"{path}: no table"
    with readable(path, as_of):
        yield from table.to_pyarrow_dataset().to_batches(columns=list(columns), filter=pc.field(AS_OF) == as_of)


@contextmanager
def readable(path: str, as_of: date) -> Iterator[None]:
    """A block that reads a night's files.

    Raises:
        PublishError: one is damaged, or cannot be reached.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:300]
        raise PublishError(
            f"{path}: night {as_of} cannot be read: {said}. Publish it anew, or go back to a night before it: jobs.publish rollback."
        ) from error
