"""The fit's speed: two workers beside one, and beside plain Keras on the same cores; how soon a command's first step is made; part of
jobs.bench."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.pairs import PAIRS, paired
from jobs.bench.rows import feature_rows
from recsys import config
from recsys.engine.connect import ENVIRONMENT, connect
from recsys.engine.progress import log
from recsys.features.examples import fixed_size_lists
from recsys.features.spec import FeatureSpec
from recsys.ranking.network import build
from recsys.schema import CODES, DENSE, LABEL, WEIGHT
from recsys.storage import write_arrow, write_atomically
from recsys.training.batches import Examples
from recsys.training.fit import launch_plan
from recsys.training.loop import run_epochs
from recsys.training.plan import Plan
from recsys.training.worker import join

BATCHES = (4096, 16_384)  # global ones
WIDTH = 64  # columns
ROWS, EPOCHS = 40 * BATCHES[0], 5  # the first epoch is not counted: it traces the step and fills caches
HELD_OUT = 4096
FEW = 20_000  # rows of the command whose first step is waited for


def compare_training(folder: Path, *, batch: int) -> list[dict[str, Any]]:
    """Rows per second of steps after the first epoch: 512-256-128 units, 64 columns, the same global batch; medians of fits in turn.

    Every worker is tied to one core of its own; Keras has them all.
    """
    folder.mkdir(parents=True)
    log.info("bench: training on %s rows", f"{ROWS:,}")
    fitting, held_out = _examples(folder / "fit.arrow", ROWS), _examples(folder / "held_out.arrow", HELD_OUT)
    command = [sys.executable, "-m", "jobs.bench.training", str(fitting), str(batch)]
    environment = {**os.environ, **ENVIRONMENT}
    kinds = {2: "", 1: "1 worker with one core", 0: "Keras fit, one process, arrays in memory, both cores"}
    speeds: dict[int, list[float]] = {workers: [] for workers in kinds}
    for turn in range(PAIRS):
        for workers in list(kinds)[:: 1 if turn % 2 == 0 else -1]:
            if workers:
                with connect():
                    speed = _fit(folder / f"workers-{workers}-{turn}", fitting, held_out, batch=batch, workers=workers)
            else:
                run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                speed = float(run.stdout.split()[-1])
            speeds[workers].append(speed)
    what = f"rows/s trained, batch {batch}, 2 workers with one core each | {{}}"
    return [paired(what.format(kinds[other]), list(zip(speeds[2], speeds[other], strict=True))) for other in (1, 0)]


def first_step(folder: Path) -> float:
    """Seconds from the command `jobs.train` on feature rows, with nothing made before, to the end of its first step."""
    names = [f"f{column:02d}" for column in range(WIDTH)]
    for path in feature_rows(folder / "rows", rows=FEW, files=2, numeric=WIDTH):
        rows = pq.read_table(path)
        pq.write_table(rows.append_column("label", pa.array(rows["f00"].to_numpy() > 1).cast(pa.float32())), path)
    lines = ["[pairs]", f"path = {json.dumps(str(folder / 'rows'))}", f"numeric = {json.dumps(names)}"]
    lines += ["[train]", f"batch_size = {BATCHES[0]}", "epochs = 1", "[run]", f"work = {json.dumps(str(folder / 'work'))}"]
    (folder / "pairs.toml").write_text("\n".join(lines), encoding="utf-8")
    started = time.time()
    command = [sys.executable, "-m", "jobs.train", "--config", str(folder / "pairs.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (receipt,) = (folder / "work").glob("train_pairs-*/receipts/bundle.json")
    return json.loads(receipt.read_text(encoding="utf-8"))["history"][0]["first_step"] - started


def _examples(path: Path, rows: int) -> Path:
    """Examples of a planted rule, as training reads them."""
    rng = np.random.default_rng(rows)
    dense = rng.standard_normal((rows, WIDTH), np.float32)
    label = (dense[:, 0] + rng.standard_normal(rows, np.float32) > 1).astype(np.float32)
    columns = [
        fixed_size_lists(dense, pa.float32()),
        fixed_size_lists(np.empty((rows, 0), np.int32), pa.int32()),
        label,
        np.ones(rows, np.float32),
    ]
    table = pa.table(columns, [DENSE, CODES, LABEL, WEIGHT])
    write_atomically(path, lambda file: write_arrow(table, file))
    return path


def _spec() -> FeatureSpec:
    names = tuple(f"f{column:02d}" for column in range(WIDTH))
    return FeatureSpec(names, (0.0,) * WIDTH, (1.0,) * WIDTH, (), {})


def _fit(folder: Path, fitting: Path, held_out: Path, *, batch: int, workers: int) -> float:
    folder.mkdir()
    settings = config.Train(epochs=EPOCHS, patience=None, refit=False, batch_size=batch, workers=workers, max_failures=0)
    plan = Plan((fitting,), (held_out,), spec=_spec(), model=config.Model(), train=settings, seed=0, run=folder)
    history = launch_plan(_tied, plan)[1:]
    return ROWS * len(history) / sum(epoch["seconds"] for epoch in history)


def _tied(job: dict[str, Any]) -> list[dict[str, Any]]:
    """A worker's part of the fit on one core: TensorFlow's threads and ours are made later and stay on it."""
    import ray.train

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[ray.train.get_context().get_world_rank() % len(cores)]})
    group = join(job["plan"])
    from recsys.training.replica import Replica

    return run_epochs(job["plan"], Replica(job["plan"], group)).history


def plain(fitting: Path, batch: int) -> float:
    """Rows per second of Keras's own `fit` after its first epoch."""
    import keras

    dense, _, label, _ = Examples([fitting], _spec()).batch(np.arange(ROWS), ROWS, 1.0)
    model = build(_spec(), config.Model(), seed=0)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="binary_crossentropy")
    ends: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:  # noqa: ARG002 # overrides Keras's
            ends.append(time.perf_counter())

    model.fit(dense, label, batch_size=batch, epochs=EPOCHS, verbose=0, callbacks=[Clock()])
    return ROWS * (len(ends) - 1) / (ends[-1] - ends[0])


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print(plain(Path(sys.argv[1]), int(sys.argv[2])))
