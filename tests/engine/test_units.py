import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.cloudpickle
from typing_extensions import override

from recsys.engine import progress as progress_module
from recsys.engine.connect import ENVIRONMENT, check_answers, connect
from recsys.engine.progress import progress
from recsys.engine.room import cpus
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.errors import ClusterError, DataError

UNITS = {f"unit-{number}": {"number": number} for number in (3, 1, 2, 0)}


@pytest.fixture(scope="module", autouse=True)
def tasks_by_value() -> Iterator[None]:
    """Workers cannot import this file."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, "squares", {})


def squares(folder: Path, *, fails: bool = False) -> Task:
    """A task that notes every call in a file of its own; or fails once a unit is finished, while the folder holds no `mended`."""

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if fails and not (folder / "mended").exists() and list(folder.glob("receipts/*.json")):
            raise DataError(f"{name}: cannot be squared. Pick another.")
        (folder / f"{name}-called-{time.monotonic_ns()}").touch()
        return {"square": unit["number"] ** 2}

    return task


def calls(stage: Stage) -> list[str]:
    return sorted(path.name.split("-called-")[0] for path in stage.path.glob("*-called-*"))


def run(stage: Stage, make: Any, *arguments: Any, units: Mapping[str, Mapping[str, Any]] = UNITS, actors: int | None = 2) -> Any:
    receipts = run_units(stage, units, make, *arguments, unit="units", actors=actors)
    assert all(len(receipt.pop("node")) == 8 for receipt in receipts.values())
    assert all(receipt.pop("seconds") >= 0 for receipt in receipts.values())
    assert all(0 < receipt.pop("begun") <= time.time() for receipt in receipts.values())
    return receipts


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_every_unit_runs_once_and_finished_ones_never_again(stage: Stage):
    receipts = run(stage, squares, stage.path)
    assert list(receipts.items()) == [(name, {"square": unit["number"] ** 2}) for name, unit in UNITS.items()]
    assert calls(stage) == sorted(UNITS)
    more = {**UNITS, "unit-7": {"number": 7}}
    assert run(stage, squares, stage.path, units=more)["unit-7"] == {"square": 49}
    assert calls(stage) == sorted(more)
    assert run(stage, None, units=more) == run(stage, None, units=more)  # a task that cannot be made is not missed


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_ours_comes_out_as_it_is_and_the_next_run_takes_up_what_is_left(stage: Stage):
    make = functools.partial(squares, fails=True)
    with pytest.raises(DataError) as error:
        run(stage, make, stage.path)
    unit, _, rest = str(error.value).partition(":")
    assert rest == " cannot be squared. Pick another."
    finished = {name for name in UNITS if stage.receipt(name)}
    assert finished
    assert unit in set(UNITS) - finished
    (stage.path / "mended").touch()
    assert list(run(stage, make, stage.path)) == list(UNITS)
    called = calls(stage)
    assert set(called) == set(UNITS)
    # Another may have been called twice: its actor was ended with the run that failed.
    assert all(called.count(name) == 1 for name in finished)


def slowly(folder: Path) -> Task:
    """As `squares`, a second a unit until there is a file named quick."""
    square = squares(folder)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if not (folder / "quick").exists():
            time.sleep(1)
        return square(name, unit)

    return task


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_deadline_ends_the_stage_and_the_next_run_does_what_is_left(stage: Stage):
    units = {f"unit-{number}": {"number": number} for number in range(40)}
    passed = run_units(stage, units, slowly, stage.path, unit="units", actors=2, until=time.time() - 1)
    assert (passed, calls(stage)) == ({}, [])
    some = run_units(stage, units, slowly, stage.path, unit="units", actors=2, until=time.time() + 15)
    assert 0 < len(some) < 40
    assert list(some) == [name for name in units if name in some]
    (stage.path / "quick").touch()
    whole = run_units(stage, units, slowly, stage.path, unit="units", actors=2, until=time.time() + 600)
    assert list(whole) == list(units)
    assert {name: whole[name] for name in some} == some


def divides() -> Task:
    def task(name: str, unit: dict[str, Any]) -> Receipt:
        return {"quotient": 1 // 0}

    return task


def cannot_be_made() -> Task:
    raise DataError("bundle: made for other columns. Train again.")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_ours_in_making_the_task_comes_out_as_it_is(stage: Stage):
    with pytest.raises(DataError) as error:
        run(stage, cannot_be_made)
    assert str(error.value) == "bundle: made for other columns. Train again."


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_any_other_error_is_named_with_its_stage(stage: Stage):
    with pytest.raises(
        ClusterError, match=r"squares-\w+: unit unit-\d failed: ZeroDivisionError: integer division or modulo by zero\."
    ):
        run(stage, divides)


def dies_once(folder: Path) -> Task:
    squared = squares(folder)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if unit["number"] == 1 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return squared(name, unit)

    return task


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_unit_of_a_killed_worker_is_done_by_another(stage: Stage):
    receipts = run(stage, dies_once, stage.path)
    assert (stage.path / "died").exists()
    assert receipts == {name: {"square": unit["number"] ** 2} for name, unit in UNITS.items()}
    assert calls(stage) == sorted(UNITS)


class DiesUnheard(Stage):
    """Its worker dies once when a receipt is written and the driver has not heard of it."""

    @override
    def finish(self, unit: str, receipt: Receipt) -> Receipt:
        made = super().finish(unit, receipt)
        if unit == sorted(UNITS)[1] and not (self.path / "died").exists():
            (self.path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return made


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_that_a_killed_worker_had_finished_is_not_done_again(tmp_path: Path):
    stage = DiesUnheard(tmp_path, "squares", {})
    receipts = run(stage, squares, stage.path)
    assert (stage.path / "died").exists()
    assert receipts == {name: {"square": unit["number"] ** 2} for name, unit in UNITS.items()}
    assert calls(stage) == sorted(UNITS)


def dies_always() -> Task:
    def task(_name: str, _unit: dict[str, Any]) -> Receipt:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    return task


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_unit_that_kills_every_worker_ends_the_run(stage: Stage):
    with pytest.raises(ClusterError, match="unit a ended its worker 4 times"):
        run(stage, dies_always, units={"a": {}}, actors=1)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_more_actors_than_cpus_are_refused_before_any_unit_runs(stage: Stage):
    too_many = cpus() + 1
    with pytest.raises(ClusterError) as error:
        run(stage, squares, stage.path, actors=too_many)
    assert str(error.value).startswith(f"{too_many} actors need {too_many} CPUs, Ray has {cpus()}. Lower run.actors")
    assert calls(stage) == []


def sums(values: np.ndarray) -> Task:
    assert not values.flags.writeable

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        return {"sum": float(values.sum()), "pid": os.getpid()}

    return task


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_reference_among_the_arguments_reaches_the_task_as_its_shared_value(stage: Stage):
    receipts = run(stage, sums, ray.put(np.arange(100_000)), actors=1)
    assert {receipt["sum"] for receipt in receipts.values()} == {100_000 * 99_999 / 2}
    assert len({receipt["pid"] for receipt in receipts.values()}) == 1  # one actor


class Elsewhere(Stage):
    """A stage of a node that does not share the folder: what it finishes nobody else sees."""

    @override
    def finish(self, unit: str, receipt: Receipt) -> Receipt:
        return receipt


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_receipt_that_does_not_arrive_is_told(tmp_path: Path):
    stage = Elsewhere(tmp_path, "squares", {})
    with pytest.raises(ClusterError, match=r"unit unit-3 left no receipt\. Is run\.work a folder that every node shares"):
        run(stage, squares, stage.path)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` is asked for, in a process that has no Ray and starts none."""
    asked: list[dict[str, Any]] = []
    asked_for: list[str] = []

    def init(**options: Any) -> None:
        asked.append(options)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append({}))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr("recsys.engine.connect.check_answers", asked_for.append)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, "mine"))
    return asked


