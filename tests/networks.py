"""Hosts of their own on one machine: network namespaces on a bridge, each with an address of its own and a link that can be cut.

It takes root, as in a container that may set up networks; where it may not, tests are skipped and say so.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys.errors import ClusterError

NETWORK = "10.213.77"  # of the bridge and of all hosts on it
GCS_PORT, DASHBOARD_PORT = 6379, 8265
START_ATTEMPTS = 3
PREFIX = "recsys"  # of bridges, then the id of the process that made it; names may have 15 letters


def refused() -> str:
    """Why this machine lets us make no networks; empty where it does."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "no `ip` command here: hosts of their own were not tried (apt-get install iproute2)"
    name = f"try{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network of its own was tried: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


class Host:
    """A host on the bridge."""

    def __init__(self, name: str, number: int, *, bridge: str, token: Path, folder: Path) -> None:
        self.name, self.bridge, self.token = name, bridge, token
        self.address = f"{NETWORK}.{number}"
        self.namespace, self.link = f"{bridge}-{name}", f"{bridge}{number}"
        self.log = folder / f"{name}.log"
        self.session = tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp")  # paths of Unix sockets may have 107 bytes
        self.node: subprocess.Popen[bytes] | None = None
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self.link, "master", bridge, "up")
        for words in (("addr", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
            _ip("-n", self.namespace, *words)
        _ip("-n", self.namespace, "route", "add", "default", "via", f"{NETWORK}.1")

    def ray(self, *arguments: str) -> None:
        """Start a node of Ray."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        with self.log.open("w") as log:
            self.node = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.namespace, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                    *(f"--node-ip-address={self.address}", f"--temp-dir={self.session}", "--disable-usage-stats"),
                    *(f"--object-store-memory={2**28}", *arguments),
                ],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def runs(self) -> bool:
        """Whether its node does."""
        return self.node is not None and self.node.poll() is None

    def cut(self) -> None:
        """Nothing gets to the host or from it any more, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Its link works again."""
        _ip("link", "set", self.link, "up")

    def kill(self) -> None:
        """The host is off: all that ran there has ended at once."""
        for _ in range(50):
            pids = _pids(self.namespace)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.node is not None:
                self.node.wait()
            if not pids:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.name}: {pids} do not end")

    def remove(self) -> None:
        """The host, and what it left."""
        self.kill()
        _ip("netns", "del", self.namespace)  # and its link with it
        shutil.rmtree(self.session, ignore_errors=True)


def clear_away() -> None:
    """Networks that a killed test run left, with all that runs there."""
    listed = subprocess.run(["ip", "-o", "link", "show", "type", "bridge"], capture_output=True, text=True, check=True).stdout
    for bridge, pid in re.findall(rf"\b({PREFIX}(\d+)):", listed):
        if not Path(f"/proc/{pid}").exists():
            for namespace in _namespaces(bridge):
                for process in _pids(namespace):
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                _ip("netns", "del", namespace)
            _ip("link", "del", bridge)


def _namespaces(bridge: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"(?m)^({bridge}-\w+)", listed)


def _pids(namespace: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split()]


class Network:
    """A head without CPUs and workers of one CPU each, all hosts of their own; this process is on the bridge too."""

    def __init__(self, folder: Path) -> None:
        clear_away()
        self.folder = folder
        self.bridge = f"{PREFIX}{os.getpid()}"
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.hosts: dict[str, Host] = {}
        self.made = 0
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.hosts['head'].address}:{DASHBOARD_PORT}"

    def add(self, name: str) -> Host:
        """A new host of that name with a node that has joined, the one of that name before being gone."""
        if before := self.hosts.pop(name, None):
            before.remove()
        if name == "head":  # the others joined one that is gone
            for other in list(self.hosts):
                self.hosts.pop(other).remove()
        self.made += 1
        host = Host(name, 1 + self.made, bridge=self.bridge, token=self.token, folder=self.folder)
        self.hosts[name] = host
        head = self.hosts["head"].address
        join = ("--head", "--num-cpus=0", f"--port={GCS_PORT}", f"--dashboard-host={head}", f"--dashboard-port={DASHBOARD_PORT}")
        for _ in range(START_ATTEMPTS):  # a raylet waits about 15 s for its agent, too short on a busy machine
            host.ray(*(join if name == "head" else (f"--address={head}:{GCS_PORT}", "--num-cpus=1")))
            while host.runs() and self.states().get(host.address) != "ALIVE":
                time.sleep(0.5)
            if host.runs():
                return host
        raise ClusterError(f"{host.log}: the node ended while it started, {START_ATTEMPTS} times.")

    def states(self) -> dict[str, str]:
        """By address of each node what the head takes it for; nothing while the head does not answer."""
        request = urllib.request.Request(
            f"{self.dashboard}/nodes?view=summary", headers={"Authorization": f"Bearer {self.token.read_text()}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                nodes = json.load(response)["data"]["summary"]
        except (OSError, json.JSONDecodeError):
            return {}
        return {node["raylet"].get("nodeManagerAddress", ""): node["raylet"].get("state", "") for node in nodes}

    def dead(self, host: Host, seconds: float = 300.0) -> float:
        """Seconds until the head takes the host for dead."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if (states := self.states()) and states.get(host.address) != "ALIVE":  # of the dead it forgets the address
                return time.monotonic() - begun
            time.sleep(0.5)
        raise ClusterError(f"{host.log}: not dead to the head after {seconds:.0f} s: {self.states()}")

    def remove(self) -> None:
        """All hosts and the bridge."""
        for host in self.hosts.values():
            host.remove()
        _ip("link", "del", self.bridge)


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network for a block."""
    made = Network(folder)
    try:
        yield made
    finally:
        made.remove()
