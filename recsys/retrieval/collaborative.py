"""Who bought this also bought that: EASE and cosine neighbours, and the factors of ALS."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import all_pairs_knn

from recsys import config, metrics

JUDGED = 10  # items of the lists that ALS is judged by
JUDGED_USERS = 128  # whose scores of all items are held at once


class Als(NamedTuple):
    """What ALS weighs, in its loss (Hu, Koren, Volinsky 2008, equation 3)."""

    l2: float
    """Of the squared length of each vector."""
    alpha: float
    """Of what was bought, damped as by `confidence`; what was not bought weighs 1."""
    looks: float = 0.0
    """Of a look of the kind that a purchase follows most often, beside a purchase; 0: looks are not asked."""


# A shop takes what ranked best in its own past; one that is too young takes the first. What suits it hangs on how many buy an item and
# how much a user buys: docs/log.md has six kinds, and three sizes.
ALS_CHOICES = tuple(
    Als(l2, alpha)
    for l2, alpha in ((10.0, 2.0), (30.0, 2.0), (100.0, 10.0), (100.0, 20.0), (300.0, 20.0), (300.0, 40.0), (1000.0, 40.0))
)


LOOK_CHOICES = (0.0, 0.1, 0.3, 1.0)  # of `Als.looks`, chosen in the same way once the rest is: docs/log.md


def evidence_of(days: sp.csr_matrix, looks: Sequence[sp.csr_matrix], weights: np.ndarray, *, bought: np.ndarray) -> sp.csr_matrix:
    """float32 (U, J): days with a purchase, and days with a look of each kind times the kind's weight.

    Args:
        days, looks: float32 (U, J); of the latter one for each weight.
        bought: bool (J), items that anybody bought: looks at others tell nothing that was learned.
    """
    found = days
    for one, weight in zip(looks, weights.tolist(), strict=False):
        if weight > 0:
            found = found + one.multiply(bought * np.float32(weight)).tocsr()
    found.eliminate_zeros()
    return found.astype(np.float32)


def look_weights(rates: np.ndarray) -> np.ndarray:
    """float64 (K): what looks of each kind weigh beside those of the kind that a purchase follows most often; all 1 where none does."""
    highest = rates.max(initial=0.0)
    return rates / highest if highest > 0 else np.ones(len(rates))


def neighbour_weights(evidence: sp.csr_matrix, settings: config.Signals) -> sp.csr_matrix:
    """(J, J) weights: row = item bought, column = item scored, the strongest `neighbours` or so kept for one column.

    Of `evidence` at most 1 counts: a purchase is one, however often.

    The most bought items are scored by EASE, the closed-form item autoencoder (Steck 2019, eq. 8), solved jointly over them all. For
    the rest, cosine chooses the neighbours and each one's weight is the same ridge regression on that neighbour alone, which
    puts both on one scale.
    """
    count = evidence.shape[1]
    binary = evidence.copy()
    binary.data = np.minimum(binary.data, 1.0)
    bought = np.asarray(binary.power(2).sum(axis=0)).ravel()  # of purchases alone: how many users bought it
    head = np.sort(np.argsort(-bought, kind="stable")[: min(settings.ease_items, count)])
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    if len(head):
        selected = binary[:, head]
        gram = np.asarray((selected.T @ selected).todense(), np.float64)
        gram[np.diag_indices_from(gram)] += settings.ease_l2
        inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
        ease = (-inverse / np.diag(inverse)).astype(np.float32)
        ease[np.diag_indices_from(ease)] = 0.0
        keep = min(settings.neighbours, len(head))
        strongest = np.argpartition(-np.abs(ease), keep - 1, axis=0)[:keep]
        columns = np.broadcast_to(np.arange(len(head)), strongest.shape)
        kept.append((head[strongest].ravel(), head[columns].ravel(), ease[strongest, columns].ravel()))
    if len(head) < count:
        # implicit's own CosineRecommender does the same, and warns that its product is no CSR matrix.
        unit = binary.multiply(1.0 / np.sqrt(np.maximum(bought, 1.0))).tocsr().astype(np.float64)
        nearest = all_pairs_knn(unit, settings.neighbours + 1, show_progress=False, num_threads=1)  # itself among them
        similar = nearest.tocsr().tocoo()  # cosine = both / sqrt(bought[row] bought[col])
        in_head = np.zeros(count, bool)
        in_head[head] = True
        tail = ~in_head[similar.row] & (similar.row != similar.col)
        neighbour, scored = similar.col[tail], similar.row[tail]
        both = similar.data[tail] * np.sqrt(bought[scored] * bought[neighbour])
        kept.append((neighbour, scored, (both / (bought[neighbour] + settings.ease_l2)).astype(np.float32)))
    bought_item, scored_item, weight = (np.concatenate(part) for part in zip(*kept, strict=True))
    return sp.csr_matrix((weight, (bought_item, scored_item)), shape=(count, count))


def item_factors(evidence: sp.csr_matrix, settings: config.Signals, als: Als, *, seed: int) -> np.ndarray:
    """float32 (J, D) item factors of implicit-feedback ALS (Hu, Koren, Volinsky 2008)."""
    model = AlternatingLeastSquares(
        factors=settings.factors,
        regularization=als.l2,
        alpha=als.alpha,
        iterations=settings.als_iterations,
        random_state=seed,
        num_threads=1,
    )
    model.fit(confidence(evidence), show_progress=False)
    return np.asarray(model.item_factors, np.float32)


def als_quality(
    evidence: sp.csr_matrix, known: sp.csr_matrix, wanted: sp.csr_matrix, settings: config.Signals, als: Als, *, seed: int
) -> np.ndarray:
    """float64 (V,): NDCG@10 of lists by ALS alone, of the V users who want something, in their order.

    Args:
        evidence: (U, J), as of `evidence_of`.
        known: (U, J); what is in it is not listed.
        wanted: (U, J), not zero where the user wanted an item later, none that is known.
    """
    factors = item_factors(evidence, settings, als, seed=seed)
    gram = factors.T @ factors
    users = np.flatnonzero(np.diff(wanted.indptr))
    found = [np.empty(0)]
    for start in range(0, len(users), JUDGED_USERS):
        rows = users[start : start + JUDGED_USERS]
        later = wanted[rows].sorted_indices()
        scores = fold_in(evidence[rows], factors, als, gram=gram) @ factors.T
        scores[known[rows].nonzero()] = -np.inf
        kept = min(JUDGED, scores.shape[1])
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        hits = metrics.hits(np.take_along_axis(best, order, axis=1), later.indptr, later.indices)
        found.append(metrics.ndcg(hits, np.diff(later.indptr), JUDGED))
    return np.concatenate(found)


def fold_in(evidence: sp.csr_matrix, factors: np.ndarray, als: Als, *, gram: np.ndarray) -> np.ndarray:
    """float32 (U, D) user factors for given item factors: the user's half of an ALS iteration (equation 4 of the same paper).

    A user's bits depend on the user's purchases alone, not on who else is in the batch. Ours, as the library's wants writable
    arrays, and those that workers share are not.

    Args:
        evidence: (U, J), as of `evidence_of`.
        factors: float32 (J, D) of `item_factors`.
        gram: float32 (D, D), factors.T @ factors: what all users share of the normal equation.
    """
    weight = confidence(evidence)
    vectors = np.zeros((evidence.shape[0], factors.shape[1]), np.float32)
    for user, (start, stop) in enumerate(pairwise(weight.indptr.tolist())):
        if start < stop:
            liked, sure, left = _normal_equation(weight, slice(start, stop), factors, als, gram)
            vectors[user] = _solve(left, liked.T @ sure)
    return vectors


def evidence_shares(
    evidence: sp.csr_matrix,
    factors: np.ndarray,
    als: Als,
    *,
    gram: np.ndarray,
    row: np.ndarray,
    item: np.ndarray,
) -> sp.csr_matrix:
    """(M, J) what each purchase or look adds to the ALS score of M pairs of a user and an item; a row's sum is the score.

    The user's folded-in vector is A^-1 times the sum over purchases i of c_i y_i, so the score of item j is the sum of
    c_i y_j' A^-1 y_i (section 5 of the same paper). Each of the user's items has an entry, whatever its value.

    Args:
        evidence: (U, J), as of `evidence_of`.
        gram: as of `fold_in`.
        row, item: int64 (M), user row and active position of each pair; users in any order.
    """
    weight = confidence(evidence)
    lengths = np.diff(weight.indptr)[row]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bought = np.empty(offsets[-1], np.int64)
    share = np.empty(offsets[-1], np.float32)
    order = np.argsort(row, kind="stable")
    users, first = np.unique(row[order], return_index=True)
    for user, mine in zip(users.tolist(), np.split(order, first[1:]), strict=True):
        start, stop = weight.indptr[user : user + 2]
        liked, sure, left = _normal_equation(weight, slice(start, stop), factors, als, gram)
        pulled = _solve(left, factors[item[mine]].T)
        places = offsets[mine][:, None] + np.arange(stop - start)
        bought[places] = weight.indices[start:stop]
        share[places] = (sure[:, None] * (liked @ pulled)).T
    return sp.csr_matrix((share, bought, offsets), shape=(len(row), evidence.shape[1]))


def _normal_equation(
    weight: sp.csr_matrix, mine: slice, factors: np.ndarray, als: Als, gram: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A user's float32 factors of what was bought (N, D), confidences (N), and left side (D, D)."""
    liked = factors[weight.indices[mine]]
    sure = np.float32(als.alpha) * weight.data[mine]
    left = gram + liked.T @ (liked * (sure - 1)[:, None])
    left[np.diag_indices_from(left)] += np.float32(als.l2)
    return liked, sure, left


