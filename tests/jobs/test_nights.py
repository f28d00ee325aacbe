"""`jobs.nightly` over several nights and at its ends: made up for, done already, stopped, ended from outside; and `jobs.runs`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recsys import config
from recsys.engine.metrics import GAUGES
from recsys.errors import ConfigError
from recsys.pipelines import nightly as pipeline
from recsys.pipelines.runs import STEPS, read_runs
from recsys.publishing.table import published_nights
from recsys.schema import ITEM_ID, TS, USER_ID
from tests.addresses import Address, address
from tests.processes import alive, descendants
from tests.verbs import ROOT, Ended

DAY = date(2024, 6, 6)
ONE = timedelta(days=1)
SETTINGS = """
[shop]
events = "{folder}/events"
timezone = "Europe/Berlin"
[window]
label_days = 14
cutoffs = 2
[signals]
factors = 4
als_iterations = 2
als_l2 = 10
als_alpha = 2
[candidates]
per_user = 5
popular = 5
own = 3
[model]
hidden = [4]
[train]
epochs = 1
workers = 1
refit = false
[gate]
max_baseline_loss = 1.0
max_score_shift = 10.0
max_drift = 100.0
min_overlap = 0.0
[champion]
path = "{folder}/bundles"
[run]
work = "{folder}/work"
shards = 2
[table]
path = "{folder}/table"
keep_nights = 4
[report]
path = "{folder}/reports"
[notify]
url = "{url}"
"""


def write_events(folder: Path, *, seed: int, until: date = DAY + 10 * ONE) -> None:
    """Events of 40 users on 12 items over the last three months before a day."""
    draw = np.random.default_rng(seed)
    end = datetime(until.year, until.month, until.day, tzinfo=UTC)
    times = [end - timedelta(hours=float(hours)) for hours in draw.uniform(1, 24 * 94, 4_000)]
    table = {USER_ID: draw.integers(1, 41, 4_000), ITEM_ID: draw.integers(1, 13, 4_000), TS: pa.array(times, pa.timestamp("us", "UTC"))}
    (folder / "events").mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "events" / "part.parquet")


def write_shop(folder: Path, url: str, more: str = "") -> Path:
    write_events(folder, seed=3)
    file = folder / "shop.toml"
    file.write_text(SETTINGS.format(folder=folder, url=url) + more)
    return file


def nights(file: Path) -> dict[date, str]:
    settings = config.load(file)
    return {night.as_of: night.run_id for night in published_nights(settings.table.path)}


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_nights_that_are_missing_are_made_and_those_that_stand_are_left(tmp_path: Path, run: Callable[..., Ended]) -> None:
    with address() as here:
        places = f'[[exports]]\nto = "{tmp_path}/lists.jsonl"\n[[exports]]\nto = "parquet:{tmp_path}/full/lists"\n'
        file = write_shop(tmp_path, here.url, places)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "lists").mkdir()
        (tmp_path / "full" / "lists" / "current.json").write_text("not ours")
        made = run("nightly", "--config", str(file), "--as-of", str(DAY))
        assert made.status == 0, made.err  # one place that fails fails nothing
        first = nights(file)
        assert f"parquet:{tmp_path}/full/lists still holds what was before: " in here.messages[0]["sentence"]
        assert "still holds what was before" in " ".join(run("runs", "--config", str(file)).out.split())
        (tmp_path / "full" / "lists" / "current.json").unlink()
        champion = (tmp_path / "bundles" / "decisions").glob("*")
        decided = sorted(path.name for path in champion)

        write_events(tmp_path, seed=4)  # what stands would come out otherwise now
        again = run("nightly", "--config", str(file), "--as-of", str(DAY))
        assert again.status == 0
        assert f"Night {DAY} of {tmp_path}/table stood already" in again.out.replace("\n", " ")
        assert nights(file) == first
        assert json.loads((tmp_path / "full" / "lists" / "current.json").read_text())["run_id"] == first[DAY]  # what it missed
        assert here.messages[1]["exports"] == {f"{tmp_path}/lists.jsonl": "", f"parquet:{tmp_path}/full/lists": ""}

        filled = run("nightly", "--config", str(file), "--backfill", f"{DAY - ONE}..{DAY}")
        assert filled.status == 0, filled.err
        assert f"Nights of {DAY - ONE}..{DAY} to make: 1." in filled.out
        standing = nights(file)
        assert list(standing) == [DAY, DAY - ONE]  # the newest is the current one
        assert standing[DAY] == first[DAY]
        assert sorted(path.name for path in (tmp_path / "bundles" / "decisions").glob("*")) == decided

        served = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
        assert {line["as_of"] for line in served} == {str(DAY)}  # a night made up for is not the newest
        forced = run("nightly", "--config", str(file), "--as-of", str(DAY), "--force")
        assert forced.status == 0, forced.err
        assert nights(file)[DAY] != first[DAY]

        shown = run("runs", "--config", str(file), "--json")
        rows = [json.loads(line) for line in shown.out.splitlines()]
        states = [(row["as_of"], row["state"]) for row in reversed(rows)]
        days = [str(DAY), str(DAY), str(DAY - ONE), str(DAY)]
        assert states == list(zip(days, ["published", "stood", "published", "published"], strict=True))
        assert rows[-1]["seconds"].keys() == {"read", "train", "score", "publish"}
        assert rows[-1]["rows"] == 200
        assert [message["state"] for message in here.messages] == [state for _, state in states]
        table = run("runs", "--config", str(file), "--last", "1").out
        assert "published" in table
        assert str(DAY) in table
        assert table.count("2024-06-0") == 1


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_night_that_the_gate_stops_ends_a_backfill_and_is_told(tmp_path: Path, run: Callable[..., Ended]) -> None:
    with address() as here:
        file = write_shop(tmp_path, here.url)
        file.write_text(file.read_text().replace("[gate]\n", "[gate]\nmin_rows = 3.0\nmax_growth = 9.0\n"))
        ended = run("nightly", "--config", str(file), "--backfill", f"{DAY}..{DAY + 2 * ONE}")
        assert ended.status == 5
        assert list(nights(file)) == [DAY]
        assert [message["state"] for message in here.messages] == ["published", "stopped"]
        assert here.messages[1]["figures"] == {"rows": 1.0}
        assert here.messages[1]["exit_status"] == 5
        assert here.messages[1]["said"] in ended.err
    shown = _scraped()
    assert shown["exit_status", f'night="{DAY}"'] == 0
    assert shown["exit_status", f'night="{DAY + ONE}"'] == 5
    assert shown["gate_stopped", 'check="rows"'] == 1.0
    assert shown["rows_read", 'table="events"'] == 4_000
    assert shown["table_rows", ""] == 200
    assert shown["table_users", ""] == 40
    assert shown["gate", 'check="unknown_items"'] == 0
    assert shown["units_left", 'stage="score"'] == 0
    assert shown["units_done", 'stage="score"'] == 2
    assert all(shown["step_seconds", f'step="{step}"'] >= 0 for step in STEPS)  # of the night that was published, in tenths


def _scraped() -> dict[tuple[str, str], float]:
    """What Prometheus would read of us at the node's port, by name and tag, once the last night's figures are there."""
    import ray

    (node,) = ray.nodes()
    deadline = time.monotonic() + 60
    while True:
        with urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        ours = [sample for family in families for sample in family.samples if sample.name.startswith("ray_recsys_")]
        tags = sorted({tag for _, tags in GAUGES.values() for tag in tags})
        found = {
            (
                sample.name.removeprefix("ray_recsys_"),
                ",".join(f'{tag}="{sample.labels[tag]}"' for tag in tags if tag in sample.labels),
            ): (sample.value)
            for sample in ours
        }
        if ("exit_status", f'night="{DAY + ONE}"') in found:
            return found
        assert time.monotonic() < deadline, sorted(found)
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--backfill", "2024-06-07..2024-06-06"], "--backfill: must be two dates, the earlier one first"),
        (["--backfill", "2024-06-07"], "got '2024-06-07'"),
        (["--backfill", "2024-06-05..2024-06-06", "--as-of", "2024-06-06"], "one of the two is needed, got both"),
        (["--backfill", "2024-06-01..2024-06-06"], "must be among the newest 4, which the table keeps, got those since 2024-06-03"),
    ],
)
def test_a_backfill_that_cannot_be_is_refused_before_the_work(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    run: Callable[..., Ended],
) -> None:
    file = write_shop(tmp_path, "http://127.0.0.1:9/")
    refused = run("nightly", "--config", str(file), *arguments)
    assert refused.status == 1
    assert sentence in refused.err
    assert len(refused.err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"events", "shop.toml"}


def test_without_a_day_it_is_today_where_the_shop_is(tmp_path: Path, run: Callable[..., Ended]) -> None:
    def today(zone: str) -> date:
        return pipeline.today(config.Settings.model_validate({"shop": {"events": "e", "timezone": zone}}))

    assert today("Pacific/Kiritimati") - today("Pacific/Pago_Pago") in (ONE, 2 * ONE)  # 25 hours apart
    with pytest.raises(ConfigError, match=r"^shop\.timezone: 'no zone' is no IANA time zone\. Use a name"):
        today("no zone")
    with address() as here:
        file = write_shop(tmp_path, here.url)
        early = today("Europe/Berlin")
        refused = run("nightly", "--config", str(file))
        assert refused.status == 1  # its events end years ago
        days = {str(early), str(today("Europe/Berlin"))}
        (kept,) = read_runs(config.load(file))
        assert kept.as_of in days
        assert kept.state == "failed"
        assert kept.said == refused.err.strip()
        assert [message["sentence"] for message in here.messages] == [kept.sentence]


def test_nights_that_the_table_would_not_keep_are_named(tmp_path: Path) -> None:
    settings = config.load(write_shop(tmp_path, "http://127.0.0.1:9/"))
    assert pipeline.nights_to_make(settings, DAY, DAY + 3 * ONE, force=False) == [DAY + number * ONE for number in range(4)]
    with pytest.raises(ConfigError, match=r"night 2024-06-05 must be among .* Begin with 2024-06-06, or raise table\.keep_nights"):
        pipeline.nights_to_make(settings, DAY - ONE, DAY + 3 * ONE, force=False)


@pytest.mark.ray
def test_sigterm_ends_a_night_in_seconds_frees_its_lease_and_is_told(tmp_path: Path) -> None:
    with address() as here:
        _terminate_one(tmp_path, here)


def _terminate_one(folder: Path, here: Address) -> None:
    file = write_shop(folder, here.url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "jobs.nightly", "--config", str(file), "--as-of", str(DAY)]
    with (folder / "night.log").open("w") as log:
        night = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    started: set[int] = set()
    try:
        while not list(folder.glob("work/ingest-*/receipts/*.json")):
            assert night.poll() is None, (folder / "night.log").read_text()
            time.sleep(0.05)
        started = descendants(night.pid)
        night.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert night.wait(timeout=60) == 128 + signal.SIGTERM, (folder / "night.log").read_text()
        print(f"ended after {time.monotonic() - begun:.1f} s")
        assert "Ended by SIGTERM. What is finished is kept" in (folder / "night.log").read_text()
        assert "Traceback" not in (folder / "night.log").read_text()
        deadline = time.monotonic() + 30
        while alive(started) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(started)
    finally:
        for pid in alive({night.pid} | started):
            os.kill(pid, signal.SIGKILL)
        night.wait()
    (kept,) = read_runs(config.load(file))
    assert (kept.state, kept.said, kept.exit_status) == ("ended", "SIGTERM", 143)
    assert [message["state"] for message in here.messages] == ["ended"]
    assert not list(folder.glob("*.owner"))  # of the lease: it was left, not lost
