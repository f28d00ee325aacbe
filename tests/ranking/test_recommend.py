from collections.abc import Callable
from datetime import date
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from recsys import config
from recsys.data.histories import Histories
from recsys.errors import BundleError
from recsys.features.candidate_features import Featurizer
from recsys.ranking import recommend, table_rows
from recsys.ranking.calibration import Calibration
from recsys.ranking.scorer import Scorer, probabilities
from recsys.ranking.table_rows import Stamp
from recsys.retrieval import candidates
from recsys.schema import check, recommendations_schema
from tests import shops

# A model that likes what is dear: spade 20, bread 2.5, milk 1.12, roll 0.6; it knows no price of cheese.
DEAR = "item_price"


Chance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Dear:
    """A scorer of one feature."""

    def __init__(self, featurizer: Featurizer) -> None:
        _, _, _, inputs = next(iter(featurizer(shops.whole())))
        self.column = inputs.names.index(DEAR)
        self.bundle = SimpleNamespace(folder="model", spec=SimpleNamespace(dense=inputs.names))

    def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        assert len(dense) == len(codes)
        return np.nan_to_num(dense[:, self.column], nan=-9.0)


def own(raw: np.ndarray, purchases: np.ndarray) -> np.ndarray:
    """Of a bundle without a calibration."""
    return probabilities(raw)


def table(k: int = 3, events: Histories | None = None, settings: config.Settings | None = None, chance: Chance = own) -> pa.Table:
    featurizer = shops.featurizer(settings)
    scorer = cast(Scorer, Dear(featurizer))
    stamp = Stamp(date(1970, 4, 11), "m7", "r9")
    parts = [
        table_rows.recommendations(batch, recommend.listed(batch, config.Rank(k=k)).ranked, stamp, chance=chance)
        for batch in recommend.score_users(events or shops.whole(), featurizer, scorer)
    ]
    return pa.concat_tables(parts)


def rows(found: pa.Table, user: str, column: str) -> list[Any]:
    pairs = zip(found.column("user_id").to_pylist(), found.column(column).to_pylist(), strict=True)
    return [value for who, value in pairs if who == user]


def test_rows_follow_the_schema() -> None:
    found = check(table(), recommendations_schema(pa.string(), pa.int64()), where="recommendations")
    assert found.num_rows == 5 * 3
    assert set(found.column("as_of").to_pylist()) == {date(1970, 4, 11)}
    assert set(found.column("model_version").to_pylist()) == {"m7"}
    assert set(found.column("run_id").to_pylist()) == {"r9"}


def test_ids_keep_their_types() -> None:
    users = shops.users().set_column(0, "user_id", pa.array([3, 5, 8, 13, 21], pa.int64()))
    found = table(events=shops.group([*shops.BEFORE, *shops.HISTORY], users))
    assert found.schema.equals(recommendations_schema(pa.int64(), pa.int64()))
    assert found.column("user_id").unique().to_pylist() == [3, 5, 8, 13, 21]


def test_each_user_has_the_k_best_by_raw_output() -> None:
    found = table()
    for user in ("ann", "bob", "cid", "dee"):
        assert rows(found, user, "item_id") == [70, 30, 10]
        assert rows(found, user, "rank") == [1, 2, 3]


def test_a_list_is_shorter_than_k_where_there_are_too_few_candidates() -> None:
    found = table(k=9)
    assert rows(found, "ann", "rank") == [1, 2, 3, 4, 5]
    assert 50 not in found.column("item_id").to_pylist()  # cake is not available


def test_the_score_is_the_probability_of_the_raw_output() -> None:
    prices = [20.0, 2.5, 1.12]
    raw = np.log(np.array(prices) + 0.01)
    assert rows(table(), "cid", "score") == pytest.approx((1 / (1 + np.exp(-raw))).tolist(), rel=1e-5)


def test_what_the_calibration_ties_stays_in_the_order_of_raw_outputs() -> None:
    plain = table(k=5)
    # every item has one chance, but for spade
    tied = table(k=5, chance=Calibration("isotonic", knots=(-9.0, 2.0, 2.5), chances=(0.25, 0.25, 0.5)))
    assert tied.drop_columns(["score"]).equals(plain.drop_columns(["score"]))
    assert rows(tied, "cid", "item_id")[:3] == [70, 30, 10]
    assert rows(tied, "cid", "score") == [0.5, 0.25, 0.25, 0.25, 0.25]
    assert rows(tied, "eve", "score") == rows(plain, "eve", "score")
    assert set(rows(tied, "eve", "score")) == {None}


def test_a_score_is_of_the_row_s_own_user_s_purchases() -> None:
    scored = table(chance=lambda raw, purchases: (purchases / 100).astype(np.float32))  # noqa: ARG005
    bought = shops.batch().activity
    assert len(set(bought.tolist())) > 2
    for number, user in enumerate(shops.users()["user_id"].to_pylist()):
        if bought[number]:
            assert set(rows(scored, user, "score")) == {np.float32(bought[number] / 100)}


