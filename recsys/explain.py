"""Why this item: for every row of a list the source that ranked it highest, and a sentence a person can read."""

from dataclasses import dataclass

import numpy as np

from recsys.candidates import Candidates, Users
from recsys.rank import Ranked

KINDS = {
    "own": "bought_before",
    "neighbours": "goes_with",
    "factors": "similar_taste",
    "category": "popular_in",
    "popular": "popular",
}


@dataclass(frozen=True)
class Reasons:
    """M rows, as in the list."""

    source: list[str]
    sources: list[list[str]]
    kind: list[str]
    text: list[str]
    item: np.ndarray
    """int64 (M): code of the item the reason rests on, -1 where it rests on none."""


def reasons(ranked: Ranked, candidates: Candidates, users: Users) -> Reasons:
    """The reasons of the rows of lists.

    A row's source is the one that ranked it highest for this user; of equals, the first in the order of `candidates.names`.
    """
    rank = candidates.rank[ranked.row]
    first = np.where(rank > 0, rank, np.iinfo(np.int32).max).argmin(axis=1)
    row, item = candidates.user_row[ranked.row], candidates.item[ranked.row]
    source = [candidates.names[number] for number in first]
    sources = [[name for name, r in zip(candidates.names, ranks, strict=True) if r] for ranks in rank.tolist()]
    kind = [KINDS[name] for name in source]

    place, _ = users.own.find(row * len(users.signals.items) + item)
    times, last = users.own.count[place].astype(int), users.own.last[place].astype(int)
    beside = np.full(len(row), -1, np.int64)
    goes = np.flatnonzero(np.array([k == "goes_with" for k in kind], bool))
    if len(goes):
        beside[goes] = users.signals.items[_strongest(row[goes], item[goes], users)]
    named = dict(zip(goes.tolist(), users.catalog.names(beside[goes]), strict=True))
    category = _categories(row, item, users)
    text: list[str] = []
    for number, name in enumerate(kind):
        match name:
            case "bought_before":
                days, count = last[number], times[number]
                text.append(
                    f"Bought on {count} {'day' if count == 1 else 'days'}, last {days} {'day' if days == 1 else 'days'} before."
                )
            case "goes_with":
                text.append(f"Goes with {named[number]}, which you bought.")
            case "similar_taste":
                text.append("Bought by people who buy what you buy.")
            case "popular_in":
                text.append(f"Popular in {category[number]}, where you often buy.")
            case _:
                text.append("Popular in the last 28 days.")
    return Reasons(source, sources, kind, text, beside)


def _strongest(row: np.ndarray, item: np.ndarray, users: Users) -> np.ndarray:
    """int64 (M): active position of the purchase that adds most to the item's neighbour score, ties to the lowest item."""
    bought = users.matrix[row].astype(bool).astype(np.float32)
    weights = users.signals.neighbours_by_scored[:, item].T.tocsr()
    return np.asarray(weights.multiply(bought).tocsr().argmax(axis=1)).ravel()


def _categories(row: np.ndarray, item: np.ndarray, users: Users) -> list[str]:
    """For each row the item's category that the user buys most often, by name; empty where the item has none."""
    user, bought, _ = users.purchases
    best = np.zeros(len(row))
    names: list[str] = [""] * len(row)
    for column, codes in users.categories.items():
        size = int(codes.max(initial=0)) + 1
        count = np.bincount(user * size + codes[bought], minlength=len(users) * size)[row * size + codes[item]]
        values = users.catalog.table.column(column)
        # A finer category with the same count says more; columns are listed from coarse to fine by most shops.
        for number in np.flatnonzero((codes[item] > 0) & (count >= best) & (count > 0)):
            names[number] = values[int(users.signals.items[item[number]])].as_py()
        best = np.maximum(best, np.where(codes[item] > 0, count, 0))
    return names
