"""[[rules]]: what no list may hold, and what each must."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from recsys.config.paths import Location
from recsys.config.section import Positive, Section


def _word(value: object) -> str:
    if not isinstance(value, str | int):
        raise PydanticCustomError("word", "input should be a string, a whole number or a truth value")
    return str(value).lower() if isinstance(value, bool) else str(value)


Share = Annotated[float, Field(ge=0, le=1)]
# As `types.as_text` writes columns of integers and truth values.
Values = Annotated[tuple[Annotated[str, BeforeValidator(_word)], ...], Strict(False), Field(min_length=1)]


def _one_of(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"set one of {', '.join(names)}, got {' and '.join(given) or 'none'}; mend it")


class Audience(Section):
    """The users that a rule is for: audience = { column = …, values = […] }, or with other_than, or { ids = … }."""

    column: str | None = None
    """A column of users, taken as words; with values or other_than."""
    values: Values | None = None
    """Users whose column is one of these."""
    other_than: Values | None = None
    """Users whose column is none of these. Users without a value, and those who are not in the table of users, are among them."""
    ids: Location | None = None
    """A Parquet file or folder, path or URI, with a column user_id (by your name for it): the users on the list."""

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
    """The rule's own name, by which its drops are counted; no two rules share one."""
    audience: Audience | None = None
    """Whom the rule is for, see below. Absent: all users."""

    def lists(self) -> dict[str, str]:
        """Where the rule's lists of ids lie: `items`, `pairs` or `users` (the audience's) -> path or URI."""
        return {"users": self.audience.ids} if self.audience is not None and self.audience.ids is not None else {}


class BoughtRule(Rule):
    """Not what the user bought lately. For "never what was bought before" there is rank.allow_repeats = false."""

    kind: Literal["bought"]
    days: Positive
    """Within so many days before the night: 1 is the last 24 hours. At most window.history_days."""


class ColumnRule(Rule):
    """Only, or never, items where a column has one of the values."""

    kind: Literal["column"]
    column: str
    """A column of items, taken as words: strings, integers or truth values."""
    only: Values | None = None
    """Items with one of these values, and no others. An item without a value does not pass. Set this or never."""
    never: Values | None = None
    """Items with none of these values. An item without a value passes."""

    @model_validator(mode="after")
    def _one_form(self) -> "ColumnRule":
        _one_of(self, "only", "never")
        return self


class RangeRule(Rule):
    """Only items whose number lies within bounds; an item without a number does not pass."""

    kind: Literal["range"]
    column: str
    """A column of items that is a number, such as the price; compared as float32."""
    min: float | None = None
    """The least that passes. Absent: no bound; set min, max or both."""
    max: float | None = None
    """The greatest that passes. Absent: no bound."""

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
    only: Location | None = None
    """A Parquet file or folder, path or URI, with a column item_id (by your name for it): these items, and no others. Set this or
    never."""
    never: Location | None = None
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
    """The rule's own name, by which its drops are counted; no two rules share one."""
    kind: Literal["pairs"]
    never: Location
    """A Parquet file or folder, path or URI, with columns user_id and item_id (by your names for them)."""

    def lists(self) -> dict[str, str]:
        """As of every rule."""
        return {"pairs": self.never}


class CapRule(Section):
    """At most n items of one value in a list, counted in list order; items without a value are not counted."""

    name: Annotated[str, Field(min_length=1)]
    """The rule's own name, by which its drops are counted; no two rules share one."""
    kind: Literal["cap"]
    column: str
    """A column of items, taken as words, such as category, brand or seller."""
    at_most: Positive
    """How many items of each value one list may hold."""

    def lists(self) -> dict[str, str]:
        """None."""
        return {}


class ExposureRule(Section):
    """A floor, a ceiling or both for the items with some values, as a share of each list: of its first n places, for every n, at least
    at_least n, rounded down, and at most at_most n, rounded up. A place that the floor asks for goes to the best of these items."""

    name: Annotated[str, Field(min_length=1)]
    """The rule's own name, by which its drops are counted; no two rules share one."""
    kind: Literal["exposure"]
    column: str
    """A column of items, taken as words, such as brand, seller or a mark of what is new."""
    values: Values
    """Items with one of these values are meant, all together."""
    at_least: Share = 0.0
    """The floor. Where a user has no candidate that it asks for, the place goes to the best of the others."""
    at_most: Share = 1.0
    """The ceiling. Where a user has no candidate but those beyond it, the list ends."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ExposureRule":
        if self.at_least == 0 and self.at_most == 1:
            raise ValueError("set at_least, at_most or both, got none; mend it")
        if self.at_least > self.at_most:
            raise ValueError(f"at_least must be at most at_most, got {self.at_least:g} and {self.at_most:g}; mend it")
        return self

    def lists(self) -> dict[str, str]:
        """None."""
        return {}


AnyRule = BoughtRule | ColumnRule | RangeRule | ItemsRule | PairsRule | CapRule | ExposureRule
AVAILABLE, REPEATS, DISLIKES = RULES_BUILT_IN = ("available", "repeats", "dislikes")  # names of rules that are no [[rules]]
HISTORY_COLUMNS = ("user_id", "item", "ts", "quantity", "price", "look")  # of the histories beside what users tell