def _solve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a positive definite system; LAPACK itself, as for a small one the checks of scipy.linalg.solve cost most."""
    (solve,) = scipy.linalg.get_lapack_funcs(("posv",), (left, right))
    _, found, failed = solve(left, right)
    assert not failed, "signals.als_l2 above 0 makes every normal equation positive definite"
    return found


def confidence(evidence: sp.csr_matrix) -> sp.csr_matrix:
    """Days damped to 1 + log(days), so that a weekly milk does not own a user's factors; less than one, of looks, as it is."""
    damped = evidence.astype(np.float32)
    damped.data = np.where(damped.data < 1.0, damped.data, 1.0 + np.log(np.maximum(damped.data, np.float32(1.0))))
    return damped


EXACT_BITS = 53  # of a float64: integers below 2^53 and their sums are exact


def on_grid(vectors: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray, float]:
    """User vectors as whole numbers, whose products with those of items are exact: the same bits whoever else is in the batch.

    BLAS sums in an order that depends on a row's place and on the processor. So both sides are rounded to integers so small that no
    sum of their products is ever rounded: at 64 factors of 23 bits, as many as a float32 has but one.

    Args:
        vectors: float32 (U, D).
        largest: the largest absolute value of any item's factors.

    Returns:
        float64 (U, D) whole numbers; float64 (U), powers of two that make scores of the products; and the power of two for
        `whole_numbers`.
    """
    bits = (EXACT_BITS - vectors.shape[1].bit_length()) // 2
    _, exponent = np.frexp(np.abs(vectors).max(axis=1, keepdims=True, initial=0.0))
    whole = np.rint(np.ldexp(vectors.astype(np.float64), bits - exponent))
    power = float(np.ldexp(1.0, bits - np.frexp(np.float32(largest))[1]))
    return whole, np.ldexp(1.0, exponent[:, 0] - bits) / power, power


def whole_numbers(factors: np.ndarray, power: float) -> np.ndarray:
    """float64 (J, D): item factors as the whole numbers of `on_grid`."""
    return np.rint(factors.astype(np.float64) * power)
