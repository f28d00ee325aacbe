"""A Ray cluster's dashboard: may a token be sent there, which token, and a client of its job server."""

import ipaddress
import logging
import re
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from recsys.errors import ClusterError, ConfigError

UNREACHABLE = (ConnectionError, requests.exceptions.RequestException, aiohttp.ClientError)  # what a client raises then
CHATTY = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")  # the latter have levels of their own


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
        with refusals(address):
            return JobSubmissionClient(address, headers=headers)
    finally:
        environment.update(saved)


@contextmanager
def refusals(address: str) -> Generator[None]:
    """A block whose failures to reach the cluster become one sentence of ours."""
    try:
        yield
    except AuthenticationError as error:
        if "missing" in str(error).lower():
            text = "the cluster wants a token and none was found. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it."
        else:
            text = "the cluster refuses the token. Take that of this cluster: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH."
        raise ClusterError(f"{address}: {text}") from error
    except UNREACHABLE as error:
        raise ClusterError(f"{address}: no Ray dashboard answers there ({type(error).__name__}). Is the cluster up?") from error
