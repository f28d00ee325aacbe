"""The shop's inputs, opened and held against the settings: whatever is wrong with them is said here, before work starts."""

import dataclasses
import math
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.bounds import bounds
from recsys.data.daily import check_daily
from recsys.data.inputs import Input, open_input
from recsys.data.kept import Kept
from recsys.data.keyed import Key, key_of
from recsys.data.label_windows import FIRST, label_windows, learns_from
from recsys.data.names import check_optional, text_types
from recsys.data.types import UNITS, arrow_zone, day_of, family, id_type, is_word, midnight, times, utc
from recsys.data.types import is_number as may_be_number
from recsys.data.vectors import check_vectors
from recsys.errors import DataError, Mistakes
from recsys.schema import DAY_US, histories_schema
from recsys.storage import check_folders

SHARD_EVENTS = 200_000  # of one shard, where the settings do not say: some 10 MB in memory


@dataclass(frozen=True)
class ShopInputs:
    """The shop's inputs, opened and checked."""

    settings: Settings
    events: Input
    items: Input | None
    users: Input | None
    user_id: pa.DataType
    item_id: pa.DataType
    first: date
    """Of the first event, UTC."""
    last: date
    """Of the last event, UTC."""
    lists: Mapping[str, Input]
    """The rules' lists of ids by `list_name`."""
    supplied: Input | None
    """The shop's own candidates."""
    key: Key | None = None
    """That user ids are kept under; then `user_id` is string, whatever the shop's files hold."""
    daily: Input | None = None
    raw_user_id: pa.DataType = dataclasses.field(default_factory=pa.string)
    """Type of user ids in the shop's files."""

    @property
    def shards(self) -> int:
        """Parts that the users are hashed into; where the settings do not say a power of two, as what a night makes of each serves the
        next one while their number stays."""
        return self.settings.run.shards or max(16, 1 << (math.ceil(self.events.rows / SHARD_EVENTS) - 1).bit_length())

    def user_fields(self) -> list[pa.Field]:
        """Fields of the users' features, strings, then float32 numbers; and of what rules and audits read beside them."""
        features = self.settings.features
        return self._fields(features.user_categorical, features.user_numeric, of_items=False)

    def item_fields(self) -> list[pa.Field]:
        """Fields of the items' features, strings, then float32 numbers; and of what rules and audits read beside them."""
        features = self.settings.features
        return self._fields(features.item_categorical, features.item_numeric, of_items=True)

    def _fields(self, words: Sequence[str], numbers: Sequence[str], *, of_items: bool) -> list[pa.Field]:
        types = {name: pa.string() for name in words} | {name: pa.float32() for name in numbers}
        for _, items, column, is_number in self.settings.rule_columns():
            if items == of_items:
                types.setdefault(column, pa.float32() if is_number else pa.string())
        fairness = self.settings.fairness
        for column in fairness.item_groups if of_items else fairness.user_groups:
            types.setdefault(column, pa.string())
        return [pa.field(name, dtype) for name, dtype in types.items()]

    def schema(self) -> pa.Schema:
        """The histories' schema."""
        return histories_schema(self.user_id, self.user_fields())

    def identity(self) -> list[str]:
        """Digests of the three inputs; empty where one is absent."""
        return [source.identity() if source else "" for source in (self.events, self.items, self.users)]

    def list_identity(self) -> dict[str, str]:
        """Digest of each of the rules' lists; no part of `identity`, as lists may change from night to night."""
        return {name: source.identity() for name, source in self.lists.items()}


def open_shop(settings: Settings, *, as_of: date) -> ShopInputs:
    """The shop's inputs, with every column that the settings name found and of a usable type.

    Only footers are read, and of files that are new the text, and the times where footers lack statistics. What can be looked at
    after a mistake is looked at: the error has a sentence for each.

    Raises:
        DataError: an input is missing, empty or of wrong types; text is no UTF-8; times without a zone and no shop.timezone; as_of
            outside the data.
        ConfigError: run.work cannot be written to.
    """
    mistakes = Mistakes()
    mistakes.look(check_folders, run_work=settings.run.work)
    key = mistakes.look(key_of, settings)
    shop = settings.shop
    types = text_types(settings)

    def look(setting: str, location: str, **options: Any) -> Input | None:
        return mistakes.look(open_input, setting, location, shop.storage_options, form=None, types=types, **options)

    events = look("shop.events", shop.events, version=shop.versions.get("events"))
    items = shop.items and look("shop.items", shop.items, version=shop.versions.get("items"))
    users = shop.users and look("shop.users", shop.users, version=shop.versions.get("users"))
    supplied = settings.rank.candidates and look("rank.candidates", settings.rank.candidates)
    daily = shop.daily and look("shop.daily", shop.daily)
    lists: dict[str, Input] = {}
    for number, rule in enumerate(settings.rules):
        for what, location in rule.lists().items():
            if listed := look(f"the rule '{rule.name}'", location, may_be_empty=True):
                lists[list_name(number, what)] = listed
    if events is None:
        mistakes.end()
    assert events is not None
    items, users, supplied, daily = items or None, users or None, supplied or None, daily or None

    ids = _check_ids(mistakes, settings, events, items, users, supplied, daily, lists)
    _check_columns(mistakes, settings, events, items, users)
    if daily is not None:
        mistakes.look(check_daily, daily, settings, _number)
    mistakes.end()
    user_id, item_id = ids
    assert user_id is not None
    assert item_id is not None
    kept = Kept(settings.run.work)
    first, last = _span(events, settings, kept, as_of=as_of)
    kept_as = user_id if key is None else pa.string()
    inputs = ShopInputs(settings, events, items, users, kept_as, item_id, first, last, lists, supplied, key, daily, user_id)
    mistakes.look(check_as_of, inputs, as_of)
    mistakes.look(_check_text, inputs, kept)
    mistakes.end()
    kept.save()
    return inputs


