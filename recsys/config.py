"""Settings: frozen pydantic models read from one TOML file; unknown keys are refused and every value is checked when read.

Each model below is one section of the file. Paths are taken as they stand: a URI, an absolute path, or relative to the folder the
command runs in.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import override

from recsys.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# TOML has arrays, not tuples: the array is let through, its values are checked as strictly as all others.
Names = Annotated[tuple[str, ...], Strict(False)]
Counts = Annotated[tuple[Positive, ...], Strict(False)]


def _fill(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number and value != "mean":
        raise PydanticCustomError("fill", "input should be a finite number or 'mean'")
    return value


Fill = Annotated[float | Literal["mean"], BeforeValidator(_fill)]  # one mistake, not one for each of the two
Door = TypeVar("Door", bound=BaseModel)


class Section(BaseModel):
    """One section of the settings file."""

    # strict: "10" is no number and 1 is no truth value; a whole number where a float is meant is fine.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Columns(Section):
    """Ours = theirs, only where they differ."""

    user_id: str = "user_id"
    """Whose event it is: an integer or a string."""
    item_id: str = "item_id"
    """What it is about: an integer or a string."""
    ts: str = "ts"
    """When it happened: a timestamp, with a zone or in shop.timezone."""
    kind: str = "kind"
    """What sort of event it is, such as view or purchase; optional."""
    quantity: str = "quantity"
    """Units of the item; optional, absent 1."""
    price: str = "price"
    """Paid for one unit; optional."""
    available: str = "available"
    """Whether an item may be recommended; optional, absent true."""
    name: str = "name"
    """What a person calls an item; optional."""


class Shop(Section):
    """Where the shop's tables lie and how to read them."""

    events: str
    """A Parquet file or a folder of them, path or URI: user_id, item_id, ts, [kind], [quantity], [price]."""
    items: str | None = None
    """The catalog: item_id, [available], [name], and the columns that [features] and [[rules]] name. Without it: the items seen in
    events."""
    users: str | None = None
    """user_id and the columns that [features] and [[rules]] name."""
    timezone: str | None = None
    """Of times without a zone, as an IANA name. Absent: such times are refused."""
    label_kinds: Names | None = None
    """Event kinds that count as wanted. Absent: all; a table without a kind column: all."""
    columns: Columns = Columns()
    storage_options: dict[str, str] = {}
    """Options of the object store, such as region and endpoint; secrets come from the environment."""


class Features(Section):
    """Columns of items and users that describe them."""

    item_categorical: Names = ()
    """Columns of items taken as words, such as department and brand."""
    item_numeric: Names = ()
    """Columns of items taken as numbers."""
    user_categorical: Names = ()
    """Columns of users taken as words, such as an age band."""
    user_numeric: Names = ()
    """Columns of users taken as numbers."""
    max_vocabulary: Positive = 10_000
    """Values kept for one categorical column, the most frequent first; the rest, and unseen ones, share code 0."""
    max_embedded: Annotated[int, Field(ge=0)] = 100
    """Columns of at most so many values get an embedding in the model; one of many values would be learnt by heart. An item column
    of any number of values shapes the category source and features, such as the user's share of purchases in it."""


class Window(Section):
    """What is looked back on, and how far ahead a label looks; in days."""

    history_days: Positive = 365
    """Events older than this are not looked at."""
    label_days: Positive = 28
    """What a user buys within so many days of a date is what should have been recommended on it."""
    cutoffs: Annotated[int, Field(ge=2)] = 5
    """Dates at which training examples are made, label_days apart; the newest is the validation window."""


class Signals(Section):
    """What history says about items."""

    max_users: Positive = 200_000
    """Users whose histories fit the neighbours and factors: all of them, or that many chosen by hash."""
    ease_items: Annotated[int, Field(ge=0)] = 5_000
    """The most bought items that EASE covers (its cost is quadratic); the rest get cosine neighbours. 0 turns EASE off."""
    ease_l2: Annotated[float, Field(gt=0)] = 500.0
    """Ridge penalty, in users, of EASE and of the cosine neighbours' weights."""
    neighbours: Positive = 200
    """Neighbours kept of each item."""
    factors: Positive = 64
    """Length of the ALS vectors of users and items."""
    als_iterations: Positive = 15
    """Rounds of ALS."""
    als_l2: Annotated[float, Field(gt=0)] = 10.0
    """Regularisation of the ALS vectors."""
    als_alpha: Annotated[float, Field(gt=0)] = 2.0
    """Weight of purchases in ALS."""
    group_users: Positive = 50
    """Users who must have bought in the last 28 days before a group of users alike has a popularity of its own: fewer would show one
    user what another bought."""


