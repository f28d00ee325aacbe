import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import log2
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories
from recsys.evaluation import backtest, bootstrap, reliability
from recsys.hashing import stable_hash
from recsys.ranking.recommend import ScoredUsers
from recsys.retrieval import candidates, sources
from recsys.schema import DAY_US
from tests import shops
from tests.shops import AFTER, ANN, BEFORE, BOB, BREAD, CAKE, CHEESE, CUTOFF, DEE, END, HISTORY, MILK, NOTHING, ROLL, SPADE, Event

SEED = 5


def batches(events: Histories) -> Iterator[ScoredUsers]:
    """The shop's users with raw outputs that put spade first, then roll, bread, cheese and milk."""
    for histories, users, found, _ in shops.featurizer(events=events)(events):
        raw = found.item.astype(np.float32)
        yield ScoredUsers(histories, users, found, raw, np.diff(users.matrix.indptr) > 0)


def sums(events: Histories, *, start: int = CUTOFF, end: int = END) -> dict[str, np.ndarray]:
    return backtest.add([backtest.evaluate(batch, start=start, end=end, seed=SEED) for batch in batches(events)])


def summarised(events: Histories, *, start: int = CUTOFF, end: int = END) -> Mapping[str, Any]:
    return backtest.summary(sums(events, start=start, end=end))


@pytest.fixture(scope="module")
def summary() -> Mapping[str, Any]:
    return summarised(shops.whole())


def figures(summary: Mapping[str, Any], model: str, name: str) -> list[float]:
    """NDCG, recall, hit rate and MAP at 10."""
    return [summary["models"][model][name][f"{metric}@10"] for metric in ("ndcg", "recall", "hitrate", "map")]


def ideal(relevant: int) -> float:
    return sum(1 / log2(rank + 1) for rank in range(1, relevant + 1))


def test_a_shard_without_users_counts_nobody() -> None:
    nobody = shops.whole().select(1, 1)
    assert summarised(nobody)["users"] == {"all": 0, "new": 0}
    assert sums(nobody).keys() == sums(shops.whole()).keys()
    (batch,) = batches(nobody)
    assert reliability.summary(reliability.count(batch, chance=lambda raw, _: raw, end=END)) is None


# ---- what users wanted


def relevant(found: backtest.Truth) -> list[list[int]]:
    return [found.items[start:stop].tolist() for start, stop in zip(found.offsets, found.offsets[1:], strict=False)]


def test_relevant_is_what_was_wanted_in_the_horizon() -> None:
    found = backtest.truth(shops.whole(), start=CUTOFF, end=END, new=False)
    assert relevant(found) == [[BREAD, ROLL, NOTHING], [CHEESE], [SPADE], [BREAD], [BREAD]]
    assert found.count.tolist() == [3, 1, 1, 1, 1]


def test_new_is_what_was_never_bought_before_even_before_the_history() -> None:
    found = backtest.truth(shops.whole(), start=CUTOFF, end=END, new=True)
    # Ann bought bread in the history and her sixth item before it; bob only viewed cheese; dee bought bread before the history.
    assert relevant(found) == [[ROLL], [CHEESE], [SPADE], [], [BREAD]]


def test_relevant_items_are_distinct_and_ascending() -> None:
    bought = [Event(BOB, item, 100.0 + hour) for hour, item in enumerate([SPADE, MILK, SPADE, ROLL, MILK])]
    assert relevant(backtest.truth(shops.group(bought), start=CUTOFF, end=END, new=False))[BOB] == [MILK, ROLL, SPADE]


# ---- the best baseline


