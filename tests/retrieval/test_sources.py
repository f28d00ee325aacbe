from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from recsys import config
from recsys.data.catalog import Catalog
from recsys.features.candidate_features import Featurizer
from recsys.retrieval import candidates, collaborative, score_kernels, signals, sources
from recsys.retrieval.best_kernels import sort
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Category, Factors, Neighbours, Own, Popular, Seen, Source
from recsys.schema import DAY_US
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, P_BREAD, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event

INF = float("inf")


@pytest.fixture(scope="module")
def users() -> RuledUsers:
    return shops.batch()


def propose(users: RuledUsers, *chosen: tuple[Source, int], per_user: int = 99) -> Candidates:
    return candidates.propose(users, chosen, per_user=per_user)


def test_own_scores_what_the_user_bought_often_and_lately_first(users: RuledUsers) -> None:
    scores = shops.scores_of(Own(), users)
    assert np.isfinite(scores).tolist() == (users.matrix.toarray() > 0).tolist()
    assert scores[BOB, P_ROLL] == pytest.approx(0.5 ** (2 / 60) + 0.5 ** (4 / 60))
    assert shops.items_of(propose(users, (Own(), 9)), ANN, "own") == [P_MILK, P_BREAD, P_CHEESE]


def test_seen_scores_what_the_user_looked_at_lately_first() -> None:
    scores = shops.scores_of(Seen(), shops.batch(shops.with_looks()))
    assert np.argwhere(np.isfinite(scores)).tolist() == [[BOB, P_CHEESE]]  # on day 96 of 100
    assert scores[BOB, P_CHEESE] == pytest.approx(0.5 ** (3 / 7))
    more = [
        (P_ROLL, 99.1),
        (P_ROLL, 99.9),
        (P_MILK, 92.5),
        (P_MILK, 85.5),
        (shops.NOTHING, 99.5),
    ]
    looks = [Event(BOB, item, day, wanted=False) for item, day in more]
    events = shops.group([*shops.BEFORE, *shops.HISTORY, *looks, *shops.AFTER])
    batch = shops.featurizer(shops.with_looks()).users(events)
    scores = shops.scores_of(Seen(), batch)
    assert scores[BOB, P_ROLL] == pytest.approx(1.0)  # two looks on one day are one
    assert scores[BOB, P_MILK] == pytest.approx(0.5 ** (7 / 7) + 0.5 ** (14 / 7))
    assert shops.items_of(propose(batch, (Seen(), 9)), BOB, "seen") == [P_ROLL, P_MILK, P_CHEESE]  # nobody bought what is left out
    assert shops.items_of(propose(batch, (Seen(), 1)), BOB, "seen") == [P_ROLL]
    assert shops.items_of(propose(batch, (Seen(), 9)), ANN, "seen") == []


def test_popular_is_one_row_for_all_by_buyers_with_the_last_28_days_first(users: RuledUsers) -> None:
    scores = shops.scores_of(Popular(), users)
    assert (scores == scores[0]).all()
    found = propose(users, (Popular(), 9))
    # Roll was bought twice, but by one user, as bread was; of equals the lower code goes first, so also of cheese and spade, which
    # nobody bought in 28 days; no cake.
    for user in range(5):
        assert shops.items_of(found, user, "popular") == [P_MILK, P_BREAD, P_ROLL, P_CHEESE, P_SPADE]


def test_neighbours_score_the_sum_of_the_weights_of_what_the_user_bought(users: RuledUsers) -> None:
    weights = users.signals.neighbours.toarray()
    scores = shops.scores_of(Neighbours(), users)
    expected = weights[P_MILK] + weights[P_CHEESE] + weights[P_BREAD]  # rows: bought; milk counts once, not thrice
    assert np.abs(expected - (weights[:, P_MILK] + weights[:, P_CHEESE] + weights[:, P_BREAD])).max() > 0.1
    np.testing.assert_allclose(np.where(np.isfinite(scores[ANN]), scores[ANN], 0), expected, atol=1e-6)
    assert (scores[EVE] == -INF).all()


