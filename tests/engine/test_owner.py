"""Two runs in one folder: real processes, as the lock is the kernel's."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recsys.engine.owner import is_owned, owned
from recsys.engine.stage import Stage, prune

ROOT = Path(__file__).parents[2]

# A run of one stage with two units, each of which takes a while and leaves the run's name.
RUN = """
import logging, pathlib, sys, time
from recsys.engine.stage import Stage
from recsys.engine.units import run_units

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
root, who, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
stage = Stage(root, "fit", {})

def make():
    def task(name, unit):
        with (root / "begun").open("a") as file:
            file.write(f"{who} {name}\\n")
        time.sleep(seconds)
        return {"by": who}
    return task

print({name: receipt["by"] for name, receipt in run_units(stage, {"a": {}, "b": {}}, make, unit="units", here=True).items()})
"""

Start = Callable[[str, float], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(who: str, seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUN, str(tmp_path), who, str(seconds)]
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(folder: Path) -> list[str]:
    path = folder / "begun"
    return path.read_text().splitlines() if path.exists() else []


def test_of_two_runs_one_works_and_the_other_waits_and_takes_over_what_is_done(tmp_path: Path, start: Start) -> None:
    first = start("first", 4.0)
    until(lambda: begun(tmp_path) == ["first a"])
    second = start("second", 0.0)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert f"waits for process {first.pid} on {os.uname().nodename} (since " in out
    assert "{'a': 'first', 'b': 'first'}" in out
    assert first.communicate(timeout=60)[0].endswith("{'a': 'first', 'b': 'first'}\n")
    assert begun(tmp_path) == ["first a", "first b"]  # nothing was done twice


def test_a_run_goes_on_when_the_owner_is_killed_and_keeps_what_it_finished(tmp_path: Path, start: Start) -> None:
    first = start("first", 3.0)
    until(lambda: begun(tmp_path) == ["first a"])
    second = start("second", 0.0)
    until(lambda: begun(tmp_path) == ["first a", "first b"])
    first.send_signal(signal.SIGKILL)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert f"process {first.pid} on {os.uname().nodename}" in out
    assert "ended in the middle of it; this run goes on from there" in out
    assert "{'a': 'first', 'b': 'second'}" in out
    assert begun(tmp_path) == ["first a", "first b", "second b"]


def test_a_stage_whose_units_are_done_is_read_without_waiting(tmp_path: Path, start: Start) -> None:
    stage = Stage(tmp_path, "fit", {})
    for name in ("a", "b"):
        stage.finish(name, {"by": "before"})
    with stage.owned():
        out, _ = start("second", 0.0).communicate(timeout=60)
    assert out == "{'a': 'before', 'b': 'before'}\n"


def test_an_owned_stage_is_not_pruned_and_a_pruned_one_leaves_no_owner(tmp_path: Path, start: Start) -> None:
    first = start("first", 3.0)
    until(lambda: begun(tmp_path) == ["first a"])
    assert prune(tmp_path, before=time.time() + 3600) == []
    first.kill()
    first.wait()
    assert [name.split("-")[0] for name in prune(tmp_path, before=time.time() + 3600)] == ["fit"]
    assert [path.suffix for path in (tmp_path / "locks").iterdir()] == [".lock"]


def test_within_a_process_a_stage_is_owned_again_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "one.lock"
    assert not is_owned(lock)
    with Stage(tmp_path, "fit", {}).owned(), Stage(tmp_path, "fit", {}).owned(), owned(lock, what="one"):
        with owned(lock, what="one"):
            assert is_owned(lock)
            assert json.loads(lock.with_suffix(".owner").read_text())["pid"] == os.getpid()
        assert is_owned(lock)
    assert not is_owned(lock)
    assert not lock.with_suffix(".owner").exists()


def test_once_makes_what_is_not_there_and_nothing_else(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "fit", {})
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"items": 3}

    assert [stage.once("catalog", make), stage.once("catalog", make)] == [{"items": 3}] * 2
    assert made == [1]
