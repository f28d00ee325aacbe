import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from recsys import candidates, config
from recsys.candidates import GROUP, Candidates, Category, Factors, Neighbours, Own, Popular, Source, Users
from recsys.features import Describer
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, Event

INF = float("inf")
P_MILK, P_CHEESE, P_BREAD, P_ROLL, P_CAKE, P_SPADE = range(6)  # active positions


class Table(Source):
    """A source whose scores are given."""

    def __init__(self, name: str, *rows: list[float]) -> None:
        self.name = name
        self.rows = np.array(rows, np.float32)

    @override
    def scores(self, users: Users) -> np.ndarray:
        return self.rows[: len(users)]


NO_REPEATS = shops.settings(rank=config.Rank(allow_repeats=False))


@pytest.fixture(scope="module")
def users() -> Users:
    return shops.batch()


@pytest.fixture(scope="module")
def without_repeats() -> Users:
    return shops.batch(NO_REPEATS)


def propose(users: Users, *chosen: tuple[Source, int], per_user: int = 99) -> Candidates:
    return candidates.propose(users, chosen, per_user=per_user)


# ---- best


def slow(scores: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """Row, column and rank, by sorting each row."""
    found: list[tuple[int, int, int]] = []
    for row, values in enumerate(scores.tolist()):
        finite = sorted((-value, column) for column, value in enumerate(values) if value > -INF)
        found += [(row, column, rank) for rank, (_, column) in enumerate(finite[:limit], 1)]
    return found


def fast(scores: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in candidates.best(scores, limit)), strict=True))


@given(st.data())
def test_best_is_what_sorting_every_row_gives(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    value = st.sampled_from([-INF, -1.5, -0.0, 0.0, 0.5, 2.0])
    scores = np.array(
        data.draw(st.lists(st.lists(value, min_size=columns, max_size=columns), min_size=rows, max_size=rows)), np.float32
    )
    limit = data.draw(st.integers(1, 7))
    assert fast(scores, limit) == slow(scores, limit)


@given(st.data())
def test_best_of_wide_rows_is_what_sorting_every_row_gives(data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 5))
    columns = GROUP * (limit + 1) + data.draw(st.integers(0, 3 * GROUP))  # more groups than the limit: the bound is used
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = data.draw(st.sampled_from([3, 50, 10_000]))  # many ties, some, few
    scores = random.integers(-values, values, (3, columns)).astype(np.float32) / 7
    scores[random.random(scores.shape) < data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))] = -INF
    assert columns // GROUP > limit
    assert fast(scores, limit) == slow(scores, limit)


def test_best_finds_what_lies_beyond_the_last_whole_group() -> None:
    scores = np.zeros((1, 3 * GROUP + 1), np.float32)
    scores[0, -1] = 1
    assert fast(scores, 2) == [(0, 3 * GROUP, 1), (0, 0, 2)]


# ---- the users' purchases


def test_purchases_are_counted_by_user_and_item(users: Users) -> None:
    own = users.own
    user, item = np.divmod(users.own_key, 6)
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == [
        (ANN, P_MILK),
        (ANN, P_CHEESE),
        (ANN, P_BREAD),
        (BOB, P_MILK),
        (BOB, P_ROLL),
        (CID, P_MILK),
        (CID, P_BREAD),
        (CID, P_CAKE),
        (DEE, P_SPADE),
    ]
    assert own.count[:-1].tolist() == [3, 1, 1, 1, 2, 1, 1, 1, 1]
    assert own.recent[:-1].tolist() == [2, 0, 1, 1, 2, 1, 0, 1, 0]
    assert own.last[:-1].tolist() == [1, 94, 1, 4, 2, 0, 89, 0, 49]
    assert own.first[:-1].tolist() == [39, 94, 1, 4, 4, 0, 89, 0, 49]
    assert own.decayed[0] == pytest.approx(0.5 ** (1 / 60) + 0.5 ** (19 / 60) + 0.5 ** (39 / 60))
    assert users.matrix.toarray()[BOB].tolist() == [1, 0, 0, 2, 0, 0]
    assert users.matrix.toarray()[EVE].tolist() == [0] * 6


