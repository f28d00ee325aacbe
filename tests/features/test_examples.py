from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.config import Settings
from recsys.data.histories import Histories
from recsys.features import examples
from recsys.features.spec import ModelInputs
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.users import UserBatch
from recsys.schema import examples_schema
from recsys.storage import write_arrow
from tests import shops
from tests.shops import ANN, BOB, CID, CUTOFF, DEE, END, EVE, P_BREAD, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event


def run(settings: Settings | None = None) -> tuple[Histories, UserBatch, Candidates, ModelInputs]:
    (batch,) = list(shops.featurizer(settings)(shops.whole()))
    return batch


@pytest.fixture(scope="module")
def made() -> tuple[Histories, UserBatch, Candidates, ModelInputs]:
    return run()


def labelled(candidates: Candidates, label: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(candidates.user_row[label].tolist(), candidates.item[label].tolist(), strict=True))


# ---- labels


def test_a_candidate_wanted_in_the_window_is_positive(made: tuple[Histories, UserBatch, Candidates, ModelInputs]) -> None:
    batch, users, candidates, _ = made
    label = examples.bought(candidates, users, window=batch.between(CUTOFF, END))
    # Not bob's milk, which he only viewed; not cid's milk, which is at the end; not ann's sixth item, which nobody bought before.
    assert labelled(candidates, label) == [
        (ANN, P_BREAD),
        (ANN, P_ROLL),
        (BOB, P_CHEESE),
        (CID, P_SPADE),
        (DEE, P_BREAD),
        (EVE, P_BREAD),
    ]
    assert label.dtype == np.bool_


def test_the_window_takes_its_start_and_leaves_its_end(made: tuple[Histories, UserBatch, Candidates, ModelInputs]) -> None:
    batch, users, candidates, _ = made

    def label(start: int, end: int) -> list[tuple[int, int]]:
        return labelled(candidates, examples.bought(candidates, users, window=batch.between(start, end)))

    assert (ANN, P_BREAD) not in label(CUTOFF + 1, END)
    assert (CID, P_MILK) in label(CUTOFF, END + 1)


def test_what_was_bought_before_the_window_is_no_label(made: tuple[Histories, UserBatch, Candidates, ModelInputs]) -> None:
    batch, users, candidates, _ = made
    assert not examples.bought(candidates, users, window=batch.between(END + 1, END + 2)).any()


def test_an_item_that_nobody_bought_before_the_window_labels_no_other(
    made: tuple[Histories, UserBatch, Candidates, ModelInputs],
) -> None:
    _, users, candidates, _ = made
    window = shops.group([Event(user, shops.NOTHING, 101.5) for user in range(5)])
    assert not examples.bought(candidates, users, window=window).any()


# ---- negatives


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Candidates, np.ndarray]:
    """Candidates of four users, in (user, item) order, and their labels."""
    rows = sorted(draw(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=30)))
    label = np.array(draw(st.lists(st.sampled_from([True, False, False]), min_size=len(rows), max_size=len(rows))), bool)
    user, item = (np.array([row[place] for row in rows], np.int64) for place in (0, 1))
    none = np.zeros((len(rows), 1))
    return Candidates(("one",), user, item, none.astype(np.int32), none.astype(np.float32)), label


HASHES = np.array([5, 2**63 + 11, 2**64 - 1, 0], np.uint64)


@given(drawn(), st.integers(1, 3), st.integers(0, 9))
def test_all_positives_are_kept_with_so_many_negatives_of_the_same_user(
    rows: tuple[Candidates, np.ndarray], negatives: int, seed: int
) -> None:
    candidates, label = rows
    chosen = examples.sample(candidates, label, negatives=negatives, user_hash=HASHES, seed=seed)
    assert chosen[label].all()
    for user in range(4):
        mine = candidates.user_row == user
        positives = int((label & mine).sum())
        assert int((chosen & mine & ~label).sum()) == min(negatives * positives, int((mine & ~label).sum()))


@given(drawn(), st.integers(1, 3), st.integers(0, 9), st.sets(st.integers(0, 3), min_size=1))
def test_the_choice_is_the_same_however_users_are_batched(
    rows: tuple[Candidates, np.ndarray], negatives: int, seed: int, some: set[int]
) -> None:
    candidates, label = rows
    chosen = examples.sample(candidates, label, negatives=negatives, user_hash=HASHES, seed=seed)
    batch = np.array(sorted(some))
    inside = np.isin(candidates.user_row, batch)
    part = candidates.keep(inside)
    alone = Candidates(part.names, np.searchsorted(batch, part.user_row), part.item, part.rank, part.score)
    again = examples.sample(alone, label[inside], negatives=negatives, user_hash=HASHES[batch], seed=seed)
    assert again.tolist() == chosen[inside].tolist()


def many(seed: int, hashes: list[int]) -> list[list[int]]:
    """The negatives chosen for each of two users with one positive among a thousand candidates."""
    user = np.repeat([0, 1], 1000)
    item = np.tile(np.arange(1000), 2)
    none = np.zeros((2000, 1))
    candidates = Candidates(("one",), user, item, none.astype(np.int32), none.astype(np.float32))
    label = item == 500
    chosen = examples.sample(candidates, label, negatives=20, user_hash=np.array(hashes, np.uint64), seed=seed) & ~label
    return [item[chosen & (user == who)].tolist() for who in (0, 1)]


