import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle
from typing_extensions import override

from recsys import config, feed, tables, train
from recsys.errors import ClusterError, DataError
from recsys.spec import FeatureSpec

Files = tuple[list[Path], list[Path]]  # training, validation

# a Train run makes a DataContext, which warns of its own defaults
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

SPEC = FeatureSpec(
    dense=("a", "b", "c", "d", "e"),
    mean=(0.0, 1.0, 2.0, 3.0, 4.0),
    scale=(1.0, 2.0, 1.0, 2.0, 1.0),
    codes=("brand", "age"),
    vocabularies={"brand": tuple("abcdefg"), "age": ("young", "old")},
)
ROWS, HELD_OUT, BATCH = 700, 150, 64  # 700 = 10 batches of 64 and one of 60


class DyingSpec(FeatureSpec):
    """Kills its worker, once, in the middle of the second epoch: an epoch is 11 batches, and a block of validation rows."""

    calls = 0
    marker = Path()

    @override
    def normalise(self, dense: np.ndarray) -> np.ndarray:
        cls = type(self)
        cls.calls += 1
        if cls.calls == 15 and not cls.marker.exists():
            cls.marker.touch()
            time.sleep(2)  # until Train's controller, which asks now and then, has heard of the checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        return super().normalise(dense)


def write(path: Path, rows: slice, *, spec: FeatureSpec = SPEC, seed: int = 0) -> Path:
    """Rows of a planted rule: mostly `a`, some of `brand`; weights differ and two rows in a hundred have none."""
    rng = np.random.default_rng(seed)
    count, columns = ROWS + HELD_OUT, len(spec.codes)
    dense = rng.normal(spec.mean, spec.scale, (count, len(spec.dense))).astype(np.float32)
    codes = rng.integers(0, spec.sizes(), (count, columns), dtype=np.int32)
    rule = 3 * dense[:, 0] + (codes[:, 0] - 3.5 if columns else 0)
    label = (rng.random(count) < 1 / (1 + np.exp(-rule))).astype(np.float32)
    weight = rng.choice(np.array([0, 1, 2, 5], np.float32), count, p=[0.02, 0.5, 0.4, 0.08])
    dense[rng.random(dense.shape) < 0.01] = np.nan
    schema = tables.examples_schema(pa.int64(), pa.string(), dense=len(spec.dense), codes=columns)
    table = pa.table(
        [
            pa.array(np.arange(count)),
            pa.array([f"i{row}" for row in range(count)]),
            pa.FixedSizeListArray.from_arrays(pa.array(dense.ravel()), len(spec.dense)),
            pa.array(codes.tolist(), pa.list_(pa.int32(), columns)),
            pa.array(label),
            pa.array(weight),
        ],
        schema=schema,
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.slice(rows.start, rows.stop - rows.start), max_chunksize=170)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("examples")
    first, second = write(folder / "0.arrow", slice(0, 450)), write(folder / "1.arrow", slice(450, ROWS))
    return [first, second], [write(folder / "2.arrow", slice(ROWS, ROWS + HELD_OUT))]


def fit(files: tuple[Sequence[Path], Sequence[Path]], folder: Path, *, workers: int, spec: FeatureSpec = SPEC) -> train.Fit:
    told: list[train.Epoch] = []
    settings = config.Train(epochs=3, patience=1, batch_size=BATCH, workers=workers, learning_rate=0.01, max_failures=1)
    mlp = config.Model(hidden=(16, 8), dropout=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # 2 s otherwise, and every epoch waits for it
        fitted = train.fit(
            *files, spec=spec, model=mlp, train=settings, seed=5, folder=folder, name=f"workers-{workers}", on_epoch=told.append
        )
    assert told == fitted.history
    return fitted


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, files: Files, tmp_path_factory: pytest.TempPathFactory) -> train.Fit:
    """One worker."""
    return fit(files, tmp_path_factory.mktemp("one"), workers=1)


