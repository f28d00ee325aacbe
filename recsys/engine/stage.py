"""One stage's folder: named by the digest of everything that goes into it, with one receipt per finished unit.

Resuming, caching and "a second run does nothing" are this one mechanism. A unit is finished when its receipt exists; the receipt
is written after the unit's outputs, by a rename, so a process killed at any moment leaves a finished unit or none.

Two runs with the same inputs have the same folders. Whoever works in one owns it meanwhile; the other waits, and finds the receipts.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from recsys.engine.owner import is_owned, owned
from recsys.storage import code_digest, digest, write_atomically, write_json

Receipt = dict[str, Any]

ABOUT = "stage.json"  # in a stage's folder: what its name is the digest of
LOCKS = "locks"  # beside the stages' folders, as a lock must outlive what it guards


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

    def owned(self) -> AbstractContextManager[None]:
        """A block that works in the folder, while no other process does; within it, blocks of the same stage are entered at once."""
        return owned(_lock(self.path), what=self.path.name)

    def once(self, unit: str, make: Callable[[], Receipt]) -> Receipt:
        """The unit's receipt; where there is none, that of `make`, whose outputs are then in place."""
        receipt = self.receipt(unit)
        if receipt is None:
            with self.owned():
                receipt = self.receipt(unit) or self.finish(unit, make())  # another run may have left it meanwhile
        return receipt

    def receipt(self, unit: str) -> Receipt | None:
        """What the finished unit left; None where it is not finished."""
        try:
            return json.loads((self.path / "receipts" / f"{unit}.json").read_text(encoding="utf-8"))
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
    """The names of the stage folders that no run used since `before`, seconds since 1970, nor owns now; they are removed."""
    removed: list[str] = []
    for folder in sorted(about.parent for about in Path(root).glob(f"*/{ABOUT}") if _used(about.parent) < before):
        if is_owned(_lock(folder)):
            continue
        with owned(_lock(folder), what=folder.name):
            if _used(folder) < before:  # still: another run may have begun with it, or have removed it
                shutil.rmtree(folder)
                removed.append(folder.name)
    return removed


def _used(folder: Path) -> float:
    """When a run last used the stage, in seconds since 1970; infinite where it is gone."""
    try:
        return (folder / ABOUT).stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _lock(folder: Path) -> Path:
    return folder.parent / LOCKS / f"{folder.name}.lock"
