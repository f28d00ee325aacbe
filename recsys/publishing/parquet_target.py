"""A folder of Parquet that any engine reads: a folder a night, and a small file, written last, that names the one to read.

    FOLDER/current.json              {"as_of", "run_id", "folder", "before"}
    FOLDER/AS_OF-RUN/part-*.parquet  the night's rows, with the columns of the table

The folder that was current before stays until the next export, so whoever reads it reads on. Nothing else in FOLDER is touched.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recsys.errors import PublishError, one_line
from recsys.publishing.changes import Changes
from recsys.publishing.served import parts_of
from recsys.schema import AS_OF, RUN_ID
from recsys.storage import check_folders, filesystem, write_file

CURRENT = "current.json"
OURS = r"\d{4}-\d\d-\d\d-[\w-]+"  # names of nights' folders: no other is ever removed


class ParquetTarget:
    """As `served.Target`."""

    def __init__(self, place: str, storage_options: Mapping[str, str], *, full: bool) -> None:
        self.place, self.storage_options, self.full = place, storage_options, full
        self.store, self.root = filesystem(place, storage_options)

    def holds(self, to: str) -> None:
        """None: every night is written whole, as Parquet cannot be changed."""

    def take(self, folder: Path, changes: Changes, *, whole: bool) -> int:
        """As `Target.take`; 0 rows where that run of the night is current, as readers are in its folder. What an export that was killed
        left of it is written anew, as its parts may be others. In full, that too is written anew, beside it, and what was current goes
        at once, as its lists may be of people who were erased.

        Raises:
            PublishError: where not `whole`: changes alone are no night.
        """
        if not whole:
            raise PublishError(f"--to parquet:{self.place}: holds whole nights. Leave --since out, or use jobs.changes.")
        before, older = self._current()
        name = f"{changes.to}-{changes.to_run}"
        if before is not None and re.fullmatch(rf"{name}(-\d+)?", before):
            if not self.full:
                return 0
            name = f"{name}-{int(before[len(name) + 1 :] or 0) + 1}"
        self.store.delete_dir_contents(f"{self.root}/{name}", missing_dir_ok=True)
        rows = 0
        for part in parts_of(folder, "upserts"):
            write_file(self.place, f"{name}/{part.name}", part.read_bytes(), self.storage_options)
            rows += pq.read_metadata(part).num_rows
        stamp = {AS_OF: changes.to, RUN_ID: changes.to_run, "folder": name, "before": before}
        self._remove(older, but=name)  # before current.json forgets it
        self._say(stamp)
        if self.full:  # current.json names it until it is gone: who is killed here removes it the next time
            self._remove(before, but=name)
            self._say({**stamp, "before": None})
        return rows

    def _remove(self, name: str | None, *, but: str) -> None:
        if name not in (None, but) and self.store.get_file_info(f"{self.root}/{name}").type == pafs.FileType.Directory:
            self.store.delete_dir(f"{self.root}/{name}")

    def _say(self, stamp: Mapping[str, str | None]) -> None:
        write_file(self.place, CURRENT, (json.dumps(stamp) + "\n").encode(), self.storage_options)

    def _current(self) -> tuple[str | None, str | None]:
        """The folder that is current now, and the one before it."""
        path = f"{self.root}/{CURRENT}"
        if self.store.get_file_info(path).type == pafs.FileType.NotFound:
            return None, None
        with self.store.open_input_file(path) as file:
            told = json.loads(file.read())
        for folder in (told["folder"], told["before"]):
            if folder is not None and not re.fullmatch(OURS, folder):
                raise ValueError(f"{CURRENT} names {folder!r}, which no export made")
        return told["folder"], told["before"]


@contextmanager
def open_parquet(place: str, *, full: bool, storage_options: Mapping[str, str]) -> Iterator[ParquetTarget]:
    """The folder, path or URI, for a block; it is made where it is not there.

    Args:
        full: leave nothing of before.

    Raises:
        ConfigError: the folder cannot be made or written to.
        PublishError: the store fails, or current.json is not ours.
    """
    check_folders(**{"--to": place})
    try:
        yield ParquetTarget(place, storage_options, full=full)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PublishError(f"--to parquet:{place}: cannot take the lists: {one_line(error)}. Mend that, and run again.") from error