class Candidates(Section):
    """How many items each source may propose for one user."""

    own: Annotated[int, Field(ge=0)] = 200
    """Items that the user bought before. 0 turns a source off."""
    popular: Positive = 100
    """Items that everybody buys; never off, as it serves those without history."""
    neighbours: Annotated[int, Field(ge=0)] = 150
    """Neighbours of what the user bought."""
    factors: Annotated[int, Field(ge=0)] = 150
    """Items whose ALS vector is nearest to the user's."""
    category: Annotated[int, Field(ge=0)] = 50
    """Items popular in the user's categories."""
    content: Annotated[int, Field(ge=0)] = 0
    """Cold items in the user's categories, the newest first; needs features.item_categorical. Off where not asked for: what it adds to
    lists, and takes from them, depends on how well the catalog tells new items from dead ones. 20 is a start."""
    cold_buyers: Positive = 10
    """An item with fewer buyers is cold: too few for sources that go by who bought it."""
    unseen: Annotated[int, Field(ge=0)] = 1_000
    """Of the available items that nobody bought within window.history_days, so many are candidates of `content`, chosen by hash, others
    for each date: a catalog of millions does not grow the signals, and each item has its days. 0: only items with a buyer."""
    per_user: Positive = 500
    """At most this many after merging, those ranked best by any source first."""


class Examples(Section):
    """How labelled rows are sampled."""

    negatives: Positive = 5
    """Negatives for one positive, drawn from the user's own candidates."""


class Model(Section):
    """The multilayer perceptron: each hidden layer is dense, then normalisation, activation and dropout, as far as they are on."""

    hidden: Counts = (512, 256, 128)
    """Units of each hidden layer, in order."""
    activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu"
    """After each hidden layer; gelu is the exact one, by erf."""
    normalisation: Literal["batch", "layer"] | None = None
    """Of each hidden layer before its activation. Batch: by the weighted moments of the whole global batch, whatever the workers."""
    dropout: Fraction = 0.2
    """Share of units dropped after each hidden layer while training."""
    initialiser: Literal["random_uniform", "random_normal", "glorot_uniform", "he_normal"] = "glorot_uniform"
    """Of every dense layer's kernel: within +-0.05, with deviation 0.05, Glorot and Bengio 2010 (Xavier), or He et al. 2015."""
    max_embedding: Positive = 16
    """Width of the widest embedding; a smaller vocabulary gets a narrower one."""


def _workers(value: Any) -> Any:
    """A number of workers, or the fewest and the most of them."""
    elastic = isinstance(value, Sequence) and not isinstance(value, str)
    numbers: tuple[Any, ...] = tuple(value) if elastic else (value, value)
    # a truth value is an int to Python
    if len(numbers) != 2 or any(type(number) is not int for number in numbers) or not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"train.workers must be a whole number above 0, or [fewest, most], got {value!r}; mend it")
    return numbers if elastic else value


def _class_weights(value: Any) -> Any:
    """ "balanced", or the factors of label 0 and label 1."""
    if value is None or value == "balanced":
        return value
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not pair or any(type(factor) not in (int, float) for factor in value):
        raise ValueError(f'train.class_weights must be "balanced" or [factor of label 0, of label 1], got {value!r}; mend it')
    if not all(0 < factor < float("inf") for factor in value):
        raise ValueError(f"train.class_weights must be above 0 and finite, got {value!r}; mend it")
    return tuple(float(factor) for factor in value)


