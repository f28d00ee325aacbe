"""What was found in each row group of an input, kept in run.work with the file's identity: what did not change is not read again."""

import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recsys.data.inputs import FOOTERS, File, Input, batches
from recsys.data.types import check_text, family, is_list, readable
from recsys.storage import check_folders, code_digest, digest, write_atomically, write_json

log = logging.getLogger("recsys")


def of_row_groups(
    source: Input, what: str, groups: Iterable[tuple[File, int]], find: Callable[[File, int], Any], *, work: str
) -> list[Any]:
    """What `find` makes of each row group, in their order; made by some threads at once, where it was not made of the same file before.

    What this version of the code found lies in run.work, one JSON file for each input and question. Entries of files that are gone,
    or were written again since, go with the next one that is new. Two commands that keep at once make the same entries.

    Args:
        what: the question, everything that the answer depends on beside the file.
        find: gives what JSON can hold.
        work: run.work.

    Raises:
        ConfigError: what is found cannot be kept there. And as `find`; what was found before it is lost.
    """
    path = Path(work) / "inputs" / f"{digest([source.location, what, code_digest()])}.json"
    known = _load(path)
    asked = {f"{file.path} {number} of {file.size} bytes, {file.modified_ns}": (file, number) for file, number in groups}
    missing = [key for key in asked if key not in known]
    if missing:
        check_folders(run_work=str(path.parent))
        with ThreadPoolExecutor(FOOTERS) as pool:
            found = dict(zip(missing, pool.map(find, *zip(*(asked[key] for key in missing), strict=True)), strict=True))
        known = {key: known[key] if key in known else found[key] for key in asked}
        write_atomically(path, lambda temporary: write_json(temporary, known))
        log.info("%s: %s read from %s of %s row groups", source.setting, what, f"{len(missing):,}", f"{len(asked):,}")
    return [known[key] for key in asked]


def _load(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged; what it held can be found again
        return {}
    return known if isinstance(known, dict) else {}


def check_utf8(source: Input, columns: Iterable[str], *, work: str) -> None:
    """Nothing, where the text in those columns is UTF-8; a CSV was checked when it was opened.

    Args:
        columns: absent ones are passed over, as are those without text.
        work: run.work, where it is kept which files are right.

    Raises:
        DataError: some text is not, or a file cannot be read.
    """
    texts = [name for name in dict.fromkeys(columns) if name in source.columns and _is_text(source, name)]
    if source.csv or not texts:
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
    of_row_groups(source, f"text of {', '.join(texts)}", groups, find, work=work)


def _is_text(source: Input, name: str) -> bool:
    dtype = source.columns[name]
    return family(dtype.value_type if is_list(dtype) else dtype) == "string"
