"""The shop's rows looked at before any work: what would be rejected and why, which kinds there are, what each label window holds.

In threads of one process, without Ray, and nothing is written: all rows of a shop of up to ROWS, else row groups spread evenly over it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.cleaning import Rejected, build_catalog, clean, clean_users
from recsys.data.inputs import File, Input, read
from recsys.data.label_windows import label_windows
from recsys.data.shop import ShopInputs
from recsys.data.types import as_text, midnight, readable
from recsys.errors import DataError, Mistakes
from recsys.schema import DAY_US, ITEM_ID, LOOK, TS, USER_ID, WANTED, events_schema

Looked = TypeVar("Looked")

ROWS = 10_000_000  # of events that are looked at, at most about
THREADS = 4
EVENTS = [USER_ID, ITEM_ID, TS, LOOK]  # columns that are kept of them, some 30 bytes a row where ids are numbers


@dataclass(frozen=True)
class Wanting:
    """What a label window holds."""

    users: int
    """Who wanted something in it."""
    events: int
    """Of theirs that are wanted."""


@dataclass(frozen=True)
class ShopSample:
    """What was seen; figures of events are of the rows that were looked at, so of a part of them where `rows` says so."""

    rows: Mapping[str, int]
    """Rows that were looked at, by table."""
    rejected: Mapping[str, Mapping[str, int]]
    """Rows that would be rejected, by table and reason; of events not the duplicates, which grouping finds."""
    kinds: Mapping[str, int]
    """Rows of each kind, most first; empty where no kind is asked for."""
    wanted: int
    """Usable events of the kinds that are wanted."""
    with_history: int
    """Users who wanted something within window.history_days before the date."""
    users: int
    """All users: of events before the date, and of the table of users."""
    items: int
    """Items of the catalog, those that only events know among them."""
    available: int
    """Of them those that may be on a list."""
    bought: int
    """Items that somebody wanted within window.history_days before the date."""
    wanting: Mapping[date, Wanting]
    """By the first day of each label window that a night of the date, or the test of its challenger, learns from."""


def look_at(inputs: ShopInputs, mistakes: Mistakes, *, as_of: date) -> ShopSample:
    """The rows of the shop that a night of as_of would read, or some of them.

    Args:
        mistakes: where files that cannot be read go.
    """
    tables = {name: [schema.empty_table()] for name, schema in _schemas(inputs).items()}
    rows, kinds = Counter[str](), Counter[str]()
    rejected: dict[str, Rejected] = {"events": Counter(), "items": Counter(), "users": Counter()}
    for name, source, look in (("events", inputs.events, _events), ("users", inputs.users, _users)):
        for kept, count, faults, counts in _each(partial(look, inputs, midnight(as_of)), source, mistakes):
            tables[name].append(kept)
            rows[name] += count
            rejected[name].update(faults)
            kinds.update(counts)
    events = pa.concat_tables(tables["events"])
    known = pa.concat_tables(tables["users"]).column(USER_ID)
    if duplicates := len(known) - _distinct(known):
        rejected["users"]["duplicate_user_id"] = duplicates
    catalog, faults = mistakes.look(build_catalog, inputs, pc.unique(events.column(ITEM_ID))) or (None, Counter())
    rejected["items"].update(faults)
    if inputs.items is not None:
        rows["items"] = inputs.items.rows

    wanted = events.filter(pc.equal(events.column(LOOK), WANTED))
    day = wanted.column(TS).cast(pa.int64()).to_numpy() // DAY_US
    window, today = inputs.settings.window, midnight(as_of) // DAY_US
    recent = wanted.filter(pa.array(day >= today - window.history_days))
    tested = as_of - timedelta(days=window.label_days)
    starts = {start for until in (tested, as_of) for start in label_windows(window, as_of=until, first=inputs.first)}

    def wanting(start: date) -> Wanting:
        first = midnight(start) // DAY_US
        within = wanted.filter(pa.array((first <= day) & (day < first + window.label_days)))
        return Wanting(_distinct(within.column(USER_ID)), within.num_rows)

    return ShopSample(
        rows=rows,
        rejected={name: dict(faults.most_common()) for name, faults in rejected.items() if faults},
        kinds=dict(kinds.most_common()),
        wanted=wanted.num_rows,
        with_history=_distinct(recent.column(USER_ID)),
        users=_distinct(pa.chunked_array([*events.column(USER_ID).chunks, *known.chunks], inputs.user_id)),
        items=len(catalog) if catalog is not None else 0,
        available=int(catalog.available.sum()) if catalog is not None else 0,
        bought=_distinct(recent.column(ITEM_ID)),
        wanting={start: wanting(start) for start in sorted(starts)},
    )


def check_kinds(inputs: ShopInputs, sample: ShopSample) -> None:
    """Refuse kinds that no event is of.

    Raises:
        DataError: some are of none, or nothing at all is wanted.
    """
    where, shop = inputs.events.location, inputs.settings.shop
    seen = ", ".join(f"{name} {count:,}" for name, count in sample.kinds.items()) or "none"
    wrong = [
        f"{where}: shop.{key} must be kinds of events, got '{kind}', which no row that was looked at is of; seen {seen}. Mend it."
        for key, kinds in (("label_kinds", shop.label_kinds), ("look_kinds", shop.look_kinds))
        for kind in kinds or ()
        if kind not in sample.kinds
    ]
    if not wrong and sample.wanted == 0:
        wrong = [f"{where}: no usable event that is wanted. Check shop.label_kinds and the rejected rows."]
    if wrong:
        raise DataError(*wrong)


def _events(inputs: ShopInputs, end: int, file: File, group: int) -> tuple[pa.Table, int, Rejected, Counter[str]]:
    """A row group's usable events, its rows, rejected ones by reason, and rows of each kind where one is asked for."""
    settings, columns = inputs.settings, inputs.settings.shop.columns
    asked = settings.shop.label_kinds is not None
    optional = [name for name in settings.shop.may_read() if name in inputs.events.columns]
    names = dict.fromkeys([columns.user_id, columns.item_id, columns.ts, *optional])
    raw = read(inputs.events, file, [group], list(names))
    kept, faults = clean(
        raw, settings=settings, user_id=inputs.user_id, item_id=inputs.item_id, end=end, where=file.path, key=inputs.key
    )
    kinds: list[dict[str, Any]] = []
    if asked:
        with readable(file.path, columns.kind):
            kinds = pc.value_counts(as_text(raw.column(columns.kind))).to_pylist()
    counts = Counter({one["values"]: one["counts"] for one in kinds if one["values"] is not None})
    return kept.select(EVENTS), raw.num_rows, faults, counts


