"""The end of both doors' roads: a night's units scored and staged, then audited, held against the gate, and visible by one commit."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys import config, gate, publish, runtime, staging
from recsys.errors import GateError
from recsys.runtime import Task
from recsys.score import Device
from recsys.staging import Part
from recsys.work import Receipt, Stage, write_atomically

RECORD = "run.json"  # in the folder of the stage that scored: what the run made, what its rules took, and the gate's verdict


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
    limits: config.Gate
    overrides: Mapping[str, str]
    """Checks of the gate that may fail, and why."""

    def stage(self, rows: pa.Table, *, shard: int) -> Part:
        """The receipt of a shard's rows, staged where no reader sees them."""
        return staging.stage(
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
    verdict: gate.Verdict | None
    """None where this very run stood there already, judged."""
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
    for part in staging.missing(night.table.path, done, storage_options=night.storage_options):
        stage.forget(parts[part["path"]])
    fresh = any(stage.receipt(name) is None for name in units)
    started = time.monotonic()
    receipts = runtime.run(stage, units, make, *arguments, **options)
    return receipts, time.monotonic() - started if fresh else 0.0


def publish_parts(
    night: Night,
    stage: Stage,
    parts: Sequence[Part],
    *,
    scored: int,
    seconds: float,
    dropped: Mapping[str, int] = {},
    short: Mapping[str, int] = {},
    available: pa.Array | None = None,
    ndcg: float | None = None,
) -> Published:
    """The staged parts as the table of the night: audited, held against the gate, then visible by one commit.

    Args:
        stage: that scored the parts; what was counted and the verdict are kept in its folder before the commit, as RECORD.
        available: ids of the items that may be recommended; None where that is not known.
        ndcg: as `champion.versus`.
        dropped, short: as of `Published`; the door of pairs knows no rules.

    Raises:
        PublishError: the audit refuses the parts, or the commit cannot be made. Nothing was published.
        GateError: the lists are not within the gate's limits. Nothing was published.
    """
    where, storage = night.table.path, night.storage_options
    types = {"user_id": night.user_id, "item_id": night.item_id}
    record = stage.path / RECORD
    stands = publish.published(where, as_of=night.as_of, storage_options=storage) == night.run_id
    verdict = None
    with ThreadPoolExecutor(1) as pool:  # the gate looks beside the audit, as each reads all parts
        judged = None if stands and record.exists() else pool.submit(_judge, night, parts, available=available, ndcg=ndcg)
        audit = staging.audit(where, parts, as_of=night.as_of, k=night.k, storage_options=storage, **types)
    if judged is not None:
        verdict = judged.result()
        counts = {"rows": audit.rows, "users": audit.users, "short_users": audit.short_users, "scored": scored}
        _write_record(record, night, {**counts, "dropped": dict(dropped), "short": dict(short)}, verdict)
    if verdict and not stands:
        _refuse(night, verdict)
    figures = {check.name: check.value for check in verdict.checks} if verdict else {}
    noted: dict[str, Mapping[str, Any]] = {"gate": figures, "overrides": night.overrides, "dropped": dropped, "short_users": short}
    version = publish.commit(
        where,
        parts,
        as_of=night.as_of,
        run_id=night.run_id,
        model_version=night.model_version,
        keep_nights=night.table.keep_nights,
        notes={name: json.dumps(dict(values)) for name, values in noted.items()},
        storage_options=storage,
        **types,
    )
    return Published(night.run_id, version, audit.rows, audit.users, audit.short_users, scored, verdict, seconds, dropped, short)


def _write_record(path: Path, night: Night, counts: Mapping[str, Any], verdict: gate.Verdict) -> None:
    told = {
        "as_of": night.as_of.isoformat(),
        "run_id": night.run_id,
        "model_version": night.model_version,
        "k": night.k,
        **counts,
        "gate": {
            "before": verdict.before.isoformat() if verdict.before else None,
            "overrides": dict(night.overrides),
            "checks": [{**asdict(check), "passed": check.passed, "limit": check.limit} for check in verdict.checks],
        },
    }
    text = json.dumps(told, indent=1)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _judge(night: Night, parts: Sequence[Part], *, available: pa.Array | None, ndcg: float | None) -> gate.Verdict:
    """What the gate says of parts that the audit lets through; of others it may be anything."""
    where, storage = night.table.path, night.storage_options
    users = max(sum(part["users"] for part in parts), 1)
    share = min(1.0, night.limits.max_users / users)
    look = functools.partial(gate.look, k=night.k, share=share, pair_share=min(share, gate.PAIRED_USERS / users))
    staged = staging.batches(where, parts, columns=gate.COLUMNS, storage_options=storage)
    now = look(staged)
    unknown = 0 if available is None else now.rows - sum(now.items.get(item, 0) for item in available.to_pylist())
    earlier = [one.as_of for one in publish.nights(where, storage) if one.as_of < night.as_of]
    before = None
    if earlier:
        standing = publish.batches(where, as_of=earlier[0], columns=gate.COLUMNS, storage_options=storage)
        before = look(standing)
    night_before = earlier[0] if earlier else None
    return gate.judge(now, before, limits=night.limits, night_before=night_before, unknown_items=unknown, ndcg=ndcg)


def _refuse(night: Night, verdict: gate.Verdict) -> None:
    failed = verdict.failed(night.overrides)
    if failed:
        first, more = failed[0], f" ({', '.join(check.name for check in failed[1:])} too.)" if failed[1:] else ""
        against = f" against night {verdict.before}, which stands" if verdict.before else ""
        raise GateError(
            f"{night.table.path}: gate: {first.name} ({first.meaning}) must be {first.limit}, got {first.value:.4g}{against}.{more} "
            f"Nothing was published for {night.as_of}. See what changed in the input; to publish all the same pass "
            f"--override {first.name} --why REASON."
        )
