"""The fit: examples in, weights out, by several workers that end with the weights one worker would have.

Every worker holds the whole model and takes its part of each global batch; gradients are summed over the workers before the
optimizer sees them (TensorFlow's MultiWorkerMirroredStrategy carries the sum: ring on CPU, NCCL on GPU). The step is our own as
Keras's `fit` fails with two or more workers (keras#20585, ray#47464). What makes N workers equal one:

* step s of epoch e is a slice of an order seeded by (seed, epoch) that knows nothing of workers; no row is lost or taken twice;
* a gradient is the sum over rows of weight x gradient, over the weight of the whole global batch, so an uneven last batch counts
  each row once; a worker's part is filled up with rows of weight 0, so that every worker makes every step;
* the optimizer gets the sum, so clipping by norm sees the global gradient (Keras's own all-reduce comes after its clipping);
* dropout masks come from (seed, layer, worker, step): a resumed run draws those it would have drawn.
"""

import functools
import json
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from scipy.special import expit

from recsys import config, tables
from recsys.errors import ClusterError, ConfigError, DataError
from recsys.feed import Batch, Rows, ahead, part
from recsys.metrics import classification
from recsys.spec import FeatureSpec
from recsys.work import write_atomically

if TYPE_CHECKING:
    import keras

VALIDATE = "validate"  # fit on the training rows, validation rows decide how many epochs
REFIT = "refit"  # from the start again on all rows, that many epochs
HISTORY = "history.json"  # in the run's folder, for whoever watches
BLOCK = 2048  # validation rows in one forward pass; a worker takes whole blocks, so a logit's bits do not depend on their number

Epoch = dict[str, Any]  # epoch, phase, loss, seconds, rows_per_second; while validating also val_loss, val_auc, …
Weights = list[np.ndarray]


@dataclass(frozen=True)
class Fit:
    """What a fit leaves."""

    history: list[Epoch]
    best_epoch: int
    """From 1: the epoch with the smallest validation loss; the refit ran this many."""
    weights: Weights
    """Of the refit, which saw the validation rows too."""
    validated_weights: Weights
    """Of the best epoch, which never saw them: what calibration may trust."""
    plan: "Plan"

    def model(self, weights: Weights | None = None) -> "keras.Model":
        """The fitted model with the refit's weights, or with those given; imports Keras."""
        from recsys.model import build

        model = build(self.plan.spec, self.plan.model, seed=self.plan.seed)
        model.set_weights(self.weights if weights is None else weights)
        return model


@dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    spec: FeatureSpec
    model: config.Model
    train: config.Train
    seed: int
    cpus: int
    run: Path


