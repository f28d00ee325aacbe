"""The shop door's dataflow on one page: prepared (ingest, signals) -> examples -> train -> calibrate -> score -> publish.

Each function below is one stage: it names the stage's folder by the digest of what goes in, says what a unit is, and hands the units
to Ray. A stage whose receipts are all there does nothing. The pure work is done by the modules that a task calls.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import ray

from recsys import bundle as bundles
from recsys import calibrate, examples, feed, runtime, spec
from recsys import signals as signals_module
from recsys.bundle import Bundle
from recsys.calibrate import Calibrated
from recsys.config import Settings
from recsys.errors import BundleError, DataError
from recsys.features import Describer, embedded
from recsys.night import Night, Published, device_of, publish_parts, score_units
from recsys.prepare import Prepared, fit_signals, given_of, hash_limit, make_lists, read_signals
from recsys.profiles import stable_hash
from recsys.recommend import listed, recommendations, scored
from recsys.runtime import Task
from recsys.score import Device, Scorer, chances
from recsys.shop import midnight
from recsys.signals import Signals
from recsys.tables import DAY_US, DENSE, USER_ID
from recsys.training import Labelled, Trained, fit_bundle, fit_inputs
from recsys.work import Receipt, Stage, digest, load_arrays, save_arrays, write_atomically

# Examples -----------------------------------------------------------------------------------------------------------------------


def cutoffs(settings: Settings, *, as_of: date, first: date) -> list[date]:
    """The dates that examples are made as of, oldest first, a label length apart; the last one's window ends at as_of.

    Those with less than a label length of history before them are left out.
    """
    step = timedelta(days=settings.window.label_days)
    dates = [as_of - step * number for number in range(settings.window.cutoffs, 0, -1)]
    return [day for day in dates if day - step >= first]


def make_examples(prepared: Prepared, days: Sequence[date]) -> dict[date, list[Receipt]]:
    """The labelled rows as of each cutoff; a unit is a cutoff and a shard of users."""
    fit_signals(prepared, {day.isoformat(): {"cutoff": day.isoformat(), "given": False} for day in days})
    units = {
        f"{day.isoformat()}-{shard}": {"cutoff": day.isoformat(), "shard": shard} for day in days for shard in prepared.ingest.shards
    }
    receipts = runtime.run(prepared.examples, units, _examples_task, prepared, unit="parts")
    return {day: [receipts[f"{day.isoformat()}-{shard}"] for shard in prepared.ingest.shards] for day in days}


def _examples_task(prepared: Prepared) -> Task:
    settings = prepared.settings
    catalog = prepared.ingest.catalog()
    describer: dict[str, Describer] = {}

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        cutoff = unit["cutoff"]
        if cutoff not in describer:  # units come in order of cutoff: one set of signals at a time
            describer.clear()
            signals = signals_module.load(prepared.signals.path / f"{cutoff}.npz")
            describer[cutoff] = Describer(settings, catalog, signals, prepared.vocabularies)
        start = midnight(date.fromisoformat(cutoff))
        end = start + settings.window.label_days * DAY_US
        tables: list[pa.Table] = []
        counts: Counter[str] = Counter()
        names: tuple[str, ...] = ()
        for batch, users, candidates, inputs in describer[cutoff](prepared.ingest.profiles(unit["shard"])):
            label = examples.bought(candidates, users, window=batch.between(start, end))
            hashes = stable_hash(batch.users.column(USER_ID).to_numpy())
            chosen = examples.sample(candidates, label, negatives=settings.examples.negatives, user_hash=hashes, seed=settings.run.seed)
            tables.append(examples.to_table(candidates, users, inputs, label, chosen))
            counts.update(rows=int(chosen.sum()), positives=int(label.sum()), candidates=len(candidates))
            names = inputs.names
        table = pa.concat_tables(tables)
        write_atomically(prepared.examples.path / f"{name}.arrow", lambda file: feed.write(table, file))
        return {**counts, "features": names}

    return task


def export_examples(prepared: Prepared, *, as_of: date, out: Path) -> dict[str, int]:
    """The labelled rows that a model as of a date learns from, as Parquet for the pairs door; and its settings, OUT/pairs.toml.

    OUT/train holds the rows of all cut-offs but the newest, OUT/test those of the newest: a file for each cut-off and shard.

    Returns:
        Rows of `train` and `test`.

    Raises:
        DataError: as `train`.
    """
    days = _training_cutoffs(prepared, as_of)
    words = {name: prepared.vocabularies[name] for name in embedded(prepared.settings.features, prepared.vocabularies)}
    counts: Counter[str] = Counter()
    names: tuple[str, ...] = ()
    for day, receipts in make_examples(prepared, days).items():
        part = "test" if day == days[-1] else "train"
        (out / part).mkdir(parents=True, exist_ok=True)
        for shard, receipt in zip(prepared.ingest.shards, receipts, strict=True):
            names = tuple(receipt["features"])
            with pa.memory_map(str(prepared.examples.path / f"{day.isoformat()}-{shard}.arrow")) as source:
                table = examples.named(pa.ipc.open_file(source).read_all(), names, words)
            write_atomically(
                out / part / f"{day.isoformat()}-{shard}.parquet",
                lambda file, table=table: pa.parquet.write_table(table, file, compression="zstd"),
            )
            counts[part] += table.num_rows
    pairs = {
        "path": str(out / "train"),
        "test": str(out / "test"),
        "numeric": list(names),
        "categorical": list(words),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in pairs.items()]
    text = "\n".join(["# Feature rows of jobs.examples: python -m jobs.train --config this file", "[pairs]", *lines, ""])
    write_atomically(out / "pairs.toml", lambda file: file.write_text(text, encoding="utf-8"))
    return dict(counts)


# Train --------------------------------------------------------------------------------------------------------------------------


def train(prepared: Prepared, *, as_of: date, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Trained:
    """The bundle of a model that knows what was known before as_of: early stopping on the last window, then a fit on all.

    Raises:
        DataError: as `labelled`.
    """
    settings = prepared.settings
    days = _training_cutoffs(prepared, as_of)
    read = labelled(prepared, as_of=as_of)
    stage = Stage(settings.run.work, "train", {**read.identity, **fit_inputs(settings), "calibration": settings.calibration})
    return fit_bundle(
        stage,
        read,
        settings=settings,
        on_epoch=on_epoch,
        calibrate=lambda bundle: fit_calibration(prepared, bundle, cutoff=days[-1]),
    )


def labelled(prepared: Prepared, *, as_of: date) -> Labelled:
    """The examples that a fit as of a date reads, made if they are not there; those of the newest cutoff validate.

    Raises:
        DataError: fewer than two windows, or no positive example.
    """
    settings = prepared.settings
    days = _training_cutoffs(prepared, as_of)
    made = make_examples(prepared, days)
    parts = [receipt for receipts in made.values() for receipt in receipts]
    counts = {key: sum(part[key] for part in parts) for key in ("rows", "positives", "candidates")}
    if counts["positives"] == 0:
        raise DataError(f"--as-of {as_of}: no candidate was bought in any label window. Check shop.label_kinds and window.label_days.")
    files = {day: [prepared.examples.path / f"{day.isoformat()}-{shard}.arrow" for shard in prepared.ingest.shards] for day in days}
    fitting = [file for day in days[:-1] for file in files[day]]
    dates = [day.isoformat() for day in days]
    return Labelled(
        fitting,
        files[days[-1]],
        identity={"examples": prepared.examples.digest, "cutoffs": dates},
        spec=lambda: _feature_spec(fitting, parts[0]["features"], prepared),
        window={"as_of": as_of.isoformat(), "cutoffs": dates, "label_days": settings.window.label_days},
        counts=counts,
    )


def _training_cutoffs(prepared: Prepared, as_of: date) -> list[date]:
    settings = prepared.settings
    days = cutoffs(settings, as_of=as_of, first=prepared.ingest.first)
    if len(days) < 2:
        raise DataError(
            f"--as-of {as_of}: training needs two label windows of {settings.window.label_days} days with as much history before "
            f"them; the first event is of {prepared.ingest.first}. Use a later date or a smaller window.label_days."
        )
    return days


def _feature_spec(files: Sequence[Path], names: Sequence[str], prepared: Prepared) -> spec.FeatureSpec:
    """The inputs' names and vocabularies, and the normalisation fitted on the training rows alone."""

    def blocks() -> Any:
        for file in files:
            with pa.memory_map(str(file)) as source:
                for batch in pa.ipc.open_file(source).read_all().to_batches():
                    if batch.num_rows:
                        yield batch.column(DENSE).flatten().to_numpy().reshape(batch.num_rows, -1)

    mean, deviation = (tuple(values.tolist()) for values in spec.Moments.of(blocks(), len(names)).standard())
    codes = embedded(prepared.settings.features, prepared.vocabularies)
    return spec.FeatureSpec(tuple(names), mean, deviation, codes, prepared.vocabularies)


