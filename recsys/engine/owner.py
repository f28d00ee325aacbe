"""One owner at a time: where two runs would spoil each other's work, one works and the other waits, then takes over what is done.

The lock is the kernel's (`flock`, by filelock), so it is free the moment its owner ends, however it ends. That holds on one machine
and on shared folders that carry such locks: NFS from 4 on, CephFS, Lustre mounted with `flock`; of a node that vanishes the server
frees it when its lease is over. Where a file system has no locks at all, filelock takes a marker file instead, which the next run
takes back if it is of this machine and its process is gone; of another machine's it must be removed by hand.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from recsys.engine.progress import log
from recsys.errors import ConfigError
from recsys.storage import write_atomically

SAY_SECONDS = 60.0  # between two lines of one who waits


@contextmanager
def owned(lock: Path, *, what: str, refuse: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """A block that one process runs at a time; within it, further blocks of the same lock are entered at once.

    Args:
        lock: the lock's file; who owns it is told by a file beside it.
        what: it is about, for the line of one who waits.
        refuse: what is raised instead of waiting, of who owns it, in words.

    Raises:
        ConfigError: the lock cannot be made there.
    """
    held = FileLock(lock, is_singleton=True)
    if held.is_locked:
        with held:
            yield
        return
    owner = lock.with_suffix(".owner")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _wait(held, owner, what, refuse)
    except OSError as error:
        raise ConfigError(
            f"{lock}: must be a file that can be locked, got: {error.strerror}. Check the folder's permissions."
        ) from error
    try:
        if owner.exists():
            log.info("%s: %s ended in the middle of it; this run goes on from there", what, _told(owner))
        mine = {"host": platform.node(), "pid": os.getpid(), "since": time.time()}
        write_atomically(owner, lambda file: file.write_text(json.dumps(mine), encoding="utf-8"))
        yield
    finally:
        owner.unlink(missing_ok=True)
        held.release()


def is_owned(lock: Path) -> bool:
    """Whether a process owns it now."""
    held = FileLock(lock, is_singleton=True)
    if held.is_locked:
        return True
    if not lock.exists():
        return False
    try:
        with held.acquire(blocking=False):
            return False
    except Timeout:
        return True


def _wait(held: FileLock, owner: Path, what: str, refuse: Callable[[str], Exception] | None) -> None:
    """Take the lock; whoever waits for it says for whom, now and once in a while."""
    seconds, begun = 0.0, time.monotonic()
    while True:
        try:
            held.acquire(timeout=seconds, poll_interval=0.2)
        except Timeout:
            if refuse is not None:
                raise refuse(_told(owner)) from None
            log.info("%s: waits for %s, which works on the same", what, _told(owner))
            seconds = SAY_SECONDS
        else:
            if seconds:
                log.info("%s: goes on after %.0f s", what, time.monotonic() - begun)
            return


def _told(owner: Path) -> str:
    """Who owns it, in words."""
    try:
        one = json.loads(owner.read_text(encoding="utf-8"))
        since = datetime.fromtimestamp(one["since"], UTC)
        return f"process {one['pid']} on {one['host']} (since {since:%Y-%m-%d %H:%M} UTC)"
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # gone meanwhile, or damaged
        return "another run"
