"""Users taken out of the table: of every night that stands, of the files behind it, and of what its log still says of them.

    1. files that hold a row of theirs are written anew without it, one commit a night: readers see the one or the other, whole
    2. the files of before, and all others that no commit names, are deleted now
    3. each night's notes are repeated at the log's end, and what is older is cut off: statistics of files name users

After it there is no way back to versions of before, and no change feed of them. Every step may be broken off and begun again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from recsys.publishing.delta import add_action, history, leftovers, open_table, reclaim, remove_action, remove_leftovers, table_files
from recsys.publishing.staging import stage
from recsys.publishing.table import PUBLISHED, PublishedNight, night_batches, published_nights, readable
from recsys.schema import AS_OF, ITEM_ID, MODEL_VERSION, RUN_ID, USER_ID, complete, recommendations_schema
from recsys.storage import filesystem

LOG_DAYS = "delta.logRetentionDuration"
DELTA_S_OWN = "interval 30 days"  # its default
LOG_S_OWN = {  # what Delta says of a commit beside our notes
    *("timestamp", "version", "operation", "operationParameters", "operationMetrics", "engineInfo", "clientVersion", "readVersion"),
    *("isolationLevel", "isBlindAppend", "userId", "userName", "txnId"),
}


@dataclass(frozen=True)
class Erased:
    """What one night holds, or held, of them."""

    as_of: date
    users: int
    rows: int


def nights_with(path: str, users: pa.Array, storage_options: Mapping[str, str]) -> list[Erased]:
    """The nights that hold rows of the users, newest first; empty where there is no table.

    Raises:
        PublishError: the table cannot be read.
    """
    found: list[Erased] = []
    for night in published_nights(path, storage_options):
        columns = night_batches(path, as_of=night.as_of, columns=[USER_ID], storage_options=storage_options)
        held = [batch.column(USER_ID).filter(pc.is_in(batch.column(USER_ID), value_set=users)) for batch in columns]
        if rows := sum(map(len, held)):
            found.append(Erased(night.as_of, pc.count_distinct(pa.chunked_array(held)).as_py(), rows))
    return found


def erase_users(path: str, users: pa.Array, storage_options: Mapping[str, str]) -> None:
    """The first two steps: no night holds a row of the users any more, nor does a file behind it. Needs the table's lease.

    Args:
        users: ids, of the type of the table's.

    Raises:
        PublishError: the table cannot be read or written.
    """
    for night in published_nights(path, storage_options):
        table = _opened(path, storage_options)
        mine = [file for file in table_files(table) if file[AS_OF] == night.as_of]
        if actions := _without(path, night, mine, users, storage_options):
            _commit(table, actions, _notes(table, night))
    reclaim(path, storage_options, hours=0)
    remove_leftovers(path, leftovers(path, storage_options), storage_options)


def _without(
    path: str, night: PublishedNight, files: list[dict[str, Any]], users: pa.Array, storage: Mapping[str, str]
) -> list[AddAction | RemoveAction]:
    """What puts in the place of a night's files that hold rows of the users others, staged, without."""
    store, root = filesystem(path, storage)
    actions: list[AddAction | RemoveAction] = []
    for file in files:
        with readable(path, night.as_of), store.open_input_file(f"{root}/{file['path']}") as source:
            parquet = pq.ParquetFile(source, page_checksum_verification=True)
            held = pc.is_in(parquet.read(columns=[USER_ID]).column(USER_ID), value_set=users)
            if not pc.any(held).as_py():
                continue
            left = parquet.read().filter(pc.invert(held))
        schema = recommendations_schema(left.schema.field(USER_ID).type, left.schema.field(ITEM_ID).type)
        named = re.search(r"part-(\d+)-", file["path"])
        shard = int(named[1]) if named else 0
        left = complete(left, schema.remove(schema.get_field_index(AS_OF)))
        part = stage(path, left, as_of=night.as_of, run_id=night.run_id, shard=shard, storage_options=storage)
        actions += [add_action(part, night.as_of)] if part["rows"] else []
        actions.append(remove_action(file, part["modified_ms"]))
    return actions


