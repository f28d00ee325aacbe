import inspect
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from recsys.ranking.reasons import REASONS, Reasons, reasons_of
from recsys.ranking.top_k import Ranked
from recsys.retrieval import candidates as candidates_module
from recsys.retrieval import sources
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Factors
from recsys.retrieval.supplied import SUPPLIED
from tests import shops
from tests.shops import ANN, BOB, BREAD, CHEESE, CID, EVE, MILK, P_BREAD, P_CHEESE, P_MILK, P_ROLL, P_SPADE, ROLL

NAMES = ("own", "neighbours", "factors", "category", "popular")


@pytest.fixture(scope="module")
def users() -> RuledUsers:
    return shops.batch()


def weighed(users: RuledUsers, weights: dict[tuple[int, int], float]) -> RuledUsers:
    """The users with neighbour weights that are given as {(bought, scored): weight}."""
    matrix = sp.csr_matrix((list(weights.values()), tuple(zip(*weights, strict=True))), shape=(6, 6), dtype=np.float32)
    offsets, items = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    signals = replace(users.signals, neighbour_offsets=offsets, neighbour_items=items, neighbour_weights=matrix.data)
    return replace(users, signals=signals)


def explained(users: RuledUsers, *rows: tuple[int, int, list[int]]) -> Reasons:
    """The reasons of rows of (user, active position, rank by each source), listed in that order."""
    rank = np.array([row[2] for row in rows], np.int32)
    user, item = (np.array([row[place] for row in rows], np.int64) for place in (0, 1))
    candidates = Candidates(NAMES, user, item, rank, np.zeros(rank.shape, np.float32))
    return reasons_of(Ranked(np.arange(len(rows)), np.ones(len(rows), np.int32)), candidates, users)


def one(users: RuledUsers, user: int, item: int, source: str) -> tuple[str, str, int]:
    """Kind, sentence and item of the reason of one row that one source proposed."""
    found = explained(users, (user, item, [int(name == source) for name in NAMES]))
    return found.kind[0], found.text[0], int(found.item[0])


def test_every_source_has_its_reasons_and_no_reason_is_left_over() -> None:
    classes = [value for value in vars(sources).values() if inspect.isclass(value) and hasattr(value, "scores")]
    names = {vars(source)["name"] for source in classes if "name" in vars(source)}
    assert names | {SUPPLIED} == set(REASONS)
    assert {source.name for source, _ in sources.sources(shops.settings())} <= set(REASONS)


def test_what_the_user_looked_at_is_a_reason(users: RuledUsers) -> None:
    candidates = Candidates(("seen",), np.array([BOB]), np.array([P_CHEESE]), np.array([[1]], np.int32), np.ones((1, 1), np.float32))
    found = reasons_of(Ranked(np.array([0]), np.ones(1, np.int32)), candidates, users)
    assert (found.kind, found.text, found.item.tolist()) == (["looked_at"], ["Looked at 3 days before."], [CHEESE])


# ---- the source


def test_the_source_is_the_one_that_ranked_the_item_highest(users: RuledUsers) -> None:
    found = explained(users, (ANN, P_MILK, [4, 3, 7, 2, 9]), (ANN, P_SPADE, [0, 0, 8, 0, 5]))
    assert found.source == ["category", "popular"]
    assert found.sources == [list(NAMES), ["factors", "popular"]]


def test_of_sources_with_the_same_rank_the_first_is_taken(users: RuledUsers) -> None:
    assert explained(users, (ANN, P_MILK, [0, 3, 2, 2, 2]), (ANN, P_MILK, [1, 0, 0, 0, 1])).source == ["factors", "own"]


def test_reasons_follow_the_order_of_the_list(users: RuledUsers) -> None:
    candidates = Candidates(
        NAMES,
        np.array([ANN, ANN, BOB]),
        np.array([P_MILK, P_ROLL, P_CHEESE]),
        np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 2], [0, 0, 4, 0, 0]], np.int32),
        np.zeros((3, 5), np.float32),
    )
    found = reasons_of(Ranked(np.array([1, 0, 2]), np.array([1, 2, 1], np.int32)), candidates, users)
    assert found.source == ["popular", "own", "factors"]
    assert found.kind == ["popular", "bought_before", "similar_to"]
    assert (found.item[:2].tolist(), found.category) == ([-1, MILK], [None] * 3)


# ---- the sentence


def test_an_own_item_says_how_often_and_when_it_was_bought(users: RuledUsers) -> None:
    assert one(users, ANN, P_MILK, "own") == ("bought_before", "Bought on 3 days, last 1 day before.", MILK)
    assert one(users, ANN, P_CHEESE, "own") == ("bought_before", "Bought on 1 day, last 94 days before.", CHEESE)
    assert one(users, BOB, P_ROLL, "own") == ("bought_before", "Bought on 2 days, last 2 days before.", ROLL)
    assert one(users, CID, P_MILK, "own") == ("bought_before", "Bought on 1 day, last 0 days before.", MILK)


