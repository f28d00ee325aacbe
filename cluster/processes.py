"""The processes of a cluster on this machine: known by number and time of creation, by session, or by the cluster's mark."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

import ray  # noqa: F401  its psutil is on the path from here on

# isort: split
import psutil  # pyrefly: ignore[missing-import]

MARK = "RECSYS_LOCAL_CLUSTER"  # in the environment of every process of the cluster; the value is the cluster's id


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one of the same number."""

    role: str
    pid: int
    created: float
    """Seconds since 1970, from the operating system."""


def alive(started: Sequence[Process]) -> list[psutil.Process]:
    """The recorded processes that still run, in order of start."""
    found: list[psutil.Process] = []
    for process in started:
        try:
            now = psutil.Process(process.pid)
            if now.create_time() == process.created and now.status() != psutil.STATUS_ZOMBIE:
                found.append(now)
        except psutil.NoSuchProcess:
            continue
    return found


def members(started: Sequence[Process], cluster_id: str) -> list[psutil.Process]:
    """Every running process of the cluster: those recorded, their descendants and sessions, and all that carry its mark.

    A job's driver has a session of its own and loses its parent when that dies, but keeps the mark; Ray's workers overwrite their
    environment with a title, but keep parent and session.
    """
    recorded = alive(started)
    found = {process.pid: process for process in recorded}
    for process in recorded:
        found |= {child.pid: child for child in _children(process)}
    # A number that another program has by now is no session of ours; one that nobody has may still be the session of ours.
    sessions = {one.pid for one in started if one.pid in found or not psutil.pid_exists(one.pid)}
    since = min((one.created for one in started), default=0.0)
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, cluster_id, sessions, since):
            found |= {one.pid: one for one in [process, *_children(process)]}
    return [process for process in found.values() if _running(process)]


def _belongs(process: psutil.Process, mark: str, sessions: set[int], since: float) -> bool:
    try:
        in_session = os.getsid(process.pid) in sessions and process.create_time() >= since
        return in_session or process.environ().get(MARK) == mark
    except (psutil.Error, ProcessLookupError, PermissionError):
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(process: psutil.Process, number: signal.Signals) -> None:
    """The signal, to this very process; nothing where it is gone."""
    try:
        process.send_signal(number)  # psutil looks first whether the number is still that process
    except psutil.NoSuchProcess:
        return
