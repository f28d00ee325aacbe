"""Columns by their names: those that are nearly the same, mistyped or in capitals; and the types that those we read must have."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

import pyarrow as pa

from recsys.config import Settings
from recsys.data.inputs import Input
from recsys.data.types import UNITS
from recsys.errors import DataError


def nearly(one: str, other: str) -> bool:
    """Whether two names differ by case and at most one character."""
    operations = SequenceMatcher(None, one.casefold(), other.casefold()).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in operations if kind != "equal") <= 1


def meant(name: str, seen: Iterable[str]) -> str:
    """What to say of a name that is not there: the one of those seen that it resembles, else all of them."""
    columns = list(seen)
    close = get_close_matches(name, columns, n=1)
    return f"did you mean '{close[0]}'?" if close else f"seen {', '.join(columns)}."


def check_optional(settings: Settings, events: Input, items: Input | None) -> None:
    """Refuse optional columns that the settings state and a table lacks, and columns that look like one that is absent.

    Raises:
        DataError: a sentence for each of them.
    """
    columns, shop = settings.shop.columns, settings.shop
    features = settings.features
    named = {*columns.model_dump().values(), *shop.ignore, *(column for _, of_items, column, _ in settings.rule_columns() if of_items)}
    named |= {*features.item_categorical, *features.item_numeric, *features.item_vectors}
    wrong: list[str] = []
    for source, optional in ((events, ("kind", "quantity", "price")), (items, ("available", "name"))):
        for ours in optional if source is not None else ():
            theirs = getattr(columns, ours)
            if source is None or theirs in source.columns:
                continue
            if ours in columns.model_fields_set:
                todo = f"is missing, {meant(theirs, source.columns)} Mend it, or remove shop.columns.{ours}."
                wrong.append(f"{source.location}: column '{theirs}' of shop.columns.{ours} {todo}")
                continue
            wrong += [
                f"{source.location}: column '{seen}' looks like {ours}, which is not there. "
                f'Set shop.columns.{ours} = "{seen}", or name it in shop.ignore.'
                for seen in source.columns
                if seen not in named and nearly(seen, ours)
            ]
    if wrong:
        raise DataError(*wrong)


def text_types(settings: Settings) -> dict[str, pa.DataType]:
    """Types of columns of CSV, which would else be what their values look like: ids and words are text as it is written."""
    shop, features, columns = settings.shop, settings.features, settings.shop.columns
    words = [columns.user_id, columns.item_id, columns.kind, columns.name, *features.item_categorical, *features.user_categorical]
    words += [*settings.fairness.user_groups, *settings.fairness.item_groups]
    numbers = [*features.daily_numeric, columns.value, columns.quantity, columns.price, *features.item_numeric, *features.user_numeric]
    for _, _, column, is_number in settings.rule_columns():
        (numbers if is_number else words).append(column)
    types: dict[str, pa.DataType] = dict.fromkeys(words, pa.string()) | dict.fromkeys(numbers, pa.float64())
    if shop.ts_format is not None:
        types[columns.ts] = pa.int64() if shop.ts_format in UNITS else pa.string()
    return types | {columns.available: pa.bool_()}
