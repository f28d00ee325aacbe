"""The whole dataflow on one page: ingest -> signals -> examples -> train -> score -> publish.

Each function below is one stage: it names the stage's folder by the digest of what goes in, says what a unit is, and hands the units
to Ray. A stage whose receipts are all there does nothing. The pure work is done by the modules that a task calls.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import ray

from recsys import bundle as bundles
from recsys import calibrate, examples, feed, given, rules, runtime, spec
from recsys import ingest as ingest_stage
from recsys import signals as signals_module
from recsys.bundle import Bundle
from recsys.calibrate import Calibrated
from recsys.catalog import item_vocabularies
from recsys.config import Settings
from recsys.errors import BundleError, DataError
from recsys.features import Describer, embedded
from recsys.given import Given
from recsys.ingest import Ingest
from recsys.night import Night, Published, device_of, publish_parts, score_units
from recsys.profiles import mix, stable_hash
from recsys.recommend import listed, recommendations, scored
from recsys.runtime import Task, log
from recsys.score import Device, Scorer, chances
from recsys.shop import Sources, midnight
from recsys.signals import Signals
from recsys.tables import DAY_US, DENSE, ITEM_ID, USER_ID
from recsys.training import Labelled, Trained, fit_bundle, fit_inputs
from recsys.work import Receipt, Stage, digest, load_arrays, save_arrays, write_atomically

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


def _fit_signals(prepared: Prepared, units: Mapping[str, Mapping[str, Any]]) -> None:
    """The signals as of each unit's cutoff."""
    runtime.run(prepared.signals, units, _signals_task, prepared, prepared.signals.path, unit="cut-offs")


def _signals_task(prepared: Prepared, folder: Path) -> Task:
    settings, shop = prepared.settings, prepared.ingest
    catalog = shop.catalog()
    limit = _hash_limit(shop, settings.signals.max_users)

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


def _hash_limit(shop: Ingest, users: int) -> np.uint64:
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
    _fit_signals(prepared, {name: unit})
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
    _fit_signals(prepared, {day.isoformat(): {"cutoff": day.isoformat(), "given": False} for day in days})
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
    limit = _hash_limit(prepared.ingest, settings.calibration.max_users)
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
