"""The pairs door's night on one page: shards of feature rows -> scores -> the best k of each user -> one commit.

A shard keeps the best k rows of each of its users. Users that no other shard can have are final and staged at once; the others are
left for a merge, bucket by bucket of users: on Ray Data too, or in the driver where only users on borders are left.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys import bundle as bundles
from recsys import feed, inputs, joined, lists, pairs, runtime
from recsys.bundle import Bundle
from recsys.config import PairsSettings
from recsys.encode import encoder
from recsys.errors import BundleError, DataError, PublishError
from recsys.halves import Halves
from recsys.night import Night, Published, device_of, publish_parts, score_units
from recsys.pairs import Batch, Rows
from recsys.rows import Reader, Rejected, no_ids
from recsys.runtime import Task, log
from recsys.score import Device, Scorer, probabilities
from recsys.spec import FeatureSpec
from recsys.tables import ITEM_ID, RAW, SCORE, USER_ID
from recsys.work import Receipt, Stage, digest, write_atomically

SMALL_TABLE_ROWS = 1_000_000  # of users or items: encoded in less time than an actor starts
MERGE_ROWS = 2_000_000  # rows that a merge has at most, where every row of the input is among its shard's best


@dataclass(frozen=True)
class Scored:
    """A published night of pairs and what was counted on the way."""

    published: Published
    rows: int
    """Read from the input."""
    rejected: Mapping[str, int]
    repeated: int
    """Rows passed over because their user has the item in another row of the shard, with a higher output."""
    clustered: bool
    """The footers proved that users come in order."""


def score(
    settings: PairsSettings,
    rows: Rows,
    bundle: Bundle,
    *,
    as_of: date,
    all_scores: str | None = None,
    overrides: Mapping[str, str] = {},
) -> Scored:
    """The best k rows of each user as the table of as_of.

    Args:
        rows: from `pairs.open_rows` with the bundle's spec.
        all_scores: a folder, path or URI, for the scores of all rows; it must be empty or hold this very run's.

        overrides: checks of the gate that may fail, and why.

    Raises:
        BundleError: the settings name another treatment of columns than the bundle was trained with.
        PublishError: all_scores holds other files; or as `night.publish_parts`.
    """
    check_bundle(bundle, settings)
    device = device_of(settings.run)
    night = _night(settings, rows, bundle, as_of=as_of, overrides=overrides)
    if all_scores is not None:
        _check_folder(all_scores, night.run_id, settings.pairs.storage_options)
    tables = write_joined(settings, rows, bundle.spec)
    shards = pairs.cut(rows, size=settings.run.shard_bytes)
    clustered = all(shard.shared is not None for shard in shards)
    log.info("score: %s rows in %d shards, users %s", f"{rows.source.rows:,}", len(shards), "in order" if clustered else "scattered")
    stage = Stage(settings.run.work, "score_pairs", {"run": night.run_id, "table": settings.table.path, "all_scores": all_scores})
    buckets = 1 if clustered else max(1, math.ceil(rows.source.rows / MERGE_ROWS))
    units = {f"shard-{shard.number:05d}": shard.unit() for shard in shards}
    _forget_lost(stage, units, all_scores, settings.pairs.storage_options)
    model = str(bundle.folder), device
    receipts, seconds = score_units(
        stage,
        units,
        _shard_task,
        rows,
        model,
        tables,
        stage.path,
        night,
        buckets,
        all_scores,
        night=night,
        actors=settings.run.actors,
        device=device,
        unit="shards",
        label="score",
    )
    parts = [receipt["part"] for receipt in receipts.values() if receipt["part"]]
    partial = {name: receipt["starts"] for name, receipt in receipts.items() if receipt["starts"]}
    repeated = sum(receipt["repeated"] for receipt in receipts.values())
    if partial:
        merged, spent = _merge(settings, stage, partial, night, buckets=buckets, first=len(shards), here=clustered)
        parts += [receipt["part"] for receipt in merged]
        repeated += sum(receipt["repeated"] for receipt in merged)
        seconds += spent
    rejected: Counter[str] = Counter()
    for receipt in receipts.values():
        rejected.update(receipt["rejected"])
    total = sum(receipt["rows"] for receipt in receipts.values())
    if not any(part["rows"] for part in parts):
        raise DataError(f"{rows.source.location}: no row could be scored; rejected: {dict(rejected)}. See {stage.path}.")
    published = publish_parts(night, stage, parts, scored=total - rejected.total(), seconds=seconds)
    return Scored(published, total, dict(rejected), repeated, clustered)


def _night(settings: PairsSettings, rows: Rows, bundle: Bundle, *, as_of: date, overrides: Mapping[str, str]) -> Night:
    run_id = digest(
        {
            "as_of": as_of.isoformat(),
            "inputs": rows.identity(),
            "pairs": settings.pairs,
            "k": settings.rank.k,
            "model": bundle.model_version,
            "device": device_of(settings.run),
        }
    )
    return Night(
        settings.table,
        settings.pairs.storage_options,
        as_of,
        run_id,
        bundle.model_version,
        settings.rank.k,
        **rows.id_types(),
        limits=settings.gate,
        overrides=overrides,
    )


def check_bundle(bundle: Bundle, settings: PairsSettings) -> None:
    """Refuse a bundle that was trained with another treatment of columns than the settings name.

    Raises:
        BundleError: scaling, words or rules of columns differ; or the shop door trained it.
    """
    now, then = settings.pairs.model_dump(mode="json"), bundle.about["settings"].get("pairs")
    if then is None:
        raise BundleError(
            f"{bundle.folder}: was trained by the shop door, whose features only it makes. Train one with this [pairs] section."
        )
    for name in ("numeric", "categorical", "multivalued", "scaling", "words", "columns", "format"):
        if now[name] != then[name]:
            raise BundleError(
                f"{bundle.folder}: was trained with pairs.{name} = {then[name]!r}, the settings say {now[name]!r}. "
                "Train again, or score with the settings of the bundle."
            )


def write_joined(settings: PairsSettings, rows: Rows, spec: FeatureSpec) -> Path:
    """The folder of the users and items tables as the spec encodes them; a table is a unit."""
    stage = Stage(
        settings.run.work,
        "joined_pairs",
        {"tables": {name: source.identity() for name, source in rows.joined.items()}, "spec": digest(spec.to_json())},
    )
    runtime.run(
        stage,
        {table: {} for table in rows.joined},
        _joined_task,
        rows,
        spec,
        stage.path,
        here=all(source.rows <= SMALL_TABLE_ROWS for source in rows.joined.values()),
        unit="tables",
        label="joined tables",
    )
    return stage.path


def _joined_task(rows: Rows, spec: FeatureSpec, folder: Path) -> Task:
    def task(name: str, unit: dict[str, Any]) -> Receipt:
        (table,) = (place for place in rows.joined if place == name)
        return joined.write(rows.joined[table], rows.key_of(table), encoder(spec, table), folder, table)

    return task


def _shard_task(
    rows: Rows, model: tuple[str, Device], tables: Path, folder: Path, night: Night, buckets: int, all_scores: str | None
) -> Task:
    loaded = bundles.load(model[0])
    scored = _scorer(Reader(rows, loaded.spec, tables), loaded, model[1])
    types = pa.schema([(USER_ID, night.user_id), (ITEM_ID, night.item_id), (RAW, pa.float32())])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = Rejected()
        read = 0
        kept: list[pa.Table] = []
        scores: list[pa.Table] = []
        first_scored = None
        for batch, unfit, raw in scored(unit):
            first_scored = first_scored or time.time()
            read += batch.columns.num_rows
            reasons = {**no_ids(rows, batch), **unfit, "the score is not finite": ~np.isfinite(raw)}
            fine = rejected.add(batch, reasons)
            ids = [batch.columns.column(column).cast(dtype) for column, dtype in zip(rows.ids, types.types[:2], strict=True)]
            if all_scores is not None:
                scores.append(pa.table([*ids, pa.array(probabilities(raw), mask=~fine)], [USER_ID, ITEM_ID, SCORE]))
            table = pa.table([*ids, pa.array(raw)], schema=types)
            kept.append(table if fine.all() else table.filter(pa.array(fine)))
        _check_order(unit, kept, rows)
        best, repeated = lists.best(pa.concat_tables(kept).combine_chunks(), k=night.k)
        if unit["shared"] is None:
            shared = best
            part = None
        else:
            mask = pc.is_in(best.column(USER_ID), value_set=pa.array(unit["shared"], night.user_id))
            shared = best.filter(mask)
            part = _stage(night, best.filter(pc.invert(mask)), shard=unit["shard"])
        starts: list[int] = []
        if shared.num_rows:
            bucketed, starts = lists.by_bucket(shared.select([USER_ID, ITEM_ID, RAW]), buckets)
            write_atomically(folder / f"{name}.arrow", lambda file: feed.write(bucketed, file))
        if all_scores is not None:
            _write_scores(pa.concat_tables(scores), all_scores, name, night)
        counts = {"rows": read, "rejected": rejected.write(folder, name), "repeated": repeated}
        return {**counts, "part": part, "starts": starts, "first_scored": first_scored}

    return task


def _scorer(
    reader: Reader, bundle: Bundle, device: Device
) -> Callable[[Mapping[str, Any]], Iterator[tuple[Batch, Mapping[str, np.ndarray], np.ndarray]]]:
    """What turns a shard into batches, the rows that cannot be used, and raw outputs."""
    if reader.joined and device == "cpu":
        halves = Halves(bundle, reader.joined)
        return lambda unit: ((batch, own.unfit, halves(own, places)) for batch, own, places in reader.parts(unit))
    scorer = Scorer(bundle, device)
    return lambda unit: ((batch, encoded.unfit, scorer(encoded.dense, encoded.codes)) for batch, encoded in reader(unit))


def _merge(
    settings: PairsSettings, scored: Stage, partial: Mapping[str, list[int]], night: Night, *, buckets: int, first: int, here: bool
) -> tuple[list[Receipt], float]:
    """The receipts of users whose rows lie in several shards, a bucket of users a unit; and the seconds it took.

    Args:
        scored: the stage that left the shards' lists.
        partial: shard -> where each bucket starts in its lists.
        first: number of the first bucket's part.
        here: a list or two for each border between shards are not worth an actor's start.
    """
    stage = Stage(settings.run.work, "merge_pairs", {"score": scored.digest})
    files = [(str(scored.path / f"{name}.arrow"), starts) for name, starts in partial.items()]
    units = {f"bucket-{bucket:05d}": {"bucket": bucket, "shard": first + bucket} for bucket in range(buckets)}
    options: dict[str, Any] = {"actors": settings.run.actors, "here": here, "unit": "buckets", "label": "merge"}
    receipts, seconds = score_units(stage, units, _merge_task, files, night, night=night, **options)
    return list(receipts.values()), seconds


def _merge_task(files: Sequence[tuple[str, list[int]]], night: Night) -> Task:
    def slices(bucket: int) -> Iterator[pa.Table]:
        for path, starts in files:
            with pa.memory_map(path) as source:
                yield pa.ipc.open_file(source).read_all().slice(starts[bucket], starts[bucket + 1] - starts[bucket])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        best, repeated = lists.best(pa.concat_tables(slices(unit["bucket"])), k=night.k)
        return {"part": _stage(night, best, shard=unit["shard"]), "repeated": repeated}

    return task


def _stage(night: Night, best: pa.Table, *, shard: int) -> Any:
    rows = lists.recommendations(best, as_of=night.as_of, model_version=night.model_version, run_id=night.run_id)
    return night.stage(rows, shard=shard)


def _check_order(unit: Mapping[str, Any], kept: Sequence[pa.Table], rows: Rows) -> None:
    """Refuse rows that lie outside what their footers say: the shortcut for users in order rests on it."""
    if unit["shared"] is None or unit["low"] is None:
        return
    for table in kept:
        seen = pc.min_max(table.column(USER_ID))
        if table.num_rows and not (unit["low"] <= seen["min"].as_py() and seen["max"].as_py() <= unit["high"]):
            raise DataError(
                f"{unit['runs'][0][0]}: column '{rows.ids[0]}' must lie within {unit['low']} and {unit['high']} as the file's "
                f"statistics say, got {seen['min']} to {seen['max']}. Write the file again with another writer."
            )


# All scores ---------------------------------------------------------------------------------------------------------------------


def _scores_file(name: str, run_id: str) -> str:
    return f"{name}-{run_id}.parquet"


def _write_scores(table: pa.Table, folder: str, name: str, night: Night) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    inputs.write(folder, _scores_file(name, night.run_id), sink.getvalue().to_pybytes(), night.storage_options)


def _check_folder(folder: str, run_id: str, storage_options: Mapping[str, str]) -> None:
    for name in inputs.names(folder, storage_options):
        if not name.endswith(f"-{run_id}.parquet"):
            raise PublishError(f"{folder}: must be empty or hold this run's scores, got {name}. Pass another --all-scores.")


def _forget_lost(stage: Stage, units: Mapping[str, Any], all_scores: str | None, storage_options: Mapping[str, str]) -> None:
    """Units whose files for the merge or whose scores are gone are done again."""
    there = set(inputs.names(all_scores, storage_options)) if all_scores is not None else set()
    for name in units:
        receipt = stage.receipt(name)
        if receipt is None:
            continue
        lost = bool(receipt["starts"]) and not (stage.path / f"{name}.arrow").exists()
        if lost or (all_scores is not None and not any(entry.startswith(f"{name}-") for entry in there)):
            stage.forget(name)
