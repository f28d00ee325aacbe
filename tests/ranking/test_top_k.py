from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ranking import top_k
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import Cap, Exposure

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 8), st.sampled_from([-2.5, -0.0, 0.0, 0.25, 7.0])),
    max_size=25,
    unique_by=lambda row: row[:2],
)


def made(rows: list[tuple[int, int, float]]) -> tuple[Candidates, np.ndarray]:
    """Candidates in (user, item) order and their raw outputs."""
    rows = sorted(rows)
    user, item = (np.array([row[place] for row in rows], np.int64) for place in (0, 1))
    none = np.zeros((len(rows), 1))
    return Candidates(("one",), user, item, none.astype(np.int32), none.astype(np.float32)), np.array(
        [row[2] for row in rows], np.float32
    )


@given(ROWS, st.integers(1, 6))
def test_top_is_what_sorting_every_users_candidates_gives(rows: list[tuple[int, int, float]], k: int) -> None:
    candidates, raw = made(rows)
    ranked = top_k.top_k(candidates.user_row, candidates.item, raw, k=k)
    expected: list[tuple[int, int, int]] = []
    for user in range(4):
        mine = sorted((-value, item) for who, item, value in rows if who == user)
        expected += [(user, item, place) for place, (_, item) in enumerate(mine[:k], 1)]
    user, item = candidates.user_row[ranked.row].tolist(), candidates.item[ranked.row].tolist()
    assert list(zip(user, item, ranked.rank.tolist(), strict=True)) == expected
    assert ranked.rank.dtype == np.int32


@given(ROWS, st.integers(1, 6))
def test_ranks_are_1_to_k_without_gaps(rows: list[tuple[int, int, float]], k: int) -> None:
    candidates, raw = made(rows)
    ranked = top_k.top_k(candidates.user_row, candidates.item, raw, k=k)
    for user in range(4):
        ranks = ranked.rank[candidates.user_row[ranked.row] == user].tolist()
        assert ranks == list(range(1, min(k, sum(who == user for who, _, _ in rows)) + 1))


def test_equal_outputs_go_by_item() -> None:
    candidates, raw = made([(0, 4, 1.0), (0, 2, 1.0), (0, 7, 3.0), (1, 9, 1.0), (1, 3, 1.0)])
    ranked = top_k.top_k(candidates.user_row, candidates.item, raw, k=2)
    assert candidates.item[ranked.row].tolist() == [7, 2, 3, 9]


# ---- caps and diversity

CODES = np.array([2, 3, 5, 7, 8, 10, 11, 12, 14], np.int32)  # item code of each active position
FACTORS = np.random.default_rng(3).integers(-2, 3, (9, 3)).astype(np.float32)
FACTORS[4] = 0  # like nothing
FACTORS[6] = FACTORS[2]  # like each other


def worth(place: int, item: int, above: list[int], diversity: float) -> float:
    """Maximal marginal relevance as the docstring has it, one item at a time."""
    unit = FACTORS / np.maximum(np.sqrt((FACTORS * FACTORS).sum(axis=1, keepdims=True)), np.float32(1e-9))
    alike = max([0.0, *(float((unit[item] * unit[other]).sum()) for other in above)])
    return (1 - diversity) / np.log2(1 + place) - diversity * alike


def slow(
    rows: list[tuple[int, int, float]], k: int, caps: list[Cap], diversity: float, exposures: Sequence[Exposure] = ()
) -> tuple[list[list[int]], list[list[int]]]:
    """Each user's list, and for each row that caps took from the list that would be without rules the cap's number."""
    lists: list[list[int]] = []
    taken: list[list[int]] = []
    for user in range(4):
        order = [item for _, item in sorted((-value, item) for who, item, value in rows if who == user)]

        def fill(held: list[Cap], asked: Sequence[Exposure], order: list[int] = order) -> tuple[list[int], dict[int, int]]:
            made: list[int] = []
            out: dict[int, int] = {}  # item -> cap
            while len(made) < k:
                free = [(place, item) for place, item in enumerate(order, 1) if item not in made and item not in out]
                number = len(made) + 1
                needed = set[int]()
                for one in asked:
                    members = one.member[CODES]
                    above = sum(members[item] for item in made)
                    if above >= np.ceil(round(one.at_most * number, 6)):
                        free = [(place, item) for place, item in free if not members[item]]
                    if above < np.floor(round(one.at_least * number, 6)):
                        needed |= {item for item in range(9) if members[item]}
                free = [(place, item) for place, item in free if item in needed] or free
                if not free:
                    break
                made.append(min(free, key=lambda one: (-worth(*one, made, diversity), one[1]))[1])
                for cap in held:
                    values = cap.value[CODES]
                    for item in order:
                        full = sum(values[other] == values[item] for other in made) >= cap.at_most
                        if item not in made and item not in out and values[item] >= 0 and full:
                            out[item] = cap.number
            return made, out

        made, out = fill(caps, exposures)
        without, _ = fill([], [])
        lists.append(made)
        taken.append(sorted(out[item] for item in without if item in out))
    return lists, taken


