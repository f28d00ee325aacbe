"""What a submitted job runs first: is this cluster's environment the pinned one? Then the verb takes its place.

    PYTHON cluster/entrypoint.py -m jobs.nightly --config settings.submitted.toml --as-of 2017-12-01

TODAY among the arguments becomes the date, UTC. Only the standard library until the pins are known to be right. They are compared,
never installed: first of the interpreter that runs the driver, then of every node that is alive, by a task on each (a node that joins
later is not looked at).
"""

import importlib.metadata
import logging
import os
import platform
import re
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NODE_SECONDS = 180.0


def names(requirements: list[str]) -> list[str]:
    """The projects that requirement lines name, normalised (PEP 503)."""
    found = [re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in requirements]
    return [re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match]


def pins(root: Path) -> dict[str, list[str]]:
    """The direct dependencies of pyproject.toml and their versions in requirements/runtime.txt; several where they differ by Python."""
    direct = names(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
    pinned: dict[str, list[str]] = {name: [] for name in direct}
    for line in (root / "requirements" / "runtime.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)", line)
        if match and (name := names([match.group(1)])[0]) in pinned:
            pinned[name].append(match.group(2))
    return pinned


def differences(pinned: dict[str, list[str]]) -> list[str]:
    """What this interpreter has otherwise than pinned, one phrase each."""
    found: list[str] = []
    for name, versions in pinned.items():
        wanted = " or ".join(versions)
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} {wanted} is pinned, not installed")
            continue
        if have not in versions:
            found.append(f"{name} {wanted} is pinned, {have} installed")
    return found


def _refuse(where: str, found: list[str]) -> None:
    sys.exit(f"{where}: {'; '.join(found)}. Give the cluster requirements/runtime.txt (docs/clusters.md), or submit the code it has.")


def _nodes(pinned: dict[str, list[str]]) -> None:
    """Compare the pins of every node that is alive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Ray pickles what is defined in __main__, so the task needs no import on the other side.
    look = ray.remote(num_cpus=0, max_retries=0)(differences)
    ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.ERROR, log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    tasks = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(pinned): node
        for node in nodes
    }
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=NODE_SECONDS)
    for task in ready:
        if found := ray.get(task):
            _refuse(f"node {tasks[task]['NodeManagerAddress']}", found)
    if late:
        sys.exit(f"node {tasks[late[0]]['NodeManagerAddress']}: its packages could not be looked at in {NODE_SECONDS:.0f} s.")
    ray.shutdown()
    print(f"Pins agree on {len(nodes)} nodes.", flush=True)


def main(arguments: list[str]) -> None:
    """Compare, then become the verb."""
    pinned = pins(ROOT)
    if found := differences(pinned):
        _refuse(f"{sys.executable} on {platform.node()}", found)
    if "RAY_ADDRESS" in os.environ:
        _nodes(pinned)
    today = datetime.now(UTC).date().isoformat()
    os.execv(sys.executable, [sys.executable, *(today if argument == "TODAY" else argument for argument in arguments)])


if __name__ == "__main__":
    main(sys.argv[1:])
