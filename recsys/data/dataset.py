"""The shop as it was read: the catalog and the users' histories, hashed into shards, in a folder."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.catalog import Catalog
from recsys.data.contents import Contents
from recsys.data.histories import Histories, from_table, merge
from recsys.data.inputs import Input
from recsys.hashing import shard_of
from recsys.schema import USER_ID
from recsys.storage import save_array, write_atomically, write_json

CODES, RECEIPTS = "codes.npy", "receipts.json"
PART_BYTES = 128 * 2**20  # of one file's row groups that a unit of the first pass reads


@dataclass(frozen=True)
class ShopDataset:
    """A finished ingest: where its tables lie, and what was read and rejected."""

    digest: str
    folder: Path
    cleaned: Path
    """The folder of the parts that it was made of."""
    shards: tuple[str, ...]
    schema: pa.Schema
    item_id: pa.DataType
    first: date
    """Of the first event, UTC."""
    end: int
    """Microseconds; no event from then on is in it."""
    contents: Contents
    """What the histories hold day by day."""
    user_vocabularies: dict[str, tuple[str, ...]]
    """Values of each categorical user column, most frequent first."""
    rows: Mapping[str, int]
    """Rows read of events, items and users; items of the catalog, users and events kept."""
    rejected: Mapping[str, Mapping[str, int]]
    """Per input: reason -> rows."""

    def catalog(self) -> Catalog:
        """The catalog as of the end."""
        return read_catalog(self.folder)

    @cached_property
    def base(self) -> "Base | None":
        """The ingest that this one was added to."""
        return Base.open(self.folder)

    def histories(self, shard: str) -> Histories:
        """The users of one shard with all their events before the end."""
        added = read_histories(self.folder, shard)
        return added if self.base is None else merge(self.base.histories(shard).of_users(added.users), added)[0]


@dataclass(frozen=True)
class Base:
    """An earlier ingest of some of the same events, linked into the folder of the one that adds to it."""

    folder: Path
    codes: np.ndarray
    """int32: of each of its items the code in the catalog of now."""
    receipts: Mapping[str, Mapping[str, Any]]
    """Of its histories, by shard."""

    @staticmethod
    def open(folder: Path) -> "Base | None":
        """That of the ingest in the folder; None where it stands alone."""
        place = folder / "base"
        if not place.is_dir():
            return None
        return Base(place, np.load(place / CODES), json.loads((place / RECEIPTS).read_text(encoding="utf-8")))

    def histories(self, shard: str) -> "BaseHistories":
        """One shard of it."""
        histories = read_histories(self.folder, shard)
        return BaseHistories(replace(histories, item=self.codes[histories.item]))


@dataclass(frozen=True)
class BaseHistories:
    """A shard of an earlier ingest; what was known of users then is forgotten."""

    old: Histories

    def user_ids(self) -> pa.Array:
        """Of those with events."""
        has = np.diff(self.old.offsets) > 0
        return self.old.users.column(USER_ID).combine_chunks().filter(pa.array(has))

    def of_users(self, users: pa.Table) -> Histories:
        """The events of the given users, who are all that have some, by user_id."""
        ids = users.column(USER_ID).combine_chunks()
        place = pc.index_in(self.old.users.column(USER_ID), value_set=ids).to_numpy(zero_copy_only=False)
        counts = np.zeros(len(ids), np.int64)
        mine = np.diff(self.old.offsets)
        has = mine > 0
        counts[place[has].astype(np.int64)] = mine[has]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return replace(self.old, users=users, offsets=offsets)


def read_histories(folder: Path, shard: str) -> Histories:
    """One shard of what an ingest wrote into the folder."""
    return from_table(pq.ParquetFile(folder / f"histories-{shard}.parquet").read(use_threads=False))


def make_base(folder: Path, other: Path, shards: Sequence[str], receipts: Mapping[str, Mapping[str, Any]]) -> None:
    """Link the finished ingest of another folder into this one, whose catalog is there, as its base; copies, where links cannot be.

    Args:
        receipts: of the other's histories, by shard.
    """
    place = folder / f".base-{uuid.uuid4().hex}"
    place.mkdir()
    for name in ("catalog.parquet", *(f"histories-{shard}.parquet" for shard in shards)):
        try:
            os.link(other / name, place / name)
        except OSError:
            shutil.copy2(other / name, place / name)
    save_array(place / CODES, read_catalog(folder).codes_of(read_catalog(place).item_id))
    write_atomically(place / RECEIPTS, lambda file: write_json(file, dict(receipts)))
    no_base(folder)
    place.rename(folder / "base")


def no_base(folder: Path) -> None:
    """The ingest in the folder stands alone, whatever a run that was ended has left there."""
    shutil.rmtree(folder / "base", ignore_errors=True)


def read_catalog(folder: Path) -> Catalog:
    """The catalog that an ingest wrote into the folder."""
    return Catalog(pq.read_table(folder / "catalog.parquet", use_threads=False).combine_chunks())


def parts_of(source: Input, table: str) -> Iterator[dict[str, Any]]:
    """The input cut into parts of one file's consecutive row groups, each of bounded bytes."""
    for index, file in enumerate(source.files):
        step = max(1, file.row_groups // max(1, math.ceil(file.size / PART_BYTES)))
        for start in range(0, file.row_groups, step):
            yield {"table": table, "file": index, "row_groups": list(range(start, min(start + step, file.row_groups)))}


def write_batches(path: Path, batches: list[pa.Table]) -> None:
    """An Arrow file with one record batch for each table, empty ones too, so that a batch's number is the shard's."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for table in batches:
            whole = table.combine_chunks().to_batches()
            writer.write_batch(whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema))


def write_by_shard(path: Path, rows: pa.Table, *, shards: int) -> None:
    """An Arrow file with one record batch for each shard of users: the rows whose user_id hashes into it, in their order."""
    shard = shard_of(rows.column(USER_ID), shards)
    order = np.argsort(shard, kind="stable")
    ends = np.searchsorted(shard[order], np.arange(shards + 1))
    rows = rows.take(pa.array(order)).combine_chunks()
    write_atomically(path, lambda file: write_batches(file, [rows.slice(a, b - a) for a, b in pairwise(ends)]))


def read_shard(path: Path, shard: int) -> pa.Table:
    """One shard's rows of what `write_by_shard` wrote: its record batch, memory mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(shard)])
