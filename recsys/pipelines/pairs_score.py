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

from recsys.config import PairsSettings
from recsys.engine.lease import leased
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task
from recsys.errors import DataError, PublishError
from recsys.features.encoding import add_words
from recsys.features.feature_table import FeatureTable
from recsys.features.reader import Reader, RejectedRows, RowBatch, cut_shards, no_ids
from recsys.features.spec import ModelInputs
from recsys.hashing import stable_hash
from recsys.pipelines.pairs_features import write_side_tables
from recsys.pipelines.score import device_of, score_units
from recsys.publishing.release import Published, Release, publish_parts
from recsys.ranking import bundle as bundles
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Device, Scorer, probabilities
from recsys.ranking.split_scorer import SplitScorer
from recsys.ranking.table_rows import Stamp, feature_row_recommendations
from recsys.ranking.top_k import top_k_by_user
from recsys.schema import ITEM_ID, RAW, SCORE, USER_ID
from recsys.storage import absolute, list_files, write_arrow, write_atomically, write_file

TREATMENT = ("numeric", "categorical", "multivalued", "scaling", "words", "columns", "format")  # of columns, in [pairs]
MERGE_ROWS = 2_000_000  # rows that a merge has at most, where every row of the input is among its shard's best


@dataclass(frozen=True)
class PairsRun:
    """A published night of pairs and what was counted on the way."""

    published: Published
    rows: int
    """Read from the input."""
    rejected: Mapping[str, int]
    repeated: int
    """Rows passed over because their user has the item in another row of the shard, with a higher output."""
    words: Mapping[str, Sequence[int]]
    """By column: how many words the rows and joined tables hold, and how many of them the model does not know."""
    clustered: bool
    """The footers proved that users come in order."""


def score(
    settings: PairsSettings,
    rows: FeatureTable,
    bundle: Bundle,
    *,
    as_of: date,
    all_scores: str | None = None,
    overrides: Mapping[str, str] = {},
) -> PairsRun:
    """The best k rows of each user as the table of as_of.

    Args:
        rows: from `feature_table.open_feature_table` with the bundle's spec.
        all_scores: a folder, path or URI, for the scores of all rows; it must be empty or hold this very run's.

        overrides: checks of the gate that may fail, and why.

    Raises:
        BundleError: the settings name another treatment of columns than the bundle was trained with.
        PublishError: all_scores holds other files; or as `release.publish_parts`.
    """
    check_bundle(bundle, settings)
    device = device_of(settings.run)
    release = _release(settings, rows, bundle, as_of=as_of, overrides=overrides)
    if all_scores is not None:
        _check_folder(all_scores, release.run_id, settings.pairs.storage_options)
    tables = write_side_tables(settings, rows, bundle.spec)
    shards = cut_shards(rows, size=settings.run.shard_bytes)
    clustered = all(shard.shared is not None for shard in shards)
    log.info("score: %s rows in %d shards, users %s", f"{rows.source.rows:,}", len(shards), "in order" if clustered else "scattered")
    stage = Stage(
        settings.run.work,
        "score_pairs",
        {"run": release.run_id, "table": absolute(settings.table.path), "all_scores": all_scores and absolute(all_scores)},
    )
    lease = leased(settings.table.path, release.storage_options, what=f"the night of {as_of}")
    with lease as still_ours, stage.owned():  # until it is published: what is staged must stay
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
            tables.path,
            stage.path,
            release,
            buckets,
            all_scores,
            release=release,
            actors=settings.run.actors,
            device=device,
            unit="shards",
            label="score",
        )
        parts = [receipt["part"] for receipt in receipts.values() if receipt["part"]]
        partial = {name: receipt["starts"] for name, receipt in receipts.items() if receipt["starts"]}
        repeated = sum(receipt["repeated"] for receipt in receipts.values())
        if partial:
            merged, spent = _merge(settings, stage, partial, release, buckets=buckets, first=len(shards), here=clustered)
            parts += [receipt["part"] for receipt in merged]
            repeated += sum(receipt["repeated"] for receipt in merged)
            seconds += spent
        rejected: Counter[str] = Counter()
        words: dict[str, list[int]] = {}
        for receipt in receipts.values():
            rejected.update(receipt["rejected"])
            add_words(words, receipt["words"])
        for table in rows.side_tables:
            add_words(words, (tables.receipt(table) or {})["words"])
        total = sum(receipt["rows"] for receipt in receipts.values())
        if not any(part["rows"] for part in parts):
            raise DataError(f"{rows.source.location}: no row could be scored; rejected: {dict(rejected)}. See {stage.path}.")
        published = publish_parts(
            release, stage.path, parts, scored=total - rejected.total(), seconds=seconds, words=words, still_ours=still_ours
        )
    return PairsRun(published, total, dict(rejected), repeated, words, clustered)


def _release(settings: PairsSettings, rows: FeatureTable, bundle: Bundle, *, as_of: date, overrides: Mapping[str, str]) -> Release:
    identity = {
        "inputs": rows.identity(),
        "pairs": settings.pairs,
        "k": settings.rank.k,
        "device": device_of(settings.run),
    }
    user_id, item_id = rows.id_types().values()
    return Release.of(settings, identity, as_of=as_of, model_version=bundle.model_version, ids=(user_id, item_id), overrides=overrides)


def check_bundle(bundle: Bundle, settings: PairsSettings) -> None:
    """Refuse a bundle that was trained with another treatment of columns than the settings name.

    Raises:
        BundleError: scaling, words or treatment of columns differ; or the shop door trained it.
    """
    bundles.check_settings(bundle, settings, {"pairs": TREATMENT})


