import os
import subprocess
import sys
from pathlib import Path

from recsys.engine.connect import ENVIRONMENT

ROOT = Path(__file__).parents[2]

# What the libraries print, beside a line of ours before and after and the words of a crash.
PRINTS = r"""
import os, sys
from recsys.engine.quiet import without_noise

def native(text):
    os.write(2, text.encode() + b"\n")

with without_noise():
    print("ours, before", file=sys.stderr)
    native("[2026-11-28 08:57:15,734 E 16110 16110] core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(_Worker))' and "
           "ID: 'acd2' has constructor arguments in the object store and max_restarts > 0. If the arguments in the object store go "
           "out of scope or are lost, the actor restart will fail. See https://github.com/ray-project/ray/issues/53727 for more.")
    native("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR")
    native("I0000 00:00:1795856252.125372   16110 port.cc:153] oneDNN custom operations are on. You may see slightly different "
           "numerical results due to floating-point round-off errors from different computation orders.")
    native("I0000 00:00:1795856252.126487   110 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.")
    native("[2026-11-28 08:57:16,734 E 16110 16110] core_worker.cc:99: another error")
    os.write(2, b"K\xf6ln\0\n")  # neither UTF-8 nor text
    if "crash" in sys.argv:
        native("last words")
        os._exit(7)
print("after", file=sys.stderr)
"""


def said(*arguments: str) -> tuple[int, list[str]]:
    ended = subprocess.run([sys.executable, "-c", PRINTS, *arguments], cwd=ROOT, capture_output=True, check=False)
    return ended.returncode, ended.stderr.decode("latin-1").splitlines()


def test_only_the_lines_that_tell_nothing_are_dropped() -> None:
    other = "[2026-11-28 08:57:16,734 E 16110 16110] core_worker.cc:99: another error"
    assert said() == (0, ["ours, before", other, "K\xf6ln\0", "after"])


def test_the_last_words_of_a_crash_come_through() -> None:
    status, lines = said("crash")
    assert (status, lines[0], lines[-1]) == (7, "ours, before", "last words")


def test_what_tensorflow_prints_when_it_is_imported_is_dropped() -> None:
    code = "from recsys.engine.quiet import without_noise\nwith without_noise():\n    import tensorflow\n"
    told = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": ENVIRONMENT["TF_CPP_MIN_LOG_LEVEL"]}  # of the rest, as `connect` does
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=told, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
