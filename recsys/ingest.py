"""Events, items and users -> the catalog and one profile row per user, hashed into shards.

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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import profiles as profiles_module
from recsys import runtime
from recsys.catalog import Catalog, most_frequent, value_counts
from recsys.clean import Rejected, build_catalog, clean, clean_users
from recsys.config import Features
from recsys.errors import DataError
from recsys.inputs import File, Input, read
from recsys.profiles import Profiles, shard_of
from recsys.runtime import Task
from recsys.shop import Sources, midnight
from recsys.tables import ITEM_ID, PRICE, QUANTITY, TS, USER_ID, WANTED
from recsys.work import Receipt, Stage, write_atomically

PART_BYTES = 128 * 2**20  # of one file's row groups that a unit of the first pass reads


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
    """Rows read of events, items and users; items of the catalog, users and events kept."""
    rejected: Mapping[str, Mapping[str, int]]
    """Per input: reason -> rows."""

    def catalog(self) -> Catalog:
        """The catalog as of the end."""
        return read_catalog(self.folder)

    def profiles(self, shard: str) -> Profiles:
        """The users of one shard with all their events before the end."""
        file = pq.ParquetFile(self.folder / f"profiles-{shard}.parquet")
        return profiles_module.from_table(file.read(use_threads=False))


def read_catalog(folder: Path) -> Catalog:
    """The catalog that an ingest wrote into the folder."""
    return Catalog(pq.read_table(folder / "catalog.parquet", use_threads=False).combine_chunks())


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
            "rules": sorted({(of_items, name, number) for _, of_items, name, number in settings.rule_columns()}),
            "end": end.isoformat(),
            "shards": sources.shards,
        },
    )
    parts = {f"events-{i:05d}": unit for i, unit in enumerate(parts_of(sources.events, "events"))}
    if sources.users is not None:
        parts |= {f"users-{i:05d}": unit for i, unit in enumerate(parts_of(sources.users, "users"))}
    cleaned = runtime.run(stage, parts, _clean_task, sources, midnight(end), stage.path, label="ingest: clean", unit="parts")

    catalog = stage.receipt("catalog")
    if catalog is None:
        events = [name for name in parts if name.startswith("events")]
        seen = pa.concat_tables(read_shard(stage.path / f"{name}-items.arrow", 0) for name in events).column(ITEM_ID)
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
    return {name: most_frequent(found, limit=features.max_vocabulary) for name, found in counts.items()}


def parts_of(source: Input, table: str) -> Iterator[dict[str, Any]]:
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
            raw = read_part(sources.events, sources.events.files[unit["file"]], unit["row_groups"], events)
            kept, rejected = clean(raw, settings=sources.settings, user_id=sources.user_id, item_id=sources.item_id, end=end)
            items = pa.table({ITEM_ID: pc.unique(kept.column(ITEM_ID))})
        else:
            assert sources.users is not None
            features = [field.name for field in sources.user_fields()]
            raw = read_part(sources.users, sources.users.files[unit["file"]], unit["row_groups"], [columns.user_id, *features])
            kept, rejected = clean_users(raw, sources)
            items = None
        write_by_shard(folder / f"{name}.arrow", kept, shards=shards)
        if items is not None:
            write_atomically(folder / f"{name}-items.arrow", lambda file: _write_batches(file, [items]))
        return {"rows": raw.num_rows, "kept": kept.num_rows, "rejected": rejected}

    return task


def read_part(source: Input, file: File, row_groups: list[int], columns: list[str]) -> pa.Table:
    """The columns of some row groups of one file.

    Raises:
        DataError: the file cannot be read.
    """
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
        parts = {part: read_shard(folder / f"{part}.arrow", shard) for part in unit["parts"]}
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


def write_by_shard(path: Path, rows: pa.Table, *, shards: int) -> None:
    """An Arrow file with one record batch for each shard of users: the rows whose user_id hashes into it, in their order."""
    shard = shard_of(rows.column(USER_ID), shards)
    order = np.argsort(shard, kind="stable")
    ends = np.searchsorted(shard[order], np.arange(shards + 1))
    rows = rows.take(pa.array(order)).combine_chunks()
    write_atomically(path, lambda file: _write_batches(file, [rows.slice(a, b - a) for a, b in pairwise(ends)]))


def read_shard(path: Path, shard: int) -> pa.Table:
    """One shard's rows of what `write_by_shard` wrote: its record batch, memory mapped."""
    with pa.memory_map(str(path)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(shard)])
