"""What a stranger's tables mean: which column is which, by names, types and values; each guess says why, and whether it is sure.

Names are those that public data sets and shops' own schemas use. A guess never changes data: it is a line of a settings file.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.inputs import Input, read
from recsys.data.names import nearly
from recsys.data.types import UNITS, as_text, family, is_number, is_word, times
from recsys.errors import DataError

ROWS = 200_000  # of a table that are looked at, about, for its columns
SHARED = 0.5  # of a column's values are in a table of items or users: then it says which of them an event is of
KINDS = 50  # values of a column that says what sort of event a row is, at most
NAMES = {
    "user_id": "user customer client visitor household shopper member account reviewer buyer profile person subscriber uid session",
    "item_id": "item product article sku asin movie book isbn stock track song artist business game recipe good offer content material "
    "listing title video",
    "ts": "ts timestamp time datetime date day when created event transaction order purchase invoice t_dat review sort",
    "kind": "kind event event_type event_name type action behavior behaviour interaction activity",
    "quantity": "quantity qty units count pieces amount",
    "price": "price unit_price sales_price item_price cost",
    "value": "rating stars overall score grade",
    "available": "available in_stock is_available is_active active enabled on_sale",
    "name": "name title product_name prod_name item_name description desc label",
}
SUFFIXES = ("id", "code", "no", "nr", "number", "key", "time", "timestamp", "date", "at")
BOUGHT = re.compile(r"purchas|bought|^buy|^order|transaction|^sale|sold|checkout|conver|paid", re.IGNORECASE)
RATINGS = (3, 11)  # a rating has so many values at least and at most
LIKED = 0.8  # of the best rating, from which on an item was liked: 4 of 5
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y%m%d")
PATTERNS = [f"{day}{clock}" for day in DAYS for clock in (" %H:%M:%S", "T%H:%M:%S", " %H:%M", "", "T%H:%M:%S%z", " %H:%M:%S%z")]
EPOCHS = {"s": 1e8, "ms": 1e11, "us": 1e14, "ns": 1e17}  # the least number of each unit that is a time since 1973


@dataclass(frozen=True)
class Guess:
    """One line of a settings file."""

    section: str
    key: str
    value: Any
    why: str
    others: tuple[Any, ...] = ()
    """What it may be, this value among them: then it is not sure, and a person is asked."""
    free: bool = False
    """It may be something else too."""


Choose = Callable[[Guess], Any]
"""Asked of a guess that is not sure; gives the value."""


@dataclass(frozen=True)
class Looked:
    """A table's columns and some of its rows."""

    source: Input
    rows: pa.Table

    @property
    def columns(self) -> list[str]:
        """Names, in the table's order."""
        return list(self.source.columns)

    @property
    def seen(self) -> str:
        """The columns with their types, for messages."""
        return ", ".join(f"{name} ({self.rows.column(name).type})" for name in self.rows.column_names)

    def text(self, column: str) -> pa.ChunkedArray:
        """The values as words, without nulls."""
        values = self.rows.column(column)
        return pc.drop_null(as_text(values) if is_word(values.type) else values.cast(pa.string()))

    def distinct(self, column: str) -> int:
        """How many values there are, without null."""
        return pc.count_distinct(self.rows.column(column), mode="only_valid").as_py()