class Train(Section):
    """The fit."""

    loss: Literal["binary_crossentropy", "mean_squared_error"] = "binary_crossentropy"
    """What is made small, and what val_loss says: cross-entropy in nats, or the squared error of the probability (Brier score)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or stochastic gradient descent with momentum."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the optimizer; the highest that the schedule reaches."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on: as it is, or down to 0 over `epochs` along half a cosine (Loshchilov and Hutter 2017)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs, or a fraction of one, over which the learning rate first rises in equal steps."""
    momentum: Fraction = 0.9
    """Of sgd; the others have their own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of adamw, per step times the learning rate; biases and normalisation have none."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Penalty on the sum of squares of every dense layer's kernel, added to the loss; `loss` in the history is without it."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """The whole gradient, of the global batch, is scaled down to this norm. Absent: never."""
    class_weights: Annotated[Literal["balanced"] | tuple[float, float] | None, BeforeValidator(_class_weights)] = None
    """Factors on the weight of training rows with label 0 and with label 1; "balanced": both labels weigh the same. Validation
    stays as it is."""
    epochs: Positive = 10
    """At most; validation loss decides how many are kept."""
    patience: Positive | None = 2
    """Epochs without a better validation loss before the fit stops. None, or as many as `epochs`: it never does."""
    refit: bool = True
    """After validation chose the number of epochs, fit again from the start on all rows, validation rows too; false keeps the best
    epoch's weights."""
    batch_size: Positive = 1024
    """The global batch, over all workers."""
    workers: Annotated[int | tuple[int, int], BeforeValidator(_workers)] = 2
    """Training workers, each with the same share of every batch; [fewest, most] starts with what there is and grows or shrinks with
    the cluster, at the price that two runs no longer give equal weights."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on; GPUs sum their gradients through NCCL."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """Mixed: products in bfloat16, weights and sums in float32; for GPUs with bfloat16 units (compute capability 8.0 on). float16 is
    not offered: it needs loss scaling, bfloat16 has float32's range."""
    checkpoint_seconds: Positive = 600
    """Time between two checkpoints inside an epoch; every epoch ends with one."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Worker failures that are retried from the last checkpoint."""

    @property
    def fewest_workers(self) -> int:
        """What the fit can start with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _choices_fit_together(self) -> "Train":
        if self.precision != "float32" and self.device == "cpu":
            raise ValueError(
                f'train.precision "{self.precision}" needs train.device "gpu", got "cpu", where it is slower than float32; '
                "set train.device or remove train.precision"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"train.warmup_epochs must be at most train.epochs ({self.epochs}), got {self.warmup_epochs:g}; lower it")
        return self


class Range(Section):
    """Numbers that a search draws from, ends included."""

    low: float
    """The smallest."""
    high: float
    """The largest."""
    log: bool = False
    """Even over the logarithms instead of the numbers."""


ABSENT = "absent"  # a choice: the key is left out
WHOLE = ("max_embedding", "batch_size")  # ranges of them are of whole numbers
RANGED = (*WHOLE, "dropout", "learning_rate", "warmup_epochs", "momentum", "weight_decay", "l2", "clip_norm")
CHOSEN = ("hidden", "activation", "normalisation", "initialiser", "optimizer", "schedule", "class_weights")
# the others say how long or where a fit runs, or, as the loss does, what validation loss means

SPACE: dict[str, Range | tuple[Any, ...]] = {
    "learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "hidden": ((128, 64), (256, 128), (512, 256, 128)),
    "dropout": Range(low=0.0, high=0.5),
    "normalisation": (ABSENT, "batch"),
}


def _space(value: Any, info: ValidationInfo) -> Any:
    """What [tune] says, each value held against [model] and [train]."""
    if not {"model", "train"} <= info.data.keys():  # there is a mistake in them already
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"tune must be a section with a key at least, got {value!r}; add one or remove [tune]")
    model, train = info.data["model"], info.data["train"]
    space: dict[str, Range | tuple[Any, ...]] = {}
    for key, told in value.items():
        if key not in RANGED + CHOSEN:
            raise ValueError(f"unknown key 'tune.{key}'. Known here: {', '.join(RANGED + CHOSEN)}")
        section = model if key in type(model).model_fields else train
        if isinstance(told, dict):
            try:
                told = Range.model_validate(told)
            except ValidationError as error:
                raise ValueError(f"tune.{key}: {_first(error)}") from error
        if isinstance(told, Range):
            _check_range(key, told, section)
            space[key] = told
        elif isinstance(told, Sequence) and not isinstance(told, str) and len(told):
            for choice in told:
                absent = choice == ABSENT and type(section).model_fields[key].default is None
                _held_against(section, key, None if absent else choice)
            space[key] = tuple(told)
        else:
            raise ValueError(f"tune.{key} must be a list of choices or a range {{low, high, [log]}}, got {told!r}; mend it")
    return space


def _check_range(key: str, told: Range, section: Section) -> None:
    if key not in RANGED:
        raise ValueError(f"tune.{key}: a range is of numbers, {key} is none; list choices instead")
    if not told.low < told.high:
        raise ValueError(f"tune.{key}: low must be below high, got {told.low:g} and {told.high:g}; mend them")
    if told.log and not told.low > 0:
        raise ValueError(f"tune.{key}: low must be above 0 for log, got {told.low:g}; raise it or remove log")
    for end in (told.low, told.high):
        _held_against(section, key, int(end) if key in WHOLE and end == int(end) else end)


def _held_against(section: Section, key: str, value: Any) -> None:
    try:
        type(section).model_validate({**section.model_dump(exclude_unset=True), key: value})
    except ValidationError as error:
        raise ValueError(f"tune.{key}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first mistake in a few words."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    return f"'{'.'.join(map(str, first['loc']))}': {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}; mend it"


# of Range and tuples; to pydantic of anything, as the validator is ours
Space = Annotated[dict[str, Any], PlainValidator(_space)]


class Calibration(Section):
    """What turns the model's outputs into the published chances."""

    max_users: Positive = 20_000
    """Users whose candidates of the newest label window it is fitted on: all of them, or about that many chosen by hash."""


