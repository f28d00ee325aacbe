import math
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories
from recsys.features import candidate_features
from recsys.features.candidate_features import Featurizer
from recsys.features.spec import ModelInputs
from recsys.retrieval import candidates, signals, sources
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.users import UserBatch
from tests import shops
from tests.shops import ANN, BOB, CID, CUTOFF, DEE, EVE, P_BREAD, P_CHEESE, P_MILK, P_ROLL, P_SPADE, START, Event

NAN = math.nan


def run(events: Histories, featurizer: Featurizer | None = None) -> tuple[UserBatch, Candidates, ModelInputs]:
    """The shop's users in one batch."""
    ((_, users, found, inputs),) = list((featurizer or shops.featurizer())(events))
    return users, found, inputs


NAMES_OF_LOOKS = {"seen_count", "seen_recent", "seen_last", "seen_known", "seen_since"}


class Described:
    """Features by name of a user and an active position."""

    def __init__(self) -> None:
        self.users, self.found, self.inputs = run(shops.whole())

    def __call__(self, name: str, user: int, item: int) -> float:
        (row,) = np.flatnonzero((self.found.user_row == user) & (self.found.item == item))
        return float(self.inputs.dense[row, self.inputs.names.index(name)])

    def codes(self, user: int, item: int) -> list[int]:
        (row,) = np.flatnonzero((self.found.user_row == user) & (self.found.item == item))
        return self.inputs.codes[row].tolist()


@pytest.fixture(scope="module")
def described() -> Described:
    return Described()


def equal(one: ModelInputs, other: ModelInputs) -> bool:
    """The same bytes, NaN included."""
    return one.names == other.names and one.dense.tobytes() == other.dense.tobytes() and one.codes.tobytes() == other.codes.tobytes()


# ---- shape


def test_every_dense_column_has_a_name_and_every_row_a_candidate(described: Described) -> None:
    inputs = described.inputs
    assert inputs.dense.shape == (len(described.found), len(inputs.names))
    assert inputs.codes.shape == (len(described.found), 2)
    assert len(set(inputs.names)) == len(inputs.names)
    assert (inputs.dense.dtype, inputs.codes.dtype) == (np.float32, np.int32)
    assert inputs.dense.flags.c_contiguous


def test_no_feature_is_infinite_and_none_is_missing_everywhere_without_cause(described: Described) -> None:
    assert not np.isinf(described.inputs.dense).any()
    missing = np.asarray(np.isnan(described.inputs.dense).all(axis=0))
    assert [name for name, gone in zip(described.inputs.names, missing.tolist(), strict=True) if gone] == []


def test_an_infinite_number_in_the_catalog_is_a_missing_one() -> None:
    sizes = pa.array([math.inf, 0.5, -math.inf, 0.1, 2.0, 3.0, 90.0], pa.float32())
    found, inputs = run(shops.whole(), shops.featurizer(items=shops.catalog(size=sizes)))[1:]
    size = inputs.dense[:, inputs.names.index("size")]
    assert np.isnan(size).tolist() == np.isin(found.item, [P_MILK, P_BREAD]).tolist()
    assert not np.isinf(inputs.dense).any()


def test_names_do_not_depend_on_the_users(described: Described) -> None:
    for user in range(5):
        assert run(shops.whole().select(user, user + 1))[2].names == described.inputs.names


def test_looks_are_features_where_some_events_are_not_wanted(described: Described) -> None:
    looks = [Event(BOB, item, day, wanted=False) for item, day in ((shops.CHEESE, 60.5), (shops.MILK, 90.5), (shops.ROLL, 99.5))]
    events = shops.group([*shops.BEFORE, *shops.HISTORY, *looks, *shops.AFTER])
    _, found, inputs = run(events, shops.featurizer(shops.with_looks()))

    def row(item: int) -> dict[str, float]:
        (place,) = np.flatnonzero((found.user_row == BOB) & (found.item == item))
        dense = inputs.dense[place].tolist()
        return {name: value for name, value in zip(inputs.names, dense, strict=True) if name in NAMES_OF_LOOKS}

    once = {"seen_count": math.log(2), "seen_recent": math.log(2), "seen_known": 1, "seen_since": 1}
    assert row(P_CHEESE) == pytest.approx(once | {"seen_count": math.log(3), "seen_last": math.log(4)})  # days 60 and 96; not bought
    assert row(P_MILK) == pytest.approx(once | {"seen_last": math.log(10), "seen_since": 0})  # day 90; bought on day 95
    assert row(P_ROLL) == pytest.approx(once | {"seen_last": 0})  # day 99; bought on day 97
    none = {"seen_count": 0, "seen_recent": 0, "seen_last": math.nan, "seen_known": 0, "seen_since": 0}
    assert row(P_BREAD) == pytest.approx(none, nan_ok=True)
    assert not NAMES_OF_LOOKS & set(described.inputs.names)
    assert NAMES_OF_LOOKS | {"seen_score", "seen_z", "seen_place", "seen_proposed"} <= set(inputs.names)