def _users(inputs: ShopInputs, end: int, file: File, group: int) -> tuple[pa.Table, int, Rejected, Counter[str]]:
    """As `_events`, of the table of users."""
    assert inputs.users is not None
    names = dict.fromkeys([inputs.settings.shop.columns.user_id, *(field.name for field in inputs.user_fields())])
    raw = read(inputs.users, file, [group], list(names))
    kept, faults = clean_users(raw, inputs, file.path)
    return kept.select([USER_ID]).cast(_schemas(inputs)["users"]), raw.num_rows, faults, Counter()


def _distinct(values: pa.ChunkedArray) -> int:
    return pc.count_distinct(values).as_py()


def _schemas(inputs: ShopInputs) -> dict[str, pa.Schema]:
    """Of what is kept of events and users."""
    events = events_schema(inputs.user_id, inputs.item_id)
    return {"events": pa.schema([events.field(name) for name in EVENTS]), "users": pa.schema([events.field(USER_ID)])}


def _each(look: Callable[[File, int], Looked], source: Input | None, mistakes: Mistakes) -> list[Looked]:
    """What the function makes of row groups of the input, where they can be read: all, or some spread evenly, of about ROWS rows."""
    if source is None:
        return []
    groups = [(file, number) for file in source.files for number in range(file.row_groups)]
    chosen = groups[:: max(1, math.ceil(source.rows / ROWS))]

    def try_to(one: tuple[File, int]) -> Looked | None:
        return mistakes.look(look, *one)

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for found in pool.map(try_to, chosen) if found is not None]
