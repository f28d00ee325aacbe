import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

VERB = """
import time
from jobs import job, main

def work() -> None:
    with job():
        print("works", flush=True)
        time.sleep(60)
        print("is done", flush=True)

main(work)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_verb_in_the_background_of_a_shell_ends_at_a_signal(number: signal.Signals, status: int) -> None:
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(VERB)} & echo $!; wait $!; echo status $?"  # a shell lets it ignore INT
    shell = subprocess.Popen(["sh", "-c", command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert shell.stdout is not None, "it was asked for"
    pid = int(shell.stdout.readline())
    assert shell.stdout.readline() == "works\n"
    time.sleep(0.2)
    subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)
    assert shell.communicate(timeout=20)[0] == f"status {status}\n"
