"""One run a table: a lease beside it, TABLE.lease, while a run works on the table; a second run is refused meanwhile.

Beside a folder the lease is the kernel's lock (`engine.owner`), free the moment its run ends, however it ends. Beside a table in an
object store it is an object, made and renewed by conditional writes (If-None-Match and If-Match of RFC 9110), of which two never
succeed together. A run that dies leaves it behind: who comes EXPIRES_SECONDS after its last renewal takes it over. A run whose lease
was taken over, as where the machine slept, publishes nothing.

No clock of a run's machine is asked: how long a lease was silent is told by the store's, and how long ago this run renewed its own by
the time since the machine started. A clock that is wrong, or is set meanwhile, takes no lease and loses none.
"""

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from recsys.engine.owner import owned
from recsys.engine.progress import log
from recsys.errors import LeaseError, PublishError

RENEW_SECONDS = 30.0
EXPIRES_SECONDS = 300.0  # ten renewals: a network that is gone for minutes loses no lease

_HELD: dict[str, "_ObjectLease"] = {}  # by table, of this process


@contextmanager
def leased(location: str, storage_options: Mapping[str, str], *, what: str) -> Iterator[Callable[[], None]]:
    """A block that one run works in for a table; within it, further blocks of the same table are entered at once.

    Args:
        location: the table's folder or URI.
        what: the run does, for the sentence that another is told.

    Yields:
        What raises LeaseError where this run's lease holds no more, as another run took it over: to be called before a commit.

    Raises:
        LeaseError: another run works on the table.
        PublishError: the store does not answer, or takes no conditional writes.
    """
    if "://" not in location or location.startswith("file://"):
        table = Path(unquote(urlsplit(location).path) if "://" in location else location).absolute()
        with owned(table.with_name(f"{table.name}.lease"), what=what, refuse=lambda told: _refused(location, told)):
            yield lambda: None  # the kernel keeps it
        return
    if location in _HELD:
        yield _HELD[location].check
        return
    lease = _ObjectLease(location, storage_options, what)
    lease.take()
    _HELD[location] = lease
    try:
        yield lease.check
    finally:
        del _HELD[location]
        lease.free()


def _refused(location: str, told: str) -> LeaseError:
    return LeaseError(f"{location}: one run at a time, got a second one: {told} works on this table. Wait for it, or end it.")


def remove_left(location: str, storage_options: Mapping[str, str]) -> int:
    """Remove what runs left beside the table that died while they asked the store for its time, empty objects; how many.

    Of those that are younger than EXPIRES_SECONDS somebody may still read the time. Beside a folder there are none.
    """
    if "://" not in location:
        return 0
    asking = _ObjectLease(location, storage_options, "clearing away")
    question, now = re.compile(rf"{re.escape(asking.name)}\.[0-9a-f]{{32}}"), asking._now()
    beside = obstore.list_with_delimiter(asking.store)["objects"]
    old = [
        one["path"]
        for one in beside
        if question.fullmatch(one["path"]) and (now - one["last_modified"]).total_seconds() >= EXPIRES_SECONDS
    ]
    if old:
        obstore.delete(asking.store, old)
    return len(old)


