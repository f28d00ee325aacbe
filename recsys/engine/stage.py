"""One stage's folder: named by the digest of everything that goes into it, with one receipt per finished unit.

Resuming, caching and "a second run does nothing" are this one mechanism. A unit is finished when its receipt exists; the receipt
is written after the unit's outputs, by a rename, so a process killed at any moment leaves a finished unit or none.

Two runs with the same inputs have the same folders. Whoever works in one owns it meanwhile; the other waits, and finds the receipts.
"""

import glob
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys.engine.owner import is_owned, owned
from recsys.storage import code_digest, digest, write_atomically, write_json

Receipt = dict[str, Any]

ABOUT = "stage.json"  # in a stage's folder: what its name is the digest of
LASTING = "lasting"  # in a stage's folder: units are removed one by one
LOCKS = "locks"  # beside the stages' folders, as a lock must outlive what it guards


class Stage:
    """One stage's folder and receipts.

    Args:
        root: folder of all stages, shared by every node.
        name: the stage's name, the first part of the folder's.
        inputs: everything the outputs depend on: digests of earlier stages, settings, dates.
        lasting: units are named by what else they depend on, and serve many runs. Of such a stage `prune` removes single units, whose
            outputs must be files UNIT.* in the folder.
    """

    def __init__(self, root: str | Path, name: str, inputs: Mapping[str, Any], *, lasting: bool = False) -> None:
        self.name = name
        self.lasting = lasting
        self.digest = digest({"stage": name, "code": code_digest(), **inputs})
        self.path = Path(root).absolute() / f"{name}-{self.digest}"
        self.path.mkdir(parents=True, exist_ok=True)
        about = self.path / ABOUT
        if about.exists():
            about.touch()  # used now: `prune` goes by it
        else:
            write_atomically(about, lambda file: write_json(file, {"stage": name, **inputs}))
        if lasting:
            (self.path / LASTING).touch()

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
        return receipt_in(self.path, unit)

    def finish(self, unit: str, receipt: Receipt) -> Receipt:
        """The receipt, stored: from here on the unit is finished. Its outputs must be in place."""
        write_atomically(self.path / "receipts" / f"{unit}.json", lambda file: write_json(file, receipt))
        return receipt

    def use(self, units: Iterable[str]) -> None:
        """These finished units serve the run that says so; of a lasting stage, `prune` goes by it."""
        for unit in units if self.lasting else ():
            (self.path / "receipts" / f"{unit}.json").touch()

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


def receipt_in(folder: Path, unit: str) -> Receipt | None:
    """What a finished unit left in the folder of any stage; None where it is not finished, or the folder is gone."""
    try:
        return json.loads((folder / "receipts" / f"{unit}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class StageFolder:
    """What lies in one stage's folder."""

    name: str
    units: int
    """Finished ones."""
    size: int
    """Bytes."""
    used: datetime
    """When a run last used it, UTC."""
    owned: bool
    """A run works in it now."""


def stage_folders(root: str | Path) -> list[StageFolder]:
    """The folders of all stages below `run.work`, those used last first."""
    found = []
    for about in Path(root).absolute().glob(f"*/{ABOUT}"):
        folder, size = about.parent, 0
        for file in folder.rglob("*"):
            with suppress(FileNotFoundError):  # a run that works in it renames and removes files
                size += file.stat().st_size if file.is_file() else 0
        units = len(list((folder / "receipts").glob("*.json")))
        if (used := _used(folder)) < math.inf:
            found.append(StageFolder(folder.name, units, size, datetime.fromtimestamp(used, UTC), is_owned(_lock(folder))))
    return sorted(found, key=lambda one: (one.used, one.name), reverse=True)


def prune(root: str | Path, *, before: float) -> list[str]:
    """The names of the stage folders that no run used since `before`, seconds since 1970, nor owns now; they are removed.

    Of lasting stages that were used, the units that no run used are.
    """
    removed: list[str] = []
    for mark in sorted(Path(root).glob(f"*/{LASTING}")):
        if _used(mark.parent) >= before and not is_owned(_lock(mark.parent)):
            with owned(_lock(mark.parent), what=mark.parent.name):
                _prune_units(mark.parent, before)
    for folder in sorted(about.parent for about in Path(root).glob(f"*/{ABOUT}") if _used(about.parent) < before):
        if is_owned(_lock(folder)):
            continue
        with owned(_lock(folder), what=folder.name):
            if _used(folder) < before:  # still: another run may have begun with it, or have removed it
                shutil.rmtree(folder)
                removed.append(folder.name)
    return removed


def _prune_units(folder: Path, before: float) -> None:
    for receipt in (folder / "receipts").glob("*.json"):
        if receipt.stat().st_mtime < before:
            receipt.unlink()  # first: what has no receipt is made again
            for output in folder.glob(f"{glob.escape(receipt.stem)}.*"):
                output.unlink()
            (folder / "attempts" / receipt.stem).unlink(missing_ok=True)


def _used(folder: Path) -> float:
    """When a run last used the stage, in seconds since 1970; infinite where it is gone."""
    try:
        return (folder / ABOUT).stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _lock(folder: Path) -> Path:
    return folder.parent / LOCKS / f"{folder.name}.lock"
