"""The gate: what a night's lists look like, and each check seen to act and to stay quiet."""

from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import Champion, Gate
from recsys.errors import ConfigError
from recsys.publishing.figures import ListFigures, drift, figures_of, overlap, score_shift
from recsys.publishing.gate import NAMES, NOT_MEASURED, Quality, Verdict, judge, overrides
from recsys.schema import ITEM_ID, RANK, SCORE, SOURCE, USER_ID

BEFORE = date(2026, 1, 1)
USERS, ITEMS, K = 200, 60, 5


def lists(
    *,
    users: int = USERS,
    first_item: int = 0,
    items: int = ITEMS,
    k: int = K,
    shift: float = 0.0,
    source: str = "own",
    same: bool = False,
    repeated: int = 0,
) -> pa.Table:
    """Lists of items that go round the catalog; scores spread by log-odds; every third row is from `popular`."""
    rows: list[dict[str, Any]] = []
    for user in [*range(users), *range(repeated)]:
        for rank in range(1, k + 1):
            place = rank - 1 if same else user * 7 + rank
            odds = -3.0 + (place % 20) / 10 + shift
            rows.append(
                {
                    USER_ID: user,
                    RANK: rank,
                    ITEM_ID: first_item + place % items,
                    SCORE: 1 / (1 + np.exp(-odds)),
                    SOURCE: "popular" if (user + rank) % 3 == 0 else source,
                }
            )
    types = [(USER_ID, pa.int64()), (RANK, pa.int32()), (ITEM_ID, pa.int64()), (SCORE, pa.float32()), (SOURCE, pa.string())]
    return pa.Table.from_pylist(rows, pa.schema(types))


def look(table: pa.Table, *, k: int = K, share: float = 1.0, pair_share: float = 1.0, rows: int = 64) -> ListFigures:
    return figures_of(table.to_batches(max_chunksize=rows), k=k, share=share, pair_share=pair_share)


def judged(
    table: pa.Table, *, before: pa.Table | None = None, limits: Gate | None = None, unknown: int = 0, quality: Quality = NOT_MEASURED
) -> Verdict:
    then = look(lists() if before is None else before)
    return judge(look(table), then, limits=limits or Gate(), night_before=BEFORE, unknown_items=unknown, quality=quality)


def names(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.failed()]


def test_the_same_lists_pass_every_check_with_the_figures_of_no_change():
    verdict = judged(lists())
    assert names(verdict) == []
    assert {check.name for check in verdict.checks} == set(NAMES) - {"group_gap", "group_gap_rise"}  # no groups are named
    figures = {check.name: check.value for check in verdict.checks}
    assert [figures[name] for name in ("rows", "users", "overlap", "items", "source_kept")] == [1.0] * 5
    assert [figures[name] for name in ("short_users", "concentration", "drift", "source_change", "repeated_users")] == [0.0] * 5


@pytest.mark.parametrize(
    ("bad", "failing"),
    [
        pytest.param({"users": 150}, {"rows", "users"}, id="users gone"),
        pytest.param({"users": 2 * USERS}, {"rows", "users"}, id="every user under two ids"),
        pytest.param({"k": 4}, {"short_users"}, id="short lists"),
        pytest.param({"repeated": 1}, {"repeated_users"}, id="a user twice"),
        pytest.param({"first_item": 60}, {"overlap"}, id="other items"),
        pytest.param({"items": 30}, {"overlap", "items"}, id="half the catalog"),
        pytest.param({"shift": 1.0}, {"drift", "score_shift"}, id="other scores"),
        pytest.param({"source": "popular"}, {"source_change", "source_kept"}, id="a source that is empty"),
        pytest.param({"same": True}, {"overlap", "items", "drift", "score_shift"}, id="the same list for all"),
    ],
)
def test_each_fault_fails_its_checks_alone(bad: dict[str, Any], failing: set[str]):
    assert set(names(judged(lists(**bad)))) == failing


def test_a_row_of_an_item_that_the_catalog_does_not_have_fails():
    assert names(judged(lists(), unknown=1)) == ["unknown_items"]
    assert names(judged(lists(), unknown=1, limits=Gate(max_unknown_items=1))) == []


@pytest.mark.parametrize(("score", "failing"), [(-0.01, "lowest_score"), (1.01, "highest_score"), (0.0, None), (1.0, None)])
def test_a_score_that_is_no_chance_fails(score: float, failing: str | None):
    table = lists()
    scores = table[SCORE].to_numpy().copy()
    scores[7] = score
    changed = table.set_column(table.column_names.index(SCORE), SCORE, pa.array(scores, pa.float32()))
    assert names(judged(changed)) == ([failing] if failing else [])


def test_a_few_more_short_lists_pass():
    short = [(user, rank) in {(3, K), (5, K)} for user in range(USERS) for rank in range(1, K + 1)]
    verdict = judged(lists().filter(pa.array([not left for left in short])))
    (rise,) = [check.value for check in verdict.checks if check.name == "short_users"]
    assert rise == pytest.approx(2 / USERS)
    assert names(verdict) == []


