"""One worker's model, optimizer and step.

What makes N workers equal one:

* a gradient is the sum over rows of weight x gradient, over the weight of the whole global batch, so an uneven last batch counts
  each row once; a worker's part is filled up with rows of weight 0, so that every worker makes every step;
* the optimizer gets the sum, so clipping by norm sees the global gradient (Keras's own all-reduce comes after its clipping);
* batch normalisation takes its moments, weighted, over all workers, and hands their gradients back the same way;
* the penalty on kernels is counted once, not once a worker.

Dropout masks come from (seed, layer, worker, step): a resumed run draws those it would have drawn.
"""

import functools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys import config
from recsys.ranking.network import build, logits
from recsys.training.batches import Examples, Pass, TrainBatch, ahead, part, passes
from recsys.training.checkpoints import State, Weights
from recsys.training.plan import Plan

BLOCK = 2048  # validation rows in one forward pass; a worker takes whole blocks, so a logit's bits do not depend on their number
UNDECAYED = ("bias", "gamma", "beta")  # decay would pull them from where they belong: they are no products' factors

LOSSES: dict[str, Callable[[Any, Any], Any]] = {  # labels and logits -> each row's loss
    "binary_crossentropy": tf.nn.sigmoid_cross_entropy_with_logits,
    "mean_squared_error": lambda label, logit: tf.square(label - tf.sigmoid(logit)),
}


@dataclass(frozen=True)
class ProcessGroup:
    """Where a worker stands among those of its fit; alone, where nothing is said."""

    rank: int = 0
    workers: int = 1
    total: Callable[[Any], Any] = tf.identity
    """A tensor -> its sum over all workers, the same bits in each; all must call it, in one order, inside a tf.function."""


