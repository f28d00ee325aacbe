"""The whole dataflow on one page: ingest -> signals -> examples -> train -> score -> publish, and the backtest beside it.

Each function below is one stage: it names the stage's folder by the digest of what goes in, says what a unit is, and hands the units
to Ray. A stage whose receipts are all there does nothing. The pure work is done by the modules that a task calls.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import ray

from recsys import bundle as bundles
from recsys import calibrate, evaluate, examples, feed, reliability, rules, runtime, spec
from recsys import ingest as ingest_stage
from recsys import signals as signals_module
from recsys.bundle import Bundle
from recsys.calibrate import Calibrated
from recsys.candidates import Factors
from recsys.catalog import item_vocabularies
from recsys.config import Settings
from recsys.errors import BundleError, DataError
from recsys.features import Describer
from recsys.ingest import Ingest
from recsys.night import Night, Published, device_of, publish_parts, score_units
from recsys.profiles import stable_hash
from recsys.recommend import listed, recommendations, scored
from recsys.runtime import Task, log
from recsys.score import Device, Scorer, chances
from recsys.shop import Sources, midnight
from recsys.signals import Signals
from recsys.tables import DAY_US, DENSE, USER_ID
from recsys.training import Trained, fit_bundle, fit_inputs
from recsys.work import Receipt, Stage, digest, write_atomically

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
    return Prepared(sources, shop, signals, lists, labelled, vocabularies)


# Signals ------------------------------------------------------------------------------------------------------------------------


def make_signals(prepared: Prepared, cutoffs: Sequence[date]) -> None:
    """The signals as of each cutoff; a cutoff is a unit."""
    runtime.run(
        prepared.signals,
        {day.isoformat(): {"cutoff": day.isoformat()} for day in cutoffs},
        _signals_task,
        prepared.settings,
        prepared.ingest,
        prepared.signals.path,
        unit="cut-offs",
    )


def _signals_task(settings: Settings, shop: Ingest, folder: Path) -> Task:
    limit = _hash_limit(shop, settings.signals.max_users)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        cutoff = midnight(date.fromisoformat(unit["cutoff"]))

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
        )
        write_atomically(folder / f"{name}.npz", fitted.save)
        return {"items": len(fitted.items), "neighbours": len(fitted.neighbour_items)}

    return task


def _hash_limit(shop: Ingest, users: int) -> np.uint64:
    """Stable hashes up to this are those of about so many of the shop's users."""
    share = min(1.0, users / max(shop.rows["profiles"], 1))
    return np.uint64(min(share * 2.0**64, 2.0**64 - 2048))  # the largest float64 below 2^64


def read_signals(prepared: Prepared, cutoff: date) -> Signals:
    """The signals as of the cutoff, made if they are not there."""
    make_signals(prepared, [cutoff])
    return signals_module.load(prepared.signals.path / f"{cutoff.isoformat()}.npz")


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
    make_signals(prepared, days)
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
    counts: Counter[str] = Counter()
    names: tuple[str, ...] = ()
    for day, receipts in make_examples(prepared, days).items():
        part = "test" if day == days[-1] else "train"
        (out / part).mkdir(parents=True, exist_ok=True)
        for shard, receipt in zip(prepared.ingest.shards, receipts, strict=True):
            names = tuple(receipt["features"])
            with pa.memory_map(str(prepared.examples.path / f"{day.isoformat()}-{shard}.arrow")) as source:
                table = examples.named(pa.ipc.open_file(source).read_all(), names, prepared.vocabularies)
            write_atomically(
                out / part / f"{day.isoformat()}-{shard}.parquet",
                lambda file, table=table: pa.parquet.write_table(table, file, compression="zstd"),
            )
            counts[part] += table.num_rows
    pairs = {
        "path": str(out / "train"),
        "test": str(out / "test"),
        "numeric": list(names),
        "categorical": list(prepared.vocabularies),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in pairs.items()]
    text = "\n".join(["# Feature rows of jobs.examples: python -m jobs.train --config this file", "[pairs]", *lines, ""])
    write_atomically(out / "pairs.toml", lambda file: file.write_text(text, encoding="utf-8"))
    return dict(counts)


# Train --------------------------------------------------------------------------------------------------------------------------


