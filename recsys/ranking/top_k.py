"""Raw outputs -> each user's list: best first, ties by item id, the top k; caps, exposures and diversity act while it is cut."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.schema import ITEM_ID, RANK, RAW, USER_ID

if TYPE_CHECKING:
    from recsys.retrieval.candidates import Candidates
    from recsys.retrieval.rules import Cap, Exposure


ROUNDING = 1e-9  # 0.1 times 3 is a little more than 0.3


@dataclass(frozen=True)
class Ranked:
    """M rows of lists: users ascending, ranks 1, 2, … within each."""

    row: np.ndarray
    """int64 (M): which of the rows it is."""
    rank: np.ndarray
    """int32 (M), from 1."""


def top_k(user_row: np.ndarray, item: np.ndarray, raw: np.ndarray, *, k: int) -> Ranked:
    """The k rows of each user with the highest raw output; all of them where a user has fewer.

    Ties break by item, so what stands there must be in the order of item ids.

    Args:
        user_row: int (N), from 0, in any order.
        item: int (N).
        raw: float32 (N), no NaN.
    """
    bits = (raw + np.float32(0)).view(np.uint32)  # + 0: -0.0 and 0.0 are a tie
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # unsigned integers in the order of the floats
    key = (user_row.astype(np.uint64) << np.uint64(32)) | ~ascending
    order = np.argsort(key)  # one key of 64 bits sorts several times faster than three
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
        order[tied] = order[tied][np.lexsort((item[order[tied]], ordered[tied]))]
    user = user_row[order]
    place = np.arange(len(order)) - np.searchsorted(user, user)
    kept = place < k
    return Ranked(order[kept], (place[kept] + 1).astype(np.int32))


@dataclass(frozen=True)
class Lost:
    """L rows that lists would hold but for caps and exposures."""

    row: np.ndarray
    """int64 (L): which of the rows it is."""
    number: np.ndarray
    """int64 (L): of the rule that kept it out: a cap that took its last place, else the first exposure that moved the list."""


def cut_lists(
    user_row: np.ndarray,
    item: np.ndarray,
    raw: np.ndarray,
    *,
    k: int,
    caps: Sequence["Cap"] = (),
    exposures: Sequence["Exposure"] = (),
    codes: np.ndarray | None = None,
    diversity: float = 0.0,
    factors: np.ndarray | None = None,
) -> tuple[Ranked, Lost]:
    """Each user's list, and what caps and exposures kept out of it; without those and diversity that is `top_k`.

    A list is filled from its top. For its place n, items of an exposure are passed over of which there are at_most n, rounded up,
    above it; and where there are fewer than at_least n, rounded down, only such are looked at, if the user has any (DetGreedy, Geyik,
    Ambler, Kenthapadi 2019, Fairness-aware ranking in search and recommendation systems, algorithm 1). The next row is, of those left
    whose values have places left under every cap, the one with the highest

        (1 - diversity) / log2(1 + place) - diversity * max(0, highest cosine to the rows above),

    maximal marginal relevance (Carbonell and Goldstein 1998, with lambda = 1 - diversity). `place` is the row's among all of the user's
    in the order of `top_k`, from 1, and its discount is DCG's (Jarvelin and Kekalainen 2002): relevance is 1 for the best row and falls
    the same way for every user, model and shop, so the dial means the same everywhere. Ties break by item.

    Args:
        user_row, item, raw: as of `top_k`.
        codes: int32 (J), the item code of each active position, by which caps and exposures know items; needed with them.
        diversity: in [0, 1).
        factors: float32 (J, D), of which cosines are taken; a row of zeros is like nothing. Needed with diversity.
    """
    ruled = bool(caps or exposures)
    if (not ruled and not diversity) or not len(item):
        return top_k(user_row, item, raw, k=k), Lost(np.empty(0, np.int64), np.empty(0, np.int64))
    ordered = top_k(user_row, item, raw, k=len(item))
    if not ruled:  # one of the first k is always free and worth this or more, so what is below it is in no list
        least = (1 - diversity) / np.log2(1.0 + k) - diversity - 1e-6  # cosines above 1 by rounding
        within = (1 - diversity) / np.log2(1.0 + ordered.rank) >= least
        ordered = Ranked(ordered.row[within], ordered.rank[within])
    item_of = item[ordered.row]
    _, first, user = np.unique(user_row[ordered.row], return_index=True, return_inverse=True)
    users, rows = len(first), len(item_of)
    relevance = (1 - diversity) / np.log2(1.0 + ordered.rank)
    vectors = np.zeros((rows, 0), np.float32)
    if diversity:
        assert factors is not None
        length = np.sqrt((factors * factors).sum(axis=1, keepdims=True))
        vectors = (factors / np.where(length > 0, length, 1))[item_of]
    values: list[np.ndarray] = []
    shown = _Shown((), np.zeros((0, rows), bool), user, first)
    if ruled:
        assert codes is not None
        values = [cap.value[codes[item_of]] for cap in caps]
        shown = _Shown(exposures, np.array([one.member[codes[item_of]] for one in exposures], bool).reshape(-1, rows), user, first)

    alike = np.zeros(rows)  # the highest cosine to a row above
    used = np.zeros((len(caps), rows), np.int64)  # places of the row's value that are taken
    closed = np.full(rows, -1)  # the cap that took the row's last place
    free = np.ones(rows, bool)
    place = np.zeros(rows, np.int32)
    for number in range(1, k + 1):
        asked = shown.asked(free, number)
        worth = np.where(asked, relevance - diversity * alike, -np.inf)
        highest = np.maximum.reduceat(worth, first)
        best = np.flatnonzero((worth == highest[user]) & asked)
        best = best[np.lexsort((item_of[best], user[best]))]
        best = best[np.diff(user[best], prepend=-1) > 0]
        if not len(best):
            break
        place[best], free[best] = number, False
        chosen = np.full(users, -1)
        chosen[user[best]] = best
        above = chosen[user]  # -1 where the user's list ends
        free &= above >= 0
        shown.add(best)
        for at, (cap, value) in enumerate(zip(caps, values, strict=True)):
            used[at] += (above >= 0) & (value >= 0) & (value == value[above])
            full = free & (used[at] >= cap.at_most)
            closed[full], free[full] = at, False
        if diversity and number < k:
            likeness = np.where(above >= 0, (vectors * vectors[above]).sum(axis=1), 0)  # row by row: a user's bits are the user's own
            alike = np.maximum(alike, likeness)
    picked = np.flatnonzero(place)
    picked = picked[np.lexsort((place[picked], user[picked]))]
    lost = Lost(np.empty(0, np.int64), np.empty(0, np.int64))
    if ruled:
        plain, _ = cut_lists(user_row, item, raw, k=k, diversity=diversity, factors=factors)
        at = np.empty(len(item), np.int64)
        at[ordered.row] = np.arange(rows)
        gone = at[plain.row]
        by = np.where(closed >= 0, np.array([*(cap.number for cap in caps), -1])[closed], shown.moved(gone, picked))
        gone = gone[(place[gone] == 0) & (by[gone] >= 0)]
        lost = Lost(ordered.row[gone], by[gone])
    return Ranked(ordered.row[picked], place[picked]), lost


class _Shown:
    """How many items of each exposure stand on each list while lists are filled.

    Args:
        member: bool (E, N), whether the row's item is one of the exposure's.
        user: int (N), the list of each row.
        first: int (U), the first row of each list.
    """

    def __init__(self, exposures: Sequence["Exposure"], member: np.ndarray, user: np.ndarray, first: np.ndarray) -> None:
        self.exposures, self.member, self.user, self.first = exposures, member, user, first
        self.count = np.zeros((len(exposures), len(first)), np.int64)

    def asked(self, free: np.ndarray, number: int) -> np.ndarray:
        """Of the free rows, bool (N), those that may take the place of this number, from 1."""
        if not self.exposures:
            return free
        allowed, needed = free.copy(), np.zeros_like(free)
        for one, member, count in zip(self.exposures, self.member, self.count, strict=True):
            allowed &= ~(member & (count >= math.ceil(one.at_most * number - ROUNDING))[self.user])
            needed |= member & (count < math.floor(one.at_least * number + ROUNDING))[self.user]
        needed &= allowed
        return np.where(np.logical_or.reduceat(needed, self.first)[self.user], needed, allowed)

    def add(self, rows: np.ndarray) -> None:
        """These rows, one of a list at most, took a place."""
        for member, count in zip(self.member, self.count, strict=True):
            count[self.user[rows]] += member[rows]

    def moved(self, plain: np.ndarray, picked: np.ndarray) -> np.ndarray:
        """int64 (N): the number of the first exposure that kept a row out, -1 where none did: more of its items are among the rows that
        were picked than among those that would have been, `plain`, or fewer of them, of which the row is one."""
        by = np.full(len(self.user), -1)
        for one, member in zip(reversed(self.exposures), self.member[::-1], strict=True):
            more = np.zeros(len(self.first), np.int64)
            for rows, sign in ((picked, 1), (plain, -1)):
                np.add.at(more, self.user[rows], sign * member[rows].astype(np.int64))
            by[((more > 0)[self.user] & ~member) | ((more < 0)[self.user] & member)] = one.number
        return by


def item_lists(ranked: Ranked, candidates: "Candidates", items: np.ndarray, *, users: int, k: int) -> np.ndarray:
    """int32 (U, k) item codes in rank order, -1 beyond a list's end.

    Args:
        items: int32 (J), item code of each active position.
    """
    lists = np.full((users, k), -1, np.int32)
    lists[candidates.user_row[ranked.row], ranked.rank - 1] = items[candidates.item[ranked.row]]
    return lists


def top_k_by_user(rows: pa.Table, *, k: int) -> tuple[pa.Table, int]:
    """The k rows of each user with the highest raw output, ranked, each item once; and how many repeated rows were passed over.

    Ties break by item id. An item that a user has several times counts once, with its highest output; the repeats are counted for
    users on whose lists one would have been.

    Args:
        rows: user_id, item_id and raw, float32 without NaN; in any order.

    Returns:
        The rows with a column rank; users in the order of their first row.
    """
    user = rows.column(USER_ID).combine_chunks().dictionary_encode().indices.to_numpy()
    item = order_of(rows.column(ITEM_ID).combine_chunks())
    raw = rows.column(RAW).to_numpy()
    ranked = top_k(user, item, raw, k=k)
    passed = 0
    crowded = _with_repeats(user[ranked.row], item[ranked.row])
    if len(crowded):  # a repeat took another item's place: make these users' lists again, from each item's best row
        again = np.zeros(int(user.max()) + 1, bool)
        again[crowded] = True
        mine = np.flatnonzero(again[user])
        order = mine[np.lexsort((-raw[mine], item[mine], user[mine]))]
        first = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)]
        passed = len(order) - int(first.sum())
        kept = np.ones(len(user), bool)
        kept[order[~first]] = False
        once = np.flatnonzero(kept)
        ranked = top_k(user[once], item[once], raw[once], k=k)
        ranked = Ranked(once[ranked.row], ranked.rank)
    return rows.take(pa.array(ranked.row)).append_column(RANK, pa.array(ranked.rank)), passed


def order_of(ids: pa.Array) -> np.ndarray:
    """int (N): numbers in the order of the ids, equal where they are equal."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy()
    encoded = ids.dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int64)
    place[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy()]


def _with_repeats(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The users who have an item twice."""
    order = np.lexsort((item, user))
    user, item = user[order], item[order]
    return np.unique(user[1:][(np.diff(user) == 0) & (np.diff(item) == 0)])
