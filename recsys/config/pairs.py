"""[pairs]: feature rows, where they lie and what their columns are."""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from recsys.config.paths import Location, StorageOptions
from recsys.config.section import Names, Positive, Section


def _fill(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and value != "mean":
        raise PydanticCustomError("fill", "input should be a finite number or 'mean'")
    return value


Fill = Annotated[float | Literal["mean"], BeforeValidator(_fill)]  # one mistake, not one for each of the two


class Scaling(Section):
    """What is done to numbers before the model sees them, in this order. Means and ranges come from the training rows."""

    divide: Annotated[float, Field(gt=0)] = 1.0
    """Divide by this, such as 255 for pixels."""
    log1p: bool = False
    """Take log(1 + x). A row with a value below 0 is rejected, and counted."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """standard: less the mean, by the standard deviation, cut at 8 of them. minmax: the training rows' range to 0..1. none: as it
    is."""
    fill: Fill = "mean"
    """What stands for a missing value: the training rows' mean, or a number in the column's own unit."""
    indicator: bool = False
    """A further input: 1 where the value, or one of a list's, is missing, else 0."""


class Words(Section):
    """What is done to words before the model sees them."""

    max_vocabulary: Positive = 10_000
    """How many values of a column are kept, the most frequent first. The rest, and values never seen, share code 0."""
    max_values: Positive = 20
    """Of a column of lists: so many of a row's values count, the first ones."""


class Column(Section):
    """Rules of one column by its name; what is absent is as for all columns."""

    divide: Annotated[float, Field(gt=0)] | None = None
    """As pairs.scaling.divide."""
    log1p: bool | None = None
    """As pairs.scaling.log1p."""
    scale: Literal["standard", "minmax", "none"] | None = None
    """As pairs.scaling.scale."""
    fill: Fill | None = None
    """As pairs.scaling.fill."""
    indicator: bool | None = None
    """As pairs.scaling.indicator."""
    max_vocabulary: Positive | None = None
    """As pairs.words.max_vocabulary."""
    max_values: Positive | None = None
    """As pairs.words.max_values."""


class Pairs(Section):
    """Feature rows: where they lie and what their columns are. Every column is named here, has its standard name, or stands in ignore;
    any other is refused, so that nothing becomes a feature by accident.
    """

    path: Location
    """Rows to train on, and to score where score is absent: a file or a folder of them, path or URI."""
    test: Location | None = None
    """Labelled rows that training never sees; jobs.train prints the metrics on them."""
    score: Location | None = None
    """Rows to score. Absent: those of path."""
    users: Location | None = None
    """A side table in Parquet: user_id and features of users, found by the rows' user_id. Saves writing them out on every row."""
    items: Location | None = None
    """A side table in Parquet: item_id and features of items, found by the rows' item_id."""
    format: Literal["parquet", "csv", "original_csv"] = "parquet"
    """How the rows are written. original_csv: a header, the label in the last column, all others numeric features; such rows cannot be
    scored into a table, as they have no ids."""
    csv_ids: Literal["text", "number"] = "text"
    """What ids in a CSV are, which cannot say it itself: text as it is written, so that 007 is not 7; or whole numbers."""
    user_id: str = "user_id"
    """Column of whose list the row may enter: an integer or a string."""
    item_id: str = "item_id"
    """Column of what the list may show: an integer or a string."""
    label: str = "label"
    """Column of what is predicted, from 0 to 1; read in training only."""
    weight: str = "weight"
    """Column of the row's weight in training. Optional; without it every row weighs 1."""
    numeric: Names = ()
    """Columns of numbers, truth values, or lists of numbers of one length."""
    categorical: Names = ()
    """Columns of words: strings, integers or truth values. In a CSV all are text as it is written, and an empty cell is no word."""
    multivalued: Names = ()
    """Columns of lists of words. A row's embedding is the mean of its known values' embeddings."""
    ignore: Names = ()
    """Columns that are left unread."""
    scaling: Scaling = Scaling()
    """For all numeric columns."""
    words: Words = Words()
    """For all categorical and multi-valued columns."""
    columns: dict[str, Column] = Field(default_factory=dict)
    """Rules of single columns by name."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training rows held out to choose the epochs: whole users where rows have a user_id, else single rows."""
    storage_options: StorageOptions = Field(default_factory=dict)
    """Options of the object store, such as region and endpoint. Secrets do not belong here: they come from the environment."""

    @property
    def named(self) -> tuple[str, ...]:
        """All feature columns, in the order of the model's inputs."""
        return self.numeric + self.categorical + self.multivalued

    def scaling_of(self, column: str) -> Scaling:
        """The rules of a numeric column."""
        return self.scaling.model_copy(update=self._own(column, Scaling))

    def words_of(self, column: str) -> Words:
        """The rules of a categorical or multi-valued column."""
        return self.words.model_copy(update=self._own(column, Words))

    def _own(self, column: str, rules: type[Section]) -> dict[str, object]:
        own = self.columns.get(column, Column())
        return {name: value for name in rules.model_fields if (value := getattr(own, name)) is not None}

    @model_validator(mode="after")
    def _columns_agree(self) -> "Pairs":
        features = ("numeric", "categorical", "multivalued", "ignore")
        standard = () if self.format == "original_csv" else ("user_id", "item_id", "label", "weight")
        roles: dict[str, str] = {}
        for role in (*standard, *features):
            value = getattr(self, role)
            for name in (value,) if isinstance(value, str) else value:
                if (other := roles.setdefault(name, role)) is not role or value.count(name) > 1:
                    by_default = other in standard and other not in self.model_fields_set
                    todo = f"set pairs.{other}, which it is by its name, to another" if by_default else "name it once"
                    raise ValueError(f"pairs: column '{name}' is named twice, in {other} and {role}; {todo}")
        words = self.categorical + self.multivalued
        for name, own in self.columns.items():
            if self.format != "original_csv" and name not in self.named:
                raise ValueError(
                    f"pairs.columns: '{name}' is no feature column; name it in numeric, categorical or multivalued, or remove it"
                )
            other = Scaling if name in words else Words
            wrong = sorted(own.model_fields_set & other.model_fields.keys())
            if wrong:
                kind = "words" if name in words else "numbers"
                raise ValueError(f"pairs.columns.{name}: '{wrong[0]}' is no rule for a column of {kind}; remove it")
        for where, rules in [("scaling", self.scaling), *((f"columns.{name}", self.scaling_of(name)) for name in self.columns)]:
            if rules.log1p and rules.fill != "mean" and rules.fill < 0:
                raise ValueError(f"pairs.{where}: fill must be 0 or more under log1p, got {rules.fill}; fill with 0 or 'mean'")
        if self.format != "csv" and "csv_ids" in self.model_fields_set:
            raise ValueError(f'pairs.csv_ids says what ids in a CSV are, got pairs.format "{self.format}"; remove it')
        if self.format == "original_csv":
            given = self.model_fields_set
            named = [name for name in ("users", "items", "numeric", "categorical", "multivalued", "label", "weight") if name in given]
            if named:
                raise ValueError(f"pairs.format 'original_csv' names its columns itself; remove pairs.{named[0]}")
        return self
