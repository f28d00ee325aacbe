"""One stage's folder: named by the digest of everything that goes into it, with one receipt per finished unit.

Resuming, caching and "a second run does nothing" are this one mechanism. A unit is finished when its receipt exists; the receipt
is written after the unit's outputs, by a rename, so a process killed at any moment leaves a finished unit or none.
"""

import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

Receipt = dict[str, Any]

ABOUT = "stage.json"  # in a stage's folder: what its name is the digest of


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a value's canonical JSON; settings sections are taken by their values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


@functools.cache
def code_digest() -> str:
    """Digest of the package's source: work made by other code is never taken for ours."""
    root = Path(__file__).parent
    return digest({str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))})


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """The file at `path`, written whole by `write` or not there: made beside it under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """A .npz file of the arrays by name, written whole or not there."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, savez would add a suffix
            np.savez_compressed(file, allow_pickle=False, **arrays)

    write_atomically(path, save)


def save_array(path: Path, array: np.ndarray) -> None:
    """A .npy file of the array, written whole or not there."""

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, save would add a suffix
            np.save(file, array, allow_pickle=False)

    write_atomically(path, save)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


class Stage:
    """One stage's folder and receipts.

    Args:
        root: folder of all stages, shared by every node.
        name: the stage's name, the first part of the folder's.
        inputs: everything the outputs depend on: digests of earlier stages, settings, dates.
    """

    def __init__(self, root: str | Path, name: str, inputs: Mapping[str, Any]) -> None:
        self.name = name
        self.digest = digest({"stage": name, "code": code_digest(), **inputs})
        self.path = Path(root).absolute() / f"{name}-{self.digest}"
        self.path.mkdir(parents=True, exist_ok=True)
        about = self.path / ABOUT
        if about.exists():
            about.touch()  # used now: `prune` goes by it
        else:
            write_atomically(about, lambda file: write_json(file, {"stage": name, **inputs}))

    def receipt(self, unit: str) -> Receipt | None:
        """What the finished unit left; None where it is not finished."""
        try:
            return json.loads((self.path / "receipts" / f"{unit}.json").read_text())
        except FileNotFoundError:
            return None

    def finish(self, unit: str, receipt: Receipt) -> Receipt:
        """The receipt, stored: from here on the unit is finished. Its outputs must be in place."""
        write_atomically(self.path / "receipts" / f"{unit}.json", lambda file: write_json(file, receipt))
        return receipt

    def forget(self, unit: str) -> None:
        """The unit is neither finished nor begun any more, as when its outputs were removed."""
        (self.path / "receipts" / f"{unit}.json").unlink(missing_ok=True)
        (self.path / "attempts" / unit).unlink(missing_ok=True)

    def attempt(self, unit: str) -> int:
        """How often the unit was begun since it was last forgotten, this time included."""
        path = self.path / "attempts" / unit
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(b".")
        return path.stat().st_size


def prune(root: str | Path, *, before: float) -> list[str]:
    """The names of the stage folders that no run used since `before`, seconds since 1970; they are removed."""
    stale = sorted(about.parent for about in Path(root).glob(f"*/{ABOUT}") if about.stat().st_mtime < before)
    for folder in stale:
        shutil.rmtree(folder)
    return [folder.name for folder in stale]


def write_json(path: Path, value: Any) -> None:
    """A JSON file, on disk when this returns."""
    with path.open("w") as file:
        json.dump(value, file, default=_plain, indent=1)
        file.flush()
        os.fsync(file.fileno())
