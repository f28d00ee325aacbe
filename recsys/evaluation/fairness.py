"""Whom the lists serve: quality and calibration by group of users, and what share of attention groups of items get.

Like the backtest's, all figures are ratios of sums over users, so batches and shards add up, and resamples are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import metrics
from recsys.data.catalog import Catalog
from recsys.evaluation import bootstrap
from recsys.evaluation.backtest import LEAST_USERS, Sums, truth
from recsys.features import examples
from recsys.hashing import stable_hash
from recsys.ranking.recommend import ScoredUsers, cut_batch
from recsys.ranking.top_k import item_lists
from recsys.schema import USER_ID

K = 10
UNKNOWN = "unknown"  # of users or items without a value
NOBODY = np.zeros(1 + bootstrap.RESAMPLES)


def count(
    batch: ScoredUsers,
    *,
    user_groups: Sequence[str],
    item_groups: Sequence[str],
    start: int,
    end: int,
    label_end: int,
    seed: int,
    diversity: float,
    chance: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Sums over the batch's users that `summary` turns into figures.

    Args:
        user_groups, item_groups: columns of users and items, words.
        start, end: of the horizon in which NDCG looks for what was bought, microseconds.
        label_end: of the window that scores are about; where it is after `end` calibration is not counted.
        chance: raw outputs and their users' purchases -> the score column.

    Returns:
        `user|COLUMN|VALUE|FIGURE`, float64 (1 + RESAMPLES): `all` users, those `modelled`, those `counted` (as in the backtest) and the
        sum of their `ndcg`; of the candidates of modelled users their number `rows`, sum of scores `said`, and those `bought`.
        `item|COLUMN|VALUE|FIGURE`, float64 (1): attention of the lists' places, 1 / log2(rank + 1), as `exposure`; items `wanted` in
        the horizon.
    """
    users, candidates = batch.users, batch.candidates
    weights = bootstrap.draws(stable_hash(users.history.users.column(USER_ID).to_numpy()), seed=seed)
    actual = truth(batch.histories, start=start, end=end, new=False)
    counted = batch.modelled & (actual.count > 0)
    ranked, _ = cut_batch(batch, candidates, batch.raw, k=K, diversity=diversity)
    lists = item_lists(ranked, candidates, users.signals.items, users=len(users), k=K)
    kept = np.repeat(counted, actual.count)
    offsets = np.concatenate([[0], np.cumsum(actual.count[counted])])
    ndcg = np.zeros(len(users))
    ndcg[counted] = metrics.ndcg(metrics.hits(lists[counted], offsets, actual.items[kept]), actual.count[counted], K)
    values = {"all": np.ones(len(users)), "modelled": batch.modelled, "counted": counted, "ndcg": ndcg}
    if label_end <= end:
        bought = examples.bought(candidates, users, window=batch.histories.between(int(users.signals.cutoff), label_end))
        mine = batch.modelled[candidates.user_row]
        said = np.where(mine, chance(batch.raw, users.activity[candidates.user_row]), 0.0)
        for name, column in (("rows", mine), ("said", said), ("bought", bought * mine)):
            values[name] = np.bincount(candidates.user_row, weights=column.astype(np.float64), minlength=len(users))
    sums: dict[str, np.ndarray] = {}
    for column in user_groups:
        for value, mask in _groups(users.history.users.column(column)):
            found = bootstrap.sums(np.stack([one[mask] for one in values.values()], axis=1), weights[:, mask])
            sums |= {_name("user", column, value, figure): found[:, place].copy() for place, figure in enumerate(values)}
    attention = np.where(lists >= 0, 1.0 / np.log2(np.arange(2, K + 2)), 0.0)
    listed, wanted = lists[lists >= 0], actual.items
    for column in item_groups:
        words = users.catalog.table.column(column)
        exposure = np.bincount(listed, weights=attention[lists >= 0], minlength=len(users.catalog))
        demand = np.bincount(wanted, minlength=len(users.catalog)).astype(np.float64)
        for value, mask in _groups(words):
            sums[_name("item", column, value, "exposure")] = np.array([exposure[mask].sum()])
            sums[_name("item", column, value, "wanted")] = np.array([demand[mask].sum()])
    return sums