def test_factors_score_by_a_vector_folded_in_from_the_history(users: RuledUsers) -> None:
    scores = shops.scores_of(Factors(), users)
    factors = users.signals.factors.astype(float)
    l2, alpha, _ = shops.ALS
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


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 2, 33, 64]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_factor_scores_are_the_same_bits_for_a_pair_and_for_a_block_and_whoever_else_is_there(
    seed: int, size: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    vectors, factors = ((rng.normal(size=(rows, size)) * scale).astype(np.float32) for rows in (40, 70))
    vectors[5] = 0.0  # a user without history
    left, unit, power = collaborative.on_grid(vectors, float(np.abs(factors).max()))
    whole = ((left @ collaborative.whole_numbers(factors, power).T) * unit[:, None]).astype(np.float32)
    exact = vectors.astype(float) @ factors.T.astype(float)
    np.testing.assert_allclose(whole, exact, rtol=1e-4, atol=1e-5 * scale**2 * size)
    row, item = np.divmod(rng.permutation(40 * 70), 70)
    pairs = score_kernels.products_of_pairs(left, unit, factors, power, np.stack([row, item]))
    np.testing.assert_array_equal(pairs, whole[row, item])
    some = rng.permutation(40)[:7]
    alone, its_unit, same = collaborative.on_grid(vectors[some], float(np.abs(factors).max()))
    assert same == power
    again = ((alone @ collaborative.whole_numbers(factors[::-1], power).T) * its_unit[:, None]).astype(np.float32)
    np.testing.assert_array_equal(again[:, ::-1], whole[some])


def test_category_scores_taste_for_the_category_times_the_items_share_of_it(users: RuledUsers) -> None:
    scores = shops.scores_of(Category(), users)
    # Ann: 4 of 5 purchases are dairy, 1 is bakery. Within the last 28 days milk is all of dairy, bakery is bread 1, roll 2, cake 1.
    expected = [4 / 5, -INF, 1 / 5 * 1 / 4, 1 / 5 * 2 / 4, 1 / 5 * 1 / 4, -INF]
    np.testing.assert_allclose(scores[ANN], expected, rtol=1e-6)
    np.testing.assert_allclose(scores[BOB], [1 / 3, -INF, 2 / 3 / 4, 2 / 3 / 2, 2 / 3 / 4, -INF], rtol=1e-6)
    assert (scores[[DEE, EVE]] == -INF).all()  # garden is not in the vocabulary; eve bought nothing


def test_items_of_no_known_category_are_not_popular_in_one() -> None:
    events = shops.group([*shops.HISTORY, Event(DEE, shops.SPADE, 90.5)])  # garden is bought these days, and not in the vocabulary
    assert (shops.scores_of(Category(), shops.featurizer(events=events).users(events))[DEE] == -INF).all()


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
    looks = shops.with_looks()
    assert names(looks)[:3] == [("own", 200), ("seen", 100), ("neighbours", 150)]
    assert "seen" not in dict(names(looks.model_copy(update={"candidates": config.Candidates(seen=0)})))
    assert "own" not in dict(names(shops.settings(rank=config.Rank(allow_repeats=False))))
    without = names(shops.settings(features=config.Features(user_categorical=("age",))))
    assert not {"category", "content"} & dict(without).keys()
    on = config.Candidates(content=20)
    assert ("content", 20) in names(shops.settings(candidates=on))
    assert "content" not in dict(names(shops.settings(candidates=on, features=config.Features(user_categorical=("age",)))))
    assert "group" not in dict(names(shops.settings(features=config.Features(item_categorical=("department",)))))


# ---- the best without a score for every item


class Planted:
    """A random shop of some hundred items with ties, rules and repeats."""

    def __init__(self, seed: int, items: int) -> None:
        rng = np.random.default_rng(seed)
        users = 12
        names = [f"i{item:04d}" for item in range(items)]
        kinds = [pa.array([None if value == 0 else f"v{value}" for value in rng.integers(0, 9, items).tolist()]) for _ in range(3)]
        table = {"item_id": names, "available": rng.random(items) < 0.8} | {f"c{number}": kind for number, kind in enumerate(kinds)}
        settings = shops.settings(
            features=config.Features(item_categorical=("c0", "c1", "c2"), user_categorical=("age",)),
            candidates=config.Candidates(content=20, cold_buyers=3),
            rank=config.Rank(allow_repeats=bool(rng.integers(2))),
        )
        popular = (rng.zipf(1.4, 20_000) - 1).tolist()
        popular = [item for item in popular if item < items]
        events = [
            Event(user, popular.pop(), float(rng.integers(0, 100)) + 0.5)
            for user in range(users - 1)
            for _ in range(int(rng.integers(0, 40)))
        ]
        people = pa.table({"user_id": [f"u{user:02d}" for user in range(users)], "age": rng.choice(["x", "y"], users).tolist()})
        histories = shops.group(events, people)
        catalog = Catalog(pa.table(table))
        chosen = np.ones(len(histories), bool)
        fitted = signals.fit(
            [(histories, chosen)], items=items, start=0, cutoff=100 * DAY_US, settings=settings.signals, als=shops.ALS, seed=0,
            groups=("age",), extra=np.flatnonzero(rng.random(items) < 0.5),
        )  # fmt: skip
        factors = rng.normal(size=(len(fitted.items), 3)) * rng.zipf(1.5, (len(fitted.items), 1)).clip(1, 50)
        factors = np.where(rng.random((len(factors), 1)) < 0.5, np.round(factors), factors)  # many ties
        fitted = replace(fitted, factors=factors.astype(np.float32))
        words = {f"c{number}": tuple(f"v{value}" for value in range(1, 8)) for number in range(3)} | {"age": ("x", "y")}
        self.featurizer = Featurizer(settings, catalog, fitted, words)
        self.users = self.featurizer.users(histories)


@profile(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), items=st.sampled_from([7, 60, 700]), limit=st.sampled_from([1, 5, 40, 1000]))
def test_the_best_of_every_source_are_what_scoring_every_pair_and_sorting_gives(seed: int, items: int, limit: int) -> None:
    shop = Planted(seed, items)
    forbidden = shops.barred_of(shop.users) > 0
    assert len(shop.featurizer.sources) >= 6
    for source, _ in shop.featurizer.sources:
        scores = shops.scores_of(source, shop.users)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "BLOCK", 16)  # so that a block of products is not the whole shop
            found = source.best(shop.users, shop.users.barred, limit)
        lost = sort(found)
        for user in range(len(shop.users)):
            order = [item for item in np.lexsort((np.arange(scores.shape[1]), -scores[user])) if np.isfinite(scores[user, item])]
            allowed = [item for item in order if not forbidden[user, item]][:limit]
            assert found.item[user, 0, : found.size[user, 0]].tolist() == allowed, source.name
            assert found.score[user, 0, : len(allowed)].tolist() == scores[user, allowed].tolist()
            gone = [item for item in order[:limit] if forbidden[user, item]]
            assert found.item[user, 1, : lost[user]].tolist() == gone, source.name


@given(keys=st.sets(st.integers(-50, 50), min_size=1), wanted=st.lists(st.integers(-60, 60)), ascending=st.booleans())
def test_keys_are_found_whatever_is_looked_for_before(keys: set[int], wanted: list[int], ascending: bool) -> None:
    among = sorted(keys)
    wanted = sorted(wanted) if ascending else wanted
    places, found = score_kernels.find(np.array(among, np.int64), np.array(wanted, np.int64))
    assert found.tolist() == [key in keys for key in wanted]
    assert places.tolist() == [among.index(key) if key in keys else 0 for key in wanted]
