import numpy as np
import pyarrow as pa
import pytest

from recsys import config
from recsys.features import candidate_sampling
from recsys.features.candidate_features import Featurizer
from recsys.retrieval.supplied import Supplied
from tests import shops
from tests.shops import BREAD, CAKE, CUTOFF, END, MILK, NOTHING, SPADE

ITEMS = np.array([MILK, NOTHING, SPADE], np.int32)
EVENLY = np.array([0.25, 0.5, 1.0])
USERS = 4_000


def pairs(found: Supplied) -> set[tuple[int, int]]:
    made = list(zip(found.user_row.tolist(), found.item.tolist(), strict=True))
    assert made == sorted(set(made))
    return set(made)


def proposals(featurizer: Featurizer) -> set[tuple[int, int]]:
    return {
        (int(user), int(users.signals.items[item]))
        for _, users, found, _ in featurizer(shops.whole())
        for user, item in zip(found.user_row, found.item, strict=True)
    }


def test_the_shape_counts_rows_a_user_and_how_often_an_item_is_among_them() -> None:
    one = Supplied(np.array([0, 0, 0, 4]), np.array([BREAD, MILK, SPADE, MILK], np.int32))
    other = Supplied(np.array([2, 2]), np.array([MILK, BREAD], np.int32))
    found = candidate_sampling.shape_of(shops.featurizer(), [(shops.whole(), one), (shops.whole(), other)], seed=1)
    assert found.per_user == 2
    shares = np.diff(found.cumulative, prepend=0)
    assert dict(zip(found.items.tolist(), shares, strict=True)) == pytest.approx({BREAD: 2 / 6, MILK: 3 / 6, SPADE: 1 / 6})
    assert found.cumulative[-1] == 1.0


def test_the_proposed_share_is_what_is_proposed_beyond_chance() -> None:
    few = shops.settings(candidates=config.Candidates(own=1, popular=1, neighbours=1, factors=1, category=0))
    featurizer = shops.featurizer(few)
    known = sorted(proposals(featurizer))
    supplied = Supplied(*(np.array(column) for column in zip(*known, strict=True)))
    of_proposals = candidate_sampling.shape_of(featurizer, [(shops.whole(), supplied)], seed=1)
    assert of_proposals.proposed == 1.0  # all of them are, by chance not all would be
    every = [(user, item) for user in range(5) for item in range(7)]
    anything = Supplied(*(np.array(column) for column in zip(*every, strict=True)))
    assert candidate_sampling.shape_of(featurizer, [(shops.whole(), anything)], seed=1).proposed < 0.3


def test_drawn_are_the_shapes_items_what_sources_propose_and_what_was_wanted() -> None:
    featurizer, histories = shops.featurizer(), shops.whole()
    known = proposals(featurizer)
    window = histories.between(CUTOFF, END)
    wanted = {(int(user), int(item)) for user, item in zip(window.user_row[window.wanted], window.item[window.wanted], strict=True)}
    none_near = candidate_sampling.Shape(4, 0.0, np.array([NOTHING, CAKE], np.int32), np.array([0.5, 1.0]))
    plain = pairs(candidate_sampling.sample_candidates(none_near, featurizer, histories, wanted=None, seed=1))
    assert {item for _, item in plain} <= {NOTHING, CAKE}
    assert pairs(candidate_sampling.sample_candidates(none_near, featurizer, histories, wanted=window, seed=1)) == plain | wanted
    all_near = candidate_sampling.Shape(2, 1.0, ITEMS, EVENLY)
    near = pairs(candidate_sampling.sample_candidates(all_near, featurizer, histories, wanted=None, seed=1))
    assert near <= known
    for user in range(len(histories)):
        mine = [pair for pair in known if pair[0] == user]
        assert len([pair for pair in near if pair[0] == user]) == min(2, len(mine))


def test_the_draw_follows_the_counts_and_goes_by_user_and_seed_alone() -> None:
    featurizer = shops.featurizer()
    many = shops.group([], pa.table({"user_id": np.arange(USERS), "age": pa.nulls(USERS, pa.string())}))
    shape = candidate_sampling.Shape(1, 0.0, ITEMS, EVENLY)
    whole = candidate_sampling.sample_candidates(shape, featurizer, many, wanted=None, seed=1)
    assert whole.user_row.tolist() == list(range(USERS))
    shares = np.bincount(whole.item, minlength=7)[ITEMS] / USERS
    assert shares.tolist() == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    part = candidate_sampling.sample_candidates(shape, featurizer, many.select(10, 300), wanted=None, seed=1)
    assert part.item.tolist() == whole.item[10:300].tolist()
    assert candidate_sampling.sample_candidates(shape, featurizer, many, wanted=None, seed=2).item.tolist() != whole.item.tolist()
