from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.hashing import stable_hash
from recsys.pipelines.pairs_score import by_bucket
from recsys.ranking.scorer import probabilities
from recsys.ranking.table_rows import Stamp, feature_row_recommendations
from recsys.ranking.top_k import order_of, top_k_by_user
from recsys.schema import check, recommendations_schema

Row = tuple[int, int, float]

# Few users, items and outputs, so that ties and repeats are many.
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(-3, 5), st.sampled_from([-2.5, -1e-30, -0.0, 0.0, 0.25, 3e38, -3e38])), max_size=30
)
USERS = {"int64": pa.int64(), "string": pa.string()}


def words(numbers: Sequence[Any]) -> list[str]:
    """Strings whose order is another than that of the numbers, some beyond ASCII."""
    return [{-3: "z", -2: "ä", -1: "Z", 0: "", 1: "10", 2: "9", 3: "𝄞", 4: "ﬀ", 5: "a b"}[number] for number in numbers]


def table(rows: Sequence[Row], *, user: str = "int64", item: str = "int64") -> pa.Table:
    """Scored rows."""
    ids = [[row[place] for row in rows] for place in (0, 1)]
    columns = [
        pa.array(words(values) if kind == "string" else values, USERS[kind]) for values, kind in zip(ids, (user, item), strict=True)
    ]
    return pa.table([*columns, pa.array([row[2] for row in rows], pa.float32())], ["user_id", "item_id", "raw"])


def brute_force(rows: pa.Table, k: int) -> list[tuple[Any, Any, float, int]]:
    """Each user's list as pandas makes it: user, item, output, rank; users in their order."""
    frame = rows.to_pandas()
    frame["up"] = -frame["raw"]
    frame = frame.sort_values(["user_id", "up", "item_id"]).drop_duplicates(["user_id", "item_id"]).groupby("user_id").head(k)
    ranks = frame.groupby("user_id").cumcount() + 1
    return list(zip(frame["user_id"], frame["item_id"], frame["raw"] + 0.0, ranks, strict=True))


def found(ranked: pa.Table) -> list[tuple[Any, Any, float, int]]:
    frame: pd.DataFrame = ranked.to_pandas()
    return sorted(
        zip(frame["user_id"], frame["item_id"], frame["raw"] + 0.0, frame["rank"], strict=True), key=lambda row: (row[0], row[3])
    )


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("item", USERS)
@given(rows=ROWS, k=st.integers(1, 6))
def test_the_best_of_each_user_are_what_pandas_finds(user: str, item: str, rows: list[Row], k: int) -> None:
    scored = table(rows, user=user, item=item)
    best, _ = top_k_by_user(scored, k=k)
    assert found(best) == brute_force(scored, k)
    assert best.schema == scored.schema.append(pa.field("rank", pa.int32()))


@given(rows=ROWS, k=st.integers(1, 6))
def test_the_row_of_an_item_is_one_of_its_rows_and_users_stand_in_the_order_of_their_first_rows(rows: list[Row], k: int) -> None:
    best, _ = top_k_by_user(table(rows).append_column("row", pa.array(range(len(rows)), pa.int64())), k=k)
    for user, item, raw, row in zip(*(best.column(name).to_pylist() for name in ("user_id", "item_id", "raw", "row")), strict=True):
        assert rows[row][:2] == (user, item)
        assert np.float32(rows[row][2]) == raw
    assert list(dict.fromkeys(best.column("user_id").to_pylist())) == list(dict.fromkeys(row[0] for row in rows))


@pytest.mark.parametrize("item", USERS)
@given(rows=ROWS, k=st.integers(1, 6), data=st.data())
def test_the_best_of_all_parts_bests_are_the_best_of_all(item: str, rows: list[Row], k: int, data: st.DataObject) -> None:
    parts = [data.draw(st.integers(0, 3)) for _ in rows]
    whole = table(rows, item=item)
    partial = [top_k_by_user(whole.filter(pa.array([part == wanted for part in parts], pa.bool_())), k=k)[0] for wanted in range(4)]
    merged = pa.concat_tables([part.select(["user_id", "item_id", "raw"]) for part in partial])
    assert found(top_k_by_user(merged, k=k)[0]) == brute_force(whole, k)


