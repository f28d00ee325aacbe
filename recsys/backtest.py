"""The backtest as a stage: lists as of a date, beside baselines, held against what was bought after it; a shard of users is a unit."""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray

from recsys import evaluate, reliability, runtime
from recsys.bundle import Bundle
from recsys.config import Settings
from recsys.errors import DataError
from recsys.night import device_of
from recsys.pipeline import scoring
from recsys.prepare import Prepared, given_of, make_lists, read_signals
from recsys.recommend import scored
from recsys.retrieval import Factors
from recsys.runtime import Task, log
from recsys.score import Device, chances
from recsys.shop import Sources, midnight
from recsys.signals import Signals
from recsys.work import Receipt, Stage, load_arrays, save_arrays


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


def measure(prepared: Prepared, bundle: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """Metrics of lists as of a date against the purchases of [as_of, end), beside the baselines.

    Where candidates are given, the baselines too rank these alone, and users without one do not count. `calibration` is
    `reliability.summary` against the purchases of window.label_days; null where the horizon is shorter.

    Args:
        bundle: trained as of the same date, else it would know its test.
    """
    stage, receipts = _measured(prepared, bundle, as_of=as_of, end=end)
    result = evaluate.summary(_sums(stage, receipts, "lists"))
    calibration = None
    if _label_end(prepared.settings, as_of) <= end:
        calibration = reliability.summary(_sums(stage, receipts, "scores"))
    return {"as_of": as_of.isoformat(), "horizon_days": (end - as_of).days, **result, "calibration": calibration}


def paired(prepared: Prepared, bundle: Bundle, other: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """NDCG@10 of one bundle less another's, user by user, on lists as of a date against the purchases of [as_of, end).

    Returns:
        `mean`; `interval`, its 95% bounds by the bootstrap over users, whose resamples both bundles share; `users`. None, None and 0
        where no user counts.
    """
    return evaluate.paired(*(_sums(*_measured(prepared, one, as_of=as_of, end=end), "lists") for one in (bundle, other)))


def _sums(stage: Stage, receipts: Mapping[str, Receipt], what: str) -> dict[str, np.ndarray]:
    return evaluate.add(load_arrays(stage.path / f"{name}-{what}.npz") for name in receipts)


def _measured(prepared: Prepared, bundle: Bundle, *, as_of: date, end: date) -> tuple[Stage, dict[str, Receipt]]:
    trained_as_of = bundle.about["window"]["as_of"]
    assert trained_as_of <= as_of.isoformat(), f"a bundle as of {trained_as_of} cannot be tested as of {as_of}"
    device = device_of(prepared.settings.run)
    signals = read_signals(prepared, as_of, lists=True)
    stage = Stage(
        prepared.settings.run.work,
        "backtest",
        {"signals": prepared.signals.digest, "examples": prepared.examples.digest, "model": bundle.model_version}
        | {
            "as_of": as_of.isoformat(),
            "end": end.isoformat(),
            "device": device,
            "given": prepared.given.digest if prepared.given else None,
            "rules": prepared.rules.digest,
            "diversity": prepared.settings.rank.diversity,
            "seed": prepared.settings.run.seed,
        },
    )
    units = {f"users-{shard}": {"shard": shard} for shard in prepared.ingest.shards}
    arguments = (prepared, (str(bundle.folder), device), ray.put(signals.arrays()), make_lists(prepared), as_of, end, stage.path)
    receipts = runtime.run(stage, units, _measure_task, *arguments, actors=prepared.settings.run.actors, device=device, unit="shards")
    return stage, receipts


def _label_end(settings: Settings, as_of: date) -> date:
    """The day before which a purchase makes true what a score as of a date foretells."""
    return as_of + timedelta(days=settings.window.label_days)


def _measure_task(
    prepared: Prepared, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, as_of: date, end: date, folder: Path
) -> Task:
    describer, scorer = scoring(prepared, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)
    factors = Factors(prepared.settings.signals)
    told = {"seed": prepared.settings.run.seed, "diversity": prepared.settings.rank.diversity}
    label_end = _label_end(prepared.settings, as_of)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        start, stop = midnight(as_of), midnight(end)
        sums: dict[str, np.ndarray] = {}
        total = reliability.zero()
        profiles, only = prepared.ingest.profiles(unit["shard"]), given_of(prepared, unit["shard"])
        for batch in scored(profiles, describer, scorer, only):
            found = evaluate.evaluate(batch, start=start, end=stop, factors=factors, **told)
            sums = evaluate.add([sums, found])
            if label_end <= end:
                total = evaluate.add([total, reliability.count(batch, chance=chance, end=midnight(label_end))])
        save_arrays(folder / f"{name}-lists.npz", **sums)
        save_arrays(folder / f"{name}-scores.npz", **total)
        return {"users": {key: int(sums[f"{key} users"][0]) if sums else 0 for key in evaluate.SLICES}}

    return task
