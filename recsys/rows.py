"""Batches of a shard -> model inputs: encoded, joined to users and items, with the rows that cannot be used counted by reason."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys import pairs
from recsys.encode import Encoded, Encoder, encoder
from recsys.joined import Joined
from recsys.pairs import Batch, Rows
from recsys.spec import FeatureSpec, Place
from recsys.work import write_atomically


@dataclass
class Rejected:
    """Rows of a shard that cannot be used: where they stand, and why."""

    counts: Counter[str] = field(default_factory=Counter)
    _where: list[pa.Table] = field(default_factory=list)

    def add(self, batch: Batch, reasons: Mapping[str, np.ndarray]) -> np.ndarray:
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
        tables: folder of the joined tables, written by `joined.write`.
    """

    def __init__(self, rows: Rows, spec: FeatureSpec, tables: Path) -> None:
        self.rows = rows
        self.encode: Encoder = encoder(spec, "rows")
        self.joined: dict[Place, Joined] = {table: Joined(tables, table) for table in rows.joined}

    def parts(self, unit: Mapping[str, Any]) -> Iterator[tuple[Batch, Encoded, dict[Place, np.ndarray]]]:
        """Batch by batch: as read, the inputs that stand in the rows, and each row's row of each joined table.

        A row whose user or item is in no table is marked unfit and holds that table's first row.
        """
        for batch in pairs.read(self.rows, unit):
            own = self.encode(batch.columns)
            unfit = dict(own.unfit)
            places: dict[Place, np.ndarray] = {}
            for table, place in self.joined.items():
                key = self.rows.key_of(table)
                found = place.find(batch.columns.column(key))
                if (found < 0).any():
                    unfit[f"{key} is not in pairs.{table}"] = found < 0
                places[table] = np.maximum(found, 0)
            yield batch, Encoded(own.dense, own.codes, unfit), places

    def __call__(self, unit: Mapping[str, Any]) -> Iterator[tuple[Batch, Encoded]]:
        """Batch by batch: as read, and all inputs side by side."""
        for batch, own, places in self.parts(unit):
            taken = [(table.dense[rows], table.codes[rows]) for table, rows in zip(self.joined.values(), places.values(), strict=True)]
            dense, codes = zip((own.dense, own.codes), *taken, strict=True)
            yield batch, Encoded(np.hstack(dense), np.hstack(codes), own.unfit) if taken else own


def no_ids(rows: Rows, batch: Batch) -> Mapping[str, np.ndarray]:
    """Reason -> bool (B): rows whose user_id or item_id is null."""
    found: dict[str, np.ndarray] = {}
    for name in rows.ids:
        column = batch.columns.column(name)
        if column.null_count:
            found[f"no {name}"] = column.is_null().to_numpy(zero_copy_only=False)
    return found
