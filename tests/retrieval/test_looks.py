"""Looks, events that are not wanted: what each kind weighs, and where that counts."""

import math
from dataclasses import replace

import numpy as np
import pytest

from recsys import config
from recsys.ranking.reasons import REASONS
from recsys.retrieval import collaborative
from recsys.retrieval.candidates import propose
from recsys.retrieval.collaborative import Als
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.signals import Signals
from recsys.retrieval.sources import Factors, Neighbours, Own, Popular, Seen
from recsys.schema import DISLIKED, OTHER_LOOK
from tests import shops
from tests.shops import ALS, ANN, BOB, CID, EVE, P_BREAD, P_CAKE, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event

VIEW, CART = OTHER_LOOK + 1, OTHER_LOOK + 2
KINDS = shops.with_looks("view", "cart")
LOOKS = [
    Event(ANN, shops.CHEESE, 4.5, wanted=False, look=VIEW),  # bought on day 5
    Event(ANN, shops.SPADE, 90.5, wanted=False, look=VIEW),
    Event(ANN, shops.SPADE, 93.5, wanted=False, look=VIEW),
    Event(CID, shops.MILK, 99.1, wanted=False, look=VIEW),  # bought on that day
    Event(CID, shops.ROLL, 70.5, wanted=False, look=VIEW),
    Event(ANN, shops.BREAD, 99.5, wanted=False, look=CART),  # bought the day before, and not again
    Event(BOB, shops.ROLL, 95.5, wanted=False, look=CART),  # bought on that day
    Event(EVE, shops.MILK, 98.5, wanted=False, look=CART),
    Event(EVE, shops.NOTHING, 98.5, wanted=False, look=CART),  # which nobody bought
]
RATES = [0.0, 2 / 4, 1 / 4]  # bob's look at cheese in the history is of a kind of its own, and nothing came of it


def users_of(looks: float, more: list[Event] | None = None) -> RuledUsers:
    events = shops.group([*shops.BEFORE, *shops.HISTORY, *LOOKS, *(more or []), *shops.AFTER])
    featurizer = shops.featurizer(KINDS)
    featurizer.signals = shops.fit(events, KINDS, als=ALS._replace(looks=looks))
    return featurizer.users(events)


@pytest.fixture(scope="module")
def users() -> RuledUsers:
    return users_of(0.5)


def test_a_kind_s_rate_is_the_share_of_its_pairs_that_were_bought_then_or_later(users: RuledUsers) -> None:
    assert users.signals.look_rates.tolist() == pytest.approx(RATES)
    assert users.signals.look_weights.tolist() == pytest.approx([0, 1, 0.5])


def test_kinds_that_nothing_comes_of_all_weigh_the_same() -> None:
    assert collaborative.look_weights(np.zeros(3)).tolist() == [1, 1, 1]
    assert collaborative.look_weights(np.zeros(0)).tolist() == []


def test_looks_of_an_item_are_its_share_of_all_in_each_window(users: RuledUsers) -> None:
    # in 7 days: cid's milk, ann's spade of day 93, ann's bread, bob's roll and cheese, eve's milk and the item without a position
    week = {P_MILK: 2, P_SPADE: 1, P_BREAD: 1, P_ROLL: 1, P_CHEESE: 1}
    np.testing.assert_allclose(users.signals.looks[0], [week.get(item, 0) / 7 for item in range(6)], rtol=1e-6)
    month = week | {P_SPADE: 2}
    np.testing.assert_allclose(users.signals.looks[1], [month.get(item, 0) / 8 for item in range(6)], rtol=1e-6)


