"""Servers that the machine has, started by a test on a free port, in a folder of its own, and ended by it."""

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def program(name: str) -> str:
    """Where a server's program is; without one the test is skipped, and says so."""
    places = [
        Path(place) / name for place in (*os.environ["PATH"].split(os.pathsep), *map(str, Path("/usr/lib/postgresql").glob("*/bin")))
    ]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip(f"no {name} on this machine: nothing was exported to it (apt-get install redis-server postgresql)")
    return str(found)


@contextmanager
def running(command: list[str], answers: Callable[[], bool], **options: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        until = time.monotonic() + 60
        while not answers():
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.monotonic() < until, f"{command[0]} does not answer"
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def redis_server(folder: Path, *, password: str | None = None) -> Iterator[str]:
    """A Redis; its address."""
    port = free_port()
    folder.mkdir()
    command = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    import redis

    def answers() -> bool:
        try:
            return bool(redis.Redis(port=port, password=password).ping())
        except redis.ConnectionError:
            return False

    with running(command + (["--requirepass", password] if password else []), answers):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """A PostgreSQL; its address, as its superuser, who is asked for no password. It refuses to run as root: then it runs as nobody."""
    import psycopg

    port = free_port()
    initdb, postgres = program("initdb"), program("postgres")
    folder.mkdir()
    nobody = pwd.getpwnam("nobody")
    options: dict[str, Any] = {}
    if os.getuid() == 0:
        for place in (folder, *folder.parents):  # pytest's folders are their owner's alone
            if place.is_relative_to("/tmp") and place != Path("/tmp"):
                place.chmod(0o755)
        shutil.chown(folder, "nobody", nobody.pw_gid)
        options = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = str(folder / "data")
    make = [initdb, "-D", data, "-U", "shop", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
    made = subprocess.run(make, cwd="/", capture_output=True, text=True, check=False, **options)
    assert made.returncode == 0, made.stderr

    def answers() -> bool:
        try:
            psycopg.connect(f"postgresql://shop@127.0.0.1:{port}/postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    with running([postgres, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)], answers, cwd="/", **options):
        yield f"postgresql://shop@127.0.0.1:{port}/postgres"
