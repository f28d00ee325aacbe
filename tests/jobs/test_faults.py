"""What can befall a night from outside, with the real fault: the same command, run again, ends as an undisturbed night."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from recsys.data import synthetic
from tests.readers import watched
from tests.small import small_file
from tests.verbs import Ended

Run = Callable[..., Ended]
DAY = date(2024, 6, 6)
WHOLE = (300, 60, 1)  # rows, users and runs of a night
ROWS = ["as_of", "user_id", "rank", "item_id", "score", "source", "reason"]

pytestmark = [pytest.mark.ray, pytest.mark.drill, pytest.mark.usefixtures("in_process")]


class House:
    """A shop and its night."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self.run = folder, run
        made = synthetic.shop(folder / "shop", users=60, items=60, days=98, seed=3, end=DAY + timedelta(days=2), events_per_user=20)
        assert made.items is not None
        self.events, self.items = made.events, made.items
        (folder / "shop.toml").write_text(small_file(folder))

    def night(self, day: date = DAY) -> Ended:
        return self.run("nightly", "--config", str(self.folder / "shop.toml"), "--as-of", str(day))

    def rows(self, day: date = DAY) -> pl.DataFrame:
        table = pl.scan_delta(str(self.table)).filter(pl.col("as_of") == day)
        return table.select(ROWS).sort("user_id", "rank").collect()

    @property
    def table(self) -> Path:
        return self.folder / "made" / "table"

    def clean(self) -> None:
        """Clear away; nothing but the table is left then."""
        ended = self.run("publish", "clean", "--config", str(self.folder / "shop.toml"))
        assert ended.status == 0, ended.err
        here = {str(path) for path in self.table.glob("as_of=*/*")} | {str(path) for path in self.table.glob("as_of=*/.*")}
        assert here == set(DeltaTable(str(self.table)).file_uris())

    def begin_anew(self) -> None:
        shutil.rmtree(self.folder / "made")


@pytest.fixture
def house(tmp_path: Path, run: Run) -> House:
    return House(tmp_path, run)


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file below a folder with its size and time."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_night_writes_to_its_four_places_and_nowhere_else(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    before = files(tmp_path)
    ended = house.night()
    assert ended.status == 0, ended.err
    after = files(tmp_path)
    assert {path: after[path] for path in before} == before
    new = {path.relative_to(tmp_path).parts[:2] for path in after.keys() - before.keys()}
    libraries = {("home", ".keras"), ("home", ".cache")}  # what Keras and Matplotlib keep for themselves
    assert new - libraries == {("made", place) for place in ("table", "table.lease", "work", "bundles", "reports")}


def test_a_catalog_of_a_tenth_is_stopped_and_the_whole_one_goes_on(house: House) -> None:
    assert house.night().status == 0
    first, items = house.rows(), pq.read_table(house.items)
    (file,) = house.items.glob("*.parquet")
    whole = file.read_bytes()
    pq.write_table(items.slice(0, 6), file)
    with watched(house.table, WHOLE) as seen:
        stopped = house.night(DAY + timedelta(days=1))
    assert set(seen) == {WHOLE}
    assert (stopped.status, "gate: overlap (share of the night before's rows that stay) must be" in stopped.err) == (5, True), (
        stopped.err
    )
    assert house.rows().equals(first)
    assert house.rows(DAY + timedelta(days=1)).is_empty()
    file.write_bytes(whole)
    with watched(house.table, WHOLE, (2 * WHOLE[0], WHOLE[1], 2)):
        ended = house.night(DAY + timedelta(days=1))
    assert ended.status == 0, ended.err
    assert house.rows(DAY + timedelta(days=1)).height == WHOLE[0]
    house.clean()
    print("a catalog of a tenth: stopped by the gate, the night before stands; the whole one is published")


@pytest.mark.parametrize("fault", ["truncated", "gone", "changed"])
def test_an_input_that_changes_under_the_night_is_one_sentence(house: House, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert house.night().status == 0
    undisturbed = house.rows()
    house.begin_anew()
    from recsys.pipelines import signals

    file = max(house.events.glob("*.parquet"))
    content, stat = file.read_bytes(), file.stat()
    real = signals.ingest

    def ingest(*arguments: object, **options: object) -> object:
        """Opened and checked already: now the file goes."""
        if fault == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif fault == "gone":
            file.unlink()
        else:
            table = pq.read_table(file)
            pq.write_table(table.slice(0, table.num_rows // 2), file)
        return real(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(signals, "ingest", ingest)
        ended = house.night()
    assert ended.status == 1, ended.out
    assert [line for line in ended.err.splitlines() if str(file) in line], ended.err
    assert "Traceback" not in ended.err
    assert not (house.folder / "made" / "table" / "_delta_log").exists()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with watched(house.table, WHOLE):
        ended = house.night()
    assert ended.status == 0, ended.err
    house.clean()
    assert house.rows().equals(undisturbed)
    print(f"an input that is {fault} while the night reads it: one sentence, nothing published; every row as undisturbed after")


@pytest.fixture(params=["12k", "24k"])  # full while parts are written, and in the commit
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system at the table's place; without the right to mount one the test is skipped, and says so."""
    place = tmp_path / "made" / "table"
    place.mkdir(parents=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk was mounted: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=False)  # where the test did not come to it


def test_a_disk_that_is_full_in_parts_or_in_the_commit_is_one_sentence_and_room_ends_it(house: House, small_disk: Path) -> None:
    with watched(house.table, WHOLE) as seen:
        ended = house.night()
    assert not any(rows for rows, _, _ in seen)
    assert ended.status == 1
    assert "No space left on device" in ended.err.splitlines()[-1], ended.err
    assert not list((small_disk / "_delta_log").glob("*.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    with watched(house.table, WHOLE):
        ended = house.night()
    assert ended.status == 0, ended.err
    disturbed = house.rows()
    house.clean()
    subprocess.run(["umount", str(small_disk)], check=True)
    house.begin_anew()
    assert house.night().status == 0
    assert disturbed.equals(house.rows())
    print("a disk that is full while the table is written: one sentence, nothing published; every row as undisturbed after")
