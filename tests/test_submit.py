import os
import tomllib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus
from typing_extensions import override

from jobs import submit as verb
from recsys import config, submit
from recsys.errors import ClusterError, ConfigError
from recsys.runtime import log

LOCAL, REMOTE = "http://127.0.0.1:8265", "https://ray.example.com"
NIGHT, TODAY = date(2017, 12, 1), date(2026, 11, 23)
CODE = {"recsys/pipeline.py", "jobs/nightly.py", "cluster/entrypoint.py", "docs/var/figure.txt"}
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


# Where to ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [LOCAL, "http://localhost:8265", "http://[::1]:8265", "http://127.0.0.2:1", REMOTE])
def test_loopback_and_https_are_safe(address: str) -> None:
    submit.check_address(address, insecure_http=False)


@pytest.mark.parametrize("address", ["http://ray.example.com:8265", "http://10.0.0.7:8265", "http://127.0.0.1.example.com:8265"])
def test_plain_http_over_a_network_needs_a_flag(address: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-http"):
        submit.check_address(address, insecure_http=False)
    submit.check_address(address, insecure_http=True)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://"])
def test_an_address_is_a_url_of_a_dashboard(address: str) -> None:
    with pytest.raises(ConfigError, match="URL of a Ray dashboard"):
        submit.check_address(address, insecure_http=True)


def test_the_token_is_found_in_order(tmp_path: Path) -> None:
    local, named, home = tmp_path / "token", tmp_path / "named", tmp_path / "home"
    for file, text in ((local, "of-the-local-cluster\n"), (named, "named\n"), (home / ".ray" / "auth_token", "of-ray\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def found(address: str, **environment: str) -> str | None:
        return submit.token(address, environment, local=local, home=home)

    assert found(LOCAL, RAY_AUTH_TOKEN="given", RAY_AUTH_TOKEN_PATH=str(named)) == "given"
    assert found(LOCAL, RAY_AUTH_TOKEN_PATH=str(named)) == "named"
    assert found(LOCAL) == "of-the-local-cluster"
    assert found(REMOTE) == "of-ray"  # the local cluster's goes nowhere else
    assert submit.token(LOCAL, {}, local=tmp_path / "none", home=tmp_path) is None
    with pytest.raises(ConfigError, match="cannot be read"):
        found(LOCAL, RAY_AUTH_TOKEN_PATH=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="characters"):
        found(LOCAL, RAY_AUTH_TOKEN="two\nlines")


def test_the_address_that_was_checked_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def client(address: str, headers: dict[str, str]) -> None:
        seen.update(address=address, headers=headers, environment={name for name in os.environ if name.endswith("_ADDRESS")})

    monkeypatch.setattr(submit, "JobSubmissionClient", client)
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    submit.connect(LOCAL, "secret", os.environ)
    assert seen["address"] == LOCAL
    assert seen["headers"] == {"Authorization": "Bearer secret"}
    assert not seen["environment"] & {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"}
    assert os.environ["RAY_ADDRESS"] == "http://elsewhere:8265"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AuthenticationError("Authentication required: Missing authentication token"), "wants a token and none was found"),
        (AuthenticationError("Authentication failed: Invalid authentication token"), "refuses the token"),
        (ConnectionError("Failed to connect to Ray"), "no Ray dashboard answers there"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    def client(address: str, headers: dict[str, str]) -> None:
        raise error

    monkeypatch.setattr(submit, "JobSubmissionClient", client)
    with pytest.raises(ClusterError, match=sentence) as caught:
        submit.connect(LOCAL, "secret", os.environ)
    assert "secret" not in str(caught.value)


# What ----------------------------------------------------------------------------------------------------------------------------


def test_relative_paths_become_absolute_where_the_nodes_are_this_machine(
    settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tomllib.loads(submit.settings_text(settings, remote=False)) == {
        "shop": {"events": f"{tmp_path}/shop/events", "items": "s3://bucket/items"},
        "rank": {"k": 7},
        "table": {"path": f"{tmp_path}/var/recommendations"},  # defaults are relative too
        "run": {"work": f"{tmp_path}/var/work"},
        "champion": {"path": f"{tmp_path}/var/bundles"},
        "report": {"path": f"{tmp_path}/var/reports"},
    }


def test_relative_paths_are_refused_where_the_nodes_are_other_machines(settings: Path) -> None:
    with pytest.raises(ConfigError, match=r"shop\.events: 'shop/events' is relative"):
        submit.settings_text(settings, remote=True)
    settings.write_text('[shop]\nevents = "s3://bucket/events"\n[table]\npath = "/shared/table"\n')
    with pytest.raises(ConfigError, match=r"run\.work: 'var/work' is relative"):
        submit.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[run]\nwork = "s3://bucket/work"\n')
    with pytest.raises(ConfigError, match=r"run\.work must be a folder"):
        submit.settings_text(settings, remote=True)
    settings.write_text(settings.read_text().replace("s3://bucket/work", "/shared/work"))
    with pytest.raises(ConfigError, match=r"champion\.path: 'var/bundles' is relative"):
        submit.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[champion]\npath = "s3://bucket/bundles"\n')
    with pytest.raises(ConfigError, match=r"champion\.path must be a folder"):
        submit.settings_text(settings, remote=True)
    settings.write_text(settings.read_text().replace("s3://bucket/bundles", "/shared/bundles"))
    with pytest.raises(ConfigError, match=r"report\.path: 'var/reports' is relative"):
        submit.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[report]\npath = "/shared/reports"\n')
    assert tomllib.loads(submit.settings_text(settings, remote=True)) == tomllib.loads(settings.read_text())


def test_the_settings_of_the_pairs_door_travel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "pairs.toml"
    settings.write_text('[pairs]\npath = "rows"\nusers = "s3://bucket/users"\nnumeric = ["a b"]\n[pairs.columns."a b"]\nlog1p = true\n')
    sent = tomllib.loads(submit.settings_text(settings, remote=False))
    assert sent["pairs"] == {
        "path": f"{tmp_path}/rows",
        "users": "s3://bucket/users",
        "numeric": ["a b"],
        "columns": {"a b": {"log1p": True}},
    }
    assert sent["table"] == {"path": f"{tmp_path}/var/pairs_recommendations"}
    assert submit.shared_arguments(["--all-scores", "all"], remote=False) == ("--all-scores", f"{tmp_path}/all")


def test_every_text_among_the_settings_is_known_to_be_a_path_or_not() -> None:
    texts = {
        f"{section}.{name}"
        for door in (config.Settings, config.PairsSettings)
        for section, model in door.model_fields.items()
        if isinstance(model.annotation, type) and issubclass(model.annotation, config.Section)
        for name, field in model.annotation.model_fields.items()
        if field.annotation in (str, str | None, Path, Path | None)
    }
    columns = {f"pairs.{name}" for name in ("user_id", "item_id", "label", "weight")}
    assert texts - set(submit.PATHS) == {"shop.timezone", *columns}, "a new text: is it a path? Then put it into recsys.submit.PATHS"
    assert set(submit.PATHS) <= texts


def test_paths_among_the_arguments_of_a_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--out", "metrics.json", "--bundle=s3://models/7", "--horizon-days", "91"]
    expected = ("--out", f"{tmp_path}/metrics.json", "--bundle=s3://models/7", "--horizon-days", "91")
    assert submit.shared_arguments(given, remote=False) == expected
    with pytest.raises(ConfigError, match=r"--out: 'metrics\.json' is relative"):
        submit.shared_arguments(given, remote=True)
    with pytest.raises(ConfigError, match="before the `--`"):
        submit.shared_arguments(["--config=other.toml"], remote=False)


def test_lists_of_rules_travel_as_paths_that_every_node_understands(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = settings.read_text()
    settings.write_text(
        told + '[[rules]]\nname = "a"\nkind = "items"\nonly = "these"\naudience = { ids = "s3://bucket/users" }\n'
        '[[rules]]\nname = "b"\nkind = "pairs"\nnever = "returned"\n'
        '[[rules]]\nname = "c"\nkind = "column"\ncolumn = "seller"\nonly = ["we"]\naudience = { ids = "testers" }\n'
    )
    first, second, third = tomllib.loads(submit.settings_text(settings, remote=False))["rules"]
    assert first == {"name": "a", "kind": "items", "only": f"{tmp_path}/these", "audience": {"ids": "s3://bucket/users"}}
    assert second == {"name": "b", "kind": "pairs", "never": f"{tmp_path}/returned"}
    assert (third["only"], third["audience"]) == (["we"], {"ids": f"{tmp_path}/testers"})
    settings.write_text(
        told.replace("shop/events", "/shop/events")
        + '[table]\npath = "/t"\n[run]\nwork = "/w"\n[champion]\npath = "/b"\n[report]\npath = "/r"\n'
        + '[[rules]]\nname = "b"\nkind = "pairs"\nnever = "r"'
    )
    with pytest.raises(ConfigError, match="the rule 'b': 'r' is relative"):
        submit.settings_text(settings, remote=True)


def test_the_settings_survive_being_written_again(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        '[shop]\nevents = "/e"\nlabel_kinds = ["purchase"]\n[shop.columns]\nuser_id = "Käufer \\"Nr\\" \\u007f \\\\"\n'
        '[shop.storage_options]\n"region" = "eu"\n[model]\nhidden = [512, 16]\ndropout = 0.25\n[rank]\nallow_repeats = false\n'
        '[[rules]]\nname = "a"\nkind = "column"\ncolumn = "b"\nnever = [1, true, "\\u007f"]\n'
        '[rules.audience]\ncolumn = "c"\nvalues = ["d"]\n'
        '[[rules]]\nname = "e"\nkind = "range"\ncolumn = "f"\nmin = 1.5\n'
    )
    path.write_text(path.read_text().replace('events = "/e"', 'events = "/e"\nitems = "/i"\nusers = "/u"'))
    written = tmp_path / "again.toml"
    written.write_text(submit.settings_text(path, remote=False), encoding="utf-8")
    before, after = config.load(path).model_dump(), config.load(written).model_dump()
    for section in ("table", "run", "champion", "report"):  # their defaults are paths, absolute now
        before.pop(section)
        after.pop(section)
    assert before == after


def test_code_travels_and_data_does_not(repository: Path) -> None:
    client = Cluster()
    hand_over(client, repository)
    assert client.files == CODE | {"settings.submitted.toml"}


def test_a_repository_full_of_data_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LARGEST_BYTES", 40)
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

        monkeypatch.setattr(submit, "connect", connect)
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