def test_an_absent_key_is_not_found_even_beyond_the_last() -> None:
    grouped = candidates.group_days(np.array([7, 3, 7]), np.array([10, 40, 2]))
    place, known = grouped.find(np.array([3, 5, 7, 9, 0]))
    assert known.tolist() == [True, False, True, False, False]
    assert grouped.count[place[known]].tolist() == [1, 2]
    assert place[~known].tolist() == [0, 0, 0]
    assert candidates.group_days(np.array([1, 1]), np.array([27, 28])).recent[0] == 1  # 28 days are 0 to 27
    nothing = candidates.group_days(np.empty(0, np.int64), np.empty(0, np.int64))
    assert nothing.find(np.array([0, 4]))[1].tolist() == [False, False]


# ---- sources


def test_own_scores_what_the_user_bought_often_and_lately_first(users: Users) -> None:
    scores = Own().scores(users)
    assert np.isfinite(scores).tolist() == (users.matrix.toarray() > 0).tolist()
    assert scores[BOB, P_ROLL] == pytest.approx(0.5 ** (2 / 60) + 0.5 ** (4 / 60))
    assert shops.items_of(propose(users, (Own(), 9)), ANN, "own") == [P_MILK, P_BREAD, P_CHEESE]


def test_popular_is_one_row_for_all_by_buyers_with_the_last_28_days_first(users: Users) -> None:
    scores = Popular().scores(users)
    assert scores.shape == (1, 6)
    found = propose(users, (Popular(), 9))
    # Roll was bought twice, but by one user, as bread was; of equals the lower code goes first, so also of cheese and spade, which
    # nobody bought in 28 days; no cake.
    for user in range(5):
        assert shops.items_of(found, user, "popular") == [P_MILK, P_BREAD, P_ROLL, P_CHEESE, P_SPADE]


def test_neighbours_score_the_sum_of_the_weights_of_what_the_user_bought(users: Users) -> None:
    weights = users.signals.neighbours.toarray()
    scores = Neighbours().scores(users)
    expected = weights[P_MILK] + weights[P_CHEESE] + weights[P_BREAD]  # rows: bought; milk counts once, not thrice
    assert np.abs(expected - (weights[:, P_MILK] + weights[:, P_CHEESE] + weights[:, P_BREAD])).max() > 0.1
    np.testing.assert_allclose(np.where(np.isfinite(scores[ANN]), scores[ANN], 0), expected, atol=1e-6)
    assert (scores[EVE] == -INF).all()


def test_factors_score_by_a_vector_folded_in_from_the_history(users: Users) -> None:
    scores = Factors(shops.settings().signals).scores(users)
    factors = users.signals.factors.astype(float)
    alpha, l2 = 2.0, shops.settings().signals.als_l2
    for user in (ANN, BOB, CID, DEE):
        confidence = np.zeros(6)
        days = users.matrix.toarray()[user]
        confidence[days > 0] = alpha * (1 + np.log(days[days > 0]))
        # Hu, Koren, Volinsky 2008, eq. 4, with confidences c for bought items and 1 else
        weight = np.where(days > 0, confidence, 1.0)
        left = factors.T @ (weight[:, None] * factors) + l2 * np.eye(2)
        vector = np.linalg.solve(left, factors.T @ confidence)
        np.testing.assert_allclose(scores[user], factors @ vector, rtol=1e-3, atol=1e-4)
    assert (scores[EVE] == -INF).all()


