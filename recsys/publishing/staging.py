"""A night's parts: staged where no reader sees them, and audited before they are published.

Workers `stage` parts below the table's root, which no commit names yet; the driver passes their receipts to `audit` and then to
`table.commit_night`. A part's name holds its shard, its run and a digest of its bytes, so staging again never changes a file that a
reader may have open.
"""

import functools
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.errors import PublishError
from recsys.schema import (
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
    differences,
    recommendations_schema,
)
from recsys.storage import filesystem, write_file

ROW_GROUP_ROWS = 131_072  # the unit that a reader of one user skips by
READERS = min(4, os.cpu_count() or 1)  # parts that are audited at once
NAMED = (SOURCE, RUN_ID, MODEL_VERSION)  # columns whose values the audit counts

_Looked = tuple[np.ndarray, dict[str, Counter[str]]]  # items of each user, int64 (users,); rows by value of each of NAMED


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


class DamagedPartError(PublishError):
    """A staged part is not what was staged.

    Args:
        part: which one.
    """

    def __init__(self, said: str, part: Part) -> None:
        super().__init__(f"{said} Score shard {part['shard']} again.")
        self.part = part


@dataclass(frozen=True)
class Audit:
    """Counts of an audited night."""

    rows: int
    users: int
    short_users: int
    """Users with fewer than k items."""
    sources: Mapping[str, int]
    """Rows by the source that ranked the item highest."""


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
        write_file(path, name, content, storage_options)
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
    """The parts whose file is not there with the size in the receipt: their shards must be scored again.

    Raises:
        PublishError: the store cannot be reached.
    """
    store, root = filesystem(path, storage_options)
    staged = [part for part in parts if part["rows"]]
    try:
        infos = store.get_file_info([f"{root}/{part['path']}" for part in staged])
    except OSError as error:
        raise PublishError(f"{path}: cannot be reached: {error}. Check table.path, the store and its credentials.") from error
    return [part for part, info in zip(staged, infos, strict=True) if info.size != part["size"]]


def remove(path: str, part: Part, *, storage_options: Mapping[str, str] = {}) -> None:
    """Remove a staged part, so that it is missing.

    Raises:
        PublishError: it cannot be removed.
    """
    store, root = filesystem(path, storage_options)
    try:
        store.delete_file(f"{root}/{part['path']}")
    except OSError as error:
        raise PublishError(
            f"{path}/{part['path']}: is damaged and cannot be removed: {error}. Remove it, and run the same command again."
        ) from error


def refuse_missing(path: str, parts: Sequence[Part], storage_options: Mapping[str, str]) -> None:
    """Nothing, where every part's file is there.

    Raises:
        PublishError: one is not.
    """
    absent = missing(path, parts, storage_options=storage_options)
    if absent:
        shards = ", ".join(str(part["shard"]) for part in absent)
        raise PublishError(
            f"{path}/{absent[0]['path']}: must be there with {absent[0]['size']} bytes, and is not "
            f"({len(absent)} of {len(parts)} parts). Score again shard {shards}."
        )


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

    Reads several parts at once, and holds the users, items and ranks of those. That a user lies in one part only is not checked:
    users are hashed into shards.

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
    refuse_missing(path, parts, storage_options)

    for part in parts:
        if not part["path"].startswith(folder):
            where = f"{path}/{part['path']}"
            raise PublishError(f"{where}: must lie below {folder}, the night that is published. Stage the shard for {as_of}.")

    users = short_users = 0
    seen: dict[str, Counter[str]] = {name: Counter() for name in NAMED}
    with ThreadPoolExecutor(READERS) as pool:
        look = functools.partial(_look, store, root, schema=schema, k=k, path=path)
        for lengths, counts in pool.map(look, [part for part in parts if part["rows"]]):
            users += len(lengths)
            short_users += int((lengths < k).sum())
            for name in NAMED:
                seen[name].update(counts[name])
    if not users:
        raise PublishError(f"{path}: a night must have rows, got none in {len(parts)} parts. See what dropped the candidates.")
    for name in (RUN_ID, MODEL_VERSION):
        if len(seen[name]) > 1:
            raise PublishError(f"{path}: a night must have one {name}, got {', '.join(sorted(seen[name]))}. Score it again.")
    return Audit(seen[SOURCE].total(), users, short_users, dict(seen[SOURCE].most_common()))


def _look(store: pafs.FileSystem, root: str, part: Part, *, schema: pa.Schema, k: int, path: str) -> _Looked:
    """What a part holds; every page of every column meets its checksum."""
    where = f"{path}/{part['path']}"
    seen: dict[str, Counter[str]] = {name: Counter() for name in NAMED}
    lists: list[pa.RecordBatch] = []
    try:
        with store.open_input_file(f"{root}/{part['path']}") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            if wrong := differences(parquet.schema_arrow, schema):
                raise DamagedPartError(f"{where}: {wrong}.", part)
            for batch in parquet.iter_batches(use_threads=False):
                _check_scores(batch.column(SCORE), where=where)
                for name, counts in seen.items():
                    counts.update({row["values"]: row["counts"] for row in batch.column(name).value_counts().to_pylist()})
                lists.append(batch.select([USER_ID, RANK, ITEM_ID]))
        lengths = _list_lengths(pa.Table.from_batches(lists), k=k, where=where) if lists else np.empty(0, np.int64)
    except (pa.ArrowException, OSError) as error:
        raise DamagedPartError(f"{where}: cannot be read: {error}.", part) from error
    if (int(lengths.sum()), len(lengths)) != (part["rows"], part["users"]):
        said = f"{lengths.sum()} of {len(lengths)}"
        raise DamagedPartError(
            f"{where}: must hold {part['rows']} rows of {part['users']} users as its receipt says, got {said}.", part
        )
    return lengths, seen


def batches(
    path: str, parts: Sequence[Part], *, columns: Sequence[str], storage_options: Mapping[str, str] = {}
) -> Iterator[pa.RecordBatch]:
    """The rows of staged parts batch by batch; pages are held against their checksums."""
    store, root = filesystem(path, storage_options)
    for part in parts:
        if part["rows"]:
            with store.open_input_file(f"{root}/{part['path']}") as file:
                yield from pq.ParquetFile(file, page_checksum_verification=True).iter_batches(columns=list(columns))


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
