"""What the sources propose to a batch of users, merged and capped; what the rules forbid is never among it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Source
from recsys.retrieval.supplied import SUPPLIED, Supplied

MATRIX_CELLS = 4_000_000  # of one source's (users, items) scores; bounds the memory of a batch
GROUP = 32  # columns in a group of `top_scores`; more would leave more scores above the bound
NOT_FEATURES = frozenset({SUPPLIED, "group"})  # sources that the model is told nothing of: it never learns from their rows


@dataclass(frozen=True)
class Candidates:
    """N (user, item) rows in (user, item) order; S sources."""

    names: tuple[str, ...]
    """Of the sources."""
    user_row: np.ndarray
    """int64 (N)."""
    item: np.ndarray
    """int64 (N), active position."""
    rank: np.ndarray
    """int32 (N, S): place among what the source proposed to the user, from 1; 0 where it did not propose the item."""
    score: np.ndarray
    """float32 (N, S): the source's score, whether it proposed the item or not; NaN where it has none."""
    dropped: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """int64 (U, R): items that a source would have proposed to the user but for the rules, each under the first that forbids it."""

    def __len__(self) -> int:
        return len(self.item)

    def keep(self, mask: np.ndarray) -> "Candidates":
        """The rows where `mask`, bool (N), holds."""
        return Candidates(self.names, self.user_row[mask], self.item[mask], self.rank[mask], self.score[mask], self.dropped)


def propose(users: RuledUsers, chosen: Sequence[tuple[Source, int]], *, per_user: int) -> Candidates:
    """The union of what the sources propose, for each user at most `per_user` items, those with the best rank anywhere.

    Where candidates are given it is those and no others, as one more source, GIVEN, whose rank is their order.

    Ties break by item. What the rules forbid a user is never proposed to that user, whatever the source.
    """
    items = len(users.signals.items)
    keys: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    found: list[np.ndarray] = []
    lost: list[np.ndarray] = [np.empty(0, np.int64)]
    matrices: list[np.ndarray] = []
    for number, (source, limit) in enumerate(chosen):
        scores = source.scores(users)
        row, item, rank = top_scores(scores, limit)
        if len(scores) == 1 != len(users.barred):
            row, item, rank = _for_all(len(users), item, rank)
        forbidden = users.barred[row if len(users.barred) != 1 else 0, item] > 0
        gone_row, gone = row[forbidden], item[forbidden]
        if len(gone):  # those users again, from what they may see
            again = np.unique(gone_row)
            allowed = np.where(_rows(users.barred, again) > 0, -np.inf, _rows(scores, again))
            kept = ~np.isin(row, again)
            more_row, more_item, more_rank = top_scores(allowed, limit)
            row, item = np.append(row[kept], again[more_row]), np.append(item[kept], more_item)
            rank = np.append(rank[kept], more_rank)
        if len(scores) == len(users.barred) == 1:
            gone_row, gone, _ = _for_all(len(users), gone, gone)
            row, item, rank = _for_all(len(users), item, rank)
        keys.append(row * items + item)
        ranks.append(rank)
        found.append(np.full(len(row), number))
        lost.append(gone_row * items + gone)
        matrices.append(scores)
    if users.supplied is not None:  # of other items none would have been a candidate
        position = users.signals.position[users.supplied.item].astype(np.int64)
        lost = [(users.supplied.user_row * items + position)[position >= 0]]
    dropped = np.zeros((len(users), len(users.rules.names)), np.int64)
    gone_row, gone = np.divmod(np.unique(np.concatenate(lost)), items)
    by = users.barred[gone_row if len(users.barred) != 1 else 0, gone].astype(np.int64) - 1
    np.add.at(dropped, (gone_row[by >= 0], by[by >= 0]), 1)
    key, where = np.unique(np.concatenate(keys), return_inverse=True)
    rank = np.zeros((len(key), len(chosen)), np.int32)
    rank[where, np.concatenate(found)] = np.concatenate(ranks)
    user_row, item = np.divmod(key, items)

    best_rank = np.where(rank > 0, rank, np.iinfo(np.int32).max).min(axis=1)
    order = np.lexsort((item, best_rank, user_row))
    place = np.arange(len(key)) - np.searchsorted(user_row, user_row)  # within the user
    mask = np.zeros(len(key), bool)
    mask[order[place < per_user]] = True

    user_row, item, rank = user_row[mask], item[mask], rank[mask]
    names = tuple(source.name for source, _ in chosen)
    if users.supplied is not None:
        user_row, item, rank = _only(users.supplied, (user_row, item, rank), users)
        names += (SUPPLIED,)
    score = np.full((len(item), len(names)), np.nan, np.float32)
    for number, scores in enumerate(matrices):
        score[:, number] = scores[user_row if scores.shape[0] != 1 else 0, item]
    score[np.isinf(score)] = np.nan
    return Candidates(names, user_row, item, rank, score, dropped)


def _only(
    supplied: Supplied, proposed: tuple[np.ndarray, np.ndarray, np.ndarray], users: RuledUsers
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row, active position and ranks of the given candidates that may be recommended; ranks (N, S + 1), GIVEN's last."""
    items = len(users.signals.items)
    position = users.signals.position[supplied.item].astype(np.int64)
    allowed = position >= 0
    allowed &= users.barred[supplied.user_row if len(users.barred) != 1 else 0, position] == 0
    user_row, place = supplied.user_row[allowed], np.flatnonzero(allowed)
    starts = np.searchsorted(supplied.user_row, np.arange(len(users)))
    key = user_row * items + position[allowed]
    order = np.argsort(key)
    key, place = key[order], place[order]
    user_row, item = np.divmod(key, items)
    rank = np.zeros((len(key), proposed[2].shape[1] + 1), np.int32)
    rank[:, -1] = place - starts[user_row] + 1
    also = proposed[0] * items + proposed[1]
    there = np.isin(also, key)
    rank[np.searchsorted(key, also[there]), :-1] = proposed[2][there]
    return user_row, item, rank


def _for_all(users: int, item: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, item and rank of what is proposed to every user."""
    return np.repeat(np.arange(users), len(item)), np.tile(item, users), np.tile(rank, users)


def _rows(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of a matrix that may have one row for all."""
    return matrix[rows] if len(matrix) > 1 else matrix


def top_scores(scores: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and rank from 1, each int64 (M), of the highest finite scores of each row, at most `limit` a row, best first.

    Ties break by column.
    """
    # At least `limit` groups of columns have a maximum of `floor` or more, so at least `limit` scores have: a bound that costs one
    # pass instead of a partition of every row (`jobs.bench` prints the ratio).
    users, width = scores.shape
    floor = np.full((users, 1), np.finfo(scores.dtype).min, scores.dtype)
    if (groups := width // GROUP) > limit:
        maxima = scores[:, : groups * GROUP].reshape(users, GROUP, groups).max(axis=1)
        floor = np.maximum(floor, np.partition(maxima, groups - limit, axis=1)[:, groups - limit : groups - limit + 1])
    row, column = np.nonzero(scores >= floor)
    order = np.lexsort((column, -scores[row, column], row))
    row, column = row[order], column[order]
    rank = np.arange(1, len(row) + 1) - np.searchsorted(row, row)
    kept = rank <= limit
    return row[kept], column[kept], rank[kept]


def user_batches(users: int, items: int) -> list[tuple[int, int]]:
    """Row ranges that cut a shard's users into batches of bounded memory; of no users one, so that what is made has its columns."""
    size = max(1, min(256, MATRIX_CELLS // max(items, 1)))
    return [(start, min(start + size, users)) for start in range(0, max(users, 1), size)]
