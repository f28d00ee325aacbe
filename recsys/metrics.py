"""Ranking and classification metrics in numpy; the ranking ones per user, so that they can be sliced before they are averaged.

A list of recommendations is a row of a matrix in rank order. `hits` turns lists and what users wanted into a bool matrix (U, K);
every ranking metric is a function of that matrix and of `relevant` (U,), the number of items each user wanted (at least 1: a
user who wanted nothing has no recall). A list shorter than k is a list whose tail misses; the ideal is not shortened for it.
"""

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-7  # keras.config.epsilon(): probabilities are kept this far from 0 and 1, so the losses here and in Keras agree
THRESHOLD = 0.5  # a probability above it is a predicted purchase


def hits(lists: np.ndarray, relevant_offsets: np.ndarray, relevant_items: np.ndarray) -> np.ndarray:
    """Which recommended items the user wanted, bool (U, K).

    Args:
        lists: int (U, K) item codes in rank order, no item twice in a row; -1 pads a short list and is never a hit.
        relevant_offsets: int (U + 1,); user u wanted `relevant_items[relevant_offsets[u]:relevant_offsets[u + 1]]`.
        relevant_items: int item codes, ascending within each user.
    """
    if not (lists.size and relevant_items.size):
        return np.zeros(lists.shape, bool)
    width = int(max(lists.max(), relevant_items.max())) + 1
    users = np.arange(len(lists), dtype=np.int64)
    # One number for each (user, item): ascending, as users are and each user's items are, so a binary search finds a pair.
    wanted = np.repeat(users, np.diff(relevant_offsets)) * width + relevant_items
    listed = users[:, None] * width + lists
    nearest = np.minimum(np.searchsorted(wanted, listed), len(wanted) - 1)
    return (wanted[nearest] == listed) & (lists >= 0)


def recall(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """Recall@k, float64 (U,): hits among the first k / all relevant items.

    Below 1 for a user who wanted more than k items, whatever the list. (Manning et al. 2008, Information Retrieval, 8.3)
    """
    return hits[:, :k].sum(axis=1) / _at_least_one(relevant)


def hit_rate(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """HitRate@k, float64 (U,): 1 where any of the first k is a hit.

    (Deshpande and Karypis 2004, Item-Based Top-N Recommendation Algorithms)
    """
    _at_least_one(relevant)
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def ndcg(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k, float64 (U,): sum of 1/log2(rank+1) over hits / the same sum over ranks 1..min(k, relevant).

    Binary gains, ranks from 1. (Järvelin and Kekäläinen 2002, with the log2(rank+1) discount of Burges et al. 2005)
    """
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(gains)[np.minimum(_at_least_one(relevant), k) - 1]
    found = hits[:, :k]
    return found @ gains[: found.shape[1]] / ideal


def average_precision(hits: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """AP@k, float64 (U,): sum of precision@rank over the ranks of hits up to k / min(k, relevant).

    Its mean over users is MAP@k. (Manning et al. 2008, 8.4; divided by min(k, relevant), so that a perfect list of k has 1)
    """
    found = hits[:, :k]
    precisions = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return (precisions * found).sum(axis=1) / np.minimum(_at_least_one(relevant), k)


RANKING = {"ndcg": ndcg, "recall": recall, "hitrate": hit_rate, "map": average_precision}


def summary(hits: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = (10, 20)) -> dict[str, float]:
    """Means over users of every ranking metric at every k, under names such as `ndcg@10`; NaN where there are no users."""
    if not len(relevant):
        return {f"{name}@{k}": float("nan") for k in ks for name in RANKING}
    return {f"{name}@{k}": float(metric(hits, relevant, k).mean()) for k in ks for name, metric in RANKING.items()}


def _at_least_one(relevant: np.ndarray) -> np.ndarray:
    assert (relevant >= 1).all(), "a user without relevant items has no ranking metric; leave it out"
    return relevant


def classification(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Loss, AUC, accuracy, precision, recall and F1 of predicted probabilities.

    Args:
        labels: 0 or 1, (N,), N > 0.
        probabilities: chance of label 1, (N,).
        weights: of the rows, (N,), in every figure; absent: 1.

    Returns:
        `loss`: mean binary cross-entropy in nats. `auc`: chance that a positive is above a negative, ties counting half; NaN
        where one of the two is absent. `accuracy`, `precision`, `recall`, `f1`: at 0.5; a ratio with nothing below the line is 0.
    """
    truth = labels.astype(np.float64)
    chance = probabilities.astype(np.float64)
    weight = np.ones(len(truth)) if weights is None else weights.astype(np.float64)
    losses = log_losses(truth, chance)
    predicted = chance > THRESHOLD
    positive = float(weight @ truth)
    claimed = float(weight @ predicted)
    right = float(weight @ (truth * predicted))
    total = float(weight.sum())
    return {
        "loss": float(weight @ losses) / total,
        "auc": _auc(truth, chance, weight),
        "accuracy": float(weight @ (predicted == (truth > 0))) / total,
        "precision": right / claimed if claimed else 0.0,
        "recall": right / positive if positive else 0.0,
        "f1": 2 * right / (claimed + positive) if claimed + positive else 0.0,
    }


def _auc(truth: np.ndarray, chance: np.ndarray, weight: np.ndarray) -> float:
    """Weighted Mann-Whitney U / (positives * negatives), ties counting half (Hanley and McNeil 1982)."""
    order = np.argsort(chance, kind="stable")
    chance = chance[order]
    starts = np.flatnonzero(np.r_[True, chance[1:] != chance[:-1]])  # of each run of equal probabilities
    positives = np.add.reduceat((weight * truth)[order], starts)
    negatives = np.add.reduceat((weight * (1 - truth))[order], starts)
    pairs = positives.sum() * negatives.sum()
    below = np.cumsum(negatives) - negatives / 2
    return float(positives @ below / pairs) if pairs else float("nan")


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of each row in nats, float64 (N,)."""
    truth = labels.astype(np.float64)
    inside = np.clip(probabilities.astype(np.float64), EPSILON, 1 - EPSILON)
    return -(truth * np.log(inside) + (1 - truth) * np.log1p(-inside))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross-entropy in nats, N > 0."""
    return float(log_losses(labels, probabilities).mean())


def equal_mass(count: np.ndarray, bins: int = 10) -> np.ndarray:
    """int (S): the bin of each cell, 0 to bins - 1; bins hold as nearly equal numbers of rows as whole cells allow.

    Args:
        count: rows in each cell, (S,), cells in the order of the score; all ones where a cell is a row.
    """
    count = count.astype(np.float64)
    middle = np.cumsum(count) - count / 2
    return np.minimum(middle * bins / max(count.sum(), 1.0), bins - 1).astype(np.int64)


def calibration_error(count: np.ndarray, bought: np.ndarray, chance: np.ndarray) -> float:
    """Expected calibration error: mean over rows of |share bought - mean chance| of the row's bin; NaN without rows.

    (Naeini, Cooper and Hauskrecht 2015, Obtaining well calibrated probabilities using Bayesian binning; bins of equal mass as in
    Nguyen and O'Connor 2015, Posterior calibration and exploratory analysis)

    Args:
        count, bought, chance: of each bin (B,): its rows, those bought, and the sum of their predicted chances.
    """
    rows = float(count.sum())
    return float(np.abs(bought - chance).sum() / rows) if rows else float("nan")
