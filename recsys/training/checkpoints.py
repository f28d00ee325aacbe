"""What a fit has reached, on disk: enough to go on as if nothing had happened, from the end of an epoch or from within one.

A checkpoint is one file, written whole by a rename, so a process killed at any moment leaves the one before. Ray Train's own are not
used: they count only once its controller has asked for them, their index is written in place, and a full disk kills the worker.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys.storage import write_atomically

Epoch = dict[str, Any]  # epoch, phase, loss, workers, first_step (when, in s since 1970), seconds, rows_per_second; validating: val_…
Weights = list[np.ndarray]

HISTORY = "history.json"  # beside the checkpoints, for whoever watches
KEPT = 2  # the newest, and the one before it should that file be damaged
_ARRAYS = ("weights", "optimizer", "best_weights")


@dataclass(frozen=True)
class State:
    """A fit at the end of a step."""

    history: list[Epoch]
    """Of the finished epochs, of both phases."""
    losses: list[float]
    """Of the steps made in the epoch that is open; empty at an epoch's end."""
    weights: Weights
    """Of the model, those that are not trained too."""
    optimizer: Weights
    best_weights: Weights
    """Of the epoch with the smallest validation loss so far; empty before the first ends."""


class Checkpoints:
    """The numbered checkpoints of one fit, in a folder that every node shares; one worker writes, all read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> int:
        """The number of the newest checkpoint; 0 where there is none."""
        return max(self._numbers(), default=0)

    def read(self, number: int) -> State:
        """What `write` was given."""
        with np.load(self._path(number), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            arrays = {name: [file[f"{name}_{index}"] for index in range(about[name])] for name in _ARRAYS}
        return State(history=about["history"], losses=about["losses"], **arrays)

    def write(self, state: State) -> None:
        """One more checkpoint, on disk when this returns; all but the newest ones go.

        Raises:
            OSError: it could not be written, as on a full disk; those that were there stay.
        """
        about: dict[str, Any] = {"history": state.history, "losses": state.losses}
        arrays: dict[str, np.ndarray] = {}
        for name in _ARRAYS:
            values: Weights = getattr(state, name)
            about[name] = len(values)
            arrays |= {f"{name}_{index}": array for index, array in enumerate(values)}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())

        write_atomically(self._path(self.newest() + 1), save)
        write_atomically(self.folder / HISTORY, lambda file: file.write_text(json.dumps(state.history), encoding="utf-8"))
        for number in sorted(self._numbers())[:-KEPT]:
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"checkpoint-{number:06d}.npz"

    def _numbers(self) -> list[int]:
        return [int(path.stem.rpartition("-")[2]) for path in self.folder.glob("checkpoint-*.npz")]