def test_a_user_s_factor_scores_have_the_same_bits_whoever_else_is_in_the_batch() -> None:
    rng = np.random.default_rng(3)
    vectors, factors = (rng.normal(size=(rows, 33)).astype(np.float32) * 10.0 for rows in (70, 401))
    vectors[5] = 0.0  # a user without history
    whole = candidates._product(vectors, factors)
    np.testing.assert_allclose(whole, vectors.astype(float) @ factors.T.astype(float), rtol=1e-5, atol=1e-3)
    order = rng.permutation(70)
    np.testing.assert_array_equal(candidates._product(vectors[order], factors), whole[order])
    for rows in (1, 2, 7, 16, 17, 64):
        np.testing.assert_array_equal(candidates._product(vectors[3 : 3 + rows], factors), whole[3 : 3 + rows])


def test_category_scores_taste_for_the_category_times_the_items_share_of_it(users: Users) -> None:
    scores = Category().scores(users)
    # Ann: 4 of 5 purchases are dairy, 1 is bakery. Within the last 28 days milk is all of dairy, bakery is bread 1, roll 2, cake 1.
    expected = [4 / 5, -INF, 1 / 5 * 1 / 4, 1 / 5 * 2 / 4, 1 / 5 * 1 / 4, -INF]
    np.testing.assert_allclose(scores[ANN], expected, rtol=1e-6)
    np.testing.assert_allclose(scores[BOB], [1 / 3, -INF, 2 / 3 / 4, 2 / 3 / 2, 2 / 3 / 4, -INF], rtol=1e-6)
    assert (scores[[DEE, EVE]] == -INF).all()  # garden is not in the vocabulary; eve bought nothing


def test_items_of_no_known_category_are_not_popular_in_one() -> None:
    events = shops.group([*shops.HISTORY, Event(DEE, shops.SPADE, 90.5)])  # garden is bought these days, and not in the vocabulary
    assert (Category().scores(shops.describer(events=events).users(events))[DEE] == -INF).all()


def names(settings: config.Settings) -> list[tuple[str, int]]:
    return [(source.name, limit) for source, limit in candidates.sources(settings)]


def test_the_settings_say_which_sources_there_are_and_how_much_they_propose() -> None:
    assert names(shops.settings()) == [
        ("own", 200),
        ("neighbours", 150),
        ("factors", 150),
        ("category", 50),
        ("group", 100),
        ("popular", 100),
    ]
    assert names(shops.settings(candidates=config.Candidates(own=0, neighbours=0, popular=7))) == [
        ("factors", 150),
        ("category", 50),
        ("group", 7),
        ("popular", 7),
    ]
    assert "own" not in dict(names(shops.settings(rank=config.Rank(allow_repeats=False))))
    without = names(shops.settings(features=config.Features(user_categorical=("age",))))
    assert not {"category", "content"} & dict(without).keys()
    on = config.Candidates(content=20)
    assert ("content", 20) in names(shops.settings(candidates=on))
    assert "content" not in dict(names(shops.settings(candidates=on, features=config.Features(user_categorical=("age",)))))
    assert "group" not in dict(names(shops.settings(features=config.Features(item_categorical=("department",)))))


# ---- propose


A = Table("a", *[[9.0, 8, 7, 6, 5, 4]] * 5)
B = Table("b", [0, 1, 2, 3, 9, 5], [3, 3, 3, 3, 9, 3], *[[-INF] * 6] * 3)


def test_sources_are_merged_with_each_ones_rank_and_score(users: Users) -> None:
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


def test_a_source_without_a_score_for_an_item_has_nan_there(users: Users) -> None:
    found = propose(users, (A, 2), (B, 3))
    assert shops.items_of(found, CID) == [P_MILK, P_CHEESE]
    assert np.isnan(found.score[found.user_row == CID, 1]).all()
    assert not np.isinf(found.score).any()


def test_one_row_of_scores_is_proposed_to_every_user(users: Users) -> None:
    one = Table("one", [1, 6, 5, 4, 9, 2])
    found = propose(users, (one, 2), (B, 1))
    for user in range(5):
        assert shops.items_of(found, user, "one") == [P_CHEESE, P_BREAD]
    assert found.score[:, 0].tolist() == [[1, 6, 5, 4, 9, 2][item] for item in found.item]


