from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.job_submission import JobStatus
from typing_extensions import override

from cluster import dashboard, submit, working_dir
from jobs import submit as verb
from recsys.engine.progress import log
from recsys.errors import ClusterError, ConfigError

LOCAL = "http://127.0.0.1:8265"
NIGHT, TODAY = date(2017, 12, 1), date(2026, 11, 23)
CODE = {"recsys/pipelines/score.py", "jobs/nightly.py", "cluster/entrypoint.py", "docs/var/figure.txt"}
DATA = {
    *("recsys/__pycache__/pipeline.pyc", "var/cluster/token", ".venv/lib.py", ".git/config"),
    *("data/events.csv", "tests/data/shop.parquet", ".env"),
}


@dataclass
class Details:
    submission_id: str | None
    status: JobStatus
    metadata: dict[str, str] | None = None
    message: str | None = None
    driver_agent_http_address: str | None = "http://127.0.0.1:1"


class Cluster:
    """A client whose cluster ends every job as it is told to."""

    def __init__(self, *statuses: JobStatus, jobs: list[Details] | None = None, log: Sequence[Any] = ("all of the log\n",)) -> None:
        self.statuses = list(statuses)
        self.jobs = jobs or []
        self.log = log
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.files: set[str] = set()

    def list_jobs(self) -> list[Details]:
        return self.jobs

    def get_job_info(self, job_id: str) -> Details:
        return details(job_id, self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    def submit_job(self, **options: Any) -> str:
        folder = Path(options["runtime_env"]["working_dir"])
        self.files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        if options["submission_id"] in {job.submission_id for job in self.jobs}:
            raise RuntimeError(f"Job with submission_id {options['submission_id']} already exists.")
        self.submitted.append(options)
        self.jobs.append(details(options["submission_id"], JobStatus.RUNNING, options["metadata"]))
        return options["submission_id"]

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.statuses = [JobStatus.STOPPED]
        self.log = ()
        return True

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        assert job_id
        for chunk in self.log:
            if isinstance(chunk, BaseException):
                self.log = [other for other in self.log if other is not chunk]
                raise chunk
            yield chunk


def details(job_id: str, status: JobStatus, metadata: dict[str, str] | None = None) -> Details:
    return Details(job_id, status, metadata)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in CODE | DATA:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "shop.toml"
    path.write_text('[shop]\nevents = "shop/events"\nitems = "s3://bucket/items"\n[rank]\nk = 7\n')
    return path


def night(**changes: Any) -> submit.Job:
    values: dict[str, Any] = {"verb": "nightly", "arguments": (), "settings": "[shop]\n", "as_of": NIGHT, "python": "/opt/python"}
    return submit.Job(**(values | changes))


def hand_over(client: Cluster, repository: Path, job: submit.Job | None = None) -> submit.Submitted:
    return submit.submit(client, job or night(), root=repository, today=TODAY, address=LOCAL)


# What travels --------------------------------------------------------------------------------------------------------------------


def test_code_travels_and_data_does_not(repository: Path) -> None:
    client = Cluster()
    hand_over(client, repository)
    assert client.files == CODE | {"settings.submitted.toml"}


def test_a_repository_full_of_data_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working_dir, "LARGEST_BYTES", 40)
    with pytest.raises(ConfigError, match="Move data under var/"):
        hand_over(Cluster(), repository)


# Submit --------------------------------------------------------------------------------------------------------------------------


def test_the_job_says_what_it_runs(repository: Path) -> None:
    client = Cluster()
    job = night(arguments=("--out", "/shared/it's.json"), num_cpus=2.0, memory=2**30)
    assert hand_over(client, repository, job) == submit.Submitted("nightly-2017-12-01-1", fresh=True)
    [made] = client.submitted
    assert made["entrypoint"] == (
        "/opt/python cluster/entrypoint.py -m jobs.nightly --config settings.submitted.toml --as-of 2017-12-01 "
        "--out '/shared/it'\"'\"'s.json'"
    )
    assert (made["entrypoint_num_cpus"], made["entrypoint_memory"]) == (2.0, 2**30)
    assert "pip" not in made["runtime_env"]  # nothing is installed on the cluster
    assert hand_over(client, repository, night(verb="bench", as_of=None)).id == "bench-2026-11-23-1"


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED])
def test_a_run_after_an_ended_one_takes_the_next_number(repository: Path, status: JobStatus) -> None:
    jobs = [details("nightly-2017-12-01-9", status), details("nightly-2017-12-01-10", status), details("nightly-2017-12-02-30", status)]
    assert hand_over(Cluster(jobs=jobs), repository).id == "nightly-2017-12-01-11"