def test_a_list_of_few_items_for_most_is_concentration():
    spread, narrow = lists(), lists()
    items = narrow.column(ITEM_ID).to_numpy() % ITEMS
    narrow = narrow.set_column(2, ITEM_ID, pa.array(np.where(items < 50, items % 6, items)))
    verdict = judged(narrow, before=spread, limits=Gate(min_items=0.2, min_overlap=0.0))
    assert names(verdict) == ["concentration"]


def test_scores_outside_0_to_1_and_unknown_items_need_no_night_before():
    wrong = lists()
    wrong = wrong.set_column(3, SCORE, pa.array(np.where(np.arange(len(wrong)) == 3, 1.5, wrong.column(SCORE)), pa.float32()))
    verdict = judge(look(wrong), None, limits=Gate(), night_before=None, unknown_items=2)
    assert names(verdict) == ["unknown_items", "highest_score"]
    absolute = {"repeated_users", "unknown_items", "lowest_score", "highest_score", "ndcg", "baseline", "baseline_new"}
    assert {check.name for check in verdict.checks} == absolute


def test_a_model_that_is_shown_to_be_worse_than_the_champion_fails_and_one_that_may_be_as_good_does_not():
    worse = Quality(ndcg=-0.011)
    assert names(judged(lists(), quality=worse)) == ["ndcg"]
    assert names(judged(lists(), quality=Quality(ndcg=-0.009))) == names(judged(lists())) == []
    assert names(judged(lists(), quality=worse, limits=Gate(max_ndcg_loss=0.012))) == []
    assert Gate().max_ndcg_loss >= Champion().margin  # else a challenger that has won could be stopped


def against(high: float, *, part: str = "all") -> Quality:
    return Quality(baselines={part: {"baseline": "factors", "difference": high - 0.01, "low": high - 0.02, "high": high}})


@pytest.mark.parametrize(("part", "check"), [("all", "baseline"), ("new", "baseline_new")])
def test_a_model_that_is_shown_to_be_worse_than_a_baseline_fails(part: str, check: str):
    verdict = judged(lists(), quality=against(-0.001, part=part))
    assert names(verdict) == [check]
    assert "less that of factors" in verdict.failed()[0].meaning
    assert names(judged(lists(), quality=against(0.001, part=part))) == []
    assert names(judged(lists(), quality=against(-0.011, part=part), limits=Gate(max_baseline_loss=0.012))) == []


def gaps(**columns: float) -> dict[str, dict[str, Any]]:
    return {name: {"best": "a", "worst": "b", "difference": gap, "interval": [gap - 0.02, gap + 0.02]} for name, gap in columns.items()}


def test_lists_that_are_shown_to_serve_one_group_better_fail_where_the_settings_say_so():
    wide = Quality(gaps=gaps(age=0.05, region=0.08))
    assert names(judged(lists(), quality=wide)) == []
    assert names(judged(lists(), quality=wide, limits=Gate(max_group_gap=0.061))) == []
    assert names(judged(lists(), quality=wide, limits=Gate(max_group_gap=0.059))) == ["group_gap"]
    assert names(judged(lists(), quality=NOT_MEASURED, limits=Gate(max_group_gap=0.0))) == []


def test_a_gap_may_grow_by_so_much_and_a_first_one_is_held_against_none():
    grown = Quality(gaps=gaps(age=0.05, region=0.08), gaps_before=gaps(age=0.06))
    assert names(judged(lists(), quality=grown)) == []
    assert names(judged(lists(), quality=grown, limits=Gate(max_group_gap_rise=0.021))) == []
    assert names(judged(lists(), quality=grown, limits=Gate(max_group_gap_rise=0.019))) == ["group_gap_rise"]
    assert names(judged(lists(), quality=Quality(gaps=gaps(age=0.5)), limits=Gate(max_group_gap_rise=0.0))) == []


def test_a_baselines_order_steps_in_only_where_the_settings_say_so_and_nobody_lets_the_model_pass():
    told = Gate(fallback=True)
    assert against(-0.001).fallback(told) == "factors"
    assert against(-0.001).fallback(Gate()) is None
    assert against(0.001).fallback(told) is None
    assert against(-0.001).fallback(told, ["baseline"]) is None
    assert against(-0.001, part="new").fallback(told) is None  # over all items no baseline is better
    assert NOT_MEASURED.fallback(told) is None


def test_a_night_in_another_order_than_the_one_before_is_held_against_its_size_alone():
    then, now = look(lists()), look(lists(source="category", users=150))
    verdict = judge(now, then, limits=Gate(), night_before=BEFORE, unknown_items=0, same_order=False)
    assert names(verdict) == ["rows", "users"]
    assert "overlap" not in {check.name for check in verdict.checks}


def test_an_override_lets_its_check_alone_pass():
    verdict = judged(lists(users=150))
    assert [check.name for check in verdict.failed(["users"])] == ["rows"]
    assert verdict.failed(["users", "rows"]) == []


