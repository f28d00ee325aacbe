"""Ray: connect to it, size a plan to its resources, run the units of a stage on it, show how far they are.

Every request for CPUs is made here. A stage runs as one Ray Data job: its unfinished units are the rows, an actor pool maps them to
receipts. The units are made in the driver and the receipts come back to it, so no read or write task competes with the
actors for CPUs, which on a small cluster would hang without an error.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recsys.errors import ClusterError, RecsysError
from recsys.work import Receipt, Stage

log = logging.getLogger("recsys")
console = Console()
if not console.is_terminal:
    console = Console(width=150)  # a log file has no width; tables keep their columns

Task = Callable[[str, dict[str, Any]], Receipt]
"""A unit's name and values -> its receipt."""

ENVIRONMENT = {  # read by Ray and TensorFlow when they start, here and in every worker; what the user set stays
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves a shop's network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of coming Rays; silences their warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint counts once polled; at Ray's 2 s short epochs wait for it
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
LOG_SECONDS = 10.0  # between two log lines of one stage when not on a terminal


@contextmanager
def connect(*, cpus: int | None = None) -> Iterator[None]:
    """A Ray to work on: the cluster that RAY_ADDRESS names, as in a submitted job, else one embedded in this process.

    Args:
        cpus: CPUs of an embedded Ray; absent, those of the machine.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False  # one bar a stage, drawn by `progress`, counts the units that people know
    data.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def cpus() -> int:
    """CPUs of the cluster."""
    return int(ray.cluster_resources().get("CPU", 0))


def gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def progress(label: str, total: int, *, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of newly finished units: a bar on a terminal, log lines elsewhere."""
    start = time.monotonic()
    done = 0
    if console.is_terminal:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.update(task, advance=count)
        return
    said = start

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= LOG_SECONDS and done < total:
            said = now
            log.info("%s: %d of %d %s, %.0f s", label, done, total, unit, now - start)

    yield advance
    log.info("%s: %d %s in %.1f s", label, done, unit, time.monotonic() - start)


class _Worker:
    """One actor: the stage's task, made once, called for one unit after the other."""

    def __init__(self, stage: Stage, make: Callable[..., Task], arguments: tuple[Any, ...]) -> None:
        self.stage = stage
        self.task = make(*(ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in arguments))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        names = [str(name) for name in batch["name"]]
        for name, values in zip(names, batch["unit"], strict=True):
            started = time.monotonic()
            receipt = self.task(name, json.loads(values))
            self.stage.finish(name, {**receipt, "seconds": round(time.monotonic() - started, 3)})
        return {"name": names}


def run(
    stage: Stage,
    units: Mapping[str, Mapping[str, Any]],
    make: Callable[..., Task],
    *arguments: Any,
    unit: str,
    label: str | None = None,
    actors: int | None = None,
) -> dict[str, Receipt]:
    """The receipts of all units of a stage, in the order of `units`; only the unfinished ones are worked on.

    Args:
        units: name -> plain values that say what the unit is.
        label: of the progress bar; absent, the stage's name.
        unit: what people call several of them.
        make: called once in every actor with `arguments`; what it returns turns a unit into a receipt. Object references among
            the arguments are resolved to shared read-only values.
        actors: how many work at once; absent, one a CPU.

    Raises:
        ClusterError: more actors than the cluster has CPUs, or Ray gave up on a unit.
        RecsysError: whatever of ours a unit raised.
    """
    pending = {name: values for name, values in units.items() if stage.receipt(name) is None}
    if pending:
        have = cpus()
        if actors is not None and actors > have:
            raise ClusterError(f"run.actors: {actors} actors need {actors} CPUs, Ray has {have}. Lower run.actors or add nodes.")
        pool = min(actors or have, len(pending))
        rows = [{"name": name, "unit": json.dumps(dict(values))} for name, values in pending.items()]
        dataset = ray.data.from_items(rows, override_num_blocks=len(pending)).map_batches(
            _Worker,
            fn_constructor_args=(stage, make, arguments),
            batch_size=1,
            num_cpus=1,
            compute=ActorPoolStrategy(size=pool),
        )
        with progress(label or stage.name, len(pending), unit=unit) as advance:
            try:
                for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                    advance(len(batch["name"]))
            except (RayError, RuntimeError) as error:
                raise _our_error(error, stage) from error
    receipts: dict[str, Receipt] = {}
    for name in units:
        receipt = stage.receipt(name)
        if receipt is None:
            raise ClusterError(f"{stage.path}: unit {name} left no receipt. Is run.work a folder that every node shares?")
        receipts[name] = receipt
    return receipts


def _our_error(error: BaseException, stage: Stage) -> RecsysError:
    """The error of ours inside what Ray raised, else one that names the stage and Ray's last line."""
    seen: BaseException | None = error
    root = error
    while seen is not None:
        if isinstance(seen, RecsysError):
            return seen
        root = seen
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else (seen.__cause__ or seen.__context__)
    lines = [line for line in str(root).splitlines() if line.strip()] or [""]
    return ClusterError(
        f"{stage.path}: a unit failed: {type(root).__name__}: {lines[-1].strip()} "
        "Its log is in Ray's session folder; run the command again to resume."
    )
