"""A real Ray cluster on this machine: a head and workers started with `ray start`, loopback only, token authentication on.

    python -m cluster.local up      # make cluster-up
    python -m cluster.local down    # make cluster-down

Everything about it lies in one folder, `var/cluster`: the token (mode 0600, made anew by every `up`), `cluster.json` with the process
ids and when each process was created, Ray's log while it runs (`ray/head/session_latest/logs`) and after (`logs`). `ray stop` would
end every Ray on the machine; `down` ends the recorded processes, their descendants and what carries the cluster's mark in its
environment, and looks that nothing is left.

The nodes are 127.0.0.2, .3 and so on, which Linux has without asking: Ray turns 127.0.0.1 into the machine's outer address. The
dashboard and the agents listen there and nowhere else; the GCS and the raylets listen on every address, whatever they are told, and
want the token.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import ray  # noqa: F401  its psutil is on the path from here on
import typer

from cluster import certificates
from cluster.processes import MARK, Process, alive, members, send
from recsys.errors import ClusterError, one_line_errors
from recsys.storage import write_atomically

# isort: split
import psutil  # pyrefly: ignore[missing-import]

HOST = "127.0.0.1"
GCS_PORT, DASHBOARD_PORT, CLIENT_PORT = 26379, 28265, 20001  # off Ray's 6379, 8265 and 10001: another Ray may hold those
START_SECONDS = 120.0
START_ATTEMPTS = 3
STOP_SECONDS = 15.0  # for Ray to end its own processes, before they are killed
SESSIONS = Path("/tmp")  # Ray's Unix sockets lie in its session, and their paths may have 107 bytes: var/ can be too deep
OBJECT_STORE_BYTES = 2**28  # of each node


@dataclass(frozen=True)
class Cluster:
    """What `up` started; written to cluster.json as soon as each process runs."""

    id: str
    address: str
    """Of the dashboard, where jobs are submitted."""
    gcs: str
    session: str
    """Folder of the nodes' sessions. Each has its own, for nodes that share one replace each other's working directories (seen); the
    logs are shared, for on one machine every agent takes itself for the head's and looks for a job's log there."""
    processes: tuple[Process, ...] = ()


def token_file(folder: Path) -> Path:
    """Where the token of the folder's cluster lies while it runs."""
    return folder / "token"


