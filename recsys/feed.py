"""Examples on disk -> the batches of one training worker: mapped into memory, gathered, normalised, made ahead of their use."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys import tables
from recsys.spec import FeatureSpec

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # dense, codes, label, share of the loss


class Rows:
    """Examples of several Arrow files as one long table of rows; dense inputs and codes stay in the mapped files."""

    def __init__(self, files: Sequence[Path], spec: FeatureSpec) -> None:
        self.spec = spec
        self._dense: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        label: list[np.ndarray] = []
        weight: list[np.ndarray] = []
        for file in files:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                self._dense.append(_matrix(batch.column(tables.DENSE), len(spec.dense)))
                self._codes.append(_matrix(batch.column(tables.CODES), len(spec.codes)))
                label.append(batch.column(tables.LABEL).to_numpy())
                weight.append(batch.column(tables.WEIGHT).to_numpy())
        self._starts = np.cumsum([0, *map(len, label)])
        self.label, self.weight = np.concatenate(label), np.concatenate(weight)

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, rows: np.ndarray, size: int, weight: float) -> Batch:
        """The rows, normalised, filled up to `size` with zeros; each one's share is its weight over `weight`."""
        dense = np.zeros((size, len(self.spec.dense)), np.float32)
        codes = np.zeros((size, len(self.spec.codes)), np.int32)
        label, share = np.zeros((2, size), np.float32)
        raw = np.empty((len(rows), dense.shape[1]), np.float32)
        chunks = np.searchsorted(self._starts, rows, side="right") - 1
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            offsets = rows[here] - self._starts[chunk]
            raw[here] = self._dense[chunk][offsets]
            codes[here] = self._codes[chunk][offsets]
        dense[: len(rows)] = self.spec.normalise(raw)
        label[: len(rows)] = self.label[rows]
        if weight > 0:
            share[: len(rows)] = self.weight[rows] / weight
        return dense, codes, label, share


def part(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """The worker's contiguous part of a batch; the parts of all workers are the batch, and differ by one row at most."""
    return batch[len(batch) * rank // workers : len(batch) * (rank + 1) // workers]


def _matrix(column: pa.FixedSizeListArray, width: int) -> np.ndarray:
    """A fixed-size-list column as (B, width), without a copy."""
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), width)


def ahead(make: Callable[[int], Batch], count: int) -> Iterator[Batch]:
    """Batches 0 to count - 1, each made in another thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(make, number) for number in range(min(2, count))]
        for number in range(count):
            yield waiting.pop(0).result()
            if number + 2 < count:
                waiting.append(pool.submit(make, number + 2))
