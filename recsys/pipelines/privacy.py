"""What noise costs and buys: one shop's model fitted without it and with, how good its lists are, and whether it tells who it knew.

Half of the users, chosen by hash, are learned from. Who holds a model's weights and somebody's rows may ask whether that user was
one of them: small losses say so (the loss-threshold attack of Yeom et al. 2018). Its advantage is the largest difference, over all
thresholds, between the share of those learned from whom it finds and the share of the others whom it takes for one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import log_expit
from scipy.stats import ks_2samp

from recsys.engine.stage import Stage
from recsys.errors import ConfigError, DataError
from recsys.evaluation import backtest
from recsys.hashing import mix, sampled, stable_hash
from recsys.pipelines.backtest import measure, paired
from recsys.pipelines.examples import labelled, training_cutoffs
from recsys.pipelines.signals import ShopState
from recsys.pipelines.train import calibrate
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Scorer
from recsys.schema import CODES, DENSE, LABEL, USER_ID
from recsys.storage import write_arrow, write_atomically
from recsys.training.fit import Labelled, fit_bundle, fit_inputs

HALVES = np.uint64(0xD1B54A32D192ED03)  # turns the hashes of users, so that the halves are no other choice's


@dataclass(frozen=True)
class Fitted:
    """One model."""

    noise: float | None
    """None: without privacy."""
    epsilon: float | None
    ndcg: float | None
    """NDCG@10 over the users who wanted something in the label window after as_of; None where there is none."""
    difference: dict[str, Any] | None
    """Less that of the model without: `mean` and `interval`, as of `backtest.paired`; None for that model itself."""
    advantage: float
    """0: whom it learned from cannot be told; 1: it is plain."""
    p_value: float
    """The chance of as large an advantage where membership had no part in it (Kolmogorov and Smirnov's test, one-sided)."""
    members: int
    others: int


def compare(
    state: ShopState, *, as_of: date, end: date, noises: Sequence[float], on_fitted: Callable[[Fitted], None] = lambda _: None
) -> list[Fitted]:
    """The model without noise, then with each: all else as train.privacy says, which must be there.

    Args:
        as_of: what was known before it is learned from.
        end: the lists are held against what was wanted in [as_of, end).
        on_fitted: called with each that is done.

    Raises:
        ConfigError: train.privacy is absent, or its delta means nothing for half of the users.
        DataError: as `labelled`; or a half of the users is empty.
    """
    settings = state.settings
    privacy = settings.train.privacy
    if privacy is None:
        raise ConfigError("train.privacy: must be set, as its clip, delta, users and rows are tried with each noise. Add the section.")
    read = labelled(state, as_of=as_of)
    days = training_cutoffs(state, as_of)
    found: list[Fitted] = []
    first: Bundle | None = None
    for noise in (None, *noises):
        given = None if noise is None else privacy.model_copy(update={"noise": noise})
        tried = settings.model_copy(update={"train": settings.train.model_copy(update={"privacy": given})})
        stage = Stage(settings.run.work, "privacy", {**read.identity, **fit_inputs(tried), "calibration": settings.calibration})
        members, others = _halves(read.fitting, stage.path)
        validating, _ = _halves(read.validating, stage.path)
        half = Labelled(members, validating, read.identity, read.spec, read.window, _rows(members), read.decided)
        bundle = fit_bundle(stage, half, settings=tried, calibrate=lambda made: calibrate(state, made, cutoff=days[-1])).bundle
        if not (_rows(members)["rows"] and _rows(others)["rows"]):
            raise DataError(
                f"--as-of {as_of}: half of the users must have something to learn from, and the other half too. Widen [window]."
            )
        inside, outside = (_losses(files, bundle) for files in (members, others))
        told = ks_2samp(inside, outside, alternative="greater", method="asymp")
        metrics = measure(state, bundle, as_of=as_of, end=end)
        first = first or bundle
        one = Fitted(
            noise,
            bundle.about["metrics"].get("privacy", {}).get("epsilon"),
            metrics["models"][backtest.OURS]["all"]["ndcg@10"],
            None if noise is None else paired(state, bundle, first, as_of=as_of, end=end),
            float(told.statistic),
            float(told.pvalue),
            len(inside),
            len(outside),
        )
        found.append(one)
        on_fitted(one)
    return found


def _halves(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path]]:
    """The files' rows of the users to learn from, and of the others, each a file for a file."""
    made: tuple[list[Path], list[Path]] = [], []
    for file in files:
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
            inside = pa.array(sampled(mix(stable_hash(table.column(USER_ID).to_numpy()) ^ HALVES), 0.5))
            for paths, name, chosen in ((made[0], "members", inside), (made[1], "others", pc.invert(inside))):
                paths.append(folder / f"{file.stem}-{name}.arrow")
                rows = table.filter(chosen)
                write_atomically(paths[-1], lambda path, rows=rows: write_arrow(rows, path))
    return made


def _rows(files: Sequence[Path]) -> dict[str, int]:
    return {"rows": sum(_read(file).num_rows for file in files)}


def _read(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()


def _losses(files: Sequence[Path], bundle: Bundle) -> np.ndarray:
    """The mean cross-entropy of each user's rows, nats, float64."""
    scorer, tables = Scorer(bundle), list[pa.Table]()
    for table in map(_read, files):
        dense, codes = (table.column(name).combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1) for name in (DENSE, CODES))
        raw, label = scorer(dense, codes).astype(np.float64), table.column(LABEL).to_numpy()
        loss = -(label * log_expit(raw) + (1 - label) * log_expit(-raw))
        tables.append(pa.table({USER_ID: table.column(USER_ID), "loss": loss}))
    return pa.concat_tables(tables).group_by(USER_ID).aggregate([("loss", "mean")]).column("loss_mean").to_numpy()
