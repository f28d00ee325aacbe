"""Why this item: for every row of a list the source that ranked it highest, and what that rests on, for people and for programs.

A reason's kind says what the other columns hold:

    bought_before  the user bought it: the item itself
    looked_at      the user looked at it: the item itself
    goes_with      neighbours: the item bought, or looked at, that adds most to the item's score
    similar_to     ALS: the same, by `collaborative.evidence_shares`; bought_before or looked_at where that is the item itself; and
                   vectors: by the product of both items' vectors
    popular_in     the category, of the item's, that is most the user's own
    new_in         the same, of an item that few or none bought
    popular        neither
    popular_with   neither: the user, who has no history yet, is of a group
    given          neither: the shop chose it

A new source adds its line to REASONS; a test goes over all sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from recsys.ranking.top_k import Ranked
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.collaborative import evidence_shares
from recsys.retrieval.item_sums import MONTH
from recsys.retrieval.supplied import SUPPLIED
from recsys.retrieval.users import UserBatch
from recsys.retrieval.vectors import cosines, item_vectors


class Reason(NamedTuple):
    """Of one row."""

    kind: str
    text: str
    """A sentence for people."""
    item: int = -1
    """Code of the purchase, or of what was looked at, that it rests on; -1 where it rests on none."""
    category: str | None = None
    """Value of the category it rests on; None where it rests on none."""


@dataclass(frozen=True)
class Reasons:
    """M rows, as in the list."""

    source: list[str]
    sources: list[list[str]]
    kind: list[str]
    text: list[str]
    item: np.ndarray
    """int64 (M): code of the purchase the reason rests on, -1 where it rests on none."""
    category: list[str | None]
    """Value of the category the reason rests on."""


def reasons_of(ranked: Ranked, candidates: Candidates, users: UserBatch) -> Reasons:
    """The reasons of the rows of lists.

    A row's source is the one that ranked it highest for this user; of equals, the first in the order of `candidates.names`.
    """
    rank = candidates.rank[ranked.row]
    place = np.where(rank > 0, rank, np.iinfo(np.int32).max)
    if candidates.names[-1] == SUPPLIED:  # says little: it comes after all that say more
        place[:, -1] = np.iinfo(np.int32).max - 1
    first = place.argmin(axis=1)
    row, item = candidates.user_row[ranked.row], candidates.item[ranked.row]
    found: dict[int, Reason] = {}
    for number in np.unique(first).tolist():
        mine = np.flatnonzero(first == number)
        made = REASONS[candidates.names[number]](row[mine], item[mine], users)
        found |= zip(mine.tolist(), made, strict=True)
    ordered = [found[number] for number in range(len(row))]
    return Reasons(
        source=[candidates.names[number] for number in first],
        sources=[[name for name, r in zip(candidates.names, ranks, strict=True) if r] for ranks in rank.tolist()],
        kind=[reason.kind for reason in ordered],
        text=[reason.text for reason in ordered],
        item=np.array([reason.item for reason in ordered], np.int64),
        category=[reason.category for reason in ordered],
    )


def _bought_before(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    place, _ = users.own.find(row * len(users.signals.items) + item)
    counts, last = users.own.count[place].astype(int).tolist(), users.own.last[place].astype(int).tolist()
    return [
        Reason(
            "bought_before",
            f"Bought on {count} {'day' if count == 1 else 'days'}, last {days} {'day' if days == 1 else 'days'} before.",
            code,
        )
        for count, days, code in zip(counts, last, users.signals.items[item].tolist(), strict=True)
    ]


def _looked_at(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    place, _ = users.seen.find(row * len(users.signals.items) + item)
    last, codes = users.seen.last[place].astype(int).tolist(), users.signals.items[item].tolist()
    return [
        Reason("looked_at", f"Looked at {days} {'day' if days == 1 else 'days'} before.", code)
        for days, code in zip(last, codes, strict=True)
    ]


def _goes_with(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    evident = sp.csr_matrix(users.evident[::-1], shape=users.evidence.shape)
    weights = users.signals.neighbours_by_scored[:, item].T.tocsr()
    strongest = _strongest(weights.multiply(evident[row]).tocoo())
    return [Reason("goes_with", f"Goes with {told}.", code) for told, code in _told(row, strongest, users)]


def _told(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[tuple[str, int]]:
    """Of what a reason rests on the name, with what the user did, and the code."""
    beside = users.signals.items[item]
    _, bought = users.own.find(row * len(users.signals.items) + item)
    did = ["bought" if one else "looked at" for one in bought.tolist()]
    names = users.catalog.names(beside)
    return [(f"{name}, which you {verb}", code) for name, verb, code in zip(names, did, beside.tolist(), strict=True)]


def _similar_to(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    shares = evidence_shares(users.evidence, users.signals.factors, users.signals.als, gram=users.signals.gram, row=row, item=item)
    strongest = _strongest(shares.tocoo())
    _, own = users.own.find(row * len(users.signals.items) + item)
    itself = zip(_bought_before(row, item, users), _looked_at(row, item, users), own.tolist(), strict=True)
    return [
        (bought if owned else looked) if same else Reason("similar_to", f"Similar to {told}.", code)
        for (bought, looked, owned), same, (told, code) in zip(itself, strongest == item, _told(row, strongest, users), strict=True)
    ]


def _alike(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    evident = sp.csr_matrix(users.evident[::-1], shape=users.evidence.shape)[row].tocoo()
    there, place = np.unique(evident.col, return_inverse=True)
    pairs = np.stack([evident.row.astype(np.int64), place])
    alike = np.nan_to_num(cosines(item_vectors(users, item), item_vectors(users, there), pairs), nan=-np.inf)
    strongest = _strongest(sp.coo_matrix((alike * evident.data, (evident.row, evident.col)), shape=evident.shape))
    return [Reason("similar_to", f"Similar to {told}.", code) for told, code in _told(row, strongest, users)]


def _popular_in(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    names = _categories(row, item, users)
    return [Reason("popular_in", f"Popular in {name}, where you often buy.", category=name) for name in names]


def _new_in(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    names = _categories(row, item, users)
    return [Reason("new_in", f"New in {name}, where you often buy.", category=name) for name in names]


def _categories(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[str]:
    """The item's category with the highest lift, its share of the user's purchases over its share of everybody's."""
    user, bought, _ = users.purchases
    total = np.maximum(np.bincount(user, minlength=len(users)), 1)
    best = np.zeros(len(row))
    names = [""] * len(row)
    for column, codes in users.categories.items():
        size = int(codes.max(initial=0)) + 1
        mine = np.bincount(user * size + codes[bought], minlength=len(users) * size)[row * size + codes[item]] / total[row]
        all_users = np.bincount(codes, weights=users.signals.popularity[-1], minlength=size)[codes[item]]
        lift = np.where(codes[item] > 0, mine / np.maximum(all_users, 1e-12), 0.0)
        values = users.catalog.table.column(column)
        for number in np.flatnonzero(lift > best):
            names[number] = values[int(users.signals.items[item[number]])].as_py()
        best = np.maximum(best, lift)
    assert best.all(), "an item of none of the user's categories"
    return names


