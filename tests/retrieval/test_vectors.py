import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from recsys import config
from recsys.data.catalog import Catalog
from recsys.features.candidate_features import Featurizer
from recsys.ranking.reasons import REASONS
from recsys.retrieval import candidates, sources
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.users import LATEST_HALF_LIFE_DAYS, UserBatch
from recsys.retrieval.vectors import Vectors, cosines
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, P_BREAD, P_CAKE, P_CHEESE, P_MILK, P_ROLL, P_SPADE

NOTHING = 5  # code of the item that nobody bought


def unit(rows: list[list[float]]) -> np.ndarray:
    found = np.array(rows, np.float32)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-9))


# milk, cheese, bread, roll, cake, nothing, spade
TEXT = unit([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0.1, 0.8, 0.1], [0, 0.9, 0.3], [0.2, 0.2, 0.9], [0, 0, 0]])
IMAGE = unit([[1, 1], [1, 0], [0, 1], [-1, 1], [0, 0], [1, 2], [2, 1]])
BOTH = config.Features(item_categorical=("department",), item_vectors=("text", "image"))
TEXT_ALONE = config.Features(item_categorical=("department",), item_vectors=("text",))


def catalog(**vectors: np.ndarray) -> Catalog:
    return Catalog(shops.catalog().table, vectors)


@pytest.fixture(scope="module")
def featurizer() -> Featurizer:
    return shops.featurizer(shops.settings(features=BOTH), catalog(text=TEXT, image=IMAGE))


@pytest.fixture(scope="module")
def users(featurizer: Featurizer) -> RuledUsers:
    return featurizer.users(shops.whole())


def mean(users: UserBatch, vectors: np.ndarray, weights: dict[int, float]) -> np.ndarray:
    rows = vectors[users.signals.items[list(weights)]].astype(float)
    total = np.array(list(weights.values())) @ rows
    return np.asarray(total / np.linalg.norm(total))


def test_a_users_vector_is_the_mean_of_those_of_the_items_that_they_took(users: RuledUsers) -> None:
    for name, vectors in (("text", TEXT), ("image", IMAGE)):
        expected = mean(users, vectors, {P_MILK: 1, P_CHEESE: 1, P_BREAD: 1})  # milk once, however often
        np.testing.assert_allclose(users.mean_vectors[name][ANN], expected, rtol=1e-6)
    assert not users.mean_vectors["text"][DEE].any()  # a spade alone, which has no vector
    assert not users.mean_vectors["text"][EVE].any()  # nothing


def test_of_the_latest_what_lies_a_half_life_before_the_users_last_day_counts_half(users: RuledUsers) -> None:
    # ann: cheese on day 5.5, milk and bread last on day 98.5; days are whole ones before the cutoff
    old = 0.5 ** (93 / LATEST_HALF_LIFE_DAYS)
    np.testing.assert_allclose(users.latest[2][users.latest[0][ANN] :][:3], [1, old, 1], rtol=1e-5)
    np.testing.assert_allclose(users.latest_vectors["text"][ANN], mean(users, TEXT, {P_MILK: 1, P_CHEESE: old, P_BREAD: 1}), rtol=1e-5)
    (only,) = users.latest[2][users.latest[0][DEE] : users.latest[0][DEE + 1]]
    assert only == 1  # on day 50, and the last that dee did


def test_the_source_scores_the_mean_of_the_columns_cosines(users: RuledUsers) -> None:
    scores = shops.scores_of(Vectors(), users)
    cake = users.mean_vectors["text"][ANN].astype(float) @ TEXT[4]  # has no image: nothing is added
    roll = users.mean_vectors["text"][ANN].astype(float) @ TEXT[3] + users.mean_vectors["image"][ANN].astype(float) @ IMAGE[3]
    np.testing.assert_allclose(scores[ANN, [P_CAKE, P_ROLL]], [cake / 2, roll / 2], rtol=1e-5)
    assert (scores[EVE] == -np.inf).all()
    spade = users.mean_vectors["image"][CID].astype(float) @ IMAGE[6]
    assert scores[CID, P_SPADE] == pytest.approx(spade / 2, rel=1e-5)  # it has an image alone


def test_the_best_are_those_of_the_highest_scores_that_the_user_did_not_buy(users: RuledUsers) -> None:
    scores = shops.scores_of(Vectors(), users)
    found = candidates.propose(users, [(Vectors(), 3)], per_user=9)
    for user in range(5):
        allowed = np.where(shops.barred_of(users)[user] > 0, -np.inf, scores[user])
        allowed[users.bought[1][users.bought[0][user] : users.bought[0][user + 1]]] = -np.inf
        best = [int(item) for item in np.argsort(-allowed, kind="stable")[:3] if allowed[item] > -np.inf]
        assert shops.items_of(found, user, "vectors") == best
    assert shops.items_of(found, BOB, "vectors") == [P_BREAD, P_CHEESE, P_SPADE]  # not the cake, which is not available
    assert shops.items_of(found, EVE, "vectors") == []


