"""Training workers on Ray Train, started and ended."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.engine.workers import launch


def wait_or_return(job: dict[str, Any]) -> str:
    begun = Path(job["begun"])
    begun.touch()
    while job["forever"]:
        time.sleep(0.1)
    return "returned"


@pytest.mark.ray
@pytest.mark.usefixtures("two_actors")
def test_ctrl_c_ends_the_workers_and_is_told_as_such(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    def start(*, forever: bool) -> Any:
        job = {"begun": str(tmp_path / "begun"), "forever": forever}
        return launch(wait_or_return, job, folder=tmp_path, workers=1, gpu=False, max_failures=0)

    handler = signal.getsignal(signal.SIGINT)
    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        start(forever=True)
    sender.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert start(forever=False) == "returned"
    assert signal.getsignal(signal.SIGINT) is handler