class Rank(Section):
    """The list of one user."""

    k: Positive = 10
    """Items in the list."""
    allow_repeats: bool = True
    """May an item that the user bought before be recommended? If not, that is the rule "repeats": never one of the whole history
    (window.history_days)."""
    candidates: str | None = None
    """A Parquet file or a folder of them, path or URI, with shop.columns.user_id and item_id: only these are ranked, and users without
    a row get no list. The model still learns from what the sources propose. Absent: what the sources propose is ranked."""
    diversity: Fraction = 0.0
    """How much an item's likeness to those above it counts against its rank: maximal marginal relevance, `rank.cut` has the formula.
    0 is off; at 0.5 both count alike."""


def _word(value: object) -> str:
    if not isinstance(value, str | int):
        raise PydanticCustomError("word", "input should be a string, a whole number or a truth value")
    return str(value).lower() if isinstance(value, bool) else str(value)


# As `clean.text` writes columns of integers and truth values.
Values = Annotated[tuple[Annotated[str, BeforeValidator(_word)], ...], Strict(False), Field(min_length=1)]


def _one_of(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"set one of {', '.join(names)}, got {' and '.join(given) or 'none'}; mend it")


class Audience(Section):
    """The users that a rule is for: by a column of USERS, or by a list of their ids."""

    column: str | None = None
    """Of USERS, taken as words; with `values` or `other_than`."""
    values: Values | None = None
    """Users whose column is one of these."""
    other_than: Values | None = None
    """Users whose column is none of these; those without a value, and those who are not in USERS, are among them."""
    ids: str | None = None
    """Parquet, path or URI, with a column user_id (by the shop's name for it): the users on the list."""

    @model_validator(mode="after")
    def _one_form(self) -> "Audience":
        _one_of(self, "column", "ids")
        if self.column is not None:
            _one_of(self, "values", "other_than")
        elif self.values is not None or self.other_than is not None:
            raise ValueError("an audience by ids has no values; remove them, or set column")
        return self


class Rule(Section):
    """What all rules have."""

    name: Annotated[str, Field(min_length=1)]
    """Of the rule, by which its drops are counted; every rule has its own."""
    audience: Audience | None = None
    """Whom it is for; absent, all users."""

    def lists(self) -> dict[str, str]:
        """Where the rule's lists of ids lie: `items`, `pairs` or `users` (the audience's) -> path or URI."""
        return {"users": self.audience.ids} if self.audience is not None and self.audience.ids is not None else {}


class BoughtRule(Rule):
    """Not what the user bought lately. For "never what was bought before" there is rank.allow_repeats."""

    kind: Literal["bought"]
    days: Positive
    """Within so many days before the night: 1 is the last 24 hours. At most window.history_days."""


class ColumnRule(Rule):
    """Only, or never, items where a column has one of the values."""

    kind: Literal["column"]
    column: str
    """Of ITEMS, taken as words: strings, integers or truth values."""
    only: Values | None = None
    """Items with one of these values, and no others; an item without a value does not pass."""
    never: Values | None = None
    """Items with none of these values; an item without a value passes."""

    @model_validator(mode="after")
    def _one_form(self) -> "ColumnRule":
        _one_of(self, "only", "never")
        return self


class RangeRule(Rule):
    """Only items whose number lies within bounds; an item without a number does not pass."""

    kind: Literal["range"]
    column: str
    """Of ITEMS, a number such as the price; compared as float32."""
    min: float | None = None
    """The least that passes; absent, no bound."""
    max: float | None = None
    """The greatest that passes; absent, no bound."""

    @model_validator(mode="after")
    def _has_a_range(self) -> "RangeRule":
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both, got none; mend it")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min must be at most max, got {self.min:g} and {self.max:g}; mend it")
        return self


