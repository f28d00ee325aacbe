"""Hand a verb to a Ray cluster as a job, and follow it to its end.

The job gets a copy of the repository without data, and in it the settings as submitted: checked here, every path one that all nodes
know. Its id is verb, date and run, such as `nightly-2017-12-01-2`. The same submission while it runs follows the running job;
another one of the same verb and date is refused until that ends; after an end the next run number is taken.
"""

import asyncio
import hashlib
import ipaddress
import json
import logging
import re
import shlex
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from recsys import config
from recsys.errors import ClusterError, ConfigError
from recsys.runtime import ENVIRONMENT

log = logging.getLogger("recsys")

SETTINGS = "settings.submitted.toml"  # the settings as they travel, at the root of the job's working directory
PATHS = (  # settings that say where something lies
    *("shop.events", "shop.items", "shop.users"),
    *("pairs.path", "pairs.test", "pairs.score", "pairs.users", "pairs.items"),
    *("rank.candidates", "table.path", "run.work", "champion.path", "report.path"),
)
FOLDERS = ("run.work", "champion.path", "report.path")  # that all nodes mount
PATH_OPTIONS = ("--bundle", "--out", "--plot", "--all-scores")  # further arguments of verbs that do
LEFT_OUT = {"var", ".venv", "venv", ".git", "data", "node_modules"}  # at the root
NEVER = shutil.ignore_patterns(
    "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "*.parquet", "*.csv", "*.arrow", "*.npz", ".env*", "*.pem", "*.key"
)
LARGEST_BYTES = 64 * 2**20  # of what is sent; Ray's own limit is 512 MiB
PENDING_SECONDS = 15.0  # between two lines while a job waits for resources
CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
RETRY_SECONDS = 2.0
LOST_SECONDS = 120.0  # without an answer of the cluster before the job is given up on

EXIT = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 3, JobStatus.STOPPED: 4}
"""Exit status of a followed job; 1 is a refusal of ours, 2 a wrong command line, 130 a Ctrl-C that left the job running."""


class Details(Protocol):
    """What is used of Ray's JobDetails, which are None to a type checker."""

    submission_id: str | None
    status: JobStatus
    metadata: dict[str, str] | None
    message: str | None
    driver_agent_http_address: str | None


class Client(Protocol):
    """What is used of Ray's JobSubmissionClient."""

    def list_jobs(self) -> Sequence[Any]:
        """The Details of all jobs that the cluster remembers."""
        ...

    def get_job_info(self, job_id: str) -> Any:
        """The Details of one job."""
        ...

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str | None,
        runtime_env: dict[str, Any] | None,
        metadata: dict[str, str] | None,
        entrypoint_num_cpus: float | None,
        entrypoint_memory: int | None,
    ) -> str:
        """The id of a submitted job."""
        ...

    def stop_job(self, job_id: str) -> bool:
        """Whether it ran."""
        ...

    def tail_job_logs(self, job_id: str) -> Any:
        """Its log, from the beginning, as it grows."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to run."""

    verb: str
    arguments: tuple[str, ...]
    """Of the verb, without --config and --as-of."""
    settings: str | None
    """The settings file's text as it travels."""
    as_of: date | None
    python: str
    """The interpreter on the cluster; it must have the pinned packages."""
    num_cpus: float | None = None
    """CPUs of the driver, which then runs wherever there is room instead of on the head."""
    memory: int | None = None
    """Bytes of the driver; likewise."""

    def command(self) -> str:
        """The shell command that the cluster runs in the job's working directory."""
        words = [self.python, "cluster/entrypoint.py", "-m", f"jobs.{self.verb}"]
        if self.settings is not None:
            words += ["--config", SETTINGS]
        if self.as_of is not None:
            words += ["--as-of", self.as_of.isoformat()]
        return shlex.join([*words, *self.arguments])


# Where to: address and token -----------------------------------------------------------------------------------------------------


