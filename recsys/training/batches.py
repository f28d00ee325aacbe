"""Examples on disk -> the batches of one training worker: mapped into memory, gathered, normalised, made ahead of their use."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from recsys.errors import DataError
from recsys.features.spec import FeatureSpec
from recsys.schema import CODES, DENSE, GROUP, LABEL, USER_ID, WEIGHT

TrainBatch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # dense, codes, label, share of the loss


class Examples:
    """Examples of several Arrow files as one long table of rows; dense inputs and codes stay in the mapped files."""

    def __init__(self, files: Sequence[Path], spec: FeatureSpec) -> None:
        self.spec = spec
        self._files = files
        self._dense: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        label: list[np.ndarray] = []
        weight: list[np.ndarray] = []
        groups: list[pa.Array] = []
        for file in files:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                self._dense.append(_matrix(batch.column(DENSE), len(spec.dense)))
                self._codes.append(_matrix(batch.column(CODES), len(spec.codes)))
                label.append(batch.column(LABEL).to_numpy())
                weight.append(batch.column(WEIGHT).to_numpy())
                if GROUP in reader.schema.names:
                    groups.append(batch.column(GROUP))
        self._starts = np.cumsum([0, *map(len, label)])
        self.label, self.weight = np.concatenate(label), np.concatenate(weight)
        words = pa.chunked_array(groups, pa.string()).combine_chunks().dictionary_encode().indices
        self.group = words.fill_null(-1).to_numpy() if groups else None
        """Of each row a number for its user's group, -1 where that is unknown; None where examples have no groups."""

    def __len__(self) -> int:
        return len(self.label)

    @functools.cached_property
    def by_user(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the rows that weigh something, user by user, int64; and where in them each user's begin, and the end, (U + 1).

        Whose rows they are is read from the files at the first call; only what has ids, as examples of the shop door have, has users.
        """
        ids: list[pa.Array] = []
        for file in self._files:
            with pa.memory_map(str(file)) as source:
                reader = pa.ipc.open_file(source)
                ids += [reader.get_batch(number).column(USER_ID) for number in range(reader.num_record_batches)]
        user = pa.chunked_array(ids).combine_chunks().dictionary_encode().indices.to_numpy()
        rows = np.flatnonzero(self.weight > 0)
        rows = rows[np.argsort(user[rows], kind="stable")]
        begins = np.flatnonzero(np.diff(user[rows], prepend=-1))
        return rows, np.append(begins, len(rows))

    def batch(self, rows: np.ndarray, size: int, weight: float) -> TrainBatch:
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


@dataclass(frozen=True)
class Pass:
    """One pass over all rows, cut into global batches."""

    rows: list[np.ndarray]
    """Numbers of each batch's rows; all have `batch_size` but the last."""
    weights: list[float]
    """Of each batch."""

    def mean(self, losses: Sequence[float]) -> float:
        """The weighted mean over all rows of the batches' mean losses."""
        return float(np.dot(losses, self.weights) / sum(self.weights))


def passes(rows: Examples, size: int, *, seed: int, epoch: int) -> Pass:
    """The pass of an epoch, in an order that knows nothing of workers; batches that weigh nothing are left out."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    batches = [order[start : start + size] for start in range(0, len(rows), size)]
    weights = [float(rows.weight[batch].sum(dtype=np.float64)) for batch in batches]
    kept = [number for number, weight in enumerate(weights) if weight > 0]
    return Pass([batches[number] for number in kept], [weights[number] for number in kept])


def class_weighted(label: np.ndarray, weight: np.ndarray, factors: tuple[float, float] | Literal["balanced"] | None) -> np.ndarray:
    """The rows' weights times their label's factor, float32; a label between 0 and 1 gets what lies between.

    Args:
        factors: of label 0 and label 1; "balanced": all weights over twice those of the label (scikit-learn's `class_weight`),
            1 where a label is absent.
    """
    if factors is None:
        return weight
    if factors == "balanced":
        total = weight.sum(dtype=np.float64)
        ones = float(np.dot(weight.astype(np.float64), label))
        both = 0 < ones < total
        factors = (total / (2 * (total - ones)), total / (2 * ones)) if both else (1.0, 1.0)
    return (weight * (factors[0] + (factors[1] - factors[0]) * label)).astype(np.float32)


def evened(group: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rows' weights such that all groups weigh the same in all, float32; together they weigh what they did, as do rows of no group.

    As scikit-learn's balanced `class_weight` does with labels.

    Args:
        group: of each row, from 0; -1 for none.
    """
    known = group >= 0
    sums = np.bincount(group[known], weights=weight[known].astype(np.float64))
    there = sums > 0
    factors = np.where(there, sums.sum() / (np.count_nonzero(there) * np.where(there, sums, 1.0)), 0.0)
    return (weight * np.where(known, np.append(factors, 1.0)[group], 1.0)).astype(np.float32)


def part(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """The worker's contiguous part of a batch; the parts of all workers are the batch, and differ by one row at most."""
    return batch[len(batch) * rank // workers : len(batch) * (rank + 1) // workers]


def _matrix(column: pa.FixedSizeListArray, width: int) -> np.ndarray:
    """A fixed-size-list column as (B, width), without a copy."""
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), width)


def ahead(make: Callable[[int], TrainBatch], count: int) -> Iterator[TrainBatch]:
    """Batches 0 to count - 1, each made in another thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(make, number) for number in range(min(2, count))]
        for number in range(count):
            yield waiting.pop(0).result()
            if number + 2 < count:
                waiting.append(pool.submit(make, number + 2))


def check_examples(files: Sequence[Path], spec: FeatureSpec, role: str) -> None:
    """Nothing, where the files hold examples of the spec that weigh something.

    Args:
        role: what they are for, in messages.

    Raises:
        DataError: other columns, no row, or no weight.
    """
    expected = {
        DENSE: pa.list_(pa.float32(), len(spec.dense)),
        CODES: pa.list_(pa.int32(), len(spec.codes)),
        LABEL: pa.float32(),
        WEIGHT: pa.float32(),
    }
    rows, weight = 0, 0.0
    for file in files:
        with pa.memory_map(str(file)) as source:
            reader = pa.ipc.open_file(source)
            for name, dtype in expected.items():
                seen = reader.schema.field(name).type if name in reader.schema.names else "no such column"
                if seen != dtype:
                    raise DataError(f"{file}: column '{name}' must be {dtype}, got {seen}. Make the examples again.")
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                rows += batch.num_rows
                weight += float(batch.column(WEIGHT).to_numpy().sum(dtype=np.float64))
    if not rows:
        raise DataError(f"{role} examples: at least one row is needed, got none in {len(files)} files. Widen [window] or as-of.")
    if not weight > 0:
        raise DataError(
            f"{role} examples: their weights must add up to more than 0, got {weight:g} over {rows} rows. Mend the weights."
        )
