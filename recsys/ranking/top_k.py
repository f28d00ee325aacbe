"""Raw outputs -> each user's list: best first, ties by item id, the top k; caps and diversity act while it is cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.schema import ITEM_ID, RANK, RAW, USER_ID

if TYPE_CHECKING:
    from recsys.retrieval.candidates import Candidates
    from recsys.retrieval.rules import Cap


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
    """L rows that lists would hold but for caps."""

    row: np.ndarray
    """int64 (L): which of the rows it is."""
    cap: np.ndarray
    """int64 (L): place of the cap that kept it out."""


def cut_lists(
    user_row: np.ndarray,
    item: np.ndarray,
    raw: np.ndarray,
    *,
    k: int,
    caps: Sequence["Cap"] = (),
    codes: np.ndarray | None = None,
    diversity: float = 0.0,
    factors: np.ndarray | None = None,
) -> tuple[Ranked, Lost]:
    """Each user's list, and what caps kept out of it; without caps and diversity that is `top_k`.

    A list is filled from its top. The next row is, of those whose values have places left under every cap, the one with the highest

        (1 - diversity) / log2(1 + place) - diversity * max(0, highest cosine to the rows above),

    maximal marginal relevance (Carbonell and Goldstein 1998, with lambda = 1 - diversity). `place` is the row's among all of the user's
    in the order of `top_k`, from 1, and its discount is DCG's (Jarvelin and Kekalainen 2002): relevance is 1 for the best row and falls
    the same way for every user, model and shop, so the dial means the same everywhere. Ties break by item.

    Args:
        user_row, item, raw: as of `top_k`.
        codes: int32 (J), the item code of each active position, by which caps know values; needed with caps.
        diversity: in [0, 1).
        factors: float32 (J, D), of which cosines are taken; a row of zeros is like nothing. Needed with diversity.
    """
    if (not caps and not diversity) or not len(item):
        return top_k(user_row, item, raw, k=k), Lost(np.empty(0, np.int64), np.empty(0, np.int64))
    ordered = top_k(user_row, item, raw, k=len(item))
    if not caps:  # one of the first k is always free and worth this or more, so what is below it is in no list
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
    if caps:
        assert codes is not None
        values = [cap.value[codes[item_of]] for cap in caps]

    alike = np.zeros(rows)  # the highest cosine to a row above
    used = np.zeros((len(caps), rows), np.int64)  # places of the row's value that are taken
    closed = np.full(rows, -1)  # the cap that took the row's last place
    free = np.ones(rows, bool)
    place = np.zeros(rows, np.int32)
    for number in range(1, k + 1):
        worth = np.where(free, relevance - diversity * alike, -np.inf)
        highest = np.maximum.reduceat(worth, first)
        best = np.flatnonzero((worth == highest[user]) & free)
        best = best[np.lexsort((item_of[best], user[best]))]
        best = best[np.diff(user[best], prepend=-1) > 0]
        if not len(best):
            break
        place[best], free[best] = number, False
        chosen = np.full(users, -1)
        chosen[user[best]] = best
        above = chosen[user]  # -1 where the user's list is full
        for at, (cap, value) in enumerate(zip(caps, values, strict=True)):
            used[at] += (above >= 0) & (value >= 0) & (value == value[above])
            full = free & (used[at] >= cap.at_most)
            closed[full], free[full] = at, False
        if diversity and number < k:
            likeness = np.where(above >= 0, (vectors * vectors[above]).sum(axis=1), 0)  # row by row: a user's bits are the user's own
            alike = np.maximum(alike, likeness)
    picked = np.flatnonzero(place)
    picked = picked[np.lexsort((place[picked], user[picked]))]
    lost = np.empty(0, np.int64)
    if caps:
        plain, _ = cut_lists(user_row, item, raw, k=k, diversity=diversity, factors=factors)
        by_row = np.full(len(item), -1)
        by_row[ordered.row] = closed
        lost = plain.row[by_row[plain.row] >= 0]
        closed = by_row
    return Ranked(ordered.row[picked], place[picked]), Lost(lost, closed[lost])


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