def _shard_task(
    rows: FeatureTable, model: tuple[str, Device], tables: Path, folder: Path, release: Release, buckets: int, all_scores: str | None
) -> Task:
    loaded = bundles.load(model[0])
    scored = _scorer(Reader(rows, loaded.spec, tables), loaded, model[1])
    types = pa.schema([(USER_ID, release.user_id), (ITEM_ID, release.item_id), (RAW, pa.float32())])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = RejectedRows()
        read = 0
        kept: list[pa.Table] = []
        scores: list[pa.Table] = []
        words: dict[str, list[int]] = {}
        first_scored = None
        for batch, own, raw in scored(unit):
            first_scored = first_scored or time.time()
            read += batch.columns.num_rows
            add_words(words, own.words)
            reasons = {**no_ids(rows, batch), **own.unfit, "the score is not finite": ~np.isfinite(raw)}
            fine = rejected.add(batch, reasons)
            ids = [batch.columns.column(column).cast(dtype) for column, dtype in zip(rows.ids, types.types[:2], strict=True)]
            if all_scores is not None:
                scores.append(pa.table([*ids, pa.array(probabilities(raw), mask=~fine)], [USER_ID, ITEM_ID, SCORE]))
            table = pa.table([*ids, pa.array(raw)], schema=types)
            kept.append(table if fine.all() else table.filter(pa.array(fine)))
        _check_order(unit, kept, rows)
        best, repeated = top_k_by_user(pa.concat_tables(kept).combine_chunks(), k=release.k)
        if unit["shared"] is None:
            shared = best
            part = None
        else:
            mask = pc.is_in(best.column(USER_ID), value_set=pa.array(unit["shared"], release.user_id))
            shared = best.filter(mask)
            part = _stage(release, best.filter(pc.invert(mask)), shard=unit["shard"])
        starts: list[int] = []
        if shared.num_rows:
            bucketed, starts = by_bucket(shared.select([USER_ID, ITEM_ID, RAW]), buckets)
            write_atomically(folder / f"{name}.arrow", lambda file: write_arrow(bucketed, file))
        if all_scores is not None:
            _write_scores(pa.concat_tables(scores), all_scores, name, release)
        counts = {"rows": read, "rejected": rejected.write(folder, name), "repeated": repeated, "words": words}
        return {**counts, "part": part, "starts": starts, "first_scored": first_scored}

    return task


def _scorer(
    reader: Reader, bundle: Bundle, device: Device
) -> Callable[[Mapping[str, Any]], Iterator[tuple[RowBatch, ModelInputs, np.ndarray]]]:
    """What turns a shard into batches, the inputs that stand in them, and raw outputs."""
    if reader.side_tables and device == "cpu":
        split = SplitScorer(bundle, reader.side_tables)
        return lambda unit: ((batch, own, split(own, places)) for batch, own, places in reader.parts(unit))
    scorer = Scorer(bundle, device)
    return lambda unit: ((batch, encoded, scorer(encoded.dense, encoded.codes)) for batch, encoded in reader(unit))


def _merge(
    settings: PairsSettings, scored: Stage, partial: Mapping[str, list[int]], release: Release, *, buckets: int, first: int, here: bool
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
    receipts, seconds = score_units(stage, units, _merge_task, files, release, release=release, **options)
    return list(receipts.values()), seconds


def _merge_task(files: Sequence[tuple[str, list[int]]], release: Release) -> Task:
    def slices(bucket: int) -> Iterator[pa.Table]:
        for path, starts in files:
            with pa.memory_map(path) as source:
                yield pa.ipc.open_file(source).read_all().slice(starts[bucket], starts[bucket + 1] - starts[bucket])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        best, repeated = top_k_by_user(pa.concat_tables(slices(unit["bucket"])), k=release.k)
        return {"part": _stage(release, best, shard=unit["shard"]), "repeated": repeated}

    return task


def _stage(release: Release, best: pa.Table, *, shard: int) -> Any:
    rows = feature_row_recommendations(best, Stamp(release.as_of, release.model_version, release.run_id))
    return release.stage(rows, shard=shard)


def _check_order(unit: Mapping[str, Any], kept: Sequence[pa.Table], rows: FeatureTable) -> None:
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


def _write_scores(table: pa.Table, folder: str, name: str, release: Release) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_file(folder, _scores_file(name, release.run_id), sink.getvalue().to_pybytes(), release.storage_options)


def _check_folder(folder: str, run_id: str, storage_options: Mapping[str, str]) -> None:
    for name in list_files(folder, storage_options):
        if not name.endswith(f"-{run_id}.parquet"):
            raise PublishError(f"{folder}: must be empty or hold this run's scores, got {name}. Pass another --all-scores.")


def _forget_lost(stage: Stage, units: Mapping[str, Any], all_scores: str | None, storage_options: Mapping[str, str]) -> None:
    """Units whose files for the merge or whose scores are gone are done again."""
    there = set(list_files(all_scores, storage_options)) if all_scores is not None else set()
    for name in units:
        receipt = stage.receipt(name)
        if receipt is None:
            continue
        lost = bool(receipt["starts"]) and not (stage.path / f"{name}.arrow").exists()
        if lost or (all_scores is not None and not any(entry.startswith(f"{name}-") for entry in there)):
            stage.forget(name)


def by_bucket(rows: pa.Table, buckets: int) -> tuple[pa.Table, list[int]]:
    """The rows with those of one bucket of users together, and where each bucket starts, and the end."""
    bucket = stable_hash(rows.column(USER_ID).to_numpy()) % np.uint64(buckets)
    order = np.argsort(bucket, kind="stable")
    starts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    return rows.take(pa.array(order)), starts.tolist()
