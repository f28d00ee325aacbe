"""The model: settings in, a Keras multilayer perceptron out. No Ray, no files.

Dense inputs come normalised (`FeatureSpec.normalise`); each code column has its own embedding, a multi-valued one the mean of its
values' embeddings; all are joined and pass through
hidden layers with dropout. The default is the original model: 512, 256 and 128 units, relu, dropout 0.2, one sigmoid.
"""

import zlib

import keras

from recsys.config import Model
from recsys.spec import FeatureSpec

LOGIT = "logit"  # the layer whose output is the raw score that lists are ordered by


def build(spec: FeatureSpec, settings: Model, *, seed: int) -> keras.Model:
    """A model that predicts the probability of the label; the same seed gives the same initial weights.

    Args:
        spec: the inputs: F dense columns and C code columns with their sizes.
        seed: of the initial weights; dropout takes its own seed at every step of the fit.

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
        glorot = keras.initializers.GlorotUniform(seed=_seed(seed, layer, "hidden"))
        units = keras.layers.Dense(width, activation="relu", kernel_initializer=glorot, name=f"hidden_{layer}")(units)
        units = keras.layers.Dropout(settings.dropout, seed=_seed(seed, layer, "dropout"), name=f"dropout_{layer}")(units)
    glorot = keras.initializers.GlorotUniform(seed=_seed(seed, 0, LOGIT))
    logit = keras.layers.Dense(1, kernel_initializer=glorot, name=LOGIT)(units)
    return keras.Model(inputs, keras.layers.Activation("sigmoid", name="probability")(logit), name="recsys")


def logits(model: keras.Model) -> keras.Model:
    """The part of the model before the sigmoid; shares its weights; output float32 (B, 1)."""
    return keras.Model(model.inputs, model.get_layer(LOGIT).output, name="logits")


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
