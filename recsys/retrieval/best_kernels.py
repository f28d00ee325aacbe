"""Compiled loops of the sources' `best`: a user's best items, found without a score for every item, kept in heaps.

They take what rules forbid, `Barred`, and where to put what they find, `Heaps`.
"""

import numpy as np

from recsys.compiled import jit
from recsys.retrieval.heaps import Barred, Heaps
from recsys.retrieval.score_kernels import Lists

SHIFT = 5
BLOCK = 1 << SHIFT  # scores that one comparison passes over together
FEW = 2  # a user's sums are listed one by one where there are fewer than a half of the items
HEAD = 8  # items of each list that are looked at before a bound ends the lists


@jit
def of_rows(offsets: np.ndarray, item: np.ndarray, score: np.ndarray, barred: Barred, found: Heaps) -> None:
    """Of sparse rows: int64 (U + 1), int32 (N), float32 (N)."""
    for user in range(len(offsets) - 1):
        for place in range(offsets[user], offsets[user + 1]):
            offer(found, barred, user, item[place], score[place])


@jit
def of_order(order: np.ndarray, score: np.ndarray, users: np.ndarray, barred: Barred, found: Heaps) -> None:
    """Of one order for the users whose rows, int64, are given: int32 (N) items and their scores, float32 (N), best first."""
    for user in users:
        for place in range(len(order)):
            if found.size[user, 0] == found.score.shape[2]:
                break
            offer(found, barred, user, order[place], score[place])


@jit
def of_row(score: np.ndarray, users: np.ndarray, barred: Barred, found: Heaps) -> None:
    """Of one row of scores above 0, float32 (J), for the users whose rows, int64, are given."""
    for user in users:
        for start in range(0, len(score), BLOCK):
            _offer_block(score[start : start + BLOCK], start, barred, user, found)


