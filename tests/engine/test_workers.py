"""Training workers on Ray Train, started and ended."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.engine import workers
from recsys.engine.workers import launch
from recsys.errors import ClusterError
from tests.conftest import CPUS


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


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_ray_never_starts_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(workers, "STARTS", 1)
    with pytest.raises(ClusterError, match=r"Ray's controller of the training gave up: .* It asks for workers 1 times"):
        launch(wait_or_return, {}, folder=tmp_path, workers=CPUS + 1, gpu=False, max_failures=0)
