"""Drills of the night on hosts of their own, in `make drill`: links cut for a while and for good, hosts that go, the head too."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from recsys.data import synthetic
from tests.jobs.test_drills import ROWS
from tests.jobs.test_jobs import receipts
from tests.networks import Network, network, refused
from tests.readers import watched
from tests.small import small_file
from tests.verbs import ROOT

DAY = date(2024, 6, 6)
USERS, K = 600, 5
CUT_SECONDS = 20.0
WORKERS = ("one", "two")
MOMENTS = {"training": "work/train-*/fit-*/*", "scoring": "work/score-*/receipts/part-*.json"}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(1_200),
    pytest.mark.skipif(bool(why := refused()), reason=why),
]


class House:
    """A shop whose night is submitted to a cluster of hosts, again and again."""

    def __init__(self, folder: Path, net: Network) -> None:
        self.folder, self.net, self.log = folder, net, folder / "submit.log"
        self.night: subprocess.Popen[bytes] | None = None
        synthetic.shop(folder / "shop", users=USERS, items=120, days=98, seed=3, end=DAY, events_per_user=30)
        settings = small_file(
            folder,
            train={"epochs": 12, "workers": 2, "batch_size": 256},
            model={"hidden": [64, 32]},
            run={"shards": 24, "work": self.made("work")},
        )
        (folder / "shop.toml").write_text(settings)

    def made(self, name: str) -> str:
        return str(self.folder / "made" / name)

    def submit(self) -> subprocess.Popen[bytes]:
        """The night as a job; another host's command, which follows it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment["RAY_AUTH_TOKEN_PATH"] = str(self.net.token)
        command = [sys.executable, "-m", "jobs.submit", "nightly", "--address", self.net.dashboard, "--insecure-http", "--wait"]
        command += ["--python", sys.executable, "--config", str(self.folder / "shop.toml"), "--as-of", str(DAY)]
        with self.log.open("ab") as log:
            self.night = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        return self.night

    def finish(self, night: subprocess.Popen[bytes]) -> None:
        assert night.wait(timeout=600) == 0, self.log.read_text()[-5_000:]

    def reached(self, night: subprocess.Popen[bytes], pattern: str) -> None:
        """Wait until the night has left such a file."""
        end = time.monotonic() + 300
        while not list((self.folder / "made").glob(pattern)):
            assert night.poll() is None, self.log.read_text()[-5_000:]
            assert time.monotonic() < end
            time.sleep(0.02)

    def rows(self) -> pl.DataFrame:
        return pl.read_delta(self.made("table")).select(ROWS).sort("user_id", "rank")

    @contextmanager
    def drill(self, moment: str, rows: pl.DataFrame) -> Iterator[subprocess.Popen[bytes]]:
        """A block with a night that has come to a moment; after it the table has these rows, and a reader saw nothing else."""
        self.begin_anew(moment)
        with watched(Path(self.made("table")), (USERS * K, USERS, 1)):
            night = self.submit()
            self.reached(night, MOMENTS[moment])
            yield night
            assert self.night is not None, "it was submitted"
            self.finish(self.night)
        assert self.rows().equals(rows)

    def begin_anew(self, moment: str) -> None:
        """As it was before the night trained, or before it scored."""
        made = self.folder / "made"
        stages = ("score-*", "calibrate-*", "backtest-*", "train-*")[: 1 if moment == "scoring" else None]
        for pattern in ("table*", "bundles", "reports", *(f"work/{stage}" for stage in stages)):
            for path in made.glob(pattern):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        self.log.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A head and two workers, and the shop."""
    folder = tmp_path_factory.mktemp("hosts")
    with network(folder) as net:
        for name in ("head", *WORKERS):
            net.add(name)
        yield House(folder, net)


@pytest.fixture(scope="module")
def undisturbed(house: House) -> tuple[pl.DataFrame, float]:
    """The night's rows where nothing happens, and how long it takes."""
    begun = time.monotonic()
    house.finish(house.submit())
    return house.rows(), time.monotonic() - begun


@pytest.fixture
def whole_again(house: House, undisturbed: tuple[pl.DataFrame, float]) -> Iterator[House]:
    """The house; after a drill new hosts stand where some were lost."""
    yield house
    left = house.night is not None and house.night.poll() is None  # the drill failed: its job must not meet the next one's
    if house.night is not None and left:
        house.night.kill()
        house.night.wait()
    for name in ("head", *WORKERS):
        host = house.net.hosts.get(name)
        if (left and name == "head") or host is None or not host.runs() or house.net.states().get(host.address) != "ALIVE":
            house.net.add(name)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_link_cut_for_a_while_changes_no_row(whole_again: House, undisturbed: tuple[pl.DataFrame, float], moment: str) -> None:
    (rows, whole), host, begun = undisturbed, whole_again.net.hosts["two"], time.monotonic()
    with whole_again.drill(moment, rows) as night:
        host.cut()
        time.sleep(CUT_SECONDS)
        assert night.poll() is None, "the night ended before its host came back"
        host.mend()
    seconds = time.monotonic() - begun
    print(f"link cut for {CUT_SECONDS:.0f} s in {moment}: {seconds:.0f} s, the whole night is {whole:.0f}; every row as undisturbed")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_host_cut_off_for_good_is_made_up_for(whole_again: House, undisturbed: tuple[pl.DataFrame, float], moment: str) -> None:
    (rows, whole), net, begun = undisturbed, whole_again.net, time.monotonic()
    with whole_again.drill(moment, rows):
        net.hosts["two"].cut()
        noticed = net.dead(net.hosts["two"])
        if moment == "training":  # two workers, one CPU is left: as an autoscaler does, a new host comes
            net.add("two")
    seconds = time.monotonic() - begun
    print(f"host cut off for good in {moment}: dead to the head after {noticed:.0f} s; {seconds:.0f} s of {whole:.0f}; same rows")


def test_a_node_of_three_that_dies_leaves_its_work_to_the_others(whole_again: House, undisturbed: tuple[pl.DataFrame, float]) -> None:
    (rows, whole), made, begun = undisturbed, whole_again.folder / "made", time.monotonic()
    with whole_again.drill("scoring", rows):
        whole_again.net.hosts["one"].kill()
        kept = receipts(made)
    assert {path: receipts(made)[path] for path in kept} == kept
    seconds = time.monotonic() - begun
    print(f"node of three killed in scoring: {seconds:.0f} s of {whole:.0f}, none of {len(kept)} finished units redone")


def test_a_head_that_dies_ends_the_night_and_the_same_command_finishes_it(
    whole_again: House, undisturbed: tuple[pl.DataFrame, float]
) -> None:
    (rows, whole), net, made = undisturbed, whole_again.net, whole_again.folder / "made"
    with whole_again.drill("training", rows) as night:
        net.hosts["head"].kill()
        kept = receipts(made)
        assert night.wait(timeout=300) == 1
        assert "may still run" in whole_again.log.read_text()
        for name in ("head", *WORKERS):
            net.add(name)
        begun = time.monotonic()
        whole_again.submit()
    assert {path: receipts(made)[path] for path in kept} == kept
    seconds = time.monotonic() - begun
    print(f"head killed in training: {seconds:.0f} s of {whole:.0f} on a new cluster, none of {len(kept)} finished units redone")
