"""A batch of users as of the signals' cutoff: what they bought, counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from recsys.data.catalog import Catalog
from recsys.data.histories import Histories, event_days, purchase_days
from recsys.retrieval import score_kernels
from recsys.retrieval.collaborative import evidence_of, fold_in
from recsys.retrieval.signals import Signals
from recsys.retrieval.supplied import Supplied
from recsys.schema import DISLIKED, OTHER_LOOK

OWN_HALF_LIFE_DAYS = 60.0  # of a purchase's weight among the user's own; not tuned
SEEN_HALF_LIFE_DAYS = 7.0  # of a look's; not tuned
LATEST_HALF_LIFE_DAYS = 28.0  # of what was taken before the last; not tuned


@dataclass(frozen=True)
class UserBatch:
    """A batch of users as of the signals' cutoff, as sources and features see it."""

    history: Histories
    """Their events in [signals.start, signals.cutoff)."""
    signals: Signals
    catalog: Catalog
    categories: Mapping[str, np.ndarray]
    """Per categorical item column: int32 (J) code of each active item, 0 where unknown."""
    supplied: Supplied | None = None
    """Their only candidates; None where the sources propose them."""

    def __len__(self) -> int:
        return len(self.history)

    @cached_property
    def purchases(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """User row, active position and days before the cutoff of every (user, item, day) purchase, in that order."""
        user, item, days = purchase_days(self.history, cutoff=int(self.signals.cutoff))
        return user, self.signals.position[item].astype(np.int64), days

    @cached_property
    def activity(self) -> np.ndarray:
        """int64 (U): purchases of each user, one for each item and day."""
        return np.bincount(self.purchases[0], minlength=len(self))

    @cached_property
    def own(self) -> "Grouped":
        """The purchases by (user, item)."""
        user, item, days = self.purchases
        return group_days(user * len(self.signals.items) + item, days)

    @cached_property
    def seen(self) -> "Grouped":
        """Looks of all kinds, such as views and carts, by (user, item); several of one day count once."""
        return group_days(*self._days(self.history.look >= OTHER_LOOK), half_life=SEEN_HALF_LIFE_DAYS)

    @cached_property
    def looks(self) -> tuple["Grouped", ...]:
        """The same of each kind of look, in the order of `signals.look_rates`."""
        codes = range(OTHER_LOOK, OTHER_LOOK + len(self.signals.look_rates))
        return tuple(group_days(*self._days(self.history.look == code), half_life=SEEN_HALF_LIFE_DAYS) for code in codes)

    @cached_property
    def seen_score(self) -> np.ndarray:
        """float32: of each pair in `seen`, its looks halved every half-life, each as much as a purchase follows its kind."""
        score = np.zeros(len(self.seen.key) - 1)
        for weight, looks in zip(self.signals.look_weights, self.looks, strict=True):
            score[np.searchsorted(self.seen.key, looks.key[:-1])] += weight * looks.decayed[:-1]
        return score.astype(np.float32)

    @cached_property
    def disliked_key(self) -> np.ndarray:
        """int64: user row x J + active position of every pair that the user took and did not like, ascending."""
        return np.unique(self._days(self.history.look == DISLIKED)[0])

    def _days(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """User row x J + active position, and days before the cutoff, of the chosen events of active items; each day once."""
        user, item, days = event_days(self.history, chosen, cutoff=int(self.signals.cutoff))
        position = self.signals.position[item].astype(np.int64)
        there = position >= 0
        return user[there] * len(self.signals.items) + position[there], days[there]

    @cached_property
    def known(self) -> np.ndarray:
        """bool (U): who bought or looked at something within the history."""
        looked = self.seen.key[:-1] // len(self.signals.items)
        return (np.diff(self.matrix.indptr) > 0) | (np.bincount(looked, minlength=len(self)) > 0)

    @property
    def own_key(self) -> np.ndarray:
        """int64: user row x J + active position of every pair bought, ascending."""
        return self.own.key[:-1]

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """float32 (U, J): on how many days the user bought the item."""
        return self._matrix(self.own)

    @cached_property
    def evidence(self) -> sp.csr_matrix:
        """float32 (U, J): as of `evidence_of`, under what the signals were fitted to."""
        looks = [self._matrix(looks) for looks in self.looks] if self.signals.als.looks else []
        return evidence_of(self.matrix, looks, self.signals.als.looks * self.signals.look_weights, bought=self.signals.buyers[-1] > 0)

    def _matrix(self, days: "Grouped") -> sp.csr_matrix:
        """float32 (U, J): how many of these days."""
        user, item = np.divmod(days.key[:-1], len(self.signals.items))
        return sp.csr_matrix((days.count[:-1].astype(np.float32), (user, item)), shape=(len(self), len(self.signals.items)))

    @cached_property
    def bought(self) -> tuple[np.ndarray, np.ndarray]:
        """Row pointers int64 (U + 1) and the items bought, int32, ascending within a user."""
        return self.matrix.indptr.astype(np.int64), self.matrix.indices.astype(np.int32)

    @cached_property
    def evident(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row pointers int64 (U + 1), items int32, ascending within a user, and float32, what neighbours take of them: at most 1."""
        found = self.evidence
        return found.indptr.astype(np.int64), found.indices.astype(np.int32), np.minimum(found.data, np.float32(1))

    @cached_property
    def latest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same, each halved every half-life from the item's last day to the last of the user's: not to the cutoff, so that who
        comes back after a year is asked with what they took then."""
        offsets, item, taken = self.evident
        user = np.repeat(np.arange(len(self)), np.diff(offsets))
        key, days = user * len(self.signals.items) + item, np.full(len(item), np.inf)
        weights = self.signals.als.looks * self.signals.look_weights
        for events in (self.own, *(looks for looks, weight in zip(self.looks, weights, strict=True) if weight > 0)):
            place, known = events.find(key)
            days = np.where(known, np.minimum(days, events.last[place]), days)
        last = np.full(len(self), np.inf)
        np.minimum.at(last, user, days)
        return offsets, item, (taken * 0.5 ** ((days - last[user]) / LATEST_HALF_LIFE_DAYS)).astype(np.float32)

    @cached_property
    def mean_vectors(self) -> dict[str, np.ndarray]:
        """Per column of item vectors float32 (U, D), of length 1: the mean of those of what is `evident`; zeros where there is none."""
        return {name: self._mean(vectors, self.evident) for name, vectors in self.catalog.vectors.items()}

    @cached_property
    def latest_vectors(self) -> dict[str, np.ndarray]:
        """The same of what is `latest`."""
        return {name: self._mean(vectors, self.latest) for name, vectors in self.catalog.vectors.items()}

    def _mean(self, vectors: np.ndarray, asked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        offsets, item, share = asked
        there, place = np.unique(item, return_inverse=True)
        matrix = sp.csr_matrix((share, place, offsets), shape=(len(self), len(there)))
        total = matrix.astype(np.float64) @ vectors[self.signals.items[there]].astype(np.float64)
        length = np.sqrt((total**2).sum(axis=1, keepdims=True))
        return np.divide(total, length, out=np.zeros_like(total), where=length > 0).astype(np.float32)

    @cached_property
    def vectors(self) -> np.ndarray:
        """float32 (U, D): the users folded in to the factors of ALS; zeros where there is no `evidence`."""
        return fold_in(self.evidence, self.signals.factors, self.signals.als, gram=self.signals.gram)

    @cached_property
    def tastes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row pointers int64 (U + 1), values int32 and shares float32: how much of the user's purchases each value has in its column.

        Values are numbered through all columns of `categories`, each column's codes after those of the one before; the unknown value
        has no share.
        """
        user, item, _ = self.purchases
        count = np.maximum(self.activity, 1).astype(np.float64)
        total = sum(int(codes.max(initial=0)) + 1 for codes in self.categories.values())
        keys, first = [np.empty(0, np.int64)], 0
        for codes in self.categories.values():
            known = codes[item] > 0
            keys.append(user[known] * total + codes[item[known]] + first)
            first += int(codes.max(initial=0)) + 1
        key, times = np.unique(np.concatenate(keys), return_counts=True)
        row, value = np.divmod(key, max(total, 1))
        share = (times / count[row]).astype(np.float32)
        return np.searchsorted(row, np.arange(len(self) + 1)).astype(np.int64), value.astype(np.int32), share


@dataclass(frozen=True)
class Grouped:
    """Purchase days, or days with a look, counted by a key; all arrays (K), keys ascending, the last one a sentinel above all keys that
    counts nothing."""

    key: np.ndarray
    count: np.ndarray
    """float64: days."""
    recent: np.ndarray
    """float64: of them in the last 28 days."""
    decayed: np.ndarray
    """float64: the days, each halved every half-life."""
    last: np.ndarray
    """float64: days before the cutoff of the latest."""
    first: np.ndarray
    """float64: days before the cutoff of the earliest."""

    def find(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of each key, and bool whether it is there at all; the place of an absent key is 0."""
        return score_kernels.find(self.key, key)


def group_days(key: np.ndarray, days: np.ndarray, *, half_life: float = OWN_HALF_LIFE_DAYS) -> Grouped:
    """The days of each key, int64 (N), before the cutoff; the half-life, in days, of `decayed`."""
    order = np.argsort(key, kind="stable")
    key = np.append(key[order], np.iinfo(np.int64).max)  # the sentinel: every group has an end, no lookup needs a special case
    days = np.append(days[order], 0).astype(np.float64)
    starts = np.flatnonzero(np.diff(key, prepend=-1) != 0)
    return Grouped(
        key=key[starts],
        count=np.diff(np.append(starts, len(key))).astype(np.float64),
        recent=np.add.reduceat((days < 28).astype(np.float64), starts),
        decayed=np.add.reduceat(0.5 ** (days / half_life), starts),
        last=np.minimum.reduceat(days, starts),
        first=np.maximum.reduceat(days, starts),
    )
