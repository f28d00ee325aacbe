"""One training worker: its CPU or GPU, its place among the others, its part of the fit."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recsys.engine.workers import this_worker
from recsys.errors import ClusterError, ConfigError, RecsysError
from recsys.training.loop import run_epochs
from recsys.training.plan import Plan

if TYPE_CHECKING:
    from recsys.training.replica import ProcessGroup, Replica

BFLOAT16_CAPABILITY = (8, 0)  # of the first NVIDIA GPUs with bfloat16 units (Ampere)


def work(job: dict[str, Any]) -> RecsysError | None:
    """One worker's part of a fit, which leaves a checkpoint; or why the fit cannot go on, a value as Ray would retry an error."""
    plan: Plan = job["plan"]
    try:
        group = join(plan)
        run_epochs(plan, replica_of(plan, group))
    except RecsysError as error:  # all workers raise it, as all hold the same numbers
        return error
    return None


def replica_of(plan: Plan, group: "ProcessGroup") -> "Replica":
    """The worker's model and step; imports TensorFlow."""
    if plan.train.privacy is not None:
        from recsys.training.private import PrivateReplica

        return PrivateReplica(plan, group)
    from recsys.training.replica import Replica

    return Replica(plan, group)


def limit_threads(plan: Plan) -> None:
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


def join(plan: Plan) -> "ProcessGroup":
    """The calling worker among those of its run; once in a process, before any other TensorFlow operation.

    Raises:
        ClusterError, ConfigError: as `limit_threads`.
    """
    limit_threads(plan)
    from recsys.training.replica import ProcessGroup

    rank, workers = this_worker()
    return ProcessGroup() if workers == 1 else ProcessGroup(rank, workers, _sum(plan.train.device))


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
