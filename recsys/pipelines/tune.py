"""A search judged by lists: each trial is a model as of one label length ago, and its lists are held against what was bought since.

So trials may differ in what is learned from, which a loss cannot compare. They run one after the other, as each uses the whole cluster;
every stage of a trial has its receipts, so one that was made before is only read.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from recsys.config import Settings
from recsys.data.shop import ShopInputs, check_as_of, open_shop
from recsys.engine.progress import log
from recsys.errors import ConfigError, DataError
from recsys.evaluation import backtest
from recsys.evaluation.backtest import OURS, SLICES
from recsys.pipelines.backtest import horizon_end, list_sums
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.training.search import applied, draw, word


@dataclass(frozen=True)
class ListsTrial:
    """One model of the search, and how its lists did."""

    number: int
    """From 1; the first has the settings as they stand."""
    values: dict[str, Any]
    """What was tried: each searched key's value, `ABSENT` where it is left out."""
    ndcg: dict[str, float]
    """NDCG@10 by slice, "all" and "new"; a slice in which no user counts is not there. Empty where the trial failed."""
    differences: dict[str, dict[str, Any]]
    """As `ndcg`, less the first trial's, user by user: `mean`, and `interval`, its 95% bounds by the bootstrap over users."""
    candidates: float
    """Of a user, on average."""
    seconds: float
    """Of this run; next to none where all was made before."""
    failed: str | None = None
    """Why there is no model."""


@dataclass(frozen=True)
class ListsSearch:
    """The trials of a search before they are made."""

    before: date
    """The day that all models are as of."""
    end: date
    """The day before which purchases count."""
    trials: list[tuple[dict[str, Any], ShopInputs]]
    """What each tries, and the shop under its settings."""


def open_search(settings: Settings, *, as_of: date, trials: int) -> ListsSearch:
    """The trials 1 to `trials`, of models that know what was known window.label_days before as_of; the days between are the test.

    Raises:
        DataError: as `open_shop`, of any trial.
    """
    label_days = settings.window.label_days
    before = as_of - timedelta(days=label_days)
    drawn = [draw(settings, number) for number in range(1, trials + 1)]
    opened = [(values, _opened(settings, number, values, as_of=as_of)) for number, values in enumerate(drawn, start=1)]
    return ListsSearch(before, horizon_end(opened[0][1], as_of=before, horizon_days=label_days), opened)


def search_lists(search: ListsSearch, *, on_trial: Callable[[ListsTrial], None] | None = None) -> list[ListsTrial]:
    """All trials of a search, one after the other.

    Args:
        on_trial: called with each trial that ends.

    Raises:
        ConfigError, DataError: the settings as they stand make no model; or nobody counts.
    """
    found: list[ListsTrial] = []
    first: Mapping[str, np.ndarray] = {}
    for number, (values, inputs) in enumerate(search.trials, start=1):
        began = time.perf_counter()
        try:
            state = shop_state(inputs, end=search.end, as_of=search.before)
            bundle = train_shop(state, as_of=search.before).bundle
            sums = list_sums(state, bundle, as_of=search.before, end=search.end)
        except (ConfigError, DataError) as error:
            if number == 1:
                raise
            trial = ListsTrial(number, values, {}, {}, np.nan, time.perf_counter() - began, str(error))
        else:
            first = first or sums
            trial = _judged(number, values, sums, first, seconds=time.perf_counter() - began)
            if not trial.ndcg:
                raise DataError(f"--as-of: nobody with a history bought anything from {search.before} on. Use an earlier date.")
        found.append(trial)
        if on_trial is not None:
            on_trial(trial)
    return found


def _opened(settings: Settings, number: int, values: Mapping[str, Any], *, as_of: date) -> ShopInputs:
    """The inputs of a trial; of one that cannot be one sentence, before work starts."""
    where = f"tune: trial {number} ({', '.join(f'{key} = {word(value)}' for key, value in values.items())})"
    try:
        inputs = open_shop(applied(settings, values), as_of=as_of)
        check_as_of(inputs, as_of, test_days=settings.window.label_days)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return inputs


def _judged(
    number: int, values: dict[str, Any], sums: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], *, seconds: float
) -> ListsTrial:
    result = backtest.summary(sums)
    counted = [name for name in SLICES if result["users"][name]]
    return ListsTrial(
        number,
        values,
        {name: result["models"][OURS][name]["ndcg@10"] for name in counted},
        {name: backtest.paired(sums, first, name) for name in counted},
        result["candidates"]["per_user"] or 0.0,
        seconds,
    )


def shares(trials: Sequence[ListsTrial]) -> list[float]:
    """How each trial did: NDCG@10 as a share of the best trial's, the mean over the slices; minus infinity for one that failed.

    So new items, whose NDCG@10 is a fraction of that of all, weigh as much.
    """
    made = [trial for trial in trials if trial.failed is None]
    best = {name: max(trial.ndcg[name] for trial in made) or 1.0 for name in made[0].ndcg}
    return [
        -np.inf if trial.failed is not None else float(np.mean([trial.ndcg[name] / most for name, most in best.items()]))
        for trial in trials
    ]


def best_of(trials: Sequence[ListsTrial]) -> ListsTrial:
    """The trial with the largest share, the first of equal ones; whether that is more than chance, its differences say."""
    best = trials[int(np.argmax(shares(trials)))]
    bounds = [one["interval"] for one in best.differences.values()]
    if best.number > 1 and not any(low > 0 for low, _ in bounds):
        log.warning("tune: trial %d is best, but not shown to be better than the settings as they stand", best.number)
    return best