@jit
def of_sums(
    offsets: np.ndarray,
    bought: np.ndarray,
    share: np.ndarray,
    row_offsets: np.ndarray,
    scored: np.ndarray,
    weight: np.ndarray,
    barred: Barred,
    found: Heaps,
) -> None:
    """Of the sums of the rows of weights, int64 (J + 1), int32, float32, times the users' shares of them, int64 (U + 1), int32 and
    float32; above 0."""
    items = barred.shared.shape[1]
    blocks = items // BLOCK + 1
    total = np.zeros(blocks * BLOCK, np.float32)
    touched = np.zeros(blocks, np.bool_)
    listed = np.empty(items // FEW + 1, np.uint32)
    for user in range(len(offsets) - 1):
        adds = 0
        for at in range(offsets[user], offsets[user + 1]):
            adds += row_offsets[bought[at] + 1] - row_offsets[bought[at]]
        if adds < len(listed):  # a list of what is touched is shorter than a look at all blocks
            size = 0
            for at in range(offsets[user], offsets[user + 1]):
                for place in range(row_offsets[bought[at]], row_offsets[bought[at] + 1]):
                    item = np.uint32(scored[place])  # of a signed one numba asks at every step whether it counts from the end
                    if total[item] == 0:
                        listed[size] = item
                        size += 1
                    total[item] += share[at] * weight[place]
            floor = floor_of(found, user)
            for place in range(size):
                item = listed[place]
                score = total[item]
                total[item] = 0  # a sum that came to 0 on its way is listed twice
                if score > 0 and score >= floor:
                    offer(found, barred, user, np.int64(item), score)
                    floor = floor_of(found, user)
            continue
        for at in range(offsets[user], offsets[user + 1]):
            for place in range(row_offsets[bought[at]], row_offsets[bought[at] + 1]):
                item = np.uint32(scored[place])
                total[item] += share[at] * weight[place]
                touched[item >> SHIFT] = True
        for block in range(blocks):
            if touched[block]:
                touched[block] = False
                _offer_block(total[block * BLOCK : (block + 1) * BLOCK], block * BLOCK, barred, user, found)
                total[block * BLOCK : (block + 1) * BLOCK] = 0


@jit
def _offer_block(score: np.ndarray, first: int, barred: Barred, user: int, found: Heaps) -> None:
    floor = floor_of(found, user)
    some = False
    for place in range(len(score)):
        some |= (score[place] >= floor) & (score[place] > 0)
    if some:
        for place in range(len(score)):
            if score[place] >= floor and score[place] > 0:
                offer(found, barred, user, first + place, score[place])


@jit
def of_products(
    product: np.ndarray,
    slack: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    left: np.ndarray,
    unit: np.ndarray,
    right: np.ndarray,
    power: float,
    barred: Barred,
    found: Heaps,
) -> None:
    """Of a block of products, float32 (M, N), that are right but for each user's slack, float64 (M), the exact ones.

    Args:
        users, items: int64 (M), int32 (N): user rows and items.
        left, unit, power: of all users, as of `score_kernels.products_of_pairs`.
        right: float32 (N, D), of the block's items.
    """
    for row in range(len(users)):
        user = users[row]
        for start in range(0, len(items), BLOCK):
            least = np.float32(floor_of(found, user) - slack[row])
            part = product[row, start : start + BLOCK]
            some = False
            for place in range(len(part)):
                some |= part[place] >= least
            if some:
                for place in range(len(part)):
                    if part[place] >= least:
                        item = items[start + place]
                        total = 0.0
                        for factor in range(left.shape[1]):
                            total += left[user, factor] * np.rint(np.float64(right[start + place, factor]) * power)
                        offer(found, barred, user, item, np.float32(total * unit[user]))


@jit
def _taste_for(lists: Lists, taste: np.ndarray, item: int) -> np.float32:
    total = np.float32(0)
    for column in range(len(lists.value)):
        total += taste[lists.value[column, item]] * lists.of_item[column, item]
    return total


@jit
def of_lists(
    lists: Lists,
    offsets: np.ndarray,
    value: np.ndarray,
    share: np.ndarray,
    without: tuple[np.ndarray, np.ndarray],
    barred: Barred,
    found: Heaps,
) -> None:
    """Of the sums over columns of the user's share of the item's value times the item's weight there; above 0.

    An item whose sum is S has a column that gives S / C or more, so each value's list ends where share times weight falls below that
    for the worst item found. (Fagin, Lotem, Naor 2003, Optimal aggregation algorithms for middleware)

    Args:
        offsets, value, share: int64 (U + 1), int32, float32: the values of what users bought.
        without: int64 (U + 1), int32 ascending within a user: items that are not proposed.
    """
    taste = np.zeros(len(lists.offsets) - 1, np.float32)
    seen = np.zeros(lists.value.shape[1], np.int32)
    columns = len(lists.value)
    for user in range(len(offsets) - 1):
        mine = slice(offsets[user], offsets[user + 1])
        taste[value[mine]] = share[mine]
        seen[without[1][without[0][user] : without[0][user + 1]]] = user + 1
        for turn in range(2):
            for at in range(offsets[user], offsets[user + 1]):
                first, last = lists.offsets[value[at]], lists.offsets[value[at] + 1]
                for place in range(first, min(first + HEAD, last)) if turn == 0 else range(first + HEAD, last):
                    if share[at] * lists.weight[place] * columns * 1.0001 < floor_of(found, user):  # more than rounding can take
                        break
                    item = lists.item[place]
                    if seen[item] != user + 1:
                        seen[item] = user + 1
                        offer(found, barred, user, item, _taste_for(lists, taste, item))
        taste[value[mine]] = 0


@jit
def _better(score: float, item: int, than: float, than_item: int) -> bool:
    return score > than or (score == than and item < than_item)


@jit
def _sink(found: Heaps, user: int, side: int, size: int, new_score: float, new_item: int) -> None:
    """Put a pair on top of a heap of `size` and let it sink below all that are worse."""
    score, item = found.score, found.item  # no views of a user's part: each would be counted, which takes longer than a step
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _better(
            score[user, side, child], item[user, side, child], score[user, side, child + 1], item[user, side, child + 1]
        ):
            child += 1
        if not _better(new_score, new_item, score[user, side, child], item[user, side, child]):
            break
        score[user, side, at], item[user, side, at] = score[user, side, child], item[user, side, child]
        at = child
    score[user, side, at], item[user, side, at] = new_score, new_item


@jit
def _push(found: Heaps, user: int, side: int, new_score: float, new_item: int) -> None:
    """Put the pair into the heap, if it is one of the best."""
    score, item, size = found.score, found.item, found.size[user, side]
    if size == score.shape[2]:
        if _better(new_score, new_item, score[user, side, 0], item[user, side, 0]):
            _sink(found, user, side, size, new_score, new_item)
        return
    at = size
    while at > 0:
        parent = (at - 1) // 2
        if not _better(score[user, side, parent], item[user, side, parent], new_score, new_item):
            break
        score[user, side, at], item[user, side, at] = score[user, side, parent], item[user, side, parent]
        at = parent
    score[user, side, at], item[user, side, at] = new_score, new_item
    found.size[user, side] = size + 1


@jit
def offer(found: Heaps, barred: Barred, user: int, item: int, score: np.float32) -> None:
    """What is worse than `limit` items that the user may see is neither proposed nor lost by rules."""
    limit = found.score.shape[2]
    if found.size[user, 0] == limit and not _better(score, item, found.score[user, 0, 0], found.item[user, 0, 0]):
        return
    side = 0
    if barred.shared[barred.row[user], item] > 0:
        side = 1
    else:
        low, high = barred.offsets[user], barred.offsets[user + 1]
        while low < high:
            middle = (low + high) // 2
            if barred.item[middle] < item:
                low = middle + 1
            else:
                high = middle
        if low < barred.offsets[user + 1] and barred.item[low] == item:
            side = 1
    _push(found, user, side, score, item)


@jit
def floor_of(found: Heaps, user: int) -> float:
    """The score below which nothing is found any more."""
    return found.score[user, 0, 0] if found.size[user, 0] == found.score.shape[2] else -np.inf


@jit
def sort(found: Heaps) -> np.ndarray:
    """int64 (U): how many items rules took from the user, items that would be among the best but for them; the heaps become lists,
    best first, and the items taken the first of their side.
    """
    users, _, limit = found.score.shape
    lost = np.zeros(users, np.int64)
    for user in range(users):
        for side in range(2):
            for last in range(found.size[user, side] - 1, 0, -1):
                worst, worst_item = found.score[user, side, 0], found.item[user, side, 0]
                _sink(found, user, side, last, found.score[user, side, last], found.item[user, side, last])
                found.score[user, side, last], found.item[user, side, last] = worst, worst_item
        above = 0  # items that the user may see, better than this one
        for place in range(found.size[user, 1]):
            score, item = found.score[user, 1, place], found.item[user, 1, place]
            while above < found.size[user, 0] and _better(found.score[user, 0, above], found.item[user, 0, above], score, item):
                above += 1
            if above + place >= limit:
                break
            lost[user] += 1
    return lost