def test_without_categories_and_numbers_there_are_no_codes() -> None:
    plain = shops.settings(features=config.Features())
    found, inputs = run(shops.whole(), shops.featurizer(plain))[1:]
    assert inputs.codes.shape == (len(found), 0)
    assert inputs.codes.dtype == np.int32
    assert "size" not in inputs.names
    assert "department_share" not in inputs.names


# ---- values, by hand


def close(value: float, expected: float) -> bool:
    return math.isnan(value) if math.isnan(expected) else math.isclose(value, expected, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("name", "user", "item", "expected"),
    [
        ("popularity_7d", ANN, P_ROLL, math.log(2 / 7 + 1e-7)),
        ("popularity_28d", ANN, P_ROLL, math.log(2 / 8 + 1e-7)),
        ("popularity_91d", ANN, P_ROLL, math.log(2 / 11 + 1e-7)),
        ("popularity_all", ANN, P_ROLL, math.log(2 / 12 + 1e-7)),
        ("popularity_28d", ANN, P_CHEESE, math.log(1e-7)),
        ("item_buyers", ANN, P_BREAD, math.log1p(2)),  # of the whole history
        ("item_age", ANN, P_CHEESE, math.log1p(94.5)),  # bought by nobody lately
        ("popularity_7d_trend", ANN, P_ROLL, math.log(2 / 7) - math.log(2 / 8)),
        ("popularity_91d_trend", ANN, P_ROLL, math.log(2 / 11) - math.log(2 / 12)),
        ("item_age", ANN, P_MILK, math.log1p(100 - 60.5)),
        ("item_rest", ANN, P_MILK, math.log1p(100 - 99.6)),
        ("item_buyers", ANN, P_MILK, math.log1p(3)),
        ("item_repeat_rate", ANN, P_MILK, 1 / 3),
        ("item_repeat_days", ANN, P_MILK, math.log1p((20 + 18) / 2)),
        ("item_repeat_days", ANN, P_BREAD, NAN),
        ("item_price", BOB, P_ROLL, math.log(0.6 + 0.01)),
        ("item_price", BOB, P_CHEESE, NAN),
        ("size", BOB, P_ROLL, 0.1),
        ("size", BOB, P_BREAD, NAN),
        ("size", BOB, P_SPADE, 90.0),
        ("income", ANN, P_SPADE, 41.5),
        ("income", BOB, P_SPADE, NAN),
        ("user_purchases", ANN, P_SPADE, math.log1p(5)),
        ("user_purchases_recent", ANN, P_SPADE, math.log1p(3)),
        ("user_items", ANN, P_SPADE, math.log1p(3)),
        ("user_visits", ANN, P_SPADE, math.log1p(4)),
        ("user_basket", ANN, P_SPADE, math.log1p(5 / 4)),
        ("user_repeats", ANN, P_SPADE, 1 - 3 / 5),
        ("user_rest", ANN, P_SPADE, math.log1p(1)),
        ("user_age", ANN, P_SPADE, math.log1p(94)),
        ("user_price", BOB, P_BREAD, (math.log(5.6 / 5 + 0.01) + 2 * math.log(0.61)) / 3),
        ("price_against_usual", BOB, P_BREAD, math.log(2.51) - (math.log(5.6 / 5 + 0.01) + 2 * math.log(0.61)) / 3),
        ("own_count", ANN, P_MILK, math.log1p(3)),
        ("own_count", ANN, P_ROLL, 0),
        ("own_count", BOB, P_ROLL, math.log1p(2)),
        ("own_recent", ANN, P_MILK, math.log1p(2)),
        ("own_share", ANN, P_MILK, 3 / 5),
        ("own_per_visit", ANN, P_MILK, 3 / 4),
        ("own_last", ANN, P_MILK, math.log1p(1)),
        ("own_last", ANN, P_CHEESE, math.log1p(94)),
        ("own_last", ANN, P_ROLL, NAN),
        ("own_first", ANN, P_MILK, math.log1p(39)),
        ("own_interval", ANN, P_MILK, math.log1p((39 - 1) / 2)),
        ("own_interval", ANN, P_BREAD, NAN),
        ("own_due", ANN, P_MILK, math.log((1 + 1) / (19 + 1))),
        ("own_due", CID, P_MILK, math.log((0 + 1) / (19 + 1))),  # bought once: everybody's interval
        ("own_due", ANN, P_BREAD, NAN),
        ("own_known", ANN, P_MILK, 1),
        ("own_known", ANN, P_ROLL, 0),
        ("department_share", ANN, P_MILK, 4 / 5),
        ("department_share", ANN, P_CHEESE, 4 / 5),
        ("department_share", ANN, P_ROLL, 1 / 5),
        ("department_share", CID, P_ROLL, 2 / 3),  # bread and cake
        ("department_share", DEE, P_SPADE, 0),  # garden is not in the vocabulary
        ("department_count", ANN, P_CHEESE, math.log1p(4)),
        ("department_recent", ANN, P_CHEESE, math.log1p(2)),
        ("department_last", CID, P_ROLL, math.log1p(0)),
        ("department_last", DEE, P_SPADE, NAN),
        ("department_popularity", ANN, P_ROLL, math.log(4 / 8)),
        ("department_standing", ANN, P_ROLL, math.log(2 / 4)),
        ("department_price", CID, P_ROLL, math.log(0.61) - (math.log(2.51) + math.log(9.01)) / 2),
        ("sources", EVE, P_MILK, 1),
        ("popular_proposed", EVE, P_MILK, 1),
        ("own_proposed", ANN, P_MILK, 1),
        ("own_proposed", ANN, P_ROLL, 0),
        ("popular_place", EVE, P_ROLL, math.log1p(2)),
        ("own_place", ANN, P_CHEESE, math.log1p(2)),
    ],
)
def test_a_feature_has_the_value_counted_by_hand(described: Described, name: str, user: int, item: int, expected: float) -> None:
    value = described(name, user, item)
    assert close(value, expected), f"{name}: {value}, expected {expected}"