@given(rows=ROWS, seed=st.integers(0, 9), k=st.integers(1, 6))
def test_the_order_of_rows_changes_no_list(rows: list[Row], seed: int, k: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    assert found(top_k_by_user(table([rows[row] for row in shuffled]), k=k)[0]) == found(top_k_by_user(table(rows), k=k)[0])


def test_an_items_rows_count_once_with_their_highest_output_and_leave_their_places_to_others() -> None:
    rows = [(1, 7, 0.5), (1, 7, 0.9), (1, 7, 0.9), (1, 8, 0.6), (1, 9, 0.4), (2, 7, 0.1)]
    best, passed = top_k_by_user(table(rows), k=2)
    assert [(item, rank) for _, item, _, rank in found(best)] == [(7, 1), (8, 2), (7, 1)]
    assert passed == 2


def test_without_repeats_nothing_is_passed_over() -> None:
    assert top_k_by_user(table([(1, 7, 0.5), (1, 8, 0.5), (2, 7, 0.5)]), k=1)[1] == 0


def test_0_and_minus_0_are_a_tie_that_the_item_breaks() -> None:
    best, _ = top_k_by_user(table([(1, 9, 0.0), (1, 3, -0.0), (1, 5, 0.0)]), k=3)
    assert best.column("item_id").to_pylist() == [3, 5, 9]


def test_ids_at_both_ends_of_their_range_keep_their_order() -> None:
    ends = [2**63 - 1, -(2**63), 0, -1]
    rows = pa.table({"user_id": pa.array([5] * 4), "item_id": pa.array(ends), "raw": pa.array([1.0] * 4, pa.float32())})
    assert top_k_by_user(rows, k=4)[0].column("item_id").to_pylist() == sorted(ends)


def test_chunks_are_one_table() -> None:
    rows = [(2, 1, 0.5), (1, 2, 0.5), (2, 3, 0.7), (1, 1, 0.9)]
    chunked = pa.concat_tables([table(rows[:1]), table([]), table(rows[1:])])
    assert top_k_by_user(chunked, k=2)[0].equals(top_k_by_user(table(rows), k=2)[0])


@given(st.lists(st.integers(-3, 5), max_size=20))
def test_numbers_of_ids_are_in_the_order_of_the_ids(numbers: list[int]) -> None:
    strings = words(numbers)
    order = order_of(pa.array(numbers, pa.int64()))
    assert [[one < other for other in order] for one in order] == [[one < other for other in numbers] for one in numbers]
    order = order_of(pa.array(strings, pa.string()))
    assert [[one < other for other in order] for one in order] == [[one < other for other in strings] for one in strings]


@pytest.mark.parametrize("user", USERS)
@given(rows=ROWS, buckets=st.integers(1, 7))
def test_a_bucket_is_a_slice_that_holds_all_rows_of_its_users(user: str, rows: list[Row], buckets: int) -> None:
    whole = table(rows, user=user)
    sorted_rows, starts = by_bucket(whole, buckets)
    assert (len(starts), starts[0], starts[-1]) == (buckets + 1, 0, len(rows))
    key = sorted_rows.column("user_id").to_numpy()
    for bucket in range(buckets):
        mine = key[starts[bucket] : starts[bucket + 1]]
        assert (stable_hash(mine) % np.uint64(buckets) == bucket).all()
    everything = [("user_id", "ascending"), ("item_id", "ascending"), ("raw", "ascending")]
    assert sorted_rows.sort_by(everything).equals(whole.sort_by(everything))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("item", USERS)
@pytest.mark.parametrize("rows", [[(1, 7 - 3, 2.0), (1, 5, -100.0), (2, 5, 0.0)], []])
def test_recommendations_have_the_tables_columns(user: str, item: str, rows: list[Row]) -> None:
    best, _ = top_k_by_user(table(rows, user=user, item=item), k=2)
    made = feature_row_recommendations(best, Stamp(date(2024, 2, 29), "m", "r"))
    schema = recommendations_schema(USERS[user], USERS[item])
    assert check(made, schema, where="here").schema == schema
    for name in ("user_id", "item_id", "rank"):
        assert made.column(name).to_pylist() == best.column(name).to_pylist()
    np.testing.assert_array_equal(made.column("score").to_numpy(), probabilities(best.column("raw").to_numpy()))
    constant = ["as_of", "source", "reason_kind", "reason_item_id", "reason_category"]
    assert {tuple(row.values()) for row in made.select([*constant, "run_id"]).to_pylist()} <= {
        (date(2024, 2, 29), "given", "given", None, None, "r")
    }
    assert made.column("sources").to_pylist() == [["given"]] * len(rows)
    assert made.column("model_version").to_pylist() == ["m"] * len(rows)
    assert made.column("reason").to_pylist() == ["Among the rows given for the user."] * len(rows)