class ItemsRule(Rule):
    """Only, or never, the items on a list."""

    kind: Literal["items"]
    only: str | None = None
    """Parquet, path or URI, with a column item_id (by the shop's name for it): these items, and no others."""
    never: str | None = None
    """The same: none of these items."""

    @model_validator(mode="after")
    def _one_form(self) -> "ItemsRule":
        _one_of(self, "only", "never")
        return self

    @override
    def lists(self) -> dict[str, str]:
        """As of every rule."""
        return {"items": self.only or self.never or "", **super().lists()}


class PairsRule(Section):
    """Never what stands on a list of users and items: each row is an item that this user must not see."""

    name: Annotated[str, Field(min_length=1)]
    """As of every rule."""
    kind: Literal["pairs"]
    never: str
    """Parquet, path or URI, with columns user_id and item_id (by the shop's names for them)."""

    def lists(self) -> dict[str, str]:
        """As of every rule."""
        return {"pairs": self.never}


class CapRule(Section):
    """At most n items of one value in a list, counted in list order; items without a value are not counted."""

    name: Annotated[str, Field(min_length=1)]
    """As of every rule."""
    kind: Literal["cap"]
    column: str
    """Of ITEMS, taken as words, such as category, brand or seller."""
    at_most: Positive
    """Items of each value in one list."""

    def lists(self) -> dict[str, str]:
        """None."""
        return {}


AnyRule = BoughtRule | ColumnRule | RangeRule | ItemsRule | PairsRule | CapRule
AVAILABLE, REPEATS = RULES_BUILT_IN = ("available", "repeats")  # names of rules that are no [[rules]]
PROFILE_COLUMNS = ("user_id", "item", "ts", "quantity", "price", "wanted")  # of the profiles beside what users tell


class Scaling(Section):
    """What is done to numbers before the model sees them, in this order; the figures come from the training rows."""

    divide: Annotated[float, Field(gt=0)] = 1.0
    """Divide by this, such as 255 for pixels."""
    log1p: bool = False
    """Take log(1 + x); rows with a value below 0 are rejected, and counted."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """standard: centred, by the standard deviation, cut at 8 of them. minmax: the training rows' range to 0..1. none: as it is."""
    fill: Fill = "mean"
    """What stands for a missing value: the training rows' mean, or this value of the column."""
    indicator: bool = False
    """A further input: 1 where the value, or one of a list's, is missing, else 0."""


class Words(Section):
    """What is done to words before the model sees them."""

    max_vocabulary: Positive = 10_000
    """Values kept, the most frequent first; the rest, and unseen ones, share code 0."""
    max_values: Positive = 20
    """Of a list column: the first so many of a row's values count."""


class Column(Section):
    """One column's own rules; what is absent is as for all columns."""

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
    """Feature rows: where they lie and what their columns are. Every column is named here, has its standard name, or is ignored."""

    path: str
    """Rows to train on, and to score where `score` is absent: a Parquet or CSV file or a folder of them, path or URI."""
    test: str | None = None
    """Labelled rows that training never sees; `jobs.train` prints the metrics on them."""
    score: str | None = None
    """Rows to score; absent: those of `path`."""
    users: str | None = None
    """A Parquet table of user_id and features of users, joined to the rows by user_id."""
    items: str | None = None
    """A Parquet table of item_id and features of items, joined to the rows by item_id."""
    format: Literal["parquet", "csv", "original_csv"] = "parquet"
    """original_csv: a CSV with a header whose last column is the label and all others are numeric features; it cannot be scored into
    a table, as it has no ids."""
    user_id: str = "user_id"
    """Whose list the row may enter: an integer or a string."""
    item_id: str = "item_id"
    """What the list may show: an integer or a string."""
    label: str = "label"
    """What is predicted, from 0 to 1; read in training only."""
    weight: str = "weight"
    """Weight of the row in training; optional, absent 1."""
    numeric: Names = ()
    """Columns of numbers, truth values, or lists of numbers of one length."""
    categorical: Names = ()
    """Columns of words: strings, integers or truth values."""
    multivalued: Names = ()
    """Columns of lists of words; a row's embedding is the mean of its known values' embeddings."""
    ignore: Names = ()
    """Columns that are left unread."""
    scaling: Scaling = Scaling()
    """For all numeric columns."""
    words: Words = Words()
    """For all categorical and multi-valued columns."""
    columns: dict[str, Column] = {}
    """Rules of single columns by name."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training rows held out to choose the epochs: whole users where rows have a user_id, else single rows."""
    storage_options: dict[str, str] = {}
    """Options of the object store, such as region and endpoint; secrets come from the environment."""

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
        if self.format == "original_csv":
            given = self.model_fields_set
            named = [name for name in ("users", "items", "numeric", "categorical", "multivalued", "label", "weight") if name in given]
            if named:
                raise ValueError(f"pairs.format 'original_csv' names its columns itself; remove pairs.{named[0]}")
        return self


