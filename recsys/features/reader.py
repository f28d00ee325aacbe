"""Shards of a feature table -> batches of model inputs; rows that cannot be used are counted by reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.inputs import batches
from recsys.data.row_groups import RowGroup, row_groups
from recsys.data.types import check_text, clean_ids, id_type, readable
from recsys.features.encoding import Encoder, encoder
from recsys.features.feature_table import FeatureTable
from recsys.features.side_tables import SideTable
from recsys.features.spec import FeatureSpec, ModelInputs, Place
from recsys.storage import write_atomically


@dataclass(frozen=True)
class Shard:
    """A unit of work: row groups of one or more files, of bounded bytes."""

    number: int
    groups: tuple[RowGroup, ...]
    shared: tuple[Any, ...] | None
    """Users of whom other shards may have rows too; None: any of them."""

    def unit(self) -> dict[str, Any]:
        """Plain values that `read` takes."""
        runs: list[tuple[str, list[int], int]] = []  # consecutive row groups are read in one go
        for group in self.groups:
            if runs and runs[-1][0] == group.path and runs[-1][1][-1] + 1 == group.number:
                runs[-1][1].append(group.number)
            else:
                runs.append((group.path, [group.number], group.first_row))
        known = self.shared is not None and all(group.low is not None for group in self.groups)
        return {
            "shard": self.number,
            "runs": runs,
            "shared": None if self.shared is None else list(self.shared),
            "low": min(group.low for group in self.groups) if known else None,
            "high": max(group.high for group in self.groups) if known else None,
        }


def cut_shards(rows: FeatureTable, *, size: int) -> tuple[Shard, ...]:
    """The rows' row groups in shards of at most `size` decoded bytes, or of one row group where it is larger.

    What joined tables add to a row counts too: it is scored like a row that was written out.

    Where the footers prove that users come in order, with at most one user on both sides of a border between two row groups,
    a shard shares no others with its neighbours. Where they do not prove it, a shard may share every user.
    """
    groups = row_groups(rows.source, rows.columns_read, key=rows.user_id)
    clustered = all(group.low is not None for group in groups)
    if clustered:
        ordered = sorted(groups, key=lambda group: (group.low, group.high))
        clustered = all(before.high <= after.low for before, after in pairwise(ordered))
        groups = ordered if clustered else groups
    added = 4 * sum(len(column.dense()) + len(column.codes()) for column in rows.columns if column.table != "rows")
    packed: list[list[RowGroup]] = []
    filled = 0
    for group in groups:
        decoded = group.size + group.rows * added
        if not packed or filled + decoded > size:
            packed.append([])
            filled = 0
        packed[-1].append(group)
        filled += decoded
    borders = [before[-1].high for before in packed[:-1]]  # where clustered: the greatest user of each shard but the last
    shards: list[Shard] = []
    for number, mine in enumerate(packed):
        shared: set[Any] = set()
        if clustered and number > 0 and borders[number - 1] == mine[0].low:
            shared.add(mine[0].low)
        if clustered and number + 1 < len(packed) and packed[number + 1][0].low == mine[-1].high:
            shared.add(mine[-1].high)
        shards.append(Shard(number, tuple(mine), tuple(sorted(shared)) if clustered else None if len(packed) > 1 else ()))
    return tuple(shards)


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a shard as they were read."""

    path: str
    first_row: int
    """Of the file's rows."""
    columns: pa.RecordBatch


def read_shard_rows(rows: FeatureTable, unit: Mapping[str, Any]) -> Iterator[RowBatch]:
    """The rows of a shard, batch by batch, in the order of its files.

    Raises:
        DataError: a file cannot be read, or holds words that are no UTF-8.
    """
    for path, numbers, first_row in unit["runs"]:
        for batch in batches(rows.source, path, numbers, rows.columns_read):
            for column in rows.of("rows"):
                with readable(path, column.name):
                    check_text(batch.column(column.name))
            yield RowBatch(path, first_row, batch)
            first_row += batch.num_rows


@dataclass
class RejectedRows:
    """Rows of a shard that cannot be used: where they stand, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    _where: list[pa.Table] = field(default_factory=list)

    def add(self, batch: RowBatch, reasons: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool (B): the rows that none of the reasons, each bool (B), speaks against; a row counts under its first reason."""
        fine = np.ones(batch.columns.num_rows, bool)
        for reason, mask in reasons.items():
            rows = np.flatnonzero(mask & fine)
            fine[rows] = False
            if len(rows):
                self.counts[reason] += len(rows)
                columns = {"path": [batch.path] * len(rows), "row": rows + batch.first_row, "reason": [reason] * len(rows)}
                self._where.append(pa.table(columns))
        return fine

    def write(self, folder: Path, name: str) -> dict[str, int]:
        """The counts; the rows go to folder/rejected-NAME.parquet: path, row of the file from 0, reason."""
        if self._where:
            table = pa.concat_tables(self._where)
            write_atomically(folder / f"rejected-{name}.parquet", lambda file: pq.write_table(table, file))
        return dict(self.counts)


class Reader:
    """Reads shards as the inputs of a fitted spec.

    Args:
        tables: folder of the joined tables, written by `side_tables.write`.
    """

    def __init__(self, rows: FeatureTable, spec: FeatureSpec, tables: Path) -> None:
        self.rows = rows
        self.encode: Encoder = encoder(spec, "rows")
        self.side_tables: dict[Place, SideTable] = {table: SideTable(tables, table) for table in rows.side_tables}

    def parts(self, unit: Mapping[str, Any]) -> Iterator[tuple[RowBatch, ModelInputs, dict[Place, np.ndarray]]]:
        """Batch by batch: as read, the inputs that stand in the rows, and each row's row of each joined table.

        A row whose user or item is in no table is marked unfit and holds that table's first row.
        """
        for batch in read_shard_rows(self.rows, unit):
            own = self.encode(batch.columns)
            unfit = dict(own.unfit)
            places: dict[Place, np.ndarray] = {}
            for table, place in self.side_tables.items():
                key = self.rows.key_of(table)
                found = place.find(batch.columns.column(key))
                if (found < 0).any():
                    unfit[f"{key} is not in pairs.{table}"] = found < 0
                places[table] = np.maximum(found, 0)
            yield batch, ModelInputs(own.dense, own.codes, unfit=unfit, words=own.words), places

    def __call__(self, unit: Mapping[str, Any]) -> Iterator[tuple[RowBatch, ModelInputs]]:
        """Batch by batch: as read, and all inputs side by side."""
        for batch, own, places in self.parts(unit):
            taken = [
                (table.dense[rows], table.codes[rows]) for table, rows in zip(self.side_tables.values(), places.values(), strict=True)
            ]
            dense, codes = zip((own.dense, own.codes), *taken, strict=True)
            whole = ModelInputs(np.hstack(dense), np.hstack(codes), unfit=own.unfit, words=own.words) if taken else own
            yield batch, whole


def no_ids(rows: FeatureTable, batch: RowBatch) -> Mapping[str, np.ndarray]:
    """Reason -> bool (B): rows whose user_id or item_id is null, empty or blank, as `types.clean_ids` says."""
    found: dict[str, np.ndarray] = {}
    for name in rows.ids:
        dtype = id_type(rows.source.columns[name], where=rows.source.location, column=name)
        with readable(batch.path, name):
            column = clean_ids(batch.columns.column(name), dtype)
        if column.null_count:
            found[f"no {name}"] = column.is_null().to_numpy(zero_copy_only=False)
    return found