def _check_ids(
    mistakes: Mistakes,
    settings: Settings,
    events: Input,
    items: Input | None,
    users: Input | None,
    supplied: Input | None,
    daily: Input | None,
    lists: Mapping[str, Input],
) -> tuple[pa.DataType | None, pa.DataType | None]:
    """The types of users' and items' ids, which all inputs must share; None where events have none."""
    columns = settings.shop.columns
    user_id = mistakes.look(_id, events, columns.user_id, "user_id")
    item_id = mistakes.look(_id, events, columns.item_id, "item_id")
    both = ("user_id", "item_id")
    of_list = {"users": both[:1], "items": both[1:], "pairs": both}
    for source, names in (
        (items, both[1:]),
        (users, both[:1]),
        (supplied, both),
        (daily, both[1:]),
        *((listed, of_list[name.partition("-")[2]]) for name, listed in lists.items()),
    ):
        for name in names if source is not None else ():
            expected = user_id if name == "user_id" else item_id
            if expected is not None and source is not None:
                mistakes.look(_same_id, source, getattr(columns, name), name, expected, events)
    return user_id, item_id


def _check_columns(mistakes: Mistakes, settings: Settings, events: Input, items: Input | None, users: Input | None) -> None:
    """Gather what is wrong with the columns that the settings name, beside ids."""
    shop, features, columns = settings.shop, settings.features, settings.shop.columns
    mistakes.look(_check_times, events, settings)
    for setting in ("quantity", "price"):
        mistakes.look(_number, events, getattr(columns, setting), setting=f"shop.columns.{setting}", required=False)
    if shop.least_value is not None:
        mistakes.look(_number, events, columns.value, setting="shop.columns.value", required=True)
    if items is not None:
        mistakes.look(_available, items, columns.available)
        if columns.name in items.columns:
            mistakes.look(_text, items, columns.name, setting="shop.columns.name")
    for source, of_items in ((items, True), (users, False)):
        table = "item" if of_items else "user"
        if source is None:
            continue
        for name in features.item_categorical if of_items else features.user_categorical:
            mistakes.look(_text, source, name, setting=f"features.{table}_categorical")
        for name in features.item_numeric if of_items else features.user_numeric:
            mistakes.look(_number, source, name, setting=f"features.{table}_numeric", required=True)
        for name in features.item_vectors if of_items else ():
            mistakes.look(check_vectors, source, name)
        fairness = settings.fairness
        for name in fairness.item_groups if of_items else fairness.user_groups:
            mistakes.look(_text, source, name, setting=f"fairness.{table}_groups")
    mistakes.look(check_optional, settings, events, items)
    if shop.label_kinds is not None:  # without, no kind is asked for
        mistakes.look(_text, events, columns.kind, setting="shop.columns.kind")
    for rule, of_items, column, is_number in settings.rule_columns():
        source = items if of_items else users
        if source is None:
            continue  # it could not be opened: the settings refuse a rule on a table that they do not name
        if is_number:
            mistakes.look(_number, source, column, setting=f"the rule '{rule.name}'", required=True)
        else:
            mistakes.look(_text, source, column, setting=f"the rule '{rule.name}'")


def _check_text(inputs: ShopInputs, kept: Kept) -> None:
    """Refuse ids, words and names that are no UTF-8."""
    settings, columns = inputs.settings, inputs.settings.shop.columns
    both = [columns.user_id, columns.item_id]
    ids = {"users": [columns.user_id], "items": [columns.item_id], "pairs": both}
    kinds = [columns.kind] if settings.shop.label_kinds is not None else []
    for source, names in (
        (inputs.events, [*both, *kinds]),
        (inputs.items, [columns.item_id, columns.name, *(field.name for field in inputs.item_fields())]),
        (inputs.users, [columns.user_id, *(field.name for field in inputs.user_fields())]),
        (inputs.supplied, both),
        (inputs.daily, both[1:]),
        *((listed, ids[name.partition("-")[2]]) for name, listed in inputs.lists.items()),
    ):
        if source is not None:
            kept.check_utf8(source, names)


def list_name(number: int, what: str) -> str:
    """The name of one list: of the rule at that place in the settings, from 0, and `items`, `pairs` or `users`."""
    return f"{number:03d}-{what}"


