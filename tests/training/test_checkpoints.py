import errno
import json
import os
import uuid
from pathlib import Path

import numpy as np
import pytest

from recsys.training import checkpoints
from recsys.training.checkpoints import Checkpoints, State


def state(number: int) -> State:
    weights = [np.full((2, 3), number, np.float64), np.zeros(0, np.float32), np.array(7, np.int64)]
    return State([{"epoch": number, "loss": 0.1 + 0.2}], [1 / 3, 0.1], weights, weights[:1], [])


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path):
    kept = Checkpoints(tmp_path)
    assert kept.newest() == 0
    kept.write(state(1))
    found = kept.read(kept.newest())
    assert (found.history, found.losses, found.best_weights) == (state(1).history, state(1).losses, [])
    for one, two in zip(found.weights + found.optimizer, state(1).weights + state(1).optimizer, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_the_newest_two_stay_and_the_history_lies_beside_them(tmp_path: Path):
    kept = Checkpoints(tmp_path)
    for number in range(1, 12):
        kept.write(state(number))
    names = ["checkpoint-000010.npz", "checkpoint-000011.npz", checkpoints.HISTORY]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert kept.read(10).history[0]["epoch"] == 10
    assert json.loads((tmp_path / checkpoints.HISTORY).read_text()) == kept.read(kept.newest()).history


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is written goes to /dev/full, whose every write the kernel answers with ENOSPC."""
    kept = Checkpoints(tmp_path)
    kept.write(state(1))
    name = uuid.UUID(int=5)
    monkeypatch.setattr(uuid, "uuid4", lambda: name)
    (tmp_path / f".checkpoint-000002.npz.{name.hex}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        kept.write(state(2))
    assert kept.newest() == 1
    assert kept.read(1).history[0]["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2