# Calibrate ----------------------------------------------------------------------------------------------------------------------


def fit_calibration(prepared: Prepared, bundle: Bundle, *, cutoff: date) -> Calibrated:
    """What turns raw outputs into chances, from all candidates as of a cutoff whose label window the bundle was not fitted on.

    A shard of users is a unit. Rows are scored on CPU wherever the night is, so that the calibration is the same.

    Raises:
        DataError: none of the chosen users has a candidate.
    """
    settings = prepared.settings
    stage = Stage(
        settings.run.work,
        "calibrate",
        {
            "signals": prepared.signals.digest,
            "examples": prepared.examples.digest,
            "model": bundle.model_version,
            "cutoff": cutoff.isoformat(),
            "calibration": settings.calibration,
        },
    )
    receipts = runtime.run(
        stage,
        {f"users-{shard}": {"shard": shard} for shard in prepared.ingest.shards},
        _calibrate_task,
        prepared,
        (str(bundle.folder), "cpu"),
        ray.put(read_signals(prepared, cutoff).arrays()),
        stage.path,
        actors=settings.run.actors,
        unit="shards",
    )
    parts = []
    for name in receipts:
        file = load_arrays(stage.path / f"{name}.npz")
        parts.append((file["raw"], file["label"], file["group"]))
    raw, label, group = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not len(raw):
        raise DataError(
            f"calibration.max_users = {settings.calibration.max_users}: no chosen user has a candidate as of {cutoff}. Raise it."
        )
    return calibrate.fit(raw, label, group)


