"""Lists into what serves them: a Redis, a PostgreSQL, JSON lines, Parquet, Iceberg; all, or what changed since the night there.

Who serves looks up one user and finds that user's whole list. What is written can be written again: a run that was killed is run again.

    Redis        NAME:user:ID -> {"as_of", "run_id", "items": [{"rank", "item_id", "score", …}]}
                 NAME:night   -> {"as_of", "run_id"}, written last; NAME:export, how far an unfinished export is
    PostgreSQL   NAME (the columns of the table less those of the run, primary key user_id, rank), NAME_night (as_of, run_id):
                 one transaction, so that a reader sees one night or the other
    Parquet      a folder a night, and current.json, written last: `parquet_target`
    Iceberg      all nights, in the table's own files: `iceberg_target`
    JSON lines   {"user_id", "as_of", "items": […]}, or {"user_id", "deleted": true} of who has no list any more
"""

import gzip
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qs, urlsplit

from recsys.errors import ConfigError, PublishError
from recsys.publishing.changes import Changes, write_changes
from recsys.publishing.served import Target, lists_of, parts_of, to_json, users_of
from recsys.publishing.table import PublishedNight, published_nights
from recsys.schema import AS_OF, USER_ID
from recsys.storage import write_atomically

SERVERS = {"redis": "redis", "rediss": "redis", "postgresql": "psycopg", "postgres": "psycopg"}  # scheme -> library that speaks to it


@dataclass(frozen=True)
class Exported:
    """What was done."""

    changes: Changes | None
    """None of an Iceberg table, which takes files, not lists."""
    rows: int
    """Written, of all lists; of an Iceberg table those of its new files."""
    seconds: float
    sentence: str
    """For people, without the place."""


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
        to: `redis://…`, `rediss://…`, `postgresql://…`, `iceberg://…`, `parquet:` and a folder, path or URI, or the path of a file that
            ends in .jsonl or .jsonl.gz.
        as_of: the night; None, the newest.
        name: of the table, or prefix of keys.
        since: the night that a file's reader holds; other targets say so themselves.
        full: write all lists, whatever is there, and leave nothing of before.

    Raises:
        ConfigError: no such kind of target, or a password in its address; or of an Iceberg table `as_of` or `since`.
        PublishError: no such night, or the target cannot be reached or written to.
    """
    check_place(to)
    if to.startswith("iceberg://"):
        return _to_iceberg(path, to, as_of=as_of, since=since, full=full, storage_options=storage_options)
    nights = {night.as_of: night for night in published_nights(path, storage_options)}
    night = next((one for day, one in nights.items() if as_of in (None, day)), None)
    if night is None:
        newest = ", ".join(map(str, list(nights)[:5])) or "none"
        raise PublishError(
            f"{path}: night {as_of or 'of any date'} must be published to be exported; the newest are {newest}. Choose one of these."
        )
    with target_of(to, name=name, password=password, full=full, storage_options=storage_options) as target:
        begun = time.monotonic()
        held = None if full else since or _base(target, nights, to=night)
        with tempfile.TemporaryDirectory() as folder:
            changes = write_changes(path, since=held, to=night.as_of, out=f"{folder}/changes", storage_options=storage_options)
            rows = target.take(Path(folder) / "changes", changes, whole=held is None)
        seconds = time.monotonic() - begun
    told = (
        f"Night {changes.to}, from {changes.since or 'nothing'}: {changes.upserts:,} lists written, {changes.deletes:,} deleted, "
        f"{changes.same:,} as they were; {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s."
    )
    return Exported(changes, rows, seconds, told)


def _to_iceberg(
    path: str, to: str, *, as_of: date | None, since: date | None, full: bool, storage_options: Mapping[str, str]
) -> Exported:
    from recsys.publishing.iceberg_target import follow

    if as_of is not None or since is not None:
        raise ConfigError(f"--to {to.partition('?')[0]}: an Iceberg table holds all nights. Leave --as-of and --since out.")
    begun = time.monotonic()
    done = follow(path, to, forget=full, storage_options=storage_options)
    seconds = time.monotonic() - begun
    told = (
        f"{done.nights} nights, {done.newest} the newest: {done.added:,} files added, {done.removed:,} removed; "
        f"{done.rows:,} rows in {seconds:.1f} s."
    )
    return Exported(None, done.rows, seconds, told)


def _base(target: Target, nights: Mapping[date, PublishedNight], *, to: PublishedNight) -> date | None:
    """The night that the target holds, where the table still has that very run of it; else None, and all is written."""
    held = target.holds(to.run_id)
    if held is None or held[0] not in nights or nights[held[0]].run_id != held[1]:
        return None
    return held[0]


def check_place(to: str) -> None:
    """Nothing, where lists can be handed on to such a place, as far as its address says.

    Raises:
        ConfigError: no such kind, a password in it, or what writes to it is not installed.
    """
    parts = urlsplit(to)
    if urlsplit(to.removeprefix("parquet:")).password is not None or "password" in parse_qs(parts.query):
        raise ConfigError("--to: must hold no password, which process lists and logs show. Use --password-env or --password-file.")
    if parts.scheme == "iceberg":
        from recsys.publishing.iceberg_target import read_address

        read_address(to)
    elif not (
        parts.scheme in SERVERS
        or (parts.scheme == "parquet" and to != "parquet:")
        or (to.endswith((".jsonl", ".jsonl.gz")) and "://" not in to)
    ):
        raise ConfigError(
            f"--to {to}: must begin with redis://, postgresql://, iceberg:// or parquet:, or be a file that ends in .jsonl or "
            ".jsonl.gz. Mend it."
        )
    library = {**SERVERS, "iceberg": "pyiceberg"}.get(parts.scheme)
    if library is not None and find_spec(library) is None:
        extra = "iceberg" if library == "pyiceberg" else "export"
        raise ConfigError(f"--to {parts.scheme}://…: needs {library}, which is not installed. Install recsys[{extra}].")


def target_of(
    to: str, *, name: str, password: str | None, full: bool = False, storage_options: Mapping[str, str] = {}
) -> AbstractContextManager[Target]:
    """The target at an address that `check_place` has seen, opened for a block; none is Iceberg's.

    Args:
        full: as of `export`.

    Raises:
        PublishError: it cannot be reached.
    """
    scheme = urlsplit(to).scheme
    if SERVERS.get(scheme) == "redis":
        from recsys.publishing.redis_target import open_redis

        return open_redis(to, name=name, password=password)
    if scheme in SERVERS:
        from recsys.publishing.postgres_target import open_postgres

        return open_postgres(to, name=name, password=password)
    if scheme == "parquet":
        from recsys.publishing.parquet_target import open_parquet

        return open_parquet(to.removeprefix("parquet:"), full=full, storage_options=storage_options)
    return LinesTarget(Path(to))


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
