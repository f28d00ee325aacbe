"""A time-split backtest: lists as of a date beside simple baselines, compared with what users bought after it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recsys import metrics
from recsys.data.histories import Histories
from recsys.evaluation import bootstrap
from recsys.hashing import stable_hash
from recsys.ranking.recommend import ScoredUsers, cut_batch
from recsys.ranking.top_k import ROUNDING, cut_lists, item_lists
from recsys.retrieval import best_kernels
from recsys.retrieval.best_kernels import sort
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.heaps import Barred, Heaps, empty_heaps
from recsys.retrieval.item_sums import MONTH, POPULARITY_DAYS
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Factors, Group, Neighbours
from recsys.retrieval.users import UserBatch
from recsys.schema import USER_ID

K = 20  # ranked for evaluation, whatever the published k is
KS = (10, 20)
OURS = "mlp"
MODELS = (OURS, "popular", "popular_28d", "popular_7d", "own", "own_then_popular", "neighbours", "factors")
UNEXPOSED = f"{OURS} ndcg@10 without exposures"
LEAST_USERS = 30  # that a bound is drawn from: resamples of fewer are too much alike to show that a model is worse
SLICES = ("all", "new")  # all items; items that the user had not bought before the date


@dataclass(frozen=True)
class Truth:
    """What a batch of users bought in the horizon, as sorted item codes by user."""

    offsets: np.ndarray
    items: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """int64 (U): relevant items."""
        return np.diff(self.offsets)


def truth(histories: Histories, *, start: int, end: int, new: bool) -> Truth:
    """The distinct items wanted in [start, end), without those wanted before where `new`."""
    catalog = int(histories.item.max(initial=0)) + 1
    relevant = _pairs(histories, start, end, catalog)
    if new:
        relevant = np.setdiff1d(relevant, _pairs(histories, np.iinfo(np.int64).min, start, catalog), assume_unique=True)
    user, item = np.divmod(relevant, catalog)
    return Truth(np.searchsorted(user, np.arange(len(histories) + 1)), item.astype(np.int32))


def _pairs(histories: Histories, start: int, end: int, catalog: int) -> np.ndarray:
    """int64: user row x catalog + item code of every distinct pair wanted in [start, end), ascending."""
    events = histories.between(start, end)
    return np.unique(events.user_row[events.wanted].astype(np.int64) * catalog + events.item[events.wanted])


Sums = Mapping[str, np.ndarray]  # by name, each (1 + RESAMPLES): over the users as they are, then over those of each resample


def evaluate(batch: ScoredUsers, *, start: int, end: int, seed: int, diversity: float = 0.0) -> dict[str, np.ndarray]:
    """Sums over the batch's users that `summary` turns into means and intervals.

    Users count who bought or looked at something within the history before `start`, have a relevant item in [start, end), and, where
    candidates are given, have one of these; the baselines then rank these alone.

    Args:
        seed: of the resamples.
        diversity: of the model's lists, as rank.diversity; the rules hold for all lists, the baselines' too.

    Returns:
        Of each slice, "all" and "new": "slice users", then "slice model metric@k", and with rules of exposure "slice UNEXPOSED"; also
        "recall source", "recall union" and "candidates" over the users of "all". Each float64 (1 + RESAMPLES).
    """
    users, candidates = batch.users, batch.candidates
    sums: dict[str, np.ndarray] = {}
    weights = bootstrap.draws(stable_hash(users.history.users.column(USER_ID).to_numpy()), seed=seed)
    seen = _seen(batch.histories, users, start)
    unseen = users.barred.also(seen)
    for name in SLICES:
        new = name == "new"
        actual = truth(batch.histories, start=start, end=end, new=new)
        counted = batch.modelled & (actual.count > 0)
        if users.supplied is not None:
            counted &= np.bincount(users.supplied.user_row, minlength=len(users)) > 0
        values = {f"{name} users": np.ones(int(counted.sum()))}
        for model in MODELS:
            if model == OURS:
                kept = ~np.isin(_keys(candidates, users), seen) if new else np.ones(len(candidates), bool)
                mine = candidates.keep(kept)
                ranked, _ = cut_batch(batch, mine, batch.raw[kept], k=K, diversity=diversity)
                lists = item_lists(ranked, mine, users.signals.items, users=len(users), k=K)
                if users.rules.exposures:
                    ranked, _ = cut_batch(batch, mine, batch.raw[kept], k=K, diversity=diversity, exposed=False)
                    free = item_lists(ranked, mine, users.signals.items, users=len(users), k=K)[counted]
                    values[f"{name} {UNEXPOSED}"] = metrics.ndcg(metrics.hits(free, *_of(actual, counted)), actual.count[counted], 10)
            else:
                lists = _lists(model, users, unseen if new else users.barred)
            hits = metrics.hits(lists[counted], *_of(actual, counted))
            for metric, function in metrics.RANKING.items():
                for k in KS:
                    values[f"{name} {model} {metric}@{k}"] = function(hits, actual.count[counted], k)
        if not new:
            values |= _recall(candidates, users, actual, counted)
        total = bootstrap.sums(np.stack(list(values.values()), axis=1), weights[:, counted])
        sums |= dict(zip(values, total.T.copy(), strict=True))
    return sums


def _of(actual: Truth, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and items of the counted users alone."""
    kept = np.repeat(counted, actual.count)
    return np.concatenate([[0], np.cumsum(actual.count[counted])]), actual.items[kept]


