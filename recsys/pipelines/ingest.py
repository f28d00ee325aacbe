"""Events, items and users -> the catalog and one history a user, hashed into shards; supplied candidates likewise.

Two passes, both Ray Data maps: the first cleans a part of an input and sorts it by shard, the second collects a shard from all
parts and groups it by user. One ingest serves every cut-off before its end.
"""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import Features
from recsys.data import contents
from recsys.data.catalog import most_frequent, value_counts
from recsys.data.cleaning import Rejected, build_catalog, clean, clean_users
from recsys.data.dataset import ShopDataset, parts_of, read_catalog, read_shard, write_batches, write_by_shard
from recsys.data.histories import drop_duplicates, group_events, to_table
from recsys.data.inputs import read
from recsys.data.shop import ShopInputs
from recsys.data.types import clean_ids, day_of, midnight, readable
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.hashing import stable_hash
from recsys.retrieval import supplied
from recsys.schema import ITEM_ID, PRICE, QUANTITY, TS, USER_ID, WANTED
from recsys.storage import save_arrays, write_atomically


def ingest(inputs: ShopInputs, *, end: date) -> ShopDataset:
    """The catalog and histories of everything before `end`, 00:00 UTC; finished parts of an earlier, killed run are kept.

    Raises:
        DataError: no usable event is left, or none of the wanted kinds.
    """
    settings = inputs.settings
    stage = Stage(
        settings.run.work,
        "ingest",
        {
            "inputs": inputs.identity(),
            "shop": settings.shop,
            "features": settings.features,
            "rules": sorted({(of_items, name, number) for _, of_items, name, number in settings.rule_columns()}),
            "end": end.isoformat(),
            "label_days": settings.window.label_days,
            "shards": inputs.shards,
        },
    )
    if stage.receipt("catalog") is None:  # a catalog of no event: whatever is wrong with ITEMS is said before events are read
        build_catalog(inputs, pa.array([], inputs.item_id))
    parts = {}
    if inputs.users is not None:  # first, as they are few
        parts |= {f"users-{i:05d}": unit for i, unit in enumerate(parts_of(inputs.users, "users"))}
    parts |= {f"events-{i:05d}": unit for i, unit in enumerate(parts_of(inputs.events, "events"))}
    cleaned = run_units(stage, parts, _clean_task, inputs, midnight(end), stage.path, label="ingest: clean", unit="parts")

    def make_catalog() -> Receipt:
        events = [name for name in parts if name.startswith("events")]
        seen = pa.concat_tables(read_shard(stage.path / f"{name}-items.arrow", 0) for name in events).column(ITEM_ID)
        built, rejected_items = build_catalog(inputs, pc.unique(seen))
        write_atomically(stage.path / "catalog.parquet", lambda file: pq.write_table(built.table, file))
        return {"items": len(built), "rejected": rejected_items}

    catalog = stage.once("catalog", make_catalog)

    shards = [f"{shard:05d}" for shard in range(inputs.shards)]
    units = {f"histories-{shard}": {"shard": shard, "parts": list(parts)} for shard in shards}
    grouped = run_units(stage, units, _group_task, inputs, stage.path, label="ingest: group", unit="shards")

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


def _clean_task(inputs: ShopInputs, end: int, folder: Path) -> Task:
    """First pass: one part read, cleaned, and written as one record batch per shard."""
    columns, shards = inputs.settings.shop.columns, inputs.shards
    events = [columns.user_id, columns.item_id, columns.ts]
    optional = [columns.kind] * (inputs.settings.shop.label_kinds is not None) + [columns.quantity, columns.price]
    events += [name for name in optional if name in inputs.events.columns and name not in events]

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if unit["table"] == "events":
            file = inputs.events.files[unit["file"]]
            raw = read(inputs.events, file, unit["row_groups"], events)
            ids = {"user_id": inputs.user_id, "item_id": inputs.item_id}
            kept, rejected = clean(raw, settings=inputs.settings, **ids, end=end, where=file.path)
            items = pa.table({ITEM_ID: pc.unique(kept.column(ITEM_ID))})
        else:
            assert inputs.users is not None
            features = [field.name for field in inputs.user_fields()]
            file = inputs.users.files[unit["file"]]
            raw = read(inputs.users, file, unit["row_groups"], [columns.user_id, *features])
            kept, rejected = clean_users(raw, inputs, file.path)
            items = None
        write_by_shard(folder / f"{name}.arrow", kept, shards=shards)
        if items is not None:
            write_atomically(folder / f"{name}-items.arrow", lambda file: write_batches(file, [items]))
        return {"rows": raw.num_rows, "kept": kept.num_rows, "rejected": rejected}

    return task


