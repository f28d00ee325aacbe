"""Candidate sources: a batch of users and the signals -> the items that may be worth recommending, merged and capped.

A source is a small class with one contract: `scores(users)` gives every active item a number for every user. Proposing the best,
leaving out what the shop's rules forbid, merging and capping are the same for all and done once, in `propose`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from recsys import config
from recsys.catalog import Catalog
from recsys.given import GIVEN, Given
from recsys.profiles import Profiles
from recsys.rules import Rules
from recsys.signals import MONTH, POPULARITY_DAYS, Signals, fold_in, group_keys, purchase_days
from recsys.tables import DAY_US

MATRIX_CELLS = 4_000_000  # of one source's (users, items) scores; bounds the memory of a batch
EXACT_BITS = 53  # of a float64: integers below 2^53 and their sums are exact
GROUP = 32  # columns in a group of `best`; more would leave more scores above the bound
NOT_FEATURES = frozenset({GIVEN, "group"})  # sources that the model is told nothing of: it never learns from their rows
OWN_HALF_LIFE_DAYS = 60.0  # of a purchase's weight among the user's own; not tuned


@dataclass(frozen=True)
class Users:
    """A batch of users as of the signals' cutoff, as sources and features see it."""

    history: Profiles
    """Their events in [signals.start, signals.cutoff)."""
    signals: Signals
    catalog: Catalog
    categories: Mapping[str, np.ndarray]
    """Per categorical item column: int32 (J) code of each active item, 0 where unknown."""
    fitted: config.Signals
    """The settings that the signals were fitted under; folding users in needs them."""
    rules: Rules
    given: Given | None = None
    """Their only candidates; None where the sources propose them."""

    def __len__(self) -> int:
        return len(self.history)

    @cached_property
    def barred(self) -> np.ndarray:
        """uint16 (U, J) or (1, J): 0 where the rules let the user see the item, as `Rules.barred` tells."""
        return self.rules.barred(self)

    @cached_property
    def purchases(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User row, active position and days before the cutoff of every (user, item, day) purchase, in that order."""
        user, item, days = purchase_days(self.history, cutoff=int(self.signals.cutoff))
        return user, self.signals.position[item].astype(np.int64), days

    @cached_property
    def own(self) -> "Grouped":
        """The purchases by (user, item)."""
        user, item, days = self.purchases
        return group_days(user * len(self.signals.items) + item, days)

    @property
    def own_key(self) -> np.ndarray:
        """int64: user row x J + active position of every pair bought, ascending."""
        return self.own.key[:-1]

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """float32 (U, J): on how many days the user bought the item."""
        user, item = np.divmod(self.own_key, len(self.signals.items))
        return sp.csr_matrix((self.own.count[:-1].astype(np.float32), (user, item)), shape=(len(self), len(self.signals.items)))


@dataclass(frozen=True)
class Grouped:
    """Purchases counted by a key; all arrays (K), keys ascending, the last one a sentinel above all keys that counts nothing."""

    key: np.ndarray
    count: np.ndarray
    """float64: purchase days."""
    recent: np.ndarray
    """float64: purchase days in the last 28 days."""
    decayed: np.ndarray
    """float64: purchase days, each halved every 60 days."""
    last: np.ndarray
    """float64: days before the cutoff of the latest purchase."""
    first: np.ndarray
    """float64: days before the cutoff of the earliest purchase."""

    def find(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of each key, and bool whether it is there at all; the place of an absent key is 0."""
        place = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
        found = self.key[place] == key
        return np.where(found, place, 0), found


def group_days(key: np.ndarray, days: np.ndarray) -> Grouped:
    """The purchases of each key, int64 (N), at the given days before the cutoff."""
    order = np.argsort(key, kind="stable")
    key = np.append(key[order], np.iinfo(np.int64).max)  # the sentinel: every group has an end, no lookup needs a special case
    days = np.append(days[order], 0).astype(np.float64)
    starts = np.flatnonzero(np.diff(key, prepend=-1) != 0)
    return Grouped(
        key=key[starts],
        count=np.diff(np.append(starts, len(key))).astype(np.float64),
        recent=np.add.reduceat((days < 28).astype(np.float64), starts),
        decayed=np.add.reduceat(0.5 ** (days / OWN_HALF_LIFE_DAYS), starts),
        last=np.minimum.reduceat(days, starts),
        first=np.maximum.reduceat(days, starts),
    )


class Source(Protocol):
    """One way to find items for a user."""

    name: str

    def scores(self, users: Users) -> np.ndarray:
        """float32 (U, J), or (1, J) where all users get the same; -inf where the source does not propose the item."""
        ...


class Own:
    """What the user bought before, often and lately first."""

    name = "own"

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
        scores = np.full((len(users), len(users.signals.items)), -np.inf, np.float32)
        scores.ravel()[users.own_key] = users.own.decayed[:-1]
        return scores


class Popular:
    """What most users bought in the last 28 days."""

    name = "popular"

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
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

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
        signals = users.signals
        cold = np.flatnonzero(np.diff(users.matrix.indptr) == 0)
        if not len(cold):
            return np.full((1, len(signals.items)), -np.inf, np.float32)
        scores = np.full((len(users), len(signals.items)), -np.inf, np.float32)
        keys = group_keys(users.history.users.take(cold), self.columns)
        place = np.minimum(np.searchsorted(signals.groups, keys), max(len(signals.groups) - 1, 0))
        known = signals.groups[place] == keys if len(signals.groups) else np.zeros(keys.shape, bool)
        chains, alike = np.unique(np.where(known, place, -1), axis=1, return_inverse=True)
        for number, chain in enumerate(chains.T):
            if (groups := chain[chain >= 0]).size:
                share = _all_items(users).astype(np.float64)
                for group in groups:
                    mine = slice(signals.group_offsets[group], signals.group_offsets[group + 1])
                    counts = signals.group_counts[mine].astype(np.float64)
                    share *= len(counts)
                    share[signals.group_items[mine]] += counts
                    share /= counts.sum() + len(counts)
                share[share == 0] = -np.inf
                scores[cold[alike.ravel() == number]] = share
        return scores


def _all_items(users: Users) -> np.ndarray:
    """float32 (J): each item's share of all items' buyers in the last 28 days; those without follow in order of the history.

    Buyers, not purchases: what few users buy often is nothing for all.
    """
    shares = users.signals.buyers / np.maximum(users.signals.buyers.sum(axis=1, keepdims=True, dtype=np.float64), 1)
    return np.where(shares[MONTH] > 0, shares[MONTH], shares[-1] * 1e-6).astype(np.float32)


class Neighbours:
    """What goes with what the user bought: the sum of the neighbour weights of the user's items."""

    name = "neighbours"

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
        binary = users.matrix.copy()
        binary.data[:] = 1.0
        scores = np.asarray((binary @ users.signals.neighbours).todense(), np.float32)
        scores[scores <= 0] = -np.inf
        return scores


def _product(vectors: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """float32 (U, J): vectors @ factors.T, a user's bits the same whoever else is in the batch and on any machine.

    BLAS sums in an order that depends on a row's place and on the processor. So both sides are rounded to integers so small that no
    sum of their products is ever rounded: at 64 factors of 23 bits, as many as a float32 has but one.
    """
    bits = (EXACT_BITS - vectors.shape[1].bit_length()) // 2
    whole = []
    for side, axis in ((vectors, 1), (factors, None)):
        _, exponent = np.frexp(np.abs(side).max(axis=axis, keepdims=True, initial=0.0))
        whole.append((np.rint(np.ldexp(side.astype(np.float64), bits - exponent)), exponent - bits))
    (left, of_left), (right, of_right) = whole
    return np.ldexp(left @ right.T, of_left + of_right).astype(np.float32)


class Factors:
    """ALS: the user's vector is folded in from the history, so it is as fresh as the purchases."""

    name = "factors"

    def __init__(self, settings: config.Signals) -> None:
        self.settings = settings

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
        factors = users.signals.factors
        vectors = fold_in(users.matrix, factors, self.settings)
        scores = _product(vectors, factors)
        scores[np.diff(users.matrix.indptr) == 0] = -np.inf
        scores[:, users.signals.buyers[-1] == 0] = -np.inf
        return scores


class Category:
    """What is popular in the user's categories: the mean over columns of P(category | user) P(item | category)."""

    name = "category"

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
        popularity = users.signals.popularity
        share = popularity[MONTH].astype(np.float64)
        scores = np.zeros((len(users), len(share)), np.float32)
        for codes in users.categories.values():
            size = int(codes.max(initial=0)) + 1
            within = share / np.maximum(np.bincount(codes, weights=share, minlength=size), 1e-12)[codes]
            scores += _taste(users, codes, size)[:, codes] * within.astype(np.float32)
        scores[scores == 0] = -np.inf
        return scores


def _taste(users: Users, codes: np.ndarray, size: int) -> np.ndarray:
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

    def scores(self, users: Users) -> np.ndarray:  # noqa: D102
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


@dataclass(frozen=True)
class Candidates:
    """N (user, item) rows in (user, item) order; S sources."""

    names: tuple[str, ...]
    """Of the sources."""
    user_row: np.ndarray
    """int64 (N)."""
    item: np.ndarray
    """int64 (N), active position."""
    rank: np.ndarray
    """int32 (N, S): place among what the source proposed to the user, from 1; 0 where it did not propose the item."""
    score: np.ndarray
    """float32 (N, S): the source's score, whether it proposed the item or not; NaN where it has none."""
    dropped: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """int64 (U, R): items that a source would have proposed to the user but for the rules, each under the first that forbids it."""

    def __len__(self) -> int:
        return len(self.item)

    def keep(self, mask: np.ndarray) -> "Candidates":
        """The rows where `mask`, bool (N), holds."""
        return Candidates(self.names, self.user_row[mask], self.item[mask], self.rank[mask], self.score[mask], self.dropped)


def propose(users: Users, chosen: Sequence[tuple[Source, int]], *, per_user: int) -> Candidates:
    """The union of what the sources propose, for each user at most `per_user` items, those with the best rank anywhere.

    Where candidates are given it is those and no others, as one more source, GIVEN, whose rank is their order.

    Ties break by item. What the rules forbid a user is never proposed to that user, whatever the source.
    """
    items = len(users.signals.items)
    keys: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    found: list[np.ndarray] = []
    lost: list[np.ndarray] = [np.empty(0, np.int64)]
    matrices: list[np.ndarray] = []
    for number, (source, limit) in enumerate(chosen):
        scores = source.scores(users)
        row, item, rank = best(scores, limit)
        if len(scores) < len(users.barred):
            row, item, rank = _for_all(len(users), item, rank)
        forbidden = users.barred[row if len(users.barred) > 1 else 0, item] > 0
        gone_row, gone = row[forbidden], item[forbidden]
        if len(gone):  # those users again, from what they may see
            again = np.unique(gone_row)
            allowed = np.where(_rows(users.barred, again) > 0, -np.inf, _rows(scores, again))
            kept = ~np.isin(row, again)
            more_row, more_item, more_rank = best(allowed, limit)
            row, item = np.append(row[kept], again[more_row]), np.append(item[kept], more_item)
            rank = np.append(rank[kept], more_rank)
        if len(scores) == len(users.barred) == 1:
            gone_row, gone, _ = _for_all(len(users), gone, gone)
            row, item, rank = _for_all(len(users), item, rank)
        keys.append(row * items + item)
        ranks.append(rank)
        found.append(np.full(len(row), number))
        lost.append(gone_row * items + gone)
        matrices.append(scores)
    if users.given is not None:  # of other items none would have been a candidate
        position = users.signals.position[users.given.item].astype(np.int64)
        lost = [(users.given.user_row * items + position)[position >= 0]]
    dropped = np.zeros((len(users), len(users.rules.names)), np.int64)
    gone_row, gone = np.divmod(np.unique(np.concatenate(lost)), items)
    by = users.barred[gone_row if len(users.barred) > 1 else 0, gone].astype(np.int64) - 1
    np.add.at(dropped, (gone_row[by >= 0], by[by >= 0]), 1)
    key, where = np.unique(np.concatenate(keys), return_inverse=True)
    rank = np.zeros((len(key), len(chosen)), np.int32)
    rank[where, np.concatenate(found)] = np.concatenate(ranks)
    user_row, item = np.divmod(key, items)

    best_rank = np.where(rank > 0, rank, np.iinfo(np.int32).max).min(axis=1)
    order = np.lexsort((item, best_rank, user_row))
    place = np.arange(len(key)) - np.searchsorted(user_row, user_row)  # within the user
    mask = np.zeros(len(key), bool)
    mask[order[place < per_user]] = True

    user_row, item, rank = user_row[mask], item[mask], rank[mask]
    names = tuple(source.name for source, _ in chosen)
    if users.given is not None:
        user_row, item, rank = _only(users.given, (user_row, item, rank), users)
        names += (GIVEN,)
    score = np.full((len(item), len(names)), np.nan, np.float32)
    for number, scores in enumerate(matrices):
        score[:, number] = scores[user_row if scores.shape[0] > 1 else 0, item]
    score[np.isinf(score)] = np.nan
    return Candidates(names, user_row, item, rank, score, dropped)


def _only(given: Given, proposed: tuple[np.ndarray, np.ndarray, np.ndarray], users: Users) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row, active position and ranks of the given candidates that may be recommended; ranks (N, S + 1), GIVEN's last."""
    items = len(users.signals.items)
    position = users.signals.position[given.item].astype(np.int64)
    allowed = position >= 0
    allowed &= users.barred[given.user_row if len(users.barred) > 1 else 0, position] == 0
    user_row, place = given.user_row[allowed], np.flatnonzero(allowed)
    starts = np.searchsorted(given.user_row, np.arange(len(users)))
    key = user_row * items + position[allowed]
    order = np.argsort(key)
    key, place = key[order], place[order]
    user_row, item = np.divmod(key, items)
    rank = np.zeros((len(key), proposed[2].shape[1] + 1), np.int32)
    rank[:, -1] = place - starts[user_row] + 1
    also = proposed[0] * items + proposed[1]
    there = np.isin(also, key)
    rank[np.searchsorted(key, also[there]), :-1] = proposed[2][there]
    return user_row, item, rank


def _for_all(users: int, item: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, item and rank of what is proposed to every user."""
    return np.repeat(np.arange(users), len(item)), np.tile(item, users), np.tile(rank, users)


def _rows(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of a matrix that may have one row for all."""
    return matrix[rows] if len(matrix) > 1 else matrix


def best(scores: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and rank from 1, each int64 (M), of the highest finite scores of each row, at most `limit` a row, best first.

    Ties break by column.
    """
    # At least `limit` groups of columns have a maximum of `floor` or more, so at least `limit` scores have: a bound that costs one
    # pass instead of a partition of every row (`jobs.bench` prints the ratio).
    users, width = scores.shape
    floor = np.full((users, 1), np.finfo(scores.dtype).min, scores.dtype)
    if (groups := width // GROUP) > limit:
        maxima = scores[:, : groups * GROUP].reshape(users, GROUP, groups).max(axis=1)
        floor = np.maximum(floor, np.partition(maxima, groups - limit, axis=1)[:, groups - limit : groups - limit + 1])
    row, column = np.nonzero(scores >= floor)
    order = np.lexsort((column, -scores[row, column], row))
    row, column = row[order], column[order]
    rank = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
    kept = rank <= limit
    return row[kept], column[kept], rank[kept]


def batches(users: int, items: int) -> list[tuple[int, int]]:
    """Row ranges that cut a shard's users into batches of bounded memory."""
    size = max(1, min(256, MATRIX_CELLS // max(items, 1)))
    return [(start, min(start + size, users)) for start in range(0, users, size)]
