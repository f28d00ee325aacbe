"""The candidate sources: a batch of users and the signals -> each user's best items, and a score for any pair.

A source is a small class with one contract: `best` finds the highest scored items of every user within a limit, those that the shop's
rules forbid apart, and `scores` tells the score of any pair of a user and an item. Merging, capping and counting what rules took are
the same for all and done once, in `candidates.propose`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from typing_extensions import override

from recsys import config
from recsys.retrieval import best_kernels, score_kernels
from recsys.retrieval.collaborative import on_grid
from recsys.retrieval.heaps import Barred, Heaps, empty_heaps
from recsys.retrieval.item_sums import MONTH, POPULARITY_DAYS
from recsys.retrieval.score_kernels import Lists
from recsys.retrieval.signals import Signals, group_keys
from recsys.retrieval.users import UserBatch
from recsys.retrieval.vectors import Vectors
from recsys.schema import DAY_US

FLOAT32 = 1e-4  # of the lengths' product: more than sums of up to a thousand float32 products can be wrong by, in any order
BLOCK = 1024  # items whose products are made at once


class Source(Protocol):
    """One way to find items for a user."""

    name: str

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:
        """The at most `limit` best items of each user, ties by item: of those that the user may see, and of those that are barred."""
        ...

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float32 (N): the score of each pair, int64 (N) each, user rows ascending; NaN where the source does not propose the item."""
        ...


