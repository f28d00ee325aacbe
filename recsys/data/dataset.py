"""The shop as it was read: the catalog and the users' histories, hashed into shards, in a folder."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.data.base import Base, of_users
from recsys.data.catalog import Catalog, read_catalog
from recsys.data.contents import Contents
from recsys.data.histories import Histories, merge, read_histories
from recsys.data.inputs import Input
from recsys.hashing import shard_of
from recsys.schema import USER_ID
from recsys.storage import write_atomically

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
    def base(self) -> Base | None:
        """The ingest that this one was added to."""
        return Base.open(self.folder)

    def histories(self, shard: str) -> Histories:
        """The users of one shard with all their events before the end."""
        added = read_histories(self.folder, shard)
        return added if self.base is None else merge(of_users(self.base.histories(shard), added.users), added)[0]


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