def test_the_best_baseline_of_a_slice_has_the_highest_ndcg_and_the_models_paired_difference_from_it(
    summary: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backtest.best_baselines(summary) == {}  # four users show nothing
    monkeypatch.setattr(backtest, "LEAST_USERS", 3)
    found = backtest.best_baselines(summary)
    assert list(found) == ["all", "new"]
    for name, one in found.items():
        models = {model: summary["models"][model][name]["ndcg@10"] for model in backtest.MODELS[1:]}
        assert models[one["baseline"]] == max(models.values())
        assert one["difference"] == pytest.approx(summary["models"][backtest.OURS][name]["ndcg@10"] - max(models.values()))
        assert one["low"] <= one["difference"] <= one["high"]
    monkeypatch.setattr(backtest, "LEAST_USERS", 4)
    assert list(backtest.best_baselines(summary)) == ["all"]


@pytest.mark.parametrize("baseline", list(backtest.BASELINES))
def test_lists_in_a_baselines_order_are_its_own_lists_as_far_as_candidates_go(baseline: str) -> None:
    for batch in batches(shops.whole()):
        users, item = batch.users, batch.candidates.item
        score = backtest.BASELINES[baseline].scores(users, batch.candidates.user_row, item.astype(np.int64))
        made = backtest.in_order_of(baseline, batch)
        assert not made.modelled.any()
        for user in range(len(users)):
            mine = np.flatnonzero(batch.candidates.user_row == user)
            if not batch.modelled[user]:
                assert made.raw[mine].tolist() == batch.raw[mine].tolist()
                continue
            known = sorted((one for one in mine if not np.isnan(score[one])), key=lambda one: (-score[one], -batch.raw[one], item[one]))
            others = sorted((one for one in mine if np.isnan(score[one])), key=lambda one: (-batch.raw[one], item[one]))
            assert sorted(mine, key=lambda one: -made.raw[one]) == known + others


# ---- numbers by hand


def test_users_count_who_have_history_and_a_relevant_item(summary: Mapping[str, Any]) -> None:
    # Not eve, who has no history; for new items not dee, who bought hers before.
    assert summary["users"] == {"all": 4, "new": 3}


def test_own_lists_what_the_user_bought_most_often(summary: Mapping[str, Any]) -> None:
    # Ann's list is milk, bread, cheese: one hit, at rank 2, of 3 relevant. Nobody else bought again.
    assert figures(summary, "own", "all") == pytest.approx([1 / log2(3) / ideal(3) / 4, 1 / 3 / 4, 1 / 4, 1 / 2 / 3 / 4])
    assert figures(summary, "own", "new") == [0, 0, 0, 0]


def test_popular_lists_the_same_for_all(summary: Mapping[str, Any]) -> None:
    # By buyers: milk, bread, cheese, roll, spade; cake is not available. Ann hits at 2 and 4, bob at 3, cid at 5, dee at 2.
    assert figures(summary, "popular", "all") == pytest.approx(
        [
            ((1 / log2(3) + 1 / log2(5)) / ideal(3) + 1 / log2(4) + 1 / log2(6) + 1 / log2(3)) / 4,
            (2 / 3 + 1 + 1 + 1) / 4,
            4 / 4,
            ((1 / 2 + 2 / 4) / 3 + 1 / 3 + 1 / 5 + 1 / 2) / 4,
        ]
    )


def test_a_list_of_new_items_leaves_out_what_was_bought_before(summary: Mapping[str, Any]) -> None:
    # Ann's is roll, spade: 1. Bob's is bread, cheese, spade: 2. Cid's is cheese, roll, spade: 3.
    assert figures(summary, "popular", "new") == pytest.approx([(1 + 1 / log2(3) + 1 / log2(4)) / 3, 1, 1, (1 + 1 / 2 + 1 / 3) / 3])


def test_popular_of_a_window_lists_only_what_was_bought_in_it(summary: Mapping[str, Any]) -> None:
    # Milk, bread, roll. Ann hits at 2 and 3, dee at 2.
    expected = [
        ((1 / log2(3) + 1 / log2(4)) / ideal(3) + 1 / log2(3)) / 4,
        (2 / 3 + 1) / 4,
        2 / 4,
        ((1 / 2 + 2 / 3) / 3 + 1 / 2) / 4,
    ]
    assert figures(summary, "popular_7d", "all") == pytest.approx(expected)
    assert figures(summary, "popular_28d", "all") == pytest.approx(expected)


def test_the_windows_of_popularity_are_told_apart() -> None:
    events = [*HISTORY, *[Event(user, SPADE, 75.5) for user in range(5)], Event(ANN, SPADE, 105.5)]
    found = summarised(shops.group(events))["models"]
    assert found["popular_28d"]["all"]["ndcg@10"] == 1  # spade was bought most in 28 days, not at all in 7
    assert found["popular_7d"]["all"]["ndcg@10"] == 0


def test_own_then_popular_begins_with_all_that_is_the_user_s_own() -> None:
    found = summarised(shops.group([*HISTORY, Event(DEE, SPADE, 105.5)]))["models"]["own_then_popular"]
    assert found["all"]["ndcg@10"] == 1  # spade, which dee bought once; milk had three buyers


def test_own_then_popular_fills_up_with_what_is_popular(summary: Mapping[str, Any]) -> None:
    # Ann: milk, bread, cheese, roll, spade: 2 and 4. Bob: roll, milk, bread, cheese: 4. Cid: milk, bread, roll, cheese, spade: 5.
    # Dee: spade, milk, bread: 3.
    assert figures(summary, "own_then_popular", "all") == pytest.approx(
        [
            ((1 / log2(3) + 1 / log2(5)) / ideal(3) + 1 / log2(5) + 1 / log2(6) + 1 / log2(4)) / 4,
            (2 / 3 + 1 + 1 + 1) / 4,
            1,
            ((1 / 2 + 2 / 4) / 3 + 1 / 4 + 1 / 5 + 1 / 3) / 4,
        ]
    )


def test_the_model_lists_its_candidates_by_raw_output(summary: Mapping[str, Any]) -> None:
    # Spade, roll, bread, cheese, milk. Ann hits at 2 and 3, bob at 4, cid at 1, dee at 3.
    assert figures(summary, "mlp", "all") == pytest.approx(
        [
            ((1 / log2(3) + 1 / log2(4)) / ideal(3) + 1 / log2(5) + 1 + 1 / log2(4)) / 4,
            (2 / 3 + 1 + 1 + 1) / 4,
            1,
            ((1 / 2 + 2 / 3) / 3 + 1 / 4 + 1 + 1 / 3) / 4,
        ]
    )
    # New items alone: ann's spade, roll: 2. Bob's spade, bread, cheese: 3. Cid's spade: 1.
    assert figures(summary, "mlp", "new") == pytest.approx([(1 / log2(3) + 1 / log2(4) + 1) / 3, 1, 1, (1 / 2 + 1 / 3 + 1) / 3])


def test_neighbours_and_factors_are_their_sources_alone() -> None:
    (batch,) = batches(shops.whole())
    found = summarised(shops.whole())["models"]
    for source in (sources.Neighbours(), sources.Factors()):
        alone = candidates.propose(batch.users, [(source, 20)], per_user=20)
        expected = 0.0
        for user, wanted in ((ANN, [BREAD, ROLL, NOTHING]), (1, [CHEESE]), (2, [SPADE]), (3, [BREAD])):
            codes = [int(batch.users.signals.items[item]) for item in shops.items_of(alone, user, source.name)]
            expected += sum(code in wanted for code in codes) / len(wanted)
        assert found[source.name]["all"]["recall@10"] == pytest.approx(expected / 4)
        assert found[source.name]["all"]["recall@10"] > 0


def test_metrics_are_at_10_and_at_20() -> None:
    found = summarised(shops.whole())["models"]
    assert list(found) == list(backtest.MODELS)
    for model in found.values():
        assert list(model) == ["all", "new"]
        for name in ("all", "new"):
            assert sorted(model[name]) == sorted(f"{metric}@{k}" for metric in ("ndcg", "recall", "hitrate", "map") for k in (10, 20))


def test_an_item_that_is_not_available_is_in_no_list() -> None:
    events = shops.group([*HISTORY, *[Event(user, CAKE, 101.5) for user in range(4)]])
    found = summarised(events)
    assert found["users"] == {"all": 4, "new": 3}  # cid had cake before
    assert {value for model in found["models"].values() for name in ("all", "new") for value in model[name].values()} == {0.0}


# ---- intervals


def test_intervals_are_those_of_users_written_out_as_often_as_drawn(summary: Mapping[str, Any]) -> None:
    # Recall at 10 over all items of ann, bob, cid and dee, whom the intervals' resamples draw by their ids.
    ours, own = np.array([2 / 3, 1, 1, 1]), np.array([1 / 3, 0, 0, 0])
    drawn = bootstrap.draws(stable_hash(np.array(["ann", "bob", "cid", "dee"], object)), seed=SEED)[1:].astype(int)
    users = [np.repeat(np.arange(4), times) for times in drawn if times.any()]
    difference = summary["differences"]["own"]["all"]["recall@10"]
    found = [summary["intervals"][model]["all"]["recall@10"] for model in ("mlp", "own")]
    for interval, values in zip([*found, difference["interval"]], (ours, own, ours - own), strict=True):
        expected = np.percentile([values[mine].mean() for mine in users], [2.5, 97.5])
        assert interval == pytest.approx(expected, abs=2**-23)
    assert difference["mean"] == pytest.approx((ours - own).mean(), abs=2**-23)


def test_every_mean_lies_in_its_interval(summary: Mapping[str, Any]) -> None:
    assert list(summary["intervals"]) == list(backtest.MODELS)
    assert list(summary["differences"]) == list(backtest.MODELS[1:])
    for model, parts in summary["models"].items():
        for name, values in parts.items():
            for metric, value in values.items():
                low, high = summary["intervals"][model][name][metric]
                assert low <= value <= high
                if model != backtest.OURS:
                    difference = summary["differences"][model][name][metric]
                    assert difference["mean"] == pytest.approx(summary["models"]["mlp"][name][metric] - value)
                    assert difference["interval"][0] <= difference["mean"] <= difference["interval"][1]


def test_two_models_with_one_list_differ_by_exactly_nothing() -> None:
    total: dict[str, np.ndarray] = {}
    for batch in batches(shops.whole()):
        popular = replace(batch, raw=batch.users.signals.buyers[-1][batch.candidates.item])
        total = backtest.add([total, backtest.evaluate(popular, start=CUTOFF, end=END, seed=SEED)])
    found = backtest.summary(total)
    assert found["models"]["mlp"] == found["models"]["popular"]
    for values in found["differences"]["popular"].values():
        assert all(difference == {"mean": 0.0, "interval": [0.0, 0.0]} for difference in values.values())
    assert found["intervals"]["popular"]["all"]["map@10"] != [0.0, 0.0]


# ---- candidates


def test_recall_of_the_candidates_by_source(summary: Mapping[str, Any]) -> None:
    found = summary["candidates"]
    assert list(found["recall"]) == ["own", "neighbours", "factors", "category", "popular", "union"]
    assert found["recall"]["own"] == pytest.approx(1 / 3 / 4)  # ann's bread
    assert found["recall"]["category"] == pytest.approx(2 / 3 / 4)  # ann's bread and roll
    assert found["recall"]["popular"] == found["recall"]["union"] == pytest.approx((2 / 3 + 1 + 1 + 1) / 4)
    assert found["per_user"] == 5


# ---- sums


def test_two_batches_add_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sums(shops.whole())
    monkeypatch.setattr(candidates, "BATCH", 3)
    assert len(list(batches(shops.whole()))) == 2
    parts = sums(shops.whole())
    assert parts.keys() == whole.keys()
    assert all((parts[name] == whole[name]).all() for name in whole)  # to the last bit, in all resamples
    assert whole["all users"][0] == 4
    assert len(np.unique(whole["all mlp ndcg@10"])) > 100


def test_sums_of_sums_are_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "BATCH", 1)
    one, *others = [backtest.evaluate(batch, start=CUTOFF, end=END, seed=SEED) for batch in batches(shops.whole())]
    assert len(others) == 4
    together = backtest.add([one, *others])
    again = backtest.add([one, backtest.add([*others])])
    assert all((again[name] == together[name]).all() for name in together)


