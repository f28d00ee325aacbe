"""A stage's units worked on by Ray Data, each leaving a receipt; only the unfinished ones.

A stage runs as one Ray Data job: its unfinished units are the rows, an actor pool maps them to receipts. The units are made in the
driver and the receipts come back to it, so no read or write task competes with the actors for CPUs, which on a small cluster would hang
without an error.
"""

import json
import pickle
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from recsys.engine.ending import Cut, cut_after
from recsys.engine.metrics import tell
from recsys.engine.progress import log, progress
from recsys.engine.room import cpus, gpus, while_there_is
from recsys.engine.stage import Receipt, Stage
from recsys.errors import ClusterError, RecsysError, raise_ending

Task = Callable[[str, dict[str, Any]], Receipt]
"""A unit's name and values -> its receipt."""
ATTEMPTS = 4  # of one unit in one run; Ray Data tries without end, a hang for a unit that kills every worker


def share(arrays: Mapping[str, np.ndarray]) -> Any:
    """The arrays in Ray's object store: one copy a node, which all its actors read; an argument of `run_units`."""
    return ray.put(dict(arrays))


class _Worker:
    """One actor: the stage's task, made once, called for one unit after the other.

    Errors come back as values: raised, Ray Data loses their type or adds words of its own to their message.
    """

    def __init__(self, stage: Stage, make: Callable[..., Task], arguments: tuple[Any, ...]) -> None:
        self.stage = stage
        self.make = make
        self.arguments = arguments
        self.task: Task | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ((name, values),) = zip(batch["name"], batch["unit"], strict=True)
        return {"name": [str(name)], "error": [pickle.dumps(self.error(str(name), json.loads(values)))]}

    def error(self, name: str, values: Mapping[str, Any]) -> RecsysError | None:
        """Why the unit could not be finished; None where it was."""
        if self.stage.receipt(name) is not None:  # by one who died before the driver heard of it: Ray Data gives it out again
            return None
        if self.stage.attempt(name) > ATTEMPTS:
            return ClusterError(
                f"{self.stage.path}: unit {name} ended its worker {ATTEMPTS} times, as when memory runs out. "
                "Give the nodes more memory, or cut smaller units: raise run.shards."
            )
        begun, started = time.time(), time.monotonic()
        try:
            if self.task is None:
                self.task = self.make(*(ray.get(value) if isinstance(value, ray.ObjectRef) else value for value in self.arguments))
            receipt = self.task(name, dict(values))
            told = {"begun": round(begun, 3), "seconds": round(time.monotonic() - started, 3), "node": node()}
            self.stage.finish(name, {**receipt, **told})
        except RecsysError as error:
            return error
        except Exception as error:  # noqa: BLE001 # the driver raises it
            traceback.print_exc()
            return ClusterError(
                f"{self.stage.path}: unit {name} failed: {type(error).__name__}: {error}. "
                "The traceback is in Ray's session folder; run the command again to resume."
            )
        return None


def _here(worker: _Worker, units: Mapping[str, Mapping[str, Any]]) -> Generator[tuple[str, RecsysError | None]]:
    """Work on the units in this process; of each its name and what `_Worker.error` says."""
    for name, values in units.items():
        yield name, worker.error(name, values)


def _on_ray(
    worker: _Worker, units: Mapping[str, Mapping[str, Any]], *, actors: int | None, device: str
) -> Generator[tuple[str, RecsysError | None]]:
    """Work on the units as one Ray Data job; of each finished one its name and what `_Worker.error` says, in any order."""
    have, what = (gpus(), "GPUs") if device == "gpu" else (cpus(), "CPUs")
    wanted = actors or max(have, 1)
    if wanted > have:
        raise ClusterError(f"{wanted} actors need {wanted} {what}, Ray has {have}. Lower run.actors, or add nodes.")
    rows = [{"name": name, "unit": json.dumps(dict(values))} for name, values in units.items()]
    from ray.data import ActorPoolStrategy, from_items

    dataset = from_items(rows, override_num_blocks=len(units)).map_batches(
        _Worker,
        fn_constructor_args=(worker.stage, worker.make, worker.arguments),
        batch_size=1,
        num_cpus=1,
        num_gpus=1 if device == "gpu" else 0,
        compute=ActorPoolStrategy(size=min(wanted, len(units))),
    )
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            yield from zip(map(str, batch["name"]), map(pickle.loads, batch["error"]), strict=True)
    except (RayError, RuntimeError) as error:
        raise_ending(error)
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        raise ClusterError(
            f"{worker.stage.path}: Ray gave up: {type(error).__name__}: {' '.join(last)} "
            "Its logs are in its session folder; run the command again to resume."
        ) from error


