"""What serves lists, as an export sees it, and the changes that it takes, user by user."""

import json
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow.parquet as pq

from recsys.publishing.changes import OF_THE_RUN, Changes
from recsys.schema import USER_ID

BATCH = 1_000  # users that go in one round trip
One = TypeVar("One")
Lists = Iterator[tuple[str | int, list[dict[str, Any]]]]


class Target(Protocol):
    """Something that serves lists."""

    def holds(self, to: str) -> tuple[date, str] | None:
        """The night that it holds, and its run; None where it holds none whole.

        Args:
            to: the run that is to be written: what an unfinished export of it has written does not count.
        """
        ...

    def take(self, folder: Path, changes: Changes, *, whole: bool) -> int:
        """Write the changes that `write_changes` wrote into the folder; how many rows were written.

        Args:
            whole: they are all lists of the night, and whatever else is there goes.
        """
        ...


def parts_of(folder: Path, what: str) -> list[Path]:
    """The files of upserts or deletes, in order."""
    return sorted((folder / what).glob("*.parquet"))


def lists_of(part: Path) -> Lists:
    """Each user of a part of upserts with the list, rows by rank: the columns of the table but user_id and those of the run."""
    table = pq.read_table(part).drop_columns(list(OF_THE_RUN))
    rows = table.drop_columns([USER_ID]).to_pylist()
    start = 0
    ids = table.column(USER_ID).to_pylist()
    for end in range(1, len(ids) + 1):
        if end == len(ids) or ids[end] != ids[start]:
            yield ids[start], rows[start:end]
            start = end


def users_of(part: Path) -> list[str | int]:
    """The users of a part of deletes."""
    return pq.read_table(part).column(USER_ID).to_pylist()


def batches_of(values: Iterable[One]) -> Iterator[list[One]]:
    """The values, BATCH at a time."""
    left = iter(values)
    while batch := list(islice(left, BATCH)):
        yield batch


def to_json(value: Any) -> str:
    """One line; dates as ISO, words as they are."""
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":"))