class Table(Section):
    """The published table."""

    path: str = "var/recommendations"
    """Folder or URI of the Delta table."""
    keep_nights: Positive = 30
    """Older nights are removed and vacuumed."""


class Gate(Section):
    """What a night's table must look like to be published; each limit is a check by the name in its description.

    Shares and changes are against the newest night before it; a first night has only the absolute checks.
    """

    min_rows: Annotated[float, Field(ge=0)] = 0.8
    """rows: as a share of the night before's."""
    min_users: Annotated[float, Field(ge=0)] = 0.9
    """users: with a list, as a share of the night before's."""
    max_growth: Annotated[float, Field(ge=1)] = 1.5
    """rows and users: the most that they may be, as a share of the night before's; twice the users may be the same under two ids."""
    max_short_rise: Annotated[float, Field(ge=0, le=1)] = 0.05
    """short_users: rise in the share of users with fewer than k items."""
    min_overlap: Annotated[float, Field(ge=0, le=1)] = 0.6
    """overlap: share of the night before's rows that are there again, over users of both nights. Where half the catalog is gone, at
    most about half can be; an ordinary night of the demo shop keeps 0.9."""
    min_items: Annotated[float, Field(ge=0)] = 0.6
    """items: distinct recommended ones, as a share of the night before's."""
    max_concentration_rise: Annotated[float, Field(ge=0, le=1)] = 0.1
    """concentration: rise of the Gini index of rows over items."""
    max_drift: Annotated[float, Field(ge=0)] = 0.5
    """drift: population stability index of the scores. Two ordinary nights, each with a model of its own, came to 0.08 to 0.28 on the
    demo shop; a feature in another unit to 0.6 on a small one."""
    max_source_change: Annotated[float, Field(ge=0, le=1)] = 0.25
    """source_change: largest change of a source's share of the rows."""
    min_source_kept: Annotated[float, Field(ge=0, le=1)] = 0.2
    """source_kept: smallest part of its share that a source keeps, of those with a hundredth of the rows or more."""
    max_repeated_users: Annotated[int, Field(ge=0)] = 0
    """repeated_users: lists beyond a user's first."""
    max_unknown_items: Annotated[int, Field(ge=0)] = 0
    """unknown_items: rows with an item that is not available in the catalog."""
    max_ndcg_loss: Annotated[float, Field(ge=0)] = 0.01
    """ndcg: the upper 95% bound of the model's NDCG@10 less the champion's, on the last full label window, is at least minus this; not
    below champion.margin, else a challenger could win and be stopped."""
    max_users: Positive = 1_000_000
    """repeated_users looks at all users, or at about that many chosen by hash, overlap at 200,000 of them; it bounds the driver's
    memory."""


class Champion(Section):
    """Which bundle scores a night of the shop door."""

    path: str = "var/bundles"
    """Folder of the bundles that met the champion and of every decision; on a cluster a path that every node shares."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """A challenger wins where the lower 95% bound of its NDCG@10 less the champion's is above minus this."""


class Report(Section):
    """The page that tells of a night."""

    path: str = "var/reports"
    """Folder of AS_OF.html and the figures in it, AS_OF.json, of each published night, and of AS_OF-stopped.html where the gate
    stopped one; on a cluster a path that every node shares."""


class Run(Section):
    """How the work is cut up; none of it changes a list but seed, and device in the last bits of a score."""

    work: str = "var/work"
    """Folder for what stages hand each other; on a cluster a path that every node shares."""
    keep_work_days: Positive = 7
    """After a night, stage folders that no run used for so long are removed, with the bundles in them: see `jobs.train --out`."""
    shards: Positive | None = None
    """Parts that the users are hashed into; a unit of work and of resuming. Absent: one for 200,000 events, at least 16."""
    shard_bytes: Positive = 128 * 2**20
    """Of feature rows, decoded, that the pairs door takes as one unit of work; a second or two of scoring."""
    actors: Positive | None = None
    """Scoring actors. Absent: one for each CPU of the cluster, or for each GPU where those score."""
    device: Literal["cpu", "gpu"] | None = None
    """What scores: ONNX Runtime on CPU, or Keras on GPU. Absent: the GPU where the cluster has one."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random choice derives from it."""