def _seen(histories: Histories, users: RuledUsers, start: int) -> np.ndarray:
    """int64: user row x J + active position of what the users wanted at any time before the date."""
    before = histories.between(np.iinfo(np.int64).min, start)
    position = users.signals.position[before.item[before.wanted]]
    row = before.user_row[before.wanted].astype(np.int64)
    return np.unique((row * len(users.signals.items) + position)[position >= 0])


def _keys(candidates: Candidates, users: RuledUsers) -> np.ndarray:
    return candidates.user_row * len(users.signals.items) + candidates.item


class Window:
    """Baseline: what most users bought in the last so many days, however often each."""

    def __init__(self, row: int) -> None:
        self.row = row  # of the signals' buyers

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        buyers = users.signals.buyers[self.row]
        order = np.argsort(-buyers, kind="stable")[: np.count_nonzero(buyers)].astype(np.int32)
        best_kernels.of_order(order, buyers[order], np.arange(len(users)), barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102, ARG002
        buyers = users.signals.buyers[self.row, item]
        return np.where(buyers > 0, buyers, np.nan)


class OwnDays:
    """Baseline: the items that the user bought on most days, of equals the one bought last."""

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        best_kernels.of_rows(*users.bought, (users.own.count + 1.0 / (2.0 + users.own.last))[:-1].astype(np.float32), barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        place, known = users.own.find(user_row * len(users.signals.items) + item)
        days = users.own.count[place] + 1.0 / (2.0 + users.own.last[place])
        return np.where(known, days, np.nan).astype(np.float32)


class OwnThenPopular:
    """Baseline: after these what most users bought in the last 28 days, then the rest."""

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = OwnDays().best(users, barred, limit)
        score = self._popular(users)
        order = np.argsort(-score, kind="stable").astype(np.int32)
        order = order[users.signals.buyers[-1, order] > 0]
        best_kernels.of_order(order, score[order], np.arange(len(users)), barred.also(users.own_key), found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        own = OwnDays().scores(users, user_row, item)
        popular = np.where(users.signals.buyers[-1] > 0, self._popular(users), np.nan)[item]
        return np.where(np.isnan(own), popular, own)

    def _popular(self, users: UserBatch) -> np.ndarray:
        buyers = users.signals.buyers
        return (buyers[MONTH] / (buyers.max() + 1) - 1).astype(np.float32)  # below all days


BASELINES: Mapping[str, "Window | OwnDays | OwnThenPopular | Neighbours | Factors"] = {
    "popular": Window(-1),
    "popular_28d": Window(MONTH),
    "popular_7d": Window(POPULARITY_DAYS.index(7)),
    "own": OwnDays(),
    "own_then_popular": OwnThenPopular(),
    "neighbours": Neighbours(),
    "factors": Factors(),
}


def _lists(model: str, users: RuledUsers, barred: Barred) -> np.ndarray:
    """int32 (U, K) item codes of a baseline's best items that are not barred, -1 beyond a list's end."""
    codes, caps, exposures = users.signals.items, users.rules.caps, users.rules.exposures
    limit = K
    while True:  # caps and exposures may pass over what a longer list makes up for
        row, item, rank = _best(model, users, barred, limit)
        ranked, _ = cut_lists(row, item, -rank.astype(np.float32), k=K, caps=caps, exposures=exposures, codes=codes)
        full = np.bincount(row[ranked.row], minlength=len(users)) == K
        for one in exposures:
            shown = np.bincount(row[ranked.row], weights=one.member[codes[item[ranked.row]]], minlength=len(users))
            full &= shown >= math.floor(one.at_least * K + ROUNDING)
        if not (caps or exposures) or limit >= len(codes) or (full | (np.bincount(row, minlength=len(users)) < limit)).all():
            break
        limit = min(4 * limit, len(codes))
    lists = np.full((len(users), K), -1, np.int32)
    lists[row[ranked.row], ranked.rank - 1] = codes[item[ranked.row]]
    return lists


def in_order_of(baseline: str, batch: ScoredUsers) -> ScoredUsers:
    """The batch with its candidates in a baseline's order, what that does not know last and as the model has it; no model stands behind
    it. Users without history keep what they have."""
    users, candidates = batch.users, batch.candidates
    score = BASELINES[baseline].scores(users, candidates.user_row, candidates.item.astype(np.int64))
    order = np.lexsort((candidates.item, -batch.raw, -score, candidates.user_row))  # NaN sorts last
    raw = np.empty(len(order), np.float32)
    raw[order] = np.searchsorted(candidates.user_row[order], candidates.user_row[order]) - np.arange(len(order))
    raw = np.where(batch.modelled[candidates.user_row], raw, batch.raw)
    return replace(batch, raw=raw, modelled=np.zeros_like(batch.modelled))


def _best(model: str, users: RuledUsers, barred: Barred, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row, active position and rank from 1, each int64 (N), of a baseline's best items, of the supplied where there are."""
    if users.supplied is None:
        found = BASELINES[model].best(users, barred, limit)
        sort(found)
        row = np.repeat(np.arange(len(users)), found.size[:, 0])
        rank = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
        return row, found.item[row, 0, rank - 1].astype(np.int64), rank
    row, item = users.supplied.user_row, users.signals.position[users.supplied.item].astype(np.int64)
    row, item = row[item >= 0], item[item >= 0]
    score = BASELINES[model].scores(users, row, item)
    kept = (barred.of(row, item) == 0) & ~np.isnan(score)
    row, item, score = row[kept], item[kept], score[kept]
    order = np.lexsort((item, -score, row))
    row, item = row[order], item[order]
    rank = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
    return row[rank <= limit], item[rank <= limit], rank[rank <= limit]


def _recall(candidates: Candidates, users: RuledUsers, actual: Truth, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Of each counted user the share of relevant items that each source proposed, and the number of candidates."""
    catalog = len(users.signals.position)
    relevant = np.repeat(np.arange(len(users)), actual.count) * catalog + actual.items
    hit = np.isin(candidates.user_row * catalog + users.signals.items[candidates.item], relevant)

    def recall(mask: np.ndarray) -> np.ndarray:
        found = np.bincount(candidates.user_row[mask], minlength=len(users))
        return found[counted] / actual.count[counted]

    values = {
        f"recall {name}": recall(hit & (candidates.rank[:, number] > 0))
        for number, name in enumerate(candidates.names)
        if name != Group.name  # of users without history, who do not count
    }
    values["recall union"] = recall(hit)
    values["candidates"] = np.bincount(candidates.user_row, minlength=len(users))[counted].astype(np.float64)
    return values


def add(sums: Iterable[Sums]) -> dict[str, np.ndarray]:
    """The sums of several batches or shards as one; those of none have no names."""
    total: dict[str, np.ndarray] = {}
    for one in sums:
        for key, value in one.items():
            total[key] = total[key] + value if key in total else value
    return total


def summary(sums: Sums) -> dict[str, Any]:
    """Means over users, in the shape that `jobs.backtest --out` writes; null where no user counts.

    Returns:
        `users`: slice -> users that count. `models`: model -> slice -> metric@k -> mean; `intervals`: the same with [low, high], 95% by
        the bootstrap over users. `differences`: each model but ours -> slice -> metric@k -> `mean`, ours minus the model's, user by
        user, and its `interval`. `candidates`: `recall` by source and of their union, and candidates `per_user`. `exposures`: slice ->
        `price`, what rules of exposure take from the model's mean NDCG@10, and its `interval`; empty where no rule is one.
    """
    nobody = np.zeros(1 + bootstrap.RESAMPLES)
    users = {name: sums.get(f"{name} users", nobody) for name in SLICES}

    def mean(name: str, total: np.ndarray) -> float | None:
        return float(total[0] / users[name][0]) if users[name][0] else None

    def total(model: str, name: str, metric: str) -> np.ndarray:
        return sums.get(f"{name} {model} {metric}", nobody)

    def each(models: Iterable[str], figure: Callable[[str, str, str], Any]) -> dict[str, Any]:
        metrics_at = [f"{metric}@{k}" for k in KS for metric in metrics.RANKING]
        return {model: {name: {at: figure(model, name, at) for at in metrics_at} for name in SLICES} for model in models}

    def difference(model: str, name: str, metric: str) -> dict[str, Any]:
        ours = total(OURS, name, metric) - total(model, name, metric)
        return {"mean": mean(name, ours), "interval": bootstrap.interval(ours, users[name])}

    def price(name: str) -> dict[str, Any]:
        less = sums[f"{name} {UNEXPOSED}"] - total(OURS, name, "ndcg@10")
        return {"price": mean(name, less), "interval": bootstrap.interval(less, users[name])}

    return {
        "users": {name: int(users[name][0]) for name in SLICES},
        "models": each(MODELS, lambda model, name, metric: mean(name, total(model, name, metric))),
        "intervals": each(MODELS, lambda model, name, metric: bootstrap.interval(total(model, name, metric), users[name])),
        "differences": each(MODELS[1:], difference),
        "candidates": {
            "recall": {key.removeprefix("recall "): mean("all", value) for key, value in sums.items() if key.startswith("recall ")},
            "per_user": mean("all", sums.get("candidates", nobody)),
        },
        "exposures": {name: price(name) for name in SLICES if f"{name} {UNEXPOSED}" in sums},
    }


def best_baselines(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a `summary`, slice -> the baseline with the highest NDCG@10 and how the model does against it.

    Returns:
        `baseline`, its name; `difference`, the model's mean NDCG@10 less its, user by user; `low` and `high`, 95% bounds of that. A
        slice in which fewer than LEAST_USERS count is not there.
    """
    found = {}
    for name in SLICES:
        if result["users"][name] < LEAST_USERS:
            continue
        best = max(MODELS[1:], key=lambda model: result["models"][model][name]["ndcg@10"])
        difference = result["differences"][best][name]["ndcg@10"]
        low, high = difference["interval"]
        found[name] = {"baseline": best, "difference": difference["mean"], "low": low, "high": high}
    return found


def paired(ours: Sums, other: Sums, name: str = "all") -> dict[str, Any]:
    """NDCG@10 over a slice's items of one bundle's sums less another's, of the same users and seed: `mean`, `interval` and `users`."""
    nobody = np.zeros(1 + bootstrap.RESAMPLES)
    key, users = f"{name} {OURS} ndcg@10", ours.get(f"{name} users", nobody)
    assert np.array_equal(users, other.get(f"{name} users", nobody)), "the same users count for both"
    difference = ours.get(key, nobody) - other.get(key, nobody)
    mean = float(difference[0] / users[0]) if users[0] else None
    return {"mean": mean, "interval": bootstrap.interval(difference, users), "users": int(users[0])}
