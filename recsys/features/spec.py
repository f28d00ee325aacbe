"""What a model was fed: names, order, normalisation and vocabularies of its inputs; fitted on training rows, kept in the bundle."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

Place = Literal["rows", "users", "items"]
CLIP = 8.0  # standard deviations; keeps one absurd value from owning a layer


class Words(NamedTuple):
    """How many words a column holds, and how many of them are not in its vocabulary."""

    count: int
    unseen: int


@dataclass(frozen=True)
class ModelInputs:
    """What a model is fed of N rows, before normalisation."""

    dense: np.ndarray
    """float32 (N, F); NaN is missing."""
    codes: np.ndarray
    """int32 (N, C)."""
    names: tuple[str, ...] = ()
    """Of the dense columns, where it is not a fitted spec that made them."""
    unfit: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Reason -> bool (N): rows that cannot be used; absent where there are none."""
    words: Mapping[str, Words] = field(default_factory=dict)
    """Of the word columns, where a fitted spec made them."""


@dataclass(frozen=True)
class ColumnSpec:
    """One raw column of the pairs door and what `encode` makes of it."""

    name: str
    kind: Literal["number", "numbers", "word", "words"]
    """number and word: one value a row; numbers and words: a list."""
    table: Place = "rows"
    """Where it stands: in the rows themselves, or joined to them by user_id or item_id."""
    width: int = 1
    """numbers: the length of every row's list. words: how many of a row's values count."""
    divide: float = 1.0
    log1p: bool = False
    indicator: bool = False
    """Numbers: a further dense input says whether the value is missing."""
    words: str = ""
    """What word and words were in training: string, integer or bool; "" where there was none, or in bundles that do not say."""

    def dense(self) -> tuple[str, ...]:
        """Names of its dense inputs, in order."""
        names = {"number": (self.name,), "numbers": tuple(f"{self.name}[{place}]" for place in range(self.width))}.get(self.kind, ())
        return (*names, f"{self.name} is missing") if self.indicator else names

    def codes(self) -> tuple[str, ...]:
        """Names of its code inputs, in order."""
        return (self.name,) * self.width if self.kind in ("word", "words") else ()


@dataclass(frozen=True)
class FeatureSpec:
    """The model's inputs: `dense` float columns with their normalisation, `codes` integer columns with their vocabularies."""

    dense: tuple[str, ...]
    mean: tuple[float, ...]
    """Subtracted from each dense column: the training rows' mean, or what stands in its place (the minimum, 0)."""
    scale: tuple[float, ...]
    """What each is then divided by: the training rows' standard deviation, or their range, or 1; 1 where the column is constant."""
    codes: tuple[str, ...]
    """Names of the code columns; the name of a multi-valued one stands once for each value that counts."""
    vocabularies: Mapping[str, tuple[str, ...]]
    """Values of each code column, most frequent first: the value at position i has code i + 1; code 0 is anything else. Those of
    columns that only shape dense ones too."""
    fill: tuple[float, ...] = ()
    """What stands for a missing value after scaling; absent, 0 for all: the mean."""
    limit: tuple[float, ...] = ()
    """How far from 0 a scaled value may be, beyond it is cut; absent, 8 for all."""
    columns: tuple[ColumnSpec, ...] = ()
    """The raw columns, where `encode` made the inputs; absent where the shop's features did."""

    def sizes(self) -> tuple[int, ...]:
        """How many codes each code column has, code 0 included."""
        return tuple(len(self.vocabularies[name]) + 1 for name in self.codes)

    @property
    def has_side_tables(self) -> bool:
        """Whether some columns stand in tables that rows are joined to."""
        return any(column.table != "rows" for column in self.columns)

    def of(self, table: Place) -> "FeatureSpec":
        """The part of the spec that one table's columns have."""
        mine = tuple(column for column in self.columns if column.table == table)
        dense = tuple(name for column in mine for name in column.dense())
        places = [self.dense.index(name) for name in dense]
        return FeatureSpec(
            dense=dense,
            mean=tuple(self.mean[place] for place in places),
            scale=tuple(self.scale[place] for place in places),
            codes=tuple(name for column in mine for name in column.codes()),
            vocabularies={column.name: self.vocabularies[column.name] for column in mine if column.codes()},
            fill=tuple(self.fill[place] for place in places),
            limit=tuple(self.limit[place] for place in places),
            columns=mine,
        )

    def embeddings(self) -> list[tuple[int, int, int]]:
        """First code column, number of code columns, and number of codes of each embedding: one a name."""
        return [
            (self.codes.index(name), self.codes.count(name), len(self.vocabularies[name]) + 1) for name in dict.fromkeys(self.codes)
        ]

    def normalise(self, dense: np.ndarray) -> np.ndarray:
        """Model-ready dense inputs: shifted, scaled, cut at the limits; a missing value becomes its fill.

        Args:
            dense: float32 (B, F) in the order of `self.dense`; NaN is missing.

        Returns:
            float32 (B, F), no NaN, a new array.
        """
        inputs = dense - np.asarray(self.mean, np.float32)
        with np.errstate(over="ignore"):  # what becomes infinite is cut
            inputs *= 1.0 / np.asarray(self.scale, np.float32)
        missing = np.isnan(inputs)
        if missing.any():
            inputs[missing] = np.broadcast_to(np.asarray(self.fill or 0.0, np.float32), inputs.shape)[missing]
        limit = np.asarray(self.limit or CLIP, np.float32)
        return np.clip(inputs, -limit, limit, out=inputs)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` turns back into an equal spec."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "FeatureSpec":
        """The spec that `to_json` wrote."""
        return FeatureSpec(
            dense=tuple(values["dense"]),
            mean=tuple(values["mean"]),
            scale=tuple(values["scale"]),
            codes=tuple(values["codes"]),
            vocabularies={name: tuple(words) for name, words in values["vocabularies"].items()},
            fill=tuple(values["fill"]),
            limit=tuple(values["limit"]),
            columns=tuple(ColumnSpec(**column) for column in values["columns"]),
        )


UNLIMITED = float(np.finfo(np.float32).max)
