"""A night with a deadline: when learning and scoring end, who is scored first, and what those get whom it did not reach."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.config import Settings
from recsys.data.histories import Histories
from recsys.engine.ending import Cut, cut_after
from recsys.engine.progress import log
from recsys.engine.stage import Receipt
from recsys.errors import ConfigError, DeadlineError
from recsys.pipelines.runs import read_runs
from recsys.pipelines.signals import ShopState, make_lists
from recsys.publishing.carry import carry_over, ids_of
from recsys.publishing.release import Release
from recsys.publishing.staging import Part
from recsys.publishing.table import published_nights
from recsys.retrieval.rules import Rules
from recsys.schema import USER_ID

QUARTERS = 4  # of each shard's users, the most active first
ROOM = 1.5  # times what scoring and publishing took the last time is left for each
SHARE, SHARE_SCORING = 0.1, 0.5  # of the time until the deadline is left for publishing and for scoring where they were never timed


@dataclass(frozen=True)
class Deadline:
    """When the table has to be there."""

    at: datetime
    """UTC."""
    stop: float
    """Seconds since 1970: scoring ends then, as audit, gate and commit take their time."""
    learn: float
    """Likewise: a challenger that is not trained by then is given up, as scoring takes its time."""

    def missed(self, table: str, lacks: str, seen: str = "none") -> DeadlineError:
        """Why nothing can be published."""
        return DeadlineError(
            f"{table}: the deadline {self.at:%Y-%m-%d %H:%M} UTC needs {lacks}, got {seen}. Nothing was published, what is finished is "
            "kept. Start earlier, or run the command again without --deadline."
        )


def now() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()


@contextmanager
def cut_by(deadline: Deadline | None, table: str, step: str) -> Iterator[None]:
    """A block without which nobody can be scored: it ends when scoring has to; without a deadline never.

    Raises:
        DeadlineError: it came to that.
    """
    try:
        with cut_after(deadline.stop - now() if deadline else None):
            yield
    except Cut:
        assert deadline is not None, "nothing else cuts"
        raise deadline.missed(table, "one user to be scored before it", f"none, it came while {step}") from None


@dataclass(frozen=True)
class Carried:
    """What users get whom the run did not reach."""

    parts: list[Part]
    users: int
    """With rows of an earlier night."""
    without: int
    """Not reached, and without rows on it either: they have no list tonight."""
    since: date
    """The night that they are of."""


def clock_zone(settings: Settings) -> ZoneInfo:
    """Of the clock that the shop goes by: shop.timezone, or UTC.

    Raises:
        ConfigError: it is no time zone.
    """
    name = settings.shop.timezone or "UTC"
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"shop.timezone: '{name}' is no IANA time zone. Use a name such as \"Europe/Berlin\".") from error


def next_deadline(settings: Settings, hour: str) -> Deadline:
    """The next time that the clock shows `HH:MM` in shop.timezone, or in UTC.

    Raises:
        ConfigError: it is no time of day, or as `clock_zone`.
    """
    try:
        wanted = time.fromisoformat(hour)
    except ValueError:
        wanted = None
    if wanted is None or wanted.tzinfo is not None:
        raise ConfigError(f"--deadline: must be a time of day such as 06:00, got '{hour}'. It is in shop.timezone.")
    zone = clock_zone(settings)
    clock = datetime.now(zone)
    today = datetime.combine(clock.date(), wanted, zone)
    at = (today if today > clock else datetime.combine(clock.date() + timedelta(days=1), wanted, zone)).astimezone(UTC)
    runs = read_runs(settings)

    def room(step: str, share: float) -> float:
        timed = [run.seconds[step] for run in runs if step in run.seconds]
        return ROOM * timed[0] if timed else share * (at - clock).total_seconds()

    stop = at.timestamp() - room("publish", SHARE)
    return Deadline(at, stop, stop - room("score", SHARE_SCORING))


def units_of(state: ShopState, deadline: Deadline | None) -> dict[str, dict[str, Any]]:
    """The units of scoring: a shard each; with a deadline a quarter of a shard's users, the most active quarters first."""
    shards = state.dataset.shards
    if deadline is None:
        return {f"part-{shard}": {"shard": shard} for shard in shards}
    return {f"part-{shard}-{quarter}": {"shard": shard, "quarter": quarter} for quarter in range(QUARTERS) for shard in shards}


def quarter_of(histories: Histories, quarter: int) -> np.ndarray:
    """Rows of a shard's users in one quarter by number of events, most first, ascending; of equals the earlier row."""
    order = np.argsort(-np.diff(histories.offsets), kind="stable")
    return np.sort(np.array_split(order, QUARTERS)[quarter])


def part_number(unit: Mapping[str, Any]) -> int:
    """The number of a unit's part; no two units of a run have the same."""
    shard = int(unit["shard"])
    return shard * QUARTERS + int(unit["quarter"]) if "quarter" in unit else shard


def carry(state: ShopState, release: Release, receipts: Mapping[str, Receipt], deadline: Deadline) -> Carried:
    """What the night before has for users of the shop of whom no unit is finished.

    Raises:
        DeadlineError: nobody was scored, or there is no night before.
    """
    where, storage = release.table.path, release.storage_options
    before = next((night.as_of for night in published_nights(where, storage) if night.as_of < release.as_of), None)
    if not receipts or before is None:
        lacks = "one user to be scored before it" if not receipts else "a night before, whose rows those keep who were not reached"
        raise deadline.missed(where, lacks)
    reached = [ids_of(release, [receipt["part"] for receipt in receipts.values()])]
    reached += [pa.array(receipt["without"], release.user_id) for receipt in receipts.values()]
    folder = state.dataset.folder
    every = [pq.read_table(folder / f"histories-{shard}.parquet", columns=[USER_ID])[USER_ID] for shard in state.dataset.shards]
    everybody = pa.chunked_array([chunk for column in every for chunk in column.chunks], release.user_id).combine_chunks()
    users = everybody.filter(pc.invert(pc.is_in(everybody, value_set=pa.concat_arrays(reached))))
    catalog = state.dataset.catalog()
    allowed = ~Rules(state.settings, catalog, make_lists(state)).forbidden()
    first = len(units_of(state, deadline))
    parts = carry_over(release, since=before, users=users, items=catalog.item_id.filter(pa.array(allowed)), shard=first)
    carried = sum(part["users"] for part in parts)
    told = f"{carried:,}", before, f"{len(users) - carried:,}"
    log.warning("score: the deadline came: %s users keep the rows of %s, %s have none", *told)
    return Carried(parts, carried, len(users) - carried, before)