def recorded(folder: Path) -> Cluster | None:
    """The cluster that `up` started in the folder; None where there is none, or `down` ended it."""
    try:
        state: dict[str, Any] = json.loads((folder / "cluster.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    processes = tuple(Process(**process) for process in state.pop("processes"))
    return Cluster(**state, processes=processes)


def up(
    folder: Path,
    *,
    workers: int = 2,
    cpus: int = 2,
    gcs_port: int = GCS_PORT,
    dashboard_port: int = DASHBOARD_PORT,
    client_port: int = CLIENT_PORT,
    tls: bool = False,
) -> Cluster:
    """A running cluster whose nodes have all joined: a head without CPUs, and workers.

    Args:
        cpus: of each worker node; logical, they may be more than the machine has.
        tls: Ray's own traffic is encrypted, and whoever calls must show a certificate; the dashboard, on loopback, stays plain HTTP.

    Raises:
        ClusterError: one runs already, a port is taken, or the nodes did not join in time; what was started is ended again.
    """
    folder = folder.absolute()
    before = recorded(folder)
    if before is not None:
        if alive(before.processes):
            raise ClusterError(f"{folder}: a cluster runs there, at {before.address}. Run `make cluster-down` first.")
        down(folder)  # its processes died by themselves, as in a reboot
    for port in (gcs_port, dashboard_port, client_port):
        _free(port)
    folder.mkdir(parents=True, exist_ok=True)
    _write_token(token_file(folder))
    certificates.remove(folder)
    if tls:
        certificates.make(folder, [HOST, *(_ip(role) for role in ("head", *(f"worker-{number}" for number in range(1, workers + 1))))])
    session = tempfile.mkdtemp(prefix="recsys-", dir=SESSIONS)
    (folder / "ray").unlink(missing_ok=True)
    (folder / "ray").symlink_to(session)
    cluster = Cluster(uuid.uuid4().hex, f"http://{HOST}:{dashboard_port}", f"{_ip('head')}:{gcs_port}", session)
    common = ["--block", f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
    common += ["--dashboard-agent-listen-port=0"]  # agents of one machine cannot share Ray's default port
    head = ["--head", "--num-cpus=0", f"--port={gcs_port}", f"--ray-client-server-port={client_port}"]
    head += [f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}"]
    _record(folder, cluster)  # from here on `down` finds every process by its mark, should this one be killed
    try:
        cluster = _node(folder, cluster, "head", [*common, *head], nodes=1)
        worker = [*common, f"--address={cluster.gcs}", f"--num-cpus={cpus}"]
        logs = Path(session, "head", "session_latest").resolve() / "logs"
        for number in range(1, workers + 1):
            own = Path(session, f"worker-{number}", logs.parent.name)
            own.mkdir(parents=True)
            (own / "logs").symlink_to(logs)
            cluster = _node(folder, cluster, f"worker-{number}", worker, nodes=1 + number)
    except BaseException:
        down(folder)
        raise
    return cluster


def down(folder: Path) -> int:
    """How many processes of the folder's cluster were ended; 0 where there was none. No other Ray is touched.

    Raises:
        ClusterError: a process of the cluster is still there.
    """
    folder = folder.absolute()
    cluster = recorded(folder)
    if cluster is None:
        return 0
    found = members(cluster.processes, cluster.id)
    for process in alive(cluster.processes)[::-1] or found:  # workers first, each ends its own children; or what they left behind
        send(process, signal.SIGTERM)
    _, left = psutil.wait_procs(found, timeout=STOP_SECONDS)
    for _ in range(3):  # what was being started while we looked
        left = [*left, *members(cluster.processes, cluster.id)]
        if not left:
            break
        for process in left:
            send(process, signal.SIGKILL)
        _, left = psutil.wait_procs(left, timeout=STOP_SECONDS)
    if left:
        raise ClusterError(f"{folder}: processes {', '.join(str(process.pid) for process in left)} are still there. End them by hand.")
    _keep_logs(folder, cluster)
    token_file(folder).unlink(missing_ok=True)
    certificates.remove(folder)
    (folder / "cluster.json").unlink(missing_ok=True)
    return len(found)


def _keep_logs(folder: Path, cluster: Cluster) -> None:
    """The nodes' logs in logs/, and their sessions gone."""
    shutil.rmtree(folder / "logs", ignore_errors=True)
    logs = Path(cluster.session, "head", "session_latest", "logs")
    if logs.is_dir():
        shutil.copytree(logs, folder / "logs", ignore_dangling_symlinks=True)
    shutil.rmtree(cluster.session, ignore_errors=True)
    (folder / "ray").unlink(missing_ok=True)


def _node(folder: Path, cluster: Cluster, role: str, arguments: list[str], *, nodes: int) -> Cluster:
    """The cluster with one more node, the last of so many, that has joined it.

    A raylet waits about 15 s for its agent, too short on a busy machine (seen at a load of 25 on 2 cores): it is started again.
    """
    for _ in range(START_ATTEMPTS):
        cluster = _start(folder, cluster, role, arguments)
        if _wait(folder, cluster, nodes=nodes):
            return cluster
    raise ClusterError(f"{folder / role}.log: the {role} ended while it started, {START_ATTEMPTS} times. The reason is in that file.")


def _ip(role: str) -> str:
    """An address of the node's own: 127.0.0.2 for the head, then .3, .4 for the workers."""
    return f"127.0.0.{2 + int(role.removeprefix('worker-') if role != 'head' else 0)}"


def _start(folder: Path, cluster: Cluster, role: str, arguments: list[str]) -> Cluster:
    """The cluster with one more node, recorded."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without compiled modules Ray's agents start in twice the time
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file(folder)), MARK: cluster.id}
    environment |= certificates.environment(folder)
    where = [f"--temp-dir={cluster.session}/{role}", f"--node-ip-address={_ip(role)}"]
    with (folder / f"{role}.log").open("w", encoding="utf-8") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is not for the cluster
        )
    process = Process(role, started.pid, psutil.Process(started.pid).create_time())
    cluster = replace(cluster, processes=(*cluster.processes, process))
    _record(folder, cluster)
    return cluster


def _record(folder: Path, cluster: Cluster) -> None:
    text = json.dumps(asdict(cluster), indent=1) + "\n"
    write_atomically(folder / "cluster.json", lambda file: file.write_text(text, encoding="utf-8"))


def _wait(folder: Path, cluster: Cluster, *, nodes: int) -> bool:
    """True when the dashboard counts so many nodes alive, False when the node started last has ended."""
    end = time.monotonic() + START_SECONDS
    newest = cluster.processes[-1]
    while time.monotonic() < end:
        if newest.pid not in {process.pid for process in alive(cluster.processes)}:
            return False
        if _joined(folder, cluster) == nodes:
            return True
        time.sleep(0.5)
    raise ClusterError(f"{folder}: {nodes} nodes did not join within {START_SECONDS:.0f} s. Their logs: {folder}/*.log and logs/.")


def _joined(folder: Path, cluster: Cluster) -> int:
    """Nodes alive as the dashboard counts them; 0 while it does not answer."""
    token = token_file(folder).read_text(encoding="utf-8")
    request = urllib.request.Request(f"{cluster.address}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            nodes: list[dict[str, Any]] = json.load(response)["data"]["summary"]
    except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError):
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def _write_token(path: Path) -> None:
    """256 random bits that only this user may read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ClusterError(f"{HOST}:{port}: the port is taken. End what holds it, or pass another port (see --help).") from error


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)
Folder = Annotated[Path, typer.Option(help="The cluster's folder.")]
DEFAULT = Path("var/cluster")


@app.command("up")
def _up(
    folder: Folder = DEFAULT,
    workers: Annotated[int, typer.Option(min=1, help="Worker nodes.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="Logical CPUs of each worker node.")] = 2,
    gcs_port: Annotated[int, typer.Option(help="Where nodes find each other.")] = GCS_PORT,
    dashboard_port: Annotated[int, typer.Option(help="Where jobs are submitted.")] = DASHBOARD_PORT,
    client_port: Annotated[int, typer.Option(help="Of ray:// clients; unused here, but Ray listens.")] = CLIENT_PORT,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt Ray's own traffic, with certificates of this cluster's own.")] = False,
) -> None:
    """Start a head and workers on this machine."""
    with one_line_errors():
        ports = {"gcs_port": gcs_port, "dashboard_port": dashboard_port, "client_port": client_port}
        cluster = up(folder, workers=workers, cpus=cpus, **ports, tls=tls)
    guard = "token authentication and TLS are on" if tls else "token authentication is on"
    typer.echo(f"A head and {workers} workers run, each worker with {cpus} CPUs; {guard}.")
    typer.echo(f"The token: {token_file(folder)}. Logs: {folder}/*.log and {folder}/ray/head/session_latest/logs.")
    typer.echo(f"Submit to it: python -m jobs.submit nightly --address {cluster.address} --config shop.toml --as-of 2017-12-01 --wait")


@app.command("down")
def _down(folder: Folder = DEFAULT) -> None:
    """End the processes that `up` started, and no other Ray."""
    with one_line_errors():
        ended = down(folder)
    typer.echo(f"{ended} processes ended." if ended else f"No cluster is recorded in {folder}; nothing to end.")


if __name__ == "__main__":
    app()
