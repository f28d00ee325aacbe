from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories, purchase_days
from recsys.retrieval import collaborative, signals
from recsys.retrieval.collaborative import Als
from recsys.retrieval.item_sums import MONTH
from recsys.retrieval.signals import Signals
from recsys.schema import DAY_US
from tests import shops
from tests.shops import ANN, BOB, CID, CUTOFF, START, Event

NAN = float("nan")
# Of the active items milk, cheese, bread, roll, cake, spade.


@pytest.fixture(scope="module")
def fitted() -> Signals:
    return shops.fit(shops.whole())


def binary(*rows: Sequence[int]) -> sp.csr_matrix:
    return sp.csr_matrix(np.array(rows, np.float32))


def dense(weights: sp.csr_matrix) -> np.ndarray:
    return np.asarray(weights.todense(), np.float64)


def same(one: Signals, other: Signals, *, but: Sequence[str] = ()) -> bool:
    """Every array has the same bytes, NaN included."""
    return all(
        array.dtype == other.arrays()[name].dtype
        and array.shape == other.arrays()[name].shape
        and array.tobytes() == other.arrays()[name].tobytes()
        for name, array in one.arrays().items()
        if name not in but
    )


# ---- counts, by hand


def test_only_items_wanted_in_the_history_are_active(fitted: Signals) -> None:
    assert fitted.items.tolist() == [0, 1, 2, 3, 4, 6]
    assert fitted.position.tolist() == [0, 1, 2, 3, 4, -1, 5]
    assert (int(fitted.start), int(fitted.cutoff)) == (START, CUTOFF)


def test_popularity_is_the_share_of_the_purchase_days_of_each_window(fitted: Signals) -> None:
    expected = [
        [3 / 7, 0, 1 / 7, 2 / 7, 1 / 7, 0],  # from day 93 on
        [4 / 8, 0, 1 / 8, 2 / 8, 1 / 8, 0],  # from day 72 on
        [5 / 11, 0, 2 / 11, 2 / 11, 1 / 11, 1 / 11],  # from day 9 on
        [5 / 12, 1 / 12, 2 / 12, 2 / 12, 1 / 12, 1 / 12],  # all
    ]
    np.testing.assert_allclose(fitted.popularity, expected, rtol=1e-6)
    assert signals.POPULARITY_DAYS[MONTH] == 28


@pytest.mark.parametrize(("day", "windows"), [(93.0, [1, 1]), (92.999999, [0, 1]), (72.0, [0, 1]), (71.999999, [0, 0])])
def test_a_window_starts_whole_days_before_the_cutoff(day: float, windows: list[int]) -> None:
    found = shops.fit(shops.group([Event(ANN, 0, day), Event(BOB, 1, 99.5)]))
    assert (found.popularity[:2, 0] > 0).tolist() == [bool(window) for window in windows]


def test_the_whole_history_is_a_window_however_short_or_long_it_is() -> None:
    events = shops.group([Event(ANN, 0, 100 - 400.5), Event(BOB, 1, 99.5)])
    chosen = np.ones(len(events), bool)
    for start in (CUTOFF - 401 * DAY_US, CUTOFF - 401 * DAY_US + 1):
        found = signals.fit(
            [(events, chosen)], items=7, start=start, cutoff=CUTOFF, settings=shops.settings().signals, als=shops.ALS, seed=0
        )
        assert found.popularity[-1].tolist() == [1 / 2, 1 / 2]


def test_buyers_are_users_not_purchases(fitted: Signals) -> None:
    assert fitted.buyers[-1].tolist() == [3, 1, 2, 1, 1, 1]


def test_buyers_of_a_window_bought_in_it(fitted: Signals) -> None:
    expected = [[3, 0, 1, 1, 1, 0], [3, 0, 1, 1, 1, 0], [3, 0, 2, 1, 1, 1]]  # from day 93, 72 and 9 on
    assert fitted.buyers[:-1].tolist() == expected


def test_first_and_last_purchase_of_an_item(fitted: Signals) -> None:
    assert (fitted.first_ts / DAY_US).tolist() == [60.5, 5.5, 10.5, 95.5, 99.6, 50.5]
    assert (fitted.last_ts / DAY_US).tolist() == [99.6, 5.5, 98.5, 97.5, 99.6, 50.5]


