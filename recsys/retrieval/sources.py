"""The candidate sources: a batch of users and the signals -> a score for every item that may be worth recommending.

A source is a small class with one contract: `scores(users)` gives every active item a number for every user. Proposing the best,
leaving out what the shop's rules forbid, merging and capping are the same for all and done once, in `candidates.propose`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from recsys import config
from recsys.retrieval.collaborative import exact_product, fold_in
from recsys.retrieval.signals import MONTH, POPULARITY_DAYS, group_keys
from recsys.retrieval.users import UserBatch
from recsys.schema import DAY_US


class Source(Protocol):
    """One way to find items for a user."""

    name: str

    def scores(self, users: UserBatch) -> np.ndarray:
        """float32 (U, J), or (1, J) where all users get the same; -inf where the source does not propose the item."""
        ...


class Own:
    """What the user bought before, often and lately first."""

    name = "own"

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        scores = np.full((len(users), len(users.signals.items)), -np.inf, np.float32)
        scores.ravel()[users.own_key] = users.own.decayed[:-1]
        return scores


class Popular:
    """What most users bought in the last 28 days."""

    name = "popular"

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        scores = _all_items(users)[None, :]
        scores[scores == 0] = -np.inf
        return scores


class Group:
    """For users without purchases alone: what is popular among users alike, in the columns of users that the settings name.

    P(item) of everybody in the last 28 days, then of those alike in the first column, in the first two, and so on: each is the group's
    own count of buyers shrunk to the one before, (count + T P) / (N + T), for N counts of T different items. T needs no tuning: it is
    large where the next purchase is likely one that the group has not made yet. (Witten and Bell 1991, The zero-frequency problem,
    method C)
    """

    name = "group"

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        signals = users.signals
        cold = np.flatnonzero(np.diff(users.matrix.indptr) == 0)
        if not len(cold):
            return np.full((1, len(signals.items)), -np.inf, np.float32)
        scores = np.full((len(users), len(signals.items)), -np.inf, np.float32)
        keys = group_keys(users.history.users.take(cold), self.columns)
        place = np.minimum(np.searchsorted(signals.groups, keys), max(len(signals.groups) - 1, 0))
        known = signals.groups[place] == keys if len(signals.groups) else np.zeros(keys.shape, bool)
        chains, alike = np.unique(np.where(known, place, -1), axis=1, return_inverse=True)
        of_all = _all_items(users).astype(np.float64)
        for number, chain in enumerate(chains.T):
            if (groups := chain[chain >= 0]).size:
                share = of_all
                for group in groups:
                    mine = slice(signals.group_offsets[group], signals.group_offsets[group + 1])
                    counts = signals.group_counts[mine].astype(np.float64)
                    counted = np.bincount(signals.group_items[mine], weights=counts, minlength=len(share))
                    share = (counted + len(counts) * share) / (counts.sum() + len(counts))
                share[share == 0] = -np.inf
                scores[cold[alike.ravel() == number]] = share
        return scores


def _all_items(users: UserBatch) -> np.ndarray:
    """float32 (J): each item's share of all items' buyers in the last 28 days; those without follow in order of the history.

    Buyers, not purchases: what few users buy often is nothing for all.
    """
    shares = users.signals.buyers / np.maximum(users.signals.buyers.sum(axis=1, keepdims=True, dtype=np.float64), 1)
    return np.where(shares[MONTH] > 0, shares[MONTH], shares[-1] * 1e-6).astype(np.float32)


class Neighbours:
    """What goes with what the user bought: the sum of the neighbour weights of the user's items."""

    name = "neighbours"

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        binary = users.matrix.copy()
        binary.data[:] = 1.0
        scores = np.asarray((binary @ users.signals.neighbours).todense(), np.float32)
        scores[scores <= 0] = -np.inf
        return scores


class Factors:
    """ALS: the user's vector is folded in from the history, so it is as fresh as the purchases."""

    name = "factors"

    def __init__(self, settings: config.Signals) -> None:
        self.settings = settings

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        factors = users.signals.factors
        vectors = fold_in(users.matrix, factors, self.settings)
        scores = exact_product(vectors, factors)
        scores[np.diff(users.matrix.indptr) == 0] = -np.inf
        scores[:, users.signals.buyers[-1] == 0] = -np.inf
        return scores


class Category:
    """What is popular in the user's categories: the mean over columns of P(category | user) P(item | category)."""

    name = "category"

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        popularity = users.signals.popularity
        share = popularity[MONTH].astype(np.float64)
        scores = np.zeros((len(users), len(share)), np.float32)
        for codes in users.categories.values():
            size = int(codes.max(initial=0)) + 1
            within = share / np.maximum(np.bincount(codes, weights=share, minlength=size), 1e-12)[codes]
            scores += _taste(users, codes, size)[:, codes] * within.astype(np.float32)
        scores[scores == 0] = -np.inf
        return scores


def _taste(users: UserBatch, codes: np.ndarray, size: int) -> np.ndarray:
    """float32 (U, size): the share of each of a column's values in the user's purchases; 0 of the unknown one."""
    user, item, _ = users.purchases
    bought = np.bincount(user, minlength=len(users)).astype(np.float64)
    taste = np.bincount(user * size + codes[item], minlength=len(users) * size).reshape(len(users), size)
    taste = taste / np.maximum(bought, 1)[:, None]
    taste[:, 0] = 0.0
    return taste.astype(np.float32)


class Content:
    """Cold items, those with few buyers or none: the sum over columns of P(value | user), halved for every 28 days since the first
    purchase by anybody."""

    name = "content"

    def __init__(self, buyers: int) -> None:
        self.buyers = buyers

    def scores(self, users: UserBatch) -> np.ndarray:  # noqa: D102
        signals = users.signals
        cold = np.flatnonzero(signals.buyers[-1] < self.buyers)
        age_days = (int(signals.cutoff) - signals.first_ts[cold]) / DAY_US
        newness = (0.5 ** (age_days / POPULARITY_DAYS[MONTH])).astype(np.float32)
        found = np.zeros((len(users), len(cold)), np.float32)
        for codes in users.categories.values():
            found += _taste(users, codes, int(codes.max(initial=0)) + 1)[:, codes[cold]]
        found *= newness
        found[found == 0] = -np.inf
        scores = np.full((len(users), len(signals.items)), -np.inf, np.float32)
        scores[:, cold] = found
        scores.ravel()[users.own_key] = -np.inf  # not new to the user
        return scores


def sources(settings: config.Settings) -> list[tuple[Source, int]]:
    """The sources that the settings ask for and their limits, in the order in which ties are decided."""
    limits = settings.candidates
    listed: list[tuple[Source, int]] = [
        (Own(), limits.own if settings.rank.allow_repeats else 0),
        (Neighbours(), limits.neighbours),
        (Factors(settings.signals), limits.factors),
        (Category(), limits.category if settings.features.item_categorical else 0),
        (Content(limits.cold_buyers), limits.content if settings.features.item_categorical else 0),
        (Group(settings.features.user_categorical), limits.popular if settings.features.user_categorical else 0),
        (Popular(), limits.popular),
    ]
    return [(source, limit) for source, limit in listed if limit > 0]