class PairsTrain(Train):
    """The fit of the pairs door; its defaults are the original system's."""

    batch_size: Positive = 64
    """The global batch, over all workers; large tables train faster with some thousands."""
    patience: Positive | None = None
    """Epochs without a better validation loss before the fit stops; absent, it never does."""
    refit: bool = False
    """As train.refit; off, the validation rows are never trained on."""


class PairsSettings(Section):
    """The whole file of the pairs door: feature rows in, a model or a table out."""

    pairs: Pairs
    model: Model = Model()
    train: PairsTrain = PairsTrain()
    tune: Space = SPACE
    """What `jobs.tune` searches: keys of [model] and [train] -> [choices], or {low, high, [log]}."""
    rank: Rank = Rank()
    table: Table = Table(path="var/pairs_recommendations")
    gate: Gate = Gate()
    run: Run = Run()

    @model_validator(mode="after")
    def _lists_are_plain(self) -> "PairsSettings":
        if self.rank.diversity:
            raise ValueError(
                f"rank.diversity needs the shop door, whose signals say which items are alike, got {self.rank.diversity:g}; remove it"
            )
        return self


class Settings(Section):
    """The whole file of the shop door: events, items and users in, a model or a table out."""

    shop: Shop
    features: Features = Features()
    window: Window = Window()
    signals: Signals = Signals()
    candidates: Candidates = Candidates()
    examples: Examples = Examples()
    model: Model = Model()
    train: Train = Train()
    tune: Space = SPACE
    """What `jobs.tune` searches: keys of [model] and [train] -> [choices], or {low, high, [log]}."""
    calibration: Calibration = Calibration()
    rank: Rank = Rank()
    rules: Annotated[tuple[Annotated[AnyRule, Field(discriminator="kind")], ...], Strict(False)] = ()
    """[[rules]]: what no list may hold, whatever the model says; each drop is counted under the first rule here that asks for it."""
    table: Table = Table()
    gate: Gate = Gate()
    champion: Champion = Champion()
    report: Report = Report()
    run: Run = Run()

    @model_validator(mode="after")
    def _rules_fit_the_shop(self) -> "Settings":
        features, columns = self.features, self.shop.columns
        names = [rule.name for rule in self.rules]
        for rule in self.rules:
            where = f"rules '{rule.name}'"
            if rule.name in RULES_BUILT_IN:
                raise ValueError(f"{where}: a built-in rule has this name; choose another")
            if names.count(rule.name) > 1:
                raise ValueError(f"{where}: two rules have this name; give each its own")
            if isinstance(rule, BoughtRule) and rule.days > self.window.history_days:
                raise ValueError(
                    f"{where}: days must be at most window.history_days ({self.window.history_days}), got {rule.days}; "
                    "lower it, or set rank.allow_repeats = false"
                )
        for rule, of_items, column, number in self.rule_columns():
            where, table = f"rules '{rule.name}'", "items" if of_items else "users"
            if getattr(self.shop, table) is None:
                raise ValueError(f"{where} names column '{column}' but shop.{table} is absent; set shop.{table} or remove the rule")
            taken = (columns.item_id, columns.available, "item_id", "available") if of_items else (columns.user_id, *PROFILE_COLUMNS)
            words = features.item_categorical if of_items else features.user_categorical
            numbers = features.item_numeric if of_items else features.user_numeric
            words += tuple(c for _, items, c, is_number in self.rule_columns() if items == of_items and not is_number)
            if of_items and column == columns.name:
                words += (column,)
            elif of_items:
                taken += ("name",)  # what [shop.columns] names so is kept under this name
            if column in taken:
                todo = "that one is always obeyed, remove the rule" if column == columns.available else "rename it in the table"
                raise ValueError(f"{where}: column '{column}' cannot be a rule's; {todo}")
            if column in (words if number else numbers):
                one, other = ("a number", "words") if number else ("words", "numbers")
                raise ValueError(f"{where}: column '{column}' is {one} here and among the {other} elsewhere; write it as two columns")
        return self

    def rule_columns(self) -> list[tuple[AnyRule, bool, str, bool]]:
        """Every column that a rule reads: the rule, whether it is of ITEMS (else of USERS), its name, whether it is a number."""
        found: list[tuple[AnyRule, bool, str, bool]] = []
        for rule in self.rules:
            if isinstance(rule, ColumnRule | RangeRule | CapRule):
                found.append((rule, True, rule.column, isinstance(rule, RangeRule)))
            if isinstance(rule, Rule) and rule.audience is not None and rule.audience.column is not None:
                found.append((rule, False, rule.audience.column, False))
        return found

    @model_validator(mode="after")
    def _columns_are_named_once(self) -> "Settings":
        features = self.features
        for label, names in (
            ("item", features.item_categorical + features.item_numeric),
            ("user", features.user_categorical + features.user_numeric),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"features: {label} column '{twice[0]}' is named twice; name it once")
        if (features.user_categorical or features.user_numeric) and self.shop.users is None:
            raise ValueError("features names user columns but shop.users is absent; set shop.users or remove them")
        if (features.item_categorical or features.item_numeric) and self.shop.items is None:
            raise ValueError("features names item columns but shop.items is absent; set shop.items or remove them")
        return self


