"""Events, items and users -> the catalog and one profile row per user, hashed into shards; bad rows counted by reason.

Two passes, both Ray Data maps: the first cleans a part of the events and sorts it by shard, the second collects a shard from all
parts and groups it by user. One ingest serves every cut-off before its end.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import profiles as profiles_module
from recsys import runtime, tables
from recsys.catalog import Catalog, most_frequent, value_counts
from recsys.config import Features, Settings
from recsys.errors import DataError
from recsys.inputs import File, Input, bounds, open_input, read
from recsys.profiles import Profiles
from recsys.runtime import Task
from recsys.tables import (
    AVAILABLE,
    ITEM_ID,
    NAME,
    PRICE,
    QUANTITY,
    TIMESTAMP,
    TS,
    USER_ID,
    WANTED,
)
from recsys.work import Receipt, Stage, write_atomically

PART_BYTES = 128 * 2**20  # of one file's row groups that a unit of the first pass reads
SHARD_EVENTS = 200_000  # of one shard, where the settings do not say: some 10 MB in memory
Rejected = Counter[str]


def midnight(day: date) -> int:
    """Microseconds since 1970 of the day's first moment, UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


@dataclass(frozen=True)
class Sources:
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

    @property
    def shards(self) -> int:
        """Parts that the users are hashed into."""
        return self.settings.run.shards or max(16, math.ceil(self.events.rows / SHARD_EVENTS))

    def user_fields(self) -> list[pa.Field]:
        """Fields of the users' features: strings, then float32 numbers."""
        features = self.settings.features
        return [pa.field(name, pa.string()) for name in features.user_categorical] + [
            pa.field(name, pa.float32()) for name in features.user_numeric
        ]

    def item_fields(self) -> list[pa.Field]:
        """Fields of the items' features: strings, then float32 numbers."""
        features = self.settings.features
        return [pa.field(name, pa.string()) for name in features.item_categorical] + [
            pa.field(name, pa.float32()) for name in features.item_numeric
        ]

    def schema(self) -> pa.Schema:
        """The profiles' schema."""
        return tables.profiles_schema(self.user_id, self.user_fields())

    def identity(self) -> list[str]:
        """Digests of the three inputs; empty where one is absent."""
        return [source.identity() if source else "" for source in (self.events, self.items, self.users)]


def open_shop(settings: Settings, *, as_of: date) -> Sources:
    """The shop's inputs, with every column that the settings name found and of a usable type.

    Only footers are read, and the times where footers lack statistics.

    Raises:
        DataError: an input is missing, empty or of wrong types; times without a zone and no shop.timezone; as_of outside the data.
    """
    shop, columns = settings.shop, settings.shop.columns
    events = open_input("events", shop.events, shop.storage_options)
    user_id = _id(events, columns.user_id, "user_id")
    item_id = _id(events, columns.item_id, "item_id")
    _check_times(events, settings)
    for setting in ("quantity", "price"):
        _number(events, getattr(columns, setting), setting=f"shop.columns.{setting}", required=False)
    if columns.kind in events.columns:
        _text(events, columns.kind, setting="shop.columns.kind")
    items = users = None
    if shop.items is not None:
        items = open_input("items", shop.items, shop.storage_options)
        _same_id(_id(items, columns.item_id, "item_id"), item_id, items, "item_id", events)
        if columns.available in items.columns and not pa.types.is_boolean(items.columns[columns.available]):
            raise DataError(
                f"{items.location}: column '{columns.available}' must be bool, got {items.columns[columns.available]}. "
                "Convert it, or set shop.columns.available."
            )
        for name in settings.features.item_categorical:
            _text(items, name, setting="features.item_categorical")
        for name in settings.features.item_numeric:
            _number(items, name, setting="features.item_numeric", required=True)
    if shop.users is not None:
        users = open_input("users", shop.users, shop.storage_options)
        _same_id(_id(users, columns.user_id, "user_id"), user_id, users, "user_id", events)
        for name in settings.features.user_categorical:
            _text(users, name, setting="features.user_categorical")
        for name in settings.features.user_numeric:
            _number(users, name, setting="features.user_numeric", required=True)
    first, last = _span(events, settings)
    sources = Sources(settings, events, items, users, user_id, item_id, first, last)
    check_as_of(sources, as_of)
    return sources


