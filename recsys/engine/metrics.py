"""Figures of a run for Prometheus, by way of Ray: every node's agent serves them, and what else Ray measures, at its metrics port.

Ray sends them every ten seconds and at the driver's end, and its agent shows them for some 20 s more, so whoever scrapes every ten
seconds has the last ones too. Their names begin with `ray_recsys_` there.
"""

import functools

import ray
from ray.util.metrics import Gauge

# name -> what it is, and by what it is told apart
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "units_done": ("Units of a stage that this run finished.", ("stage",)),
    "units_left": ("Units of a stage that this run has still to do.", ("stage",)),
    "step_seconds": ("How long a step of the night took, wall clock.", ("step",)),
    "rows_read": ("Rows read of an input.", ("table",)),
    "rows_rejected": ("Rows of an input that were dropped, by reason.", ("table", "reason")),
    "table_rows": ("Rows of the published night.", ()),
    "table_users": ("Users with a list in the published night.", ()),
    "gate": ("A check of the gate: its figure tonight.", ("check",)),
    "export_failed": ("A place of [[exports]]: 1 where it did not take the lists at the end of the run, else 0.", ("place",)),
    "gate_stopped": ("A check that stopped the night: its figure.", ("check",)),
    "exit_status": ("Of the run: 0 where the night is published or stood already.", ("night",)),
}
PREFIX = "recsys_"


def tell(name: str, value: float, **tags: str) -> None:
    """Set one of GAUGES; nothing where no Ray runs.

    Args:
        tags: exactly those by which it is told apart.
    """
    if ray.is_initialized():
        _gauge(name).set(value, tags)


@functools.cache
def _gauge(name: str) -> Gauge:
    about, tags = GAUGES[name]
    return Gauge(PREFIX + name, about, tag_keys=tags)