@dataclass
class _ObjectLease:
    """A lease as an object in a store."""

    location: str
    storage_options: Mapping[str, str]
    what: str
    mark: dict[str, str] = field(default_factory=dict)
    """By which the store knows the object as this run wrote it last: its e_tag, and its version where it has one."""
    once: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By which a run knows its own lease, where the answer to a write was lost."""
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    renewed: float = 0.0
    """As of `_since_start`."""
    lost: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    renewing: threading.Thread | None = None

    @property
    def name(self) -> str:
        """Of the object, in the folder that the table lies in; of a table that is a whole bucket in this."""
        return f"{self._split()[1]}.lease"

    @cached_property
    def store(self) -> Any:
        """Obstore's, of that folder."""
        told: dict[str, Any] = {"config": dict(self.storage_options)} if self.storage_options else {}
        if self.storage_options.get("endpoint", "").startswith("http://"):
            told["client_options"] = {"allow_http": True}
        return from_url(self._split()[0], **told)

    def _split(self) -> tuple[str, str]:
        root = self.location.rstrip("/")
        parent, _, name = root.rpartition("/")
        return (root, "table") if parent.endswith(":/") else (parent, name)

    def take(self) -> None:
        """Make the lease, or take over that of a run that is gone; then renew it, in a thread, until it is freed."""
        self.renewed = _since_start()  # before it is written, as the store may have long when the answer comes
        try:
            self.mark = self._take()
        except (BaseError, OSError) as error:
            said = " ".join(str(error).split())[:300]
            raise PublishError(
                f"{self.location}: the lease beside the table cannot be written: {said}. Check the store, its credentials, and that it "
                "takes conditional writes."
            ) from error
        self.renewing = threading.Thread(target=self._renew, name=f"lease of {self.location}", daemon=True)
        self.renewing.start()

    def _take(self) -> dict[str, str]:
        for _ in range(3):  # it may be freed or taken between two looks
            try:
                return self._put("create")
            except AlreadyExistsError:
                pass
            try:
                found = obstore.get(self.store, self.name)
            except FileNotFoundError:
                continue
            text, meta = bytes(found.bytes()), found.meta
            if self._wrote(text):
                return _mark(meta)
            told = _told(text)
            silent = (self._now() - meta["last_modified"]).total_seconds()
            if silent < EXPIRES_SECONDS:
                raise _refused(self.location, told)
            try:
                mark = self._put(_mark(meta))
            except PreconditionError:
                continue
            log.warning("%s: %s was not heard of for %.0f s; its lease is taken over", self.location, told, silent)
            return mark
        raise _refused(self.location, "another run")

    def _now(self) -> datetime:
        """By the store's clock: when it takes an object to have been written that was written just now."""
        name = f"{self.name}.{self.once}"
        obstore.put(self.store, name, b"")
        try:
            return obstore.head(self.store, name)["last_modified"]
        finally:
            obstore.delete(self.store, name)

    def _put(self, mode: Any) -> dict[str, str]:
        mine = {"host": platform.node(), "pid": os.getpid(), "since": self.since, "what": self.what, "once": self.once}
        mine["renewal"] = uuid.uuid4().hex  # else two renewals might have one e_tag
        return _mark(obstore.put(self.store, self.name, json.dumps(mine).encode(), mode=mode))

    def _renew(self) -> None:
        while not self.ended.wait(RENEW_SECONDS):
            try:
                begun = _since_start()
                self.mark = self._put_again()
                self.renewed = begun
            except (PreconditionError, FileNotFoundError):
                self.lost = True
                log.warning("%s: the lease was taken over by another run; this one will publish nothing", self.location)
                return
            except (BaseError, OSError) as error:
                log.warning("%s: the lease could not be renewed: %s", self.location, " ".join(str(error).split())[:300])

    def _put_again(self) -> dict[str, str]:
        """The mark of a renewal: of this one, or of an earlier one that the store did and did not tell of."""
        try:
            return self._put(self.mark)
        except PreconditionError:
            found = obstore.get(self.store, self.name)
            if self._wrote(bytes(found.bytes())):
                return _mark(found.meta)
            raise

    def _wrote(self, text: bytes) -> bool:
        try:
            return json.loads(text)["once"] == self.once
        except (ValueError, KeyError, TypeError):
            return False

    def check(self) -> None:
        """Raise LeaseError where another run took the lease over, or may have."""
        silent = _since_start() - self.renewed
        if self.lost or silent >= EXPIRES_SECONDS:
            why = "was taken over by another run" if self.lost else f"could not be renewed for {silent:.0f} s"
            raise LeaseError(f"{self.location}: this run's lease {why}. Nothing was published. Run the command again.")

    def free(self) -> None:
        """End the renewal, and remove the lease where it is still this run's."""
        self.ended.set()
        assert self.renewing is not None, "a lease is taken before it is freed"
        self.renewing.join()
        try:
            if not self.lost and _mark(obstore.head(self.store, self.name)) == self.mark:
                obstore.delete(self.store, self.name)
        except (BaseError, OSError) as error:  # it expires; what was published stands
            log.warning("%s: the lease could not be freed: %s", self.location, " ".join(str(error).split())[:300])


def _since_start() -> float:
    """Seconds since the machine started, its sleep included where the system counts that; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _mark(said: Mapping[str, Any]) -> dict[str, str]:
    """What a store says of an object, as a condition of the next write."""
    return {name: said[name] for name in ("e_tag", "version") if said.get(name) is not None}


def _told(text: bytes) -> str:
    """Who holds a lease, in words."""
    try:
        one = json.loads(text)
        return f"{one['what']}, process {one['pid']} on {one['host']} (since {one['since']}),"
    except (ValueError, KeyError, TypeError):
        return "another run"