def test_without_users_to_count_every_mean_is_null() -> None:
    found = summarised(shops.whole(), start=END + DAY_US, end=END + 2 * DAY_US)
    assert found["users"] == {"all": 0, "new": 0}
    assert {value for model in found["models"].values() for name in ("all", "new") for value in model[name].values()} == {None}
    assert set(found["candidates"]["recall"].values()) == {None}
    assert found["candidates"]["per_user"] is None
    assert found["intervals"]["mlp"]["all"]["ndcg@10"] is None
    assert found["differences"]["own"]["new"]["ndcg@10"] == {"mean": None, "interval": None}


def test_no_batches_at_all_count_nobody() -> None:
    found = backtest.summary(backtest.add([]))
    assert found["users"] == {"all": 0, "new": 0}


def test_what_is_bought_after_the_horizon_or_only_viewed_changes_nothing(summary: Mapping[str, Any]) -> None:
    more = [Event(BOB, SPADE, 110.0), Event(ANN, MILK, 105.5, wanted=False)]
    assert summarised(shops.group([*BEFORE, *HISTORY, *AFTER, *more])) == summary


# ---- rules


def under(toml: str, items: Catalog, after: list[Event], *, diversity: float = 0.0) -> Mapping[str, Any]:
    """The summary of the shop under rules, where users bought other things after the date."""
    settings = shops.settings().model_dump() | {"rules": tomllib.loads(toml)["rules"]}
    events = shops.group([*HISTORY, *after])
    found: list[Mapping[str, np.ndarray]] = []
    for histories, users, proposed, _ in shops.featurizer(config.Settings.model_validate(settings), items, events)(events):
        raw = -proposed.item.astype(np.float32)  # milk, cheese, bread, roll, spade
        batch = ScoredUsers(histories, users, proposed, raw, np.diff(users.matrix.indptr) > 0)
        found.append(backtest.evaluate(batch, start=CUTOFF, end=END, seed=0, diversity=diversity))
    return backtest.summary(backtest.add(found))