def test_evidence_is_days_with_a_purchase_and_looks_as_much_as_they_weigh(users: RuledUsers) -> None:
    bought = users.matrix.toarray()
    expected = bought.copy()
    for (user, item), added in {
        (ANN, P_CHEESE): 0.5,
        (ANN, P_SPADE): 2 * 0.5,
        (CID, P_MILK): 0.5,
        (CID, P_ROLL): 0.5,
        (ANN, P_BREAD): 0.25,
        (BOB, P_ROLL): 0.25,
        (EVE, P_MILK): 0.25,
    }.items():
        expected[user, item] += added
    np.testing.assert_allclose(users.evidence.toarray(), expected)
    assert users.evident[2].max() == 1  # however often
    asked_not = users_of(0.0)
    assert (asked_not.evidence != asked_not.matrix).nnz == 0


def test_neighbours_and_factors_are_fitted_to_the_evidence_that_users_are_asked_with(users: RuledUsers) -> None:
    known = users.evidence[np.diff(users.evidence.indptr) > 0]
    signals: Signals = users.signals
    again = collaborative.neighbour_weights(known, KINDS.signals)
    np.testing.assert_allclose(signals.neighbours.toarray(), again.toarray(), rtol=1e-5)
    vectors = collaborative.item_factors(known, KINDS.signals, signals.als, seed=3)
    np.testing.assert_allclose(signals.factors, vectors, rtol=1e-3, atol=1e-5)
    assert signals.als == Als(ALS.l2, ALS.alpha, 0.5)


def test_ease_of_shares_is_the_closed_form() -> None:
    dense = np.array([[1, 0.25, 0], [0, 1, 0.5], [1, 1, 0.25], [0.5, 0, 1]])
    inverse = np.linalg.inv(dense.T @ dense + 0.7 * np.eye(3))
    ease = -inverse / np.diag(inverse)
    np.fill_diagonal(ease, 0)
    matrix = collaborative.sp.csr_matrix(dense.astype(np.float32))
    settings = config.Signals(ease_items=3, ease_l2=0.7, neighbours=3)
    np.testing.assert_allclose(collaborative.neighbour_weights(matrix, settings).toarray(), ease, atol=1e-6)
    # beyond the head: the ridge regression of each item on each other one alone
    gram = dense.T @ dense
    alone = gram / (np.diag(gram)[:, None] + 0.7)
    np.fill_diagonal(alone, 0)
    tail = collaborative.neighbour_weights(matrix, settings.model_copy(update={"ease_items": 0}))
    np.testing.assert_allclose(tail.toarray(), alone, atol=1e-6)


def test_who_only_looked_gets_what_goes_with_that(users: RuledUsers) -> None:
    weights = users.signals.neighbours.toarray()
    scores = shops.scores_of(Neighbours(), users)
    expected = np.where(weights[P_MILK] > 0, np.float32(0.25) * weights[P_MILK], -np.inf)
    np.testing.assert_allclose(scores[EVE], expected)
    assert np.isfinite(expected).any()
    assert np.isfinite(shops.scores_of(Factors(), users)[EVE]).all()
    asked_not = users_of(0.0)
    for source in (Neighbours(), Factors()):
        assert not np.isfinite(shops.scores_of(source, asked_not)[EVE]).any()


@pytest.mark.parametrize("source", [Neighbours(), Factors(), Seen()], ids=lambda one: one.name)
def test_the_best_are_those_of_the_scores(users: RuledUsers, source: Neighbours | Factors | Seen) -> None:
    scores = shops.scores_of(source, users)
    found = propose(users, [(source, 3)], per_user=9)
    for user in range(5):
        allowed = np.where(shops.barred_of(users)[user] > 0, -np.inf, scores[user])
        best = [int(item) for item in np.argsort(-allowed, kind="stable")[:3] if allowed[item] > -np.inf]
        assert shops.items_of(found, user, source.name) == best


def test_seen_scores_looks_as_much_as_a_purchase_follows_their_kind(users: RuledUsers) -> None:
    scores = shops.scores_of(Seen(), users)
    assert scores[ANN, P_SPADE] == pytest.approx(0.5 ** (9 / 7) + 0.5 ** (6 / 7))
    assert scores[EVE, P_MILK] == pytest.approx(0.5 * 0.5 ** (1 / 7))
    assert scores[BOB, P_CHEESE] == 0  # nothing ever came of that kind


