"""Why this item: for every row of a list the source that ranked it highest, and a sentence a person can read."""

from dataclasses import dataclass

import numpy as np

from recsys.candidates import Candidates, Users
from recsys.given import GIVEN
from recsys.rank import Ranked

KINDS = {
    "own": "bought_before",
    "neighbours": "goes_with",
    "factors": "similar_taste",
    "category": "popular_in",
    "popular": "popular",
    "content": "new_in",
    "group": "popular_with",
    GIVEN: "given",
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
    rank = np.where(rank > 0, rank, np.iinfo(np.int32).max)
    if candidates.names[-1] == GIVEN:  # says little: it comes after all that say more
        rank[:, -1] = np.iinfo(np.int32).max - 1
    first = rank.argmin(axis=1)
    row, item = candidates.user_row[ranked.row], candidates.item[ranked.row]
    source = [candidates.names[number] for number in first]
    proposed = candidates.rank[ranked.row] > 0
    sources = [[name for name, r in zip(candidates.names, mine, strict=True) if r] for mine in proposed.tolist()]
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
            case "new_in":
                text.append(f"New in {category[number]}, where you often buy.")
            case "popular_with":
                text.append("Popular in the last 28 days with people like you.")
            case "given":
                text.append("Chosen by the shop.")
            case _:
                text.append("Popular in the last 28 days.")
    return Reasons(source, sources, kind, text, beside)


def _strongest(row: np.ndarray, item: np.ndarray, users: Users) -> np.ndarray:
    """int64 (M): active position of the purchase that adds most to the item's neighbour score, ties to the lowest item."""
    bought = users.matrix[row].astype(bool).astype(np.float32)
    weights = users.signals.neighbours_by_scored[:, item].T.tocsr()
    pairs = weights.multiply(bought).tocoo()  # one entry for each purchase with a weight; a scored item has at least one
    order = np.lexsort((pairs.col, -pairs.data, pairs.row))
    return pairs.col[order][np.searchsorted(pairs.row[order], np.arange(len(row)))].astype(np.int64)


def _categories(row: np.ndarray, item: np.ndarray, users: Users) -> list[str]:
    """For each row the item's category that is most the user's own, by name; empty where the user bought in none of them.

    That is the one with the highest lift: its share of the user's purchases over its share of everybody's.
    """
    user, bought, _ = users.purchases
    total = np.maximum(np.bincount(user, minlength=len(users)), 1)
    best = np.zeros(len(row))
    names: list[str] = [""] * len(row)
    for column, codes in users.categories.items():
        size = int(codes.max(initial=0)) + 1
        mine = np.bincount(user * size + codes[bought], minlength=len(users) * size)[row * size + codes[item]] / total[row]
        all_users = np.bincount(codes, weights=users.signals.popularity[-1], minlength=size)[codes[item]]
        lift = np.where(codes[item] > 0, mine / np.maximum(all_users, 1e-12), 0.0)
        values = users.catalog.table.column(column)
        for number in np.flatnonzero(lift > best):
            names[number] = values[int(users.signals.items[item[number]])].as_py()
        best = np.maximum(best, lift)
    return names