def hit_rates(found: Mapping[str, Any]) -> dict[str, float]:
    return {model: figures["all"]["hitrate@10"] for model, figures in found["models"].items()}


def test_what_rules_forbid_is_in_no_list_of_any_model() -> None:
    after = [Event(user, ROLL, 101.5) for user in range(4)]
    free = hit_rates(under("rules = []", shops.catalog(), after))
    assert min(free.values()) > 0
    never = '[[rules]]\nname = "no roll"\nkind = "range"\ncolumn = "size"\nmin = 0.2'
    assert set(hit_rates(under(never, shops.catalog(), after)).values()) == {0.0}
    # Bob, who bought roll three days before, is one of four.
    lately = '[[rules]]\nname = "lately"\nkind = "bought"\ndays = 3'
    some = hit_rates(under(lately, shops.catalog(), after))
    assert some["own"] == 0
    assert some["popular"] == some["mlp"] == 3 / 4


def test_caps_cut_the_lists_of_every_model() -> None:
    one = '[[rules]]\nname = "one"\nkind = "cap"\ncolumn = "seller"\nat_most = 1'
    items = shops.catalog(seller=pa.array(["we", "we", None, "we", "we", "we", "we"]))
    after = [Event(user, item, 101.5) for user in range(4) for item in (MILK, CHEESE, BREAD, ROLL, SPADE)]
    for model, figures in under(one, items, after)["models"].items():
        # Bread has no seller; of the others each list holds one, so that it has two rows, or one, of five that were bought.
        assert figures["all"]["recall@10"] <= 2 / 5, model
        assert figures["all"]["ndcg@10"] > 0, model
    found = under(one, items, [Event(user, ROLL, 101.5) for user in range(4)])["models"]
    assert found["mlp"]["all"]["hitrate@10"] == found["popular"]["all"]["hitrate@10"] == 0  # milk comes first
    assert found["own"]["all"]["hitrate@10"] == 1 / 4  # bob's roll


