"""The backtest as a stage: lists as of a date, beside baselines, held against what was bought after it; a shard of users is a unit."""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from recsys.config import Settings
from recsys.data.shop import ShopInputs
from recsys.data.types import midnight
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units, share
from recsys.errors import DataError
from recsys.evaluation import backtest, fairness
from recsys.evaluation.reliability import count, summary, zero
from recsys.hashing import mix, sampled, stable_hash
from recsys.pipelines.past import als_of, share_of
from recsys.pipelines.score import device_of, scoring
from recsys.pipelines.signals import ShopState, make_lists, read_signals, supplied_of
from recsys.ranking.bundle import Bundle
from recsys.ranking.recommend import score_users
from recsys.ranking.scorer import Device, chances
from recsys.retrieval.signals import Signals
from recsys.schema import USER_ID
from recsys.storage import load_arrays, save_arrays

TESTED = np.uint64(0x9E3779B97F4A7C15)  # turns the hashes of users, so that other users are chosen than a model learns from


def horizon_end(inputs: ShopInputs, *, as_of: date, horizon_days: int) -> date:
    """The day before which purchases count as the backtest's truth: the horizon's end, or the data's with a warning.

    Raises:
        DataError: no event from as_of on.
    """
    data_end = inputs.last + timedelta(days=1)
    if data_end <= as_of:
        raise DataError(f"--as-of {as_of}: no event from then on to compare with; the last is of {inputs.last}. Use an earlier date.")
    end = as_of + timedelta(days=horizon_days)
    if end > data_end:
        log.warning(
            "backtest: the data ends on %s, so the horizon is %d days, not %d", inputs.last, (data_end - as_of).days, horizon_days
        )
    return min(end, data_end)


def measure(state: ShopState, bundle: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """Metrics of lists as of a date against the purchases of [as_of, end), beside the baselines.

    Where candidates are given, the baselines too rank these alone, and users without one do not count. `calibration` is
    `reliability.summary` against the purchases of window.label_days; null where the horizon is shorter. Where [fairness] names groups,
    `fairness` is `fairness.summary`.

    Args:
        bundle: trained as of the same date, else it would know its test.
    """
    stage, receipts = _measured(state, bundle, as_of=as_of, end=end)
    result = backtest.summary(_sums(stage, receipts, "lists"))
    calibration = None
    if _label_end(state.settings, as_of) <= end:
        calibration = summary(_sums(stage, receipts, "scores"))
    told = {"as_of": as_of.isoformat(), "horizon_days": (end - as_of).days, **result, "calibration": calibration}
    if _audited(state.settings):
        told["fairness"] = fairness.summary(_sums(stage, receipts, "groups"), state.dataset.catalog())
    return told


def paired(state: ShopState, bundle: Bundle, other: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """NDCG@10 of one bundle less another's, user by user, on lists as of a date against the purchases of [as_of, end).

    Returns:
        `mean`; `interval`, its 95% bounds by the bootstrap over users, whose resamples both bundles share; `users`. None, None and 0
        where no user counts.
    """
    ours, others = (list_sums(state, one, as_of=as_of, end=end) for one in (bundle, other))
    return backtest.paired(ours, others)


def list_sums(state: ShopState, bundle: Bundle, *, as_of: date, end: date) -> dict[str, np.ndarray]:
    """The sums of `backtest.evaluate` over all users, of what `measure` tells the means."""
    return _sums(*_measured(state, bundle, as_of=as_of, end=end), "lists")


def _sums(stage: Stage, receipts: Mapping[str, Receipt], what: str) -> dict[str, np.ndarray]:
    return backtest.add(load_arrays(stage.path / f"{name}-{what}.npz") for name in receipts)


def _measured(state: ShopState, bundle: Bundle, *, as_of: date, end: date) -> tuple[Stage, dict[str, Receipt]]:
    trained_as_of = bundle.about["window"]["as_of"]
    assert trained_as_of <= as_of.isoformat(), f"a bundle as of {trained_as_of} cannot be tested as of {as_of}"
    device = device_of(state.settings.run)
    signals = read_signals(state, as_of, lists=True, als=als_of(bundle.about))
    stage = Stage(
        state.settings.run.work,
        "backtest",
        {
            **state.lists_of(as_of),
            "model": bundle.model_version,
            "as_of": as_of.isoformat(),
            "end": end.isoformat(),
            "device": device,
            "max_users": state.settings.champion.max_users,
        },
    )
    units = {f"users-{shard}": {"shard": shard} for shard in state.dataset.shards}
    arguments = (state, (str(bundle.folder), device), share(signals.arrays()), make_lists(state), as_of, end, stage.path)
    receipts = run_units(stage, units, _measure_task, *arguments, actors=state.settings.run.actors, device=device, unit="shards")
    return stage, receipts


def _audited(settings: Settings) -> bool:
    return bool(settings.fairness.user_groups or settings.fairness.item_groups)


def _label_end(settings: Settings, as_of: date) -> date:
    """The day before which a purchase makes true what a score as of a date foretells."""
    return as_of + timedelta(days=settings.window.label_days)


def _measure_task(
    state: ShopState, model: tuple[str, Device], arrays: dict[str, np.ndarray], lists: Path, as_of: date, end: date, folder: Path
) -> Task:
    featurizer, scorer = scoring(state, model, Signals(**arrays), lists)
    chance = chances(scorer.bundle)
    told = {"seed": state.settings.run.seed, "diversity": state.settings.rank.diversity}
    label_end = _label_end(state.settings, as_of)
    audited, asked = _audited(state.settings), state.settings.fairness.model_dump()
    share = share_of(state.dataset.contents.users_before(as_of), state.settings.champion.max_users)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        start, stop = midnight(as_of), midnight(end)
        sums: dict[str, np.ndarray] = {}
        total = zero()
        groups: dict[str, np.ndarray] = {}
        histories, only = state.dataset.histories(unit["shard"]), supplied_of(state, unit["shard"])
        if share < 1.0:
            hashes = mix(stable_hash(histories.users.column(USER_ID).to_numpy()) ^ TESTED)
            rows = np.flatnonzero(sampled(hashes, share))
            histories, only = histories.take(rows), only.take(rows) if only is not None else None
        for batch in score_users(histories, featurizer, scorer, only):
            found = backtest.evaluate(batch, start=start, end=stop, **told)
            sums = backtest.add([sums, found])
            if label_end <= end:
                total = backtest.add([total, count(batch, chance=chance, end=midnight(label_end))])
            if audited:
                times = {"start": start, "end": stop, "label_end": midnight(label_end)}
                groups = backtest.add([groups, fairness.count(batch, **asked, **times, chance=chance, **told)])
        save_arrays(folder / f"{name}-lists.npz", **sums)
        save_arrays(folder / f"{name}-scores.npz", **total)
        save_arrays(folder / f"{name}-groups.npz", **groups)
        return {"users": {key: int(sums[f"{key} users"][0]) if sums else 0 for key in backtest.SLICES}}

    return task