def loopback(address: str) -> bool:
    """Whether the address is this machine's own, which nobody else can listen to."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(address: str, *, insecure_http: bool) -> None:
    """Nothing, where the token may be sent to the address.

    Raises:
        ConfigError: no http(s) URL, or plain http over a network.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--address {address}: must be the URL of a Ray dashboard, such as http://127.0.0.1:8265.")
    if parts.username or parts.password:
        raise ConfigError("--address: must not hold a password. Put the token into RAY_AUTH_TOKEN or a file (RAY_AUTH_TOKEN_PATH).")
    if parts.scheme == "http" and not loopback(address) and not insecure_http:
        raise ConfigError(
            f"--address {address}: plain http would show the token and the code to the network. Use https, or a tunnel to "
            "127.0.0.1 (kubectl port-forward, ssh -L), or pass --insecure-http where the network itself is trusted."
        )


def token(address: str, environment: Mapping[str, str], *, local: Path, home: Path) -> str | None:
    """The cluster's token: the first found of those below; None where there is none, and the cluster says whether it wants one.

    RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH names, the local cluster's for a loopback address, Ray's own ~/.ray/auth_token.

    Args:
        local: the file that `make cluster-up` writes.

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names no readable file, or the token cannot be sent in a header.
    """
    found = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not found and (named := environment.get("RAY_AUTH_TOKEN_PATH")):
        try:
            found = Path(named).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: {named} cannot be read: {type(error).__name__}. Check the path.") from error
    if not found:
        for file in ([local] if loopback(address) else []) + [home / ".ray" / "auth_token"]:
            if file.is_file() and (found := file.read_text(encoding="utf-8").strip()):
                break
    if not re.fullmatch(r"[\x21-\x7e]*", found):
        raise ConfigError("the token holds characters that no token has. Check RAY_AUTH_TOKEN or the token's file.")
    return found or None


def connect(address: str, secret: str | None, environment: MutableMapping[str, str]) -> JobSubmissionClient:
    """A client of the cluster's job server.

    Args:
        environment: the process's. What Ray reads from it in place of the address it is given is out of it meanwhile: the address was
            checked, that was not.

    Raises:
        ClusterError: nothing answers there, or the token is missing or wrong.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    saved = {name: environment.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in environment}
    try:
        with _refusals(address):
            return JobSubmissionClient(address, headers=headers)
    finally:
        environment.update(saved)


@contextmanager
def _refusals(address: str) -> Generator[None]:
    """A block whose failures to reach the cluster become one sentence of ours."""
    try:
        yield
    except AuthenticationError as error:
        if "missing" in str(error).lower():
            text = "the cluster wants a token and none was found. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it."
        else:
            text = "the cluster refuses the token. Take that of this cluster: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH."
        raise ClusterError(f"{address}: {text}") from error
    except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError) as error:
        raise ClusterError(f"{address}: no Ray dashboard answers there ({type(error).__name__}). Is the cluster up?") from error


# What: settings, arguments and code ----------------------------------------------------------------------------------------------


def settings_text(path: Path, *, remote: bool) -> str:
    """The settings file as it travels: the same keys, with paths that every node understands.

    Args:
        remote: whether the nodes are other machines, for which a relative path means nothing.

    Raises:
        ConfigError: the file cannot be used, a path is relative and the cluster remote, or one of FOLDERS is no folder.
    """
    settings = config.load_either(path)
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in PATHS:
        section, name = key.split(".")
        location = getattr(getattr(settings, section, None), name, None)
        if location is None:
            continue
        if key in FOLDERS and "://" in location:
            raise ConfigError(f"{path}: {key} must be a folder that every node mounts, got '{location}'. Mount one, or use a path.")
        values.setdefault(section, {})[name] = shared(location, what=f"{path}: {key}", remote=remote)
    for rule in values.get("rules", ()):
        of_list = rule if rule["kind"] in ("items", "pairs") else {}
        for table, name in ((of_list, "only"), (of_list, "never"), (rule.get("audience", {}), "ids")):
            if name in table:
                table[name] = shared(table[name], what=f"{path}: the rule '{rule['name']}'", remote=remote)
    text = _toml(values)
    assert tomllib.loads(text) == values
    return text


def shared(location: str, *, what: str, remote: bool) -> str:
    """The location as every node understands it: a URI and an absolute path as they stand, a relative path made absolute.

    Raises:
        ConfigError: it is relative and the nodes are other machines.
    """
    if "://" in location or Path(location).is_absolute():
        return location
    if remote:
        raise ConfigError(
            f"{what}: '{location}' is relative, and other machines have another folder. Use a URI or a shared absolute path."
        )
    return str(Path(location).absolute())


def shared_arguments(arguments: Sequence[str], *, remote: bool) -> tuple[str, ...]:
    """Further arguments of a verb, the paths among them made such that every node understands them.

    Raises:
        ConfigError: as `shared`; or --config or --as-of among them, which are options of the submission.
    """
    made: list[str] = []
    after = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in ("--config", "--as-of"):
            raise ConfigError(f"{option}: pass it before the `--`, to the submission.")
        if after in PATH_OPTIONS:
            made.append(shared(argument, what=after, remote=remote))
        elif option in PATH_OPTIONS and equals:
            made.append(f"{option}={shared(value, what=option, remote=remote)}")
        else:
            made.append(argument)
        after = argument
    return tuple(made)


def _toml(values: Mapping[str, Any], name: str = "") -> str:
    """A TOML text of nested tables; strings, numbers and truth values are written alike in JSON and TOML."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"{json.dumps(key, ensure_ascii=False)} = {_inline(value)}" for key, value in plain.items()]
    text = "".join(line.replace("\x7f", "\\u007f") + "\n" for line in lines)
    for key, value in values.items():
        if isinstance(value, dict):
            full = f"{name}.{json.dumps(key)}" if name else json.dumps(key)
            text += f"\n[{full}]\n{_toml(value, full)}"
    return text


