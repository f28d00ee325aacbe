"""Events, items and users -> the catalog and one history a user, hashed into shards; supplied candidates likewise.

Two passes, both Ray Data maps: the first cleans a part of an input and sorts it by shard, the second collects a shard from all
parts and groups it by user. One ingest serves every cut-off before its end.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import Features
from recsys.data import contents
from recsys.data.base import Base, buyers, make_base, no_base, of_users
from recsys.data.catalog import most_frequent, read_catalog, value_counts, write_catalog
from recsys.data.cleaning import Rejected, build_catalog, clean, clean_users
from recsys.data.dataset import ShopDataset, parts_of, read_shard, write_batches, write_by_shard
from recsys.data.histories import distinct_events, group_events, merge, to_table
from recsys.data.inputs import Input, read
from recsys.data.shop import ShopInputs
from recsys.data.types import day_of, midnight
from recsys.engine.stage import Receipt, Stage, receipt_in
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.hashing import stable_hash
from recsys.schema import ITEM_ID, LOOK, PRICE, QUANTITY, TS, USER_ID, events_schema
from recsys.storage import code_digest, digest, write_atomically

ADDED = 8  # parts are added to an ingest of so many times their rows


def ingest(inputs: ShopInputs, *, end: date) -> ShopDataset:
    """The catalog and histories of everything before `end`, 00:00 UTC; finished parts of an earlier run are kept.

    Parts of files that did not change are not cleaned again. Where an ingest of some of tonight's parts is there, and the others are
    few, only those are added to it.

    Raises:
        DataError: no usable event is left, or none of the wanted kinds.
    """
    settings = inputs.settings
    shape = {
        "shop": settings.shop,
        "features": settings.features,
        "rules": sorted({(of_items, name, number) for _, of_items, name, number in settings.rule_columns()}),
        "ids": [str(inputs.user_id), str(inputs.item_id)],
        "label_days": settings.window.label_days,
        "shards": inputs.shards,
        "key": inputs.key and inputs.key.fingerprint,
        "audited": settings.fairness,
    }
    stage = Stage(settings.run.work, "ingest", {"inputs": inputs.identity(), **shape, "end": end.isoformat()})
    stage.once("begin", lambda: {"begun": time.time()})
    if stage.receipt("catalog") is None:  # a catalog of no event: whatever is wrong with ITEMS is said before events are read
        build_catalog(inputs, pa.array([], inputs.item_id))
    cleaning = Stage(settings.run.work, "clean", shape, lasting=True)
    parts = {}
    if inputs.users is not None:  # first, as they are few
        parts |= _parts(cleaning, inputs.users, "users", end)
    parts |= _parts(cleaning, inputs.events, "events", end)
    cleaned = run_units(cleaning, parts, _clean_task, inputs, midnight(end), cleaning.path, label="ingest: clean", unit="parts")
    events = [name for name in parts if name.startswith("events")]

    def make_catalog() -> Receipt:
        seen = pa.concat_tables(read_shard(cleaning.path / f"{name}.items.arrow", 0) for name in events).column(ITEM_ID)
        built, rejected_items = build_catalog(inputs, pc.unique(seen))
        write_catalog(built, stage.path)
        return {"items": len(built), "rejected": rejected_items}

    catalog = stage.once("catalog", make_catalog)

    shards = [f"{shard:05d}" for shard in range(inputs.shards)]
    rows, same = {name: cleaned[name]["kept"] for name in events}, digest([shape, code_digest()])
    told = stage.once("base", lambda: _base(stage, rows, shards, same))
    added = [name for name in parts if name not in told["on"]]
    units = {f"histories-{shard}": {"shard": shard, "parts": added} for shard in shards}
    folders = cleaning.path, stage.path
    grouped = run_units(stage, units, _group_task, inputs, folders, label="ingest: group", unit="shards")

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
            f"{inputs.events.location}: no usable event{kinds} before {end}; rejected: {dict(rejected['events'])}. "
            "Check shop.label_kinds and the rejected rows."
        )
    return ShopDataset(
        digest=stage.digest,
        folder=stage.path,
        cleaned=cleaning.path,
        shards=tuple(shards),
        schema=inputs.schema(),
        item_id=inputs.item_id,
        first=day_of(min(r["first_us"] for r in grouped.values() if r["events"])),
        end=midnight(end),
        contents=contents.total((r["contents"] for r in grouped.values()), label_days=settings.window.label_days),
        user_vocabularies=_user_vocabularies(grouped.values(), settings.features),
        rows={
            "events": inputs.events.rows,
            "items": inputs.items.rows if inputs.items else 0,
            "users": inputs.users.rows if inputs.users else 0,
            "catalog": catalog["items"],
            "users kept": sum(receipt["users"] for receipt in grouped.values()),
            "events kept": sum(receipt["events"] for receipt in grouped.values()),
            "events wanted": wanted,
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


def _parts(cleaning: Stage, source: Input, table: str, end: date) -> dict[str, dict[str, Any]]:
    """The parts of an input as units, each named by what it holds; one with events from `end` on is another for another end."""
    units = {}
    for unit in parts_of(source, table):
        file = source.files[unit["file"]]
        partition = {column: str(value) for column, value in file.partition.items()}
        name = f"{table}-{digest([file.name, file.size, file.modified_ns, file.rows, partition, unit['row_groups']])}"
        known = cleaning.receipt(name)
        if known is not None and known["end"] != midnight(end) and (known["future"] or known["last_us"] >= midnight(end)):
            name = f"{name}-{end}"
        units[name] = unit
    return units


def _base(stage: Stage, events: Mapping[str, int], shards: Sequence[str], shape: str) -> Receipt:
    """What tonight's histories begin with, in the folder `base`: the ingest of most of tonight's parts, where the others are few.

    Args:
        events: usable rows of each of tonight's parts of events.
        shape: digest of all that two ingests must have in common.

    Returns:
        `on`: the parts that it holds, none where there is none.
    """
    found: list[tuple[int, Path, list[str]]] = []
    for folder in sorted(stage.path.parent.glob(f"{stage.name}-*")):
        told = receipt_in(folder, "base")
        if told is None or told["on"] or told["shape"] != shape or not events.keys() >= set(told["parts"]):
            continue
        if all(receipt_in(folder, f"histories-{shard}") is not None for shard in shards):
            found.append((sum(events[name] for name in told["parts"]), folder, told["parts"]))
    told = {"on": list[str](), "parts": list(events), "shape": shape}
    rows, folder, parts = max(found, default=(0, stage.path, told["on"]))
    if (sum(events.values()) - rows) * ADDED > rows:
        no_base(stage.path)
        return told
    make_base(stage.path, folder, shards, {shard: receipt_in(folder, f"histories-{shard}") or {} for shard in shards})
    return {**told, "on": parts}


def _clean_task(inputs: ShopInputs, end: int, folder: Path) -> Task:
    """First pass: one part read, cleaned, and written as one record batch per shard."""
    columns, shards = inputs.settings.shop.columns, inputs.shards
    events = [columns.user_id, columns.item_id, columns.ts]
    events += [name for name in inputs.settings.shop.may_read() if name in inputs.events.columns and name not in events]

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if unit["table"] == "events":
            file = inputs.events.files[unit["file"]]
            raw = read(inputs.events, file, unit["row_groups"], events)
            ids = {"user_id": inputs.user_id, "item_id": inputs.item_id}
            kept, rejected = clean(raw, settings=inputs.settings, **ids, end=end, where=file.path, key=inputs.key)
            items = pa.table({ITEM_ID: pc.unique(kept.column(ITEM_ID))})
        else:
            assert inputs.users is not None
            features = [field.name for field in inputs.user_fields()]
            file = inputs.users.files[unit["file"]]
            raw = read(inputs.users, file, unit["row_groups"], [columns.user_id, *features])
            kept, rejected = clean_users(raw, inputs, file.path)
            items = None
        write_by_shard(folder / f"{name}.arrow", kept, shards=shards)
        last = 0
        if items is not None:
            write_atomically(folder / f"{name}.items.arrow", lambda file: write_batches(file, [items]))
            last = int(kept.column(TS).cast(pa.int64()).to_numpy().max(initial=0))
        told = {"end": end, "future": rejected["future_ts"], "last_us": last}
        return {"rows": raw.num_rows, "kept": kept.num_rows, "rejected": rejected, **told}

    return task


def _group_task(inputs: ShopInputs, folders: tuple[Path, Path]) -> Task:
    """Second pass: one shard collected from the parts that are added, its items coded, its events grouped by user, beside its base."""
    cleaned, folder = folders
    catalog = read_catalog(folder)
    schema = inputs.schema()
    features = inputs.settings.features
    item_hashes = stable_hash(catalog.item_id.to_numpy(zero_copy_only=False))
    label_days = inputs.settings.window.label_days
    base = Base.open(folder)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        shard = int(unit["shard"])
        parts = {part: read_shard(cleaned / f"{part}.arrow", shard) for part in unit["parts"]}
        nothing = events_schema(inputs.user_id, inputs.item_id).empty_table()
        events = pa.concat_tables([nothing, *(table for part, table in parts.items() if part.startswith("events"))])
        known = [table for part, table in parts.items() if part.startswith("users")]
        ids = events.column(USER_ID)
        before = base.histories(unit["shard"]) if base is not None else None
        if before is not None:
            ids = pa.chunked_array([*ids.chunks, buyers(before)])
        users, duplicate_users = _users(ids, known, schema)
        row = pc.index_in(events.column(USER_ID), value_set=users.column(USER_ID).combine_chunks()).to_numpy()
        columns = (
            catalog.codes_of(events.column(ITEM_ID)),
            events.column(TS).cast(pa.int64()).to_numpy(),
            events.column(QUANTITY).to_numpy(),
            pc.fill_null(events.column(PRICE), math.nan).to_numpy(),
            events.column(LOOK).to_numpy(),
        )
        grouped = group_events(users, row, columns)
        if base is not None and before is not None:
            both, new = merge(of_users(before, users), grouped)
            kept = distinct_events(both)
            distinct, stored = both.keep(kept), both.keep(kept & new)
            told = base.receipts[unit["shard"]]
            duplicates = told["rejected"].get("duplicate", 0) + int((~kept).sum())
            hashes = contents.hash_days(stored, item_hashes, before=told["contents"]["hashes"])
        else:
            kept = distinct_events(grouped)
            distinct = stored = grouped.keep(kept)
            duplicates = int((~kept).sum())
            hashes = contents.hash_days(distinct, item_hashes)
        table = to_table(stored, schema)
        write_atomically(folder / f"{name}.parquet", lambda file: pq.write_table(table, file, compression="zstd"))
        return {
            "users": len(distinct),
            "events": len(distinct.item),
            "wanted": int(distinct.wanted.sum()),
            "contents": {"hashes": hashes, **contents.count(distinct, label_days=label_days)},
            "first_us": int(distinct.ts.min(initial=np.iinfo(np.int64).max)),
            "user_values": {
                name: [[word, count] for word, count in value_counts(distinct.users.column(name))[: features.max_vocabulary]]
                for name in features.user_categorical
            },
            "rejected": {"duplicate": duplicates} if duplicates else {},
            "rejected_users": {"duplicate_user_id": duplicate_users} if duplicate_users else {},
        }

    return task


def _users(of_events: pa.ChunkedArray, known: list[pa.Table], schema: pa.Schema) -> tuple[pa.Table, int]:
    """The shard's users in user_id order: those of USERS with their features, those that only events know with nulls."""
    fields = [field for field in schema if not pa.types.is_list(field.type)]
    ids = pc.unique(of_events)
    if not known:
        return pa.table({USER_ID: ids.sort()}).cast(pa.schema([fields[0]])), 0
    table = pa.concat_tables(known)
    _, first = np.unique(table.column(USER_ID).to_numpy(), return_index=True)
    duplicates = table.num_rows - len(first)
    table = table.take(pa.array(np.sort(first)))
    others = ids.filter(pc.invert(pc.is_in(ids, value_set=table.column(USER_ID).combine_chunks())))
    table = pa.concat_tables([table, pa.table({USER_ID: others})], promote_options="default")
    return table.sort_by(USER_ID).cast(pa.schema(fields)).combine_chunks(), duplicates