def test_a_source_score_is_standardised_within_the_user(described: Described) -> None:
    scores = [described("own_score", ANN, item) for item in (P_MILK, P_CHEESE, P_BREAD)]
    expected = (np.array(scores) - np.mean(scores)) / np.std(scores)
    np.testing.assert_allclose([described("own_z", ANN, item) for item in (P_MILK, P_CHEESE, P_BREAD)], expected, rtol=1e-5)
    assert math.isnan(described("own_z", ANN, P_ROLL))


# ---- codes


def test_codes_are_those_of_the_item_then_of_the_user(described: Described) -> None:
    assert described.codes(ANN, P_MILK) == [2, 1]
    assert described.codes(CID, P_ROLL) == [1, 2]


def test_an_unseen_category_and_an_absent_one_have_code_0(described: Described) -> None:
    assert described.codes(ANN, P_SPADE) == [0, 1]  # garden
    assert described.codes(EVE, P_MILK) == [2, 0]  # 90s
    assert described.codes(BOB, P_MILK) == [2, 0]  # null


# ---- users without history


def test_a_user_without_history_has_features_and_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, found, inputs = run(shops.whole().select(EVE, EVE + 1))
    assert len(found) == 5
    assert not np.isinf(inputs.dense).any()
    by_name = dict(zip(inputs.names, inputs.dense.T, strict=True))
    assert by_name["user_purchases"].tolist() == by_name["own_count"].tolist() == by_name["department_share"].tolist() == [0] * 5
    for name in ("user_rest", "user_age", "user_basket", "user_repeats", "user_price", "own_last", "own_due", "department_last"):
        assert np.isnan(by_name[name]).all(), name


def test_no_users_give_one_batch_without_rows() -> None:
    _, found, inputs = run(shops.whole().select(2, 2))
    assert (len(found), len(inputs.dense)) == (0, 0)
    assert inputs.dense.shape[1] == len(inputs.names)  # tables and sums keep their columns


# ---- nothing from after the cutoff


LATER = st.builds(
    Event,
    user=st.integers(0, 4),
    item=st.integers(0, 6),
    day=st.one_of(st.just(100.0), st.floats(100, 500)),
    price=st.floats(0, 100),
    quantity=st.just(1.0),
    wanted=st.booleans(),
    look=st.sampled_from([-1, 1, 2]),
)


@given(st.lists(LATER, min_size=1, max_size=12))
def test_no_event_from_the_cutoff_on_changes_any_feature(later: list[Event]) -> None:
    def inputs(events: list[Event]) -> ModelInputs:
        histories = shops.group(events)  # signals are fitted on the later events too
        return run(histories, Featurizer(shops.settings(), shops.catalog(), shops.fit(histories), shops.VOCABULARIES, shops.TONIGHT))[2]

    assert equal(inputs([*shops.HISTORY, *later]), inputs(shops.HISTORY))


