"""Hashes that are the same on every machine and in every run: shards and samples of users go by them."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def shard_of(user_id: pa.Array | pa.ChunkedArray, shards: int) -> np.ndarray:
    """int32 (N): the shard of each user, by a hash that is the same on every machine and in every run."""
    values = user_id.to_numpy(zero_copy_only=False) if isinstance(user_id, pa.Array) else user_id.to_numpy()
    return (stable_hash(values) % np.uint64(shards)).astype(np.int32)


def stable_hash(ids: np.ndarray) -> np.ndarray:
    """uint64 (N): pandas' keyless hash of int64 or string ids."""
    from pandas.util import hash_array  # takes a quarter of a second to import, which Ray's start has time for

    if ids.dtype.kind in "iu":
        return hash_array(ids.astype(np.int64))
    return hash_array(ids.astype(object), categorize=True)


def row_hashes(table: pa.Table) -> np.ndarray:
    """uint64 (N): a hash of each row's words and numbers, by column name, the columns in any order; null is a value too."""
    hashes = np.zeros(table.num_rows, np.uint64)
    for name in sorted(table.column_names):
        column = table.column(name)
        if pa.types.is_floating(column.type):
            numbers = pc.fill_null(column, math.nan).to_numpy().astype(np.float64)
            values = np.where(np.isnan(numbers), math.nan, numbers + 0.0).view(np.uint64)  # one NaN, one zero
        else:
            words = column.cast(pa.string())
            values = stable_hash(pc.fill_null(words, "").to_numpy()) + pc.is_null(words).to_numpy().astype(np.uint64)
        hashes = mix(mix(hashes) ^ values)
    return hashes


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 (N): splitmix64's finaliser (Steele, Lea, Flood 2014), a stable hash that numpy does in one go."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sampled(hashes: np.ndarray, share: float) -> np.ndarray:
    """bool (N): the hashes, uint64 (N), that fall into a sample of about this share of all; 1 and above: all of them."""
    return hashes <= np.uint64(min(share * 2.0**64, 2.0**64 - 2048))  # the largest float64 below 2^64
