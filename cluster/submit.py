"""Hand a verb to a Ray cluster as a job, and follow it to its end.

The job gets a copy of the repository without data, and in it the settings as submitted. Its id is verb, date and run, such as
`nightly-2017-12-01-2`. The same submission while it runs follows the running job; another one of the same verb and date is refused
until that ends; after an end the next run number is taken.
"""

import asyncio
import hashlib
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ray.job_submission import JobStatus

from cluster.dashboard import UNREACHABLE, Client, Details, refusals
from cluster.working_dir import SETTINGS, copy_code
from recsys.engine.connect import ENVIRONMENT
from recsys.errors import ClusterError

log = logging.getLogger("recsys")

PENDING_SECONDS = 15.0  # between two lines while a job waits for resources
RETRY_SECONDS = 2.0
LOST_SECONDS = 120.0  # without an answer of the cluster before the job is given up on

EXIT = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 3, JobStatus.STOPPED: 4}
"""Exit status of a followed job; 1 is a refusal of ours, 2 a wrong command line, 130 a Ctrl-C that left the job running."""


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
    with tempfile.TemporaryDirectory(prefix="recsys-submit-") as folder, refusals(address):
        content = copy_code(root, Path(folder), job.settings)
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
        except (*UNREACHABLE, RuntimeError) as error:
            if "does not exist" in str(error) or "404" in str(error):
                raise ClusterError(f"{address}: the cluster does not know {job_id} any more. Was it restarted?") from error
            if time.monotonic() - heard > LOST_SECONDS:
                raise ClusterError(
                    f"{address}: no answer for {LOST_SECONDS:.0f} s; {job_id} may still run. The same command follows it again."
                ) from error
        time.sleep(RETRY_SECONDS)


def stop(client: Client, job_id: str, *, address: str) -> JobStatus:
    """The status that the job ended with after it was asked to stop; it may have ended by itself."""
    with refusals(address):
        client.stop_job(job_id)
    return follow(client, job_id, address=address, write=lambda _: None)