def test_the_repeat_rate_is_the_share_of_buyers_who_bought_on_two_days(fitted: Signals) -> None:
    # Of milk: ann; not cid, who bought it twice on one day.
    np.testing.assert_allclose(fitted.repeat_rate, [1 / 3, 0, 0, 1, 0, 0], rtol=1e-6)


def test_repeat_days_are_the_mean_gap_between_a_users_purchases(fitted: Signals) -> None:
    np.testing.assert_allclose(fitted.repeat_days, [(20 + 18) / 2, NAN, NAN, 2, NAN, NAN])


def test_the_price_is_the_mean_of_those_paid(fitted: Signals) -> None:
    expected = [(1.0 + 1.2 + 1.4 + 1.0 + 1.0) / 5, NAN, (2 + 3) / 2, (0.5 + 0.7) / 2, 9, 20]
    np.testing.assert_allclose(fitted.price, expected, rtol=1e-6)


def test_what_was_only_viewed_counts_nowhere(fitted: Signals) -> None:
    views = [Event(CID, 5, 98.5, 3.0, wanted=False), Event(ANN, 0, 99.5, 70.0, wanted=False)]
    assert same(fitted, shops.fit(shops.group([*shops.HISTORY, *views])))


def test_purchase_days_are_distinct_and_count_back_from_the_cutoff() -> None:
    bought = [Event(CID, 2, 99.0), Event(ANN, 4, 98.999999), Event(ANN, 0, 99.999999), Event(CID, 2, 99.9), Event(CID, 2, 90.5)]
    user, item, day = purchase_days(shops.group(bought), cutoff=CUTOFF)
    assert list(zip(user.tolist(), item.tolist(), day.tolist(), strict=True)) == [(0, 0, 0), (0, 4, 1), (2, 2, 0), (2, 2, 9)]


# ---- nothing from outside the window


OUTSIDE = st.builds(
    Event,
    user=st.integers(0, 4),
    item=st.integers(0, 6),
    day=st.one_of(st.floats(100, 400), st.floats(-400, -0.001), st.just(100.0)),
    price=st.floats(0, 100),
    quantity=st.just(1.0),
    wanted=st.booleans(),
    look=st.sampled_from([-1, 1, 2]),
)


@given(st.lists(OUTSIDE, min_size=1, max_size=12))
def test_no_event_outside_the_window_changes_any_signal(outside: list[Event]) -> None:
    assert same(shops.fit(shops.group([*shops.HISTORY, *outside])), shops.fit(shops.group(shops.HISTORY)))


def test_an_event_at_the_start_counts_and_one_at_the_cutoff_does_not() -> None:
    found = shops.fit(shops.group([Event(ANN, 1, 0.0), Event(BOB, 2, 100.0), Event(CID, 3, 99.9999)]))
    assert found.items.tolist() == [1, 3]


# ---- shards


def parts(batch: Histories, cuts: Sequence[int]) -> list[tuple[Histories, np.ndarray]]:
    edges = [0, *cuts, len(batch)]
    return [(batch.select(start, stop), np.ones(stop - start, bool)) for start, stop in pairwise(edges)]


def fit_parts(shards: Sequence[tuple[Histories, np.ndarray]]) -> Signals:
    return signals.fit(shards, items=7, start=START, cutoff=CUTOFF, settings=shops.settings().signals, als=shops.ALS, seed=3)


def test_shards_cut_elsewhere_change_no_signal(fitted: Signals) -> None:
    assert same(fit_parts(parts(shops.whole(), [1, 1, 4])), fitted)


def test_the_order_of_shards_changes_no_signal(fitted: Signals) -> None:
    assert same(fit_parts(parts(shops.whole(), [2, 3])[::-1]), fitted)


def test_users_who_are_not_chosen_count_but_fit_no_neighbours() -> None:
    batch = shops.whole()
    chosen = np.array([False, True, True, True, True])
    some = signals.fit([(batch, chosen)], items=7, start=START, cutoff=CUTOFF, settings=shops.settings().signals, als=shops.ALS, seed=3)
    assert some.buyers[-1].tolist() == [3, 1, 2, 1, 1, 1]
    weights = dense(some.neighbours)
    assert weights[:, 1].tolist() == weights[1, :].tolist() == [0] * 6  # only ann bought cheese
    assert weights[0, 3] > 0  # bob bought milk and rolls