def forget_history(path: str, storage_options: Mapping[str, str]) -> None:
    """The third step: the log begins at the present version. Needs the table's lease."""
    nights = published_nights(path, storage_options)
    for night in nights:  # first: a run that is killed after it leaves them in the log twice, one that cut first would lose them
        last = _opened(path, storage_options)
        _commit(last, [], _notes(last, night))
    begin = _opened(path, storage_options).version() - max(len(nights) - 1, 0)
    _opened(path, storage_options, version=begin).create_checkpoint()
    _opened(path, storage_options).alter.set_table_properties({LOG_DAYS: "interval 0 days"})
    _opened(path, storage_options).cleanup_metadata()
    _opened(path, storage_options).alter.set_table_properties({LOG_DAYS: DELTA_S_OWN})


def _opened(path: str, storage_options: Mapping[str, str], *, version: int | None = None) -> DeltaTable:
    table = open_table(path, storage_options, version=version)
    assert table is not None, f"{path}: no table"
    return table


def _notes(table: DeltaTable, night: PublishedNight) -> dict[str, Any]:
    """What the log says of a night's commit, to be said again."""
    entries = (entry for entry in history(table) if (entry.get(AS_OF), entry.get(RUN_ID)) == (night.as_of.isoformat(), night.run_id))
    kept = {name: value for name, value in (next(entries, None) or {}).items() if name not in LOG_S_OWN}
    said = {AS_OF: night.as_of.isoformat(), RUN_ID: night.run_id, MODEL_VERSION: night.model_version, "rows": night.rows}
    published = {PUBLISHED: night.published_utc.isoformat()} if night.published_utc else {}
    return {**kept, **said, **published}


def _commit(table: DeltaTable, actions: list[AddAction | RemoveAction], notes: Mapping[str, Any]) -> None:
    properties = CommitProperties(custom_metadata=dict(notes), max_commit_retries=0)
    table.create_write_transaction(actions, "append", table.schema(), [AS_OF], commit_properties=properties)


def holding(path: str, users: pa.Array, storage_options: Mapping[str, str]) -> tuple[int, list[str]]:
    """How many files lie below the table's root, and the names of those that hold one of the users, in their rows or in what the log
    says of files; one that cannot be read may do.
    """
    store, root = filesystem(path, storage_options)
    infos = store.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=True))
    names = [info.path for info in infos if info.is_file]
    wanted = set(users.to_pylist())
    found = []
    for name in names:
        with store.open_input_file(name) as file:
            in_log = "/_delta_log/" in name
            if name.endswith(".parquet") and in_log:
                held = any(not wanted.isdisjoint(_named(stats)) for stats in _stats_of_checkpoint(file))
            elif name.endswith(".parquet"):
                held = _rows_hold(file, users)
            elif in_log and name.endswith(".json"):
                held = any(not wanted.isdisjoint(_named(stats)) for stats in _stats_of_commit(file.read().decode()))
            else:
                held = False
        if held:
            found.append(name.removeprefix(f"{root}/"))
    return len(names), found


def _rows_hold(file: pa.NativeFile, users: pa.Array) -> bool:
    """Whether a Parquet file has a row of the users; one that cannot be read may have."""
    try:
        parquet = pq.ParquetFile(file)
        if USER_ID not in parquet.schema_arrow.names:
            return False
        return bool(pc.any(pc.is_in(parquet.read(columns=[USER_ID]).column(USER_ID), value_set=users)).as_py())
    except (pa.ArrowException, OSError):
        return True


def _stats_of_checkpoint(file: pa.NativeFile) -> Iterator[str]:
    column = pq.ParquetFile(file).read().column("add")
    yield from (one["stats"] for one in column.to_pylist() if one and one.get("stats"))


def _stats_of_commit(text: str) -> Iterator[str]:
    for line in text.splitlines():
        action = json.loads(line)
        for kind in ("add", "remove"):
            if stats := action.get(kind, {}).get("stats"):
                yield stats


def _named(stats: str) -> set[str | int]:
    """The ids that statistics of a file name."""
    told = json.loads(stats)
    return {told[ends][USER_ID] for ends in ("minValues", "maxValues") if USER_ID in told.get(ends, {})}
