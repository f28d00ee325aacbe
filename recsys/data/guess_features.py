"""Which columns of a stranger's tables of items and users describe them, as words or numbers, and which only name a row."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys.config.rules import HISTORY_COLUMNS
from recsys.data.guess import Guess, Looked, best, plain
from recsys.data.types import family, is_list, is_number, is_word

FEW = 50  # values that a whole number may take to be a code rather than an amount
OWN = 5  # a word column has its own value for more than one row in so many: it names the row, and tells nothing of it
TEXT = 60  # characters of a word, on average, from which on it is prose
VOCABULARY = 10_000


@dataclass(frozen=True)
class Described:
    """What the columns of a table of items or users are."""

    categorical: dict[str, str]
    """Column -> why."""
    numeric: dict[str, str]
    left_out: dict[str, str]
    vectors: dict[str, str]
    """Of items alone."""


def describe(table: Looked, taken: Iterable[str], *, of_users: bool, elsewhere: Iterable[str] = ()) -> Described:
    """Which columns are words, which numbers, and which describe nothing.

    Args:
        taken: columns that have another meaning.
        elsewhere: columns of the other table, whose names may not come twice.
    """
    found = Described({}, {}, {}, {})
    ours = {"available", "name", "item_id"} if not of_users else {"user_id", *HISTORY_COLUMNS}
    for name in table.columns:
        if name in set(taken):
            continue
        if name not in table.rows.column_names:
            found.left_out[name] = "files differ in its type"
        elif name in ours:
            found.left_out[name] = "its name is ours for something else: rename it to use it"
        elif name in set(elsewhere):
            found.left_out[name] = "the other table has a column of this name: rename one to use it"
        elif not of_users and (size := _vector_size(table.rows.column(name))):
            found.vectors[name] = f"{size:,} numbers of every item"
        else:
            _describe_one(table, name, found)
    return found


def _vector_size(values: pa.ChunkedArray) -> int:
    """How many numbers each of the lists holds; 0 where they are no vectors."""
    if not is_list(values.type) or not pa.types.is_floating(values.type.value_type):
        return 0
    lengths = pc.unique(pc.list_value_length(values).drop_null()).to_pylist()
    return lengths[0] if len(lengths) == 1 and lengths[0] > 1 else 0


def _describe_one(table: Looked, name: str, found: Described) -> None:
    values = table.rows.column(name)
    dtype = values.type
    rows, count = len(values) - values.null_count, table.distinct(name)
    if is_list(dtype) or not (is_word(dtype) or is_number(dtype) or pa.types.is_decimal(dtype)):
        found.left_out[name] = f"{dtype} is neither a word nor a number"
    elif count < 2:
        found.left_out[name] = "it has one value at most"
    elif pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        found.numeric[name] = f"a number of {count:,} values"
    elif pa.types.is_integer(dtype) and count > FEW and not _is_code(name):
        found.numeric[name] = f"a whole number of {count:,} values"
    elif count > max(FEW, rows / OWN) or count > VOCABULARY:
        found.left_out[name] = f"{count:,} values in {rows:,} rows: it names a row rather than describing it"
    elif family(dtype) == "string" and pc.mean(pc.utf8_length(table.text(name))).as_py() > TEXT:
        found.left_out[name] = "it is prose"
    else:
        found.categorical[name] = f"{count:,} values"


def _is_code(name: str) -> bool:
    return bool(re.search(r"(id|code|no|nr|class|type|group|category)$", plain(name)))


def guess_item_columns(items: Looked, taken: Iterable[str]) -> list[Guess]:
    """name and available, where the table of items has them."""
    left = [name for name in items.rows.column_names if name not in set(taken)]
    guesses = []
    for name in best(left, "name"):
        if family(items.rows.column(name).type) == "string" and items.distinct(name) > items.rows.num_rows / OWN:
            guesses.append(Guess("shop.columns", "name", name, "what a person calls the item"))
            break
    for name in best(left, "available"):
        if pa.types.is_boolean(items.rows.column(name).type) or (items.source.form == "csv" and _is_zero_or_one(items, name)):
            guesses.append(Guess("shop.columns", "available", name, "items where it is false are on no list"))
            break
    return guesses


def _is_zero_or_one(table: Looked, name: str) -> bool:
    dtype = table.rows.column(name).type
    return pa.types.is_integer(dtype) and set(pc.unique(pc.drop_null(table.rows.column(name))).to_pylist()) <= {0, 1}