class Replica:
    """The model, its optimizer and the compiled step of one worker.

    Variables are plain, one copy in each worker: the same seed and the same summed gradients keep them equal.
    """

    def __init__(self, plan: Plan, group: ProcessGroup) -> None:
        self.plan, self.group = plan, group
        summed = _summed(group)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(plan.policy or plan.train.precision)
        try:
            synchronised = functools.partial(GroupBatchNormalization, summed=summed)
            self.model = build(plan.spec, plan.model, seed=plan.seed, batch_normalisation=synchronised)
        finally:
            keras.config.set_dtype_policy(before)
        self.optimizer = make_optimizer(plan.train)
        variables = self.model.trainable_variables
        if plan.train.optimizer == "adamw":
            self.optimizer.exclude_from_weight_decay([variable for variable in variables if variable.name in UNDECAYED])
        self.optimizer.build(variables)
        self._total = tf.function(group.total)
        scores = logits(self.model)
        dtype = variables[0].dtype
        sizes = [int(np.prod(variable.shape)) for variable in variables]
        masks = [layer.seed_generator.state for layer in self.model.layers if getattr(layer, "seed_generator", None)]
        seeds = [zlib.crc32(f"{plan.seed}/{layer}/{group.rank}".encode()) for layer in range(len(masks))]
        kernels = [layer.kernel for layer in self.model.layers if isinstance(layer, keras.layers.Dense)]
        moments = [layer for layer in self.model.layers if isinstance(layer, GroupBatchNormalization)]
        width, columns = len(plan.spec.dense), len(plan.spec.codes)

        def score(dense: Any, codes: Any, training: bool) -> Any:
            return tf.cast(scores([dense, codes][: len(scores.inputs)], training=training)[:, 0], dtype)

        def inputs(rows: int) -> list[Any]:
            return [tf.TensorSpec((rows, width), tf.float32), tf.TensorSpec((rows, columns), tf.int32)]

        size = -(-plan.train.batch_size // group.workers)

        @tf.function(input_signature=[*inputs(size), tf.TensorSpec((size,)), tf.TensorSpec((size,))], autograph=False)
        def step(dense: Any, codes: Any, label: Any, share: Any) -> Any:
            label, share = tf.cast(label, dtype), tf.cast(share, dtype)
            for layer in moments:
                layer.share = share
            count = tf.cast(self.optimizer.iterations.value, tf.int64)
            drawn = [(mask, tf.stack([tf.constant(seed, tf.int64), count])) for mask, seed in zip(masks, seeds, strict=True)]
            with tf.GradientTape() as tape:
                with keras.StatelessScope(state_mapping=drawn) as scope:
                    logit = score(dense, codes, True)
                loss = tf.reduce_sum(share * LOSSES[plan.train.loss](label, logit))
                penalised = loss
                if plan.train.l2:
                    squares = tf.add_n([tf.reduce_sum(tf.square(kernel.value)) for kernel in kernels])
                    penalised += plan.train.l2 / group.workers * squares
            gradients = tape.gradient(penalised, [variable.value for variable in variables])
            for variable in self.model.non_trainable_weights:
                if (moved := scope.get_current_value(variable)) is not None:
                    variable.assign(moved)
            # one vector, one all-reduce: each costs milliseconds whatever its length
            flat = group.total(tf.concat([*(tf.reshape(gradient, [-1]) for gradient in gradients), [loss]], axis=0))
            *parts, loss = tf.split(flat, [*sizes, 1])
            self.optimizer.apply([tf.reshape(values, variable.shape) for values, variable in zip(parts, variables, strict=True)])
            return loss[0]

        self._dtype = dtype
        self._step = step
        self._score = tf.function(functools.partial(score, training=False), input_signature=inputs(BLOCK))

    def passes(self, rows: Examples, *, epoch: int) -> Pass:
        """The steps of an epoch, the same in every worker."""
        return passes(rows, self.plan.train.batch_size, seed=self.plan.seed, epoch=epoch)

    def told(self, rows: Examples, batches: Pass) -> dict[str, int]:  # noqa: ARG002 # a private one tells more
        """What the history says of an epoch besides."""
        return {}

    def steps(self, rows: Examples, batches: Pass, *, start: int, epoch: int) -> Iterator[float]:
        """The global loss of each step of an epoch, as it is made: the weighted mean over the batch, before the step.

        Args:
            start: steps of the epoch that were made before.
            epoch: from 1; the learning rate goes by it.
        """
        size, count = -(-self.plan.train.batch_size // self.group.workers), len(batches.rows)

        def make(number: int) -> TrainBatch:
            mine = part(batches.rows[start + number], self.group.rank, self.group.workers)
            return rows.batch(mine, size, batches.weights[start + number])

        for number, batch in enumerate(ahead(make, count - start), start=start):
            self.optimizer.learning_rate = learning_rate(self.plan.train, step=(epoch - 1) * count + number, steps=count)
            yield float(self._step(*batch))

    def logits_of(self, rows: Examples) -> np.ndarray:
        """The logits of all rows, (B,), the same in every worker and for every number of them; of the weights' dtype."""
        starts = part(np.arange(0, len(rows), BLOCK), self.group.rank, self.group.workers)
        logits = np.zeros(len(rows), self._dtype)

        def make(number: int) -> TrainBatch:
            return rows.batch(np.arange(starts[number], min(starts[number] + BLOCK, len(rows))), BLOCK, 1.0)

        for start, (dense, codes, _, _) in zip(starts, ahead(make, len(starts)), strict=True):
            block = logits[start : start + BLOCK]
            block[:] = self._score(dense, codes).numpy()[: len(block)]
        return self.total(logits)  # every other worker holds zeros there

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over all workers; all must call it."""
        return self._total(tf.constant(values)).numpy()

    def weights(self) -> Weights:
        """Of the model, copies; those that are not trained too."""
        return self.model.get_weights()

    def optimizer_state(self) -> Weights:
        """The optimizer's variables, copies."""
        return [variable.numpy() for variable in self.optimizer.variables]

    def restore(self, state: State) -> None:
        """Go back to the state."""
        self.model.set_weights(state.weights)
        for variable, values in zip(self.optimizer.variables, state.optimizer, strict=True):
            variable.assign(values)


class GroupBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by the weighted moments of the whole global batch, and so with the same moving averages in every worker.

    It has the weights of its base class, which takes its place once the fit is over. Keras's own `synchronized` knows no weights:
    rows that fill a batch up would count.
    """

    def __init__(self, *, summed: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.summed = summed
        self.share: Any = None  # of each row in the global batch, (B,); set by the step before its forward pass

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:  # noqa: ARG002 # overrides Keras's
        """Mean and variance, (F,), in one all-reduce; about the moving mean, as E[x^2] - E[x]^2 cancels far from 0."""
        near = keras.ops.cast(self.moving_mean, inputs.dtype)
        share = tf.cast(self.share, inputs.dtype)[:, None]
        away = inputs - near
        sums = tf.concat([tf.reduce_sum(share * away, axis=0), tf.reduce_sum(share * tf.square(away), axis=0)], axis=0)
        shift, square = tf.split(self.summed(sums), 2)
        return near + shift, tf.maximum(square - tf.square(shift), 0)


def _summed(group: ProcessGroup) -> Callable[[Any], Any]:
    """The group's sum with its gradient: what every worker's loss owes to the sum goes back to each summand."""

    @tf.custom_gradient
    def summed(values: Any) -> Any:
        return group.total(values), group.total

    return summed


def make_optimizer(train: config.Train) -> keras.optimizers.Optimizer:
    """As the settings say; the learning rate is set at every step."""
    shared: dict[str, Any] = {"learning_rate": train.learning_rate, "global_clipnorm": train.clip_norm}
    match train.optimizer:
        case "adam":
            return keras.optimizers.Adam(**shared)
        case "adamw":
            return keras.optimizers.AdamW(weight_decay=train.weight_decay, **shared)
        case "sgd":
            return keras.optimizers.SGD(momentum=train.momentum, **shared)


def learning_rate(train: config.Train, *, step: int, steps: int) -> float:
    """The learning rate of one step.

    A cosine ends with `train.epochs` even where the fit ends sooner, so a refit goes through the rates that validation chose.
    SGDR's formula without restarts (Loshchilov and Hutter 2017, equation 5, smallest rate 0).

    Args:
        step: from 0, over all epochs.
        steps: of one epoch.
    """
    warmup = math.ceil(train.warmup_epochs * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    return train.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (train.epochs * steps - warmup))) / 2
