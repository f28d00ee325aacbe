"""Columns of ITEMS with a vector each, as an encoder of the shop's own made them of a text or an image -> arrays of unit vectors."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.inputs import Input
from recsys.data.types import is_list, is_number
from recsys.errors import DataError

VECTOR = pa.large_list(pa.float32())  # as read: files may write lists of one length, or of numbers of other types


def check_vectors(items: Input, column: str) -> None:
    """Refuse a column that holds no vectors.

    Raises:
        DataError: it is missing, or no list of numbers.
    """
    dtype = items.require(column, setting="features.item_vectors")
    if not is_list(dtype) or not is_number(dtype.value_type):
        raise DataError(
            f"{items.location}: column '{column}' must be a list of numbers to be a vector, got {dtype}. "
            "Convert it, or change features.item_vectors."
        )


def unit_vectors(column: pa.ChunkedArray, *, where: str, name: str) -> tuple[np.ndarray, int]:
    """float32 (N, D) of length 1, zeros where there is none; and how many are no direction: not finite, or all zeros.

    Args:
        column: N lists of D numbers, or null.
        where, name: the table's location and the column's name, for messages.

    Raises:
        DataError: lists of different lengths.
    """
    lists = column.cast(VECTOR, safe=False).combine_chunks()
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    there = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if len(lengths) > 1:
        raise DataError(
            f"{where}: column '{name}' holds vectors of {' and '.join(map(str, sorted(lengths)[:2]))} numbers; one length was expected."
            " Make all with one encoder, or write null where there is none."
        )
    size = lengths[0] if lengths else 0
    numbers = pc.fill_null(pc.list_flatten(lists), np.nan).to_numpy(zero_copy_only=False).reshape(len(there), size)
    length = np.sqrt((numbers.astype(np.float64) ** 2).sum(axis=1))
    usable = np.isfinite(length) & (length > 0)
    found = np.zeros((len(lists), size), np.float32)
    found[there[usable]] = numbers[usable] / length[usable, None]
    return found, int((~usable).sum())