def test_a_user_without_purchases_gets_what_is_popular_without_a_score() -> None:
    found = table()
    assert rows(found, "eve", "item_id") == [10, 30, 40]  # milk, bread, roll, whatever the model says
    assert rows(found, "eve", "rank") == [1, 2, 3]
    assert rows(found, "eve", "score") == [None, None, None]
    assert rows(found, "eve", "source") == ["popular"] * 3
    assert rows(found, "eve", "sources") == [["popular"]] * 3
    assert rows(found, "eve", "reason_kind") == ["popular"] * 3
    assert found.column("score").null_count == 3


def test_a_reason_names_the_item_it_rests_on_by_id() -> None:
    settings = shops.settings(candidates=config.Candidates(own=0, factors=0, category=0, popular=1))
    found = table(settings=settings)
    assert rows(found, "eve", "source") == ["popular"]
    found = found.filter(pc.equal(found.column("source"), "neighbours"))
    bought = {"ann": {10, 20, 30}, "bob": {10, 40}, "cid": {10, 30, 50}, "dee": {70}}
    names = {10: "milk", 20: "cheese", 30: "bread", 40: "roll", 50: "cake", 70: "spade"}
    seen = zip(*(found.column(name).to_pylist() for name in ("user_id", "reason_item_id", "reason")), strict=True)
    for user, item, reason in seen:
        assert item in bought[user]
        assert reason == f"Goes with {names[item]}, which you bought."
    assert found.num_rows > 0


def test_only_a_reason_that_rests_on_an_item_names_one() -> None:
    found = table(k=9)
    pairs = zip(found.column("reason_kind").to_pylist(), found.column("reason_item_id").to_pylist(), strict=True)
    kinds = {"bought_before", "goes_with", "similar_to"}
    assert {(kind in kinds, item is not None) for kind, item in pairs} == {(True, True), (False, False)}


def test_only_a_reason_of_a_category_names_one() -> None:
    settings = shops.settings(candidates=config.Candidates(own=0, factors=0, neighbours=0, popular=1))
    found = table(k=9, settings=settings)
    pairs = list(zip(found.column("reason_kind").to_pylist(), found.column("reason_category").to_pylist(), strict=True))
    assert {category for kind, category in pairs if kind == "popular_in"} == {"bakery", "dairy"}
    assert {category for kind, category in pairs if kind not in ("popular_in", "new_in")} == {None}


def test_users_batched_otherwise_get_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = table(k=5)
    monkeypatch.setattr(candidates, "BATCH", 2)
    assert whole.equals(table(k=5))


def test_a_model_that_was_fed_other_columns_is_refused() -> None:
    featurizer = shops.featurizer()
    other = Dear(shops.featurizer(shops.settings(features=config.Features(item_numeric=("size",), user_numeric=("income",)))))
    with pytest.raises(BundleError, match=r"^model: made by other code: category_place differs from today's inputs\. Train again\.$"):
        next(recommend.score_users(shops.whole(), featurizer, cast(Scorer, other)))
    other.bundle.spec.dense = Dear(featurizer).bundle.spec.dense[::-1]
    with pytest.raises(BundleError, match="the order of columns differs"):
        next(recommend.score_users(shops.whole(), featurizer, cast(Scorer, other)))


@pytest.mark.parametrize("rank", [config.Rank(), config.Rank(allow_repeats=False), config.Rank(diversity=0.5)])
def test_a_shard_without_users_gives_no_rows_but_all_columns(rank: config.Rank) -> None:
    settings = shops.settings(rank=rank)
    featurizer = shops.featurizer(settings)
    scorer = cast(Scorer, Dear(featurizer))
    stamp = Stamp(date(2024, 1, 1), "model", "run")
    tables: list[pa.Table] = []
    for histories in (shops.whole(), shops.whole().select(1, 1)):
        for batch in recommend.score_users(histories, featurizer, scorer):
            made = recommend.listed(batch, rank)
            tables.append(table_rows.recommendations(batch, made.ranked, stamp, chance=lambda raw, _: raw))
    some, none = tables
    assert none.num_rows == 0
    assert none.schema == some.schema
    assert made.short == {}
    assert set(made.dropped.values()) == {0}
    ((_, _, candidates, inputs),) = featurizer(shops.whole().select(1, 1))
    assert (len(candidates), inputs.dense.shape) == (0, (0, len(inputs.names)))


def test_who_only_looked_at_things_gets_the_model_s_list() -> None:
    settings = shops.with_looks()
    before = table(settings=settings)
    assert set(rows(before, "eve", "score")) == {None}  # nothing is known of her
    looks = [shops.Event(shops.EVE, item, 95.5, wanted=False) for item in (shops.MILK, shops.ROLL)]
    after = table(settings=settings, events=shops.group([*shops.BEFORE, *shops.HISTORY, *looks, *shops.AFTER]))
    scores = rows(after, "eve", "score")
    assert None not in scores
    assert scores == sorted(scores, reverse=True)
    assert "looked_at" in rows(after, "eve", "reason_kind")
    others = pc.not_equal(before.column("user_id"), "eve")
    assert after.filter(pc.not_equal(after.column("user_id"), "eve")).equals(before.filter(others))
