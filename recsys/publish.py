"""The recommendation table, night by night: parts are staged, audited, and made visible by one atomic commit; and its history.

Workers `stage` parts below the table's root, where no reader sees them; the driver passes their receipts to `audit` and `commit`.
The table is a Delta table partitioned by as_of, one partition a night. A part's name holds its shard, its run and a digest of its
bytes, so staging again never changes a file that a reader may have open.

Files that no night refers to any more, because it was published anew or is too old, stay on disk for RECLAIM_HOURS, so that
readers finish and earlier versions can be restored. Files that no commit ever referred to are never deleted: they may be the
parts of a running night. So the parts of a run that was given up stay until someone removes them.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from recsys.errors import PublishError
from recsys.inputs import filesystem, write
from recsys.tables import (
    AS_OF,
    ITEM_ID,
    MODEL_VERSION,
    RANK,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER_ID,
    check,
    recommendations_schema,
)

RECLAIM_HOURS = 7 * 24  # Delta's own default: how long files that no night refers to stay on disk
# A checkpoint forgets removed files older than this, and what is forgotten is never reclaimed (delta-rs#3644): so much longer.
TABLE_PROPERTIES = {"delta.deletedFileRetentionDuration": "interval 365 days"}
ROW_GROUP_ROWS = 131_072  # the unit that a reader of one user skips by
ATTEMPTS = 10  # commits of other nights that one commit gives way to


class Part(TypedDict):
    """The receipt of one staged part; plain JSON."""

    shard: int
    path: str
    """Relative to the table's root."""
    size: int
    """Bytes; 0 where there are no rows, and then there is no file."""
    rows: int
    users: int
    modified_ms: int
    """Milliseconds since 1970 UTC."""
    stats: str
    """Delta's per-file statistics, as JSON."""


@dataclass(frozen=True)
class Audit:
    """Counts of an audited night."""

    rows: int
    users: int
    short_users: int
    """Users with fewer than k items."""
    sources: Mapping[str, int]
    """Rows by the source that ranked the item highest."""


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


def stage(path: str, rows: pa.Table, *, as_of: date, run_id: str, shard: int, storage_options: Mapping[str, str] = {}) -> Part:
    """The receipt of one Parquet part, written whole or not at all below the table's root and invisible to its readers.

    Args:
        path: the table's root, a local path or a URI.
        rows: the shard's rows of RECOMMENDATIONS, in any order; as_of may be left out.

    Raises:
        DataError: `rows` are not those of the recommendation table.
    """
    assert re.fullmatch(r"[\w.-]+", run_id), f"run_id must be safe in a file name, got {run_id!r}"
    if AS_OF in rows.column_names:
        assert pc.all(pc.equal(rows[AS_OF], as_of)).as_py() is not False, f"rows of another night than {as_of}"
        rows = rows.drop_columns([AS_OF])
    assert pc.all(pc.equal(rows[RUN_ID], run_id)).as_py() is not False, f"rows of another run than {run_id}"
    schema = _part_schema(rows.schema.field(USER_ID).type, rows.schema.field(ITEM_ID).type)
    rows = pa.table(check(rows, schema, where=f"shard {shard}").columns, schema=schema)

    content = b""
    if rows.num_rows:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
        content = sink.getvalue().to_pybytes()
    name = f"{AS_OF}={as_of.isoformat()}/part-{shard:05d}-{run_id}-{hashlib.sha256(content).hexdigest()[:8]}.parquet"
    if content:
        write(path, name, content, storage_options)
    return Part(
        shard=shard,
        path=name,
        size=len(content),
        rows=rows.num_rows,
        users=pc.count_distinct(rows[USER_ID]).as_py(),
        modified_ms=time.time_ns() // 1_000_000,
        stats=_stats(rows),
    )


def missing(path: str, parts: Sequence[Part], *, storage_options: Mapping[str, str] = {}) -> list[Part]:
    """The parts whose file is not there with the size in the receipt: their shards must be scored again."""
    store, root = filesystem(path, storage_options)
    staged = [part for part in parts if part["rows"]]
    infos = store.get_file_info([f"{root}/{part['path']}" for part in staged])
    return [part for part, info in zip(staged, infos, strict=True) if info.size != part["size"]]