def test_the_cap_keeps_those_ranked_best_by_any_source(users: Users) -> None:
    # Ann's best ranks: milk 1 (a), spade 1 (b), cheese 2 (a), roll 2 (b), bread 3 (a and b); ties by item.
    for per_user, expected in ((1, [P_MILK]), (2, [P_MILK, P_SPADE]), (3, [P_MILK, P_CHEESE, P_SPADE]), (4, [0, 1, 3, 5])):
        found = propose(users, (A, 3), (B, 3), per_user=per_user)
        assert shops.items_of(found, ANN) == expected
        assert np.bincount(found.user_row).max() <= per_user


def test_a_source_keeps_its_scores_when_items_are_barred(users: Users) -> None:
    table = Table("a", [1, 2, 3, 4, 5, 6])
    propose(users, (table, 2))
    assert table.rows.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_the_cap_leaves_ranks_as_they_were(users: Users) -> None:
    found = propose(users, (A, 3), (B, 3), per_user=2)
    assert found.rank[found.user_row == ANN].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("settings", [shops.settings(), NO_REPEATS], ids=["repeats", "no repeats"])
def test_an_item_that_is_not_available_is_never_proposed(settings: config.Settings) -> None:
    found = propose(shops.batch(settings), *candidates.sources(shops.settings()))
    assert P_CAKE not in found.item
    alone = shops.batch(settings, items=shops.catalog(available=shops.pa.array([False] * 6 + [True])))
    assert set(propose(alone, *candidates.sources(shops.settings())).item.tolist()) == {P_SPADE}


def test_without_repeats_nothing_that_the_user_bought_is_proposed(users: Users, without_repeats: Users) -> None:
    chosen = candidates.sources(shops.settings())
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
    users: Users,
    without_repeats: Users,
    one: list[list[float]],
    other: list[list[float]],
    limit: int,
    more: int,
    per_user: int,
    repeats: bool,
) -> None:
    tables = (Table("one", *one), Table("other", *other))
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


def test_a_user_alone_has_the_candidates_that_it_has_in_a_batch(users: Users) -> None:
    describer = shops.describer()
    chosen = candidates.sources(shops.settings())
    together = propose(users, *chosen, per_user=4)
    for user in range(5):
        alone = propose(describer.users(shops.whole().select(user, user + 1)), *chosen, per_user=4)
        mine = together.keep(together.user_row == user)
        assert (alone.item.tolist(), alone.rank.tolist()) == (mine.item.tolist(), mine.rank.tolist())
        assert alone.score.tobytes() == mine.score.tobytes()


def test_a_user_without_purchases_gets_what_is_popular_and_nothing_else(users: Users) -> None:
    found = propose(users, *candidates.sources(shops.settings()))
    eve = found.keep(found.user_row == EVE)
    assert (eve.rank > 0).sum(axis=0).tolist() == [0, 0, 0, 0, 0, 5]  # nobody is of her age: no group
    assert np.isnan(eve.score[:, :4]).all()


@given(st.integers(0, 2000), st.integers(0, 10_000_000))
def test_batches_cover_every_user_once_within_the_bound(users: int, items: int) -> None:
    ranges = candidates.batches(users, items)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(users))
    assert all(stop - start == 1 or (stop - start) * items <= candidates.MATRIX_CELLS for start, stop in ranges)
    assert all(stop - start <= 256 for start, stop in ranges)


def test_what_is_after_the_cutoff_or_before_the_start_is_no_purchase() -> None:
    describer: Describer = shops.describer()
    batch = describer.users(shops.group([Event(ANN, 0, 99.5), Event(ANN, 2, 100.0), Event(ANN, 3, -0.001), Event(BOB, 2, 250.5)]))
    assert batch.matrix.toarray().sum(axis=1).tolist() == [1, 0, 0, 0, 0]
