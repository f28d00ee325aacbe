"""Training workers on Ray Train: a function called in each of them, all started again when one fails or the cluster changes."""

import shutil
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train

from recsys.engine.ending import terminated
from recsys.engine.progress import log
from recsys.engine.room import there, while_there_is
from recsys.errors import ClusterError, raise_ending

STARTS = 30  # of the workers, a minute each
RESIZE_SECONDS = 60.0  # between two looks whether an elastic fit may grow; growing costs a restart from the last checkpoint


def launch(
    work: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    *,
    folder: Path,
    workers: int | tuple[int, int],
    gpu: bool,
    max_failures: int,
) -> Any:
    """What `work` returned in the first of the workers; it is called in each with `job`.

    Args:
        folder: shared by every node; Ray's own files lie in it while the workers run.
        workers: how many, or the fewest and the most of them.
        gpu: each worker gets one, beside its CPU.
        max_failures: how often all are started again after one failed; and how often, if what Ray watches them with died.

    Raises:
        ClusterError: the workers, or Ray, failed more often than that, or the cluster has no room for them any more.
        KeyboardInterrupt: at Ctrl-C, once the workers have ended.
    """
    from ray.train.tensorflow import TensorflowTrainer  # imports TensorFlow

    fewest = workers if isinstance(workers, int) else workers[0]
    api: Any = ray.train  # to a type checker each of its names is the old class or the new one
    # Workers that Ray does not start within a minute are asked for again, by default for ever, as where its head's clock was set back.
    failures = api.FailureConfig(max_failures=max_failures, controller_failure_limit=STARTS)
    for number in range(1 + max_failures):
        attempt = f"ray-{uuid.uuid4().hex}"  # a name of its own: Ray would take up what it finds under an old one
        trainer = TensorflowTrainer(
            work,
            train_loop_config=job,
            scaling_config=api.ScalingConfig(
                num_workers=workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpu else {}),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            ),
            run_config=api.RunConfig(name=attempt, storage_path=str(folder), failure_config=failures),
        )
        try:
            with while_there_is("GPU" if gpu else "CPU", fewest, what="training"):
                result = _fit(trainer)
        except api.ControllerError as error:
            raise_ending(error)
            raise ClusterError(
                f"{folder}: Ray's controller of the training gave up: {_cause(str(error))} It asks for workers {STARTS} times, a "
                "minute each. The last checkpoint stands; see Ray's logs in its session folder, start Ray anew, and run the same "
                "command again."
            ) from error
        except ray.train.TrainingFailedError as error:
            raise_ending(error)
            raise ClusterError(
                f"{folder}: training failed and was retried {max_failures} times: {_cause(str(error))} The last checkpoint stands; "
                "mend the cause and run the same command again, or raise train.max_failures."
            ) from error
        except ray.exceptions.RayError as error:  # of what Train runs itself: what workers raise comes as TrainingFailedError
            raise_ending(error)
            seen = f"{folder}: Ray gave up on the training: {type(error).__name__}: {_cause(str(error))}"
            if number == max_failures or not isinstance(error, ray.exceptions.RayActorError):
                raise ClusterError(
                    f"{seen} It was started again {number} times. The last checkpoint stands; see memory and Ray's logs in its session "
                    "folder, and run the same command again, or raise train.max_failures."
                ) from error
            log.warning("%s It is started again from the last checkpoint.", seen)
        else:
            return result.return_value
        finally:
            shutil.rmtree(folder / attempt, ignore_errors=True)
    raise AssertionError("it returned or raised")


def _fit(trainer: Any) -> Any:
    """The result of a trainer of Train V2, which the type checker does not see; KeyboardInterrupt at Ctrl-C."""
    at_interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit as ended:
        if terminated():
            raise
        raise KeyboardInterrupt from ended  # as Train, at Ctrl-C, ends its workers and then the process
    finally:
        if at_interrupt is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, at_interrupt)  # Train has set one of its own, for workers that are gone now


def this_worker() -> tuple[int, int]:
    """Inside `work`: the worker's rank, from 0, and how many there are."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def _cause(text: str) -> str:
    """The last line of a failed run's text, which says why."""
    return text.strip().splitlines()[-1].strip()


def check_room(workers: int, *, gpu: bool) -> None:
    """Refuse what Ray would wait for without end. The controller of Train asks for no CPU.

    Raises:
        ClusterError: the cluster has fewer CPUs, or GPUs, than workers.
    """
    for resource in ("CPU", "GPU") if gpu else ("CPU",):
        if (found := there(resource)) < workers:
            raise ClusterError(
                f"training: {workers} workers on {'gpu' if gpu else 'cpu'} need {workers} {resource}s, the cluster has "
                f"{found:g}. Lower train.workers or add nodes."
            )
