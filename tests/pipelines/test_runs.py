"""What is kept and told of a run, however it ends."""

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recsys.config import Settings
from recsys.engine.owner import owned
from recsys.errors import ConfigError, DataError, GateError, LeaseError
from recsys.pipelines.runs import NightRun, kept_run, read_runs
from recsys.publishing.release import Published
from tests.addresses import SECRET, address

DAY = date(2024, 6, 6)
TABLE = Published("run1", "model1", 4, 1_000, 100, 0, 5_000, None, 1.0)


def settings_of(folder: Path, **notify: Any) -> Settings:
    shop = {"events": str(folder / "events")}
    return Settings.model_validate(
        {"shop": shop, "table": {"path": str(folder / "table")}, "report": {"path": str(folder / "reports")}, "notify": notify}
    )


def test_a_night_that_is_published_is_kept_and_told(tmp_path: Path) -> None:
    with address() as here:
        settings = settings_of(tmp_path, url=here.url)
        with kept_run(settings, as_of=DAY) as run:
            (standing,) = read_runs(settings)
            assert standing.state == "running"
            run.step("read")
            run.step("score")
            run.published(TABLE)
    (kept,) = read_runs(settings)
    assert (kept.state, kept.exit_status, kept.run_id, kept.model_version) == ("published", 0, "run1", "model1")
    assert (kept.rows, kept.users, kept.as_of, kept.table) == (1_000, 100, "2024-06-06", str(tmp_path / "table"))
    assert kept.seconds.keys() == {"read", "score"}
    assert kept.ended is not None
    (told,) = here.messages
    assert told["state"] == "published"
    assert told["rows"] == 1_000
    assert "is published: 1,000 rows for 100 users, model model1" in told["sentence"]
    assert not list((tmp_path / "reports" / "runs").glob("*.lock"))


ENDS = {
    "stopped": (
        GateError("table: gate: rows must be at least 0.8, got 0.4.", {"rows": 0.4}),
        5,
        "was stopped by the gate: table: gate",
    ),
    "refused": (LeaseError("table: one run at a time."), 6, "was not begun: table: one run at a time."),
    "failed": (DataError("events: no such\nfolder."), 1, "failed. events: no such folder."),
    "ended": (SystemExit(128 + signal.SIGTERM), 143, "was ended from outside (SIGTERM)"),
}


@pytest.mark.parametrize("state", ENDS)
def test_how_a_night_ended_is_kept_and_told_and_raised(state: str, tmp_path: Path) -> None:
    error, status, sentence = ENDS[state]
    with address() as here:
        settings = settings_of(tmp_path, url=here.url)
        with pytest.raises(type(error)), kept_run(settings, as_of=DAY):
            raise error
    (kept,) = read_runs(settings)
    assert (kept.state, kept.exit_status) == (state, status)
    assert kept.figures == ({"rows": 0.4} if state == "stopped" else {})
    assert [path.suffix for path in (tmp_path / "reports" / "runs").iterdir()] == [".json"]
    (told,) = here.messages
    assert sentence in told["sentence"]
    assert told["exit_status"] == status


def test_a_mistake_of_ours_is_told_too(tmp_path: Path) -> None:
    with address() as here, pytest.raises(ZeroDivisionError), kept_run(settings_of(tmp_path, url=here.url), as_of=DAY):
        _ = 1 / 0
    assert here.messages[0]["said"] == "ZeroDivisionError: division by zero"


def test_who_pressed_ctrl_c_knows(tmp_path: Path) -> None:
    with address() as here:
        settings = settings_of(tmp_path, url=here.url)
        with pytest.raises(KeyboardInterrupt), kept_run(settings, as_of=DAY):
            raise KeyboardInterrupt
    assert [run.state for run in read_runs(settings)] == ["ended"]
    assert here.messages == []


def test_slack_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with address() as here:
        monkeypatch.setenv("SHOP_SLACK", here.url)
        with kept_run(settings_of(tmp_path, url_env="SHOP_SLACK", format="slack"), as_of=DAY) as run:
            run.published(TABLE)
    assert here.messages == [{"text": run.sentence}]


def test_a_message_that_cannot_be_sent_fails_nothing_and_the_address_is_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with address(404) as here:
        (tmp_path / "address").write_text(here.url)
        settings = settings_of(tmp_path, url_file=str(tmp_path / "address"))
        with caplog.at_level(logging.INFO, "recsys"), kept_run(settings, as_of=DAY) as run:
            run.published(TABLE)
    (tmp_path / "address").unlink()
    assert "could not be sent" in caplog.text
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "recsys")
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or SECRET not in file.read_text(encoding="utf-8")


def test_an_address_that_is_not_there_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_SLACK", raising=False)
    with pytest.raises(ConfigError, match=r"^notify\.url_env"), kept_run(settings_of(tmp_path, url_env="SHOP_SLACK"), as_of=DAY):
        pytest.fail("the work has begun")
    assert not (tmp_path / "reports").exists()


def test_a_record_that_cannot_be_written_any_more_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(tmp_path)
    with kept_run(settings, as_of=DAY) as run:
        (file,) = (tmp_path / "reports" / "runs").glob("*.json")
        file.unlink()
        file.mkdir()  # even root cannot write there
        run.published(TABLE)
    assert "the run's record cannot be written" in caplog.text


def test_a_run_that_was_killed_has_died_and_one_that_runs_has_not(tmp_path: Path) -> None:
    code = f"""
import os, signal
from datetime import date
from pathlib import Path
from recsys.pipelines.runs import kept_run
from tests.pipelines.test_runs import settings_of
with kept_run(settings_of(Path({str(tmp_path)!r})), as_of=date(2024, 6, 6)):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    settings = settings_of(tmp_path)
    assert [run.state for run in read_runs(settings)] == ["died"]
    (file,) = (tmp_path / "reports" / "runs").glob("*.json")
    assert json.loads(file.read_text())["pid"] != os.getpid()
    with owned(file.with_suffix(".lock"), what="the same run, as if it lived"):
        assert [run.state for run in read_runs(settings)] == ["running"]


def test_runs_are_shown_newest_first(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    for day in (DAY, date(2024, 6, 7), date(2024, 6, 5)):
        with kept_run(settings, as_of=day) as run:
            run.published(TABLE)
    assert [run.as_of for run in read_runs(settings)] == ["2024-06-05", "2024-06-07", "2024-06-06"]
    assert read_runs(settings_of(tmp_path / "elsewhere")) == []


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"as_of": "2024-06-06"}', b"\xff", b'{"as_of": "d", "table": "t", "from": "a later version"}']
)
def test_a_record_that_cannot_be_read_is_passed_over_and_said(text: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(tmp_path)
    with kept_run(settings, as_of=DAY) as run:
        run.published(TABLE)
    (tmp_path / "reports" / "runs" / "20240606T000000.000000-1.json").write_bytes(text)
    assert [run.state for run in read_runs(settings)] == ["published"]
    assert "no record of a run, is passed over" in caplog.text


def test_the_sentence_of_a_night_that_stood_counts_no_users() -> None:
    run = NightRun("2024-06-06", "table", state="stood", rows=7, model_version="m")
    assert run.sentence == "Night 2024-06-06 of table stood already: 7 rows, model m."
