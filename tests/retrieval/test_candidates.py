import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.retrieval import candidates, sources
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Source
from tests import shops
from tests.shops import ANN, BOB, CID, EVE, P_BREAD, P_CAKE, P_CHEESE, P_MILK, P_ROLL, P_SPADE

INF = float("inf")


NO_REPEATS = shops.settings(rank=config.Rank(allow_repeats=False))


@pytest.fixture(scope="module")
def users() -> RuledUsers:
    return shops.batch()


@pytest.fixture(scope="module")
def without_repeats() -> RuledUsers:
    return shops.batch(NO_REPEATS)


def propose(users: RuledUsers, *chosen: tuple[Source, int], per_user: int = 99) -> Candidates:
    return candidates.propose(users, chosen, per_user=per_user)


# ---- propose


A = shops.Scores("a", *[[9.0, 8, 7, 6, 5, 4]] * 5)
B = shops.Scores("b", [0, 1, 2, 3, 9, 5], [3, 3, 3, 3, 9, 3], *[[-INF] * 6] * 3)


def test_sources_are_merged_with_each_ones_rank_and_score(users: RuledUsers) -> None:
    found = propose(users, (A, 2), (B, 3))
    assert found.names == ("a", "b")
    assert list(zip(found.user_row.tolist(), found.item.tolist(), found.rank.tolist(), found.score.tolist(), strict=True))[:8] == [
        (ANN, P_MILK, [1, 0], [9, 0]),
        (ANN, P_CHEESE, [2, 0], [8, 1]),
        (ANN, P_BREAD, [0, 3], [7, 2]),
        (ANN, P_ROLL, [0, 2], [6, 3]),
        (ANN, P_SPADE, [0, 1], [4, 5]),  # cake is not available
        (BOB, P_MILK, [1, 1], [9, 3]),
        (BOB, P_CHEESE, [2, 2], [8, 3]),
        (BOB, P_BREAD, [0, 3], [7, 3]),
    ]


def test_a_source_without_a_score_for_an_item_has_nan_there(users: RuledUsers) -> None:
    found = propose(users, (A, 2), (B, 3))
    assert shops.items_of(found, CID) == [P_MILK, P_CHEESE]
    assert np.isnan(found.score[found.user_row == CID, 1]).all()
    assert not np.isinf(found.score).any()


def test_one_row_of_scores_is_proposed_to_every_user(users: RuledUsers) -> None:
    one = shops.Scores("one", [1, 6, 5, 4, 9, 2])
    found = propose(users, (one, 2), (B, 1))
    for user in range(5):
        assert shops.items_of(found, user, "one") == [P_CHEESE, P_BREAD]
    assert found.score[:, 0].tolist() == [[1, 6, 5, 4, 9, 2][item] for item in found.item]


def test_the_cap_keeps_those_ranked_best_by_any_source(users: RuledUsers) -> None:
    # Ann's best ranks: milk 1 (a), spade 1 (b), cheese 2 (a), roll 2 (b), bread 3 (a and b); ties by item.
    for per_user, expected in ((1, [P_MILK]), (2, [P_MILK, P_SPADE]), (3, [P_MILK, P_CHEESE, P_SPADE]), (4, [0, 1, 3, 5])):
        found = propose(users, (A, 3), (B, 3), per_user=per_user)
        assert shops.items_of(found, ANN) == expected
        assert np.bincount(found.user_row).max() <= per_user


def test_a_source_keeps_its_scores_when_items_are_barred(users: RuledUsers) -> None:
    table = shops.Scores("a", [1, 2, 3, 4, 5, 6])
    propose(users, (table, 2))
    assert table.rows.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_the_cap_leaves_ranks_as_they_were(users: RuledUsers) -> None:
    found = propose(users, (A, 3), (B, 3), per_user=2)
    assert found.rank[found.user_row == ANN].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("settings", [shops.settings(), NO_REPEATS], ids=["repeats", "no repeats"])