# ---- neighbours


def ease(X: np.ndarray, l2: float) -> np.ndarray:
    """Steck 2019, eq. 8: B = I - P diagMat(1 / diag(P)), P = (X'X + l2 I)^-1; row = bought, column = scored."""
    P = np.linalg.inv(X.T @ X + l2 * np.eye(X.shape[1]))
    B = np.eye(X.shape[1]) - P @ np.diag(1 / np.diag(P))
    np.fill_diagonal(B, 0)
    return B


# Nothing symmetric: item 0 has five buyers, item 3 one.
ROWS = ([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0])


def test_the_weights_of_the_most_bought_items_are_those_of_ease() -> None:
    settings = config.Signals(ease_items=4, ease_l2=0.7, neighbours=4)
    weights = dense(collaborative.neighbour_weights(binary(*ROWS), settings))
    expected = ease(np.array(ROWS, float), 0.7)
    assert np.abs(expected - expected.T).max() > 0.1  # a transposed matrix would be seen
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_how_often_a_user_bought_does_not_weigh_in_neighbours() -> None:
    settings = config.Signals(ease_items=2, ease_l2=0.7, neighbours=4)
    often = binary(*ROWS)
    often.data = np.arange(1, len(often.data) + 1, dtype=np.float32)
    assert (collaborative.neighbour_weights(often, settings) != collaborative.neighbour_weights(binary(*ROWS), settings)).nnz == 0


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_strongest_ease_neighbours_of_each_item_are_kept(keep: int) -> None:
    X = (np.random.default_rng(2).random((40, 7)) < np.linspace(0.2, 0.7, 7)).astype(float)
    weights = dense(collaborative.neighbour_weights(binary(*X), config.Signals(ease_items=7, ease_l2=1.3, neighbours=keep)))
    whole = ease(X, 1.3)
    for scored in range(7):
        kept = np.argsort(-np.abs(whole[:, scored]))[:keep]
        expected = np.zeros(7)
        expected[kept] = whole[kept, scored]
        np.testing.assert_allclose(weights[:, scored], expected, atol=1e-6)


def tail_weights(X: np.ndarray, head: Sequence[int], *, l2: float, keep: int) -> np.ndarray:
    """By the definition: the cosine neighbours of every item outside the head, weighed by both / (buyers + l2)."""
    both = X.T @ X
    buyers = np.diag(both)
    expected = np.zeros(both.shape)
    for scored in set(range(X.shape[1])) - set(head):
        cosine = both[:, scored] / np.sqrt(buyers * buyers[scored])
        cosine[scored] = -1
        kept = np.argsort(-cosine, kind="stable")[:keep]
        expected[kept, scored] = (both[:, scored] / (buyers + l2))[kept]
        expected[scored, scored] = 0
    return expected


@pytest.mark.parametrize("keep", [2, 8])
def test_the_weights_of_the_other_items_are_ridge_regressions_on_one_cosine_neighbour(keep: int) -> None:
    X = (np.random.default_rng(8).random((60, 8)) < np.linspace(0.6, 0.1, 8)).astype(float)
    head = np.argsort(-X.sum(axis=0), kind="stable")[:3]
    weights = dense(collaborative.neighbour_weights(binary(*X), config.Signals(ease_items=3, ease_l2=0.7, neighbours=keep)))
    expected = tail_weights(X, head.tolist(), l2=0.7, keep=keep)
    tail = np.setdiff1d(np.arange(8), head)
    np.testing.assert_allclose(weights[:, tail], expected[:, tail], rtol=1e-5)
    inside = np.zeros((8, 8))
    inside[np.ix_(head, head)] = ease(X[:, head], 0.7)
    if keep == 8:  # the most bought items are scored by one another alone
        np.testing.assert_allclose(weights[:, head], inside[:, head], atol=1e-6)


