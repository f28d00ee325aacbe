"""Items whose vectors, made by an encoder of the shop's own, point where the user's do: the mean of those of what the user took."""

import numpy as np

from recsys.retrieval import best_kernels, score_kernels
from recsys.retrieval.collaborative import on_grid
from recsys.retrieval.heaps import Barred, Heaps, empty_heaps
from recsys.retrieval.users import UserBatch

BLOCK = 1024  # items whose vectors are read, and products made, at once


class Vectors:
    """What is nearest to the mean of what the user bought and looked at, and was not bought: the cosine, of several columns the mean.

    Whether anybody bought the item does not matter. All are tried, a block at a time, as no order of them has an end that is known
    before. Products are exact, as those of `sources.Factors`; those of float32 say which ones are worth it.
    """

    name = "vectors"

    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:  # noqa: D102
        found = empty_heaps(len(users), limit)
        barred = barred.also(users.own_key)
        asked = _asked(users)
        left, unit, power = on_grid(asked, 1.0)
        size = left.shape[1]
        slack = np.sqrt((asked.astype(np.float64) ** 2).sum(axis=1)) * (size * 2.0**-22 + 2 * np.sqrt(size) / power)
        asking = np.flatnonzero(asked.any(axis=1))
        for start in range(0, len(users.signals.items) if len(asking) else 0, BLOCK):
            block = np.arange(start, min(start + BLOCK, len(users.signals.items)), dtype=np.int32)
            vectors = item_vectors(users, block)
            there = vectors.any(axis=1)
            block, vectors = block[there], vectors[there]
            product = asked[asking] @ vectors.T
            best_kernels.of_products(product, slack[asking], asking, block, left, unit, vectors, power, barred, found)
        return found

    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:  # noqa: D102
        there, place = np.unique(item, return_inverse=True)
        return cosines(_asked(users), item_vectors(users, there), np.stack([user_row, place]))


def _asked(users: UserBatch) -> np.ndarray:
    """float32 (U, D): the users' vectors of all columns side by side, so that products with those of items are means of cosines."""
    found = [*users.mean_vectors.values()]
    return np.concatenate(found, axis=1) / np.float32(len(found))


def item_vectors(users: UserBatch, item: np.ndarray) -> np.ndarray:
    """float32 (N, D): the vectors of all columns side by side, of the active positions, int (N)."""
    codes = users.signals.items[item]
    return np.concatenate([vectors[codes] for vectors in users.catalog.vectors.values()], axis=1)


def cosines(left: np.ndarray, right: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """float32 (N): exact products of rows of float32 (U, D) and (J, D) whose numbers are 1 at most; NaN where a row is all zeros.

    Args:
        pairs: int64 (2, N), rows of both.
    """
    whole, unit, power = on_grid(left, 1.0)
    found = score_kernels.products_of_pairs(whole, unit, right, power, pairs)
    nowhere = [np.flatnonzero(np.abs(side).max(axis=1, initial=0) == 0) for side in (left, right)]
    found[np.isin(pairs[0], nowhere[0]) | np.isin(pairs[1], nowhere[1])] = np.nan
    return found
