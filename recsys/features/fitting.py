"""What is fitted to columns: means, ranges and vocabularies, from sums and counts of the training rows that add up over shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import Pairs
from recsys.data.catalog import most_frequent
from recsys.data.types import is_list, word_kind
from recsys.features.encoding import widen
from recsys.features.spec import CLIP, UNLIMITED, ColumnSpec, FeatureSpec, Place
from recsys.schema import DENSE

TINY = 1e-30  # a smaller deviation or range has no inverse in float32


@dataclass(frozen=True)
class Moments:
    """Sums over the present values of each dense column; float64 (F) each."""

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @staticmethod
    def of(blocks: Iterable[np.ndarray], width: int) -> "Moments":
        """Those of float32 (B, width) blocks; NaN and infinities are not present."""
        count, total, squares = np.zeros((3, width))
        low, high = np.full(width, np.inf), np.full(width, -np.inf)
        for block in blocks:
            values = block.astype(np.float64)
            present = np.isfinite(values)
            low = np.minimum(low, np.where(present, values, np.inf).min(axis=0, initial=np.inf))
            high = np.maximum(high, np.where(present, values, -np.inf).max(axis=0, initial=-np.inf))
            values[~present] = 0.0
            count += present.sum(axis=0)
            total += values.sum(axis=0)
            squares += (values**2).sum(axis=0)
        return Moments(count, total, squares, low, high)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def standard(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float64 (F): 0 and 1 for a column without values, deviation 1 for a constant one."""
        count = np.maximum(self.count, 1)
        mean = self.total / count
        deviation = np.sqrt(np.maximum(self.squares / count - mean**2, 0.0))
        constant = ~(self.high > self.low) | (deviation <= 1e-6 * np.abs(mean)) | (deviation < TINY)
        return mean, np.where(constant, 1.0, deviation)


KEPT_WORDS = 10  # of one shard, in vocabularies: so many times max_vocabulary are handed on to be added up


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
        seen = widen(values).drop_null().value_counts()
        words = seen.field("values").cast(pa.string()).to_pylist()
        counts[column.name].update(dict(zip(words, seen.field("counts").to_pylist(), strict=True)))


def fit_columns(pairs: Pairs, columns: Sequence[ColumnSpec], moments: Moments, counts: Mapping[str, Counter[str]]) -> FeatureSpec:
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
        return ColumnSpec(name, "word", table=table, words=word_kind(dtype))
    if name in pairs.multivalued:
        return ColumnSpec(name, "words", table=table, width=pairs.words_of(name).max_values, words=word_kind(dtype))
    rules = pairs.scaling_of(name)
    kind = "numbers" if is_list(dtype) else "number"
    spec = ColumnSpec(name, kind, table=table, width=width)
    return replace(spec, divide=rules.divide, log1p=rules.log1p, indicator=rules.indicator)


def fit_examples(
    files: Sequence[Path], names: Sequence[str], codes: Sequence[str], vocabularies: Mapping[str, tuple[str, ...]]
) -> FeatureSpec:
    """The spec of examples, its normalisation fitted to the rows of the files.

    Args:
        files: Arrow files of `schema.examples_schema`.
        names: of the dense inputs, in order.
        codes: columns whose words are inputs, in order.
        vocabularies: of these, and of columns that only shape dense inputs.
    """

    def blocks() -> Any:
        for file in files:
            with pa.memory_map(str(file)) as source:
                for batch in pa.ipc.open_file(source).read_all().to_batches():
                    if batch.num_rows:
                        yield batch.column(DENSE).flatten().to_numpy().reshape(batch.num_rows, -1)

    mean, deviation = (tuple(values.tolist()) for values in Moments.of(blocks(), len(names)).standard())
    return FeatureSpec(tuple(names), mean, deviation, tuple(codes), vocabularies)