class Own:
    """What the user bought before, often and lately first."""

    name = "own"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        offsets, bought = users.bought
        best_kernels.of_rows(offsets, bought, users.own.decayed[:-1].astype(np.float32), barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        place, known = users.own.find(user_row * len(users.signals.items) + item)
        return np.where(known, users.own.decayed[place], np.nan).astype(np.float32)


class Seen:
    """What the user looked at lately: events of other kinds than are wanted, such as views and carts."""

    name = "seen"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        row, item = np.divmod(users.seen.key[:-1], len(users.signals.items))
        offsets = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int64)
        best_kernels.of_rows(offsets, item.astype(np.int32), users.seen_score, barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        place, known = users.seen.find(user_row * len(users.signals.items) + item)
        return np.where(known, np.append(users.seen_score, np.nan)[place], np.nan).astype(np.float32)


class Popular:
    """What most users bought in the last 28 days."""

    name = "popular"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        order = users.signals.by_popularity
        best_kernels.of_order(order, users.signals.share_of_buyers[order], np.arange(len(users)), barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102, ARG002
        score = users.signals.share_of_buyers[item]
        return np.where(score > 0, score, np.nan).astype(np.float32)


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

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        for groups, rows in self._alike(users):
            share = _group_share(users.signals, groups)
            best_kernels.of_row(share, rows, barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        score = np.full(len(item), np.nan, np.float32)
        for groups, rows in self._alike(users):
            share = _group_share(users.signals, groups)
            for row in rows:
                mine = slice(*np.searchsorted(user_row, (row, row + 1)))
                score[mine] = share[item[mine]]
        score[score == 0] = np.nan
        return score

    def _alike(self, users: UserBatch) -> list[tuple[np.ndarray, np.ndarray]]:
        """For users without purchases: the places of the groups they are in, the widest first, and the rows of users in the same."""
        signals = users.signals
        cold = np.flatnonzero(np.diff(users.matrix.indptr) == 0)
        if not len(cold) or not len(signals.groups):
            return []
        keys = group_keys(users.history.users.take(cold), self.columns)
        place = np.minimum(np.searchsorted(signals.groups, keys), len(signals.groups) - 1)
        chains, alike = np.unique(np.where(signals.groups[place] == keys, place, -1), axis=1, return_inverse=True)
        same = [(chain[chain >= 0], cold[alike.ravel() == number]) for number, chain in enumerate(chains.T)]
        return [(groups, rows) for groups, rows in same if len(groups)]


def _group_share(signals: Signals, groups: np.ndarray) -> np.ndarray:
    """float32 (J): P(item) of users in all of the groups, the widest first."""
    share = signals.share_of_buyers.astype(np.float64)
    for group in groups:
        mine = slice(signals.group_offsets[group], signals.group_offsets[group + 1])
        counts = signals.group_counts[mine].astype(np.float64)
        counted = np.bincount(signals.group_items[mine], weights=counts, minlength=len(share))
        share = (counted + len(counts) * share) / (counts.sum() + len(counts))
    return share.astype(np.float32)


class Neighbours:
    """What goes with what the user bought and looked at: the sum of the neighbour weights of the user's items."""

    name = "neighbours"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        signals = users.signals
        best_kernels.of_sums(
            *users.evident, signals.neighbour_offsets, signals.neighbour_items, signals.neighbour_weights, barred, found
        )
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        weights = users.signals.neighbours_by_scored
        by_item = weights.indptr.astype(np.int64), weights.indices, weights.data
        return score_kernels.sums_of_pairs(*users.evident, *by_item, user_row, item)


class Factors:
    """ALS: the user's vector is folded in from the history, so it is as fresh as the purchases.

    Products are exact, see `on_grid`; those of float32 say which ones are worth it. A vector's product with the user's is at most that
    of their lengths, so items are tried in order of their vectors' length, a block at a time, until no later one can be among the
    user's best.
    """

    name = "factors"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        order, length = users.signals.by_length
        left, unit, power = on_grid(users.vectors, users.signals.largest_factor)
        reach = np.sqrt((left * left).sum(axis=1)) * unit * power * 1.000001  # more than rounding can take
        grid = np.sqrt(left.shape[1]) / power  # more than a vector is moved by
        asking = np.flatnonzero(np.diff(users.evidence.indptr))
        for start in range(0, len(order), BLOCK):
            floor = np.where(found.size[asking, 0] == limit, found.score[asking, 0, 0], -np.inf)
            asking = asking[reach[asking] * length[start] >= floor]
            if not len(asking):
                break
            block = order[start : start + BLOCK]
            factors = users.signals.factors[block]
            slack = reach[asking] * (length[start] * FLOAT32 + grid)
            best_kernels.of_products(users.vectors[asking] @ factors.T, slack, asking, block, left, unit, factors, power, barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        left, unit, power = on_grid(users.vectors, users.signals.largest_factor)
        score = score_kernels.products_of_pairs(left, unit, users.signals.factors, power, np.stack([user_row, item]))
        proposed = (np.diff(users.evidence.indptr) > 0)[user_row] & (users.signals.buyers[-1] > 0)[item]
        return np.where(proposed, score, np.nan).astype(np.float32)


class _ByValue(ABC):
    """The sum over item columns of P(value | user) times the item's weight among the items of the value."""

    name: str

    def __init__(self) -> None:
        self._lists: tuple[object, Lists] | None = None

    @abstractmethod
    def weights(self, users: UserBatch, codes: np.ndarray) -> np.ndarray:
        """float32 (J): the weight of each item in a column whose codes, int32 (J), are given; 0: it is not proposed for it."""

    def without(self, users: UserBatch) -> tuple[np.ndarray, np.ndarray]:
        """Row pointers int64 (U + 1) and items int32 that are not proposed, whatever they score."""
        return np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32)

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:
        found = empty_heaps(len(users), limit)
        best_kernels.of_lists(self._made(users), *users.tastes, self.without(users), barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:
        score = score_kernels.taste_of_pairs(self._made(users), *users.tastes, user_row, item)
        offsets, passed = self.without(users)
        key = np.repeat(np.arange(len(users)), np.diff(offsets)) * len(users.signals.items) + passed
        score[np.isin(user_row * len(users.signals.items) + item, key)] = np.nan
        return score

    def _made(self, users: UserBatch) -> Lists:
        """The lists, made once for all batches of a featurizer."""
        if self._lists is None or self._lists[0] is not users.categories:
            columns = [(codes, self.weights(users, codes)) for codes in users.categories.values()]
            self._lists = users.categories, _lists(columns)
        return self._lists[1]


def _lists(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> Lists:
    """Of each column's codes, int32 (J), and weights, float32 (J); values are numbered as in `UserBatch.tastes`."""
    values: list[np.ndarray] = []
    items: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    first = 0
    for codes, weight in columns:
        item = np.flatnonzero((codes > 0) & (weight > 0)).astype(np.int32)
        item = item[np.lexsort((item, -weight[item], codes[item]))]
        size = int(codes.max(initial=0)) + 1
        values.append(codes + np.int32(first))
        items.append(item)
        sizes.append(np.bincount(codes[item], minlength=size))
        first += size
    return Lists(
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64),
        item=np.concatenate(items),
        weight=np.concatenate([weight[item] for item, (_, weight) in zip(items, columns, strict=True)]),
        value=np.stack(values),
        of_item=np.stack([weight for _, weight in columns]),
    )


class Category(_ByValue):
    """What is popular in the user's categories: the mean over columns of P(category | user) P(item | category)."""

    name = "category"

    @override
    def weights(self, users: UserBatch, codes: np.ndarray) -> np.ndarray:
        share = users.signals.popularity[MONTH].astype(np.float64)
        within = share / np.maximum(np.bincount(codes, weights=share), 1e-12)[codes]
        return within.astype(np.float32)


class Content(_ByValue):
    """Cold items, those with few buyers or none: the sum over columns of P(value | user), halved for every 28 days since the first
    purchase by anybody."""

    name = "content"

    def __init__(self, buyers: int) -> None:
        super().__init__()
        self.buyers = buyers

    @override
    def weights(self, users: UserBatch, codes: np.ndarray) -> np.ndarray:
        signals = users.signals
        age_days = (int(signals.cutoff) - signals.first_ts) / DAY_US
        newness = 0.5 ** (age_days / POPULARITY_DAYS[MONTH])
        return np.where(signals.buyers[-1] < self.buyers, newness, 0).astype(np.float32)

    @override
    def without(self, users: UserBatch) -> tuple[np.ndarray, np.ndarray]:
        return users.bought  # not new to the user


def sources(settings: config.Settings) -> list[tuple[Source, int]]:
    """The sources that the settings ask for and their limits, in the order in which ties are decided."""
    limits = settings.candidates
    listed: list[tuple[Source, int]] = [
        (Own(), limits.own if settings.rank.repeats else 0),
        (Seen(), limits.seen if settings.shop.label_kinds is not None else 0),
        (Neighbours(), limits.neighbours),
        (Factors(), limits.factors),
        (Category(), limits.category if settings.features.item_categorical else 0),
        (Content(limits.cold_buyers), limits.content if settings.features.item_categorical else 0),
        (Vectors(), limits.vectors if settings.features.item_vectors else 0),
        (Group(settings.features.user_categorical), limits.popular if settings.features.user_categorical else 0),
        (Popular(), limits.popular),
    ]
    return [(source, limit) for source, limit in listed if limit > 0]