def _groups(column: pa.ChunkedArray) -> list[tuple[str, np.ndarray]]:
    """Each value of a column of words and where it stands, bool (N); null is UNKNOWN."""
    words = pc.fill_null(column.combine_chunks().cast(pa.string()), UNKNOWN)
    codes = words.dictionary_encode()
    indices = codes.indices.to_numpy(zero_copy_only=False)
    return [(value, indices == place) for place, value in enumerate(codes.dictionary.to_pylist())]


def _name(*parts: str) -> str:
    return "|".join(quote(part, safe="") for part in parts)


def summary(sums: Sums, catalog: Catalog) -> dict[str, Any]:
    """What the sums say.

    Returns:
        `users`: column -> `groups`: value -> users, `ndcg@10` with its `interval` over those that count, share with the `fallback`,
        `calibration_error` (the mean score less the share bought, of all candidates; null where the horizon is shorter than a label)
        with its interval; and `gap`: the best and the worst group of at least LEAST_USERS that count, the difference of their NDCG@10
        and its interval; null where fewer than two are as large. `items`: column -> value -> shares of the available `catalog`, of
        `exposure` in the lists, and of what was `wanted`.
    """
    tree: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    for name, total in sums.items():
        kind, column, value, figure = map(unquote, name.split("|"))
        tree.setdefault((kind, column), {}).setdefault(value, {})[figure] = total
    users = {column: _of_users(groups) for (kind, column), groups in tree.items() if kind == "user"}
    items = {column: _of_items(column, groups, catalog) for (kind, column), groups in tree.items() if kind == "item"}
    return {"users": users, "items": items}


def gaps_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of what `pipelines.backtest.measure` gave: column of users -> the gap between its best and worst group, as `summary` has it;
    empty where no groups are named, or too few users of them count."""
    users = (result.get("fairness") or {"users": {}})["users"]
    return {column: dict(found["gap"]) for column, found in users.items() if found["gap"] is not None}


def _of_users(groups: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for value, sums in sorted(groups.items()):
        counted, rows = sums["counted"], sums.get("rows", NOBODY)
        off = sums.get("said", NOBODY) - sums.get("bought", NOBODY)
        told[value] = {
            "users": int(sums["all"][0]),
            "counted": int(counted[0]),
            "ndcg@10": float(sums["ndcg"][0] / counted[0]) if counted[0] else None,
            "interval": bootstrap.interval(sums["ndcg"], counted),
            "fallback": float(1 - sums["modelled"][0] / sums["all"][0]),
            "calibration_error": float(off[0] / rows[0]) if rows[0] else None,
            "calibration_interval": bootstrap.interval(off, rows) if rows[0] else None,
        }
    large = {value: sums for value, sums in groups.items() if sums["counted"][0] >= LEAST_USERS}
    gap = None
    if len(large) > 1:
        means = {value: sums["ndcg"][0] / sums["counted"][0] for value, sums in large.items()}
        best, worst = max(means, key=lambda value: means[value]), min(means, key=lambda value: means[value])
        with np.errstate(divide="ignore", invalid="ignore"):
            one, other = (large[value]["ndcg"] / large[value]["counted"] for value in (best, worst))
        resampled = (one - other)[1:]
        tail = (1 - bootstrap.LEVEL) / 2
        bounds = np.quantile(resampled[np.isfinite(resampled)], (tail, 1 - tail))
        gap = {"best": best, "worst": worst, "difference": float(one[0] - other[0]), "interval": [float(bound) for bound in bounds]}
    return {"groups": told, "gap": gap}


def _of_items(column: str, groups: Mapping[str, Mapping[str, np.ndarray]], catalog: Catalog) -> dict[str, Any]:
    available = {value: float((mask & catalog.available).sum()) for value, mask in _groups(catalog.table.column(column))}
    totals = {figure: sum(float(sums[figure][0]) for sums in groups.values()) for figure in ("exposure", "wanted")}
    told: dict[str, Any] = {}
    for value, sums in sorted(groups.items()):
        shares = {figure: float(sums[figure][0]) / total if total else None for figure, total in totals.items()}
        told[value] = {"catalog": available.get(value, 0.0) / max(sum(available.values()), 1), **shares}
    return told