def test_the_same_submission_follows_the_running_job(repository: Path) -> None:
    client = Cluster()
    first = hand_over(client, repository)
    assert hand_over(client, repository) == submit.Submitted(first.id, fresh=False)
    assert len(client.submitted) == 1


@pytest.mark.parametrize("change", [{"settings": "[shop]\nevents = 'other'\n"}, {"arguments": ("--x",)}, {"memory": 1}])
def test_another_submission_of_a_running_night_is_refused(repository: Path, change: dict[str, Any]) -> None:
    client = Cluster()
    hand_over(client, repository)
    with pytest.raises(ClusterError, match=r"nightly-2017-12-01-1 is RUNNING with other code.*ray job stop nightly-2017-12-01-1"):
        hand_over(client, repository, night(**change))


def test_two_submissions_at_once_do_not_share_a_number(repository: Path) -> None:
    class Late(Cluster):
        seen = 0

        @override
        def list_jobs(self) -> list[Details]:
            self.seen += 1
            return [] if self.seen == 1 else self.jobs

    client = Late(jobs=[details("nightly-2017-12-01-1", JobStatus.SUCCEEDED)])
    assert hand_over(client, repository).id == "nightly-2017-12-01-2"


# Follow --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "RETRY_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_a_dropped_connection_is_taken_up_where_it_broke() -> None:
    client = Cluster(JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.SUCCEEDED, log=("one\n", ConnectionError(), "two\n", "three\n"))
    written: list[str] = []
    assert submit.follow(client, "night", address=LOCAL, write=written.append) == JobStatus.SUCCEEDED
    assert "".join(written) == "one\ntwo\nthree\n"


@pytest.mark.usefixtures("quick")
def test_a_cluster_that_stays_silent_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOST_SECONDS", -1.0)
    client = Cluster(JobStatus.RUNNING, log=(ConnectionError(),))
    with pytest.raises(ClusterError, match="may still run"):
        submit.follow(client, "night", address=LOCAL, write=str)


# The verb ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, repository: Path, settings: Path, quick: None) -> Iterator[Any]:
    """A function that runs the verb on a fake cluster and returns its exit status."""

    def run(client: Cluster, *, wait: bool = True) -> int:
        def connect(*_: object) -> Cluster:
            return client

        monkeypatch.setattr(dashboard, "connect", connect)
        monkeypatch.setattr(verb, "ROOT", repository)
        try:
            verb.submit("nightly", LOCAL, config=settings, wait=wait)
        except typer.Exit as ended:
            return ended.exit_code
        return 0

    before = log.handlers[:], log.propagate, log.level
    yield run
    log.handlers[:], log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 3), (JobStatus.STOPPED, 4)])
def test_only_success_exits_with_0(on: Any, status: JobStatus, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert on(Cluster(JobStatus.RUNNING, status)) == code
    shown = capsys.readouterr()
    assert shown.out == "all of the log\n"
    assert str(status) in shown.err


def test_without_wait_the_id_is_printed(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client = Cluster()
    assert on(client, wait=False) == 0
    assert capsys.readouterr().out == f"{client.submitted[0]['submission_id']}\n"


def test_ctrl_c_without_a_terminal_leaves_the_job_running(on: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client = Cluster(JobStatus.RUNNING, log=(KeyboardInterrupt(),))
    assert on(client) == 130
    assert client.stopped == []
    assert "runs on. Stop it: RAY_AUTH_MODE=token ray job stop nightly-" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [(True, 4), (False, 130)])
def test_ctrl_c_on_a_terminal_asks(on: Any, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int) -> None:
    def terminal() -> bool:
        return True

    def confirm(*_: object, **__: object) -> bool:
        return answer

    monkeypatch.setattr("sys.stdin.isatty", terminal, raising=False)
    monkeypatch.setattr(typer, "confirm", confirm)
    client = Cluster(JobStatus.RUNNING, log=(KeyboardInterrupt(),))
    assert on(client) == code
    assert len(client.stopped) == answer
