"""A Redis that serves lists: a user's list is one value, replaced whole; the night's name is written last."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import redis

from recsys.errors import PublishError, one_line
from recsys.publishing.changes import Changes
from recsys.publishing.served import BATCH, batches_of, lists_of, parts_of, to_json, users_of
from recsys.schema import AS_OF, RUN_ID


class RedisTarget:
    """As `served.Target`."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self.client = client
        self.users, self.night, self.progress = f"{name}:user:", f"{name}:night", f"{name}:export"

    def holds(self, to: str) -> tuple[date, str] | None:
        """As `Target.holds`: none whole while the export of another run is unfinished, as some lists are of that one."""
        unfinished = self._json(self.progress)
        if unfinished and unfinished["this"]["to"] != to:
            return None
        told = self._json(self.night)
        return (date.fromisoformat(told[AS_OF]), told[RUN_ID]) if told else None

    def take(self, folder: Path, changes: Changes, *, whole: bool) -> int:
        """As `Target.take`; parts that an earlier run of the same export wrote are not written again."""
        this = {"to": changes.to_run, "since": changes.since_run}
        told = self._json(self.progress) or {}
        done: int = told["parts"] if told.get("this") == this else 0
        rows = 0
        stamp = {AS_OF: changes.to, RUN_ID: changes.to_run}
        self.client.set(self.progress, json.dumps({"this": this, "parts": done}))
        for number, part in enumerate(parts_of(folder, "upserts")):
            if number < done:
                continue
            for batch in batches_of(lists_of(part)):
                rows += sum(len(items) for _, items in batch)
                self.client.mset({f"{self.users}{user}": to_json({**stamp, "items": items}) for user, items in batch})
            self.client.set(self.progress, json.dumps({"this": this, "parts": number + 1}))
        for part in parts_of(folder, "deletes"):
            for batch in batches_of(users_of(part)):
                self.client.delete(*(f"{self.users}{user}" for user in batch))
        if whole:
            self._clear(changes.to_run)
        self.client.set(self.night, json.dumps(stamp))
        self.client.delete(self.progress)
        return rows

    def _clear(self, run: str) -> None:
        """Remove the lists of users who are not in the run, which has just written all of its own."""
        for batch in batches_of(self.client.scan_iter(match=f"{self.users}*", count=BATCH)):
            values = self.client.mget(batch)
            gone = [key for key, value in zip(batch, values, strict=True) if value is not None and json.loads(value)[RUN_ID] != run]
            if gone:
                self.client.delete(*gone)

    def _json(self, key: str) -> dict[str, Any] | None:
        value = self.client.get(key)
        return json.loads(value) if value is not None else None


@contextmanager
def open_redis(to: str, *, name: str, password: str | None) -> Iterator[RedisTarget]:
    """The Redis at an address, for a block.

    Raises:
        PublishError: it cannot be reached or refuses a command.
    """
    try:
        client = redis.Redis.from_url(to, password=password, decode_responses=True, socket_connect_timeout=10)
        with client:
            client.ping()
            yield RedisTarget(client, name)
    except (redis.RedisError, ValueError) as error:
        raise PublishError(f"--to {to}: the Redis cannot take the lists: {one_line(error)}. Mend that, and run again.") from error
