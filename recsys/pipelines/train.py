"""Examples -> a calibrated bundle of a shop's model."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.types import day_of
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units, share
from recsys.errors import DataError
from recsys.features import candidate_sampling, examples
from recsys.hashing import sampled, stable_hash
from recsys.pipelines.examples import labelled, shape_as_of, training_cutoffs
from recsys.pipelines.past import share_of
from recsys.pipelines.score import scoring
from recsys.pipelines.signals import ShopState, examples_of, read_signals
from recsys.ranking.bundle import Bundle
from recsys.ranking.calibration import Calibrated, fit_calibration
from recsys.ranking.recommend import score_users
from recsys.ranking.scorer import Device
from recsys.retrieval.signals import Signals
from recsys.schema import DAY_US, USER_ID
from recsys.storage import load_arrays, save_arrays
from recsys.training.fit import Trained, fit_bundle, fit_inputs


def train_shop(state: ShopState, *, as_of: date, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> Trained:
    """The bundle of a model that knows what was known before as_of: early stopping on the last window, then a fit on all.

    Raises:
        DataError: as `labelled`.
    """
    settings = state.settings
    days = training_cutoffs(state, as_of)
    read = labelled(state, as_of=as_of)
    stage = Stage(settings.run.work, "train", {**read.identity, **fit_inputs(settings), "calibration": settings.calibration})
    return fit_bundle(
        stage,
        read,
        settings=settings,
        on_epoch=on_epoch,
        calibrate=lambda bundle: calibrate(state, bundle, cutoff=days[-1]),
    )


# Calibrate ----------------------------------------------------------------------------------------------------------------------


def calibrate(state: ShopState, bundle: Bundle, *, cutoff: date) -> Calibrated:
    """What turns raw outputs into chances, from all candidates as of a cutoff whose label window the bundle was not fitted on.

    A shard of users is a unit. Rows are scored on CPU wherever the night is, so that the calibration is the same.

    Raises:
        DataError: none of the chosen users has a candidate.
    """
    settings = state.settings
    stage = Stage(
        settings.run.work,
        "calibrate",
        {
            "examples": [state.examples.digest, *examples_of(state, [cutoff]).values()],
            "model": bundle.model_version,
            "cutoff": cutoff.isoformat(),
            "calibration": settings.calibration,
            "share": share_of(state.dataset.contents.users_before(cutoff), settings.calibration.max_users),
        },
    )
    receipts = run_units(
        stage,
        {f"users-{shard}": {"shard": shard} for shard in state.dataset.shards},
        _calibrate_task,
        state,
        (str(bundle.folder), "cpu"),
        share(read_signals(state, cutoff).arrays()),
        stage.path,
        actors=settings.run.actors,
        unit="shards",
    )
    parts = []
    for name in receipts:
        file = load_arrays(stage.path / f"{name}.npz")
        parts.append((file["raw"], file["label"], file["group"], file["purchases"]))
    raw, label, group, purchases = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not len(raw):
        raise DataError(
            f"calibration.max_users = {settings.calibration.max_users}: no chosen user has a candidate as of {cutoff}. Raise it."
        )
    return fit_calibration(raw, label, group, purchases)


def _calibrate_task(state: ShopState, model: tuple[str, Device], arrays: dict[str, np.ndarray], folder: Path) -> Task:
    settings = state.settings
    signals = Signals(**arrays)
    featurizer, scorer = scoring(state, model, signals, None)
    shape = shape_as_of(state, featurizer)
    start = int(signals.cutoff)
    share = share_of(state.dataset.contents.users_before(day_of(start)), settings.calibration.max_users)
    end = start + settings.window.label_days * DAY_US

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        histories = state.dataset.histories(unit["shard"])
        hashes = stable_hash(histories.users.column(USER_ID).to_numpy())
        histories = histories.take(np.flatnonzero(sampled(hashes, share)))
        only = (
            candidate_sampling.sample_candidates(shape, featurizer, histories, wanted=None, seed=settings.run.seed)
            if shape is not None
            else None
        )
        found = [(np.empty(0, np.float32), np.empty(0, bool), np.empty(0, np.uint64), np.empty(0, np.int64))]
        for batch in score_users(histories, featurizer, scorer, only):
            label = examples.bought(batch.candidates, batch.users, window=batch.histories.between(start, end))
            group = stable_hash(batch.histories.users.column(USER_ID).to_numpy())[batch.candidates.user_row]
            kept = batch.modelled[batch.candidates.user_row]
            purchases = batch.users.activity[batch.candidates.user_row]
            found.append((batch.raw[kept], label[kept], group[kept], purchases[kept]))
        raw, label, group, purchases = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        save_arrays(folder / f"{name}.npz", raw=raw, label=label, group=group, purchases=purchases)
        return {"rows": len(raw), "bought": int(label.sum())}

    return task
