"""One worker's step under differential privacy: DP-SGD (Abadi et al. 2016), a user with all rows being the unit (McMahan et al. 2018).

    draw       each user is in a step with the same chance, whatever others are; some of the user's rows speak for it
    clip       the gradient of a user's mean loss is scaled down to `clip` where it is longer
    sum        over the users of all workers
    noise      normal, of deviation noise x clip, added once, by the first worker
    apply      over the number of users that a step draws on average

No user's gradient is ever made: its length follows from each layer's inputs and from the gradients of its outputs, row by row
(Goodfellow 2015; for whole groups of rows Li et al. 2022, "ghost clipping"), and a second pass backwards sums what is clipped.

What is drawn is a secret of the run: it comes from the system's entropy, is on no disk, and differs in every run, so that two runs
give different weights and a run that goes on from a checkpoint draws anew.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from recsys.features.spec import FeatureSpec
from recsys.ranking.network import LOGIT
from recsys.training.accounting import check_delta, sampling
from recsys.training.batches import Examples, Pass, part
from recsys.training.plan import Plan
from recsys.training.replica import LOSSES, ProcessGroup, Replica, learning_rate

CHUNK = 32  # users whose gradients are measured at once; memory goes by CHUNK x rows x the widest layer


@dataclass(frozen=True)
class UserPass(Pass):
    """As `Pass`; a batch is the drawn users' rows, user by user, its weight their number."""

    users: list[np.ndarray]
    """Of each batch, how many rows each of its users has in it, int64."""

    @override
    def mean(self, losses: Any) -> float:
        """The mean over all users drawn of their mean losses."""
        return float(np.dot(losses, self.weights) / max(sum(self.weights), 1.0))