def audit(
    path: str,
    parts: Sequence[Part],
    *,
    as_of: date,
    k: int,
    user_id: pa.DataType,
    item_id: pa.DataType,
    storage_options: Mapping[str, str] = {},
) -> Audit:
    """Counts of a staged night in which every user has ranks 1..n, n <= k, of distinct items, from one run and one model.

    Holds the users, items and ranks of one part at a time. That a user lies in one part only is not checked: users are hashed
    into shards.

    Raises:
        PublishError: a part is not there or damaged, rows break a rule above, or there are no rows at all.
    """
    store, root = filesystem(path, storage_options)
    folder = f"{AS_OF}={as_of.isoformat()}/"
    schema = _part_schema(user_id, item_id)
    for what, values in (("shard", [part["shard"] for part in parts]), ("path", [part["path"] for part in parts])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise PublishError(f"{path}: every {what} must be staged once, got {twice[0]} twice. Stage one part a shard.")
    _refuse_missing(path, parts, storage_options)

    users = short_users = 0
    seen: dict[str, Counter[str]] = {name: Counter() for name in (SOURCE, RUN_ID, MODEL_VERSION)}
    for part in parts:
        where = f"{path}/{part['path']}"
        if not part["path"].startswith(folder):
            raise PublishError(f"{where}: must lie below {folder}, the night that is published. Stage the shard for {as_of}.")
        if not part["rows"]:
            continue
        try:
            with store.open_input_file(f"{root}/{part['path']}") as file:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                if wrong := _differences(parquet.schema_arrow, schema):
                    raise PublishError(f"{where}: {wrong}. Score shard {part['shard']} again.")
                for batch in parquet.iter_batches():  # all columns, so that every page meets its checksum
                    _check_scores(batch.column(SCORE), where=where)
                    for name, counts in seen.items():
                        counts.update({row["values"]: row["counts"] for row in batch.column(name).value_counts().to_pylist()})
                lengths = _list_lengths(parquet.read(columns=[USER_ID, RANK, ITEM_ID]), k=k, where=where)
        except (pa.ArrowException, OSError) as error:
            raise PublishError(f"{where}: cannot be read: {error}. Score shard {part['shard']} again.") from error
        if (int(lengths.sum()), len(lengths)) != (part["rows"], part["users"]):
            raise PublishError(
                f"{where}: must hold {part['rows']} rows of {part['users']} users as its receipt says, got "
                f"{lengths.sum()} of {len(lengths)}. Score shard {part['shard']} again."
            )
        users += len(lengths)
        short_users += int((lengths < k).sum())

    if not users:
        raise PublishError(f"{path}: a night must have rows, got none in {len(parts)} parts. See what dropped the candidates.")
    for name in (RUN_ID, MODEL_VERSION):
        if len(seen[name]) > 1:
            raise PublishError(f"{path}: a night must have one {name}, got {', '.join(sorted(seen[name]))}. Score it again.")
    return Audit(seen[SOURCE].total(), users, short_users, dict(seen[SOURCE].most_common()))


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
    sees all of it or nothing. Creates the table where there is none. Then reclaims files removed RECLAIM_HOURS ago.

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
            _refuse_missing(path, parts, storage_options)
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
    return rows.to_table(filter=wanted).sort_by([(USER_ID, "ascending"), (RANK, "ascending")])


def batches(
    path: str, *, as_of: date, columns: Sequence[str], parts: Sequence[Part] | None = None, storage_options: Mapping[str, str] = {}
) -> Iterator[pa.RecordBatch]:
    """The rows of one night batch by batch, in any order; of a published one, or of staged parts."""
    if parts is None:
        table = _open(path, storage_options)
        assert table is not None, f"{path}: no table"
        yield from table.to_pyarrow_dataset().to_batches(columns=list(columns), filter=pc.field(AS_OF) == as_of)
        return
    store, root = filesystem(path, storage_options)
    for part in parts:
        if part["rows"]:
            with store.open_input_file(f"{root}/{part['path']}") as file:
                yield from pq.ParquetFile(file).iter_batches(columns=list(columns))


def _part_schema(user_id: pa.DataType, item_id: pa.DataType) -> pa.Schema:
    schema = recommendations_schema(user_id, item_id)
    return schema.remove(schema.get_field_index(AS_OF))


def _stats(rows: pa.Table) -> str:
    """Delta's statistics of a part; nights() reads the run from them."""
    low: dict[str, Any] = {}
    high: dict[str, Any] = {}
    for name in (USER_ID, RANK, ITEM_ID, SCORE, MODEL_VERSION, RUN_ID):
        values = rows[name]
        if name == SCORE:
            values = values.filter(pc.is_finite(values))  # JSON has no NaN; the audit refuses the part
        ends = pc.min_max(values).as_py()
        if ends["min"] is not None:
            low[name], high[name] = ends["min"], ends["max"]
    nulls = {name: rows[name].null_count for name in rows.column_names if name != SOURCES}
    return json.dumps({"numRecords": rows.num_rows, "minValues": low, "maxValues": high, "nullCount": nulls})


def _refuse_missing(path: str, parts: Sequence[Part], storage_options: Mapping[str, str]) -> None:
    absent = missing(path, parts, storage_options=storage_options)
    if absent:
        shards = ", ".join(str(part["shard"]) for part in absent)
        raise PublishError(
            f"{path}/{absent[0]['path']}: must be there with {absent[0]['size']} bytes, and is not "
            f"({len(absent)} of {len(parts)} parts). Score again shard {shards}."
        )


def _check_scores(scores: pa.Array, *, where: str) -> None:
    if pc.all(pc.is_finite(scores)).as_py() is False:  # null scores are allowed, and skipped by all()
        raise PublishError(f"{where}: scores must be finite or null, got NaN or infinity. See the model's metrics; train again.")


def _list_lengths(rows: pa.Table, *, k: int, where: str) -> np.ndarray:
    """The number of items of each user, int64 (users,), when ranks are 1..n, n <= k, and no item comes twice."""
    users = rows[USER_ID].combine_chunks().dictionary_encode()
    items = rows[ITEM_ID].combine_chunks().dictionary_encode()
    user, item, rank = users.indices.to_numpy(), items.indices.to_numpy(), rows[RANK].to_numpy()
    order = np.lexsort((rank, user))
    user, item, rank = user[order], item[order], rank[order]
    first = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(first, append=len(user))
    wrong = np.flatnonzero(rank != np.arange(1, len(user) + 1) - np.repeat(first, lengths))
    if wrong.size:
        code = user[wrong[0]]
        raise PublishError(
            f"{where}: ranks of user {users.dictionary[code]} must be 1, 2, 3 ... without gaps, "
            f"got {', '.join(map(str, rank[user == code][: k + 1]))}. Nothing was published; report this."
        )
    if lengths.max() > k:
        code = user[first[lengths.argmax()]]
        raise PublishError(
            f"{where}: user {users.dictionary[code]} must have at most k = {k} items, got {lengths.max()}. "
            "Nothing was published; report this."
        )
    pairs = np.sort(user.astype(np.int64) * len(items.dictionary) + item)
    twice = pairs[1:][pairs[1:] == pairs[:-1]]
    if twice.size:
        code, item_code = divmod(int(twice[0]), len(items.dictionary))
        raise PublishError(
            f"{where}: user {users.dictionary[code]} must have each item once, got {items.dictionary[item_code]} twice. "
            "Nothing was published; report this."
        )
    return lengths


def _open(path: str, storage_options: Mapping[str, str]) -> DeltaTable | None:
    try:
        uri, options = _delta(path, storage_options)
        return DeltaTable(uri, storage_options=options)
    except TableNotFoundError:
        return None
    except DeltaError as error:
        raise PublishError(f"{path}: cannot be opened as a Delta table: {error}. Check table.path and the store.") from error


def _create(path: str, schema: pa.Schema, storage_options: Mapping[str, str]) -> DeltaTable:
    uri, options = _delta(path, storage_options)
    return DeltaTable.create(uri, schema, mode="ignore", partition_by=[AS_OF], configuration=TABLE_PROPERTIES, storage_options=options)


def _check_table(table: DeltaTable, schema: pa.Schema, *, where: str) -> None:
    partition = table.metadata().partition_columns
    wrong = _differences(pa.schema(table.schema().to_arrow()), schema)
    if partition != [AS_OF]:
        wrong = f"must be partitioned by {AS_OF}, got {', '.join(partition) or 'no partitions'}"
    if wrong:
        raise PublishError(f"{where}: {wrong}. Set table.path to a new folder, or move the old table away.")


def _differences(seen: pa.Schema, expected: pa.Schema) -> str:
    """What is wrong with the columns seen; empty where nothing is."""
    if seen.equals(expected):
        return ""
    lacks, extra = (
        ", ".join(f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in one if field not in list(other))
        for one, other in ((expected, seen), (seen, expected))
    )
    return f"must have columns ({lacks or ', '.join(expected.names)}), got ({extra or ', '.join(seen.names)})"


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
