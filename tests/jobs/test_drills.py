"""Drills of the night with real faults: killed at every step and at random moments; run by `make drill`, which shows what was lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from recsys import config
from recsys.pipelines.runs import read_runs
from recsys.publishing.delta import leftovers
from tests.jobs.test_jobs import receipts
from tests.jobs.test_nights import DAY, write_shop
from tests.processes import alive, descendants
from tests.verbs import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3_600)]

STOPS = 50
ROWS = ["as_of", "user_id", "rank", "item_id", "score", "source", "reason", "model_version"]
# Holds still before or after the commit, as it takes milliseconds: a file says that it is there.
HELD = """
import runpy, sys, time
from pathlib import Path
from recsys.publishing import release

real, here, when = release.commit_night, Path(sys.argv.pop(1)), sys.argv.pop(1)

def held(*arguments, **options):
    done = real(*arguments, **options) if when == "after" else None
    here.touch()
    time.sleep(600)

release.commit_night = held
runpy.run_module("jobs.nightly", run_name="__main__", alter_sys=True)
"""


class House:
    """A shop whose night is run again and again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.file = write_shop(folder, "http://127.0.0.1:9/")
        text = self.file.read_text().replace("shards = 2", "shards = 6").replace("[notify]\n", "")
        self.file.write_text(text.replace('url = "http://127.0.0.1:9/"\n', ""))
        self.arguments = ["--config", str(self.file), "--as-of", str(DAY)]

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        log = (self.folder / "night.log").open("ab")
        with log:
            command = (sys.executable, *(command or ("-m", "jobs.nightly")), *self.arguments)
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self) -> float:
        """Run the night to its end; seconds."""
        begun = time.monotonic()
        assert self.start().wait(timeout=300) == 0, (self.folder / "night.log").read_text()
        return time.monotonic() - begun

    def kill_when(self, night: subprocess.Popen[bytes], pattern: str) -> None:
        """Kill the night and all that it started, once a file is there."""
        deadline = time.monotonic() + 300
        while not list(self.folder.glob(pattern)):
            assert night.poll() is None, (self.folder / "night.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        kill(night)

    def rows(self) -> pl.DataFrame:
        return pl.read_delta(str(self.folder / "table")).select(ROWS).sort("user_id", "rank")

    def clean(self) -> int:
        """Parts that `jobs.publish clean` removed; after it there is nothing but the table."""
        found = len(leftovers(str(self.folder / "table"), {}))
        command = [sys.executable, "-m", "jobs.publish", "clean", "--config", str(self.file)]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        table = DeltaTable(str(self.folder / "table"))
        here = {str(path) for path in (self.folder / "table").glob("as_of=*/*")} | {
            str(path) for path in (self.folder / "table").glob("as_of=*/.*")
        }
        assert here == {str(Path(uri)) for uri in table.file_uris()}
        return found


def kill(night: subprocess.Popen[bytes]) -> None:
    if night.poll() is None:
        night.send_signal(signal.SIGSTOP)  # what it started is known before it ends
        for pid in alive(descendants(night.pid)):
            os.kill(pid, signal.SIGKILL)
    night.wait()


@contextmanager
def watched(table: Path) -> Iterator[list[tuple[int, int, int]]]:
    """A reader that polls the table with Polars meanwhile: rows, users and runs of every look at it."""
    seen: list[tuple[int, int, int]] = []
    ended = threading.Event()
    broken: list[Any] = []

    def look() -> None:
        while not ended.wait(0.1):
            if (table / "_delta_log" / "00000000000000000000.json").exists():
                try:
                    rows = pl.read_delta(str(table))
                except Exception as error:  # noqa: BLE001 # whatever a reader meets
                    if (table / "_delta_log").exists():  # else the drill has begun anew
                        broken.append(error)
                else:
                    seen.append((rows.height, rows["user_id"].n_unique(), rows["run_id"].n_unique()))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        ended.set()
        reader.join()
    assert not broken
    assert {look for look in seen if look[0]} <= {(200, 40, 1)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, float]:
    """The night's rows where nothing happens, and how long it takes."""
    house = House(tmp_path_factory.mktemp("drill") / "shop")
    seconds = house.finish()
    return house.rows(), seconds


MOMENTS = {
    "in ingest": "work/clean-*/receipts/*.json",
    "in signals": "work/signals-*/receipts/*.json",
    "in training": "work/train-*/fit-*",
    "in scoring": "work/score-*/receipts/part-*.json",
}


def test_a_driver_killed_at_every_step_leaves_what_was_done_and_the_same_table(
    undisturbed: tuple[pl.DataFrame, float], tmp_path: Path
) -> None:
    rows, whole = undisturbed
    house = House(tmp_path / "shop")
    kept: dict[Path, str] = {}
    with watched(house.folder / "table") as seen:
        for moment, pattern in MOMENTS.items():
            house.kill_when(house.start(), pattern)
            now = receipts(house.folder)
            assert {path: now[path] for path in kept} == kept, f"{moment}: a finished unit was redone"
            print(f"killed {moment}: {len(now)} units were finished, none of {len(kept)} before was redone")
            kept = now
        for when in ("before", "after"):
            here = house.folder / f"{when}-commit"
            house.kill_when(house.start("-c", HELD, str(here), when), here.name)
            published = (house.folder / "table" / "_delta_log" / "00000000000000000001.json").exists()
            assert published == (when == "after")
            print(f"killed just {when} the commit: the night {'stands' if published else 'does not stand'}")
        seconds = house.finish()
    assert {path: receipts(house.folder)[path] for path in kept} == kept
    assert house.rows().equals(rows)
    assert (house.folder / "reports" / f"{DAY}.html").exists()
    states = [run.state for run in read_runs(config.load(house.file))]
    assert states == ["stood", *["died"] * 6]
    print(f"the last run took {seconds:.0f} s of {whole:.0f}; the reader looked {len(seen)} times, saw nothing or the whole night")
    print(f"clean removed {house.clean()} parts")
    assert house.rows().equals(rows)


def test_stops_at_random_moments_change_no_row(undisturbed: tuple[pl.DataFrame, float], tmp_path: Path) -> None:
    rows, whole = undisturbed
    draw = random.Random(7)
    house = House(tmp_path / "shop")
    ends, killed, left = 0, 0, 0
    with watched(house.folder / "table") as seen:
        while killed < STOPS:
            night = house.start()
            try:
                status = night.wait(timeout=draw.uniform(1, whole / 3))
            except subprocess.TimeoutExpired:
                kill(night)
                killed += 1
                continue
            assert status == 0, (house.folder / "night.log").read_text()
            assert house.rows().equals(rows)
            left += house.clean()
            ends += 1
            for name in ("table", "work", "bundles", "reports"):  # and begin anew
                shutil.rmtree(house.folder / name, ignore_errors=True)
        house.finish()
    assert house.rows().equals(rows)
    left += house.clean()
    print(f"{killed} stops over {ends + 1} nights: all rows of each as undisturbed; {left} parts cleared away; {len(seen)} looks")
