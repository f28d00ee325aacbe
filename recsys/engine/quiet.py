"""Lines that Ray and TensorFlow print to stderr at each stage, which no setting of theirs turns off and which tell nothing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NOISE = (  # as of Ray 2.60 and TensorFlow 2.21; a line that is worded otherwise is shown
    # Ray Data keeps what its actors are made with in the object store, and restarts them from there: its own doing, and it works.
    r"core_worker\.cc:[0-9]+: Actor with class name: .* has constructor arguments in the object store and max_restarts > 0\.",
    # Logged while TensorFlow is imported, before TF_CPP_MIN_LOG_LEVEL counts.
    r"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR$",
    r"port\.cc:[0-9]+\] oneDNN custom operations are on\. You may see slightly different numerical results",
    r"cudart_stub\.cc:[0-9]+\] Could not find cuda drivers on your machine, GPU will not be used\.$",
)
LAST_SECONDS = 2.0  # for the last lines to pass; a process that outlives us may hold the other end


@contextmanager
def without_noise() -> Iterator[None]:
    """A block whose stderr, that of libraries too, goes through a `grep` that drops the lines of NOISE.

    A process of its own, so that the last words of one that crashes still come through. Without grep all is shown.
    """
    grep = shutil.which("grep")
    if grep is None:
        yield
        return
    stderr = os.dup(2)
    command = [grep, "-a", "--line-buffered", "-v", "-E", "|".join(NOISE)]
    sieve = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True)  # Ctrl-C is not for it
    assert sieve.stdin is not None, "it was asked for"
    os.dup2(sieve.stdin.fileno(), 2)
    sieve.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        with suppress(subprocess.TimeoutExpired):
            sieve.wait(LAST_SECONDS)