def _inline(value: Any) -> str:
    """A value within one line; a table among the values of an array too."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {_inline(one)}" for key, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(_inline(one) for one in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def stage(root: Path, into: Path, settings: str | None) -> str:
    """A digest of the copy of the repository that is made in `into`: code without data, and the settings.

    Raises:
        ConfigError: it is too large to be code.
    """

    def ignore(folder: str, names: list[str]) -> set[str]:
        ignored = NEVER(folder, names)
        return ignored | (LEFT_OUT & set(names) if Path(folder) == root else set())

    total = 0

    def copy(source: str, target: str) -> None:
        nonlocal total
        total += Path(source).stat().st_size
        if total > LARGEST_BYTES:
            raise ConfigError(f"{root}: more than {LARGEST_BYTES >> 20} MiB besides var/ and data/, at {source}. Move data under var/.")
        shutil.copy(source, target)

    shutil.copytree(root, into, ignore=ignore, copy_function=copy, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    if settings is not None:
        (into / SETTINGS).write_text(settings, encoding="utf-8")
    seen = hashlib.sha256()
    for file in sorted(into.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            seen.update(f"{file.relative_to(into).as_posix()}\0{len(content)}\0".encode() + content)
    return seen.hexdigest()[:16]


# Submit --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """A job on the cluster."""

    id: str
    fresh: bool
    """False where the very same submission was running already."""


def submit(client: Client, job: Job, *, root: Path, today: date, address: str) -> Submitted:
    """The job, running or waiting on the cluster under its id.

    Args:
        root: the repository.
        today: what the id says where the job has no as-of.

    Raises:
        ClusterError: another job of this verb and date runs, or the cluster cannot be reached.
    """
    base = f"{job.verb}-{job.as_of or today}"
    command = job.command()
    with tempfile.TemporaryDirectory(prefix="recsys-submit-") as folder, _refusals(address):
        content = stage(root, Path(folder), job.settings)
        same = hashlib.sha256(f"{content} {command} {job.num_cpus} {job.memory}".encode()).hexdigest()[:16]
        for _ in range(3):  # another submission may take the number first
            runs = _runs(client, base)
            for run in runs.values():
                if run.status.is_terminal():
                    continue
                if (run.metadata or {}).get("submission") == same:
                    return Submitted(str(run.submission_id), fresh=False)
                raise ClusterError(
                    f"{address}: {run.submission_id} is {run.status} with other code, settings or arguments. Wait for it, or stop it: "
                    f"{stop_command(str(run.submission_id), address)}"
                )
            number = max(runs, default=0) + 1
            try:
                made = client.submit_job(
                    entrypoint=command,
                    submission_id=f"{base}-{number}",
                    runtime_env={"working_dir": folder, "env_vars": dict(ENVIRONMENT)},
                    metadata={"verb": job.verb, "as_of": str(job.as_of or ""), "submission": same},
                    entrypoint_num_cpus=job.num_cpus,
                    entrypoint_memory=job.memory,
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise ClusterError(f"{address}: the job was refused: {_last_line(error)}") from error
            else:
                return Submitted(made, fresh=True)
    raise ClusterError(f"{address}: other submissions of {base} take every number first. Try again.")


def _runs(client: Client, base: str) -> dict[int, Details]:
    """Jobs of this verb and date by run number."""
    found: dict[int, Details] = {}
    for job in client.list_jobs():
        match = re.fullmatch(re.escape(base) + r"-(\d+)", job.submission_id or "")
        if match:
            found[int(match.group(1))] = job
    return found


def stop_command(job_id: str, address: str) -> str:
    """What a person types to stop a job."""
    return f"RAY_AUTH_MODE=token ray job stop {job_id} --address {address} (the token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1]


# Follow --------------------------------------------------------------------------------------------------------------------------


def follow(client: Client, job_id: str, *, address: str, write: Callable[[str], object]) -> JobStatus:
    """The status that the job ended with; its log goes to `write` as it grows.

    A dropped connection is taken up again where it broke.

    Raises:
        ClusterError: the cluster did not answer for a while, or does not know the job any more.
    """
    written = 0  # characters of the log
    heard = said = started = time.monotonic()

    async def tail() -> None:
        nonlocal written, heard
        skip = written  # the log comes from its beginning
        async for chunk in client.tail_job_logs(job_id):
            heard = time.monotonic()
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            written += len(fresh)
            write(fresh)

    while True:
        try:
            job: Details = client.get_job_info(job_id)
            heard = time.monotonic()
            ended = job.status.is_terminal()
            if job.status == JobStatus.PENDING and heard - said >= PENDING_SECONDS:
                said = heard
                log.info("%s: PENDING for %.0f s: %s", job_id, heard - started, _last_line(Exception(job.message or "")))
            if job.driver_agent_http_address:  # it started somewhere; without, there is no log and the tail would wait forever
                asyncio.run(tail())  # ends with the job
            if ended:
                if job.status == JobStatus.FAILED and job.message and not written:
                    log.error("%s: %s", job_id, job.message)  # it never came to write a log
                return job.status
        except (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError, RuntimeError) as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise ClusterError(f"{address}: the cluster does not know {job_id} any more. Was it restarted?") from error
            if time.monotonic() - heard > LOST_SECONDS:
                raise ClusterError(
                    f"{address}: no answer for {LOST_SECONDS:.0f} s; {job_id} may still run. The same command follows it again."
                ) from error
        time.sleep(RETRY_SECONDS)


def stop(client: Client, job_id: str, *, address: str) -> JobStatus:
    """The status that the job ended with after it was asked to stop; it may have ended by itself."""
    with _refusals(address):
        client.stop_job(job_id)
    return follow(client, job_id, address=address, write=lambda _: None)