def train(prepared: Prepared, *, as_of: date, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Trained:
    """The bundle of a model that knows what was known before as_of: early stopping on the last window, then a fit on all.

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
    stage = Stage(
        settings.run.work,
        "train",
        {
            "examples": prepared.examples.digest,
            "cutoffs": [day.isoformat() for day in days],
            **fit_inputs(settings),
            "calibration": settings.calibration,
        },
    )
    files = {day: [prepared.examples.path / f"{day.isoformat()}-{shard}.arrow" for shard in prepared.ingest.shards] for day in days}
    fitting = [file for day in days[:-1] for file in files[day]]
    return fit_bundle(
        stage,
        fitting,
        files[days[-1]],
        spec=lambda: _feature_spec(fitting, parts[0]["features"], prepared),
        settings=settings,
        window={
            "as_of": as_of.isoformat(),
            "cutoffs": [day.isoformat() for day in days],
            "label_days": settings.window.label_days,
        },
        counts=counts,
        on_epoch=on_epoch,
        calibrate=lambda bundle: fit_calibration(prepared, bundle, cutoff=days[-1]),
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

    mean, scale = spec.fit_normalisation(blocks(), len(names))
    return spec.FeatureSpec(tuple(names), mean, scale, tuple(prepared.vocabularies), prepared.vocabularies)


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
        with np.load(stage.path / f"{name}.npz") as file:
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
    describer, scorer = _scoring(prepared, model, signals, None)
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
        _save_arrays(folder / f"{name}.npz", raw=raw, label=label, group=group)
        return {"rows": len(raw), "bought": int(label.sum())}

    return task


def _save_arrays(path: Path, **arrays: np.ndarray) -> None:
    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, savez would add a suffix
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, save)


# Score and publish --------------------------------------------------------------------------------------------------------------


def score(prepared: Prepared, bundle: Bundle, *, as_of: date) -> Published:
    """The recommendation table of as_of: a shard of users is a unit, its receipt names a staged part; one commit publishes all."""
    settings = prepared.settings
    check_bundle(bundle, settings)
    device = device_of(settings.run)
    run_id = digest(
        {
            "as_of": as_of.isoformat(),
            "inputs": prepared.sources.identity(),
            "settings": settings.model_dump(
                mode="json", include={"shop", "features", "window", "signals", "candidates", "rank", "rules"}
            ),
            "lists": prepared.sources.list_identity(),
            "seed": settings.run.seed,
            "model": bundle.model_version,
            "device": device,
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
    )
    stage = Stage(settings.run.work, "score", {"run": run_id, "ingest": prepared.ingest.digest, "table": settings.table.path})
    signals = read_signals(prepared, as_of)
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
    dropped, short = (_added([receipt[name] for receipt in receipts.values()]) for name in ("dropped", "short"))
    published = publish_parts(night, parts, scored=scored, seconds=seconds, dropped=dropped, short=short)
    _write_record(stage.path / "run.json", night, published)
    return published


def _write_record(path: Path, night: Night, published: Published) -> None:
    """What the run made and what its rules took, for people to read; the same bytes however often the run is repeated."""
    counted = asdict(published)
    text = json.dumps(
        {
            "as_of": night.as_of.isoformat(),
            "run_id": night.run_id,
            "model_version": night.model_version,
            "k": night.k,
            **{name: counted[name] for name in ("rows", "users", "short_users", "scored", "dropped", "short")},
        },
        indent=1,
    )
    if not path.exists() or path.read_text() != text:
        write_atomically(path, lambda file: file.write_text(text))


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts by name, names in the order in which they come."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _score_task(prepared: Prepared, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, night: Night) -> Task:
    settings = prepared.settings
    describer, scorer = _scoring(prepared, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        candidates = 0
        tables: list[pa.Table] = []
        dropped: list[dict[str, int]] = []
        short: list[dict[str, int]] = []
        for batch in scored(prepared.ingest.profiles(unit["shard"]), describer, scorer):
            candidates += len(batch.candidates)
            made = listed(batch, settings.rank)
            dropped.append(made.dropped)
            short.append(made.short)
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
        return {"part": part, "candidates": candidates, "dropped": _added(dropped), "short": _added(short)}

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


def _scoring(prepared: Prepared, model: tuple[str, Device], signals: Signals, lists: Path | None) -> tuple[Describer, Scorer]:
    """What one actor scores with: features under the bundle's own vocabularies, and the model.

    Args:
        lists: of `make_lists`; None where the rules with lists do not act, as in training.
    """
    folder, device = model
    loaded = bundles.load(folder)
    describer = Describer(prepared.settings, prepared.ingest.catalog(), signals, loaded.spec.vocabularies, lists)
    return describer, Scorer(loaded, device)


# Backtest -----------------------------------------------------------------------------------------------------------------------


def horizon_end(sources: Sources, *, as_of: date, horizon_days: int) -> date:
    """The day before which purchases count as the backtest's truth: the horizon's end, or the data's with a warning.

    Raises:
        DataError: no event from as_of on.
    """
    data_end = sources.last + timedelta(days=1)
    if data_end <= as_of:
        raise DataError(f"--as-of {as_of}: no event from then on to compare with; the last is of {sources.last}. Use an earlier date.")
    end = as_of + timedelta(days=horizon_days)
    if end > data_end:
        log.warning(
            "backtest: the data ends on %s, so the horizon is %d days, not %d", sources.last, (data_end - as_of).days, horizon_days
        )
    return min(end, data_end)


def backtest(prepared: Prepared, bundle: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """Metrics of lists as of a date against the purchases of [as_of, end), beside the baselines.

    `calibration` is `reliability.summary` against the purchases of window.label_days; null where the horizon is shorter.

    Args:
        bundle: trained as of the same date, else it would know its test.
    """
    trained_as_of = bundle.about["window"]["as_of"]
    assert trained_as_of <= as_of.isoformat(), f"a bundle as of {trained_as_of} cannot be tested as of {as_of}"
    device = device_of(prepared.settings.run)
    signals = read_signals(prepared, as_of)
    stage = Stage(
        prepared.settings.run.work,
        "backtest",
        {"signals": prepared.signals.digest, "examples": prepared.examples.digest, "model": bundle.model_version}
        | {"rules": prepared.rules.digest, "diversity": prepared.settings.rank.diversity}
        | {"as_of": as_of.isoformat(), "end": end.isoformat(), "device": device},
    )
    units = {f"users-{shard}": {"shard": shard} for shard in prepared.ingest.shards}
    arguments = (prepared, (str(bundle.folder), device), ray.put(signals.arrays()), make_lists(prepared), as_of, end, stage.path)
    receipts = runtime.run(stage, units, _backtest_task, *arguments, actors=prepared.settings.run.actors, device=device, unit="shards")
    result = evaluate.summary(evaluate.add([receipt["sums"] for receipt in receipts.values()]))
    calibration = None
    if _label_end(prepared.settings, as_of) <= end:
        total = reliability.zero()
        for name in receipts:
            with np.load(stage.path / f"{name}.npz") as file:
                total = {key: values + file[key] for key, values in total.items()}
        calibration = reliability.summary(total)
    return {"as_of": as_of.isoformat(), "horizon_days": (end - as_of).days, **result, "calibration": calibration}


def _label_end(settings: Settings, as_of: date) -> date:
    """The day before which a purchase makes true what a score as of a date foretells."""
    return as_of + timedelta(days=settings.window.label_days)


def _backtest_task(
    prepared: Prepared, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, as_of: date, end: date, folder: Path
) -> Task:
    describer, scorer = _scoring(prepared, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)
    factors = Factors(prepared.settings.signals)
    label_end = _label_end(prepared.settings, as_of)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        start, stop = midnight(as_of), midnight(end)
        sums: list[Mapping[str, Mapping[str, float]]] = []
        total = reliability.zero()
        for batch in scored(prepared.ingest.profiles(unit["shard"]), describer, scorer):
            sums.append(evaluate.evaluate(batch, start=start, end=stop, factors=factors, diversity=prepared.settings.rank.diversity))
            if label_end <= end:
                more = reliability.count(batch, chance=chance, end=midnight(label_end))
                total = {key: values + more[key] for key, values in total.items()}
        _save_arrays(folder / f"{name}.npz", **total)
        return {"sums": evaluate.add(sums)}

    return task