@pytest.fixture(scope="module")
def killed(ray_cluster: None, files: Files, tmp_path_factory: pytest.TempPathFactory) -> train.Fit:
    """Two workers, one of which is killed in the middle of the second epoch."""
    folder = tmp_path_factory.mktemp("two")
    DyingSpec.marker = folder / "died"
    # by value: workers cannot import this file

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        fitted = fit(files, folder, workers=2, spec=DyingSpec(SPEC.dense, SPEC.mean, SPEC.scale, SPEC.codes, SPEC.vocabularies))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert DyingSpec.marker.exists()
    return fitted


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_two_workers_and_a_kill_end_with_the_weights_of_one_undisturbed_worker(undisturbed: train.Fit, killed: train.Fit):
    for one, two in zip(undisturbed.weights, killed.weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    for one, two in zip(undisturbed.validated_weights, killed.validated_weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    for one, two in zip(undisturbed.history, killed.history, strict=True):
        assert {key: one[key] for key in ("epoch", "phase")} == {key: two[key] for key in ("epoch", "phase")}
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_the_loss_falls_and_the_refit_runs_the_best_number_of_epochs(undisturbed: train.Fit):
    validated = [record for record in undisturbed.history if record["phase"] == train.VALIDATE]
    refit = [record["epoch"] for record in undisturbed.history if record["phase"] == train.REFIT]
    assert validated[-1]["loss"] < 0.9 * validated[0]["loss"]
    assert validated[undisturbed.best_epoch - 1]["val_loss"] == min(record["val_loss"] for record in validated)
    assert refit == list(range(1, undisturbed.best_epoch + 1))
    figures = {f"val_{name}" for name in ("loss", "auc", "accuracy", "precision", "recall", "f1")}
    assert validated[0].keys() == {"epoch", "phase", "loss", "seconds", "rows_per_second"} | figures


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_the_best_weights_score_the_validation_rows_as_the_history_says(undisturbed: train.Fit, files: Files):
    dense, codes, label, share = rows(files[1]).batch(np.arange(HELD_OUT), HELD_OUT, 1.0)
    chance = np.asarray(undisturbed.model(undisturbed.validated_weights)([dense, codes]))[:, 0].astype(np.float64)
    loss = -(share * np.where(label > 0, np.log(chance), np.log1p(-chance))).sum() / share.sum()
    assert loss == pytest.approx(undisturbed.history[undisturbed.best_epoch - 1]["val_loss"], rel=1e-5)
    assert not np.array_equal(undisturbed.weights[-1], undisturbed.validated_weights[-1])  # the refit saw more rows


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_cpus_are_refused_at_once(files: Files, tmp_path: Path):
    with pytest.raises(ClusterError, match=r"1000 workers on cpu need 1000 CPUs, the cluster has \d+"):
        fit(files, tmp_path, workers=1000)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_gpus_that_are_not_there_are_refused_at_once(files: Files, tmp_path: Path):
    settings = config.Train(workers=1, device="gpu")
    with pytest.raises(ClusterError, match="1 workers on gpu need 1 GPUs, the cluster has 0"):
        train.fit(*files, spec=SPEC, model=config.Model(), train=settings, seed=0, folder=tmp_path, name="gpu")


def test_no_rows_and_other_columns_are_refused(files: Files, tmp_path: Path):
    empty = write(tmp_path / "empty.arrow", slice(0, 0))
    with pytest.raises(DataError, match="validation examples: at least one row is needed"):
        fit((files[0], [empty]), tmp_path, workers=1)
    with pytest.raises(DataError, match="training examples: at least one row is needed"):
        fit(([], files[1]), tmp_path, workers=1)
    wider = FeatureSpec((*SPEC.dense, "f"), (*SPEC.mean, 0.0), (*SPEC.scale, 1.0), SPEC.codes, SPEC.vocabularies)
    with pytest.raises(DataError, match=r"0\.arrow: column 'dense' must be fixed_size_list.*\[6\], got fixed_size_list.*\[5\]"):
        fit(files, tmp_path, workers=1, spec=wider)


def rows(files: Sequence[Path], spec: FeatureSpec = SPEC) -> feed.Rows:
    return feed.Rows(files, spec)


def test_rows_of_all_files_are_one_table_in_the_given_order(files: Files):
    table = pa.concat_tables([pa.ipc.open_file(str(file)).read_all() for file in files[0]])
    order = np.random.default_rng(0).permutation(ROWS)[:99]
    dense, codes, label, share = rows(files[0]).batch(order, 101, 4.0)
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
        parts = [feed.part(batch, rank, workers) for rank in range(workers)]
        np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert max(map(len, parts)) <= -(-count // workers)


@pytest.mark.parametrize(
    ("losses", "refits", "validate", "refit"),
    [
        ([], 0, 1, None),
        ([0.5], 0, 2, None),
        ([0.5, 0.4, 0.41], 0, 4, None),  # one epoch without a better one: patience is 2
        ([0.5, 0.4, 0.41, 0.4], 0, None, 1),  # two; an equal loss is not better
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, None, 1),  # all epochs there are
        ([0.5, 0.4, 0.41, 0.4], 1, None, 2),
        ([0.5, 0.4, 0.41, 0.4], 2, None, None),
    ],
)
def test_the_history_alone_says_what_comes_next(losses: list[float], refits: int, validate: int | None, refit: int | None):
    history: list[train.Epoch] = [
        {"phase": train.VALIDATE, "epoch": number, "val_loss": loss} for number, loss in enumerate(losses, start=1)
    ] + [{"phase": train.REFIT, "epoch": number} for number in range(1, refits + 1)]
    settings = config.Train(epochs=5, patience=2)
    assert train.next_epoch(history, train.VALIDATE, settings) == validate
    if validate is None:
        assert train.next_epoch(history, train.REFIT, settings) == refit