def lists_of(candidates: Candidates, ranked: top_k.Ranked) -> list[list[int]]:
    user, item = candidates.user_row[ranked.row], candidates.item[ranked.row]
    for who in range(4):
        assert ranked.rank[user == who].tolist() == list(range(1, int((user == who).sum()) + 1))
    assert user.tolist() == sorted(user.tolist())
    return [item[user == who].tolist() for who in range(4)]


VALUES = st.lists(st.integers(-1, 2), min_size=15, max_size=15)


@settings(max_examples=300)
@given(
    ROWS, st.integers(1, 6), st.lists(st.tuples(st.integers(1, 3), VALUES), max_size=2), st.sampled_from([0.0, 0.1, 0.5, 0.75, 0.99])
)
def test_cut_is_what_filling_every_list_row_by_row_gives(
    rows: list[tuple[int, int, float]], k: int, limits: list[tuple[int, list[int]]], diversity: float
) -> None:
    candidates, raw = made(rows)
    caps = [Cap(9 + number, at_most, np.array(values, np.int32)) for number, (at_most, values) in enumerate(limits)]
    ranked, lost = top_k.cut_lists(
        candidates.user_row, candidates.item, raw, k=k, caps=caps, codes=CODES, diversity=diversity, factors=FACTORS
    )
    lists, taken = slow(rows, k, caps, diversity)
    assert lists_of(candidates, ranked) == lists
    user = candidates.user_row[lost.row]
    assert [sorted(lost.number[user == who].tolist()) for who in range(4)] == taken


@given(ROWS, st.integers(1, 6))
def test_cut_without_caps_and_diversity_is_top(rows: list[tuple[int, int, float]], k: int) -> None:
    candidates, raw = made(rows)
    plain = top_k.top_k(candidates.user_row, candidates.item, raw, k=k)
    ranked, lost = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=k)
    assert (ranked.row.tolist(), ranked.rank.tolist()) == (plain.row.tolist(), plain.rank.tolist())
    assert len(lost.row) == len(lost.number) == 0


def test_a_cap_keeps_the_best_of_each_value_and_counts_no_null() -> None:
    candidates, raw = made([(0, item, 9.0 - item) for item in range(9)])
    seller = np.full(15, -1, np.int32)
    seller[CODES[[0, 1, 2, 5]]] = 4
    ranked, lost = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=5, caps=[Cap(2, 2, seller)], codes=CODES)
    assert candidates.item[ranked.row].tolist() == [0, 1, 3, 4, 6]
    assert candidates.item[lost.row].tolist() == [2]  # 5 would not have been among the first five


SHARES = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.sets(st.integers(0, 8))), min_size=1, max_size=2)


@settings(max_examples=300)
@given(ROWS, st.integers(1, 6), SHARES, st.lists(st.tuples(st.integers(1, 3), VALUES), max_size=1), st.sampled_from([0.0, 0.5]))
def test_exposures_fill_every_place_as_their_shares_of_the_places_above_ask(
    rows: list[tuple[int, int, float]],
    k: int,
    shares: list[tuple[int, int, set[int]]],
    limits: list[tuple[int, list[int]]],
    diversity: float,
) -> None:
    candidates, raw = made(rows)
    caps = [Cap(9, at_most, np.array(values, np.int32)) for at_most, values in limits]
    exposures = []
    for number, (one, other, items) in enumerate(shares):
        member = np.zeros(15, bool)
        member[CODES[sorted(items)]] = True
        exposures.append(Exposure(20 + number, min(one, other) / 10, max(one, other) / 10, member))
    told = {"k": k, "caps": caps, "exposures": exposures, "codes": CODES, "diversity": diversity, "factors": FACTORS}
    ranked, lost = top_k.cut_lists(candidates.user_row, candidates.item, raw, **told)
    lists, taken = slow(rows, k, caps, diversity, exposures)
    assert lists_of(candidates, ranked) == lists
    plain, _ = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=k, diversity=diversity, factors=FACTORS)
    assert set(lost.row) == set(plain.row) - set(ranked.row)  # each row that is gone has a rule
    user = candidates.user_row[lost.row]
    assert [sorted(one for one in lost.number[user == who].tolist() if one == 9) for who in range(4)] == taken


MARKED = np.isin(np.arange(15), CODES[[4, 5, 6]])


