"""A Ray to work on: the cluster that RAY_ADDRESS names, or one embedded in this process; and what it has."""

import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray

from recsys.engine.progress import log
from recsys.errors import ClusterError, raise_ending

ENVIRONMENT = {  # read by Ray and TensorFlow when they start, here and in every worker; what the user set stays
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves a shop's network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of coming Rays; silences their warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once polled; at Ray's 2 s short epochs wait for it
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search keeps receipts of its own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a search as it ends everything else
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
ANSWER_SECONDS = 10.0  # that a cluster's head has to answer in; Ray itself would ask for ever


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
    if address == "local":
        address = None
    if address:
        check_answers(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    importing = threading.Thread(target=importlib.import_module, args=("ray.data",))  # a second, while Ray's processes start
    importing.start()
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, num_cpus=cpus, **quiet)
    except Exception as error:  # Ray's own are of many kinds, Exception itself among them
        raise_ending(error)
        seen = f"got {type(error).__name__}: {error}"
        if address:
            raise ClusterError(
                f"RAY_ADDRESS = {address}: must be a Ray that runs and lets us in, {seen}. "
                "Check the address, and RAY_AUTH_MODE where it asks for a token; or unset RAY_ADDRESS to use this machine alone."
            ) from error
        raise ClusterError(f"Ray: must start on this machine, {seen}. See memory, disk and the logs below /tmp/ray.") from error
    finally:
        importing.join()
    if callable(at_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, at_sigterm)  # Ray has set one of its own, which ends the process without a word
    try:
        from ray.data import DataContext

        data = DataContext.get_current()
        data.enable_progress_bars = False  # one bar a stage, drawn by `progress`, counts the units that people know
        data.print_on_execution_start = False
        data.raise_original_map_exception = True  # so that an error of ours comes back as itself
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if address:
            log.info("Ray: works on the cluster at %s (RAY_ADDRESS = %s)", ray.get_runtime_context().gcs_address, address)
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Nothing, where something that could be a Ray's head answers at the address.

    Of "auto" it is the cluster that `ray start` noted on this machine; where none is noted, Ray looks for one, and says if none runs.

    Raises:
        ClusterError: it is no address of a head, or nothing answers there.
    """
    place = address.removeprefix("ray://")
    if address == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
        if not noted.exists():
            return
        place = noted.read_text(encoding="utf-8").strip()
        address = f"auto, which {noted} says is {place}"
    host, _, port = place.rpartition(":")
    if "/" in place or not host or not port.isdigit():
        raise ClusterError(
            f"RAY_ADDRESS = {address}: must be HOST:PORT of a head, ray://HOST:PORT, auto or local. Set it so; a dashboard's address "
            "is for jobs.submit --address."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            pass
        if os.environ.get("RAY_USE_TLS", "0") != "1":  # with certificates only Ray knows how to ask
            channel = grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)])
            try:
                grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
            finally:
                channel.close()
    except (OSError, OverflowError, grpc.FutureTimeoutError) as error:
        seen = (error.strerror or str(error)) if isinstance(error, OSError) else "no answer that a Ray would give"
        raise ClusterError(
            f"RAY_ADDRESS = {address}: must be a Ray that runs and lets us in, got: {seen}. "
            "Check the address and whether that Ray runs; or unset RAY_ADDRESS to use this machine alone."
        ) from error