def test_popularity_says_of_when_it_is(users: RuledUsers) -> None:
    assert one(users, EVE, P_BREAD, "popular") == ("popular", "Popular in the last 28 days.", -1)
    assert one(users, EVE, P_SPADE, "popular") == ("popular", "Popular before the last 28 days.", -1)  # bought on day 50 of 100


def test_a_category_is_named(users: RuledUsers) -> None:
    assert one(users, ANN, P_ROLL, "category") == ("popular_in", "Popular in bakery, where you often buy.", -1)
    found = explained(users, (ANN, P_ROLL, [0, 0, 0, 1, 0]), (ANN, P_MILK, [0, 0, 0, 1, 0]), (ANN, P_MILK, [1, 0, 0, 2, 0]))
    assert found.category == ["bakery", "dairy", None]


def test_a_category_whose_value_is_the_empty_word_is_a_category(users: RuledUsers) -> None:
    table = users.catalog.table.set_column(3, "department", pa.array(["", "", "bakery", "bakery", "bakery", None, "garden"]))
    empty = replace(users, catalog=replace(users.catalog, table=table))
    assert explained(empty, (ANN, P_MILK, [0, 0, 0, 1, 0])).category == [""]


def with_brand(users: RuledUsers, codes: list[int]) -> RuledUsers:
    """The users in a shop with a second categorical column, of the active items' codes."""
    words = [[None, "north", "south"][code] for code in [*codes[:5], 0, codes[5]]]
    table = users.catalog.table.append_column("brand", pa.array(words))
    categories = {**users.categories, "brand": np.array(codes, np.int32)}
    return replace(users, catalog=replace(users.catalog, table=table), categories=categories)


def test_of_two_categories_the_one_that_is_more_the_users_own_is_named(users: RuledUsers) -> None:
    # Of everybody's 12 purchases 6 are dairy, 5 bakery, 9 of the north (milk, cheese, bread, cake), 2 of the south (roll).
    both = with_brand(users, [1, 1, 1, 2, 1, 0])
    # Ann's 5 purchases: dairy 4/5 / 6/12 = 1.6, bakery 1/5 / 5/12 = 0.48, north 5/5 / 9/12 = 1.33.
    assert one(both, ANN, P_MILK, "category")[1] == "Popular in dairy, where you often buy."
    assert one(both, ANN, P_BREAD, "category")[1] == "Popular in north, where you often buy."
    # Bob's 3: bakery 2/3 / 5/12 = 1.6, south 2/3 / 2/12 = 4.
    assert one(both, BOB, P_ROLL, "category")[1] == "Popular in south, where you often buy."


def test_of_two_categories_that_are_the_users_own_alike_the_first_column_is_named(users: RuledUsers) -> None:
    same = with_brand(users, [2, 2, 1, 1, 1, 0])
    assert one(same, ANN, P_ROLL, "category")[1] == "Popular in bakery, where you often buy."


def test_a_neighbour_is_named_with_the_item_it_goes_with(users: RuledUsers) -> None:
    given_weights = weighed(users, {(P_MILK, P_SPADE): 0.2, (P_BREAD, P_SPADE): 0.3, (P_ROLL, P_SPADE): 0.9, (P_SPADE, P_MILK): 0.7})
    assert one(given_weights, ANN, P_SPADE, "neighbours") == ("goes_with", "Goes with bread, which you bought.", BREAD)
    assert one(given_weights, BOB, P_SPADE, "neighbours") == ("goes_with", "Goes with roll, which you bought.", ROLL)
    assert one(given_weights, CID, P_SPADE, "neighbours") == ("goes_with", "Goes with bread, which you bought.", BREAD)


def test_how_often_an_item_was_bought_does_not_make_it_the_reason(users: RuledUsers) -> None:
    assert one(weighed(users, {(P_MILK, P_SPADE): 0.2, (P_CHEESE, P_SPADE): 0.3}), ANN, P_SPADE, "neighbours")[2] == CHEESE


def test_of_equal_weights_the_first_item_is_the_reason(users: RuledUsers) -> None:
    assert one(weighed(users, {(P_MILK, P_SPADE): 0.3, (P_BREAD, P_SPADE): 0.3}), ANN, P_SPADE, "neighbours")[2] == MILK


def test_an_item_that_goes_badly_with_all_purchases_rests_on_the_least_bad(users: RuledUsers) -> None:
    weights = {(P_BREAD, P_SPADE): -0.1, (P_CHEESE, P_SPADE): -0.3, (P_ROLL, P_SPADE): 0.4}
    assert one(weighed(users, weights), ANN, P_SPADE, "neighbours")[2] == BREAD


