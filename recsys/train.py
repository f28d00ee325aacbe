"""The fit: examples in, weights out, by several workers that end with the weights one worker would have.

Every worker holds the whole model and takes its part of each global batch; gradients are summed over the workers before the
optimizer sees them (by TensorFlow's MultiWorkerMirroredStrategy, on CPUs and GPUs alike). The step is our own
(`learner.py`) as Keras's `fit` fails with two or more workers (keras#20585, ray#47464). Step s of epoch e is a slice of an order
seeded by (seed, epoch) that knows nothing of workers; no row is lost or taken twice.

Ray Train starts the workers, and starts all of them again when one fails or the cluster changes; they go on from the last checkpoint
(`checkpoint.py`), as does the same command run again.
"""

import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.train

from recsys import config, tables
from recsys.checkpoint import HISTORY, Checkpoints, Epoch, Weights
from recsys.epochs import Plan, best, walk
from recsys.errors import ClusterError, ConfigError, DataError, RecsysError
from recsys.spec import FeatureSpec
from recsys.work import code_digest, digest

if TYPE_CHECKING:
    import keras

    from recsys.learner import Team

RESIZE_SECONDS = 60.0  # between two looks whether an elastic fit may grow; growing costs a restart from the last checkpoint
BFLOAT16_CAPABILITY = (8, 0)  # of the first NVIDIA GPUs with bfloat16 units (Ampere)
FREE = {"max_failures", "checkpoint_seconds"}  # settings of [train] that no weight depends on


@dataclass(frozen=True)
class Fit:
    """What a fit leaves."""

    history: list[Epoch]
    best_epoch: int
    """From 1: the epoch with the smallest validation loss; the refit ran this many."""
    weights: Weights
    """Of the refit, which saw the validation rows too; without one, of the best epoch."""
    validated_weights: Weights
    """Of the best epoch, which never saw them: what calibration may trust."""
    plan: Plan

    def model(self, weights: Weights | None = None) -> "keras.Model":
        """The fitted model with the fit's weights, or with those given; imports Keras."""
        from recsys.model import build

        model = build(self.plan.spec, self.plan.model, seed=self.plan.seed)
        model.set_weights(self.weights if weights is None else weights)
        return model


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
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """The fitted weights: early stopping on the validation rows, then, with train.refit, a fit from the start on all rows.

    Args:
        train_files: examples as uncompressed Arrow IPC files of `tables.examples_schema`, dense inputs not normalised; every
            worker maps them into memory.
        validation_files: as `train_files`; none of them may be empty altogether.
        folder: shared by every node; checkpoints go to a folder in it.
        name: of that folder, with a digest of settings, spec, seed, code and the files' names and sizes after it: the same command run
            again goes on from the last checkpoint, another setting never does.
        on_epoch: called in this process, from another thread, after every epoch.

    Raises:
        DataError: no rows, no weight, or other columns than the spec's.
        ClusterError: the cluster cannot hold the workers, they failed more than train.max_failures times, or a checkpoint could
            not be written.
        ConfigError: the loss stopped being finite, or the GPU has no bfloat16.
    """
    check(train_files, validation_files, spec=spec, train=train)
    # absolute: Train changes the workers' directory
    files = [tuple(Path(file).absolute() for file in part) for part in (train_files, validation_files)]
    identity = {
        "spec": spec.to_json(),
        "model": model,
        "train": train.model_dump(mode="json", exclude=FREE),
        "seed": seed,
        "files": [[(file.name, file.stat().st_size) for file in part] for part in files],
        "code": code_digest(),
    }
    run = Path(folder).absolute() / f"{name}-{digest(identity)}"
    run.mkdir(parents=True, exist_ok=True)
    plan = Plan(files[0], files[1], spec=spec, model=model, train=train, seed=seed, run=run)
    with _watch(run / HISTORY, on_epoch):
        error = launch(_work, plan)
    if error is not None:
        raise error
    checkpoints = Checkpoints(run)
    state = checkpoints.read(checkpoints.newest())
    weights = state.weights if train.refit else state.best_weights
    return Fit(state.history, best(state.history), weights, state.best_weights, plan)


def check(train_files: Sequence[Path], validation_files: Sequence[Path], *, spec: FeatureSpec, train: config.Train) -> None:
    """Refuse a fit that cannot run.

    Raises:
        DataError: no rows, no weight, or other columns than the spec's.
        ClusterError: the cluster cannot hold the workers.
    """
    _check_rows(train_files, spec, "training")
    _check_rows(validation_files, spec, "validation")
    _check_cluster(train)


