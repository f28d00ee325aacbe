from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys.features.spec import FeatureSpec
from recsys.training.batches import Examples, class_weighted, evened, part, passes
from tests.fits import ROWS, SPEC, Files, write


def rows(files: Sequence[Path], spec: FeatureSpec = SPEC) -> Examples:
    return Examples(files, spec)


def test_rows_of_all_files_are_one_table_in_the_given_order(files: Files):
    table = pa.concat_tables([pa.ipc.open_file(str(file)).read_all() for file in files.train])
    order = np.random.default_rng(0).permutation(ROWS)[:99]
    dense, codes, label, share = rows(files.train).batch(order, 101, 4.0)
    taken = table.take(pa.array(order))
    raw = taken.column("dense").combine_chunks().flatten().to_numpy().reshape(99, 5)
    assert np.isnan(raw).any()
    np.testing.assert_array_equal(dense[:99], SPEC.normalise(raw))
    np.testing.assert_array_equal(codes[:99], taken.column("codes").combine_chunks().flatten().to_numpy().reshape(99, 2))
    np.testing.assert_array_equal(label[:99], taken.column("label").to_numpy())
    np.testing.assert_array_equal(share[:99], taken.column("weight").to_numpy() / 4)
    assert [array.dtype for array in (dense, codes, label, share)] == [np.float32, np.int32, np.float32, np.float32]
    for filled_up in (dense, codes, label, share):
        assert not filled_up[99:].any()


def test_rows_without_codes_have_an_empty_matrix_of_them(tmp_path: Path):
    spec = FeatureSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), (), {})
    dense, codes, _, _ = rows([write(tmp_path / "0.arrow", slice(0, 9), spec=spec)], spec).batch(np.array([8, 0]), 3, 1.0)
    assert (dense.shape, codes.shape) == ((3, 2), (3, 0))


def test_the_parts_of_a_batch_are_the_batch_for_any_number_of_workers():
    for count, workers in ((64, 1), (64, 2), (60, 4), (7, 3), (2, 4), (1, 2)):
        batch = np.arange(count)
        parts = [part(batch, rank, workers) for rank in range(workers)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert max(map(len, parts)) <= -(-count // workers)


def test_a_file_without_rows_among_others_changes_nothing(files: Files, tmp_path: Path):
    empty = write(tmp_path / "empty.arrow", slice(0, 0))
    order = np.random.default_rng(0).permutation(ROWS)
    plain = rows(files.train).batch(order, ROWS, 1.0)
    among = rows([empty, files.train[0], empty, files.train[1], empty]).batch(order, ROWS, 1.0)
    for one, two in zip(plain, among, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_pass_takes_every_row_once_in_an_order_of_its_own(files: Files):
    table = rows(files.train)
    first, again, second = (passes(table, 64, seed=3, epoch=epoch) for epoch in (1, 1, 2))
    assert [len(batch) for batch in first.rows] == [64] * 10 + [60]
    assert sorted(np.concatenate(first.rows).tolist()) == list(range(ROWS))
    assert np.array_equal(np.concatenate(first.rows), np.concatenate(again.rows))
    assert not np.array_equal(np.concatenate(first.rows), np.concatenate(second.rows))
    assert first.weights[-1] == table.weight[first.rows[-1]].sum()


def test_batches_that_weigh_nothing_are_left_out_and_the_mean_goes_by_weight(files: Files):
    table = rows(files.train)
    table.weight = np.zeros(ROWS, np.float32)
    table.weight[[5, 17]] = [1, 3]
    found = passes(table, 1, seed=0, epoch=1)
    assert sorted(int(batch[0]) for batch in found.rows) == [5, 17]
    losses = [2.0 if batch[0] == 5 else 6.0 for batch in found.rows]
    assert found.mean(losses) == (1 * 2.0 + 3 * 6.0) / (1 + 3)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        (None, [1, 2, 3, 4]),
        ((2.0, 0.5), [2 * 1, 0.5 * 2, 2 * 3, (2 + 0.5) / 2 * 4]),  # the last label lies between
        ("balanced", [10 / 12 * 1, 10 / 8 * 2, 10 / 12 * 3, (10 / 12 + 10 / 8) / 2 * 4]),  # 0s weigh 1 + 3 + 2, 1s 2 + 2
    ],
)
def test_class_weights_multiply_the_rows_weights(factors: tuple[float, float] | None, expected: list[float]):
    label, weight = np.array([0, 1, 0, 0.5], np.float32), np.array([1, 2, 3, 4], np.float32)
    found = class_weighted(label, weight, factors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_balance_with_one_label_alone_leaves_the_weights_as_they_are():
    ones = np.ones(3, np.float32)
    np.testing.assert_array_equal(class_weighted(ones, 2 * ones, "balanced"), 2 * ones)


def test_groups_come_to_weigh_the_same_and_rows_of_none_stay() -> None:
    group = np.array([0, 0, 0, 1, -1, 3], np.int32)  # of group 2 there is no row here
    weight = np.array([1, 2, 3, 2, 5, 4], np.float32)
    found = evened(group, weight)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [4 / 6, 8 / 6, 12 / 6, 4, 5, 4], rtol=1e-6)  # three groups of 12 / 3
    np.testing.assert_array_equal(evened(np.full(3, -1, np.int32), weight[:3]), weight[:3])
    np.testing.assert_allclose(evened(np.array([0, 1]), np.array([0, 7], np.float32)), [0, 7])


def test_examples_know_their_users_groups_across_files(files: Files, tmp_path: Path) -> None:
    assert rows(files.train).group is None
    made = []
    for number, words in enumerate((["old", None, "young"], ["young", "old", None])):
        table = pa.ipc.open_file(str(files.train[0])).read_all().slice(0, 3).append_column("group", pa.array(words, pa.string()))
        made.append(tmp_path / f"{number}.arrow")
        with pa.OSFile(str(made[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    found = rows(made).group
    assert found is not None
    assert found.tolist() == [0, -1, 1, 1, 0, -1]
