"""Rows of the pairs door -> model inputs: Arrow columns of any numeric or word type to float32 and int32 matrices.

What is fitted (means, ranges, vocabularies) comes from sums and counts of the training rows that add up over shards, so one pass
over any number of files gives them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog import most_frequent
from recsys.config import Pairs
from recsys.inputs import family, is_list
from recsys.spec import CLIP, TINY, ColumnSpec, FeatureSpec, Moments, Place

UNLIMITED = float(np.finfo(np.float32).max)
BLOCK = 1024  # rows of one transposed block: 64 columns of it stay in the first caches
KEPT_WORDS = 10  # of one shard, in vocabularies: so many times max_vocabulary are handed on to be added up


@dataclass(frozen=True)
class Encoded:
    """Rows as model inputs, before normalisation."""

    dense: np.ndarray
    """float32 (B, F); NaN is missing."""
    codes: np.ndarray
    """int32 (B, C)."""
    unfit: Mapping[str, np.ndarray]
    """Reason -> bool (B): rows that cannot be used; absent where there are none."""


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

    def __call__(self, batch: pa.RecordBatch) -> Encoded:
        """The batch's inputs; its columns may be of any type that `pairs.open_rows` lets through."""
        rows = batch.num_rows
        codes = np.zeros((rows, self.code_width), np.int32)
        unfit: dict[str, np.ndarray] = {}
        numbers: list[np.ndarray] = []  # each (B,) or (B, width)
        place = 0
        for column in self.columns:
            values = batch.column(column.name)
            if column.kind in ("number", "numbers"):
                numbers += self._numbers(column, values, unfit)
            elif column.kind == "word":
                codes[:, place] = self._codes(column, values)
                place += 1
            else:
                self._lists(column, values, codes[:, place : place + column.width])
                place += column.width
        return Encoded(_joined(numbers, rows, self.width), codes, unfit)

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
        values = _widen(values)
        found = pc.index_in(values, value_set=self._words(column.name, values.type))
        return (found.fill_null(-1).to_numpy() + 1).astype(np.int32, copy=False)

    def _words(self, name: str, dtype: pa.DataType) -> pa.Array:
        key = name, dtype
        if key not in self._lookups:
            self._lookups[key] = words_as(self._vocabularies[name], dtype)
        return self._lookups[key]

    def _lists(self, column: ColumnSpec, values: pa.Array, out: np.ndarray) -> None:
        if pa.types.is_null(values.type):
            return
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
        row = np.repeat(np.arange(len(values)), lengths)
        place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        counts = place < column.width
        out[row[counts], place[counts]] = self._codes(column, values.flatten())[counts]


def encoder(spec: FeatureSpec, table: Place) -> Encoder:
    """The encoder of one table's columns of a fitted spec."""
    limits = dict(zip(spec.dense, spec.limit, strict=True))
    limited = {column.name: limits[column.dense()[0]] < UNLIMITED for column in spec.columns if column.dense()}
    return Encoder([column for column in spec.columns if column.table == table], spec.vocabularies, limited)


# Fitting ------------------------------------------------------------------------------------------------------------------------


def count_words(columns: Sequence[ColumnSpec], batch: pa.RecordBatch, counts: Mapping[str, Counter[str]]) -> None:
    """Add the batch's words to the counts by column; integers and truth values as they are written."""
    for column in columns:
        if column.kind not in ("word", "words"):
            continue
        values = batch.column(column.name)
        if pa.types.is_null(values.type):
            continue
        if column.kind == "words":
            values = values.flatten()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        seen = _widen(values).drop_null().value_counts()
        words = seen.field("values").cast(pa.string()).to_pylist()
        counts[column.name].update(dict(zip(words, seen.field("counts").to_pylist(), strict=True)))


def fitted(pairs: Pairs, columns: Sequence[ColumnSpec], moments: Moments, counts: Mapping[str, Counter[str]]) -> FeatureSpec:
    """The spec of columns whose training rows have these sums and counts.

    Args:
        columns: those of the rows, then of users, then of items.
        moments: of the dense inputs of all columns in this order.
    """
    mean, deviation = moments.standard()
    dense: list[str] = []
    figures: list[tuple[float, float, float, float]] = []  # shift, scale, fill, limit
    for column in columns:
        rules = pairs.scaling_of(column.name)
        names = column.dense()
        for name in names:
            place = len(dense)
            dense.append(name)
            if column.indicator and name == names[-1]:
                figures.append((0.0, 1.0, 0.0, UNLIMITED))
                continue
            present = moments.count[place] > 0
            spread = moments.high[place] - moments.low[place] if present else 0.0
            shift, scale, limit = {
                "standard": (mean[place], deviation[place], CLIP),
                "minmax": (moments.low[place] if present else 0.0, spread if spread > TINY else 1.0, UNLIMITED),
                "none": (0.0, 1.0, UNLIMITED),
            }[rules.scale]
            fill = mean[place] if rules.fill == "mean" else rules.fill / rules.divide
            if rules.fill != "mean" and rules.log1p:
                fill = np.log1p(fill)
            figures.append((float(shift), float(scale), float((fill - shift) / scale), limit))
    shifts, scales, fills, limits = zip(*figures, strict=True) if figures else ((), (), (), ())
    words = [column for column in columns if column.codes()]
    return FeatureSpec(
        dense=tuple(dense),
        mean=shifts,
        scale=scales,
        codes=tuple(name for column in words for name in column.codes()),
        vocabularies={
            column.name: most_frequent(counts[column.name], limit=pairs.words_of(column.name).max_vocabulary) for column in words
        },
        fill=fills,
        limit=limits,
        columns=tuple(columns),
    )


def column_spec(pairs: Pairs, name: str, dtype: pa.DataType, *, table: Place, width: int = 1) -> ColumnSpec:
    """What is done to a column, as the settings say.

    Args:
        width: of a numeric list column: the length of its lists.
    """
    if name in pairs.categorical:
        return ColumnSpec(name, "word", table=table)
    if name in pairs.multivalued:
        return ColumnSpec(name, "words", table=table, width=pairs.words_of(name).max_values)
    rules = pairs.scaling_of(name)
    kind = "numbers" if is_list(dtype) else "number"
    spec = ColumnSpec(name, kind, table=table, width=width)
    return replace(spec, divide=rules.divide, log1p=rules.log1p, indicator=rules.indicator)


# Types --------------------------------------------------------------------------------------------------------------------------


def is_number(dtype: pa.DataType) -> bool:
    """What a numeric column may be, dictionary-encoded or not; a column of nulls only too."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype)


def is_word(dtype: pa.DataType) -> bool:
    """What a categorical column may be, dictionary-encoded or not; a column of nulls only too."""
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return family(dtype) == "string" or pa.types.is_integer(dtype) or pa.types.is_boolean(dtype) or pa.types.is_null(dtype)


def words_as(words: Sequence[str], dtype: pa.DataType) -> pa.Array:
    """A vocabulary as values of a column's type.

    Raises:
        pa.ArrowInvalid: a word is no value of the type.
    """
    return pa.array(words, pa.string()).cast(_widest(dtype))


def _widest(dtype: pa.DataType) -> pa.DataType:
    """The type that words are looked up in."""
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype) or pa.types.is_null(dtype):
        return pa.string()
    return pa.int64() if pa.types.is_integer(dtype) and not pa.types.is_uint64(dtype) else dtype


def _widen(values: pa.Array) -> pa.Array:
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


def _joined(numbers: Iterable[np.ndarray], rows: int, width: int) -> np.ndarray:
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