@given(data=st.data())
def test_the_reasons_item_is_the_purchase_with_the_largest_weight(users: RuledUsers, data: st.DataObject) -> None:
    cells = data.draw(
        st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 5)), st.sampled_from([-0.5, -0.25, 0.25, 0.5, 1.0]), min_size=1)
    )
    others = weighed(users, cells)
    bought = users.matrix.toarray() > 0
    rows = [(user, item) for user in range(4) for item in range(6) if any(bought[user, cell[0]] and cell[1] == item for cell in cells)]
    if not rows:
        return
    found = explained(others, *((user, item, [0, 1, 0, 0, 0]) for user, item in rows))
    for number, (user, item) in enumerate(rows):
        mine = [place for place in range(6) if bought[user, place] and (place, item) in cells]
        expected = max(mine, key=lambda place: (cells[place, item], -place))
        assert found.item[number] == users.signals.items[expected]


# ---- similar_to


def with_factors(users: RuledUsers, factors: np.ndarray) -> RuledUsers:
    return replace(users, signals=replace(users.signals, factors=factors.astype(np.float32)))


def added(users: RuledUsers, user: int, item: int) -> dict[int, float]:
    """What each purchase adds to the ALS score of an item, from equation 4 of Hu, Koren, Volinsky in float64."""
    y = users.signals.factors.astype(float)
    days = users.matrix.toarray()[user]
    confidence = np.where(days > 0, users.signals.als.alpha * (1 + np.log(np.maximum(days, 1))), 1.0)
    inverse = np.linalg.inv(y.T @ np.diag(confidence) @ y + users.signals.als.l2 * np.eye(y.shape[1]))
    return {place: float(confidence[place] * y[item] @ inverse @ y[place]) for place in np.flatnonzero(days).tolist()}


def test_similar_to_names_the_purchase_that_adds_most(users: RuledUsers) -> None:
    # Spade's vector is bread's; milk and cheese are at right angles to it.
    factors = np.array([[1, 0], [1, 0], [0, 1], [0.5, 0.5], [0.2, 0.9], [0, 1]])
    assert one(with_factors(users, factors), ANN, P_SPADE, "factors") == ("similar_to", "Similar to bread, which you bought.", BREAD)


def test_an_item_whose_score_rests_on_itself_was_bought_before(users: RuledUsers) -> None:
    factors = np.eye(6)  # nothing is like anything else
    assert one(with_factors(users, factors), ANN, P_MILK, "factors") == ("bought_before", "Bought on 3 days, last 1 day before.", MILK)
    assert one(with_factors(users, factors), ANN, P_CHEESE, "factors")[::2] == ("bought_before", CHEESE)


def test_of_purchases_that_add_the_same_the_first_item_is_the_reason(users: RuledUsers) -> None:
    alike = with_factors(users, np.ones((6, 2)))
    assert one(alike, CID, P_SPADE, "factors")[2] == MILK  # as bread and cake, each bought on one day; ann's milk on three
    assert one(alike, ANN, P_SPADE, "factors")[2] == MILK


@given(seed=st.integers(0, 2**32 - 1))
def test_similar_to_is_the_largest_share_by_brute_force(users: RuledUsers, seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = with_factors(users, rng.normal(size=(6, 3)))
    rows = [(user, item) for user in range(4) for item in rng.permutation(6)[: rng.integers(1, 7)].tolist()]
    rows = [rows[place] for place in rng.permutation(len(rows))]
    found = explained(some, *((user, item, [0, 0, 1, 0, 0]) for user, item in rows))
    als = shops.scores_of(Factors(), some)
    for number, (user, item) in enumerate(rows):
        shares = added(some, user, item)
        assert sum(shares.values()) == pytest.approx(als[user, item], abs=1e-5)
        best = max(shares.values())
        place = int(some.signals.position[found.item[number]])
        assert shares[place] == pytest.approx(best, abs=1e-5)
        assert found.kind[number] == ("bought_before" if place == item else "similar_to")


@given(data=st.data())
def test_a_reason_rests_on_a_purchase_on_a_category_or_on_neither(users: RuledUsers, data: st.DataObject) -> None:
    found = candidates_module.propose(users, sources.sources(shops.settings()), per_user=50)
    chosen = np.array(data.draw(st.lists(st.integers(0, len(found) - 1), unique=True)), np.int64)
    given_reasons = reasons_of(Ranked(chosen, np.ones(len(chosen), np.int32)), found, users)
    bought = users.matrix.toarray() > 0
    for number, row in enumerate(found.user_row[chosen]):
        kind, item, category = given_reasons.kind[number], given_reasons.item[number], given_reasons.category[number]
        assert (item >= 0) == (kind in ("bought_before", "goes_with", "similar_to"))
        assert (category is not None) == (kind in ("popular_in", "new_in"))
        assert item < 0 or bought[row, users.signals.position[item]]
        assert kind != "bought_before" or users.signals.items[found.item[chosen][number]] == item


def test_no_rows_have_no_reasons(users: RuledUsers) -> None:
    candidates = Candidates(
        NAMES, np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 5), np.int32), np.empty((0, 5), np.float32)
    )
    found = reasons_of(Ranked(np.empty(0, np.int64), np.empty(0, np.int32)), candidates, users)
    assert (found.source, found.sources, found.kind, found.text, found.item.tolist(), found.category) == ([], [], [], [], [], [])