def test_a_reason_says_whether_the_item_it_rests_on_was_bought(users: RuledUsers) -> None:
    weights = np.zeros((6, 6), np.float32)
    weights[P_SPADE, P_CAKE], weights[P_MILK, P_CAKE] = 0.5, 0.4
    matrix = collaborative.sp.csr_matrix(weights)
    told = {"neighbour_offsets": matrix.indptr, "neighbour_items": matrix.indices, "neighbour_weights": matrix.data}
    some = RuledUsers(users.history, replace(users.signals, **told), users.catalog, users.categories, rules=users.rules)
    row, item = np.array([ANN, EVE]), np.array([P_CAKE, P_CAKE])
    texts = [reason.text for reason in REASONS["neighbours"](row, item, some)]
    assert texts == ["Goes with spade, which you looked at.", "Goes with milk, which you looked at."]
    matrix.data[:] = matrix.data[::-1]  # milk .5: bought
    bought = RuledUsers(users.history, replace(users.signals, **told), users.catalog, users.categories, rules=users.rules)
    (reason,) = REASONS["neighbours"](row[:1], item[:1], bought)
    assert reason.text == "Goes with milk, which you bought."
    (itself,) = REASONS["factors"](row[1:], np.array([P_MILK]), users)
    assert (itself.kind, itself.text) == ("looked_at", "Looked at 1 day before.")


def test_kinds_of_looks_have_features_of_their_own(users: RuledUsers) -> None:
    featurizer = shops.featurizer(KINDS)
    ((_, _, found, inputs),) = featurizer(users.history)
    place = {name: number for number, name in enumerate(inputs.names)}

    def value(user: int, item: int, name: str) -> float:
        (row,) = np.flatnonzero((found.user_row == user) & (found.item == item))
        return float(inputs.dense[row, place[name]])

    assert value(ANN, P_SPADE, "view_count") == pytest.approx(math.log(3))
    assert value(ANN, P_SPADE, "view_last") == pytest.approx(math.log(7))
    assert (value(ANN, P_SPADE, "cart_count"), value(ANN, P_BREAD, "cart_count")) == (0, pytest.approx(math.log(2)))
    assert math.isnan(value(ANN, P_SPADE, "cart_last"))
    assert value(ANN, P_MILK, "view_by_user") == pytest.approx(math.log(3))  # her look at cheese is older than 28 days
    assert math.isfinite(value(ANN, P_SPADE, "looks_7d"))
    ((_, _, _, alike),) = shops.featurizer(shops.with_looks())(users.history)
    one_kind = set(alike.names)
    assert set(inputs.names) - one_kind == {f"{kind}_{what}" for kind in ("view", "cart") for what in ("count", "last", "by_user")}


def test_what_the_user_disliked_is_on_no_list_and_tells_of_no_taste() -> None:
    shop = KINDS.shop.model_copy(update={"least_value": 4.0})
    settings = shops.settings(shop=shop)
    events = shops.group([*shops.HISTORY, Event(CID, shops.SPADE, 80.5, wanted=False, look=DISLIKED)])
    users = shops.featurizer(settings, events=events).users(events)
    assert users.rules.names == ("available", "dislikes")
    barred = shops.barred_of(users)
    assert barred[CID, P_SPADE] == users.rules.names.index("dislikes") + 1
    assert (barred == 2).sum() == 1
    chosen = [(Own(), 9), (Seen(), 9), (Popular(), 9), (Neighbours(), 9), (Factors(), 9)]
    found = propose(users, chosen, per_user=9)
    assert P_SPADE not in shops.items_of(found, CID)
    assert P_SPADE in shops.items_of(found, ANN)
    assert found.dropped[CID].tolist() == [1, 1]  # cake is not available
    assert users.evidence[CID, P_SPADE] == 0
    assert users.signals.buyers[-1, P_SPADE] == 1  # dee's alone
