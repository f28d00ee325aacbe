import numpy as np
import pyarrow as pa
from hypothesis import given as examples
from hypothesis import strategies as st

from recsys.data.catalog import Catalog
from recsys.evaluation import backtest
from recsys.features.candidate_features import Featurizer
from recsys.ranking.reasons import reasons_of
from recsys.ranking.recommend import ScoredUsers
from recsys.ranking.top_k import top_k
from recsys.retrieval import candidates
from recsys.retrieval.supplied import Supplied, rows_of
from recsys.retrieval.users import UserBatch
from tests import shops
from tests.shops import ANN, BOB, BREAD, CAKE, CHEESE, CUTOFF, DEE, END, EVE, MILK, NOTHING, ROLL, SPADE

USER_ID = shops.users().column("user_id").combine_chunks()
# Ann bought milk and bread; cake is not available; item 60, NOTHING, was never bought in the history; eve has no history.
LISTED = {ANN: [SPADE, MILK, CAKE, NOTHING], BOB: [ROLL], DEE: [BREAD, CHEESE], EVE: [NOTHING, CHEESE, MILK]}
GIVEN = Supplied(
    np.array([user for user, items in LISTED.items() for _ in items], np.int64),
    np.array([item for items in LISTED.values() for item in items], np.int32),
)


def featurizer(*, repeats: bool = True) -> Featurizer:
    """The shop's featurizer, with signals that know every given item."""
    settings = shops.settings()
    settings = settings.model_copy(update={"rank": settings.rank.model_copy(update={"allow_repeats": repeats})})
    plain = shops.featurizer(settings)
    signals = shops.fit(shops.whole(), extra=GIVEN.item)
    return Featurizer(settings, plain.catalog, signals, shops.VOCABULARIES, shops.TONIGHT)


def listed(found: candidates.Candidates, users: UserBatch) -> dict[int, list[int]]:
    """Item codes by user, in the order of GIVEN's rank."""
    mine: dict[int, list[int]] = {}
    for place in np.lexsort((found.rank[:, -1], found.user_row)):
        mine.setdefault(int(found.user_row[place]), []).append(int(users.signals.items[found.item[place]]))
    return mine


def test_rows_that_cannot_be_used_are_counted_and_the_others_keep_their_order() -> None:
    rows = [("bob", 40), ("ann", 70), ("zoe", 10), ("ann", 10), ("ann", 99), ("ann", 70), ("zoe", 99), ("bob", 10)]
    table = pa.table({"user_id": [user for user, _ in rows], "item_id": [item for _, item in rows]})
    found, rejected = rows_of(table, USER_ID, shops.catalog())
    assert list(zip(found.user_row.tolist(), found.item.tolist(), strict=True)) == [(ANN, SPADE), (ANN, MILK), (BOB, ROLL), (BOB, MILK)]
    assert rejected == {"unknown_user": 2, "unknown_item": 1, "duplicate": 1}


@examples(st.lists(st.tuples(st.sampled_from(["ann", "cid", "eve", "zoe"]), st.sampled_from([10, 20, 30, 99])), max_size=30))
def test_every_row_is_a_candidate_or_is_counted(rows: list[tuple[str, int]]) -> None:
    table = pa.table({"user_id": pa.array([u for u, _ in rows], pa.string()), "item_id": pa.array([i for _, i in rows], pa.int64())})
    found, rejected = rows_of(table, USER_ID, shops.catalog())
    assert len(found.item) + sum(rejected.values()) == len(rows)
    assert (np.diff(found.user_row) >= 0).all()
    pairs = set(zip(found.user_row.tolist(), found.item.tolist(), strict=True))
    assert len(pairs) == len(found.item)
    names, ids = USER_ID.to_pylist(), shops.catalog().item_id.to_pylist()
    assert {(names[user], ids[item]) for user, item in pairs} == {(user, item) for user, item in rows if user != "zoe" and item != 99}


def test_a_slice_of_users_has_its_own_rows() -> None:
    part = GIVEN.select(BOB, EVE)
    assert part.user_row.tolist() == [0, DEE - BOB, DEE - BOB]
    assert part.item.tolist() == [ROLL, BREAD, CHEESE]


def test_only_given_items_are_candidates_and_what_is_not_available_is_none() -> None:
    ((_, users, found, _),) = featurizer()(shops.whole(), GIVEN)
    assert listed(found, users) == {ANN: [SPADE, MILK, NOTHING], BOB: [ROLL], DEE: [BREAD, CHEESE], EVE: [NOTHING, CHEESE, MILK]}
    assert found.names[-1] == "given"


