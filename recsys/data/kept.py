"""What was found in each row group of an input, kept in run.work with the file's identity: what did not change is not read again."""

import functools
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recsys.data.inputs import FOOTERS, File, Input, batches
from recsys.data.types import check_text, family, is_list, readable
from recsys.storage import check_folders, code_digest, digest, write_atomically, write_json


class Kept:
    """What was found in the row groups of inputs: one JSON file in run.work/inputs for each input and question.

    Nothing is written before `save`, so a command that is refused leaves nothing behind.
    """

    def __init__(self, work: str) -> None:
        """With run.work."""
        self.folder = Path(work) / "inputs"
        self.unsaved: dict[Path, dict[str, Any]] = {}
        """Files to be written, whole: entries of row groups that are gone, or were written again since, are not among them."""

    def of_row_groups(
        self, source: Input, what: str, groups: Iterable[tuple[File, int]], find: Callable[[File, int], Any]
    ) -> list[Any]:
        """What `find` makes of each row group, in their order; by threads, where this code did not find it in the same file before.

        Args:
            what: the question, everything that the answer depends on beside the file.
            find: gives what JSON can hold.

        Raises:
            As `find`.
        """
        path = self.folder / f"{digest([source.setting, what, code_digest()])}.json"
        known = _load(path)
        asked = {f"{file.name} {number} of {file.size} bytes, {file.modified_ns}": (file, number) for file, number in groups}
        missing = [key for key in asked if key not in known]
        if missing:
            with ThreadPoolExecutor(FOOTERS) as pool:
                found = dict(zip(missing, pool.map(find, *zip(*(asked[key] for key in missing), strict=True)), strict=True))
            known = self.unsaved[path] = {key: known[key] if key in known else found[key] for key in asked}
        return [known[key] for key in asked]

    def check_utf8(self, source: Input, columns: Iterable[str]) -> None:
        """Nothing, where the text in those columns is UTF-8; text files were checked when it was opened.

        Args:
            columns: absent ones are passed over, as are those without text.

        Raises:
            DataError: some text is not, or a file cannot be read.
        """
        texts = [name for name in dict.fromkeys(columns) if name in source.columns and _is_text(source, name)]
        if source.is_text or not texts:
            return

        def find(file: File, number: int) -> int:
            rows = 0
            for batch in batches(source, file.path, [number], texts):
                rows += batch.num_rows
                for name in texts:
                    with readable(file.path, name):
                        check_text(batch.column(name))
            return rows

        groups = [(file, number) for file in source.files for number in range(file.row_groups)]
        self.of_row_groups(source, f"text of {', '.join(texts)}", groups, find)

    def save(self) -> None:
        """Keep what is new. Two commands that keep at once write the same.

        Raises:
            ConfigError: there is no folder to write to.
        """
        if self.unsaved:
            check_folders(run_work=str(self.folder))
        for path, known in self.unsaved.items():
            write_atomically(path, functools.partial(write_json, value=known))
        self.unsaved = {}


def _load(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged; what it held can be found again
        return {}
    return known if isinstance(known, dict) else {}


def _is_text(source: Input, name: str) -> bool:
    dtype = source.columns[name]
    return family(dtype.value_type if is_list(dtype) else dtype) == "string"