def load(path: str | Path) -> Settings:
    """The shop door's settings, of one TOML file.

    Raises:
        ConfigError: no such file, not TOML, the other door's, an unknown key, a missing one, or a value that is not allowed.
    """
    return _load(path, Settings, "shop", other="pairs")


def load_pairs(path: str | Path) -> PairsSettings:
    """As `load`, of the pairs door."""
    return _load(path, PairsSettings, "pairs", other="shop")


def load_either(path: str | Path) -> Settings | PairsSettings:
    """As `load`, of the door that the file is for: one with a section [pairs] is the pairs door's.

    Raises:
        ConfigError: as `load`; or the file has both doors' sections, or neither.
    """
    values = _read(path)
    if "pairs" in values and "shop" in values:
        raise ConfigError(f"{path}: must have a section [shop] or a section [pairs], got both. Write a file for each.")
    if "pairs" not in values and "shop" not in values:
        raise ConfigError(f"{path}: must have a section [shop] or a section [pairs], got neither. Add the one of the door you use.")
    return load_pairs(path) if "pairs" in values else load(path)


def _load(path: str | Path, door: type[Door], section: str, *, other: str) -> Door:
    values = _read(path)
    if other in values and section not in values:
        raise ConfigError(f"{path}: must have a section [{section}], got [{other}]. Pass the settings file of the {section} door.")
    try:
        return door.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error, door)}") from error


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such settings file. Pass --config with the path of a TOML file.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}.") from error


def _sentence(error: ValidationError, door: type[BaseModel]) -> str:
    """The first mistake of a failed validation in words, and how many more there are."""
    mistakes = error.errors()
    first = mistakes[0]
    place = first["loc"]
    in_rule = place[:1] == ("rules",)
    if in_rule:
        place = (*place[:2], *place[3:])  # without the kind, which pydantic puts there
    key = ".".join(str(part) for part in place)
    match first["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = ", ".join(get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(AnyRule))
            text = f"key '{key}.kind' must be one of {kinds}, got {first['input'].get('kind')!r}. Mend it."
        case "value_error" if in_rule:
            text = f"{key}: {first['msg'].removeprefix('Value error, ')}."
        case "extra_forbidden":
            text = f"unknown key '{key}'. Known here: {', '.join(_section(door, first['loc'][:-1]).model_fields)}."
        case "missing":
            text = f"key '{key}' is missing. Add it."
        case "value_error":
            text = f"{first['msg'].removeprefix('Value error, ')}."
        case _:
            text = f"key '{key}': {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}."
    return text + (f" ({len(mistakes) - 1} more mistakes.)" if len(mistakes) > 1 else "")


def _section(door: type[BaseModel], path: tuple[int | str, ...]) -> Any:
    """The section at a path of names."""
    section: Any = door
    for name in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(name)].annotation
        elif isinstance(name, int):  # of an array
            section = get_args(section)[0]
        elif get_origin(section) is Annotated:  # a rule by its kind
            section = next(kind for kind in get_args(AnyRule) if get_args(kind.model_fields["kind"].annotation) == (name,))
        else:  # a section by a name of the user's
            section = get_args(section)[-1]
        if isinstance(section, UnionType):  # a section or none
            section = get_args(section)[0]
    return section
