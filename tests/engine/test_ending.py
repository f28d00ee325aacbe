"""Ends from outside: signals wherever the process is, and a time that comes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recsys.engine.ending import Cut, cut_after, cut_if
from recsys.engine.stage import Stage
from recsys.engine.units import Task, run_units

ROOT = Path(__file__).parents[2]
# A verb that waits in Ray, which raises other exceptions than those that handlers raise.
VERB = """
import time
import ray
from jobs import job, main

@ray.remote
def forever(): time.sleep(600)

def work() -> None:
    with job():
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=40, log_to_driver=False)
        listen()  # Ray sets a handler of its own
        print("works", flush=True)
        ray.get(forever.remote())

from recsys.engine.ending import listen
main(work)
"""


@pytest.mark.ray
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "Ended by SIGTERM. What is finished is kept"), (signal.SIGINT, "")])
def test_a_signal_is_told_as_itself_inside_of_ray_too(number: signal.Signals, said: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    verb = subprocess.Popen([sys.executable, "-c", VERB], cwd=ROOT, env=environment, text=True, **pipes)
    assert verb.stdout is not None
    assert verb.stdout.readline() == "works\n"
    time.sleep(1)
    verb.send_signal(number)
    _, errors = verb.communicate(timeout=60)
    assert verb.returncode == 128 + number, errors
    assert said in errors


def test_a_block_is_cut_when_its_time_is_over_and_not_before() -> None:
    begun = time.monotonic()
    with pytest.raises(Cut), cut_after(0.3):
        time.sleep(30)
    assert time.monotonic() - begun < 10
    with cut_after(60), cut_after(None):
        pass
    with pytest.raises(Cut), cut_after(-5):
        time.sleep(30)


def test_what_is_said_after_the_block_was_left_is_not_heard() -> None:
    said = threading.Event()

    def too_late(left: threading.Event) -> bool:
        left.wait(60)
        time.sleep(0.2)
        said.set()
        return True

    before = signal.getsignal(signal.SIGUSR2)
    with cut_if(too_late):
        pass
    assert said.wait(60)
    time.sleep(0.2)
    assert signal.getsignal(signal.SIGUSR2) == before


def test_ctrl_c_within_a_block_is_no_cut() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes of a shell ignore it
    try:
        with pytest.raises(KeyboardInterrupt), cut_after(60):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def one_that_hangs(folder: Path) -> Task:
    def task(name: str, unit: dict[str, int]) -> dict[str, int]:
        if unit["hangs"]:
            (folder / "hangs").touch()
            time.sleep(600)
        return {"rows": 1}

    return task


@pytest.mark.ray
@pytest.mark.usefixtures("two_actors")
def test_a_unit_that_hangs_is_cut_off_and_ray_works_on(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "hanging", {})
    units = {f"unit-{number}": {"hangs": number == 1} for number in range(4)}

    def run(until: float | None) -> list[str]:
        return list(run_units(stage, units, one_that_hangs, tmp_path, unit="units", until=until))

    begun = time.monotonic()
    found = run(time.time() + 20)  # one may wait behind that which hangs, for the same actor
    assert time.monotonic() - begun < 60
    assert set(found) <= {"unit-0", "unit-2", "unit-3"}
    assert (tmp_path / "hangs").exists()
    units["unit-1"]["hangs"] = False
    assert run(None) == list(units)