def _id(source: Input, column: str, setting: str) -> pa.DataType:
    dtype = source.require(column, setting=f"shop.columns.{setting}")
    return tables.id_type(dtype, where=source.location, column=column)


def _same_id(dtype: pa.DataType, expected: pa.DataType, source: Input, column: str, events: Input) -> None:
    if dtype != expected:
        raise DataError(
            f"{source.location}: column '{column}' must be {expected} as in {events.location}, got {dtype}. Convert one of them."
        )


def _number(source: Input, column: str, *, setting: str, required: bool) -> None:
    if column not in source.columns and not required:
        return
    dtype = source.require(column, setting=setting)
    if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype) or pa.types.is_boolean(dtype)):
        raise DataError(f"{source.location}: column '{column}' must be a number, got {dtype}. Convert it, or change {setting}.")


def _text(source: Input, column: str, *, setting: str) -> None:
    dtype = source.require(column, setting=setting)
    value = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    if not (
        pa.types.is_string(value)
        or pa.types.is_large_string(value)
        or pa.types.is_string_view(value)
        or pa.types.is_integer(value)
        or pa.types.is_boolean(value)
    ):
        raise DataError(
            f"{source.location}: column '{column}' must be a string, integer or bool to be a category, got {dtype}. "
            f"Convert it, or change {setting}."
        )


def _check_times(events: Input, settings: Settings) -> None:
    column = settings.shop.columns.ts
    dtype = events.require(column, setting="shop.columns.ts")
    if not (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)):
        raise DataError(f"{events.location}: column '{column}' must be timestamp, got {dtype}. Set shop.columns.ts or convert it.")
    if (pa.types.is_date(dtype) or dtype.tz is None) and settings.shop.timezone is None:
        raise DataError(
            f"{events.location}: column '{column}' has times without a zone ({dtype}). Set shop.timezone, for example to \"UTC\"."
        )
    if settings.shop.timezone is not None:
        try:
            pc.assume_timezone(pa.array([0], pa.timestamp("us")), settings.shop.timezone)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"shop.timezone: '{settings.shop.timezone}' is no IANA time zone. Use a name such as \"Europe/Berlin\"."
            ) from error


def _span(events: Input, settings: Settings) -> tuple[date, date]:
    """The days, UTC, of the first and the last event."""
    column = settings.shop.columns.ts
    ends = bounds(events, column)
    if ends[0] is None:
        raise DataError(f"{events.location}: column '{column}' holds only nulls. Nothing can be learned from it.")
    first, last = utc(pa.array(ends, events.columns[column]), settings.shop.timezone).to_pylist()
    return first.date(), last.date()


def check_as_of(sources: Sources, as_of: date) -> None:
    """Refuse a date without label windows behind it, or so late that the last window would be empty."""
    label_days = sources.settings.window.label_days
    span = f"the events span {sources.first} to {sources.last}"
    if (as_of - sources.last).days > label_days:
        raise DataError(
            f"--as-of {as_of}: more than window.label_days ({label_days}) after the last event; {span}. "
            "Use an earlier date, or look why newer events are missing."
        )
    if (as_of - sources.first).days < 3 * label_days:
        raise DataError(
            f"--as-of {as_of}: needs three label windows of {label_days} days before it (history, training, validation); {span}. "
            "Use a later date, or a smaller window.label_days."
        )


def utc(column: pa.Array | pa.ChunkedArray, timezone: str | None) -> pa.Array | pa.ChunkedArray:
    """The times as UTC microseconds; those without a zone are taken to be in `timezone`.

    A time that a clock change makes ambiguous is the earlier one; one that it skips is the moment after the gap.
    """
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if column.type.tz is None:
        assert timezone is not None
        column = pc.assume_timezone(column, timezone, ambiguous="earliest", nonexistent="latest")
    return column.cast(TIMESTAMP, safe=False)  # nanoseconds are cut off


def text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A categorical column as strings."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def shard_of(user_id: pa.Array | pa.ChunkedArray, shards: int) -> np.ndarray:
    """int32 (N): the shard of each user, by a hash that is the same on every machine and in every run."""
    values = user_id.to_numpy(zero_copy_only=False) if isinstance(user_id, pa.Array) else user_id.to_numpy()
    return (stable_hash(values) % np.uint64(shards)).astype(np.int32)


