"""What the stages after ingest share: the shop as read, its own candidates, the signals as of a date, the lists of its rules.

Each function is one stage, as in `pipeline`: its folder is named by the digest of what goes in, and a unit with a receipt is not done
again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from recsys import given, rules, runtime
from recsys import ingest as ingest_stage
from recsys import signals as signals_module
from recsys.catalog import item_vocabularies
from recsys.config import Settings
from recsys.errors import DataError
from recsys.given import Given
from recsys.ingest import Ingest
from recsys.profiles import mix, stable_hash
from recsys.runtime import Task, log
from recsys.shop import Sources, midnight
from recsys.signals import Signals
from recsys.tables import DAY_US, ITEM_ID, USER_ID
from recsys.work import Receipt, Stage, digest, save_arrays, write_atomically

SMALL_LISTS_ROWS = 1_000_000  # of ids that rules list: read in less time than an actor starts


@dataclass(frozen=True)
class Prepared:
    """What the stages after ingest share: the shop as read, and where signals and examples of its dates lie."""

    sources: Sources
    ingest: Ingest
    signals: Stage
    rules: Stage
    """The lists of ids that rules name, as `Rules` reads them."""
    examples: Stage
    given: Stage | None
    """The shop's own candidates by shard; None where the sources propose."""
    vocabularies: dict[str, tuple[str, ...]]

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.sources.settings


def prepare(sources: Sources, *, end: date) -> Prepared:
    """The shop's events before `end` as profiles, and the stages that start from them."""
    settings = sources.settings
    shop = ingest_stage.ingest(sources, end=end)
    vocabularies = item_vocabularies(shop.catalog(), settings.features) | shop.user_vocabularies
    signals = Stage(
        settings.run.work,
        "signals",
        {
            "ingest": shop.digest,
            "signals": settings.signals,
            "history_days": settings.window.history_days,
            "unseen": _most_unseen(settings),
            "seed": settings.run.seed,
        },
    )
    labelled = Stage(
        settings.run.work,
        "examples",
        {
            "signals": signals.digest,
            "vocabularies": digest(vocabularies),
            "candidates": settings.candidates,
            "examples": settings.examples,
            "label_days": settings.window.label_days,
            "allow_repeats": settings.rank.allow_repeats,
            "rules": rules.in_training(settings),
            "seed": settings.run.seed,
        },
    )
    lists = Stage(settings.run.work, "rules", {"ingest": shop.digest, "rules": settings.rules, "lists": sources.list_identity()})
    return Prepared(sources, shop, signals, lists, labelled, make_given(sources, shop), vocabularies)


# Given candidates ---------------------------------------------------------------------------------------------------------------


def make_given(sources: Sources, shop: Ingest) -> Stage | None:
    """The shop's own candidates hashed into the shards of its users; None where the settings name none.

    Two passes as in ingest: a part of the input is a unit, then a shard.
    """
    source = sources.given
    if source is None:
        return None
    stage = Stage(sources.settings.run.work, "given", {"given": source.identity(), "ingest": shop.digest})
    parts = {f"part-{number:05d}": unit for number, unit in enumerate(ingest_stage.parts_of(source, "given"))}
    read = runtime.run(stage, parts, _given_part_task, sources, stage.path, label="given: read", unit="parts")
    units = {f"users-{shard}": {"shard": shard, "parts": list(parts)} for shard in shop.shards}
    receipts = runtime.run(stage, units, _given_task, shop, stage.path, label="given: group", unit="shards")
    rejected = Counter[str]()
    for receipt in (*read.values(), *receipts.values()):
        rejected.update(receipt["rejected"])
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())) or "none"
    users = sum(receipt["users"] for receipt in receipts.values())
    log.info("given: %s rows read, rejected: %s", f"{sum(receipt['rows'] for receipt in read.values()):,}", reasons)
    if not users:
        raise DataError(f"{source.location}: no usable candidate; rejected: {reasons}. Check the ids in it, or remove rank.candidates.")
    if without := shop.rows["profiles"] - users:
        log.warning(
            "given: %s of %s users have no row in %s and get no list", f"{without:,}", f"{shop.rows['profiles']:,}", source.location
        )
    return stage


def _given_part_task(sources: Sources, folder: Path) -> Task:
    source, columns = sources.given, sources.settings.shop.columns
    assert source is not None
    schema = pa.schema([(USER_ID, sources.user_id), (ITEM_ID, sources.item_id)])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        raw = ingest_stage.read_part(source, source.files[unit["file"]], unit["row_groups"], [columns.user_id, columns.item_id])
        rows = pa.table([raw.column(columns.user_id), raw.column(columns.item_id)], names=schema.names).cast(schema)
        kept = rows.drop_null()
        ingest_stage.write_by_shard(folder / f"{name}.arrow", kept, shards=sources.shards)
        nulls = rows.num_rows - kept.num_rows
        return {"rows": rows.num_rows, "rejected": {"null_id": nulls} if nulls else {}}

    return task


