"""Columns of feature rows -> model inputs: Arrow columns of any numeric or word type to float32 and int32 matrices."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.features.spec import UNLIMITED, ColumnSpec, FeatureSpec, ModelInputs, Place, Words

BLOCK = 1024  # rows of one transposed block: 64 columns of it stay in the first caches


class Encoder:
    """Turns batches of one table into the inputs of its columns.

    Args:
        columns: in the order of the inputs.
        vocabularies: of the word columns.
        limited: whether a column's infinities are cut by normalisation; others make a row unfit.
    """

    def __init__(
        self, columns: Sequence[ColumnSpec], vocabularies: Mapping[str, Sequence[str]], limited: Mapping[str, bool] | None = None
    ) -> None:
        self.columns = tuple(columns)
        self.limited = limited or {}
        self.width = sum(len(column.dense()) for column in columns)
        self.code_width = sum(len(column.codes()) for column in columns)
        self._vocabularies = vocabularies
        self._lookups: dict[tuple[str, pa.DataType], pa.Array] = {}

    def __call__(self, batch: pa.RecordBatch) -> ModelInputs:
        """The batch's inputs; its columns may be of any type that `feature_table.open_feature_table` lets through."""
        rows = batch.num_rows
        codes = np.zeros((rows, self.code_width), np.int32)
        unfit: dict[str, np.ndarray] = {}
        words: dict[str, Words] = {}
        numbers: list[np.ndarray] = []  # each (B,) or (B, width)
        place = 0
        for column in self.columns:
            values = batch.column(column.name)
            if column.kind in ("number", "numbers"):
                numbers += self._numbers(column, values, unfit)
            elif column.kind == "word":
                codes[:, place] = self._codes(column, values)
                words[column.name] = _counted(codes[:, place], values.null_count)
                place += 1
            else:
                words[column.name] = self._lists(column, values, codes[:, place : place + column.width])
                place += column.width
        return ModelInputs(_side_by_side(numbers, rows, self.width), codes, unfit=unfit, words=words)

    def _numbers(self, column: ColumnSpec, values: pa.Array, unfit: dict[str, np.ndarray]) -> list[np.ndarray]:
        if column.kind == "number":
            matrix = _floats(values)
        else:
            matrix, wrong = _matrix(values, column.width)
            _mark(unfit, f"{column.name}: a list of another length", wrong)
        if column.divide != 1.0:
            matrix = matrix / np.float32(column.divide)
        if column.log1p:
            _mark(unfit, f"{column.name}: below 0 under log1p", matrix < 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                matrix = np.log1p(matrix)
        if not self.limited.get(column.name, True):
            _mark(unfit, f"{column.name}: infinite", np.isinf(matrix))
        if not column.indicator:
            return [matrix]
        missing = np.isnan(matrix)
        if missing.ndim == 2:
            missing = missing.any(axis=1)
        return [matrix, np.asarray(missing, np.float32)]

    def _codes(self, column: ColumnSpec, values: pa.Array) -> np.ndarray:
        """int32 (N): position in the vocabulary from 1, 0 for what is not there or null."""
        if pa.types.is_dictionary(values.type):
            table = np.append(self._codes(column, values.dictionary), np.int32(0))
            places = values.indices.cast(pa.int64())  # an index of int8 cannot say 128
            return table[places.fill_null(len(table) - 1).to_numpy()]
        values = widen(values)
        found = pc.index_in(values, value_set=self._words(column.name, values.type))
        return (found.fill_null(-1).to_numpy() + 1).astype(np.int32, copy=False)

    def _words(self, name: str, dtype: pa.DataType) -> pa.Array:
        key = name, dtype
        if key not in self._lookups:
            self._lookups[key] = words_as(self._vocabularies[name], dtype)
        return self._lookups[key]

    def _lists(self, column: ColumnSpec, values: pa.Array, out: np.ndarray) -> Words:
        if pa.types.is_null(values.type):
            return Words(0, 0)
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        row = np.repeat(np.arange(len(values)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        counts = place < column.width
        flat = values.flatten()
        codes = self._codes(column, flat)
        out[row[counts], place[counts]] = codes[counts]
        return _counted(codes, flat.null_count)


def encoder(spec: FeatureSpec, table: Place) -> Encoder:
    """The encoder of one table's columns of a fitted spec."""
    limits = dict(zip(spec.dense, spec.limit, strict=True))
    limited = {column.name: limits[column.dense()[0]] < UNLIMITED for column in spec.columns if column.dense()}
    return Encoder([column for column in spec.columns if column.table == table], spec.vocabularies, limited)


def add_words(total: dict[str, list[int]], more: Mapping[str, Sequence[int]]) -> None:
    """Add counts of words by column, [count, unseen], as JSON keeps them."""
    for name, counts in more.items():
        total[name] = [one + other for one, other in zip(total.get(name, (0, 0)), counts, strict=True)]


def words_as(words: Sequence[str], dtype: pa.DataType) -> pa.Array:
    """A vocabulary as values of a column's type.

    Raises:
        pa.ArrowInvalid: a word is no value of the type.
    """
    return pa.array(words, pa.string()).cast(_widest(dtype))


def _counted(codes: np.ndarray, nulls: int) -> Words:
    count = len(codes) - nulls
    return Words(count, count - int(np.count_nonzero(codes)))


def _widest(dtype: pa.DataType) -> pa.DataType:
    """The type that words are looked up in."""
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype) or pa.types.is_null(dtype):
        return pa.string()
    return pa.int64() if pa.types.is_integer(dtype) and not pa.types.is_uint64(dtype) else dtype


def widen(values: pa.Array) -> pa.Array:
    """Words in the type that they are looked up in."""
    return values if pa.types.is_dictionary(values.type) else values.cast(_widest(values.type))


def _floats(values: pa.Array) -> np.ndarray:
    """Numbers as (B,), NaN where null; of the column's own type where that spares a copy."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_null(values.type):
        return np.full(len(values), np.nan, np.float32)
    if pa.types.is_boolean(values.type) or pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    numbers = values.to_numpy(zero_copy_only=False)
    # float64 beyond float32's range becomes infinite, which is what it would be to the model
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32, copy=False)


def _matrix(values: pa.Array, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of numbers as (B, width), NaN where a list or a value is null, and which lists have another length."""
    rows = len(values)
    if pa.types.is_null(values.type):
        return np.full((rows, width), np.nan, np.float32), np.zeros(rows, bool)
    lengths = pc.list_value_length(values)
    wrong = pc.fill_null(pc.not_equal(lengths, width), False).to_numpy(zero_copy_only=False)
    if not values.null_count and not wrong.any():
        return _floats(values.flatten()).reshape(rows, width), wrong
    matrix = np.full((rows, width), np.nan, np.float32)
    good = values.is_valid().to_numpy(zero_copy_only=False) & ~wrong
    matrix[good] = _floats(values.filter(pa.array(good)).flatten()).reshape(-1, width)
    return matrix, wrong


def _side_by_side(numbers: Iterable[np.ndarray], rows: int, width: int) -> np.ndarray:
    """Columns (B,) and matrices (B, w) side by side, float32 (B, width); block by block, so that each is read and written in cache."""
    parts = list(numbers)
    if len(parts) == 1 and parts[0].ndim == 2:
        return parts[0]
    out = np.empty((rows, width), np.float32)
    for start in range(0, rows, BLOCK):
        block = out[start : start + BLOCK]
        place = 0
        for part in parts:
            if part.ndim == 1:
                block[:, place] = part[start : start + BLOCK]
                place += 1
            else:
                block[:, place : place + part.shape[1]] = part[start : start + BLOCK]
                place += part.shape[1]
    return out


def _mark(unfit: dict[str, np.ndarray], reason: str, rows: np.ndarray) -> None:
    """Note the rows, bool (B) or (B, width), where there are any."""
    if rows.any():
        unfit[reason] = np.asarray(rows.reshape(len(rows), -1).any(axis=1))
