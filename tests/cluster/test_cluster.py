import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import numpy
import polars as pl
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from cluster import entrypoint, local, processes
from cluster.kubernetes import nightly
from recsys.data import synthetic
from recsys.errors import ClusterError

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "cluster" / "kubernetes"
SCHEMAS = Path(__file__).parents[1] / "data" / "kuberay"
KUSTOMIZE = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
AS_OF = date(2024, 3, 1)


# Pins ----------------------------------------------------------------------------------------------------------------------------


def test_no_ray_with_known_remote_execution_is_allowed() -> None:
    floor = Version("2.55")  # fixes CVE-2026-32981; 2026-27482 fixed in 2.54, 2025-62593 in 2.52 (ray-notes)
    pins = entrypoint.pins(ROOT)["ray"]
    assert pins
    assert all(Version(pin) >= floor for pin in pins)
    [ray_line] = [line for line in _dependencies() if entrypoint.names([line]) == ["ray"]]
    assert not any(Requirement(ray_line).specifier.contains(old) for old in ("2.9.0", "2.51.1", "2.54.0", "2.54.9"))


def test_every_direct_dependency_is_pinned_and_here_as_pinned() -> None:
    pins = entrypoint.pins(ROOT)
    assert len(pins) == len(_dependencies())
    assert all(pins.values())
    assert entrypoint.differences(pins) == []


def test_what_differs_from_the_pins_is_named() -> None:
    assert entrypoint.differences({"ray": ["2.54.0"], "numpy": ["1.0", "1.1"], "no-such-package": ["3"]}) == [
        f"ray 2.54.0 is pinned, {ray.__version__} installed",
        f"numpy 1.0 or 1.1 is pinned, {numpy.__version__} installed",
        "no-such-package 3 is pinned, not installed",
    ]