def _calibrate_task(prepared: Prepared, model: tuple[str, Device], arrays: dict[str, np.ndarray], folder: Path) -> Task:
    settings = prepared.settings
    signals = Signals(**arrays)
    describer, scorer = scoring(prepared, model, signals, None)
    limit = hash_limit(prepared.ingest, settings.calibration.max_users)
    start = int(signals.cutoff)
    end = start + settings.window.label_days * DAY_US

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        profiles = prepared.ingest.profiles(unit["shard"])
        hashes = stable_hash(profiles.users.column(USER_ID).to_numpy())
        found = [(np.empty(0, np.float32), np.empty(0, bool), np.empty(0, np.uint64))]
        for batch in scored(profiles.take(np.flatnonzero(hashes <= limit)), describer, scorer):
            label = examples.bought(batch.candidates, batch.users, window=batch.profiles.between(start, end))
            group = stable_hash(batch.profiles.users.column(USER_ID).to_numpy())[batch.candidates.user_row]
            kept = batch.modelled[batch.candidates.user_row]
            found.append((batch.raw[kept], label[kept], group[kept]))
        raw, label, group = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        save_arrays(folder / f"{name}.npz", raw=raw, label=label, group=group)
        return {"rows": len(raw), "bought": int(label.sum())}

    return task


# Score and publish --------------------------------------------------------------------------------------------------------------


def night_of(prepared: Prepared, bundle: Bundle, *, as_of: date, overrides: Mapping[str, str] = {}) -> tuple[Night, Stage]:
    """The table that a bundle would publish as of a date, and the stage that scores it; a shard's receipt is `part-SHARD`."""
    settings = prepared.settings
    run_id = digest(
        {
            "as_of": as_of.isoformat(),
            "inputs": prepared.sources.identity(),
            "given": prepared.given.digest if prepared.given else None,
            "settings": settings.model_dump(
                mode="json", include={"shop", "features", "window", "signals", "candidates", "rank", "rules"}
            ),
            "lists": prepared.sources.list_identity(),
            "seed": settings.run.seed,
            "model": bundle.model_version,
            "device": device_of(settings.run),
        }
    )
    night = Night(
        settings.table,
        settings.shop.storage_options,
        as_of,
        run_id,
        bundle.model_version,
        settings.rank.k,
        prepared.sources.user_id,
        prepared.sources.item_id,
        settings.gate,
        overrides,
    )
    stage = Stage(settings.run.work, "score", {"run": run_id, "ingest": prepared.ingest.digest, "table": settings.table.path})
    return night, stage