def test_ease_is_off_with_no_items_and_cosine_with_all() -> None:
    X = np.array(ROWS, float)
    none = dense(collaborative.neighbour_weights(binary(*ROWS), config.Signals(ease_items=0, ease_l2=0.7, neighbours=4)))
    np.testing.assert_allclose(none, tail_weights(X, [], l2=0.7, keep=4), rtol=1e-5)
    most = dense(collaborative.neighbour_weights(binary(*ROWS), config.Signals(ease_items=99, ease_l2=0.7, neighbours=99)))
    np.testing.assert_allclose(most, ease(X, 0.7), atol=1e-6)


@pytest.mark.parametrize("ease_items", [0, 3])
def test_no_item_has_more_neighbours_than_asked_for_nor_itself(ease_items: int) -> None:
    twins = binary(*([1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]))  # five items with the same buyers
    weights = dense(collaborative.neighbour_weights(twins, config.Signals(ease_items=ease_items, ease_l2=0.7, neighbours=2)))
    assert ((weights != 0).sum(axis=0) <= 2 + 1).all()
    assert not np.diag(weights).any()


def test_neighbours_by_scored_are_the_same_weights(fitted: Signals) -> None:
    assert (dense(fitted.neighbours) == dense(fitted.neighbours_by_scored)).all()
    assert (dense(fitted.neighbours) != dense(fitted.neighbours).T).any()


# ---- factors


def test_factors_bring_items_of_the_same_buyers_together() -> None:
    rows = [[1, 1, 0, 0, 0]] * 9 + [[0, 0, 1, 1, 1]] * 7
    factors = collaborative.item_factors(binary(*rows), config.Signals(factors=3), Als(0.1, 2.0), seed=1)
    assert (factors.shape, factors.dtype) == ((5, 3), np.float32)
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[0, 1] > 0.9
    assert alike[2, 4] > 0.9
    assert abs(alike[1, 2]) < 0.5


def test_the_seed_decides_the_factors(fitted: Signals) -> None:
    again = shops.fit(shops.whole())
    assert same(again, fitted)
    events = shops.whole()
    other = signals.fit(
        [(events, np.ones(5, bool))], items=7, start=START, cutoff=CUTOFF, settings=shops.settings().signals, als=shops.ALS, seed=4
    )
    assert same(other, fitted, but=["factors"])
    assert not same(other, fitted)


def test_purchases_are_damped_to_one_plus_their_logarithm() -> None:
    damped = collaborative.confidence(sp.csr_matrix(np.array([[0, 1], [5, 2]], np.float32)))
    np.testing.assert_allclose(dense(damped), [[0, 1], [1 + np.log(5), 1 + np.log(2)]], rtol=1e-6)


# ---- files


def test_signals_come_back_from_their_files_without_pickle(fitted: Signals, tmp_path: Path) -> None:
    fitted.save(tmp_path / "signals", shops.catalog())
    assert same(signals.load(tmp_path / "signals", shops.catalog()), fitted)
    with np.load(tmp_path / "signals.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == sorted(fitted.arrays().keys() - {"items", "position"})


def test_signals_serve_under_a_catalog_that_has_grown(fitted: Signals, tmp_path: Path) -> None:
    fitted.save(tmp_path / "signals", shops.catalog())
    table = shops.catalog().table
    known = table.column("item_id").to_pylist()
    new = pa.table({"item_id": pa.array([known[0] - 1, known[-1] - 1, known[-1] + 1]), "available": [True] * 3})
    grown = Catalog(pa.concat_tables([table, new], promote_options="default").sort_by("item_id").combine_chunks())
    found = signals.load(tmp_path / "signals", grown)
    assert grown.item_id.take(pa.array(found.items)).to_pylist() == [known[item] for item in fitted.items]
    assert found.position.tolist() == [
        {item: place for place, item in enumerate(found.items)}.get(code, -1) for code in range(len(grown))
    ]
    others = {name: array for name, array in fitted.arrays().items() if name not in ("items", "position")}
    for name, array in others.items():
        np.testing.assert_array_equal(getattr(found, name), array)
    with pytest.raises(KeyError, match="item ids are not in the catalog"):
        signals.load(tmp_path / "signals", Catalog(table.slice(1)))
