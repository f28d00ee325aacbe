"""What a cluster has to have for a step to go on: nodes may be lost meanwhile, and Ray waits for others without end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from recsys.engine.ending import Cut, cut_if
from recsys.engine.progress import log
from recsys.errors import ClusterError

WAIT_SECONDS = 1_800.0  # longer than an autoscaler takes for new nodes
LOOK_SECONDS = 10.0


def there(resource: str) -> float:
    """How much of it the cluster has, in use or not: "CPU" or "GPU"."""
    return ray.cluster_resources().get(resource, 0.0)


def cpus() -> int:
    """CPUs of the cluster."""
    return int(there("CPU"))


def gpus() -> int:
    """GPUs of the cluster."""
    return int(there("GPU"))


@contextmanager
def while_there_is(resource: str, fewest: int, *, what: str) -> Iterator[None]:
    """A block that works on the cluster, as long as that has enough of a resource; where it has not, it waits for nodes.

    Args:
        what: needs it.

    Raises:
        ClusterError: it had too little for WAIT_SECONDS.
    """
    lacking: list[float] = []

    def over(left: threading.Event) -> bool:
        since: float | None = None
        while not left.wait(LOOK_SECONDS):
            try:
                found = there(resource)
            except RayError:  # the block finds out itself
                continue
            if found >= fewest:
                since = None
            elif since is None:
                since = time.monotonic()
                told = what, fewest, resource, found, WAIT_SECONDS / 60
                log.warning("%s: the cluster must have %d %s or more, got %g: waiting for nodes, %.0f minutes at most", *told)
            elif time.monotonic() - since >= WAIT_SECONDS:
                lacking.append(found)
                return True
        return False

    try:
        with cut_if(over):
            yield
    except Cut:
        if not lacking:  # the block was cut for another reason
            raise
        raise ClusterError(
            f"{what}: the cluster must have {fewest} {resource} or more, got {lacking[0]:g} for {WAIT_SECONDS / 60:.0f} minutes. What "
            "is finished is kept: add nodes, and run the same command again."
        ) from None