def test_a_job_on_other_packages_ends_in_one_sentence(tmp_path: Path) -> None:
    for name in ("cluster/entrypoint.py", "pyproject.toml", "requirements/runtime.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(?m)^ray(\[.*\])?==\S+", "ray==2.54.0", text))
    command = [sys.executable, tmp_path / "cluster" / "entrypoint.py", "-c", "print('ran')"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"ray 2.54.0 is pinned, {ray.__version__} installed. Give the cluster" in ended.stderr
    assert ended.stderr.count("\n") == 1


def _dependencies() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


# Manifests -----------------------------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses keys it does not name, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    return made


def schema(kind: str) -> dict[str, Any]:
    return strict(json.loads(gzip.decompress((SCHEMAS / f"{kind.lower()}s.v1.schema.json.gz").read_bytes())))


def written() -> list[dict[str, Any]]:
    """The manifests as they stand in the repository."""
    files = [file for file in sorted(KUBERNETES.glob("*.yaml")) if file.name not in ("kustomization.yaml", "replacements.yaml")]
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that renders the manifests with kustomize, with texts of values.yaml replaced."""
    if not shutil.which(KUSTOMIZE[0]):
        pytest.skip("neither kubectl nor kustomize is installed; what is written is checked, what is rendered is not")

    def rendered(changed: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("kubernetes") / "kubernetes"
        shutil.copytree(KUBERNETES, folder)
        values = yaml.safe_load((folder / "values.yaml").read_text())
        values["data"] |= changed or {}
        (folder / "values.yaml").write_text(yaml.safe_dump(values))
        text = subprocess.run([*KUSTOMIZE, folder], capture_output=True, text=True, timeout=60, check=True).stdout
        return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}

    return rendered


def check(manifest: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema(manifest["kind"])).validate(manifest)


def test_the_manifests_fit_the_schemas() -> None:
    kinds = [manifest["kind"] for manifest in written() if manifest["apiVersion"] == "ray.io/v1"]
    assert sorted(kinds) == ["RayCluster", "RayJob"]
    for manifest in written():
        if manifest["apiVersion"] == "ray.io/v1":
            check(manifest)


def test_the_rendered_manifests_fit_the_schemas(render: Any) -> None:
    made = render()
    for kind in ("RayCluster", "RayJob"):
        check(made[kind])
    assert "ConfigMap" not in made  # values.yaml is not applied


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("headGroupSpec", "rayStartParam"), {}),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources", "limit"), {}),
        (("authOptions", "mode"), "tokens"),
        (("workerGroupSpecs", 0, "minReplicas"), "1"),
    ],
)
def test_a_typo_in_a_manifest_is_refused(path: tuple[Any, ...], value: Any) -> None:
    [manifest] = [manifest for manifest in written() if manifest["kind"] == "RayCluster"]
    place = manifest["spec"]
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(manifest)


def test_values_are_the_one_place_to_edit(render: Any) -> None:
    values = yaml.safe_load((KUBERNETES / "values.yaml").read_text())["data"]
    changed = {name: f"9{number}" for number, name in enumerate(values)}
    before, after = json.dumps(render()), json.dumps(render(changed))
    for name, value in changed.items():
        assert value in after, name
        assert value not in before, name
    for placeholder in ("IMAGE", "CPU", "MEMORY", "CLAIM", "ENTRYPOINT", "SCHEDULE", "TIMEZONE"):
        assert f'"{placeholder}"' not in before
    made = render(changed)
    cluster = made["RayCluster"]["spec"]
    assert made["RayJob"]["spec"]["rayClusterSpec"] == cluster


def test_images_and_versions_agree() -> None:
    values = yaml.safe_load((KUBERNETES / "values.yaml").read_text())["data"]
    for name in ("aws", "hosts"):
        assert yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())["docker"]["image"] == values["image"]
    [cluster] = [manifest for manifest in written() if manifest["kind"] == "RayCluster"]
    assert [cluster["spec"]["rayVersion"]] == entrypoint.pins(ROOT)["ray"]


def test_every_cluster_asks_for_a_token() -> None:
    [cluster] = [manifest for manifest in written() if manifest["kind"] == "RayCluster"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    for name in ("aws", "hosts"):
        made = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
        assert "--env RAY_AUTH_MODE=token" in made["docker"]["run_options"]
        assert all("--dashboard-host=127.0.0.1" in line for line in made["head_start_ray_commands"] if "--head" in line)


@pytest.mark.parametrize("name", ["aws", "hosts"])
def test_the_ray_up_files_fit_the_schema_in_rays_wheel(name: str) -> None:
    ray_up = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    made = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    jsonschema.Draft7Validator(ray_up).validate(made)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(ray_up).validate({**made, "max_worker": 2})


# The nightly RayJob --------------------------------------------------------------------------------------------------------------


class Kubernetes:
    """The API server, as far as nightly.py asks it; every look at a RayJob brings it one status further."""

    def __init__(self, *statuses: dict[str, str]) -> None:
        [template] = [manifest for manifest in written() if manifest["kind"] == "RayJob"]
        template["spec"]["entrypoint"] = "verb --as-of TODAY"
        self.jobs: dict[str, dict[str, Any]] = {template["metadata"]["name"]: template}
        self.statuses = list(statuses)

    def add(self, day: str, status: str) -> None:
        name = f"recsys-nightly-{day}"
        self.jobs[name] = {
            "metadata": {"name": name, "labels": {nightly.NIGHT: day}},
            "status": {"jobDeploymentStatus": status, "jobStatus": "SUCCEEDED"},
        }

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        root = "/apis/ray.io/v1/namespaces/recsys/rayjobs"
        name = path.removeprefix(root).strip("/")
        if method == "POST" and body is not None:
            if body["metadata"]["name"] in self.jobs:
                return 409, {}
            check(body)
            self.jobs[body["metadata"]["name"]] = body
            return 201, body
        if not name:
            return 200, {"items": list(self.jobs.values())}
        if name not in self.jobs:
            return 404, {}
        if nightly.NIGHT in self.jobs[name]["metadata"].get("labels", {}) and self.statuses:
            self.jobs[name]["status"] = self.statuses.pop(0)
        return 200, self.jobs[name]

    @contextmanager
    def serve(self) -> Iterator[str]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                assert self.headers["Authorization"] == "Bearer account"
                code, value = api.answer(self.command, self.path, json.loads(self.rfile.read(length)) if length else None)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:  # pyrefly: ignore[bad-override, missing-override-decorator]
                return

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("account\n")
    monkeypatch.setattr(nightly, "ACCOUNT", tmp_path)
    monkeypatch.setattr(nightly, "POLL_SECONDS", 0.0)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 1),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, 1),
    ],
)
def test_a_night_is_one_ray_job_and_its_end_the_pods(end: dict[str, str], code: int) -> None:
    api = Kubernetes({}, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, end)
    api.add("2020-01-01", "Complete")
    with api.serve() as server:
        assert nightly.main(server, "recsys") == code
    day = datetime.now(UTC).date().isoformat()
    made = api.jobs[f"recsys-nightly-{day}"]
    assert made["spec"]["entrypoint"] == f"verb --as-of {day}"
    assert made["spec"]["suspend"] is False
    assert api.jobs["recsys-nightly"]["spec"]["suspend"] is True


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("status", ["Running", "Initializing", "Retrying", ""])
def test_nights_do_not_overlap(status: str) -> None:
    api = Kubernetes({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    api.add("2020-01-01", status)
    before = set(api.jobs)
    with api.serve() as server:
        assert nightly.main(server, "recsys") == 1
    assert set(api.jobs) == before
    [cron] = [manifest for manifest in written() if manifest["kind"] == "CronJob"]
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.usefixtures("account")
def test_a_date_runs_once() -> None:
    api = Kubernetes()
    api.add(datetime.now(UTC).date().isoformat(), "Complete")
    with api.serve() as server:
        assert nightly.main(server, "recsys") == 1


# The cluster of `make cluster-up` ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a small shop."""
    folder = tmp_path_factory.mktemp("shop")
    synthetic.shop(folder / "shop", users=60, items=60, days=70, seed=3, end=AS_OF, events_per_user=20)
    path = folder / "shop.toml"
    path.write_text(
        f"""
        [shop]
        events = "{folder}/shop/events"
        items = "{folder}/shop/items"
        [window]
        history_days = 60
        label_days = 7
        cutoffs = 2
        [signals]
        ease_items = 50
        factors = 4
        als_iterations = 2
        als_l2 = 10
        als_alpha = 2
        [model]
        hidden = [16]
        [train]
        epochs = 1
        workers = 1
        batch_size = 128
        [table]
        path = "{folder}/table"
        [gate]
        max_baseline_loss = 1.0
        [champion]
        path = "{folder}/bundles"
        [report]
        path = "{folder}/reports"
        [run]
        work = "{folder}/work"
        shards = 3
        """
    )
    return path


def run(*command: Any, timeout: float = 120, **environment: Any) -> subprocess.CompletedProcess[str]:
    """A command of the repository, without what this session says about its own Ray."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | environment
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=timeout
    )


def ports() -> list[int]:
    """Three ports that nothing uses, below those that the system hands out."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for probe in (one, two, three):
            probe.bind((local.HOST, 0))
        return [probe.getsockname()[1] for probe in (one, two, three)]


@pytest.mark.ray
@pytest.mark.long  # minutes, of three Rays on two cores; four nodes of one Ray are `test_nodes.py`
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")  # the other Ray of this machine
@pytest.mark.parametrize("guard", [[], ["--tls"]], ids=["token", "token and TLS"])
def test_a_night_on_a_cluster_from_up_to_down(tmp_path: Path, shop: Path, guard: list[str]) -> None:
    folder = tmp_path / "cluster"
    gcs, dashboard, client = ports()
    asked = ["--gcs-port", gcs, "--dashboard-port", dashboard, "--client-port", client, *guard]
    started = run("cluster.local", "up", "--folder", folder, *asked, timeout=400)
    try:
        assert started.returncode == 0, started.stderr
        token = local.token_file(folder).read_text()
        assert local.token_file(folder).stat().st_mode & 0o777 == 0o600
        assert token not in started.stdout + started.stderr + (folder / "cluster.json").read_text()
        again = run("cluster.local", "up", "--folder", folder, *asked)
        assert again.returncode == 1
        assert "a cluster runs there" in again.stderr

        submit = ("jobs.submit", "nightly", "--address", f"http://127.0.0.1:{dashboard}", "--config", shop)
        wrong = run(*submit, "--as-of", AS_OF, "--wait", RAY_AUTH_TOKEN="0" * 64)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "the cluster refuses the token" in wrong.stderr
        assert wrong.stderr.count("\n") == 1

        path = {"RAY_AUTH_TOKEN_PATH": str(local.token_file(folder))}
        night = run(*submit, "--as-of", AS_OF, "--wait", "--entrypoint-num-cpus", 1, timeout=600, **path)
        assert night.returncode == 0, night.stdout + night.stderr
        assert "Pins agree on 3 nodes." in night.stdout
        assert "SUCCEEDED" in night.stderr
        table = pl.read_delta(str(shop.parent / "table"))
        assert set(table["as_of"]) == {AS_OF}
        assert table.group_by("user_id").len()["len"].to_list() == [10] * 60

        _stop_a_job(submit, dashboard, path)
    finally:
        cluster = local.recorded(folder)
        ended = run("cluster.local", "down", "--folder", folder, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert cluster is not None
    assert int(ended.stdout.split()[0]) >= 3
    assert not _processes_of(cluster)
    assert not local.token_file(folder).exists()
    assert not [*folder.glob("*.pem")]
    assert not Path(cluster.session).exists()
    assert list((folder / "logs").glob("job-driver-nightly-*"))
    assert not any(token in file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file())
    assert ray.get(ray.remote(num_cpus=0)(lambda: "still here").remote()) == "still here"  # the other Ray
    nothing = run("cluster.local", "down", "--folder", folder)
    assert (nothing.returncode, "nothing to end" in nothing.stdout) == (0, True)


def _stop_a_job(submit: tuple[Any, ...], dashboard: int, path: dict[str, Any]) -> None:
    """A second job that is stopped from outside ends its follower with 4."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | path
    command = [sys.executable, "-m", *map(str, submit), "--as-of", "2024-02-28", "--wait"]
    with subprocess.Popen(command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            while "Running entrypoint" not in (line := follower.stdout.readline()):
                assert line, "the log ended before the job began"
            stop = ("ray.scripts.scripts", "job", "stop", "nightly-2024-02-28-1", "--address", f"http://127.0.0.1:{dashboard}")
            stopped = run(*stop, RAY_AUTH_MODE="token", **path)
            assert stopped.returncode == 0, stopped.stderr
            _, errors = follower.communicate(timeout=120)
            assert "nightly-2024-02-28-1 STOPPED" in errors
            assert follower.returncode == 4
        finally:
            follower.kill()


def _processes_of(cluster: local.Cluster) -> list[str]:
    """Command lines that name the cluster's session, and processes that carry its mark."""
    left: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if cluster.session.encode() in words or f"{processes.MARK}={cluster.id}".encode() in environment:
            left.append(words.decode(errors="replace"))
    return left


def test_down_ends_nothing_that_has_taken_over_a_number(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        cluster = local.Cluster("id", "http://127.0.0.1:1", "", "/tmp/recsys-none", (processes.Process("head", other.pid, 1.0),))
        (tmp_path / "cluster.json").write_text(json.dumps(local.asdict(cluster)))
        assert local.down(tmp_path) == 0
        assert other.poll() is None
        assert local.recorded(tmp_path) is None


def test_down_finds_a_process_that_lost_its_parent(tmp_path: Path) -> None:
    subprocess.run(["sh", "-c", "setsid sleep 600 &"], env={**os.environ, processes.MARK: str(tmp_path)}, timeout=60, check=True)
    while not (orphans := [process for process in processes.psutil.process_iter() if _mark(process) == str(tmp_path)]):
        time.sleep(0.05)
    cluster = local.Cluster(str(tmp_path), "http://127.0.0.1:1", "", "/tmp/recsys-none", ())
    (tmp_path / "cluster.json").write_text(json.dumps(local.asdict(cluster)))
    assert local.down(tmp_path) == 1
    assert not any(process.is_running() for process in orphans)


def _mark(process: Any) -> str | None:
    try:
        return process.environ().get(processes.MARK)
    except processes.psutil.Error:
        return None


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((local.HOST, 0))
        other.listen()
        with pytest.raises(ClusterError, match="the port is taken"):
            local.up(tmp_path, gcs_port=other.getsockname()[1])
    assert not local.token_file(tmp_path).exists()
