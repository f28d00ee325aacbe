"""A bundle and the shop -> tonight's table: every user scored, shard by shard, and released."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import config
from recsys.config import Settings
from recsys.engine.lease import leased
from recsys.engine.progress import log
from recsys.engine.room import gpus
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units, share
from recsys.errors import BundleError
from recsys.evaluation.backtest import in_order_of
from recsys.features.candidate_features import Featurizer
from recsys.pipelines.deadline import Deadline, carry, cut_by, part_number, quarter_of, units_of
from recsys.pipelines.past import als_of
from recsys.pipelines.signals import ShopState, make_lists, read_signals, supplied_of
from recsys.publishing import staging
from recsys.publishing.gate import NOT_MEASURED, Quality
from recsys.publishing.release import Published, Release, publish_parts
from recsys.ranking import bundle as bundles
from recsys.ranking.bundle import Bundle
from recsys.ranking.recommend import listed, score_users
from recsys.ranking.scorer import Device, Scorer, chances
from recsys.ranking.table_rows import Stamp, recommendations
from recsys.retrieval.signals import Signals
from recsys.schema import BASELINE, USER_ID, recommendations_schema
from recsys.storage import absolute

CARRIED = "carried"  # the unit whose receipt holds parts that were carried over
SHAPING = {  # settings that say what the inputs of a model mean; None: all of the section
    "features": None,
    "signals": None,
    "candidates": None,
    "window": ("history_days",),
    "rank": ("allow_repeats",),
}


def device_of(run: config.Run) -> Device:
    """What scores: as the settings say, else the GPU where the cluster has one."""
    return run.device or ("gpu" if gpus() else "cpu")


def score_units(
    stage: Stage, units: Mapping[str, Mapping[str, Any]], make: Callable[..., Task], *arguments: Any, release: Release, **options: Any
) -> tuple[dict[str, Receipt], float]:
    """The receipts of units whose `part`, where it is not None, is staged; and the seconds it took, 0 where all was done before.

    Args:
        make, arguments, options: of `units.run_units`.
    """
    parts = {receipt["part"]["path"]: name for name in units if (receipt := stage.receipt(name)) and receipt["part"]}
    done = [receipt["part"] for name in parts.values() if (receipt := stage.receipt(name))]
    for part in staging.missing(release.table.path, done, storage_options=release.storage_options):
        stage.forget(parts[part["path"]])
    fresh = any(stage.receipt(name) is None for name in units)
    started = time.monotonic()
    receipts = run_units(stage, units, make, *arguments, **options)
    return receipts, time.monotonic() - started if fresh else 0.0


def release_of(
    state: ShopState,
    bundle: Bundle,
    *,
    as_of: date,
    baseline: str | None = None,
    overrides: Mapping[str, str] = {},
    deadline: Deadline | None = None,
) -> tuple[Release, Stage]:
    """The table that a bundle would publish as of a date, and the stage that scores it; its units are `deadline.units_of`.

    Args:
        baseline: whose order is published in the bundle's stead.
        deadline: what it cuts off makes another table, so a run with one is another run.
    """
    settings = state.settings
    identity = {
        "inputs": state.inputs.identity(),
        "supplied": state.supplied.digest if state.supplied else None,
        "settings": settings.identity(include={"shop", "features", "window", "signals", "candidates", "rank", "rules"}),
        "lists": state.inputs.list_identity(),
        "seed": settings.run.seed,
        "device": device_of(settings.run),
    }
    ids = state.inputs.user_id, state.inputs.item_id
    version = f"{BASELINE}{baseline}" if baseline else bundle.model_version
    identity |= {"candidates_of": bundle.model_version} if baseline else {}
    identity |= {"deadline": deadline.at.isoformat()} if deadline else {}
    user_key = state.inputs.key.fingerprint if state.inputs.key else None
    identity |= {"user_key": user_key} if user_key else {}
    identity |= {"daily": state.facts_about(as_of)} if state.daily else {}
    told: dict[str, Any] = {"as_of": as_of, "model_version": version, "ids": ids, "overrides": overrides, "user_key": user_key}
    release = Release.of(settings, identity, **told)
    stage = Stage(
        settings.run.work, "score", {"run": release.run_id, "ingest": state.dataset.digest, "table": absolute(settings.table.path)}
    )
    return release, stage


def score_shop(
    state: ShopState,
    bundle: Bundle,
    *,
    as_of: date,
    overrides: Mapping[str, str] = {},
    quality: Quality = NOT_MEASURED,
    deadline: Deadline | None = None,
    on_scored: Callable[[], None] = lambda: None,
) -> Published:
    """The recommendation table of as_of: a shard of users is a unit, its receipt names a staged part; one commit publishes all.

    Args:
        overrides: checks of the gate that may fail, and why.
        quality: of the bundle, for the gate; where that says so, the best baseline's order is published.
        deadline: ends scoring; users who were not reached keep the rows of the night before.
        on_scored: called when the last unit is done, before the audit.

    Raises:
        BundleError: as `check_bundle`.
        GateError, PublishError: as `release.publish_parts`.
        DeadlineError: as `deadline.carry`.
    """
    settings = state.settings
    check_bundle(bundle, settings)
    device = device_of(settings.run)
    baseline = quality.fallback(settings.gate, overrides)
    if baseline is not None:
        log.warning("score: the model is below %s, whose order is published in its stead", baseline)
        quality = NOT_MEASURED
    release, stage = release_of(state, bundle, as_of=as_of, baseline=baseline, overrides=overrides, deadline=deadline)
    units = units_of(state, deadline)
    lease = leased(settings.table.path, release.storage_options, what=f"the night of {as_of}")
    with lease as still_ours, stage.owned():  # until it is published: what is staged must stay
        with cut_by(deadline, settings.table.path, "the signals of the night were made"):
            signals = read_signals(state, as_of, lists=True, als=als_of(bundle.about))
        receipts, seconds = score_units(
            stage,
            units,
            _score_task,
            state,
            (str(bundle.folder), device),
            share(signals.arrays()),  # one copy a node, read by all its actors
            make_lists(state),
            release,
            baseline,
            release=release,
            actors=settings.run.actors,
            device=device,
            unit="shards" if deadline is None else "quarters of shards",
            until=deadline.stop if deadline else None,
        )
        parts = [receipt["part"] for receipt in receipts.values()]
        carried = carry(state, release, receipts, deadline) if deadline and len(receipts) < len(units) else None
        if deadline is not None:
            stage.finish(CARRIED, {"parts": carried.parts if carried else []})
            parts += carried.parts if carried else []
        on_scored()
        scored = sum(receipt["candidates"] for receipt in receipts.values())
        dropped, short = Counter[str](), Counter[str]()
        for receipt in receipts.values():
            dropped.update(receipt["dropped"])
            short.update(receipt["short"])
        catalog = state.dataset.catalog()
        available = catalog.item_id.filter(pa.array(catalog.available))
        return publish_parts(
            release,
            stage.path,
            parts,
            scored=scored,
            seconds=seconds,
            dropped=dict(dropped),
            short=dict(short),
            available=available,
            quality=quality,
            still_ours=still_ours,
            carried={"users": carried.users, "without": carried.without, "since": carried.since.isoformat()} if carried else None,
        )


def _score_task(
    state: ShopState, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, release: Release, baseline: str | None
) -> Task:
    settings = state.settings
    rank = settings.rank.model_copy(update={"diversity": 0.0}) if baseline else settings.rank
    featurizer, scorer = scoring(state, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)
    stamp = Stamp(release.as_of, release.model_version, release.run_id)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        candidates = 0
        tables: list[pa.Table] = []
        dropped, short = Counter[str](), Counter[str]()
        histories, only = state.dataset.histories(unit["shard"]), supplied_of(state, unit["shard"])
        if "quarter" in unit:
            rows = quarter_of(histories, unit["quarter"])
            histories, only = histories.take(rows), only.take(rows) if only is not None else None
        for batch in score_users(histories, featurizer, scorer, only):
            candidates += len(batch.candidates)
            if baseline is not None:
                batch = in_order_of(baseline, batch)
            cut = listed(batch, rank)
            dropped.update(cut.dropped)
            short.update(cut.short)
            tables.append(recommendations(batch, cut.ranked, stamp, chance=chance))
        made = pa.concat_tables(tables) if tables else recommendations_schema(release.user_id, release.item_id).empty_table()
        receipt = {"part": release.stage(made, shard=part_number(unit)), "candidates": candidates, "dropped": dropped, "short": short}
        if "quarter" in unit:  # who was reached and has no list keeps none of the night before
            users = histories.users.column(USER_ID)
            receipt["without"] = users.filter(pc.invert(pc.is_in(users, value_set=made.column(USER_ID)))).to_pylist()
        return receipt

    return task


def check_bundle(bundle: Bundle, settings: Settings) -> None:
    """Refuse a bundle whose inputs were made under other settings than tonight's would be.

    Of rules only rank.allow_repeats is one, as it takes a source, and its inputs, away. Other rules take candidates away and leave
    what every input means: the shop may change them, and its lists of ids, without a new model.

    Raises:
        BundleError: a setting that shapes the features differs; or the pairs door trained it.
    """
    if "shop" in bundle.about["settings"] and "als" not in bundle.about.get("decided", {}):
        raise BundleError(f"{bundle.folder}: does not say what ALS weighed, as of an older version. Train again.")
    supplied = bundle.about["settings"].get("rank", {}).get("candidates") is not None
    if supplied != (settings.rank.candidates is not None):
        learned, ranks = ("given candidates", "what the sources propose")[:: 1 if supplied else -1]
        raise BundleError(f"{bundle.folder}: learned to rank {learned}, rank.candidates has it rank {ranks}. Train again.")
    decided = settings.rank.allow_repeats is not None  # else the shop's past decides it when it is read, and this is asked again
    bundles.check_settings(bundle, settings, {name: keys for name, keys in SHAPING.items() if decided or name != "rank"})


def scoring(state: ShopState, model: tuple[str, Device], signals: Signals, lists: Path | None) -> tuple[Featurizer, Scorer]:
    """What one actor scores with: features under the bundle's own vocabularies, and the model.

    Args:
        lists: of `make_lists`; None where the rules with lists do not act, as in training.
    """
    folder, device = model
    loaded = bundles.load(folder)
    featurizer = Featurizer(state.settings, state.dataset.catalog(), signals, loaded.spec.vocabularies, lists)
    return featurizer, Scorer(loaded, device)