def stable_hash(ids: np.ndarray) -> np.ndarray:
    """uint64 (N): pandas' keyless hash of int64 or string ids."""
    if ids.dtype.kind in "iu":
        return pd.util.hash_array(ids.astype(np.int64))
    return pd.util.hash_array(ids.astype(object), categorize=True)


def clean(raw: pa.Table, *, settings: Settings, user_id: pa.DataType, item_id: pa.DataType, end: int) -> tuple[pa.Table, Rejected]:
    """The events of a raw table that can be used, and how many could not, by reason.

    Args:
        raw: rows as the shop wrote them, under the shop's column names.
        end: microseconds; events from then on are counted as `future_ts`.

    Returns:
        A table with `events_schema`; counts of null_user_id, null_item_id, null_ts, future_ts, negative_quantity (not finite ones too).
        A row with several faults is counted under the first. Absent or null quantity is 1; an absent, null, negative or not finite
        price is null.
    """
    shop, columns = settings.shop, settings.shop.columns
    rows = raw.num_rows
    users = _ids(raw.column(columns.user_id), user_id)
    items = _ids(raw.column(columns.item_id), item_id)
    ts = utc(raw.column(columns.ts), shop.timezone)
    ones = pa.chunked_array([pa.array(np.ones(rows, np.float32))])
    if columns.quantity in raw.column_names:
        quantity = pc.fill_null(raw.column(columns.quantity).cast(pa.float64()).cast(pa.float32()), 1.0)
    else:
        quantity = ones
    if columns.price in raw.column_names:
        price = raw.column(columns.price).cast(pa.float64()).cast(pa.float32())
        usable = pc.and_(pc.is_finite(price), pc.greater_equal(price, pa.scalar(0.0, pa.float32())))
        price = pc.if_else(usable, price, pa.scalar(None, pa.float32()))
    else:
        price = pa.chunked_array([pa.nulls(rows, pa.float32())])
    if columns.kind in raw.column_names and shop.label_kinds is not None:
        wanted = pc.fill_null(pc.is_in(text(raw.column(columns.kind)), value_set=pa.array(shop.label_kinds)), False)
    else:
        wanted = pa.chunked_array([pa.array(np.ones(rows, bool))])

    faults = {
        "null_user_id": pc.is_null(users),
        "null_item_id": pc.is_null(items),
        "null_ts": pc.is_null(ts),
        "future_ts": pc.greater_equal(ts.cast(pa.int64()), end),
        "negative_quantity": pc.invert(pc.and_(pc.is_finite(quantity), pc.greater_equal(quantity, pa.scalar(0.0, pa.float32())))),
    }
    good = np.ones(rows, bool)
    rejected: Rejected = Counter()
    for reason, fault in faults.items():
        bad = good & pc.fill_null(fault, False).to_numpy()
        if count := int(bad.sum()):
            rejected[reason] = count
        good &= ~bad
    table = pa.table([users, items, ts, quantity, price, wanted], names=[USER_ID, ITEM_ID, TS, QUANTITY, PRICE, WANTED])
    return table.filter(pa.array(good)).cast(tables.events_schema(user_id, item_id)), rejected


