"""Candidates of earlier dates that look like those the shop supplies tonight: a model learns from what it will be asked about."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.data.histories import Histories
from recsys.features.candidate_features import Featurizer
from recsys.hashing import mix, stable_hash
from recsys.retrieval.candidates import Candidates, propose, user_batches
from recsys.retrieval.supplied import Supplied
from recsys.schema import USER_ID

LOOKED_AT = 1_000  # users whose candidates say what share of them the sources propose
DRAWN = np.uint64(0xD1B54A32D192ED03)  # turns hashes, so that a draw has nothing to do with others of the same user


@dataclass(frozen=True)
class Shape:
    """How a shop's own candidates look, so that those of earlier dates can be drawn alike: nobody has kept theirs."""

    per_user: int
    """Candidates of a user who has some, on average."""
    proposed: float
    """Share of them that the sources propose to the user, beyond those that would be among them by chance."""
    items: np.ndarray
    """int32 (I), distinct item codes, ascending …"""
    cumulative: np.ndarray
    """float64 (I): … and the share of the rows that have this item or one before it; the last is 1."""


def shape_of(featurizer: Featurizer, shards: Sequence[tuple[Histories, Supplied]], *, seed: int) -> Shape:
    """How supplied candidates look to the sources as of the featurizer's date.

    Args:
        shards: users and their candidates, of which there are some.
    """
    items, rows = np.unique(np.concatenate([one.item for _, one in shards]), return_counts=True)
    users = sum(len(np.unique(one.user_row)) for _, one in shards)
    by_count = Shape(max(round(rows.sum() / users), 1), 0.0, items, np.cumsum(rows) / rows.sum())
    found, left = np.zeros((2, 2), np.int64), LOOKED_AT
    for histories, supplied in shards:
        chosen = np.unique(supplied.user_row)[:left]
        left -= len(chosen)
        some = histories.take(chosen)
        for number, only in enumerate((supplied.take(chosen), sample_candidates(by_count, featurizer, some, wanted=None, seed=seed))):
            for _, candidates in _proposals(featurizer, some, only):
                found[number] += (candidates.rank[:, :-1] > 0).any(axis=1).sum(), len(candidates)
    there, by_chance = found[:, 0] / np.maximum(found[:, 1], 1)
    return replace(by_count, proposed=float(max(there - by_chance, 0) / max(1 - by_chance, 1e-9)))


def sample_candidates(shape: Shape, featurizer: Featurizer, histories: Histories, *, wanted: Histories | None, seed: int) -> Supplied:
    """For each user as many candidates as the shop supplies, of the same kinds: some that the sources propose, the others by how often
    an item is among those supplied. The choice depends on the seed, the user and the signals alone.

    Args:
        featurizer: as of the date.
        wanted: the same users' events of the label window, whose wanted items are candidates too; None: nothing is added.
    """
    items = len(featurizer.catalog)
    hashes = mix(stable_hash(histories.users.column(USER_ID).to_numpy()) ^ mix(np.array(seed, np.uint64) ^ DRAWN))
    near = round(shape.proposed * shape.per_user)
    places = mix(np.arange(shape.per_user - near, dtype=np.uint64) + DRAWN)
    chance = (mix(hashes[:, None] ^ places) >> np.uint64(11)).astype(np.float64) / 2**53
    keys = [np.arange(len(histories))[:, None] * items + shape.items[np.searchsorted(shape.cumulative, chance, side="right")]]
    if near:
        for start, candidates in _proposals(featurizer, histories):
            row, item = candidates.user_row, featurizer.signals.items[candidates.item]
            order = np.lexsort((mix(hashes[start + row] ^ mix(item.astype(np.uint64))), row))
            first = order[np.arange(len(order)) - np.searchsorted(row, row) < near]  # row is ascending, so it is in this order too
            keys.append((start + row[first]) * items + item[first])
    if wanted is not None:
        keys.append(wanted.user_row[wanted.wanted] * items + wanted.item[wanted.wanted])
    row, item = np.divmod(np.unique(np.concatenate([key.ravel() for key in keys])), items)
    return Supplied(row.astype(np.int64), item.astype(np.int32))


def _proposals(featurizer: Featurizer, histories: Histories, only: Supplied | None = None) -> Iterable[tuple[int, Candidates]]:
    """First row of each batch of users, and its candidates as of the cutoff."""
    for start, stop in user_batches(len(histories)):
        users = featurizer.users(histories.select(start, stop), only.select(start, stop) if only is not None else None)
        yield start, propose(users, featurizer.sources, per_user=featurizer.settings.candidates.per_user)
