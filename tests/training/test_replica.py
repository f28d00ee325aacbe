import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from recsys import config
from recsys.training.batches import Examples, Pass, TrainBatch, part, passes
from recsys.training.replica import GroupBatchNormalization, ProcessGroup, Replica, learning_rate
from tests.fits import BATCH, SPEC, Files, plan


def one_step(files: Files, run: Path, **changes: Any) -> tuple[list[np.ndarray], list[np.ndarray], TrainBatch, float, Replica]:
    """Weights before and after the first step in float64, its batch, the loss, and who made it."""
    replica = Replica(plan(files, run, policy="float64", **changes), ProcessGroup())
    replica.model.set_weights([start + 0.1 if start.ndim == 1 else start for start in replica.weights()])  # biases start at 0
    rows = Examples(files.train, SPEC)
    batches = passes(rows, BATCH, seed=5, epoch=1)
    before = replica.weights()
    loss = next(replica.steps(rows, batches, start=0, epoch=1))
    return before, replica.weights(), rows.batch(batches.rows[0], BATCH, batches.weights[0]), loss, replica


def gradients(replica: Replica, before: list[np.ndarray], batch: TrainBatch, loss: str) -> tuple[float, list[np.ndarray]]:
    """The same by a plain tape over Keras's own losses, each row's weighted by its share."""
    dense, codes, label, share = batch
    after = replica.weights()
    replica.model.set_weights(before)
    losses: dict[str, Any] = {
        "binary_crossentropy": keras.losses.BinaryCrossentropy(reduction=None),
        "mean_squared_error": keras.losses.MeanSquaredError(reduction=None),
    }
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(share * losses[loss](label[:, None].astype(np.float64), replica.model([dense, codes])))
    found = tape.gradient(value, [variable.value for variable in replica.model.trainable_variables])
    replica.model.set_weights(after)
    return float(value), [tf.convert_to_tensor(gradient).numpy() for gradient in found]


def norm(arrays: list[np.ndarray]) -> float:
    return math.sqrt(sum(float((array**2).sum()) for array in arrays))


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mean_squared_error"])
def test_a_step_of_sgd_is_the_learning_rate_times_the_gradient_of_the_chosen_loss(files: Files, tmp_path: Path, loss: str):
    before, after, batch, said, replica = one_step(files, tmp_path, optimizer="sgd", loss=loss)
    value, slopes = gradients(replica, before, batch, loss)
    assert said == pytest.approx(value, rel=1e-6)  # Keras clips probabilities at 1e-7
    rate = float(np.float32(0.01))
    for old, new, slope in zip(before, after, slopes, strict=True):
        np.testing.assert_allclose(old - new, rate * slope, rtol=1e-5, atol=1e-10)  # Keras's losses round through its epsilon


def test_momentum_reaches_sgd(files: Files, tmp_path: Path):
    """Two steps of one batch at a tiny rate: the second is 1 + momentum times the first."""
    moved = []
    replica = Replica(plan(files, tmp_path, policy="float64", optimizer="sgd", momentum=0.5, learning_rate=1e-6), ProcessGroup())
    rows = Examples(files.train, SPEC)
    first = passes(rows, BATCH, seed=5, epoch=1)
    twice = Pass([first.rows[0]] * 2, [first.weights[0]] * 2)
    at = replica.weights()[-2]
    for _ in replica.steps(rows, twice, start=0, epoch=1):
        moved.append(replica.weights()[-2] - at)
        at = replica.weights()[-2]
    np.testing.assert_allclose(moved[1], 1.5 * moved[0], rtol=1e-3)


def test_the_whole_gradient_is_clipped_to_its_norm(files: Files, tmp_path: Path):
    before, after, batch, _, replica = one_step(files, tmp_path, optimizer="sgd", clip_norm=0.05)
    _, slopes = gradients(replica, before, batch, "binary_crossentropy")
    assert norm(slopes) > 0.1
    steps = [old - new for old, new in zip(before, after, strict=True)]
    assert norm(steps) == pytest.approx(0.01 * 0.05, rel=1e-5)
    np.testing.assert_allclose(steps[-2], 0.01 * 0.05 / norm(slopes) * slopes[-2], rtol=1e-5)


def test_l2_pulls_kernels_and_nothing_else(files: Files, tmp_path: Path):
    before, plain, *_ = one_step(files, tmp_path, optimizer="sgd")
    again, pulled, _, _, replica = one_step(files, tmp_path, optimizer="sgd", l2=0.25)
    rate = float(np.float32(0.01))
    for variable, start, same, without, with_l2 in zip(replica.model.weights, before, again, plain, pulled, strict=True):
        np.testing.assert_array_equal(start, same)
        pull = 2 * 0.25 * rate * start if variable.name == "kernel" else 0 * start  # d(l2 w^2)/dw = 2 l2 w
        np.testing.assert_allclose(without - with_l2, pull, rtol=1e-6, atol=1e-15)