def node() -> str:
    """The first digits of the id that Ray gives the node of this process; empty where there is no Ray."""
    return ray.get_runtime_context().get_node_id()[:8] if ray.is_initialized() else ""


def run_units(
    stage: Stage,
    units: Mapping[str, Mapping[str, Any]],
    make: Callable[..., Task],
    *arguments: Any,
    unit: str,
    label: str | None = None,
    actors: int | None = None,
    device: str = "cpu",
    here: bool = False,
    until: float | None = None,
) -> dict[str, Receipt]:
    """The receipts of all units of a stage, in the order of `units`; only the unfinished ones are worked on, begun about in that order.

    While another process owns the stage, this one waits, and works on what is unfinished then.

    Args:
        units: name -> plain values that say what the unit is.
        label: of the progress bar; absent, the stage's name.
        unit: what people call several of them.
        make: called once in every actor with `arguments`; what it returns turns a unit into a receipt. Object references among
            the arguments are resolved to shared read-only values.
        actors: how many work at once; absent, one a CPU, or one a GPU.
        device: "gpu" gives every actor one.
        here: work on the units in this process, one after the other: for what takes less time than an actor's start.
        until: seconds since 1970; then those that are not finished are given up, and only the receipts of finished ones are returned.
            Absent: all are worked on.

    Raises:
        ClusterError: more actors than the cluster has CPUs or GPUs, it lost all of them, or Ray gave up on a unit.
        RecsysError: whatever of ours a unit raised.
    """
    pending: dict[str, Mapping[str, Any]] = {}
    late = False
    if any(stage.receipt(name) is None for name in units):
        with stage.owned():
            pending = {name: values for name, values in units.items() if stage.receipt(name) is None}
            for name in pending:
                stage.forget(name)  # and with it the attempts of earlier runs
            late = bool(pending) and until is not None and time.time() >= until
            if pending and not late:
                worker, resource = _Worker(stage, make, arguments), "GPU" if device == "gpu" else "CPU"
                mistakes = _here(worker, pending) if here else _on_ray(worker, pending, actors=actors, device=device)
                # closed here and now: a job that a mistake leaves behind must not outlive the Ray it runs on
                try:
                    with (
                        closing(mistakes),
                        progress(label or stage.name, len(pending), unit=unit) as advance,
                        cut_after(None if until is None else until - time.time()),
                        nullcontext() if here else while_there_is(resource, 1, what=label or stage.name),
                    ):
                        for done, (name, mistake) in enumerate(mistakes, start=1):
                            if mistake is not None:
                                raise mistake
                            rows = (stage.receipt(name) or {}).get("rows", 0)
                            advance(1, rows if isinstance(rows, int) else 0)
                            tell("units_done", done, stage=stage.name)
                            tell("units_left", len(pending) - done, stage=stage.name)
                except Cut:
                    late = True
    stage.use(name for name in units if stage.receipt(name) is not None)
    receipts: dict[str, Receipt] = {}
    for name in units:
        receipt = stage.receipt(name)
        if receipt is None and late:
            continue
        if receipt is None:
            raise ClusterError(f"{stage.path}: unit {name} left no receipt. Is run.work a folder that every node shares?")
        receipts[name] = receipt
    nodes = Counter(receipts[name]["node"] for name in pending if name in receipts and receipts[name].get("node"))
    if len(nodes) > 1:
        shares = ", ".join(f"{node} {count:,}" for node, count in sorted(nodes.items()))
        log.info("%s: %s by node: %s", label or stage.name, unit, shares)
    return receipts
