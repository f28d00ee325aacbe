"""A night as it is released: staged parts audited, held against the gate, and visible by one commit."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys import config
from recsys.errors import GateError, PublishError
from recsys.publishing import staging
from recsys.publishing.figures import COLUMNS, PAIRED_USERS, figures_of
from recsys.publishing.gate import NOT_MEASURED, Quality, Verdict, judge
from recsys.publishing.staging import Part
from recsys.publishing.table import USER_KEY, commit_night, night_batches, published_nights, published_run
from recsys.schema import BASELINE
from recsys.storage import digest, write_atomically

RECORD = "run.json"  # in the folder of the stage that scored: what the run made, what its rules took, and the gate's verdict


@dataclass(frozen=True)
class Release:
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
    user_key: str | None = None
    """Fingerprint of the key that user ids are digests by; None where they are the shop's own."""

    @staticmethod
    def of(
        settings: config.Settings | config.PairsSettings,
        identity: Mapping[str, Any],
        *,
        as_of: date,
        model_version: str,
        ids: tuple[pa.DataType, pa.DataType],
        overrides: Mapping[str, str],
        user_key: str | None = None,
    ) -> "Release":
        """What a model would publish as of a date.

        Args:
            identity: all that the lists depend on beside as_of and model; its digest names the run.
            ids: types of user_id and item_id.
            overrides: checks of the gate that may fail, and why.
            user_key: as of `Release`.
        """
        door = settings.pairs if isinstance(settings, config.PairsSettings) else settings.shop
        return Release(
            settings.table,
            door.storage_options,
            as_of,
            digest({"as_of": as_of.isoformat(), "model": model_version, **identity}),
            model_version,
            settings.rank.k,
            *ids,
            settings.gate,
            overrides,
            user_key,
        )

    def stage(self, rows: pa.Table, *, shard: int) -> Part:
        """The receipt of a shard's rows, staged where no reader sees them."""
        return staging.stage(
            self.table.path, rows, as_of=self.as_of, run_id=self.run_id, shard=shard, storage_options=self.storage_options
        )


@dataclass(frozen=True)
class Published:
    """Tonight's table."""

    run_id: str
    model_version: str
    version: int | None
    """Of the table; None where this very run stood there already."""
    rows: int
    users: int
    short_users: int
    scored: int
    """Rows that the model scored: a user and a candidate each."""
    verdict: Verdict | None
    """None where this very run stood there already, judged."""
    seconds: float
    """From the first to the last finished unit of this call; 0 where there was nothing to do."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rule -> candidates that it kept out, as `recommend.Listed` counts them; all rules, in the order in which they act."""
    short: Mapping[str, int] = field(default_factory=dict)
    """Rule -> users with fewer than k rows from whom it took the most; "" where no rule took anything."""
    carried: Mapping[str, Any] | None = None
    """Where a deadline cut the run off: `users` who keep rows of the night `since`, and those `without` any; None where it did not."""


