"""The catalog: one row per item in item_id order; a row's number is the item's code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.schema import AVAILABLE, ITEM_ID, NAME
from recsys.storage import save_array, write_atomically

if TYPE_CHECKING:
    from recsys.config import Features

VECTORS = "item_vectors"  # key of the table's metadata: the columns of vectors, in the order of their files


@dataclass(frozen=True)
class Catalog:
    """I items as of a date.

    `table` holds item_id, available, [name], categorical columns as strings and numeric ones as float32; item_id ascending.
    """

    table: pa.Table
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per column of features.item_vectors float32 (I, D), of length 1; zeros where the item has none."""

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def item_id(self) -> pa.Array:
        """I ids, ascending."""
        return self.table.column(ITEM_ID).combine_chunks()

    @cached_property
    def available(self) -> np.ndarray:
        """bool (I): may be recommended."""
        return self.table.column(AVAILABLE).to_numpy()

    def codes_of(self, item_id: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """int32 (N): the code of each id.

        Raises:
            KeyError: an id that the catalog does not hold.
        """
        found = pc.index_in(item_id, value_set=self.item_id)
        if found.null_count:
            raise KeyError(f"{found.null_count} item ids are not in the catalog")
        return found.to_numpy().astype(np.int32)

    def names(self, items: np.ndarray) -> list[str]:
        """What people call the items of the given codes: the name, else the id."""
        ids = [str(value) for value in self.item_id.take(pa.array(items)).to_pylist()]
        if NAME not in self.table.column_names:
            return ids
        names = self.table.column(NAME).take(pa.array(items)).to_pylist()
        return [name or item_id for name, item_id in zip(names, ids, strict=True)]


def write_catalog(catalog: Catalog, folder: Path) -> None:
    """catalog.parquet, after a vectors-NUMBER.npy of each column of vectors, which processes of a node map and share."""
    for number, vectors in enumerate(catalog.vectors.values()):
        save_array(folder / f"vectors-{number}.npy", vectors)
    table = catalog.table.replace_schema_metadata({VECTORS: json.dumps(list(catalog.vectors))})
    write_atomically(folder / "catalog.parquet", lambda file: pq.write_table(table, file))


def read_catalog(folder: Path) -> Catalog:
    """The catalog that an ingest wrote into the folder."""
    table = pq.read_table(folder / "catalog.parquet", use_threads=False).combine_chunks()
    names = json.loads((table.schema.metadata or {}).get(VECTORS.encode(), b"[]"))
    return Catalog(table, {name: np.load(folder / f"vectors-{number}.npy", mmap_mode="r") for number, name in enumerate(names)})


def read_item_ids(folder: Path) -> pa.ChunkedArray:
    """The ids alone, ascending, of the items of a catalog whose vectors need not be there."""
    return pq.read_table(folder / "catalog.parquet", columns=[ITEM_ID], use_threads=False).column(ITEM_ID)


def encode(column: pa.Array | pa.ChunkedArray, vocabulary: tuple[str, ...]) -> np.ndarray:
    """int32 codes of a string column: 1 + the value's place in the vocabulary; 0 for unseen values and nulls."""
    found = pc.index_in(column, value_set=pa.array(vocabulary, pa.string()))
    return pc.fill_null(found, -1).to_numpy().astype(np.int32) + 1


def value_counts(column: pa.Array | pa.ChunkedArray) -> list[tuple[str, int]]:
    """The values of a string column and how often each stands there, most frequent first, ties in order of the value; no null."""
    counts = [(entry["values"].as_py(), entry["counts"].as_py()) for entry in pc.value_counts(column)]
    return sorted(((word, count) for word, count in counts if word is not None), key=lambda pair: (-pair[1], pair[0]))


def most_frequent(counts: Mapping[str, int], *, limit: int) -> tuple[str, ...]:
    """The values with the highest counts, at most `limit`, in order of the value: the same as long as the same words are frequent."""
    return tuple(sorted(word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]))


def item_vocabularies(catalog: Catalog, features: "Features") -> dict[str, tuple[str, ...]]:
    """The vocabulary of every categorical item column that the settings name."""
    return {
        name: most_frequent(dict(value_counts(catalog.table.column(name))), limit=features.max_vocabulary)
        for name in features.item_categorical
    }