def test_the_choice_depends_on_the_user_and_the_seed() -> None:
    one, other = many(1, [3, 4])
    assert len(one) == len(other) == 20
    assert len({*one} & {*other}) < 10
    assert many(1, [3, 4]) == [one, other]
    assert many(1, [4, 3]) == [other, one]
    assert len({*many(2, [3, 4])[0]} & {*one}) < 10


def test_negatives_come_from_the_whole_list_of_candidates() -> None:
    chosen = np.array(many(1, [3, 4]))
    assert 300 < chosen.mean() < 700
    assert chosen.min() < 250
    assert chosen.max() > 750


# ---- the table


def chosen_table(settings: Settings | None = None) -> tuple[pa.Table, Candidates, ModelInputs, np.ndarray, np.ndarray]:
    batch, users, candidates, inputs = run(settings)
    label = examples.bought(candidates, users, window=batch.between(CUTOFF, END))
    hashes = np.arange(5, dtype=np.uint64)
    chosen = examples.sample(candidates, label, negatives=2, user_hash=hashes, seed=0)
    return examples.chosen_examples(candidates, users, inputs, label, chosen), candidates, inputs, label, chosen


def test_an_example_names_its_user_and_item_and_holds_their_inputs() -> None:
    table, candidates, inputs, label, chosen = chosen_table()
    dense, codes = inputs.dense.shape[1], inputs.codes.shape[1]
    assert table.schema.equals(examples_schema(pa.string(), pa.int64(), dense=dense, codes=codes))
    ids = [10, 20, 30, 40, 50, 70]  # of active positions: the last is not the sixth item of the catalog
    rows = zip(candidates.user_row[chosen].tolist(), candidates.item[chosen].tolist(), strict=True)
    assert list(zip(table.column("user_id").to_pylist(), table.column("item_id").to_pylist(), strict=True)) == [
        (["ann", "bob", "cid", "dee", "eve"][user], ids[item]) for user, item in rows
    ]
    np.testing.assert_array_equal(np.array(table.column("dense").to_pylist(), np.float32), inputs.dense[chosen])
    assert table.column("codes").to_pylist() == inputs.codes[chosen].tolist()
    assert table.column("label").to_pylist() == label[chosen].astype(float).tolist()
    assert table.column("weight").to_pylist() == [1.0] * int(chosen.sum())
    assert int(label.sum()) == 6


def test_a_user_s_group_is_kept_where_rows_are_weighted_by_it() -> None:
    _, users, candidates, inputs = run()
    chosen = np.arange(len(candidates)) % 3 == 0
    label = np.zeros(len(candidates), bool)
    table = examples.chosen_examples(candidates, users, inputs, label, chosen, group="age")
    dense, codes = inputs.dense.shape[1], inputs.codes.shape[1]
    assert table.schema.equals(examples_schema(pa.string(), pa.int64(), dense=dense, codes=codes, grouped=True))
    words = users.history.users.column("age").to_pylist()
    assert table.column("group").to_pylist() == [words[user] for user in candidates.user_row[chosen]]
    assert len(set(table.column("group").to_pylist())) > 1


def test_without_categorical_columns_examples_have_no_codes() -> None:
    table, _, inputs, _, chosen = chosen_table(shops.settings(features=config.Features()))
    assert table.schema.equals(examples_schema(pa.string(), pa.int64(), dense=inputs.dense.shape[1], codes=0))
    assert table.column("codes").to_pylist() == [[]] * int(chosen.sum())


@pytest.mark.parametrize("features", [None, config.Features()])
def test_no_examples_are_a_table_without_rows(features: config.Features | None) -> None:
    _, users, candidates, inputs = run(shops.settings(features=features) if features else None)
    nothing = np.zeros(len(candidates), bool)
    table = examples.chosen_examples(candidates, users, inputs, nothing, nothing)
    assert table.num_rows == 0
    assert table.schema.field("dense").type.list_size == len(inputs.names)


def test_users_without_a_positive_give_no_example(made: tuple[Histories, UserBatch, Candidates, ModelInputs]) -> None:
    _, users, candidates, _ = made
    window = shops.group([Event(BOB, 1, 101.5)])
    label = examples.bought(candidates, users, window=window)
    chosen = examples.sample(candidates, label, negatives=3, user_hash=HASHES[[0, 1, 2, 3, 0]], seed=0)
    assert set(candidates.user_row[chosen].tolist()) == {BOB}
    assert int(chosen.sum()) == 1 + 3


def test_examples_come_back_from_their_file(tmp_path: Path) -> None:
    table = chosen_table()[0]
    write_arrow(table, tmp_path / "part.arrow")
    with pa.memory_map(str(tmp_path / "part.arrow")) as source:
        back = pa.ipc.open_file(source).read_all()
        assert back.schema.equals(table.schema)
        assert back.drop_columns("dense").equals(table.drop_columns("dense"))
        np.testing.assert_array_equal(np.array(back.column("dense").to_pylist()), np.array(table.column("dense").to_pylist()))
