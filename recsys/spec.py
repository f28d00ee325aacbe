"""What a model was fed: names, order, normalisation and vocabularies of its inputs; fitted on training rows, kept in the bundle."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CLIP = 8.0  # standard deviations; keeps one absurd value from owning a layer


@dataclass(frozen=True)
class FeatureSpec:
    """The model's inputs: `dense` float columns with their normalisation, `codes` integer columns with their vocabularies."""

    dense: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    """Standard deviation of each dense column over the training rows; 1 where it is constant or always missing."""
    codes: tuple[str, ...]
    vocabularies: Mapping[str, tuple[str, ...]]
    """Values of each code column, most frequent first: the value at position i has code i + 1; code 0 is anything else."""

    def sizes(self) -> tuple[int, ...]:
        """How many codes each code column has, code 0 included."""
        return tuple(len(self.vocabularies[name]) + 1 for name in self.codes)

    def normalise(self, dense: np.ndarray) -> np.ndarray:
        """Model-ready dense inputs: centred, scaled, clipped to +-8 standard deviations; a missing value becomes the mean.

        Args:
            dense: float32 (B, F) in the order of `self.dense`; NaN is missing.

        Returns:
            float32 (B, F), no NaN, a new array.
        """
        inputs = (dense - np.asarray(self.mean, np.float32)) * (1.0 / np.asarray(self.scale, np.float32))
        np.nan_to_num(inputs, copy=False, nan=0.0)
        return np.clip(inputs, -CLIP, CLIP, out=inputs)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` turns back into an equal spec."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "FeatureSpec":
        """The spec that `to_json` wrote."""
        return FeatureSpec(
            dense=tuple(values["dense"]),
            mean=tuple(values["mean"]),
            scale=tuple(values["scale"]),
            codes=tuple(values["codes"]),
            vocabularies={name: tuple(words) for name, words in values["vocabularies"].items()},
        )


def fit_normalisation(blocks: Iterable[np.ndarray], width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every dense column over all blocks, missing values left out.

    Args:
        blocks: float32 (B, width) arrays; NaN is missing.

    Returns:
        `mean` and `scale`, one float a column; 0 and 1 for a column without values, scale 1 for a constant one.
    """
    count = np.zeros(width)
    total = np.zeros(width)
    squares = np.zeros(width)
    for block in blocks:
        values = block.astype(np.float64)
        present = np.isfinite(values)
        values[~present] = 0.0
        count += present.sum(axis=0)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
    mean = total / np.maximum(count, 1)
    variance = np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0)
    scale = np.sqrt(variance)
    constant = scale <= 1e-6 * np.maximum(np.abs(mean), 1.0)
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, scale).tolist())
