"""The model: settings in, a Keras multilayer perceptron out. No Ray, no files.

Dense inputs come normalised (`FeatureSpec.normalise`); each code column has its own embedding, a multi-valued one the mean of its
values' embeddings; all are joined and pass through hidden layers, each of them dense, then normalisation, activation and dropout.
The default is the original model: 512, 256 and 128 units, relu, dropout 0.2, one sigmoid.
"""

import zlib
from collections.abc import Callable

import keras
import numpy as np

from recsys.config import Model
from recsys.features.spec import FeatureSpec

LOGIT = "logit"  # the layer whose output is the raw score that lists are ordered by
INITIALISERS: dict[str, Callable[[int], keras.initializers.Initializer]] = {  # a seed -> that of one kernel
    "random_uniform": lambda seed: keras.initializers.RandomUniform(-0.05, 0.05, seed=seed),
    "random_normal": lambda seed: keras.initializers.RandomNormal(stddev=0.05, seed=seed),
    "glorot_uniform": lambda seed: keras.initializers.GlorotUniform(seed=seed),
    "he_normal": lambda seed: keras.initializers.HeNormal(seed=seed),
}


def build(
    spec: FeatureSpec,
    settings: Model,
    *,
    seed: int,
    batch_normalisation: Callable[..., keras.layers.Layer] = keras.layers.BatchNormalization,
) -> keras.Model:
    """A model that predicts the probability of the label; the same seed gives the same initial weights.

    Args:
        spec: the inputs: F dense columns and C code columns with their sizes.
        seed: of the initial weights; dropout takes its own seed at every step of the fit.
        batch_normalisation: makes that layer; the fit passes one of the same weights that takes its moments over all workers.

    Returns:
        Inputs `dense` float32 (B, F), normalised, and `codes` int32 (B, C), absent where C is 0, as a list in this order;
        output float32 (B, 1).
    """
    dense = keras.Input((len(spec.dense),), name="dense")
    inputs, parts = [dense], [dense]
    if spec.codes:
        codes = keras.Input((len(spec.codes),), name="codes", dtype="int32")
        inputs.append(codes)
        for column, count, size in spec.embeddings():
            uniform = keras.initializers.RandomUniform(-0.05, 0.05, seed=_seed(seed, column, "embedding"))
            width = min(settings.max_embedding, embedding_width(size))
            embedding = keras.layers.Embedding(size, width, embeddings_initializer=uniform, name=f"embedding_{column}")
            parts.append(embedding(codes[:, column]) if count == 1 else _mean(embedding, codes[:, column : column + count]))
    units = keras.layers.Concatenate(name="inputs")(parts) if len(parts) > 1 else dense
    for layer, width in enumerate(settings.hidden):
        kernel = INITIALISERS[settings.initialiser](_seed(seed, layer, "hidden"))
        units = keras.layers.Dense(width, kernel_initializer=kernel, name=f"hidden_{layer}")(units)
        if settings.normalisation == "batch":
            units = batch_normalisation(name=f"normalisation_{layer}")(units)
        elif settings.normalisation == "layer":
            units = keras.layers.LayerNormalization(name=f"normalisation_{layer}")(units)
        if settings.activation == "gelu":
            # by erf (Hendrycks and Gimpel 2016), in operations: Keras's own becomes Erfc, which the ONNX exporter does not know
            units = 0.5 * units * (1 + keras.ops.erf(units * 2**-0.5))
        else:
            units = keras.layers.Activation(settings.activation, name=f"activation_{layer}")(units)
        units = keras.layers.Dropout(settings.dropout, seed=_seed(seed, layer, "dropout"), name=f"dropout_{layer}")(units)
    kernel = INITIALISERS[settings.initialiser](_seed(seed, 0, LOGIT))
    logit = keras.layers.Dense(1, kernel_initializer=kernel, name=LOGIT)(units)
    return keras.Model(inputs, keras.layers.Activation("sigmoid", name="probability")(logit), name="recsys")


def logits(model: keras.Model) -> keras.Model:
    """The part of the model before the sigmoid; shares its weights; output float32 (B, 1)."""
    return keras.Model(model.inputs, model.get_layer(LOGIT).output, name="logits")


def split(model: keras.Model, spec: FeatureSpec) -> tuple[dict[str, np.ndarray], keras.Model]:
    """The model cut after its first product, which is linear: rows of it can be added up from parts that were multiplied apart.

    Returns:
        Arrays `kernel` (inputs, H), `bias` (H,) and each `embedding_i`; and the rest: the first product float32 (B, H) -> logit.
    """
    first = model.get_layer("hidden_0")
    arrays = {f"embedding_{column}": model.get_layer(f"embedding_{column}").get_weights()[0] for column, _, _ in spec.embeddings()}
    kernel, bias = first.get_weights()
    rest = keras.Model([first.output], model.get_layer(LOGIT).output, name="rest")
    return {"kernel": kernel, "bias": bias, **arrays}, rest


def embedding_width(size: int) -> int:
    """Width for a column of `size` codes: round(1.6 size^0.56), fast.ai's rule (`emb_sz_rule`, fastai/tabular/model.py)."""
    return round(1.6 * size**0.56)


def _mean(embedding: keras.layers.Layer, codes: keras.KerasTensor) -> keras.KerasTensor:
    """The mean embedding of a row's known codes; 0 where it has none: code 0 is padding or unseen."""
    embedded = embedding(codes)
    known = keras.ops.expand_dims(keras.ops.cast(codes > 0, embedded.dtype), -1)
    return keras.ops.sum(embedded * known, axis=1) / keras.ops.maximum(keras.ops.sum(known, axis=1), 1)


def _seed(seed: int, layer: int, role: str) -> int:
    """One seed for each layer: equal seeds would start equal shapes with equal weights."""
    return zlib.crc32(f"{seed}/{role}/{layer}".encode()) & 0x7FFFFFFF
