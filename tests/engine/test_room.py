"""A cluster that lost its nodes while it worked: it is waited for, and not without end."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from recsys.engine import room
from recsys.engine.ending import Cut, cut_after
from recsys.engine.workers import launch
from recsys.errors import ClusterError
from tests.conftest import CPUS

ROOT = Path(__file__).parents[2]
# Its only node with CPUs is taken from a job while it works.
JOB = """
import os, sys, threading, time
from pathlib import Path

from ray.cluster_utils import Cluster

from recsys.engine import room
from recsys.engine.connect import ENVIRONMENT, connect
from recsys.engine.stage import Stage
from recsys.engine.units import run_units
from recsys.errors import one_line_errors

folder = Path(sys.argv[1])

def make(folder):
    def task(name, unit):
        (folder / "begun").touch()
        time.sleep(1)
        return {}
    return task

room.LOOK_SECONDS, room.WAIT_SECONDS = 0.5, 6.0
os.environ.update(ENVIRONMENT)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address

def lose():
    while not (folder / "begun").exists():
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)

threading.Thread(target=lose, daemon=True).start()
with one_line_errors(), connect():
    run_units(Stage(folder / "work", "lonely", {}), {f"unit-{n}": {} for n in range(600)}, make, folder, unit="units")
"""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(room, "WAIT_SECONDS", 1.0)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "soon")
def test_a_block_ends_where_there_has_been_too_little_for_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with room.while_there_is("CPU", CPUS, what="actors"):
        time.sleep(2)
    said = rf"^actors: the cluster must have {CPUS + 1} CPU or more, got {CPUS} for 0 minutes\. What is finished is kept: add"
    with pytest.raises(ClusterError, match=said), room.while_there_is("CPU", CPUS + 1, what="actors"):
        time.sleep(60)
    assert f"actors: the cluster must have {CPUS + 1} CPU or more, got {CPUS}: waiting for nodes" in caplog.text
    with pytest.raises(Cut), cut_after(1), room.while_there_is("CPU", CPUS + 1, what="actors"):
        time.sleep(60)
    found = iter([0.0, 0.0, 8.0, *[0.0] * 5, *[8.0] * 100])  # nodes go and come

    def there(_: str) -> float:
        return next(found)

    monkeypatch.setattr(room, "there", there)
    with room.while_there_is("CPU", 1, what="actors"):
        time.sleep(3)


def nothing(job: dict[str, Any]) -> str:
    return "returned"


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster", "soon")
def test_training_that_has_no_room_ends(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=rf"^training: the cluster must have {CPUS + 1} CPU or more, got {CPUS} for"):
        launch(nothing, {}, folder=tmp_path, workers=CPUS + 1, gpu=False, max_failures=0)
    assert launch(nothing, {}, folder=tmp_path, workers=1, gpu=False, max_failures=0) == "returned"
    end = time.monotonic() + 60
    while ray.available_resources().get("CPU") != CPUS and time.monotonic() < end:
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == CPUS


@pytest.mark.ray
@pytest.mark.long
def test_a_stage_whose_nodes_are_gone_ends(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOB, str(tmp_path)]
    job = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240, check=False)
    assert "lonely: the cluster must have 1 CPU or more, got 0 for 0 minutes" in job.stderr, job.stderr[-3_000:]
    assert job.returncode == 1