def test_an_event_just_before_the_cutoff_changes_features() -> None:
    def inputs(day: float) -> ModelInputs:
        return run(shops.group([*shops.HISTORY, Event(EVE, 0, day)]))[2]

    assert not equal(inputs(99.999), inputs(100.0))


# ---- batches


def rows_of(found: Candidates, inputs: ModelInputs, user: int) -> np.ndarray:
    return inputs.dense[found.user_row == user]


def test_features_do_not_depend_on_the_other_users_of_the_batch(described: Described) -> None:
    for user in range(5):
        _, found, alone = run(shops.whole().select(user, user + 1))
        together = rows_of(described.found, described.inputs, user)
        assert rows_of(found, alone, 0).tobytes() == together.tobytes()
        assert alone.codes.tolist() == described.inputs.codes[described.found.user_row == user].tolist()


def test_a_shard_is_described_batch_by_batch(described: Described, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "BATCH", 2)
    batches = list(shops.featurizer()(shops.whole()))
    assert [len(users) for _, users, _, _ in batches] == [2, 2, 1]
    assert [batch.users.column("user_id").to_pylist() for batch, *_ in batches] == [["ann", "bob"], ["cid", "dee"], ["eve"]]
    assert np.concatenate([inputs.dense for *_, inputs in batches]).tobytes() == described.inputs.dense.tobytes()


def test_a_batch_keeps_the_events_after_the_cutoff_and_its_users_do_not() -> None:
    ((batch, users, _, _),) = list(shops.featurizer()(shops.whole()))
    assert len(batch.item) == len(shops.BEFORE) + len(shops.HISTORY) + len(shops.AFTER)
    assert len(users.history.item) == len(shops.HISTORY)


def test_rows_without_candidates_have_features_of_no_rows() -> None:
    users = shops.batch()
    nothing = candidates.propose(users, [(sources.Popular(), 9)], per_user=9).keep(np.zeros(25, bool))
    inputs = candidate_features.candidate_features(nothing, users, features=shops.settings().features, vocabularies=shops.VOCABULARIES)
    assert inputs.dense.shape == (0, len(inputs.names))
    assert inputs.codes.shape == (0, 2)


@pytest.mark.parametrize(("most", "columns"), [(0, ()), (1, ("age",)), (2, ("department", "age"))])
def test_a_column_of_many_words_shapes_features_but_is_not_embedded(described: Described, most: int, columns: tuple[str, ...]) -> None:
    few = shops.settings().features.model_copy(update={"max_embedded": most})
    words = shops.VOCABULARIES | {"age": ("30s",)}
    assert candidate_features.embedded(few, words) == columns
    inputs = candidate_features.candidate_features(described.found, described.users, features=few, vocabularies=words)
    assert inputs.dense.tobytes() == described.inputs.dense.tobytes()
    wide = candidate_features.candidate_features(
        described.found, described.users, features=shops.settings().features, vocabularies=words
    )
    assert inputs.codes.tolist() == wide.codes[:, [("department", "age").index(name) for name in columns]].tolist()


def test_a_column_of_numbers_in_chunks_is_read_by_item() -> None:
    table = shops.catalog().table
    chunked = Catalog(pa.concat_tables([table.slice(0, 2), table.slice(2)]))
    whole = signals.fit(
        [(shops.whole(), np.ones(5, bool))],
        items=7,
        start=START,
        cutoff=CUTOFF,
        settings=shops.settings().signals,
        als=shops.ALS,
        seed=3,
    )
    in_chunks = Featurizer(shops.settings(), chunked, whole, shops.VOCABULARIES, shops.TONIGHT)
    assert equal(run(shops.whole(), in_chunks)[2], run(shops.whole())[2])


def test_a_feature_with_the_name_of_a_computed_one_stands_beside_it() -> None:
    plain = run(shops.whole())[2]
    named = ("own_count", "department_share")
    items = shops.catalog(**{name: pa.array([float(code) for code in range(7)], pa.float32()) for name in named})
    changed = shops.settings(features=config.Features(item_categorical=("department",), user_categorical=("age",), item_numeric=named))
    users, found, inputs = run(shops.whole(), shops.featurizer(changed, items))
    for name in named:
        ours, same = (one.dense[:, one.names.index(name)] for one in (inputs, plain))
        assert ours.tobytes() == same.tobytes()
        assert inputs.dense[:, inputs.names.index(f"{name} of items")].tolist() == users.signals.items[found.item].tolist()
