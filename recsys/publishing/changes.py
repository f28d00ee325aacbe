"""What changed between two nights, user by user, as Parquet: what a key-value store of lists has to write and to delete.

    OUT/upserts/*.parquet   the whole new list of every user who has another one, or had none; columns of the table
    OUT/deletes/*.parquet   user_id of every user who has no list any more
    OUT/changes.json        the nights, their runs, and how many users; written last, so that who finds it finds all

Users are cut into buckets by hash on this machine's disk, and one bucket is in memory at a time, whatever the size of the nights.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.errors import PublishError
from recsys.hashing import shard_of
from recsys.publishing.table import PublishedNight, night_batches, published_nights, table_schema
from recsys.schema import AS_OF, CARRIED_FROM, ITEM_ID, MODEL_VERSION, RANK, RUN_ID, USER_ID
from recsys.storage import check_folders, filesystem, write_file

BUCKET_ROWS = 1_000_000  # of both nights together, some 300 MB in memory
OF_THE_RUN = (AS_OF, RUN_ID, MODEL_VERSION, CARRIED_FROM)  # columns that differ though the lists are alike


@dataclass(frozen=True)
class Changes:
    """Users by what became of their lists."""

    since: str | None
    """ISO date; None: every list of `to` is new."""
    to: str
    since_run: str | None
    to_run: str
    upserts: int
    deletes: int
    same: int


def write_changes(
    path: str, *, since: date | None, to: date, out: str, items_only: bool = False, storage_options: Mapping[str, str] = {}
) -> Changes:
    """The changes from one night to another, earlier or later, of the table, written into an empty folder.

    Args:
        since: the night that the store holds; None: it is empty.
        out: a folder, path or URI.
        items_only: a list whose items and ranks stay is the same, though scores, sources or reasons differ.

    Raises:
        PublishError: a night is not published, or the folder is not empty or cannot be read.
        ConfigError: the folder cannot be made or written to.
    """
    nights = {night.as_of: night for night in published_nights(path, storage_options)}
    for name, day in (("--since", since), ("--to", to)):
        if day is not None and day not in nights:
            newest = ", ".join(map(str, list(nights)[:5])) or "none"
            raise PublishError(f"{name} {day}: must be a published night of {path}; the newest are {newest}. Choose one of these.")
    check_folders(**{"--out": out})
    store, root = filesystem(out, storage_options)
    try:
        there = store.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    except OSError as error:
        raise PublishError(f"--out {out}: must be a folder that can be written to, got: {error}. Name another.") from error
    if there:
        raise PublishError(f"--out {out}: must be empty, or not exist yet. Name another folder, or remove it.")
    schema = table_schema(path, storage_options)
    columns = [name for name in schema.names if name not in OF_THE_RUN]
    compared = [USER_ID, RANK, ITEM_ID] if items_only else columns
    two = [nights[day] for day in (since, to) if day is not None]
    buckets = max(1, -(-sum(night.rows for night in two) // BUCKET_ROWS))
    counts = {"upserts": 0, "deletes": 0, "same": 0}
    with tempfile.TemporaryDirectory() as folder:
        for night in two:
            _cut(path, night, schema, Path(folder), buckets, storage_options)
        for bucket in range(buckets):
            after = _read(Path(folder) / f"{to}-{bucket}.arrow")
            before = after.slice(0, 0) if since is None else _read(Path(folder) / f"{since}-{bucket}.arrow")
            old, new = (pc.unique(night.column(USER_ID)) for night in (before, after))
            same = _same(before.select(compared), after.select(compared))
            upserts = after.filter(pc.invert(pc.is_in(after.column(USER_ID), value_set=same)))
            deletes = pa.table({USER_ID: old.filter(pc.invert(pc.is_in(old, value_set=new)))})
            for name, table in (("upserts", upserts), ("deletes", deletes)):
                if table.num_rows or not bucket:
                    written = BytesIO()
                    pq.write_table(table, written, compression="zstd")
                    write_file(out, f"{name}/part-{bucket:05d}.parquet", written.getvalue(), storage_options)
            counts["same"] += len(same)
            counts["upserts"] += len(new) - len(same)
            counts["deletes"] += deletes.num_rows
    runs = (nights[since].run_id if since else None), nights[to].run_id
    found = Changes(since.isoformat() if since else None, to.isoformat(), *runs, **counts)
    write_file(out, "changes.json", f"{json.dumps(asdict(found), indent=1)}\n".encode(), storage_options)
    return found


def _cut(path: str, night: PublishedNight, schema: pa.Schema, folder: Path, buckets: int, storage_options: Mapping[str, str]) -> None:
    """The rows of a night, an Arrow file for each bucket of users."""
    with ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(folder / f"{night.as_of}-{bucket}.arrow"), "wb")) for bucket in range(buckets)]
        writers: list[pa.RecordBatchFileWriter] = [stack.enter_context(pa.ipc.new_file(file, schema)) for file in files]
        for batch in night_batches(path, as_of=night.as_of, columns=schema.names, storage_options=storage_options):
            rows = pa.Table.from_batches([batch]).cast(schema)
            bucket = shard_of(rows.column(USER_ID), buckets)
            for number in np.unique(bucket).tolist():
                writers[number].write_table(rows.filter(pa.array(bucket == number)))


def _read(path: Path) -> pa.Table:
    """A bucket by user and rank."""
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all().sort_by([(USER_ID, "ascending"), (RANK, "ascending")]).combine_chunks()


def _same(before: pa.Table, after: pa.Table) -> pa.Array:
    """The users whose rows are equal in both, which are by user and rank."""
    rows = [pc.value_counts(night.column(USER_ID)) for night in (before, after)]
    lengths = [dict(zip(part.field("values").to_pylist(), part.field("counts").to_pylist(), strict=True)) for part in rows]
    both = pa.array([user for user, length in lengths[1].items() if lengths[0].get(user) == length], after.schema.field(USER_ID).type)
    one, other = (night.filter(pc.is_in(night.column(USER_ID), value_set=both)) for night in (before, after))
    equal = np.ones(one.num_rows, bool)
    for name in one.column_names:
        left, right = (_comparable(night.column(name)) for night in (one, other))
        nulls = pc.and_(pc.is_null(left), pc.is_null(right))
        equal &= pc.or_(pc.fill_null(pc.equal(left, right), False), nulls).to_numpy()
    differs = pc.unique(one.column(USER_ID).filter(pa.array(~equal)))
    return both.filter(pc.invert(pc.is_in(both, value_set=differs)))


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column itself; of lists of strings each as one string."""
    return pc.binary_join(column, "\x1f") if pa.types.is_list(column.type) else column
