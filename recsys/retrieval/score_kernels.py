"""Compiled loops of the sources' `scores`, the scores of pairs of a user and an item, and the union of what sources found.

As in `best_kernels`, every sum has one order, and it is the same there and here: a pair has the same bits in both.
"""

from typing import NamedTuple

import numpy as np

from recsys.compiled import jit


class Lists(NamedTuple):
    """For V values of C columns, the items of each value, the highest weight first; and each item's values and weights."""

    offsets: np.ndarray
    """int64 (V + 1)."""
    item: np.ndarray
    """int32 (P)."""
    weight: np.ndarray
    """float32 (P), above 0."""
    value: np.ndarray
    """int32 (C, J)."""
    of_item: np.ndarray
    """float32 (C, J): the item's weight in each column; 0 where it is in no list."""


@jit
def sums_of_pairs(
    offsets: np.ndarray,
    bought: np.ndarray,
    share: np.ndarray,
    column_offsets: np.ndarray,
    neighbour: np.ndarray,
    weight: np.ndarray,
    user_row: np.ndarray,
    item: np.ndarray,
) -> np.ndarray:
    """float32 (N): for pairs with ascending user rows the same sums, to the bit, from the weights by column; NaN where not above 0."""
    owns = np.zeros(len(column_offsets) - 1, np.float32)
    score = np.empty(len(item), np.float32)
    user = -1
    for pair in range(len(item)):
        if user_row[pair] != user:
            if user >= 0:
                owns[bought[offsets[user] : offsets[user + 1]]] = 0
            user = user_row[pair]
            owns[bought[offsets[user] : offsets[user + 1]]] = share[offsets[user] : offsets[user + 1]]
        total = np.float32(0)
        for place in range(column_offsets[item[pair]], column_offsets[item[pair] + 1]):
            if owns[np.uint32(neighbour[place])]:
                total += owns[np.uint32(neighbour[place])] * weight[place]
        score[pair] = total if total > 0 else np.float32(np.nan)
    return score


@jit
def products_of_pairs(left: np.ndarray, unit: np.ndarray, right: np.ndarray, power: float, pairs: np.ndarray) -> np.ndarray:
    """float32 (N): exact products of whole numbers, float64 (U, D), with rows of float32 (J, D) rounded to them, in the users' units.

    Args:
        power: of two, that makes a row of `right` whole numbers when it is multiplied by it and rounded.
        pairs: int64 (2, N), user row and row of `right`.
    """
    score = np.empty(pairs.shape[1], np.float32)
    for pair in range(len(score)):
        user, item = pairs[0, pair], pairs[1, pair]
        total = 0.0
        for place in range(left.shape[1]):
            total += left[user, place] * np.rint(np.float64(right[item, place]) * power)
        score[pair] = np.float32(total * unit[user])
    return score


@jit
def taste_of_pairs(
    lists: Lists, offsets: np.ndarray, value: np.ndarray, share: np.ndarray, user_row: np.ndarray, item: np.ndarray
) -> np.ndarray:
    """float32 (N): the same sums for pairs with ascending user rows; NaN where not above 0."""
    taste = np.zeros(len(lists.offsets) - 1, np.float32)
    score = np.empty(len(item), np.float32)
    user = -1
    for pair in range(len(item)):
        if user_row[pair] != user:
            if user >= 0:
                taste[value[offsets[user] : offsets[user + 1]]] = 0
            user = user_row[pair]
            taste[value[offsets[user] : offsets[user + 1]]] = share[offsets[user] : offsets[user + 1]]
        total = np.float32(0)
        for column in range(len(lists.value)):
            total += taste[lists.value[column, item[pair]]] * lists.of_item[column, item[pair]]
        score[pair] = total if total > 0 else np.float32(np.nan)
    return score


@jit
def find(key: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 (N): the place of each wanted int64 among ascending keys, 0 where it is not among them; and bool, whether it is.

    Each search starts where the one before has ended: those for ascending numbers, or nearly, take a step or two.
    """
    places, found = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = 0
    for number in range(len(wanted)):
        value = wanted[number]
        step = 1
        if key[at] < value:  # low < value <= high
            low, high = at, at + 1
            while high < len(key) and key[high] < value:
                low, high, step = high, high + step, 2 * step
            high = min(high, len(key))
        else:
            low, high = at - 1, at
            while low >= 0 and key[low] >= value:
                low, high, step = low - step, low, 2 * step
            low = max(low, -1)
        while high - low > 1:
            middle = (low + high) // 2
            if key[middle] < value:
                low = middle
            else:
                high = middle
        at = min(high, len(key) - 1)
        if key[at] == value:
            places[number], found[number] = at, True
    return places, found


@jit
def union(
    starts: np.ndarray, counts: np.ndarray, proposed: np.ndarray, items: int, per_user: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row int64 (N), item int64 (N) and rank int32 (N, S) of what S sources proposed, in (user, item) order; a user's `per_user`
    items with the best rank anywhere, ties by item.

    Args:
        starts, counts: int64 (S, U): where in `proposed`, int32, the source's items for the user are, best first.
    """
    sources, users = counts.shape
    most = 0
    total = 0
    for user in range(users):
        whole = counts[:, user].sum()
        most = max(most, whole)
        total += min(whole, per_user)
    user_row, item, rank = np.empty(total, np.int64), np.empty(total, np.int64), np.zeros((total, sources), np.int32)
    place_of = np.full(items, -1, np.int32)
    best, found = np.empty(most, np.int64), np.empty(most, np.int64)
    filled = 0
    for user in range(users):
        size = 0
        for source in range(sources):
            for place in range(counts[source, user]):
                code = proposed[starts[source, user] + place]
                if place_of[code] < 0:
                    place_of[code] = size
                    found[size], best[size] = code, place
                    size += 1
                elif place < best[place_of[code]]:
                    best[place_of[code]] = place
        kept = np.sort(best[:size] * items + found[:size])[:per_user] % items
        kept.sort()
        place_of[found[:size]] = -1
        for place in range(len(kept)):
            user_row[filled + place], item[filled + place] = user, kept[place]
            place_of[kept[place]] = filled + place
        for source in range(sources):
            for place in range(counts[source, user]):
                at = place_of[proposed[starts[source, user] + place]]
                if at >= 0:
                    rank[at, source] = place + 1
        place_of[kept] = -1
        filled += len(kept)
    return user_row[:filled], item[:filled], rank[:filled]