class PrivateReplica(Replica):
    """As `Replica`; its steps are those above."""

    def __init__(self, plan: Plan, group: ProcessGroup) -> None:
        super().__init__(plan, group)
        assert plan.train.privacy is not None, "no privacy is asked for"
        self.privacy = privacy = plan.train.privacy
        self.seeds = tf.random.Generator.from_seed(self._entropy())  # of the first worker's noise, equal in all
        size = CHUNK * privacy.rows
        lengths, outputs = _lengths(self.model, plan.spec)
        scores = keras.Model(self.model.inputs, [self.model.get_layer(LOGIT).output, *outputs], name="watched")
        variables = self.model.trainable_variables
        dtype = variables[0].dtype
        sizes = [int(np.prod(variable.shape)) for variable in variables]
        kernels = [layer.kernel for layer in self.model.layers if isinstance(layer, keras.layers.Dense)]
        masks = [layer.seed_generator.state for layer in self.model.layers if getattr(layer, "seed_generator", None)]
        width, columns = len(plan.spec.dense), len(plan.spec.codes)
        inputs = [
            tf.TensorSpec((size, width)),
            tf.TensorSpec((size, columns), tf.int32),
            tf.TensorSpec((size,)),
            tf.TensorSpec((size,)),
        ]

        @tf.function(input_signature=[*inputs, tf.TensorSpec((), tf.int64)], autograph=False)
        def clipped(dense: Any, codes: Any, label: Any, share: Any, drawn: Any) -> Any:
            """The sum of the clipped gradients of CHUNK users, flat, and behind it that of their losses."""
            label, share = tf.cast(label, dtype), tf.cast(share, dtype)
            states = [(mask, tf.stack([tf.constant(place, tf.int64), drawn])) for place, mask in enumerate(masks)]
            with tf.GradientTape(persistent=True) as tape:
                with keras.StatelessScope(state_mapping=states):
                    logit, *watched = scores([dense, codes][: len(scores.inputs)], training=True)
                losses = share * LOSSES[plan.train.loss](label, tf.cast(logit[:, 0], dtype))
            towards = tape.gradient(losses, watched[: len(lengths)])
            squares = tf.zeros((CHUNK,), dtype)
            for length, slope in zip(lengths, towards, strict=True):
                squares += tf.cast(length(codes, watched, slope), dtype)
            longest = tf.cast(privacy.clip, dtype)
            factor = longest / tf.maximum(tf.sqrt(tf.maximum(squares, 0)), longest)
            found = tape.gradient(losses, [variable.value for variable in variables], tf.repeat(factor, privacy.rows))
            return tf.concat([*(tf.reshape(gradient, [-1]) for gradient in found), [tf.reduce_sum(losses)]], axis=0)

        @tf.function(autograph=False)
        def apply(flat: Any, expected: Any) -> Any:
            """A step by the workers' sums; the sum of all losses."""
            noise = tf.zeros_like(flat)
            if group.rank == 0:
                drawn = self.seeds.normal((sum(sizes),), dtype=dtype) * tf.cast(privacy.noise * privacy.clip, dtype)
                noise = tf.concat([drawn, tf.zeros((1,), dtype)], axis=0)
            *parts, loss = tf.split(group.total(flat + noise), [*sizes, 1])
            gradients = [tf.reshape(one, variable.shape) / expected for one, variable in zip(parts, variables, strict=True)]
            if plan.train.l2:
                decay = {id(kernel): 2 * plan.train.l2 * kernel.value for kernel in kernels}
                gradients = [one + decay.get(id(variable), 0) for one, variable in zip(gradients, variables, strict=True)]
            self.optimizer.apply(gradients)
            return loss[0]

        self._clipped, self._apply, self._length = clipped, apply, sum(sizes) + 1

    @override
    def passes(self, rows: Examples, *, epoch: int) -> UserPass:
        """The steps of an epoch: as many as make every user's turn come once on average.

        Raises:
            ConfigError: train.privacy.delta means nothing for so many users.
        """
        rng = np.random.default_rng(self._entropy())
        of_user, starts = rows.by_user
        users = len(starts) - 1
        check_delta(self.privacy, users)
        chance, batches = sampling(self.privacy, users), list[tuple[np.ndarray, np.ndarray]]()
        for _ in range(-(-users // self.privacy.users)):
            drawn = np.flatnonzero(rng.random(users) < chance)
            chosen = [of_user[starts[user] : starts[user + 1]] for user in drawn]
            chosen = [one if len(one) <= self.privacy.rows else rng.permutation(one)[: self.privacy.rows] for one in chosen]
            counts = np.array([len(one) for one in chosen], np.int64)
            batches.append((np.concatenate(chosen) if chosen else np.empty(0, np.int64), counts))
        return UserPass(
            [batch for batch, _ in batches], [float(len(counts)) for _, counts in batches], [counts for _, counts in batches]
        )

    @override
    def told(self, rows: Examples, batches: Pass) -> dict[str, int]:
        """What the accountant needs of an epoch."""
        return {"users": len(rows.by_user[1]) - 1, "steps": len(batches.rows)}

    @override
    def steps(self, rows: Examples, batches: Pass, *, start: int, epoch: int) -> Iterator[float]:
        """The mean of the drawn users' mean losses at each step of an epoch, as it is made, before the step; 0 where none is drawn."""
        assert isinstance(batches, UserPass), "a pass of rows has no users"
        of_user = rows.by_user[1]
        expected = sampling(self.privacy, len(of_user) - 1) * (len(of_user) - 1)
        count = len(batches.rows)
        for number in range(start, count):
            self.optimizer.learning_rate = learning_rate(self.plan.train, step=(epoch - 1) * count + number, steps=count)
            counts, ends = batches.users[number], np.cumsum([0, *batches.users[number]])
            flat = np.zeros(self._length, self._dtype)
            mine = part(np.arange(len(counts)), self.group.rank, self.group.workers)
            for begin in range(0, len(mine), CHUNK):
                chunk = mine[begin : begin + CHUNK]
                told = [batches.rows[number][ends[user] : ends[user + 1]] for user in chunk]
                drawn = tf.constant((self.group.rank << 40) + (number << 20) + begin, tf.int64)
                flat += self._clipped(*self._filled(rows, told), drawn + (epoch << 50)).numpy()
            loss = float(self._apply(tf.constant(flat), tf.constant(expected, self._dtype)))
            yield loss / max(len(counts), 1)

    def _filled(self, rows: Examples, told: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The rows of CHUNK users, each with as many places as `rows` says; empty ones share nothing."""
        many = self.privacy.rows
        places = np.concatenate([place * many + np.arange(len(one)) for place, one in enumerate(told)])
        chosen = np.concatenate(told)
        weight = rows.weight[chosen]
        user = places // many
        share = weight / np.bincount(user, weights=weight)[user]
        filled = []
        dense, codes, label, _ = rows.batch(chosen, len(chosen), 1.0)
        for values in (dense, codes, label, share.astype(np.float32)):
            whole = np.zeros((CHUNK * many, *values.shape[1:]), values.dtype)
            whole[places] = values
            filled.append(whole)
        return tuple(filled)

    def _entropy(self) -> int:
        """A number that nobody can guess, the same in every worker; all must call it."""
        mine = [float(secrets.randbits(32)) if self.group.rank == 0 else 0.0 for _ in range(2)]
        high, low = self.total(np.array(mine, np.float64)).astype(np.int64).tolist()
        return ((high << 32) | low) & ((1 << 62) - 1)


def _lengths(model: keras.Model, spec: FeatureSpec) -> tuple[list[Any], list[Any]]:
    """For each layer with weights a function of (codes, watched outputs, gradient of the layer's output) -> the squared length of each
    user's gradient of that layer's weights, (CHUNK,); and all tensors to watch, of which the layers' outputs come first.

    Raises:
        TypeError: a kind of layer whose rows are not each other's strangers, or that nobody has thought of.
    """
    layers = [layer for layer in model.layers if layer.trainable_weights]
    inputs = [layer.input for layer in layers if not isinstance(layer, keras.layers.Embedding)]
    place = iter(range(len(layers), len(layers) + len(inputs)))
    lengths: list[Any] = []
    columns = {f"embedding_{column}": (column, count) for column, count, _ in spec.embeddings()}  # layers stand in another order
    for layer in layers:
        if isinstance(layer, keras.layers.Embedding):
            lengths.append(_of_embedding(*columns[layer.name]))
        elif isinstance(layer, keras.layers.Dense):
            lengths.append(_of_dense(next(place)))
        elif isinstance(layer, keras.layers.LayerNormalization):
            lengths.append(_of_layer_normalisation(next(place), layer.epsilon))
        else:
            raise TypeError(f"{layer.name}: no length is known of the gradient of a {type(layer).__name__}")
    return lengths, [*(layer.output for layer in layers), *inputs]


def _by_user(values: Any) -> Any:
    """(CHUNK x rows, …) -> (CHUNK, all of a user's vectors, their width), float32 at least."""
    values = tf.cast(values, tf.float32) if values.dtype in (tf.bfloat16, tf.float16) else values
    return tf.reshape(values, (CHUNK, -1, values.shape[-1]))


def _products(values: Any) -> Any:
    """All products of two of a user's vectors."""
    return tf.matmul(values, values, transpose_b=True)


def _of_dense(place: int) -> Any:
    """|sum_r a_r g_r^T|^2 + |sum_r g_r|^2 = sum_rs (a_r a_s + 1)(g_r g_s)."""

    def length(codes: Any, watched: Any, slope: Any) -> Any:  # as the others
        return tf.reduce_sum((_products(_by_user(watched[place])) + 1) * _products(_by_user(slope)), axis=(1, 2))

    return length


def _of_embedding(column: int, count: int) -> Any:
    """The same, where a_r a_s is 1 for equal codes and else 0."""

    def length(codes: Any, watched: Any, slope: Any) -> Any:
        mine = tf.reshape(codes[:, column : column + count], (CHUNK, -1))
        same = tf.cast(mine[:, :, None] == mine[:, None, :], _by_user(slope).dtype)
        return tf.reduce_sum(same * _products(_by_user(slope)), axis=(1, 2))

    return length


def _of_layer_normalisation(place: int, epsilon: float) -> Any:
    """|sum_r g_r|^2 + |sum_r g_r x_r|^2, x the normalised input."""

    def length(codes: Any, watched: Any, slope: Any) -> Any:
        given, slope = _by_user(watched[place]), _by_user(slope)
        mean, variance = tf.nn.moments(given, axes=[-1], keepdims=True)
        normalised = (given - mean) * tf.math.rsqrt(variance + epsilon)
        sums = tf.reduce_sum(slope, axis=1), tf.reduce_sum(slope * normalised, axis=1)
        return sum(tf.reduce_sum(tf.square(one), axis=-1) for one in sums)

    return length
