"""A night's lists into what serves them: a Redis, a PostgreSQL, JSON lines, Parquet; all, or what changed since the night there.

Who serves looks up one user and finds that user's whole list. What is written can be written again: a run that was killed is run again.

    Redis        NAME:user:ID -> {"as_of", "run_id", "items": [{"rank", "item_id", "score", …}]}
                 NAME:night   -> {"as_of", "run_id"}, written last; NAME:export, how far an unfinished export is
    PostgreSQL   NAME (the columns of the table less those of the run, primary key user_id, rank), NAME_night (as_of, run_id):
                 one transaction, so that a reader sees one night or the other
    Parquet      a folder a night, and current.json, written last: `parquet_target`
    JSON lines   {"user_id", "as_of", "items": […]}, or {"user_id", "deleted": true} of who has no list any more
"""

import gzip
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qs, urlsplit

from recsys.errors import ConfigError, PublishError
from recsys.publishing.changes import Changes, write_changes
from recsys.publishing.served import Target, lists_of, parts_of, to_json, users_of
from recsys.publishing.table import PublishedNight, published_nights
from recsys.schema import AS_OF, USER_ID
from recsys.storage import write_atomically


@dataclass(frozen=True)
class Exported:
    """What was done."""

    changes: Changes
    rows: int
    """Written, of all lists."""
    seconds: float


def export(
    path: str,
    to: str,
    *,
    as_of: date | None,
    name: str,
    since: date | None = None,
    full: bool = False,
    password: str | None = None,
    storage_options: Mapping[str, str] = {},
) -> Exported:
    """A night of the table written to where it is served.

    Args:
        to: `redis://…`, `rediss://…`, `postgresql://…`, `parquet:` and a folder, path or URI, or the path of a file that ends in .jsonl
            or .jsonl.gz.
        as_of: the night; None, the newest.
        name: of the table, or prefix of keys.
        since: the night that a file's reader holds; other targets say so themselves.
        full: write all lists, whatever is there.

    Raises:
        ConfigError: no such kind of target, or a password in its address.
        PublishError: no such night, or the target cannot be reached or written to.
    """
    nights = {night.as_of: night for night in published_nights(path, storage_options)}
    night = next((one for day, one in nights.items() if as_of in (None, day)), None)
    if night is None:
        newest = ", ".join(map(str, list(nights)[:5])) or "none"
        raise PublishError(
            f"{path}: night {as_of or 'of any date'} must be published to be exported; the newest are {newest}. Choose one of these."
        )
    with target_of(to, name=name, password=password, storage_options=storage_options) as target:
        begun = time.monotonic()
        held = None if full else since or _base(target, nights, to=night)
        with tempfile.TemporaryDirectory() as folder:
            changes = write_changes(path, since=held, to=night.as_of, out=f"{folder}/changes", storage_options=storage_options)
            rows = target.take(Path(folder) / "changes", changes, whole=held is None)
        return Exported(changes, rows, time.monotonic() - begun)


def _base(target: Target, nights: Mapping[date, PublishedNight], *, to: PublishedNight) -> date | None:
    """The night that the target holds, where the table still has that very run of it; else None, and all is written."""
    held = target.holds(to.run_id)
    if held is None or held[0] not in nights or nights[held[0]].run_id != held[1]:
        return None
    return held[0]


def target_of(to: str, *, name: str, password: str | None, storage_options: Mapping[str, str] = {}) -> AbstractContextManager[Target]:
    """The target at an address, opened for a block.

    Raises:
        ConfigError: no such kind, or a password in the address.
        PublishError: it cannot be reached.
    """
    parts = urlsplit(to)
    if urlsplit(to.removeprefix("parquet:")).password is not None or "password" in parse_qs(parts.query):
        raise ConfigError("--to: must hold no password, which process lists and logs show. Use --password-env or --password-file.")
    if parts.scheme in ("redis", "rediss"):
        from recsys.publishing.redis_target import open_redis

        return open_redis(to, name=name, password=password)
    if parts.scheme in ("postgresql", "postgres"):
        from recsys.publishing.postgres_target import open_postgres

        return open_postgres(to, name=name, password=password)
    if parts.scheme == "parquet" and (place := to.removeprefix("parquet:")):
        from recsys.publishing.parquet_target import open_parquet

        return open_parquet(place, storage_options=storage_options)
    if to.endswith((".jsonl", ".jsonl.gz")) and "://" not in to:
        return LinesTarget(Path(to))
    raise ConfigError(
        f"--to {to}: must begin with redis://, postgresql:// or parquet:, or be a file that ends in .jsonl or .jsonl.gz. Mend it."
    )


class LinesTarget(AbstractContextManager["LinesTarget"]):
    """A file of JSON lines, there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __exit__(self, *_: object) -> None: ...

    def holds(self, to: str) -> None:
        """A file does not say what its reader holds."""

    def take(self, folder: Path, changes: Changes, *, whole: bool) -> int:  # noqa: ARG002 # the file holds nothing else
        """As `Target.take`; where not `whole` with a line for each user who has no list any more."""
        rows = 0

        def write(path: Path) -> None:
            nonlocal rows
            compressed = self.path.name.endswith(".gz")
            with cast(IO[str], gzip.open(path, "wt", encoding="utf-8") if compressed else path.open("w", encoding="utf-8")) as file:
                for part in parts_of(folder, "upserts"):
                    for user, items in lists_of(part):
                        rows += len(items)
                        file.write(to_json({USER_ID: user, AS_OF: changes.to, "items": items}) + "\n")
                for part in parts_of(folder, "deletes"):
                    file.writelines(to_json({USER_ID: user, "deleted": True}) + "\n" for user in users_of(part))

        write_atomically(self.path, write)
        return rows