def test_overrides_are_known_and_have_a_reason():
    assert overrides([], None) == {}
    assert overrides(["rows", "drift"], "a new shop") == {"rows": "a new shop", "drift": "a new shop"}
    with pytest.raises(ConfigError, match=r"--override row: no such check. Known: .*rows"):
        overrides(["row"], "why")
    with pytest.raises(ConfigError, match="go together"):
        overrides(["rows"], None)
    with pytest.raises(ConfigError, match="go together"):
        overrides(["rows"], " ")
    with pytest.raises(ConfigError, match="go together"):
        overrides([], "why")


def test_rows_without_a_score_are_a_bin_of_their_own():
    table = lists()
    half = table.set_column(3, SCORE, pa.array(table.column(SCORE).to_numpy(), pa.float32(), mask=np.arange(len(table)) % 2 == 0))
    assert look(half).scores[-1] == len(table) // 2
    assert names(judged(half)) == ["drift"]
    none = table.set_column(3, SCORE, pa.nulls(len(table), pa.float32()))
    verdict = judged(none, before=none)
    assert names(verdict) == []
    assert {check.value for check in verdict.checks if check.name.endswith("_score")} == {None}


def test_a_sample_of_users_measures_the_same_overlap_near_enough_and_keeps_fewer():
    before, now = lists(users=2000), lists(users=2000, items=50)
    whole, part = (overlap(look(before, pair_share=share), look(now, pair_share=share)) for share in (1.0, 0.3))
    assert whole == pytest.approx(part, abs=0.05)
    assert 450 < len(look(before, share=0.3).sampled) < 750
    few = look(before, pair_share=0.3)
    assert len(few.sampled) == 2000  # a user that comes twice is found all the same
    assert 450 * K < len(few.pair) < 750 * K


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_figures_equal_a_brute_force_answer_however_the_rows_are_batched(seed: int, rows: int):
    rng = np.random.default_rng(seed)
    two = []
    for _ in range(2):
        found: list[tuple[str, int, str, float, str]] = []
        for user in rng.choice(12, rng.integers(1, 12), replace=False).tolist():
            chosen = rng.choice(9, rng.integers(1, 4), replace=False).tolist()
            found += [
                (f"u{user}", rank, f"i{item}", float(rng.random()), str(rng.choice(["a", "b"]))) for rank, item in enumerate(chosen, 1)
            ]
        columns = zip(*found, strict=True)
        two.append(pa.table(dict(zip((USER_ID, RANK, ITEM_ID, SCORE, SOURCE), map(list, columns), strict=True))))
    before, now = (look(table, k=3, rows=rows) for table in two)
    frames = [table.to_pandas() for table in two]
    pairs = [set(zip(frame[USER_ID], frame[ITEM_ID], strict=True)) for frame in frames]
    both = set(frames[0][USER_ID]) & set(frames[1][USER_ID])
    rows_before = [pair for pair in pairs[0] if pair[0] in both]
    expected = sum(pair in pairs[1] for pair in rows_before) / len(rows_before) if rows_before else None
    assert overlap(before, now) == pytest.approx(expected)
    for frame, seen in zip(frames, (before, now), strict=True):
        lengths = frame.groupby(USER_ID).size()
        assert (seen.rows, seen.users, seen.short_users) == (len(frame), len(lengths), int((lengths < 3).sum()))
        counts = frame[ITEM_ID].value_counts()
        assert seen.items == counts.to_dict()
        differences = np.abs(counts.to_numpy()[:, None] - counts.to_numpy()[None, :]).sum()
        assert seen.gini == pytest.approx(differences / (2 * len(counts) ** 2 * counts.mean()))  # half the relative mean difference
        assert (seen.low, seen.high) == (frame[SCORE].min(), frame[SCORE].max())


@pytest.mark.parametrize("shift", [0.3, -0.3, 0.4, -0.4])
def test_scores_that_rise_or_fall_for_the_same_users_shift(shift: float):
    verdict = judged(lists(shift=shift), limits=Gate(max_drift=9.0))
    (check,) = (one for one in verdict.checks if one.name == "score_shift")
    assert check.value == pytest.approx(shift, abs=1e-4)
    assert names(verdict) == (["score_shift"] if abs(shift) > 0.35 else [])


def test_the_shift_is_of_users_with_scores_in_both_nights_alone():
    before, now = lists(users=50), lists(users=60, shift=0.5)
    user, score = now.column(USER_ID).to_numpy(), now.column(SCORE).to_numpy()
    without = now.set_column(3, SCORE, pa.array(score, pa.float32(), mask=user < 10))
    others = before.set_column(
        3, SCORE, pa.array(np.where(before.column(USER_ID).to_numpy() < 10, 0.9, before.column(SCORE)), pa.float32())
    )
    assert score_shift(look(others), look(without)) == pytest.approx(0.5, abs=1e-4)
    assert score_shift(look(lists(users=9)), look(without)) is None
    assert score_shift(look(before, rows=3), look(now, rows=7)) == pytest.approx(0.5, abs=1e-4)  # lists cut between batches


def test_drift_is_the_population_stability_index():
    before, now = np.array([10, 20, 30, 40, 0]), np.array([40, 30, 20, 10, 0])
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    assert drift(before, now) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert drift(before, before * 3) == 0.0
