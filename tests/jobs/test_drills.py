"""Drills of the night with real faults: killed at every step and at random moments; run by `make drill`, which shows what was lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from recsys import config
from recsys.pipelines.runs import read_runs
from recsys.publishing.delta import leftovers
from recsys.publishing.table import published_nights
from tests.clocks import Clock
from tests.jobs.test_jobs import receipts
from tests.jobs.test_nights import DAY, ONE, write_shop
from tests.processes import alive, descendants
from tests.readers import watched
from tests.verbs import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3_600)]

STOPS = 50
WHOLE = (200, 40, 1)  # rows, users and runs of a night
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

# Holds still before the audit until a file is gone, as it takes milliseconds.
BEFORE_AUDIT = """
import runpy, sys, time
from pathlib import Path
from recsys.pipelines import score

real, here = score.publish_parts, Path(sys.argv.pop(1))

def held(*arguments, **options):
    here.touch()
    while here.exists():
        time.sleep(0.05)
    return real(*arguments, **options)

score.publish_parts = held
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

    def start(self, *command: str, clock: Clock | None = None) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= clock.environment() if clock else {}
        log = (self.folder / "night.log").open("ab")
        with log:
            command = (sys.executable, *(command or ("-m", "jobs.nightly")), *self.arguments)
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def finish(self) -> float:
        """Run the night to its end; seconds."""
        begun = time.monotonic()
        assert self.start().wait(timeout=300) == 0, (self.folder / "night.log").read_text()
        return time.monotonic() - begun

    def reached(self, night: subprocess.Popen[bytes], pattern: str) -> None:
        """Wait until the night has left such a file."""
        deadline = time.monotonic() + 300
        while not list(self.folder.glob(pattern)):
            assert night.poll() is None, (self.folder / "night.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill_when(self, night: subprocess.Popen[bytes], pattern: str) -> None:
        """Kill the night and all that it started, once a file is there."""
        self.reached(night, pattern)
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
    with watched(house.folder / "table", WHOLE) as seen:
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
    with watched(house.folder / "table", WHOLE) as seen:
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


def test_a_clock_set_back_within_a_night_and_between_two_changes_no_row(
    undisturbed: tuple[pl.DataFrame, float], tmp_path: Path
) -> None:
    rows, _ = undisturbed
    house, clock = House(tmp_path / "shop"), Clock(tmp_path / "clock")
    with watched(house.folder / "table", WHOLE) as seen:
        night = house.start(clock=clock)
        house.reached(night, MOMENTS["in ingest"])
        clock.set("-10m")
        house.reached(night, MOMENTS["in training"])
        clock.set("-1h")  # Ray starts no further training workers until its clock has caught up: the run ends after half an hour
        night.send_signal(signal.SIGTERM)
        assert night.wait(timeout=60) == 143, (house.folder / "night.log").read_text()
        night = house.start(clock=clock)
        house.reached(night, MOMENTS["in scoring"])
        clock.set("-2d")
        assert night.wait(timeout=300) == 0, (house.folder / "night.log").read_text()
    assert house.rows().equals(rows)
    clock.set("-9d")
    house.arguments[-1] = str(DAY + ONE)
    assert house.start(clock=clock).wait(timeout=300) == 0, (house.folder / "night.log").read_text()
    settings = config.load(house.file)
    assert [night.as_of for night in published_nights(settings.table.path)] == [DAY + ONE, DAY]
    assert house.rows().filter(pl.col("as_of") == DAY).equals(rows)
    assert sorted(run.state for run in read_runs(settings)) == ["ended", "published", "published"]
    assert min(seconds for run in read_runs(settings) for seconds in run.seconds.values()) >= 0
    print(
        f"clock set back by 10 minutes, an hour and two days within a night, by a week before the next: both stand; {len(seen)} looks"
    )
    house.clean()


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)], ids=str)
def test_a_night_that_is_ended_in_training_and_in_scoring_says_so_and_is_finished_by_the_same_command(
    undisturbed: tuple[pl.DataFrame, float], tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    rows, _ = undisturbed
    house = House(tmp_path / "shop")
    with watched(house.folder / "table", WHOLE) as seen:
        for moment, number in zip(("in training", "in scoring"), numbers, strict=True):
            night = house.start()
            house.reached(night, MOMENTS[moment])
            started = descendants(night.pid)
            begun = time.monotonic()
            night.send_signal(number)
            assert night.wait(timeout=60) == 128 + number, (house.folder / "night.log").read_text()
            print(f"{number.name} {moment}: ended after {time.monotonic() - begun:.1f} s")
            end = time.monotonic() + 30
            while alive(started) and time.monotonic() < end:
                time.sleep(0.1)
            assert not alive(started)
            run = read_runs(config.load(house.file))[0]
            assert (run.state, run.said) == ("ended", "SIGTERM" if number == signal.SIGTERM else "Ctrl-C")
            assert not list(house.folder.glob("*.owner"))  # of the lease: it was left, not lost
        house.finish()
    assert house.rows().equals(rows)
    assert "Traceback" not in (house.folder / "night.log").read_text()
    house.clean()
    print(f"ended by a signal, twice, then finished by the same command: every row as undisturbed; {len(seen)} looks")


# Runs a night whose deadline leaves training so many seconds, as on the command line it is a time of day.
SHORT = """
import runpy, sys, time
from datetime import UTC, datetime
from recsys.pipelines import deadline

seconds, after = float(sys.argv.pop(1)), float(sys.argv.pop(1))
begun = time.time()
deadline.next_deadline = lambda settings, hour: deadline.Deadline(datetime.now(UTC), begun + seconds + after, begun + seconds)
runpy.run_module("jobs.nightly", run_name="__main__", alter_sys=True)
"""


def test_a_deadline_in_training_gives_the_challenger_up_and_the_champion_scores_everybody(tmp_path: Path) -> None:
    house = House(tmp_path / "shop")
    house.finish()
    house.file.write_text(house.file.read_text().replace("epochs = 1\n", "epochs = 100000\npatience = 100000\n"))
    house.arguments = [*house.arguments[:-1], str(DAY + 7 * ONE), "--deadline", "06:00"]
    begun = time.monotonic()
    with watched(house.folder / "table", WHOLE, (2 * WHOLE[0], WHOLE[1], 2)) as seen:
        assert house.start("-c", SHORT, "60", "300").wait(timeout=600) == 0, (house.folder / "night.log").read_text()
    log = (house.folder / "night.log").read_text()
    assert "tonight's challenger is given up, the champion scores" in log
    assert "Traceback" not in log
    assert list(house.folder.glob("work/train-*/fit-*/history.json")), "it was not in training that the deadline came"
    newest, first = read_runs(config.load(house.file))[:2]
    assert (newest.state, newest.model_version, newest.users) == ("published", first.model_version, 40)
    print(f"deadline in training after 60 s: published after {time.monotonic() - begun:.0f} s, by the champion; {len(seen)} looks")


def test_a_killed_actor_a_second_night_and_a_damaged_part_change_no_row(
    undisturbed: tuple[pl.DataFrame, float], tmp_path: Path
) -> None:
    rows, _ = undisturbed
    house, here = House(tmp_path / "shop"), tmp_path / "before-audit"
    with watched(house.folder / "table", WHOLE) as seen:
        night = house.start("-c", BEFORE_AUDIT, str(here))
        house.reached(night, MOMENTS["in training"])
        assert house.start().wait(timeout=120) == 6
        assert "one run at a time, got a second one" in (house.folder / "night.log").read_text()
        print("two nights at once: the second one ended with 6, the first went on")
        house.reached(night, MOMENTS["in scoring"])
        killed = kill_actor(night.pid)
        while not here.exists():
            assert night.poll() is None, (house.folder / "night.log").read_text()
            time.sleep(0.05)
        before = receipts(house.folder)
        print(f"scoring actor {killed} killed: {len(before)} units finished all the same, by another")
        part = max((house.folder / "table").glob("as_of=*/part-*.parquet"), key=lambda path: path.stat().st_size)
        content = part.read_bytes()
        part.write_bytes(content[: len(content) // 3] + bytes(64) + content[len(content) // 3 + 64 :])  # of the same size
        here.unlink()
        assert night.wait(timeout=300) == 1
        log = (house.folder / "night.log").read_text()
        assert f"{part.name}: cannot be read" in log
        assert "It was removed: the same command, run again, does so." in log
        assert "Traceback" not in log
        house.finish()
    assert house.rows().equals(rows)
    again = [path for path, text in receipts(house.folder).items() if before.get(path) not in (None, text)]
    assert [path.name[:5] for path in again] == ["part-"]
    print(f"part damaged before the audit: nothing published, 1 of {len(before)} units redone; {len(seen)} looks at the table")
    house.clean()


def kill_actor(night: int) -> int:
    """Kill an actor that scores; its process id."""
    pids = ",".join(map(str, alive(descendants(night))))
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-p", pids], capture_output=True, text=True, check=True).stdout
    actor = int(next(line for line in listed.splitlines() if "ray::MapWorker" in line).split()[0])
    os.kill(actor, signal.SIGKILL)
    return actor