def test_diversity_is_of_the_model_s_lists_alone() -> None:
    after = [Event(user, item, 101.5) for user in range(4) for item in (CHEESE, ROLL)]
    plain, diverse = (under("rules = []", shops.catalog(), after, diversity=dial)["models"] for dial in (0.0, 0.95))
    assert plain["mlp"] != diverse["mlp"]
    assert {name: figures for name, figures in plain.items() if name != "mlp"} == {
        name: figures for name, figures in diverse.items() if name != "mlp"
    }


FLOOR = '[[rules]]\nname = "ours"\nkind = "exposure"\ncolumn = "seller"\nvalues = ["us"]\nat_least = 1'


def test_exposures_hold_for_every_model_and_what_they_take_from_ours_is_told() -> None:
    items = shops.catalog(seller=pa.array(["we", "we", "us", "us", "we", "we", "we"]))
    after = [Event(user, MILK, 101.5) for user in range(4)]
    free, ruled = under("rules = []", items, after), under(FLOOR, items, after)
    assert free["exposures"] == {}
    # Milk comes first with the model; under the rule bread and roll do, as all candidates have both, and milk is third.
    assert free["models"]["mlp"]["all"]["ndcg@10"] == 1
    assert ruled["models"]["mlp"]["all"]["ndcg@10"] == pytest.approx(1 / log2(4))
    assert ruled["exposures"]["all"]["price"] == pytest.approx(1 - 1 / log2(4))
    low, high = ruled["exposures"]["all"]["interval"]
    assert low == high == pytest.approx(1 - 1 / log2(4))
    assert free["models"]["popular"]["all"]["ndcg@10"] == 1  # most bought it
    assert ruled["models"]["popular"]["all"]["ndcg@10"] == pytest.approx(1 / log2(4))


def test_a_ceiling_of_nothing_is_a_rule_against_the_items() -> None:
    items = shops.catalog(seller=pa.array(["we", "we", "us", "us", "we", "we", "we"]))
    after = [Event(user, BREAD, 101.5) for user in range(4)]
    found = under(FLOOR.replace("at_least = 1", "at_most = 0"), items, after)
    assert set(hit_rates(found).values()) == {0.0}
    assert found["exposures"]["all"]["price"] > 0
