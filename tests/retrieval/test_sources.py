import numpy as np
import pytest

from recsys import config
from recsys.retrieval import candidates, collaborative, sources
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Category, Factors, Neighbours, Own, Popular, Source
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, P_BREAD, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event

INF = float("inf")


@pytest.fixture(scope="module")
def users() -> RuledUsers:
    return shops.batch()


def propose(users: RuledUsers, *chosen: tuple[Source, int], per_user: int = 99) -> Candidates:
    return candidates.propose(users, chosen, per_user=per_user)


def test_own_scores_what_the_user_bought_often_and_lately_first(users: RuledUsers) -> None:
    scores = Own().scores(users)
    assert np.isfinite(scores).tolist() == (users.matrix.toarray() > 0).tolist()
    assert scores[BOB, P_ROLL] == pytest.approx(0.5 ** (2 / 60) + 0.5 ** (4 / 60))
    assert shops.items_of(propose(users, (Own(), 9)), ANN, "own") == [P_MILK, P_BREAD, P_CHEESE]


def test_popular_is_one_row_for_all_by_buyers_with_the_last_28_days_first(users: RuledUsers) -> None:
    scores = Popular().scores(users)
    assert scores.shape == (1, 6)
    found = propose(users, (Popular(), 9))
    # Roll was bought twice, but by one user, as bread was; of equals the lower code goes first, so also of cheese and spade, which
    # nobody bought in 28 days; no cake.
    for user in range(5):
        assert shops.items_of(found, user, "popular") == [P_MILK, P_BREAD, P_ROLL, P_CHEESE, P_SPADE]


def test_neighbours_score_the_sum_of_the_weights_of_what_the_user_bought(users: RuledUsers) -> None:
    weights = users.signals.neighbours.toarray()
    scores = Neighbours().scores(users)
    expected = weights[P_MILK] + weights[P_CHEESE] + weights[P_BREAD]  # rows: bought; milk counts once, not thrice
    assert np.abs(expected - (weights[:, P_MILK] + weights[:, P_CHEESE] + weights[:, P_BREAD])).max() > 0.1
    np.testing.assert_allclose(np.where(np.isfinite(scores[ANN]), scores[ANN], 0), expected, atol=1e-6)
    assert (scores[EVE] == -INF).all()


def test_factors_score_by_a_vector_folded_in_from_the_history(users: RuledUsers) -> None:
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
    whole = collaborative.exact_product(vectors, factors)
    np.testing.assert_allclose(whole, vectors.astype(float) @ factors.T.astype(float), rtol=1e-5, atol=1e-3)
    order = rng.permutation(70)
    np.testing.assert_array_equal(collaborative.exact_product(vectors[order], factors), whole[order])
    for rows in (1, 2, 7, 16, 17, 64):
        np.testing.assert_array_equal(collaborative.exact_product(vectors[3 : 3 + rows], factors), whole[3 : 3 + rows])


def test_category_scores_taste_for_the_category_times_the_items_share_of_it(users: RuledUsers) -> None:
    scores = Category().scores(users)
    # Ann: 4 of 5 purchases are dairy, 1 is bakery. Within the last 28 days milk is all of dairy, bakery is bread 1, roll 2, cake 1.
    expected = [4 / 5, -INF, 1 / 5 * 1 / 4, 1 / 5 * 2 / 4, 1 / 5 * 1 / 4, -INF]
    np.testing.assert_allclose(scores[ANN], expected, rtol=1e-6)
    np.testing.assert_allclose(scores[BOB], [1 / 3, -INF, 2 / 3 / 4, 2 / 3 / 2, 2 / 3 / 4, -INF], rtol=1e-6)
    assert (scores[[DEE, EVE]] == -INF).all()  # garden is not in the vocabulary; eve bought nothing


def test_items_of_no_known_category_are_not_popular_in_one() -> None:
    events = shops.group([*shops.HISTORY, Event(DEE, shops.SPADE, 90.5)])  # garden is bought these days, and not in the vocabulary
    assert (Category().scores(shops.featurizer(events=events).users(events))[DEE] == -INF).all()


def names(settings: config.Settings) -> list[tuple[str, int]]:
    return [(source.name, limit) for source, limit in sources.sources(settings)]


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
