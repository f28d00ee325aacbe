"""What each input adds to a row's raw output: integrated gradients of the bundle's Keras model, checked to add up.

A row is compared with one of which nothing is known, the baseline: every number missing, which is the training rows' mean unless
`spec.fill` says otherwise, and every code 0. On the straight line from there to the row the gradients of the raw output are averaged;
an input's contribution is that mean gradient times its distance from the baseline (Sundararajan, Taly, Yan 2017, equation 1). Numbers
go along the line normalised, codes as their embeddings; a code column's contribution is the sum over its embedding. So what is
missing or unknown adds 0, and the contributions of a row add up to its raw output less the baseline's (their proposition 1).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import BundleError
from recsys.features.spec import FeatureSpec
from recsys.ranking.bundle import Bundle

if TYPE_CHECKING:
    import keras


FEWEST_STEPS, MOST_STEPS = 64, 2048  # of the line; more would add up float32's rounding
TOLERANCE = 1e-3  # of a row's raw output less the baseline's; relative where that is more than 1


@dataclass(frozen=True)
class Attribution:
    """N rows."""

    names: tuple[str, ...]
    """Of the inputs: dense ones, then code columns, a multi-valued one once."""
    added: np.ndarray
    """float64 (N, inputs): to the raw output."""
    raw: np.ndarray
    """float64 (N): the rows' raw outputs, by Keras."""
    baseline: float
    """Raw output of a row of which nothing is known."""


def attribute(bundle: Bundle, dense: np.ndarray, codes: np.ndarray) -> Attribution:
    """What each input adds to the raw output of each row; imports TensorFlow.

    Args:
        dense: float32 (N, F) in the spec's order, as encoded, not normalised; NaN is missing.
        codes: int32 (N, C).

    Raises:
        BundleError: the contributions of a row do not add up in MOST_STEPS steps, as where an output is no number.
    """
    import keras

    from recsys.ranking.network import LOGIT

    spec = bundle.spec
    names = (*spec.dense, *dict.fromkeys(spec.codes))
    model = bundle.keras_model()
    inner = model.get_layer("hidden_0").input  # dense inputs and embeddings side by side, float32 (B, V)
    head = keras.Model(inner, model.get_layer(LOGIT).output)
    dense = np.concatenate([np.full((1, len(spec.dense)), np.nan, np.float32), dense])
    codes = np.concatenate([np.zeros((1, len(spec.codes)), np.int32), codes])
    points = spec.normalise(dense)
    if spec.codes:
        points = np.asarray(keras.Model(model.inputs, inner)([points, codes], training=False))
    raw = np.asarray(head(points, training=False))[:, 0].astype(np.float64)
    widths = [model.get_layer(f"embedding_{column}").output_dim for column, _, _ in spec.embeddings()]
    starts = np.cumsum([0, *[1] * len(spec.dense), *widths])[: len(names)]
    added = np.zeros((len(points) - 1, len(names)))
    for row in range(len(added)):
        added[row] = _integrated(head, points[0], points[row + 1], starts, total=raw[row + 1] - raw[0], bundle=bundle)
    return Attribution(names, added, raw[1:], float(raw[0]))


def _integrated(
    head: "keras.Model", start: np.ndarray, end: np.ndarray, starts: np.ndarray, *, total: float, bundle: Bundle
) -> np.ndarray:
    """float64 (inputs): the contributions of one row.

    A step's gradient is that at its middle. It must foretell the step's change of the raw output; a step where it does not, as where an
    activation has its kink, is halved.
    """
    import tensorflow as tf

    allowed = TOLERANCE * max(1.0, abs(total))
    way = end.astype(np.float64) - start
    edges = np.linspace(0.0, 1.0, FEWEST_STEPS + 1)
    while True:
        shares = np.concatenate([edges, (edges[1:] + edges[:-1]) / 2])
        line = tf.constant((start + shares[:, None] * way).astype(np.float32))
        with tf.GradientTape() as tape:
            tape.watch(line)
            out = head(line, training=False)
        lengths = np.diff(edges)
        gradients = np.asarray(tape.gradient(out, line), np.float64)[len(edges) :] * lengths[:, None] * way
        changes = np.diff(np.asarray(out, np.float64)[: len(edges), 0])
        errors = np.abs(gradients.sum(axis=1) - changes)
        if errors.sum() <= allowed:
            return np.add.reduceat(gradients.sum(axis=0), starts)
        if len(errors) >= MOST_STEPS:
            raise BundleError(
                f"{bundle.folder}: contributions must add up to {total:.4g} within {allowed:.2g}, got {gradients.sum():.4g} in "
                f"{len(errors)} steps. Are the model's weights finite?"
            )
        halved = ~(errors <= allowed / len(errors))  # those that are no number too
        edges = np.sort(np.concatenate([edges, ((edges[1:] + edges[:-1]) / 2)[halved]]))


def in_words(spec: FeatureSpec, dense: np.ndarray, codes: np.ndarray) -> tuple[str, ...]:
    """The value of each input of one row, in the order of `Contributions.names`; "unknown" where it is missing or unseen.

    Args:
        dense: float32 (F), as encoded, not normalised.
        codes: int32 (C).
    """
    numbers = ["unknown" if np.isnan(value) else f"{value:.3g}" for value in dense.tolist()]
    words = []
    for first, count, _ in spec.embeddings():
        vocabulary = spec.vocabularies[spec.codes[first]]
        known = [vocabulary[code - 1] for code in codes[first : first + count].tolist() if code]
        words.append(", ".join(known) or "unknown")
    return (*numbers, *words)