def look(source: Input) -> Looked:
    """The table with some of its rows, of row groups spread evenly over it.

    Raises:
        DataError: a file cannot be read.
    """
    usable = [name for name in source.columns if not _faulty(source, name)]
    groups = [(file, number) for file in source.files for number in range(file.row_groups)]
    wanted = max(1, round(len(groups) * ROWS / max(source.rows, 1)))
    chosen = groups[:: max(1, len(groups) // wanted)]
    parts = [read(source, file, [number], usable).slice(0, ROWS) for file, number in chosen]
    return Looked(source, pa.concat_tables(parts, promote_options="permissive"))


def _faulty(source: Input, name: str) -> bool:
    try:
        return source.columns[name] is None
    except DataError:
        return True


def plain(name: str) -> str:
    """A name without case and signs: `CustomerID` and `customer_id` are one."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def rank(name: str, role: str) -> int | None:
    """How well a column's name fits a role: 0 best; None not at all."""
    for place, word in enumerate(NAMES[role].split()):
        if plain(name) in {plain(word), *(plain(word) + suffix for suffix in SUFFIXES)}:
            return place
    for place, word in enumerate(NAMES[role].split()):  # such as anon_user_id
        parts = re.findall(r"[a-z]+|[A-Z][a-z]*|[A-Z]+", name)
        if len(word) > 3 and word in [part.casefold() for part in parts]:
            return 100 + place
    return None


def best(columns: Iterable[str], role: str) -> list[str]:
    """The columns whose names fit the role, best first."""
    ranked = [(place, name) for name in columns if (place := rank(name, role)) is not None]
    return [name for _, name in sorted(ranked, key=lambda pair: pair[0])]


def ask(guess: Guess, choose: Choose) -> Guess:
    """The guess, or what was chosen in its place."""
    return replace(guess, value=choose(guess)) if guess.others else guess


# The columns of events -----------------------------------------------------------------------------------------------------------


def guess_ids(events: Looked, keys: Mapping[str, str], tables: Mapping[str, Looked], choose: Choose) -> dict[str, Guess]:
    """user_id and item_id of events: by their names, else by whose values stand in the tables of users and items.

    Args:
        keys: `user_id` and `item_id` -> the column of the table of users or items that says which one a row is of.
        tables: the same -> the table.

    Raises:
        DataError: nothing can be an id of users, or of items.
    """
    found: dict[str, Guess] = {}
    free = [name for name in events.columns if _may_be_id(events, name)]
    for role, other in (("item_id", "user_id"), ("user_id", "item_id")):
        left = [name for name in free if name not in {guess.value for guess in found.values()}]
        named = [name for name in best(left, role) if name not in best(left, other)[:1]] or best(left, role)
        shared = _shared(events, left, tables[role], keys[role]) if role in keys else None
        if shared is not None:
            share, column = shared
            guess = Guess(
                "shop.columns", role, column, f"{share:.0%} of its values are in column '{keys[role]}' of the table of {role[:4]}s"
            )
        elif named:
            guess = Guess("shop.columns", role, named[0], "its name says so", _others(named))
        else:
            guess = _by_values(events, left, role)
        found[role] = ask(guess, choose)
    return found


def _by_values(events: Looked, left: Sequence[str], role: str) -> Guess:
    repeated = sorted((name for name in left if 1 < events.distinct(name) < events.rows.num_rows), key=events.distinct)
    if not repeated:
        raise DataError(
            f"{events.source.location}: a column must say which {role[:4]} an event is of, whole numbers or text that come again; seen "
            f"{events.seen}. Add one."
        )
    at = -1 if role == "user_id" else 0
    return Guess("shop.columns", role, repeated[at], "no name says which it is; its values come again", _others(repeated, every=True))


def _others(names: Sequence[str], *, every: bool = False) -> tuple[str, ...]:
    """All of the names where more than one is likely, else none."""
    return tuple(names) if len(names) > 1 or every else ()


def _may_be_id(table: Looked, name: str) -> bool:
    if name not in table.rows.column_names:
        return False
    dtype = table.rows.column(name).type
    if family(dtype) == "float" and table.source.form == "csv":  # ids with gaps, which pandas writes as 17850.0
        values = pc.drop_null(table.rows.column(name))
        return pc.all(pc.equal(pc.floor(values), values)).as_py() is True
    return family(dtype) in ("integer", "string")


def _shared(events: Looked, left: Sequence[str], table: Looked, key: str) -> tuple[float, str] | None:
    """The column of events that shares most values with a table's key, if it does at all, and how many."""
    known = pc.unique(table.text(key))
    found: list[tuple[bool, int, float, str]] = []
    for name in left:
        values = pc.unique(events.text(name))
        share = pc.mean(pc.is_in(values, value_set=known)).as_py() or 0.0
        if share > SHARED:
            found.append((plain(name) == plain(key), len(values), share, name))
    _, _, share, name = max(found, default=(False, 0, 0.0, ""))
    return (share, name) if name else None


def guess_key(table: Looked, role: str, choose: Choose) -> str:
    """The column that says which user or item a row of the table is of.

    Raises:
        DataError: no column can.
    """
    ids = [name for name in table.columns if _may_be_id(table, name)]
    rows = max(table.rows.num_rows, 1)
    own = [name for name in ids if table.distinct(name) / rows > 0.95]
    named = best(own, role) or best(ids, role) or own
    if not named:
        raise DataError(
            f"{table.source.location}: a column must say which {role[:4]} a row is of, one row each; seen "
            f"{table.seen}. Add one, or leave the table out."
        )
    sure = len(named) == 1 or rank(named[0], role) in range(10)
    guess = Guess("", f"{role} of {table.source.location}", named[0], "each row has its own", () if sure else tuple(named))
    return ask(guess, choose).value


def guess_times(events: Looked, taken: Iterable[str], choose: Choose) -> list[Guess]:
    """ts, and how its values are written where they are no timestamps, and their zone.

    Raises:
        DataError: no column holds times.
    """
    left = [name for name in events.rows.column_names if name not in set(taken)]
    stamps = [name for name in left if _is_time(events.rows.column(name).type)]
    forms = {name: form for name in best(left, "ts") if name not in stamps and (form := _forms(events, name))}
    if not stamps and not forms:
        raise DataError(
            f"{events.source.location}: a column must hold the times of events: timestamps, dates, seconds since 1970 or text of a "
            f"pattern; seen {events.seen}. Add one, or name it and set "
            "shop.ts_format by hand."
        )
    named = best(stamps, "ts") or stamps or list(forms)
    guess = ask(Guess("shop.columns", "ts", named[0], "it holds times", _others(named)), choose)
    guesses, form = [guess], ""
    if guess.value in forms:
        likely = forms[guess.value]
        why = f"times are whole numbers, of {likely[0]} since 1970" if likely[0] in UNITS else "so the text of times is written"
        guesses.append(ask(Guess("shop", "ts_format", likely[0], why, _others(likely)), choose))
        form = guesses[-1].value
    dtype = events.rows.column(guess.value).type
    has_zone = form in UNITS or "%z" in form or (pa.types.is_timestamp(dtype) and dtype.tz is not None)
    if not has_zone:
        why = "times carry no zone, so this is a guess: write the shop's own, such as Europe/Berlin"
        guesses.append(ask(Guess("shop", "timezone", "UTC", why, ("UTC",), free=True), choose))
    return guesses


def _is_time(dtype: pa.DataType) -> bool:
    return pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)


def _forms(events: Looked, name: str) -> list[str]:
    """How the times of a column may be written, likeliest first; none where they are no times."""
    column = events.rows.column(name)
    few = pc.drop_null(column).slice(0, 1_000)
    if not len(few):
        return []
    if family(column.type) == "string":
        return [form for form in PATTERNS if times(few, form).null_count <= len(few) / 100]
    if family(column.type) != "integer":
        return []
    low = pc.min(few).as_py()
    if low >= 19_000_101 and pc.max(few).as_py() <= 21_001_231 and events.source.form == "csv":
        return ["%Y%m%d"]
    return [unit for unit, least in reversed(EPOCHS.items()) if low >= least][:1]


def guess_kind(events: Looked, taken: Iterable[str], choose: Choose) -> list[Guess]:
    """kind and label_kinds, where a column says what sort of event a row is."""
    left = [name for name in events.rows.column_names if name not in set(taken)]
    for name in best(left, "kind"):
        if family(events.rows.column(name).type) != "string" or not 2 <= events.distinct(name) <= KINDS:
            continue
        counts = {one["values"]: one["counts"] for one in pc.value_counts(events.text(name)).to_pylist()}
        kinds = sorted(counts, key=lambda kind: counts[kind])
        bought = [kind for kind in kinds if BOUGHT.search(kind)]
        told = ", ".join(f"{kind} {counts[kind] / len(events.rows):.0%}" for kind in reversed(kinds))
        why = f"what lists are to foretell; kinds are {told}"
        wanted = Guess("shop", "label_kinds", bought or kinds[:1], why, () if bought else tuple([kind] for kind in kinds))
        label = ask(wanted, choose)
        looks = Guess(
            "shop", "look_kinds", [kind for kind in reversed(kinds) if kind not in label.value], "the other kinds tell of taste"
        )
        return [
            Guess("shop.columns", "kind", name, f"it says what sort of event a row is: {told}"),
            label,
            *([looks] if looks.value else []),
        ]
    return []


def guess_numbers(events: Looked, taken: Iterable[str]) -> list[Guess]:
    """quantity and price; and columns that look like one of ours and are none, to be ignored."""
    used = set(taken)
    guesses: list[Guess] = []
    for role in ("quantity", "price"):
        for name in best([name for name in events.rows.column_names if name not in used], role):
            dtype = events.rows.column(name).type
            if (is_number(dtype) or pa.types.is_decimal(dtype)) and not pa.types.is_null(dtype):
                guesses.append(Guess("shop.columns", role, name, "its name says so"))
                used.add(name)
                break
    return guesses


def guess_rating(events: Looked, taken: Iterable[str], choose: Choose) -> list[Guess]:
    """value and least_value, where a column says how much the user liked the item."""
    for name in best([name for name in events.rows.column_names if name not in set(taken)], "value"):
        if not is_number(events.rows.column(name).type) or not RATINGS[0] <= events.distinct(name) <= RATINGS[1]:
            continue
        ratings = sorted(float(rating) for rating in pc.unique(events.rows.column(name)).drop_null().to_pylist())
        least = next(rating for rating in ratings if rating >= LIKED * ratings[-1])
        why = f"what was rated lower was not liked; ratings are {ratings[0]:g} to {ratings[-1]:g}"
        liked = ask(Guess("shop", "least_value", least, why, tuple(ratings)), choose)
        return [Guess("shop.columns", "value", name, "its name and its few numbers are a rating's"), liked]
    return []


def guess_ignored(table: Looked, optional: Iterable[str], taken: Iterable[str]) -> list[str]:
    """Columns that would be refused as they look like an optional one of ours that is not set."""
    used = set(taken)
    return [name for name in table.columns if name not in used and any(nearly(name, ours) for ours in optional)]