def test_without_an_address_a_ray_of_this_machine_s_cpus_is_embedded_and_ended(started: list[dict[str, Any]]):
    with connect():
        assert (started[0]["address"], started[0]["num_cpus"]) == ("local", None)  # None: Ray counts the machine's
        assert started[0]["include_dashboard"] is False
    with connect(cpus=3):
        assert (started[2]["address"], started[2]["num_cpus"]) == ("local", 3)
    assert started[1] == started[3] == {}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_who_asks_an_embedded_ray_for_its_dashboard_need_not_wait():
    from ray.experimental.internal_kv import _internal_kv_get

    assert _internal_kv_get("dashboard", namespace="dashboard")  # Ray Train waits 12 s at the end of a fit where no address is known


@pytest.mark.parametrize("error", [Exception("The current node timed out"), ray.exceptions.RpcError("gone"), RuntimeError("no")])
def test_a_ray_that_does_not_start_is_one_sentence(started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception):
    def refuse(**options: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=r"^Ray: must start on this machine, got "), connect():
        pass


def test_ray_address_names_the_cluster_to_use_and_the_first_line_says_which(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with caplog.at_level(logging.INFO, logger="recsys"), connect(cpus=3):
        assert started[0]["address"] == "auto"
        assert caplog.messages == ["Ray: works on the cluster at 10.0.0.1:6379 (RAY_ADDRESS = auto)"]
        assert "num_cpus" not in started[0]  # a cluster has what it has; Ray refuses the wish


def test_ray_address_local_is_this_machine(started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with connect(cpus=3):
        assert (started[0]["address"], started[0]["num_cpus"]) == ("local", 3)


def test_an_address_where_nothing_or_no_ray_answers_is_one_sentence_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("recsys.engine.connect.ANSWER_SECONDS", 1.0)
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(ClusterError, match=f"^RAY_ADDRESS = {address}: must be a Ray that runs .* no answer that a Ray would"):
                check_answers(address)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"localhost:{port}"):
        with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS = {address}: must be .* refused\. .* unset RAY_ADDRESS"):
            check_answers(address)
    for address in (f"http://127.0.0.1:{port}", "127.0.0.1", "head:port", ":6379"):
        with pytest.raises(ClusterError, match=f"^RAY_ADDRESS = {address}: must be HOST:PORT"):
            check_answers(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_answers("auto")  # none is noted: Ray looks for one
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    with pytest.raises(ClusterError, match=f"^RAY_ADDRESS = auto, which .*ray_current_cluster says is 127.0.0.1:{port}: must be"):
        check_answers("auto")
    assert time.monotonic() - begun < 20


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_that_runs_answers():
    check_answers(ray.get_runtime_context().gcs_address)


def test_a_cluster_that_does_not_let_us_in_is_one_sentence(started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    def refuse(**options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match=r"RAY_ADDRESS = 10\.0\.0\.1:6379: .*Failed to connect.*unset RAY_ADDRESS"),
        connect(),
    ):
        pass
    assert started == []


def test_what_the_user_set_stays(started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with connect():
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
        assert set(ENVIRONMENT) <= set(os.environ)


def test_progress_off_a_terminal_is_log_lines_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    seconds = iter([0.0, 4.0, 11.0, 12.0, 25.0, 30.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="recsys"), progress("score", 8, unit="shards") as advance:
        for _ in range(4):
            advance(2, 0)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["score: 4 of 8 shards, 11 s, about 11 s left", "score: 8 shards in 30.0 s"]


def test_progress_tells_rows_a_second_where_units_make_rows(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    seconds = iter([0.0, 20.0, 50.0, 60.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="recsys"), progress("score", 3, unit="shards") as advance:
        advance(1, 5_000)
        advance(2, 25_000)
    assert [record.getMessage() for record in caplog.records] == [
        "score: 1 of 3 shards, 20 s, 5,000 rows, 250 rows/s, about 40 s left",
        "score: 3 shards in 60.0 s, 30,000 rows, 500 rows/s",
    ]


def test_rows_of_units_are_those_of_their_receipts(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stage = Stage(tmp_path, "rows", {})

    def make() -> Task:
        return lambda _, unit: {"rows": unit["rows"] or {"a table": 7}}

    with caplog.at_level(logging.INFO, logger="recsys"):
        run_units(stage, {f"u{rows}": {"rows": rows} for rows in (3, 40, 0)}, make, unit="units", here=True)
    assert "rows: 3 units in" in caplog.text
    assert ", 43 rows, " in caplog.text


def test_units_may_be_worked_on_in_this_process_without_ray(tmp_path: Path):
    stage = Stage(tmp_path, "here", {})
    seen: list[str] = []

    def make() -> Task:
        def task(name: str, unit: dict[str, Any]) -> Receipt:
            seen.append(name)
            if unit["value"] == 3:
                raise DataError("three is not to be had")
            return {"square": unit["value"] ** 2}

        return task

    with pytest.raises(DataError, match="three is not to be had"):
        run_units(stage, {f"u{value}": {"value": value} for value in (1, 3, 2)}, make, unit="units", here=True)
    receipts = run_units(stage, {f"u{value}": {"value": value} for value in (1, 2)}, make, unit="units", here=True)
    assert [receipt["square"] for receipt in receipts.values()] == [1, 4]
    assert seen == ["u1", "u3", "u2"]
