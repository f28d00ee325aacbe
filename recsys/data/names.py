"""Names of columns that are nearly the same: what a person mistyped, or wrote in capitals."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

from recsys.config import Settings
from recsys.data.inputs import Input
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
    named |= {*features.item_categorical, *features.item_numeric}
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
