"""Two runs of one table: real processes, as the lease of a folder is the kernel's lock."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recsys.engine.lease import leased
from recsys.errors import LeaseError

ROOT = Path(__file__).parents[2]

# A run that works on a table until it is told to end.
RUN = """
import sys
from recsys.errors import one_line_errors
from recsys.engine.lease import leased

with one_line_errors(), leased(sys.argv[1], {}, what=sys.argv[2]):
    print("works", flush=True)
    sys.stdin.read()
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(what: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUN, str(tmp_path / "table"), what]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def works(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "works\n"


def test_a_second_run_is_refused_in_one_sentence_while_the_first_lives_and_not_after(tmp_path: Path, start: Start) -> None:
    first = start("the night of 2024-06-01")
    assert works(first)
    second = start("the night of 2024-06-01")
    out, error = second.communicate(timeout=60)
    assert (second.returncode, out) == (6, "")
    told = f"process {first.pid} on {os.uname().nodename} (since "
    assert error.startswith(f"{tmp_path / 'table'}: one run at a time, got a second one: {told}")
    assert error.endswith(" UTC) works on this table. Wait for it, or end it.\n")
    with pytest.raises(LeaseError, match=f"process {first.pid} on "), leased(str(tmp_path / "table"), {}, what="this test"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    third = start("the night of 2024-06-01")  # at once: the kernel frees what a dead process held
    assert works(third)
    third.communicate("", timeout=60)
    assert third.returncode == 0
    assert works(start("another night"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1, "host": "a", "since": "b"}'])
def test_who_holds_it_may_be_damaged(tmp_path: Path, start: Start, text: str) -> None:
    assert works(start("a night"))
    (tmp_path / "table.owner").write_text(text)
    with pytest.raises(LeaseError, match="got a second one: another run works on"), leased(str(tmp_path / "table"), {}, what="b"):
        pass


def test_other_tables_and_blocks_within_are_free(tmp_path: Path, start: Start) -> None:
    assert works(start("a night"))
    with leased(str(tmp_path / "other"), {}, what="a"), leased(str(tmp_path / "other"), {}, what="b") as ours:
        ours()
    with leased(f"file://{tmp_path}/third", {}, what="a"):
        assert (tmp_path / "third.lease").exists()
    with pytest.raises(LeaseError), leased(f"file://{tmp_path}/table", {}, what="the same by another name"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.lease", "table.lease", "table.owner", "third.lease"]
