"""Examples of a planted rule, and plans to fit them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys import config
from recsys.features.spec import FeatureSpec
from recsys.schema import examples_schema
from recsys.training.plan import Plan

SPEC = FeatureSpec(
    dense=("a", "b", "c", "d", "e"),
    mean=(0.0, 1.0, 2.0, 3.0, 4.0),
    scale=(1.0, 2.0, 1.0, 2.0, 1.0),
    codes=("brand", "age"),
    vocabularies={"brand": tuple("abcdefg"), "age": ("young", "old")},
)
ROWS, HELD_OUT, BATCH = 700, 150, 64  # 700 = 10 batches of 64 and one of 60


@dataclasses.dataclass(frozen=True)
class Files:
    """What a fit reads."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]


def write(path: Path, rows: slice, *, spec: FeatureSpec = SPEC) -> Path:
    """Rows of a planted rule: mostly `a`, some of `brand`; weights differ and two rows in a hundred have none."""
    rng = np.random.default_rng(0)
    count, columns = ROWS + HELD_OUT, len(spec.codes)
    dense = rng.normal(spec.mean, spec.scale, (count, len(spec.dense))).astype(np.float32)
    codes = rng.integers(0, spec.sizes(), (count, columns), dtype=np.int32)
    rule = 3 * dense[:, 0] + (codes[:, 0] - 3.5 if columns else 0)
    label = (rng.random(count) < 1 / (1 + np.exp(-rule))).astype(np.float32)
    weight = rng.choice(np.array([0, 1, 2, 5], np.float32), count, p=[0.02, 0.5, 0.4, 0.08])
    dense[rng.random(dense.shape) < 0.01] = np.nan
    schema = examples_schema(pa.int64(), pa.string(), dense=len(spec.dense), codes=columns)
    table = pa.table(
        [
            pa.array(np.arange(count)),
            pa.array([f"i{row}" for row in range(count)]),
            pa.FixedSizeListArray.from_arrays(pa.array(dense.ravel()), len(spec.dense)),
            pa.array(codes.tolist(), pa.list_(pa.int32(), columns)),
            pa.array(label),
            pa.array(weight),
        ],
        schema=schema,
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.slice(rows.start, rows.stop - rows.start), max_chunksize=170)
    return path


def write_all(folder: Path) -> Files:
    """Two files to train on, and one of the rows held out."""
    first, second = write(folder / "0.arrow", slice(0, 450)), write(folder / "1.arrow", slice(450, ROWS))
    return Files((first, second), (write(folder / "2.arrow", slice(ROWS, ROWS + HELD_OUT)),))


def plan(
    files: Files,
    run: Path,
    *,
    spec: FeatureSpec = SPEC,
    model: config.Model | None = None,
    seed: int = 5,
    policy: str | None = None,
    **changes: Any,
) -> Plan:
    """A small plan; `changes` are of config.Train."""
    settings = {"epochs": 3, "patience": 1, "batch_size": BATCH, "workers": 1, "learning_rate": 0.01, "max_failures": 1} | changes
    mlp = model or config.Model(hidden=(16, 8), dropout=0.0)
    run.mkdir(parents=True, exist_ok=True)
    train = config.Train.model_validate(settings)
    return Plan(files.train, files.validation, spec=spec, model=mlp, train=train, seed=seed, run=run, policy=policy)