def publish_parts(
    release: Release,
    folder: Path,
    parts: Sequence[Part],
    *,
    scored: int,
    seconds: float,
    dropped: Mapping[str, int] = {},
    short: Mapping[str, int] = {},
    available: pa.Array | None = None,
    quality: Quality = NOT_MEASURED,
    words: Mapping[str, Sequence[int]] | None = None,
    carried: Mapping[str, Any] | None = None,
    still_ours: Callable[[], None] = lambda: None,
) -> Published:
    """The staged parts as the table of the night: audited, held against the gate, then visible by one commit.

    Args:
        folder: of the stage that scored the parts; what was counted and the verdict are kept there before the commit, as RECORD.
        available: ids of the items that may be recommended; None where that is not known.
        quality: of the model on days that lie behind, for the gate.
        words: as of `pairs_score.PairsRun`, for the record; None at the shop's door, whose record counts them itself.
        dropped, short, carried: as of `Published`; the door of pairs knows neither rules nor deadlines.
        still_ours: called right before the commit; raises where another run works on the table.

    Raises:
        LeaseError: as `still_ours`. Nothing was published.
        PublishError: the audit refuses the parts, or the commit cannot be made. Nothing was published.
        GateError: the lists are not within the gate's limits. Nothing was published.
    """
    where, storage = release.table.path, release.storage_options
    types = {"user_id": release.user_id, "item_id": release.item_id}
    record = folder / RECORD
    stands = published_run(where, as_of=release.as_of, storage_options=storage) == release.run_id
    verdict = None
    with ThreadPoolExecutor(1) as pool:  # the gate looks beside the audit, as each reads all parts
        judged = None if stands and record.exists() else pool.submit(_judge, release, parts, available=available, quality=quality)
        try:
            audit = staging.audit(where, parts, as_of=release.as_of, k=release.k, storage_options=storage, **types)
        except staging.DamagedPartError as error:
            if stands:  # readers may be on it
                raise PublishError(f"{error} The night is published with it: remove it, and run the command with --force.") from error
            staging.remove(where, error.part, storage_options=storage)
            raise PublishError(f"{error} It was removed: the same command, run again, does so.") from error
    if judged is not None:
        verdict = judged.result()
        counts: dict[str, Any] = {"rows": audit.rows, "users": audit.users, "short_users": audit.short_users, "scored": scored}
        if words is not None:
            counts["words"] = words
        if carried is not None:
            counts["carried"] = dict(carried)
        _write_record(record, release, {**counts, "dropped": dict(dropped), "short": dict(short)}, verdict)
    if verdict and not stands:
        _refuse(release, verdict)
    still_ours()
    figures = {check.name: check.value for check in verdict.checks} if verdict else {}
    noted: dict[str, Mapping[str, Any]] = {"gate": figures, "overrides": release.overrides, "dropped": dropped, "short_users": short}
    version = commit_night(
        where,
        parts,
        as_of=release.as_of,
        run_id=release.run_id,
        model_version=release.model_version,
        keep_nights=release.table.keep_nights,
        notes={name: json.dumps(dict(values)) for name, values in noted.items()} | {USER_KEY: release.user_key or ""},
        storage_options=storage,
        **types,
    )
    return Published(
        release.run_id,
        release.model_version,
        version,
        audit.rows,
        audit.users,
        audit.short_users,
        scored,
        verdict,
        seconds,
        dropped,
        short,
        carried,
    )


def _write_record(path: Path, release: Release, counts: Mapping[str, Any], verdict: Verdict) -> None:
    told = {
        "as_of": release.as_of.isoformat(),
        "run_id": release.run_id,
        "model_version": release.model_version,
        "k": release.k,
        **counts,
        "gate": {
            "before": verdict.before.isoformat() if verdict.before else None,
            "overrides": dict(release.overrides),
            "checks": [{**asdict(check), "passed": check.passed, "limit": check.limit} for check in verdict.checks],
        },
    }
    text = json.dumps(told, indent=1)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _judge(release: Release, parts: Sequence[Part], *, available: pa.Array | None, quality: Quality) -> Verdict:
    """What the gate says of parts that the audit lets through; of others it may be anything."""
    where, storage = release.table.path, release.storage_options
    users = max(sum(part["users"] for part in parts), 1)
    share = min(1.0, release.limits.max_users / users)
    look = functools.partial(figures_of, k=release.k, share=share, pair_share=min(share, PAIRED_USERS / users))
    staged = staging.batches(where, parts, columns=COLUMNS, storage_options=storage)
    now = look(staged)
    unknown = 0 if available is None else now.rows - sum(now.items.get(item, 0) for item in available.to_pylist())
    earlier = [one for one in published_nights(where, storage) if one.as_of < release.as_of]
    before, night_before, same_order = None, None, True
    if earlier:
        night_before = earlier[0].as_of
        before = look(night_batches(where, as_of=night_before, columns=COLUMNS, storage_options=storage))
        orders = {name if name.startswith(BASELINE) else "" for name in (earlier[0].model_version, release.model_version)}
        same_order = len(orders) == 1
    return judge(
        now,
        before,
        limits=release.limits,
        night_before=night_before,
        unknown_items=unknown,
        quality=quality,
        same_order=same_order,
    )


def _refuse(release: Release, verdict: Verdict) -> None:
    failed = verdict.failed(release.overrides)
    if failed:
        first, more = failed[0], f" ({', '.join(check.name for check in failed[1:])} too.)" if failed[1:] else ""
        against = f" against night {verdict.before}, which stands" if verdict.before else ""
        raise GateError(
            f"{release.table.path}: gate: {first.name} ({first.meaning}) must be {first.limit}, got {first.value:.4g}{against}.{more} "
            f"Nothing was published for {release.as_of}. See what changed in the input; to publish all the same pass "
            f"--override {first.name} --why REASON.",
            {check.name: check.value for check in failed if check.value is not None},
        )