def _given_task(shop: Ingest, folder: Path) -> Task:
    catalog = shop.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rows = pa.concat_tables(ingest_stage.read_shard(folder / f"{part}.arrow", int(unit["shard"])) for part in unit["parts"])
        users = shop.profiles(unit["shard"]).users.column(USER_ID).combine_chunks()
        found, rejected = given.rows_of(rows, users, catalog)
        save_arrays(folder / f"{name}.npz", user_row=found.user_row, item=found.item)
        return {"rows": len(found.item), "users": len(np.unique(found.user_row)), "rejected": rejected}

    return task


def given_of(prepared: Prepared, shard: str) -> Given | None:
    """The shard's given candidates; None where the sources propose."""
    return None if prepared.given is None else given.load(prepared.given.path / f"users-{shard}.npz")


# Signals ------------------------------------------------------------------------------------------------------------------------


def fit_signals(prepared: Prepared, units: Mapping[str, Mapping[str, Any]]) -> None:
    """The signals as of each unit's cutoff."""
    runtime.run(prepared.signals, units, _signals_task, prepared, prepared.signals.path, unit="cut-offs")


def _signals_task(prepared: Prepared, folder: Path) -> Task:
    settings, shop = prepared.settings, prepared.ingest
    catalog = shop.catalog()
    limit = hash_limit(shop, settings.signals.max_users)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        cutoff = midnight(date.fromisoformat(unit["cutoff"]))

        unseen = np.flatnonzero(catalog.available)
        hashes = stable_hash(catalog.item_id.to_numpy(zero_copy_only=False))[unseen]

        def shards() -> Any:
            for shard in shop.shards:
                profiles = shop.profiles(shard)
                yield profiles, stable_hash(profiles.users.column(USER_ID).to_numpy()) <= limit

        fitted = signals_module.fit(
            shards(),
            items=shop.rows["catalog"],
            start=cutoff - settings.window.history_days * DAY_US,
            cutoff=cutoff,
            settings=settings.signals,
            seed=settings.run.seed,
            extra=_given_items(prepared) if unit["given"] else None,
            groups=settings.features.user_categorical,
            unseen=unseen[np.argsort(mix(hashes ^ np.int64(cutoff).astype(np.uint64)), kind="stable")],
            most_unseen=_most_unseen(settings),
        )
        write_atomically(folder / f"{name}.npz", fitted.save)
        return {"items": len(fitted.items), "neighbours": len(fitted.neighbour_items)}

    return task


def hash_limit(shop: Ingest, users: int) -> np.uint64:
    """Stable hashes up to this are those of about so many of the shop's users."""
    share = min(1.0, users / max(shop.rows["profiles"], 1))
    return np.uint64(min(share * 2.0**64, 2.0**64 - 2048))  # the largest float64 below 2^64


def _most_unseen(settings: Settings) -> int:
    """Items nobody bought that are candidates all the same; without the source that proposes them, none."""
    limits = settings.candidates
    return limits.unseen if limits.content and settings.features.item_categorical else 0


def _given_items(prepared: Prepared) -> np.ndarray:
    """int32: the codes of all given items."""
    found = (given_of(prepared, shard) for shard in prepared.ingest.shards)
    return np.unique(np.concatenate([np.unique(one.item) for one in found if one is not None]))


def read_signals(prepared: Prepared, cutoff: date, *, lists: bool = False) -> Signals:
    """The signals as of the cutoff, made if they are not there.

    Args:
        lists: they are for lists, so given candidates must be among the active items.
    """
    name, unit = cutoff.isoformat(), {"cutoff": cutoff.isoformat(), "given": False}
    if lists and prepared.given is not None:
        name, unit = f"{name}-{prepared.given.digest}", unit | {"given": True}
    fit_signals(prepared, {name: unit})
    return signals_module.load(prepared.signals.path / f"{name}.npz")


# Rules --------------------------------------------------------------------------------------------------------------------------


def make_lists(prepared: Prepared) -> Path:
    """The folder of the rules' lists of ids; a list is a unit."""
    lists = prepared.sources.lists
    here = sum(source.rows for source in lists.values()) <= SMALL_LISTS_ROWS
    runtime.run(prepared.rules, {name: {} for name in lists}, _list_task, prepared, unit="lists", here=here)
    return prepared.rules.path


def _list_task(prepared: Prepared) -> Task:
    sources, catalog = prepared.sources, prepared.ingest.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        return rules.write_list(
            prepared.rules.path / f"{name}.npy",
            sources.lists[name],
            what=name.rpartition("-")[2],
            columns=sources.settings.shop.columns,
            types=(sources.user_id, sources.item_id),
            catalog=catalog,
        )

    return task
