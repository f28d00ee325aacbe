"""What the sources propose to a batch of users, merged and capped; what the rules forbid is never among it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.retrieval import score_kernels
from recsys.retrieval.best_kernels import sort
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Source
from recsys.retrieval.supplied import SUPPLIED, Supplied

BATCH = 256  # users whose candidates are held at once
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
    proposed: list[np.ndarray] = []
    lost: list[np.ndarray] = [np.empty(0, np.int64)]
    starts, counts = np.zeros((2, len(chosen), len(users)), np.int64)
    for number, (source, limit) in enumerate(chosen):
        found = source.best(users, users.barred, limit)
        taken = sort(found)
        counts[number] = found.size[:, 0]
        starts[number] = sum(map(len, proposed)) + np.arange(len(users)) * limit
        proposed.append(found.item[:, 0].ravel())
        row = np.repeat(np.arange(len(users)), taken)
        place = np.arange(len(row)) - np.repeat(np.cumsum(taken) - taken, taken)
        lost.append(row * items + found.item[row, 1, place])
    user_row, item, rank = score_kernels.union(starts, counts, np.concatenate(proposed), items, per_user)

    if users.supplied is not None:  # of other items none would have been a candidate
        position = users.signals.position[users.supplied.item].astype(np.int64)
        lost = [(users.supplied.user_row * items + position)[position >= 0]]
    dropped = np.zeros((len(users), len(users.rules.names)), np.int64)
    gone_row, gone = np.divmod(np.unique(np.concatenate(lost)), items)
    by = users.barred.of(gone_row, gone).astype(np.int64) - 1
    np.add.at(dropped, (gone_row[by >= 0], by[by >= 0]), 1)

    names = tuple(source.name for source, _ in chosen)
    if users.supplied is not None:
        user_row, item, rank = _only(users.supplied, (user_row, item, rank), users)
        names += (SUPPLIED,)
    score = np.full((len(item), len(names)), np.nan, np.float32)
    for number, (source, _) in enumerate(chosen):
        score[:, number] = source.scores(users, user_row, item)
    return Candidates(names, user_row, item, rank, score, dropped)


def _only(
    supplied: Supplied, proposed: tuple[np.ndarray, np.ndarray, np.ndarray], users: RuledUsers
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User row, active position and ranks of the given candidates that may be recommended; ranks (N, S + 1), GIVEN's last."""
    items = len(users.signals.items)
    position = users.signals.position[supplied.item].astype(np.int64)
    allowed = position >= 0
    allowed[allowed] = users.barred.of(supplied.user_row[allowed], position[allowed]) == 0
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


def user_batches(users: int) -> list[tuple[int, int]]:
    """Row ranges that cut a shard's users into batches of bounded memory; of no users one, so that what is made has its columns."""
    return [(start, min(start + BATCH, users)) for start in range(0, max(users, 1), BATCH)]
