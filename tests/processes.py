"""Processes that tests start, and what those start."""

import subprocess


def descendants(of: int) -> set[int]:
    """Ids of a process and of all that it started."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [(int(line.split()[0]), int(line.split()[1])) for line in listed.splitlines()]
    found = {of}
    while more := {pid for pid, parent in pairs if parent in found} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that run; one that ended and that nobody waited for does not."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    return pids & {int(line.split()[0]) for line in listed.splitlines() if not line.split()[1].startswith("Z")}