def launch(work: Callable[[dict[str, Any]], Any], plan: Plan) -> Any:
    """What `work` returned in the first of the plan's workers; it is called in each with what `join` takes, the plan under "plan".

    Raises:
        ClusterError: the workers failed more than train.max_failures times.
    """
    from ray.train.tensorflow import TensorflowTrainer  # imports TensorFlow

    train, gpu = plan.train, plan.train.device == "gpu"
    api: Any = ray.train  # to a type checker each of its names is the old class or the new one
    attempt = f"ray-{uuid.uuid4().hex}"  # a name of its own: Ray would take up what it finds under an old one
    trainer = TensorflowTrainer(
        work,
        train_loop_config={"plan": plan},
        scaling_config=api.ScalingConfig(
            num_workers=train.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpu else {}),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=api.RunConfig(
            name=attempt, storage_path=str(plan.run), failure_config=api.FailureConfig(max_failures=train.max_failures)
        ),
    )
    try:
        result: Any = trainer.fit()  # of Train V2, which the type checker does not see
    except ray.train.TrainingFailedError as error:
        cause = str(error).strip().splitlines()[-1].strip()  # above it stands where
        raise ClusterError(
            f"{plan.run}: training failed and was retried {train.max_failures} times: {cause} The last checkpoint stands; "
            "mend the cause and run the same command again, or raise train.max_failures."
        ) from error
    finally:
        shutil.rmtree(plan.run / attempt, ignore_errors=True)
    return result.return_value


def _work(job: dict[str, Any]) -> RecsysError | None:
    """One worker's part of a fit, which leaves a checkpoint; or why the fit cannot go on, a value as Ray would retry an error."""
    plan = job["plan"]
    try:
        team = join(plan)
        from recsys.learner import Learner

        walk(plan, Learner(plan, team))
    except RecsysError as error:  # all workers raise it, as all hold the same numbers
        return error
    return None


def settle(plan: Plan) -> None:
    """Keep this process to the one CPU, and the GPU, that a worker has; before any other TensorFlow operation.

    Raises:
        ClusterError: a GPU was asked for and TensorFlow sees none.
        ConfigError: mixed precision on a GPU without bfloat16 units.
    """
    import tensorflow as tf

    # first thing: TensorFlow reads neither Ray's CPU share nor OMP_NUM_THREADS, and would take every core in every worker
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)  # one computes while another waits for the other workers
    if plan.train.device == "gpu":  # not run on one yet: the machines this was written on have none
        gpus = tf.config.list_physical_devices("GPU")
        check_gpus([tf.config.experimental.get_device_details(gpu) for gpu in gpus], plan.train.precision)
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        tf.config.experimental.enable_op_determinism()  # the same seed gives the same model


def join(plan: Plan) -> "Team":
    """The calling worker among those of its run; once in a process, before any other TensorFlow operation.

    Raises:
        ClusterError, ConfigError: as `settle`.
    """
    settle(plan)
    from recsys.learner import Team

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    return Team() if workers == 1 else Team(rank, workers, _sum(plan.train.device))


def _sum(device: str) -> Callable[[Any], Any]:
    """The sum over workers by TensorFlow's collectives: gRPC on CPUs, NCCL on GPUs (not run on one yet)."""
    import tensorflow as tf

    by = tf.distribute.experimental.CommunicationImplementation
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        communication_options=tf.distribute.experimental.CommunicationOptions(implementation=by.NCCL if device == "gpu" else by.RING)
    )

    def total(values: Any) -> Any:
        def mine() -> Any:
            # identity: inside `run` it gets the replica's device, which the reduction asks for
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

        return strategy.run(mine)

    return total


def check_gpus(details: Sequence[dict[str, Any]], precision: str) -> None:
    """Refuse to go on without a GPU, or without what the precision needs of it.

    Args:
        details: what TensorFlow says of each GPU of this process.

    Raises:
        ClusterError: there is none.
        ConfigError: it cannot compute in bfloat16.
    """
    if not details:
        raise ClusterError(
            'training: train.device "gpu" needs a GPU in every worker, TensorFlow sees none. Install TensorFlow with CUDA on the '
            'nodes, or set train.device = "cpu".'
        )
    seen = details[0].get("compute_capability", (0, 0))
    if precision == "mixed_bfloat16" and seen < BFLOAT16_CAPABILITY:
        needed, got = (".".join(map(str, capability)) for capability in (BFLOAT16_CAPABILITY, seen))
        raise ConfigError(
            f'train.precision "{precision}": the GPU\'s compute capability must be {needed} or above, got {got}. '
            "Remove train.precision."
        )


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
                weight += float(batch.column(tables.WEIGHT).to_numpy().sum(dtype=np.float64))
    if not rows:
        raise DataError(f"{role} examples: at least one row is needed, got none in {len(files)} files. Widen [window] or as-of.")
    if not weight > 0:
        raise DataError(
            f"{role} examples: their weights must add up to more than 0, got {weight:g} over {rows} rows. Mend the weights."
        )


def _check_cluster(train: config.Train) -> None:
    """Refuse what Ray would wait for without end. The controller of Train asks for no CPU."""
    there = ray.cluster_resources()
    workers = train.fewest_workers
    needs = [("CPU", workers)] + ([("GPU", workers)] if train.device == "gpu" else [])
    for resource, needed in needs:
        if there.get(resource, 0) < needed:
            raise ClusterError(
                f"training: {workers} workers on {train.device} need {needed} {resource}s, the cluster has "
                f"{there.get(resource, 0):g}. Lower train.workers or add nodes."
            )