@pytest.mark.parametrize(
    ("shares", "expected", "gone"),
    [
        ((0.0, 1.0), [0, 1, 2, 3, 4, 5], []),
        ((0.5, 1.0), [0, 4, 1, 5, 2, 6], [3]),  # of 2 places 1, of 4 places 2, of 6 places 3: 3 gives way
        ((0.34, 1.0), [0, 1, 4, 2, 3, 5], []),  # of 3 places 1, of 6 places 2: the same six in another order
        ((1.0, 1.0), [4, 5, 6, 0, 1, 2], [3]),  # there are no more: the places go to others
        ((0.0, 0.1), [0, 1, 2, 3, 4, 7], [5]),  # of 6 places 1
        ((0.0, 0.2), [0, 1, 2, 3, 4, 5], []),  # of 6 places 2
        ((0.0, 0.0), [0, 1, 2, 3, 7, 8], [4, 5]),
    ],
)
def test_a_floor_and_a_ceiling(shares: tuple[float, float], expected: list[int], gone: list[int]) -> None:
    candidates, raw = made([(0, item, 9.0 - item) for item in range(9)])
    exposure = Exposure(3, *shares, MARKED)
    ranked, lost = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=6, exposures=[exposure], codes=CODES)
    assert candidates.item[ranked.row].tolist() == expected
    assert sorted(candidates.item[lost.row].tolist()) == gone
    assert set(lost.number.tolist()) <= {3}


def test_where_all_of_a_users_candidates_are_beyond_the_ceiling_the_list_ends() -> None:
    candidates, raw = made([(0, 4, 3.0), (0, 5, 2.0), (0, 6, 1.0), (1, 0, 1.0), (1, 4, 2.0), (1, 1, 0.5)])
    ranked, lost = top_k.cut_lists(
        candidates.user_row, candidates.item, raw, k=3, exposures=[Exposure(3, 0.0, 0.3, MARKED)], codes=CODES
    )
    assert lists_of(candidates, ranked)[:2] == [[4], [4, 0, 1]]
    assert candidates.item[lost.row].tolist() == [5, 6]


def test_diversity_prefers_what_is_unlike_the_rows_above_and_keeps_the_best_first() -> None:
    # 2 and 6 are the same to the model of tastes. 6 is second best: 1/log2(3) - 1 to 1/log2(4) - 0 at 0.5 each.
    candidates, raw = made([(0, 2, 5.0), (0, 6, 4.0), (0, 4, 3.0)])
    for diversity, expected in ((0.0, [2, 6, 4]), (0.1, [2, 6, 4]), (0.5, [2, 4, 6])):
        ranked, _ = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=3, diversity=diversity, factors=FACTORS)
        assert candidates.item[ranked.row].tolist() == expected


def test_what_diversity_makes_equal_goes_by_item() -> None:
    # Fifteen items, item 14 first, item 0 last. The third has cosine 1/4 to the first, the fifteenth 0, the others 1:
    # 1/2 1/log2(4) - 1/2 1/4 = 1/2 1/log2(16) - 0.
    factors = np.zeros((15, 16), np.float32)
    factors[1:, 0] = 1
    factors[12] = 1
    candidates, raw = made([(0, item, float(item)) for item in range(15)])
    ranked, _ = top_k.cut_lists(candidates.user_row, candidates.item, raw, k=2, diversity=0.5, factors=factors)
    assert candidates.item[ranked.row].tolist() == [14, 0]


def test_diversity_does_not_depend_on_the_scale_of_outputs() -> None:
    random = np.random.default_rng(1)
    candidates, raw = made([(user, item, float(random.random())) for user in range(4) for item in range(9)])
    lists = [
        top_k.cut_lists(candidates.user_row, candidates.item, values, k=6, diversity=0.4, factors=FACTORS)[0].row.tolist()
        for values in (raw, 1000 * raw - 3, np.exp(raw))
    ]
    assert lists[0] == lists[1] == lists[2] != top_k.top_k(candidates.user_row, candidates.item, raw, k=6).row.tolist()


def test_a_users_list_does_not_depend_on_the_others() -> None:
    random = np.random.default_rng(2)
    factors = random.normal(size=(60, 64)).astype(np.float32)
    rows = [(user, int(item), float(random.random())) for user in range(7) for item in random.choice(60, 40, replace=False)]
    together, raw = made(rows)
    cap = Cap(0, 2, random.integers(-1, 9, 60).astype(np.int32))
    told = {"k": 12, "caps": [cap], "codes": np.arange(60), "diversity": 0.6, "factors": factors}
    ranked, lost = top_k.cut_lists(together.user_row, together.item, raw, **told)
    for user in range(7):
        mine = together.user_row == user
        one, missed = top_k.cut_lists(np.zeros(40, np.int64), together.item[mine], raw[mine], **told)
        assert np.flatnonzero(mine)[one.row].tolist() == ranked.row[together.user_row[ranked.row] == user].tolist()
        assert np.flatnonzero(mine)[missed.row].tolist() == lost.row[together.user_row[lost.row] == user].tolist()


def test_lists_hold_item_codes_in_rank_order_and_are_padded() -> None:
    candidates, raw = made([(0, 0, 1.0), (0, 2, 5.0), (0, 3, 3.0), (2, 1, 9.0), (2, 0, 10.0)])
    items = np.array([10, 20, 35, 47], np.int32)
    ranked = top_k.top_k(candidates.user_row, candidates.item, raw, k=2)
    lists = top_k.item_lists(ranked, candidates, items, users=4, k=3)
    assert lists.tolist() == [[35, 47, -1], [-1, -1, -1], [10, 20, -1], [-1, -1, -1]]
    assert lists.dtype == np.int32
