"""Side tables of users or items that feature rows are joined to: encoded once, mapped into memory and found by id."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.data.inputs import Input, batches
from recsys.data.row_groups import row_groups
from recsys.data.types import check_text, clean_ids, id_type, readable
from recsys.errors import DataError
from recsys.features.encoding import Encoder, add_words
from recsys.hashing import stable_hash
from recsys.storage import save_array, write_atomically

ARRAYS = ("keys", "order", "dense", "codes")


class SideTable:
    """An encoded table, mapped from its files: every process of a node shares its pages."""

    def __init__(self, folder: Path, name: str) -> None:
        keys, order, dense, codes = (np.load(folder / f"{name}-{array}.npy", mmap_mode="r") for array in ARRAYS)
        self.dense, self.codes = dense, codes
        """float32 (R, F), not normalised, and int32 (R, C); R rows in the table's order."""
        self._keys, self._order = keys, order

    def find(self, ids: pa.Array) -> np.ndarray:
        """int64 (N): the table's row of each id, -1 where it has none; null has none."""
        keys = key_of(ids.drop_null())
        place = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        found = np.full(len(ids), -1, np.int64)
        found[ids.is_valid().to_numpy(zero_copy_only=False)] = np.where(self._keys[place] == keys, self._order[place], -1)
        return found


def key_of(ids: pa.Array) -> np.ndarray:
    """What ids without null are found by: int64 ids themselves, the stable hash of strings."""
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    return ids.cast(pa.int64()).to_numpy() if pa.types.is_integer(ids.type) else stable_hash(ids.to_numpy(zero_copy_only=False))


def read_batches(source: Input, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """All rows of a table, batch by batch.

    Raises:
        DataError: a file cannot be read, or holds words that are no UTF-8.
    """
    for group in row_groups(source, columns):
        for batch in batches(source, group.path, [group.number], columns):
            for name in columns:
                with readable(group.path, name):
                    check_text(batch.column(name))
            yield batch


def write_side_table(source: Input, key: str, encode: Encoder, folder: Path, name: str) -> dict[str, Any]:
    """The table encoded into files for `SideTable`; returns its number of rows, and `words` as `add_words` adds them up.

    Raises:
        DataError: an id is null, empty or no UTF-8, stands there twice, or a row cannot be encoded.
    """
    rows = source.rows
    dtype = id_type(source.columns[key], where=source.location, column=key)
    ids: list[pa.Array] = []
    words: dict[str, list[int]] = {}

    def fill(dense_file: Path, codes_file: Path) -> None:
        # an array of no bytes cannot be mapped; one row more is never found
        dense = np.lib.format.open_memmap(dense_file, "w+", np.float32, (max(rows, 1), encode.width))
        codes = np.lib.format.open_memmap(codes_file, "w+", np.int32, (max(rows, 1), encode.code_width))
        start = 0
        for batch in read_batches(source, [key, *(column.name for column in encode.columns)]):
            encoded = encode(batch)
            for reason, mask in encoded.unfit.items():
                row = start + int(mask.argmax())
                raise DataError(f"{source.location}: row {row}: {reason} ({int(mask.sum())} in {len(mask)} rows). Mend the row.")
            add_words(words, encoded.words)
            part = slice(start, start + batch.num_rows)
            dense[part], codes[part] = encoded.dense, encoded.codes
            with readable(source.location, key):
                ids.append(clean_ids(batch.column(key), dtype))  # files may keep them as int32 and int64, or as words and dictionaries
            start += batch.num_rows
        dense.flush()
        codes.flush()

    write_atomically(
        folder / f"{name}-dense.npy", lambda dense: write_atomically(folder / f"{name}-codes.npy", lambda codes: fill(dense, codes))
    )
    column = pa.chunked_array(ids, dtype)
    if column.null_count:
        raise DataError(f"{source.location}: column '{key}' must have no nulls or empty ids, got {column.null_count}. Drop those rows.")
    keys = np.concatenate([key_of(chunk) for chunk in column.chunks])
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(twice):
        raise DataError(
            f"{source.location}: column '{key}' must have each id once, got {column[int(order[twice[0]])].as_py()} twice. Drop one row."
        )
    for array, values in (("keys", keys[order]), ("order", order)):
        save_array(folder / f"{name}-{array}.npy", values)
    return {"rows": rows, "words": words}