def fit(
    train_files: Sequence[Path],
    validation_files: Sequence[Path],
    *,
    spec: FeatureSpec,
    model: config.Model,
    train: config.Train,
    seed: int,
    folder: Path,
    name: str,
    cpus_per_worker: int = 1,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """The fitted weights: early stopping on the validation rows, then a fit from the start on all rows.

    Args:
        train_files: examples as uncompressed Arrow IPC files of `tables.examples_schema`, dense inputs not normalised; every
            worker maps them into memory.
        validation_files: as `train_files`; none of them may be empty altogether.
        folder: shared by every node; checkpoints go to folder/name.
        name: of the run. A run of the same name that did not end is taken up from its last checkpoint: derive the name from
            everything that the weights depend on.
        on_epoch: called in this process, from another thread, after every epoch.

    Raises:
        DataError: no rows, or other columns than the spec's.
        ClusterError: the cluster cannot hold the workers, or they failed more than train.max_failures times.
        ConfigError: the loss stopped being finite.
    """
    from ray.train.tensorflow import TensorflowTrainer  # imports TensorFlow

    _check_rows(train_files, spec, "training")
    _check_rows(validation_files, spec, "validation")
    _check_cluster(train, cpus_per_worker)
    # absolute: Train changes the workers' directory
    run = Path(folder).absolute() / name
    run.mkdir(parents=True, exist_ok=True)
    files = [tuple(Path(file).absolute() for file in part) for part in (train_files, validation_files)]
    plan = Plan(files[0], files[1], spec=spec, model=model, train=train, seed=seed, cpus=cpus_per_worker, run=run)
    gpu = train.device == "gpu"
    api: Any = ray.train  # to a type checker each of its names is the old class or the new one
    trainer = TensorflowTrainer(
        _work,  # pyrefly: ignore[bad-argument-type] # its value does come back, since Train V2
        train_loop_config={"plan": plan},
        scaling_config=api.ScalingConfig(
            num_workers=train.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=api.RunConfig(
            name=name,
            storage_path=str(run.parent),
            failure_config=api.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=api.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with _watch(run / HISTORY, on_epoch):
            result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = str(error).strip().splitlines()[-1]
        raise ClusterError(
            f"{run}: training failed and was retried {train.max_failures} times: {cause} The last checkpoint stands; "
            "mend the cause and run the same command again, or raise train.max_failures."
        ) from error
    if result.return_value is not None:
        raise ConfigError(result.return_value)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as checkpoint:
        state = _State.read(Path(checkpoint))
    return Fit(state.history, _best(state.history), state.weights, state.best_weights, plan)


def _work(job: dict[str, Plan]) -> str | None:
    """One worker's part of a run; None, or the sentence that says why the fit cannot go on."""
    import tensorflow as tf

    plan = job["plan"]
    # first thing: TensorFlow reads neither Ray's CPU share nor OMP_NUM_THREADS, and would take every core in every worker
    tf.config.threading.set_intra_op_parallelism_threads(plan.cpus)
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one computes while another waits for the other workers
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # must come before any other TensorFlow operation

    learner = _Learner(plan, strategy)
    start = learner.keep(_State([], [], [], []))
    state = start
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = _State.read(Path(folder))
    validation = Rows(plan.validation_files, plan.spec)
    for phase in (VALIDATE, REFIT):
        rows = Rows(plan.train_files if phase == VALIDATE else plan.train_files + plan.validation_files, plan.spec)
        begun = any(record["phase"] == phase for record in state.history)
        learner.restore(state if begun else start)
        while (epoch := next_epoch(state.history, phase, plan.train)) is not None:
            begin = time.perf_counter()
            record: Epoch = {"epoch": epoch, "phase": phase, "loss": learner.epoch(rows, epoch)}
            seconds = time.perf_counter() - begin
            record |= {"seconds": seconds, "rows_per_second": len(rows) / seconds}
            if phase == VALIDATE:
                chances = expit(learner.logits_of(validation).astype(np.float64))
                figures = classification(validation.label, chances, validation.weight)
                record |= {f"val_{name}": value for name, value in figures.items()}
            if not np.isfinite([record["loss"], record.get("val_loss", 0.0)]).all():
                return (
                    f"training: the loss must be finite, got {record['loss']} in epoch {epoch} ({phase}). Lower "
                    f"train.learning_rate ({plan.train.learning_rate}), or look for absurd values in the numeric columns."
                )
            state = learner.keep(replace(state, history=[*state.history, record]))
            _report(state, plan.run)
    return None


def next_epoch(history: list[Epoch], phase: str, train: config.Train) -> int | None:
    """The epoch to run next, from 1; None where the phase is over. All ranks hold the same history, so all agree."""
    done = sum(record["phase"] == phase for record in history)
    if phase == REFIT:
        return done + 1 if done < _best(history) else None
    if done == train.epochs or (done and done - _best(history) >= train.patience):
        return None
    return done + 1


def _best(history: list[Epoch]) -> int:
    return min((record for record in history if record["phase"] == VALIDATE), key=lambda record: record["val_loss"])["epoch"]


class _Learner:
    """The model, its optimizer and the compiled step of one worker."""

    def __init__(self, plan: Plan, strategy: Any) -> None:
        import keras
        import tensorflow as tf

        from recsys.model import build, logits

        context = ray.train.get_context()
        self.plan = plan
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        # Variables are plain, one copy in each worker: the same seed and the same summed gradients keep them equal.
        self.model = build(plan.spec, plan.model, seed=plan.seed)
        self.optimizer = keras.optimizers.Adam(plan.train.learning_rate)
        self.optimizer.build(self.model.trainable_variables)
        scores = logits(self.model)
        variables = self.model.trainable_variables
        sizes = [int(np.prod(variable.shape)) for variable in variables]
        masks = [layer.seed_generator.state for layer in self.model.layers if getattr(layer, "seed_generator", None)]
        seeds = [zlib.crc32(f"{plan.seed}/{layer}/{self.rank}".encode()) for layer in range(len(masks))]
        width, columns = len(plan.spec.dense), len(plan.spec.codes)

        def total(values: Any) -> Any:
            """The sum over all workers of a vector, the same bits in every worker."""

            def mine() -> Any:
                # identity: inside `run` it gets the replica's device, which the reduction asks for
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

            return strategy.run(mine)

        def score(dense: Any, codes: Any, training: bool) -> Any:
            return scores([dense, codes][: len(scores.inputs)], training=training)[:, 0]

        def inputs(rows: int | None) -> list[Any]:
            return [tf.TensorSpec((rows, width), tf.float32), tf.TensorSpec((rows, columns), tf.int32)]

        size = -(-plan.train.batch_size // self.workers)

        @tf.function(input_signature=[*inputs(size), tf.TensorSpec((size,)), tf.TensorSpec((size,))])
        def step(dense: Any, codes: Any, label: Any, share: Any) -> Any:
            count = tf.cast(self.optimizer.iterations.value, tf.int64)
            drawn = [(mask, tf.stack([tf.constant(seed, tf.int64), count])) for mask, seed in zip(masks, seeds, strict=True)]
            with tf.GradientTape() as tape:
                with keras.StatelessScope(state_mapping=drawn):
                    logit = score(dense, codes, True)
                loss = tf.reduce_sum(share * tf.nn.sigmoid_cross_entropy_with_logits(label, logit))
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            # one vector, one all-reduce: each costs milliseconds whatever its length
            flat = total(tf.concat([*(tf.reshape(gradient, [-1]) for gradient in gradients), [loss]], axis=0))
            *parts, loss = tf.split(flat, [*sizes, 1])
            self.optimizer.apply([tf.reshape(values, variable.shape) for values, variable in zip(parts, variables, strict=True)])
            return loss[0]

        self._step = step
        self._score = tf.function(functools.partial(score, training=False), input_signature=inputs(BLOCK))
        self._total = tf.function(total)

    def epoch(self, rows: Rows, epoch: int) -> float:
        """The weighted mean training loss of one pass over all rows."""
        size = self.plan.train.batch_size
        order = np.random.default_rng([self.plan.seed, epoch]).permutation(len(rows))
        batches = [order[start : start + size] for start in range(0, len(rows), size)]
        weights = [float(rows.weight[batch].sum(dtype=np.float64)) for batch in batches]

        def make(number: int) -> Batch:
            mine = part(batches[number], self.rank, self.workers)
            return rows.batch(mine, -(-size // self.workers), weights[number])

        losses = [float(self._step(*batch)) for batch in ahead(make, len(batches))]
        return float(np.dot(losses, weights) / max(sum(weights), np.finfo(float).tiny))

    def logits_of(self, rows: Rows) -> np.ndarray:
        """The logits of all rows, float32 (B,), the same in every worker and for every number of them."""
        starts = part(np.arange(0, len(rows), BLOCK), self.rank, self.workers)
        logits = np.zeros(len(rows), np.float32)

        def make(number: int) -> Batch:
            return rows.batch(np.arange(starts[number], min(starts[number] + BLOCK, len(rows))), BLOCK, 1.0)

        for start, (dense, codes, _, _) in zip(starts, ahead(make, len(starts)), strict=True):
            block = logits[start : start + BLOCK]
            block[:] = self._score(dense, codes).numpy()[: len(block)]
        return self._total(logits).numpy()  # every other worker holds zeros there

    def keep(self, state: "_State") -> "_State":
        """The state, brought up to this moment."""
        weights = self.model.get_weights()
        last = state.history[-1] if state.history else {}
        better = last.get("phase") == VALIDATE and last["epoch"] == _best(state.history)
        return _State(
            history=state.history,
            weights=weights,
            optimizer=[variable.numpy() for variable in self.optimizer.variables],
            best_weights=weights if better else state.best_weights,
        )

    def restore(self, state: "_State") -> None:
        """Go back to the state."""
        self.model.set_weights(state.weights)
        for variable, values in zip(self.optimizer.variables, state.optimizer, strict=True):
            variable.assign(values)


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds: enough to go on as if nothing had happened, at the end of an epoch."""

    history: list[Epoch]
    weights: Weights
    optimizer: Weights
    best_weights: Weights

    def write(self, folder: Path) -> None:
        _write_json(folder / HISTORY, self.history)
        for name in ("weights", "optimizer", "best_weights"):
            np.savez(folder / f"{name}.npz", *getattr(self, name))

    @staticmethod
    def read(folder: Path) -> "_State":
        arrays = []
        for name in ("weights", "optimizer", "best_weights"):
            with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
                arrays.append([file[f"arr_{number}"] for number in range(len(file.files))])
        return _State(json.loads((folder / HISTORY).read_text()), *arrays)


def _report(state: _State, run: Path) -> None:
    """Rank 0 hands the state over as a checkpoint; every worker waits for it."""
    if ray.train.get_context().get_world_rank() > 0:
        ray.train.report(state.history[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        state.write(Path(folder))
        ray.train.report(state.history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
    write_atomically(run / HISTORY, lambda file: _write_json(file, state.history))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@contextmanager
def _watch(history: Path, on_epoch: Callable[[Epoch], None] | None) -> Iterator[None]:
    """While inside, `on_epoch` gets what rank 0 adds to the history, and nothing of an earlier attempt twice."""
    if on_epoch is None:
        yield
        return
    over = threading.Event()

    def read() -> list[Epoch]:
        return json.loads(history.read_text()) if history.exists() else []

    def follow(seen: int) -> None:
        while True:
            last = over.wait(0.5)
            records = read()
            for record in records[seen:]:
                on_epoch(record)
            seen = max(seen, len(records))
            if last:
                return

    thread = threading.Thread(target=follow, args=(len(read()),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _check_rows(files: Sequence[Path], spec: FeatureSpec, role: str) -> None:
    expected = {
        tables.DENSE: pa.list_(pa.float32(), len(spec.dense)),
        tables.CODES: pa.list_(pa.int32(), len(spec.codes)),
        tables.LABEL: pa.float32(),
        tables.WEIGHT: pa.float32(),
    }
    rows = 0
    for file in files:
        with pa.memory_map(str(file)) as source:
            reader = pa.ipc.open_file(source)
            for name, dtype in expected.items():
                seen = reader.schema.field(name).type if name in reader.schema.names else "no such column"
                if seen != dtype:
                    raise DataError(f"{file}: column '{name}' must be {dtype}, got {seen}. Make the examples again.")
            rows += sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
    if not rows:
        raise DataError(f"{role} examples: at least one row is needed, got none in {len(files)} files. Widen [window] or as-of.")


def _check_cluster(train: config.Train, cpus_per_worker: int) -> None:
    """Refuse what Ray would wait for without end. The controller of Train asks for no CPU."""
    there = ray.cluster_resources()
    needs = [("CPU", train.workers * cpus_per_worker)] + ([("GPU", train.workers)] if train.device == "gpu" else [])
    for resource, needed in needs:
        if there.get(resource, 0) < needed:
            raise ClusterError(
                f"training: {train.workers} workers on {train.device} need {needed} {resource}s, the cluster has "
                f"{there.get(resource, 0):g}. Lower train.workers or add nodes."
            )