def _group_task(inputs: ShopInputs, folder: Path) -> Task:
    """Second pass: one shard collected from all parts, its items coded, its events grouped by user."""
    catalog = read_catalog(folder)
    schema = inputs.schema()
    features = inputs.settings.features
    item_hashes = stable_hash(catalog.item_id.to_numpy(zero_copy_only=False))
    label_days = inputs.settings.window.label_days

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
        grouped = group_events(users, row, columns)
        distinct = drop_duplicates(grouped)
        table = to_table(distinct, schema)
        write_atomically(folder / f"{name}.parquet", lambda file: pq.write_table(table, file, compression="zstd"))
        duplicates = len(grouped.item) - len(distinct.item)
        return {
            "users": len(distinct),
            "events": len(distinct.item),
            "wanted": int(distinct.wanted.sum()),
            "contents": contents.count(distinct, item_hashes, label_days=label_days),
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


# Supplied candidates ------------------------------------------------------------------------------------------------------------


def make_supplied(inputs: ShopInputs, shop: ShopDataset) -> Stage | None:
    """The shop's own candidates hashed into the shards of its users; None where the settings name none.

    Two passes as in ingest: a part of the input is a unit, then a shard.
    """
    source = inputs.supplied
    if source is None:
        return None
    stage = Stage(inputs.settings.run.work, "supplied", {"supplied": source.identity(), "ingest": shop.digest})
    parts = {f"part-{number:05d}": unit for number, unit in enumerate(parts_of(source, "supplied"))}
    run_units(stage, parts, _supplied_part_task, inputs, stage.path, label="supplied: read", unit="parts")
    units = {f"users-{shard}": {"shard": shard, "parts": list(parts)} for shard in shop.shards}
    receipts = run_units(stage, units, _supplied_task, shop, stage.path, label="supplied: group", unit="shards")
    told = supplied_rows(stage)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in told["rejected"].items()) or "none"
    users = sum(receipt["users"] for receipt in receipts.values())
    log.info("supplied: %s rows read, rejected: %s", f"{told['rows']:,}", reasons)
    if not users:
        raise DataError(f"{source.location}: no usable candidate; rejected: {reasons}. Check the ids in it, or remove rank.candidates.")
    if without := shop.rows["users kept"] - users:
        users_there = f"{shop.rows['users kept']:,}"
        log.warning("supplied: %s of %s users have no row in %s and get no list", f"{without:,}", users_there, source.location)
    return stage


def supplied_rows(stage: Stage) -> dict[str, Any]:
    """Of a finished stage of given candidates: `rows` read, and `rejected`, reason -> rows."""
    receipts = [stage.receipt(path.stem) or {} for path in sorted((stage.path / "receipts").glob("*.json"))]
    rejected = Counter[str]()
    for receipt in receipts:
        rejected.update(receipt["rejected"])
    return {"rows": sum(receipt["rows"] for receipt in receipts if "users" not in receipt), "rejected": dict(sorted(rejected.items()))}


def _supplied_part_task(inputs: ShopInputs, folder: Path) -> Task:
    source, columns = inputs.supplied, inputs.settings.shop.columns
    assert source is not None
    schema = pa.schema([(USER_ID, inputs.user_id), (ITEM_ID, inputs.item_id)])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        file = source.files[unit["file"]]
        raw = read(source, file, unit["row_groups"], [columns.user_id, columns.item_id])
        ids: list[pa.ChunkedArray] = []
        for column, dtype in zip((columns.user_id, columns.item_id), schema.types, strict=True):
            with readable(file.path, column):
                ids.append(clean_ids(raw.column(column), dtype))
        rows = pa.table(ids, schema=schema)
        kept = rows.drop_null()
        write_by_shard(folder / f"{name}.arrow", kept, shards=inputs.shards)
        nulls = rows.num_rows - kept.num_rows
        return {"rows": rows.num_rows, "rejected": {"null_id": nulls} if nulls else {}}

    return task


def _supplied_task(shop: ShopDataset, folder: Path) -> Task:
    catalog = shop.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rows = pa.concat_tables(read_shard(folder / f"{part}.arrow", int(unit["shard"])) for part in unit["parts"])
        users = shop.histories(unit["shard"]).users.column(USER_ID).combine_chunks()
        found, rejected = supplied.rows_of(rows, users, catalog)
        save_arrays(folder / f"{name}.npz", user_row=found.user_row, item=found.item)
        return {"rows": len(found.item), "users": len(np.unique(found.user_row)), "rejected": rejected}

    return task