def _popular(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    lately = users.signals.popularity[MONTH][item] > 0
    return [Reason("popular", f"Popular {'in the last 28 days' if month else 'before the last 28 days'}.") for month in lately]


def _popular_with(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    return [Reason("popular_with", "Popular in the last 28 days with people like you.")] * len(row)


def _supplied(row: np.ndarray, item: np.ndarray, users: UserBatch) -> list[Reason]:
    return [Reason("given", "Chosen by the shop.")] * len(row)


REASONS: Mapping[str, Callable[[np.ndarray, np.ndarray, UserBatch], list[Reason]]] = {
    "own": _bought_before,
    "seen": _looked_at,
    "neighbours": _goes_with,
    "factors": _similar_to,
    "category": _popular_in,
    "popular": _popular,
    "content": _new_in,
    "vectors": _alike,
    "group": _popular_with,
    SUPPLIED: _supplied,
}
"""Source -> what gives the reasons of M of its rows: user rows and active positions, each int64 (M), and the users."""


def _strongest(added: sp.coo_matrix) -> np.ndarray:
    """int64 (M): for each row the column with the highest entry, ties to the lowest; every row has one, as it was scored."""
    order = np.lexsort((added.col, -added.data, added.row))
    return added.col[order][np.searchsorted(added.row[order], np.arange(added.shape[0]))].astype(np.int64)