def score(
    prepared: Prepared, bundle: Bundle, *, as_of: date, overrides: Mapping[str, str] = {}, ndcg: float | None = None
) -> Published:
    """The recommendation table of as_of: a shard of users is a unit, its receipt names a staged part; one commit publishes all.

    Args:
        overrides: checks of the gate that may fail, and why.
        ndcg: as `champion.versus`, for the gate.

    Raises:
        BundleError: as `check_bundle`.
        GateError, PublishError: as `night.publish_parts`.
    """
    settings = prepared.settings
    check_bundle(bundle, settings)
    device = device_of(settings.run)
    night, stage = night_of(prepared, bundle, as_of=as_of, overrides=overrides)
    signals = read_signals(prepared, as_of, lists=True)
    receipts, seconds = score_units(
        stage,
        {f"part-{shard}": {"shard": shard} for shard in prepared.ingest.shards},
        _score_task,
        prepared,
        (str(bundle.folder), device),
        ray.put(signals.arrays()),  # one copy a node, read by all its actors
        make_lists(prepared),
        night,
        night=night,
        actors=settings.run.actors,
        device=device,
        unit="shards",
    )
    parts = [receipt["part"] for receipt in receipts.values()]
    scored = sum(receipt["candidates"] for receipt in receipts.values())
    dropped, short = Counter[str](), Counter[str]()
    for receipt in receipts.values():
        dropped.update(receipt["dropped"])
        short.update(receipt["short"])
    catalog = prepared.ingest.catalog()
    available = catalog.item_id.filter(pa.array(catalog.available))
    return publish_parts(
        night, stage, parts, scored=scored, seconds=seconds, dropped=dict(dropped), short=dict(short), available=available, ndcg=ndcg
    )


def _score_task(prepared: Prepared, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, night: Night) -> Task:
    settings = prepared.settings
    describer, scorer = scoring(prepared, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        candidates = 0
        tables: list[pa.Table] = []
        dropped, short = Counter[str](), Counter[str]()
        profiles, only = prepared.ingest.profiles(unit["shard"]), given_of(prepared, unit["shard"])
        for batch in scored(profiles, describer, scorer, only):
            candidates += len(batch.candidates)
            made = listed(batch, settings.rank)
            dropped.update(made.dropped)
            short.update(made.short)
            tables.append(
                recommendations(
                    batch,
                    made.ranked,
                    chance=chance,
                    as_of=night.as_of,
                    model_version=night.model_version,
                    run_id=night.run_id,
                )
            )
        part = night.stage(pa.concat_tables(tables), shard=int(unit["shard"]))
        return {"part": part, "candidates": candidates, "dropped": dropped, "short": short}

    return task


def check_bundle(bundle: Bundle, settings: Settings) -> None:
    """Refuse a bundle whose inputs were made under other settings than tonight's would be.

    Of rules only rank.allow_repeats is one, as it takes a source, and its inputs, away. Other rules take candidates away and leave
    what every input means: the shop may change them, and its lists of ids, without a new model.

    Raises:
        BundleError: a setting that shapes the features differs.
    """
    now, then = settings.model_dump(mode="json"), bundle.about["settings"]
    shaping = [("features", None), ("signals", None), ("candidates", None), ("window", "history_days"), ("rank", "allow_repeats")]
    for section, key in shaping:
        for name in [key] if key else now[section]:
            if now[section][name] != then.get(section, {}).get(name):
                raise BundleError(
                    f"{bundle.folder}: was trained with {section}.{name} = {then.get(section, {}).get(name)!r}, the settings say "
                    f"{now[section][name]!r}. Train again, or score with the settings of the bundle."
                )


def scoring(prepared: Prepared, model: tuple[str, Device], signals: Signals, lists: Path | None) -> tuple[Describer, Scorer]:
    """What one actor scores with: features under the bundle's own vocabularies, and the model.

    Args:
        lists: of `make_lists`; None where the rules with lists do not act, as in training.
    """
    folder, device = model
    loaded = bundles.load(folder)
    describer = Describer(prepared.settings, prepared.ingest.catalog(), signals, loaded.spec.vocabularies, lists)
    return describer, Scorer(loaded, device)