def _ids(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    """The ids in the kept type; an empty string is no id."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(dtype)
    if dtype == pa.string():
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    return column


def clean_users(raw: pa.Table, sources: Sources) -> tuple[pa.Table, Rejected]:
    """user_id and features of the users that can be used; counts of null_user_id."""
    columns = {USER_ID: _ids(raw.column(sources.settings.shop.columns.user_id), sources.user_id)}
    for field in sources.user_fields():
        columns[field.name] = _feature(raw.column(field.name), field)
    table = pa.table(columns)
    good = pc.is_valid(table.column(USER_ID))
    bad = raw.num_rows - pc.sum(good).as_py()
    return table.filter(good), Counter({"null_user_id": bad} if bad else {})


def _feature(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    return text(column) if field.type == pa.string() else column.cast(pa.float64()).cast(pa.float32())


def build_catalog(sources: Sources, seen: pa.Array) -> tuple[Catalog, Rejected]:
    """The catalog: items of ITEMS, and those that only events know, which are not available unless there is no ITEMS.

    Args:
        seen: the distinct ids of all events' items.

    Returns:
        Counts of null_item_id and duplicate_item_id; of duplicates the first row stands.
    """
    fields = sources.item_fields()
    rejected: Rejected = Counter()
    if sources.items is None:
        ids = seen.sort()
        return Catalog(pa.table({ITEM_ID: ids, AVAILABLE: pa.array(np.ones(len(ids), bool))})), rejected
    columns = sources.settings.shop.columns
    wanted = [columns.item_id, *(field.name for field in fields)]
    wanted += [name for name in (columns.available, columns.name) if name in sources.items.columns and name not in wanted]
    raw = pa.concat_tables(read(sources.items, file, None, wanted) for file in sources.items.files)
    table = pa.table({ITEM_ID: _ids(raw.column(columns.item_id), sources.item_id)})
    available = raw.column(columns.available) if columns.available in raw.column_names else pa.array(np.ones(raw.num_rows, bool))
    table = table.append_column(AVAILABLE, pc.fill_null(available, False))
    if columns.name in raw.column_names:
        table = table.append_column(NAME, text(raw.column(columns.name)))
    for field in fields:
        if field.name not in table.column_names:
            table = table.append_column(field, _feature(raw.column(field.name), field))
    known = table.filter(pc.is_valid(table.column(ITEM_ID)))
    if nulls := table.num_rows - known.num_rows:
        rejected["null_item_id"] = nulls
    _, first = np.unique(known.column(ITEM_ID).to_numpy(), return_index=True)
    if duplicates := known.num_rows - len(first):
        rejected["duplicate_item_id"] = duplicates
    known = known.take(pa.array(np.sort(first)))
    unknown = seen.filter(pc.invert(pc.is_in(seen, value_set=known.column(ITEM_ID).combine_chunks())))
    others = pa.table({ITEM_ID: unknown, AVAILABLE: pa.array(np.zeros(len(unknown), bool))})
    return Catalog(pa.concat_tables([known, others], promote_options="default").sort_by(ITEM_ID).combine_chunks()), rejected


@dataclass(frozen=True)
class Ingest:
    """A finished ingest: where its tables lie, and what was read and rejected."""

    digest: str
    folder: Path
    shards: tuple[str, ...]
    schema: pa.Schema
    item_id: pa.DataType
    first: date
    """Of the first event, UTC."""
    end: int
    """Microseconds; no event from then on is in it."""
    user_vocabularies: dict[str, tuple[str, ...]]
    """Values of each categorical user column, most frequent first."""
    rows: Mapping[str, int]
    """Rows read of events, items and users; users and events kept."""
    rejected: Mapping[str, Mapping[str, int]]
    """Per input: reason -> rows."""

    def catalog(self) -> Catalog:
        """The catalog as of the end."""
        return read_catalog(self.folder)

    def profiles(self, shard: str) -> Profiles:
        """The users of one shard with all their events before the end."""
        return read_profiles(self.folder, shard)


def read_catalog(folder: Path) -> Catalog:
    """The catalog that an ingest wrote into the folder."""
    return Catalog(pq.read_table(folder / "catalog.parquet", use_threads=False).combine_chunks())


def read_profiles(folder: Path, shard: str) -> Profiles:
    """The profiles of one shard that an ingest wrote into the folder."""
    return profiles_module.from_table(pq.ParquetFile(folder / f"profiles-{shard}.parquet").read(use_threads=False))


def ingest(sources: Sources, *, end: date) -> Ingest:
    """The catalog and profiles of everything before `end`, 00:00 UTC; finished parts of an earlier, killed run are kept.

    Raises:
        DataError: no usable event is left, or none of the wanted kinds.
    """
    settings = sources.settings
    stage = Stage(
        settings.run.work,
        "ingest",
        {
            "inputs": sources.identity(),
            "shop": settings.shop,
            "features": settings.features,
            "end": end.isoformat(),
            "shards": sources.shards,
        },
    )
    parts = {f"events-{i:05d}": unit for i, unit in enumerate(_units(sources.events, "events"))}
    if sources.users is not None:
        parts |= {f"users-{i:05d}": unit for i, unit in enumerate(_units(sources.users, "users"))}
    cleaned = runtime.run(stage, parts, _clean_task, sources, midnight(end), stage.path, label="ingest: clean", unit="parts")

    catalog = stage.receipt("catalog")
    if catalog is None:
        events = [name for name in parts if name.startswith("events")]
        seen = pa.concat_tables(_shard(stage.path / f"{name}-items.arrow", 0) for name in events).column(ITEM_ID)
        built, rejected_items = build_catalog(sources, pc.unique(seen))
        write_atomically(stage.path / "catalog.parquet", lambda file: pq.write_table(built.table, file))
        catalog = stage.finish("catalog", {"items": len(built), "rejected": rejected_items})

    shards = [f"{shard:05d}" for shard in range(sources.shards)]
    units = {f"profiles-{shard}": {"shard": shard, "parts": list(parts)} for shard in shards}
    grouped = runtime.run(stage, units, _group_task, sources, stage.path, label="ingest: group", unit="shards")

    rejected: dict[str, Rejected] = {"events": Counter(), "items": Counter(catalog["rejected"]), "users": Counter()}
    for name, receipt in cleaned.items():
        rejected[name.split("-")[0]].update(receipt["rejected"])
    for receipt in grouped.values():
        rejected["events"].update(receipt["rejected"])
        rejected["users"].update(receipt["rejected_users"])
    wanted = sum(receipt["wanted"] for receipt in grouped.values())
    if wanted == 0:
        kinds = f" of the kinds {', '.join(settings.shop.label_kinds)}" if settings.shop.label_kinds else ""
        raise DataError(
            f"{sources.events.location}: no usable event{kinds} before {end}; rejected: {dict(rejected['events'])}. "
            "Check shop.label_kinds and the rejected rows."
        )
    return Ingest(
        digest=stage.digest,
        folder=stage.path,
        shards=tuple(shards),
        schema=sources.schema(),
        item_id=sources.item_id,
        first=datetime.fromtimestamp(min(r["first_us"] for r in grouped.values() if r["events"]) / 1e6, UTC).date(),
        end=midnight(end),
        user_vocabularies=_user_vocabularies(grouped.values(), settings.features),
        rows={
            "events": sources.events.rows,
            "items": sources.items.rows if sources.items else 0,
            "users": sources.users.rows if sources.users else 0,
            "catalog": catalog["items"],
            "profiles": sum(receipt["users"] for receipt in grouped.values()),
            "profile events": sum(receipt["events"] for receipt in grouped.values()),
        },
        rejected={name: dict(sorted(reasons.items())) for name, reasons in rejected.items() if reasons},
    )


def _user_vocabularies(grouped: Iterable[Receipt], features: Features) -> dict[str, tuple[str, ...]]:
    """The vocabulary of every categorical user column, from the most frequent values of each shard."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in features.user_categorical}
    for receipt in grouped:
        for name, values in receipt["user_values"].items():
            counts[name].update(dict(values))
    return {name: most_frequent(list(found.items()), limit=features.max_vocabulary) for name, found in counts.items()}


def _units(source: Input, table: str) -> Iterator[dict[str, Any]]:
    """The input cut into parts of one file's consecutive row groups, each of bounded bytes."""
    for index, file in enumerate(source.files):
        step = max(1, file.row_groups // max(1, math.ceil(file.size / PART_BYTES)))
        for start in range(0, file.row_groups, step):
            yield {"table": table, "file": index, "row_groups": list(range(start, min(start + step, file.row_groups)))}


def _clean_task(sources: Sources, end: int, folder: Path) -> Task:
    """First pass: one part read, cleaned, and written as one record batch per shard."""
    columns, shards = sources.settings.shop.columns, sources.shards
    events = [columns.user_id, columns.item_id, columns.ts]
    events += [name for name in (columns.kind, columns.quantity, columns.price) if name in sources.events.columns]

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if unit["table"] == "events":
            raw = _read(sources.events, sources.events.files[unit["file"]], unit["row_groups"], events)
            kept, rejected = clean(raw, settings=sources.settings, user_id=sources.user_id, item_id=sources.item_id, end=end)
            items = pa.table({ITEM_ID: pc.unique(kept.column(ITEM_ID))})
        else:
            assert sources.users is not None
            features = [field.name for field in sources.user_fields()]
            raw = _read(sources.users, sources.users.files[unit["file"]], unit["row_groups"], [columns.user_id, *features])
            kept, rejected = clean_users(raw, sources)
            items = None
        shard = shard_of(kept.column(USER_ID), shards)
        order = np.argsort(shard, kind="stable")
        ends = np.searchsorted(shard[order], np.arange(shards + 1))
        kept = kept.take(pa.array(order)).combine_chunks()
        path = folder / f"{name}.arrow"
        write_atomically(path, lambda file: _write_batches(file, [kept.slice(a, b - a) for a, b in pairwise(ends)]))
        if items is not None:
            write_atomically(folder / f"{name}-items.arrow", lambda file: _write_batches(file, [items]))
        return {"rows": raw.num_rows, "kept": kept.num_rows, "rejected": rejected}

    return task


def _read(source: Input, file: File, row_groups: list[int], columns: list[str]) -> pa.Table:
    try:
        return read(source, file, row_groups, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path}: cannot be read: {error}. Write the file again.") from error


def _group_task(sources: Sources, folder: Path) -> Task:
    """Second pass: one shard collected from all parts, its items coded, its events grouped by user."""
    catalog = read_catalog(folder)
    schema = sources.schema()
    features = sources.settings.features

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        shard = int(unit["shard"])
        parts = {part: _shard(folder / f"{part}.arrow", shard) for part in unit["parts"]}
        events = pa.concat_tables(table for part, table in parts.items() if part.startswith("events"))
        known = [table for part, table in parts.items() if part.startswith("users")]
        users, duplicate_users = _users(events, known, schema)
        row = pc.index_in(events.column(USER_ID), value_set=users.column(USER_ID).combine_chunks()).to_numpy()
        columns = (
            catalog.codes_of(events.column(ITEM_ID)),
            events.column(TS).cast(pa.int64()).to_numpy(),
            events.column(QUANTITY).to_numpy(),
            pc.fill_null(events.column(PRICE), math.nan).to_numpy(),
            events.column(WANTED).to_numpy(),
        )
        grouped = profiles_module.group(users, row, columns)
        distinct = profiles_module.drop_duplicates(grouped)
        table = profiles_module.to_table(distinct, schema)
        write_atomically(folder / f"{name}.parquet", lambda file: pq.write_table(table, file, compression="zstd"))
        duplicates = len(grouped.item) - len(distinct.item)
        return {
            "users": len(distinct),
            "events": len(distinct.item),
            "wanted": int(distinct.wanted.sum()),
            "first_us": int(distinct.ts.min(initial=np.iinfo(np.int64).max)),
            "user_values": {
                name: [[word, count] for word, count in value_counts(distinct.users.column(name))[: features.max_vocabulary]]
                for name in features.user_categorical
            },
            "rejected": {"duplicate": duplicates} if duplicates else {},
            "rejected_users": {"duplicate_user_id": duplicate_users} if duplicate_users else {},
        }

    return task


def _users(events: pa.Table, known: list[pa.Table], schema: pa.Schema) -> tuple[pa.Table, int]:
    """The shard's users in user_id order: those of USERS with their features, those that only events know with nulls."""
    fields = [field for field in schema if not pa.types.is_list(field.type)]
    ids = pc.unique(events.column(USER_ID))
    if not known:
        return pa.table({USER_ID: ids.sort()}).cast(pa.schema([fields[0]])), 0
    table = pa.concat_tables(known)
    _, first = np.unique(table.column(USER_ID).to_numpy(), return_index=True)
    duplicates = table.num_rows - len(first)
    table = table.take(pa.array(np.sort(first)))
    others = ids.filter(pc.invert(pc.is_in(ids, value_set=table.column(USER_ID).combine_chunks())))
    table = pa.concat_tables([table, pa.table({USER_ID: others})], promote_options="default")
    return table.sort_by(USER_ID).cast(pa.schema(fields)).combine_chunks(), duplicates


def _write_batches(path: Path, batches: list[pa.Table]) -> None:
    """An Arrow file with one record batch for each table, empty ones too, so that a batch's number is the shard's."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for table in batches:
            whole = table.combine_chunks().to_batches()
            writer.write_batch(whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema))


def _shard(path: Path, shard: int) -> pa.Table:
    """One shard's rows of a part: its record batch, memory mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(shard)])
