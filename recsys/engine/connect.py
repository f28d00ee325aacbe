"""A Ray to work on: the cluster that RAY_ADDRESS names, or one embedded in this process; and what it has."""

import importlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from recsys.errors import ClusterError

ENVIRONMENT = {  # read by Ray and TensorFlow when they start, here and in every worker; what the user set stays
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves a shop's network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of coming Rays; silences their warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once polled; at Ray's 2 s short epochs wait for it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search keeps receipts of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search as it ends everything else
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@contextmanager
def connect(*, cpus: int | None = None) -> Iterator[None]:
    """A Ray to work on: the cluster that RAY_ADDRESS names, as in a submitted job, else one embedded in this process.

    Args:
        cpus: CPUs of an embedded Ray; absent, those of the machine.

    Raises:
        ClusterError: RAY_ADDRESS cannot be reached, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    importing = threading.Thread(target=importlib.import_module, args=("ray.data",))  # a second, while Ray's processes start
    importing.start()
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, num_cpus=cpus, **quiet)
    except Exception as error:  # Ray's own are of many kinds, Exception itself among them
        seen = f"got {type(error).__name__}: {error}"
        if address:
            raise ClusterError(
                f"RAY_ADDRESS = {address}: must be a Ray that runs and lets us in, {seen}. "
                "Check the address, and RAY_AUTH_MODE where it asks for a token; or unset RAY_ADDRESS to use this machine alone."
            ) from error
        raise ClusterError(f"Ray: must start on this machine, {seen}. See memory, disk and the logs below /tmp/ray.") from error
    finally:
        importing.join()
    try:
        from ray.data import DataContext

        data = DataContext.get_current()
        data.enable_progress_bars = False  # one bar a stage, drawn by `progress`, counts the units that people know
        data.print_on_execution_start = False
        data.raise_original_map_exception = True  # so that an error of ours comes back as itself
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()


def cpus() -> int:
    """CPUs of the cluster."""
    return int(ray.cluster_resources().get("CPU", 0))


def gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