def test_what_nobody_bought_is_found_by_its_vector_alone() -> None:
    settings = shops.settings(features=TEXT_ALONE, candidates=config.Candidates(vectors=9))
    events = shops.whole()
    signals = shops.fit(events, settings, unseen=np.array([NOTHING]), most_unseen=1)
    near = TEXT.copy()
    near[NOTHING] = TEXT[0]
    found = {}
    for label, vectors in (("near", near), ("far", TEXT)):
        featurizer = Featurizer(settings, catalog(text=vectors), signals, shops.VOCABULARIES, shops.TONIGHT)
        batch = featurizer.users(events)
        position = int(signals.position[NOTHING])
        proposed = candidates.propose(batch, [(Vectors(), 1)], per_user=9)
        found[label] = [user for user in (ANN, BOB, CID) if position in shops.items_of(proposed, user)]
    assert found == {"near": [ANN], "far": []}


def test_without_columns_of_vectors_or_with_a_limit_of_0_there_is_no_such_source() -> None:
    def names(**sections: config.Section) -> list[str]:
        return [source.name for source, _ in sources.sources(shops.settings(**sections))]

    assert "vectors" not in names()
    assert "vectors" in names(features=TEXT_ALONE)
    assert "vectors" not in names(features=TEXT_ALONE, candidates=config.Candidates(vectors=0))


def test_features_are_the_cosines_of_each_column_to_the_mean_and_to_the_latest(featurizer: Featurizer) -> None:
    ((_, users, found, inputs),) = featurizer(shops.whole())
    row = int(np.flatnonzero((found.user_row == ANN) & (found.item == P_ROLL))[0])
    for name, vectors in (("text", TEXT), ("image", IMAGE)):
        for label, asked in (("likeness", users.mean_vectors), ("latest", users.latest_vectors)):
            value = inputs.dense[row, inputs.names.index(f"{name}_{label}")]
            assert value == pytest.approx(float(asked[name][ANN].astype(float) @ vectors[3]), rel=1e-5)
    spade = np.flatnonzero(found.item == P_SPADE)
    assert len(spade)
    assert np.isnan(inputs.dense[spade, inputs.names.index("text_likeness")]).all()  # the item has none
    eve = np.flatnonzero(found.user_row == EVE)
    assert len(eve)
    assert np.isnan(inputs.dense[eve, inputs.names.index("image_latest")]).all()  # the user has none
    assert {"vectors_score", "vectors_z", "vectors_place", "vectors_proposed"} <= set(inputs.names)


def test_a_reason_names_the_most_alike_of_what_the_user_bought(users: RuledUsers) -> None:
    (reason,) = REASONS["vectors"](np.array([ANN]), np.array([P_CAKE]), users)
    assert (reason.kind, reason.text) == ("similar_to", "Similar to bread, which you bought.")
    (reason,) = REASONS["vectors"](np.array([BOB]), np.array([P_CHEESE]), users)
    assert reason.text == "Similar to milk, which you bought."


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 3, 64, 300]))
@profile(max_examples=30)
def test_cosines_are_the_same_bits_whoever_else_is_asked(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = unit(rng.normal(size=(9, size)).tolist()), unit(rng.normal(size=(40, size)).tolist())
    left[3] = right[5] = 0
    row, item = np.divmod(np.arange(9 * 40), 40)
    whole = cosines(left, right, np.stack([row, item])).reshape(9, 40)
    np.testing.assert_allclose(np.nan_to_num(whole), left.astype(float) @ right.T.astype(float), atol=1e-5)
    assert np.isnan(whole[3]).all()
    assert np.isnan(whole[:, 5]).all()
    assert np.isnan(whole).sum() == 9 + 40 - 1
    some = rng.permutation(9)[:4]
    again = cosines(left[some], right[::-1], np.stack([np.repeat(np.arange(4), 40), np.tile(np.arange(40), 4)])).reshape(4, 40)
    np.testing.assert_array_equal(again[:, ::-1], whole[some])


@given(seed=st.integers(0, 2**32 - 1))
@profile(max_examples=10)
def test_the_best_of_many_blocks_are_those_of_every_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, size=(7, 4)).astype(float)  # many ties
    settings = shops.settings(features=TEXT_ALONE)
    featurizer = shops.featurizer(settings, catalog(text=unit(vectors.tolist())))
    users = featurizer.users(shops.whole())
    scores = shops.scores_of(Vectors(), users)
    scores[np.repeat(np.arange(5), np.diff(users.bought[0])), users.bought[1]] = -np.inf
    scores[shops.barred_of(users) > 0] = -np.inf
    found = candidates.propose(users, [(Vectors(), 2)], per_user=9)
    for user in range(5):
        order = np.lexsort((np.arange(6), -scores[user]))[:2]
        assert shops.items_of(found, user) == sorted(int(item) for item in order if scores[user, item] > -np.inf)