def test_without_repeats_what_the_user_bought_is_no_candidate_though_given() -> None:
    ((_, users, found, _),) = featurizer(repeats=False)(shops.whole(), GIVEN)
    assert listed(found, users) == {ANN: [SPADE, NOTHING], DEE: [BREAD, CHEESE], EVE: [NOTHING, CHEESE, MILK]}


def test_given_rows_have_the_features_and_the_sources_of_proposed_ones() -> None:
    ((_, users, plain, inputs),) = featurizer()(shops.whole())
    ((_, _, found, alone),) = featurizer()(shops.whole(), GIVEN)
    assert alone.names == inputs.names
    places = [name.endswith(("_place", "_z")) for name in inputs.names]  # among the user's candidates, so they may differ
    key = plain.user_row * len(users.signals.items) + plain.item
    both = 0
    for row, (user, item) in enumerate(zip(found.user_row, found.item, strict=True)):
        there = np.flatnonzero(key == user * len(users.signals.items) + item)
        if len(there):
            both += 1
            assert found.rank[row, :-1].tolist() == plain.rank[there[0]].tolist()
            assert (alone.codes[row] == inputs.codes[there[0]]).all()
            np.testing.assert_array_equal(alone.dense[row][~np.array(places)], inputs.dense[there[0]][~np.array(places)])
        else:
            assert users.signals.items[item] == NOTHING
            assert not found.rank[row, :-1].any()
    assert both == 7


def test_users_without_given_items_have_no_candidate() -> None:
    nothing = Supplied(np.empty(0, np.int64), np.empty(0, np.int32))
    ((_, _, found, inputs),) = featurizer()(shops.whole(), nothing)
    assert len(found) == len(inputs.dense) == 0


def test_the_reason_is_that_of_a_source_that_proposed_it_or_that_the_shop_chose_it() -> None:
    ((_, users, found, _),) = featurizer()(shops.whole(), GIVEN)
    ranked = top_k(found.user_row, found.item, np.zeros(len(found), np.float32), k=9)
    reasons = reasons_of(ranked, found, users)
    codes = users.signals.items[found.item[ranked.row]]
    chosen = codes == NOTHING
    assert {reasons.source[row] for row in np.flatnonzero(chosen)} == {"given"}
    assert {reasons.text[row] for row in np.flatnonzero(chosen)} == {"Chosen by the shop."}
    assert "given" not in {reasons.source[row] for row in np.flatnonzero(~chosen)}
    assert all(sources[-1] == "given" for sources in reasons.sources)


def test_in_a_backtest_models_and_baselines_rank_the_given_items_alone() -> None:
    described = featurizer()(shops.whole(), GIVEN)
    total: dict[str, np.ndarray] = {}
    for histories, users, found, _ in described:
        batch = ScoredUsers(histories, users, found, found.item.astype(np.float32), np.diff(users.matrix.indptr) > 0)
        total = backtest.add([total, backtest.evaluate(batch, start=CUTOFF, end=END, seed=1)])
    found = backtest.summary(total)
    # Ann, bob and dee count: cid has no given item, eve no history. Ann gets NOTHING of her three, bob none, dee her bread.
    assert found["users"]["all"] == 3
    assert np.isclose(found["models"]["mlp"]["all"]["recall@10"], (1 / 3 + 0 + 1) / 3)
    # What is popular: of ann's spade and milk, not NOTHING, which nobody bought; dee's bread.
    assert np.isclose(found["models"]["popular"]["all"]["recall@10"], (0 + 0 + 1) / 3)
    assert np.isclose(found["models"]["own_then_popular"]["all"]["recall@10"], (0 + 0 + 1) / 3)


def test_a_catalog_of_string_ids_is_found_too() -> None:
    table = shops.catalog().table
    words = Catalog(table.set_column(0, "item_id", pa.array(["a", "b", "c", "d", "e", "f", "g"])))
    found, rejected = rows_of(pa.table({"user_id": ["eve", "eve"], "item_id": ["g", "z"]}), USER_ID, words)
    assert (found.user_row.tolist(), found.item.tolist(), rejected) == ([EVE], [SPADE], {"unknown_item": 1})


@examples(rows=st.sets(st.integers(0, 9)), users=st.lists(st.integers(0, 9)).map(sorted))
def test_the_candidates_of_some_users_are_theirs_in_their_order(rows: set[int], users: list[int]) -> None:
    all_of_them = Supplied(np.array(users, np.int64), np.arange(len(users)))
    taken = all_of_them.take(np.array(sorted(rows), np.int64))
    expected = [(sorted(rows).index(user), item) for item, user in enumerate(users) if user in rows]
    assert list(zip(taken.user_row.tolist(), taken.item.tolist(), strict=True)) == expected
