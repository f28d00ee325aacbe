"""The scorer: one bundle, numpy in, raw scores out. Knows nothing of Ray.

A row's score has the same bits whatever other rows it is scored with: batch size, order and the number of actors change no list.
"""

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy

from recsys.errors import ClusterError
from recsys.ranking.bundle import Bundle

Raw = Callable[[np.ndarray, np.ndarray], np.ndarray]  # normalised dense (B, F), codes (B, C) -> logits (B,); B <= ROWS

Device = Literal["cpu", "gpu"]
# Scored at once. Nanoseconds a row on one busy core through 512-256-128 units, 64 dense inputs | 80 and 6 codes, median of three:
# 256: 4,346 | 5,956, 512: 4,172 | 6,252, 1,024: 4,388 | 5,869, 2,048: 4,828 | 5,921, 4,096: 5,118 | 6,651.
ROWS = 1024


class Scorer:
    """Raw model outputs for feature rows.

    Args:
        bundle: the model.
        device: "cpu" scores with ONNX Runtime on one thread, "gpu" with Keras on the first GPU.

    Raises:
        ClusterError: a GPU was asked for and TensorFlow sees none.
    """

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        self.bundle = bundle
        self._sizes = np.asarray(bundle.spec.sizes(), np.int32)
        self._raw = _onnx(bundle) if device == "cpu" else _keras_on_gpu(bundle)

    def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The logit of each row, what lists are ordered by.

        Args:
            dense: float32 (B, F) in the spec's order, as encoded, not normalised; NaN is missing.
            codes: int32 (B, C), each within its column's vocabulary.

        Returns:
            float32 (B,).
        """
        spec = self.bundle.spec
        rows = len(dense)
        assert dense.dtype == np.float32, f"dense must be float32, got {dense.dtype}"
        assert dense.shape == (rows, len(spec.dense)), f"dense must be (B, {len(spec.dense)}), got {dense.shape}"
        assert codes.dtype == np.int32, f"codes must be int32, got {codes.dtype}"
        assert codes.shape == (rows, len(spec.codes)), f"codes must be (B, {len(spec.codes)}), got {codes.shape}"
        assert np.all((codes >= 0) & (codes < self._sizes)), "a code lies outside its column's vocabulary"
        raw = np.empty(rows, np.float32)
        for start in range(0, rows, ROWS):
            part = slice(start, start + ROWS)
            raw[part] = self._raw(spec.normalise(dense[part]), codes[part])
        return raw


def chances(bundle: Bundle) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What makes a bundle's scores of raw outputs and purchases, (B) each: its calibration, else the model's own probabilities."""
    return bundle.calibration or (lambda raw, purchases: probabilities(raw))  # noqa: ARG005


def probabilities(raw: np.ndarray) -> np.ndarray:
    """The model's own probabilities, 1 / (1 + exp(-raw)); float32 as `raw`."""
    return scipy.special.expit(raw.astype(np.float64)).astype(np.float32)


def _onnx(bundle: Bundle) -> Raw:
    session = bundle.session()

    def raw(dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        feed = {"dense": dense, "codes": codes} if bundle.spec.codes else {"dense": dense}
        return session.run(None, feed)[0][:, 0]

    return raw


def _keras_on_gpu(bundle: Bundle) -> Raw:
    """Keras on the first GPU; not run on one yet: the machines this was written on have none."""
    import tensorflow as tf

    from recsys.ranking.network import logits

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise ClusterError(
            f"{bundle.folder}: scoring with device 'gpu' needs a GPU in the scoring process, TensorFlow sees none. "
            "Score with device 'cpu', or on nodes with a GPU and its CUDA libraries."
        )
    tf.config.experimental.set_memory_growth(gpus[0], True)
    tf.config.experimental.enable_tensor_float_32_execution(False)  # its 10-bit mantissa would reorder lists
    with tf.device("/GPU:0"):
        scores = logits(bundle.keras_model())
    compiled = tf.function(functools.partial(scores, training=False))

    def raw(dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        # always ROWS rows: a GPU picks its kernels, and with them the order of sums, by shape
        missing = ROWS - len(dense)
        inputs = [np.pad(values, ((0, missing), (0, 0))) for values in ([dense, codes] if bundle.spec.codes else [dense])]
        return compiled(inputs).numpy()[: len(dense), 0]

    return raw
