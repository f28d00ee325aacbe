"""The end of both doors' roads: the units of a night scored and staged, then audited and made visible by one commit."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pyarrow as pa

from recsys import config, publish, runtime
from recsys.publish import Part
from recsys.runtime import Task
from recsys.score import Device
from recsys.work import Receipt, Stage


@dataclass(frozen=True)
class Night:
    """A table about to be published: where, as of when, and from what."""

    table: config.Table
    storage_options: Mapping[str, str]
    as_of: date
    run_id: str
    model_version: str
    k: int
    user_id: pa.DataType
    item_id: pa.DataType

    def stage(self, rows: pa.Table, *, shard: int) -> Part:
        """The receipt of a shard's rows, staged where no reader sees them."""
        return publish.stage(
            self.table.path, rows, as_of=self.as_of, run_id=self.run_id, shard=shard, storage_options=self.storage_options
        )


@dataclass(frozen=True)
class Published:
    """Tonight's table."""

    run_id: str
    version: int | None
    """Of the table; None where this very run stood there already."""
    rows: int
    users: int
    short_users: int
    scored: int
    """Rows that the model scored: a user and a candidate each."""
    seconds: float
    """From the first to the last finished unit of this call; 0 where there was nothing to do."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rule -> candidates that it kept out, as `recommend.Listed` counts them; all rules, in the order in which they act."""
    short: Mapping[str, int] = field(default_factory=dict)
    """Rule -> users with fewer than k rows from whom it took the most; "" where no rule took anything."""


def device_of(run: config.Run) -> Device:
    """What scores: as the settings say, else the GPU where the cluster has one."""
    return run.device or ("gpu" if runtime.gpus() else "cpu")


def score_units(
    stage: Stage, units: Mapping[str, Mapping[str, Any]], make: Callable[..., Task], *arguments: Any, night: Night, **options: Any
) -> tuple[dict[str, Receipt], float]:
    """The receipts of units whose `part`, where it is not None, is staged; and the seconds it took, 0 where all was done before.

    Args:
        make, arguments, options: of `runtime.run`.
    """
    parts = {receipt["part"]["path"]: name for name in units if (receipt := stage.receipt(name)) and receipt["part"]}
    done = [receipt["part"] for name in parts.values() if (receipt := stage.receipt(name))]
    for part in publish.missing(night.table.path, done, storage_options=night.storage_options):
        stage.forget(parts[part["path"]])
    fresh = any(stage.receipt(name) is None for name in units)
    started = time.monotonic()
    receipts = runtime.run(stage, units, make, *arguments, **options)
    return receipts, time.monotonic() - started if fresh else 0.0


def publish_parts(
    night: Night,
    parts: Sequence[Part],
    *,
    scored: int,
    seconds: float,
    dropped: Mapping[str, int] = {},
    short: Mapping[str, int] = {},
) -> Published:
    """The staged parts as the table of the night: audited, then visible by one commit.

    Raises:
        PublishError: the audit refuses the parts, or the commit cannot be made. Nothing was published.
    """
    where, storage = night.table.path, night.storage_options
    types = {"user_id": night.user_id, "item_id": night.item_id}
    audit = publish.audit(where, parts, as_of=night.as_of, k=night.k, storage_options=storage, **types)
    version = publish.commit(
        where,
        parts,
        as_of=night.as_of,
        run_id=night.run_id,
        model_version=night.model_version,
        keep_nights=night.table.keep_nights,
        counts={name: values for name, values in (("dropped", dropped), ("short_users", short)) if values},
        storage_options=storage,
        **types,
    )
    return Published(night.run_id, version, audit.rows, audit.users, audit.short_users, scored, seconds, dropped, short)