def test_weight_decay_shrinks_kernels_and_embeddings_of_adamw_and_no_bias(files: Files, tmp_path: Path):
    before, plain, *_ = one_step(files, tmp_path, optimizer="adam")
    _, decayed, _, _, replica = one_step(files, tmp_path, optimizer="adamw", weight_decay=0.5)
    rate = float(np.float32(0.01))
    for variable, start, without, shrunk in zip(replica.model.weights, before, plain, decayed, strict=True):
        pull = 0 * start if variable.name == "bias" else 0.5 * rate * start
        np.testing.assert_allclose(without - shrunk, pull, rtol=1e-5, atol=1e-12)


def test_optimizers_go_different_ways(files: Files, tmp_path: Path):
    ends = [one_step(files, tmp_path, optimizer=name)[1][-2] for name in ("adam", "adamw", "sgd")]
    assert len({end.tobytes() for end in ends}) == 3


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, [0.5] * 8),
        ({"warmup_epochs": 1}, [0.5 / 4, 1.0 / 4, 1.5 / 4, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"schedule": "cosine"}, [0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]),
        (
            {"schedule": "cosine", "warmup_epochs": 0.4},  # of 4 steps: 1.6, so 2
            [0.25, 0.5] + [0.25 * (1 + math.cos(math.pi * step / 6)) for step in range(6)],
        ),
    ],
)
def test_the_learning_rate_warms_up_and_falls_along_a_cosine(changes: dict[str, Any], rates: list[float]):
    train = config.Train(learning_rate=0.5, epochs=2, **changes)
    assert [learning_rate(train, step=step, steps=4) for step in range(8)] == pytest.approx(rates)


def test_the_schedule_reaches_the_optimizer(files: Files, tmp_path: Path):
    replica = Replica(plan(files, tmp_path, schedule="cosine", epochs=3), ProcessGroup())
    rows = Examples(files.train, SPEC)
    batches = passes(rows, BATCH, seed=5, epoch=2)
    next(replica.steps(rows, batches, start=4, epoch=2))
    done = 15 / 33  # 11 steps of the first epoch and 4 of the second, of 3 epochs
    assert float(replica.optimizer.learning_rate) == pytest.approx(0.005 * (1 + math.cos(math.pi * done)), rel=1e-6)


def test_batch_normalisation_goes_by_weighted_moments_and_keeps_them_for_scoring():
    layer = GroupBatchNormalization(summed=tf.identity)
    rng = np.random.default_rng(0)
    units = rng.normal((3, 100), (1, 2), (6, 2)).astype(np.float32)
    share = np.array([0.1, 0.4, 0.2, 0.3, 0, 0], np.float32)  # the last two fill the batch up
    layer.build(units.shape)
    layer.share = tf.constant(share)
    normalised = np.asarray(layer(units, training=True))
    mean = (share[:, None] * units).sum(axis=0)
    variance = (share[:, None] * (units - mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(normalised, (units - mean) / np.sqrt(variance + 1e-3), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(layer.moving_mean, 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.99 + 0.01 * variance, rtol=1e-4)


def test_a_step_moves_the_moving_averages_and_a_score_does_not(files: Files, tmp_path: Path):
    mlp = config.Model(hidden=(4,), dropout=0.0, normalisation="batch")
    replica = Replica(plan(files, tmp_path, model=mlp), ProcessGroup())
    rows = Examples(files.train, SPEC)
    moments = [values.numpy() for values in replica.model.non_trainable_weights]
    replica.logits_of(rows)
    assert all(np.array_equal(old, new.numpy()) for old, new in zip(moments, replica.model.non_trainable_weights, strict=True))
    list(replica.steps(rows, passes(rows, BATCH, seed=0, epoch=1), start=0, epoch=1))
    assert not any(np.array_equal(old, new.numpy()) for old, new in zip(moments, replica.model.non_trainable_weights, strict=True))


def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_in_float32(files: Files, tmp_path: Path):
    """Here on a CPU: it is refused there for its speed alone."""
    before = keras.config.dtype_policy().name
    replica = Replica(plan(files, tmp_path, device="gpu", precision="mixed_bfloat16"), ProcessGroup())
    assert keras.config.dtype_policy().name == before
    hidden = replica.model.get_layer("hidden_0")
    assert (hidden.compute_dtype, hidden.kernel.dtype) == ("bfloat16", "float32")
    rows = Examples(files.train, SPEC)
    batches = passes(rows, BATCH, seed=5, epoch=1)
    losses = list(replica.steps(rows, batches, start=0, epoch=1))
    exact = list(Replica(plan(files, tmp_path), ProcessGroup()).steps(rows, batches, start=0, epoch=1))
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)  # bfloat16 has 8 bits: 2**-8 = 0.004 a product


def test_a_part_without_rows_makes_its_step_with_the_others(files: Files, tmp_path: Path):
    """The fourth of four workers, where a batch has three rows: its gradient is 0, its loss 0."""
    replica = Replica(plan(files, tmp_path, optimizer="sgd"), ProcessGroup(rank=0, workers=4))
    rows = Examples(files.train, SPEC)
    batches = Pass([np.arange(3)], [float(rows.weight[:3].sum())])
    assert len(part(batches.rows[0], 0, 4)) == 0
    before = replica.weights()
    assert list(replica.steps(rows, batches, start=0, epoch=1)) == [0.0]
    assert all(np.array_equal(old, new) for old, new in zip(before, replica.weights(), strict=True))
