import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys import rank
from recsys.candidates import Candidates

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
    ranked = rank.top(candidates.user_row, candidates.item, raw, k=k)
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
    ranked = rank.top(candidates.user_row, candidates.item, raw, k=k)
    for user in range(4):
        ranks = ranked.rank[candidates.user_row[ranked.row] == user].tolist()
        assert ranks == list(range(1, min(k, sum(who == user for who, _, _ in rows)) + 1))


def test_equal_outputs_go_by_item() -> None:
    candidates, raw = made([(0, 4, 1.0), (0, 2, 1.0), (0, 7, 3.0), (1, 9, 1.0), (1, 3, 1.0)])
    ranked = rank.top(candidates.user_row, candidates.item, raw, k=2)
    assert candidates.item[ranked.row].tolist() == [7, 2, 3, 9]


def test_lists_hold_item_codes_in_rank_order_and_are_padded() -> None:
    candidates, raw = made([(0, 0, 1.0), (0, 2, 5.0), (0, 3, 3.0), (2, 1, 9.0), (2, 0, 10.0)])
    items = np.array([10, 20, 35, 47], np.int32)
    ranked = rank.top(candidates.user_row, candidates.item, raw, k=2)
    lists = rank.as_lists(ranked, candidates, items, users=4, k=3)
    assert lists.tolist() == [[35, 47, -1], [-1, -1, -1], [10, 20, -1], [-1, -1, -1]]
    assert lists.dtype == np.int32