def test_an_item_that_is_not_available_is_never_proposed(settings: config.Settings) -> None:
    found = propose(shops.batch(settings), *sources.sources(shops.settings()))
    assert P_CAKE not in found.item
    alone = shops.batch(settings, items=shops.catalog(available=shops.pa.array([False] * 6 + [True])))
    assert set(propose(alone, *sources.sources(shops.settings())).item.tolist()) == {P_SPADE}


def test_without_repeats_nothing_that_the_user_bought_is_proposed(users: RuledUsers, without_repeats: RuledUsers) -> None:
    chosen = sources.sources(shops.settings())
    bought = users.matrix.toarray() > 0
    found = propose(without_repeats, *chosen)
    assert not bought[found.user_row, found.item].any()
    assert bought[propose(users, *chosen).user_row, propose(users, *chosen).item].any()
    assert shops.items_of(found, BOB, "popular") == [P_BREAD, P_CHEESE, P_SPADE]


SCORES = st.lists(st.lists(st.sampled_from([-INF, 0.0, 1.0, 2.0, 3.0]), min_size=6, max_size=6), min_size=5, max_size=5)


@given(
    one=SCORES,
    other=SCORES,
    limit=st.integers(1, 6),
    more=st.integers(1, 6),
    per_user=st.integers(1, 7),
    repeats=st.booleans(),
)
def test_ranks_start_at_1_without_gaps_and_none_is_better_left_out(
    users: RuledUsers,
    without_repeats: RuledUsers,
    one: list[list[float]],
    other: list[list[float]],
    limit: int,
    more: int,
    per_user: int,
    repeats: bool,
) -> None:
    tables = (shops.Scores("one", *one), shops.Scores("other", *other))
    batch = users if repeats else without_repeats
    found = propose(batch, (tables[0], limit), (tables[1], more))
    capped = propose(batch, (tables[0], limit), (tables[1], more), per_user=per_user)
    bought = users.matrix.toarray() > 0
    assert found.user_row.tolist() == sorted(found.user_row.tolist())
    for user in range(5):
        for number, (source, most) in enumerate(((tables[0], limit), (tables[1], more))):
            allowed = [
                item for item in range(6) if item != P_CAKE and source.rows[user, item] > -INF and (repeats or not bought[user, item])
            ]
            expected = sorted(allowed, key=lambda item: (-source.rows[user, item], item))[:most]
            assert shops.items_of(found, user, source.name) == expected
            ranks = found.rank[found.user_row == user, number]
            assert sorted(ranks[ranks > 0].tolist()) == list(range(1, len(expected) + 1))
        mine = found.user_row == user
        best = {int(item): min(r for r in ranks if r) for item, ranks in zip(found.item[mine], found.rank[mine].tolist(), strict=True)}
        assert shops.items_of(capped, user) == sorted(sorted(best, key=lambda item: (best[item], item))[:per_user])


# ---- batches


def test_a_user_alone_has_the_candidates_that_it_has_in_a_batch(users: RuledUsers) -> None:
    featurizer = shops.featurizer()
    chosen = sources.sources(shops.settings())
    together = propose(users, *chosen, per_user=4)
    for user in range(5):
        alone = propose(featurizer.users(shops.whole().select(user, user + 1)), *chosen, per_user=4)
        mine = together.keep(together.user_row == user)
        assert (alone.item.tolist(), alone.rank.tolist()) == (mine.item.tolist(), mine.rank.tolist())
        assert alone.score.tobytes() == mine.score.tobytes()


def test_a_user_without_purchases_gets_what_is_popular_and_nothing_else(users: RuledUsers) -> None:
    found = propose(users, *sources.sources(shops.settings()))
    eve = found.keep(found.user_row == EVE)
    assert (eve.rank > 0).sum(axis=0).tolist() == [0, 0, 0, 0, 0, 5]  # nobody is of her age: no group
    assert np.isnan(eve.score[:, :4]).all()


@given(st.integers(0, 2000))
def test_batches_cover_every_user_once_within_the_bound(users: int) -> None:
    ranges = candidates.user_batches(users)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(users))
    assert all(stop - start <= candidates.BATCH for start, stop in ranges)
    assert ranges