def _id(source: Input, column: str, setting: str) -> pa.DataType:
    dtype = source.require(column, setting=f"shop.columns.{setting}")
    return id_type(dtype, where=source.location, column=column)


def _same_id(source: Input, column: str, setting: str, expected: pa.DataType, events: Input) -> None:
    dtype = _id(source, column, setting)
    if dtype != expected:
        raise DataError(
            f"{source.location}: column '{column}' must be {expected} as in {events.location}, got {dtype}. Convert one of them."
        )


def _available(items: Input, column: str) -> None:
    if column in items.columns and not pa.types.is_boolean(items.columns[column]):
        raise DataError(
            f"{items.location}: column '{column}' must be bool, got {items.columns[column]}. Convert it, or set shop.columns.available."
        )


def _number(source: Input, column: str, *, setting: str, required: bool) -> None:
    if column not in source.columns and not required:
        return
    dtype = source.require(column, setting=setting)
    if not (pa.types.is_decimal(dtype) or (may_be_number(dtype) and not pa.types.is_dictionary(dtype))):
        raise DataError(f"{source.location}: column '{column}' must be a number, got {dtype}. Convert it, or change {setting}.")


def _text(source: Input, column: str, *, setting: str) -> None:
    dtype = source.require(column, setting=setting)
    if not is_word(dtype):
        raise DataError(
            f"{source.location}: column '{column}' must be a string, integer or bool to be a category, got {dtype}. "
            f"Convert it, or change {setting}."
        )


def _check_times(events: Input, settings: Settings) -> None:
    column, form, zone = settings.shop.columns.ts, settings.shop.ts_format, settings.shop.timezone
    dtype = events.require(column, setting="shop.columns.ts")
    where = f"{events.location}: column '{column}'"
    if form is None and not (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)):
        said = ", and shop.ts_format to how it is written" if family(dtype) in ("integer", "string") else " or convert it"
        raise DataError(f"{where} must be timestamp, got {dtype}. Set shop.columns.ts{said}.")
    if form is not None and family(dtype) != ("integer" if form in UNITS else "string"):
        expected = "whole numbers" if form in UNITS else "text"
        raise DataError(f"{where} must be {expected}, as shop.ts_format is '{form}', got {dtype}. Mend or remove shop.ts_format.")
    has_zone = "%z" in form or form in UNITS if form is not None else pa.types.is_timestamp(dtype) and dtype.tz is not None
    if not has_zone and zone is None:
        raise DataError(f'{where} has times without a zone ({dtype}). Set shop.timezone, for example to "UTC".')
    if settings.shop.timezone is not None:
        try:
            pc.assume_timezone(pa.array([0], pa.timestamp("us")), arrow_zone(settings.shop.timezone))
        except pa.ArrowInvalid as error:
            if settings.shop.timezone in zoneinfo.available_timezones():  # Python has its own data
                raise DataError(
                    f"shop.timezone: '{settings.shop.timezone}' needs the system's time zone data, in /usr/share/zoneinfo, which is "
                    "missing here. Install it, as by apt-get install tzdata, on every node; or write the times in UTC."
                ) from error
            raise DataError(
                f"shop.timezone: '{settings.shop.timezone}' is no IANA time zone. Use a name such as \"Europe/Berlin\"."
            ) from error


def _span(events: Input, settings: Settings, kept: Kept, *, as_of: date) -> tuple[date, date]:
    """The days, UTC, of the first and the last event; one dated more than a year after as_of is a mistake and says nothing."""
    column = settings.shop.columns.ts
    zone, form = settings.shop.timezone, settings.shop.ts_format
    ends = bounds(
        events,
        column,
        usable=lambda values: utc(times(values, form), zone).cast(pa.int64()),
        below=midnight(as_of) + 366 * DAY_US,
        what=f"{column} in {zone or 'its own zone'}{f', {form}' if form else ''}",
        kept=kept,
    )
    if ends[0] is None:
        raise DataError(
            f"{events.location}: column '{column}' holds no time before {as_of} or in the year after. Nothing can be learned from it."
        )
    return day_of(ends[0]), day_of(ends[1])


def check_as_of(inputs: ShopInputs, as_of: date, *, test_days: int = 0) -> None:
    """Refuse a date without two label windows behind it, or so late that the last window would be empty.

    Args:
        test_days: so many days before the date are for a test and not learned from.
    """
    label_days = inputs.settings.window.label_days
    span = f"the events span {inputs.first} to {inputs.last}"
    if (as_of - inputs.last).days > label_days:
        raise DataError(
            f"--as-of {as_of}: more than window.label_days ({label_days}) after the last event; {span}. "
            "Use an earlier date, or look why newer events are missing."
        )
    window, tested = inputs.settings.window, timedelta(days=test_days)
    if len(label_windows(window, as_of=as_of - tested, first=inputs.first)) < 2:
        also = f", and {test_days} days for the test of what was learned" if test_days else ""
        raise DataError(
            f"--as-of {as_of}: needs two label windows of {label_days} days before it, which begin every {label_days} days from "
            f"{FIRST} on, as much history before them{also}; {span}. "
            f"{learns_from(window, first=inputs.first, test_days=test_days)}"
        )
