"""Which files an input consists of: those of a folder, or those that a Delta table's log names; what is left out, counted by reason."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from recsys.data.files import Form, Found, Listing
from recsys.data.iceberg import iceberg_files
from recsys.errors import DataError
from recsys.storage import delta_location

PARQUET = re.compile(r"\.(parquet|parq|pq)(\.(snappy|gz|zst|zstd|lz4|br|brotli))?$", re.IGNORECASE)
ENDINGS: Mapping[Form, re.Pattern[str]] = {
    "parquet": PARQUET,
    "csv": re.compile(r"\.(csv|tsv)(\.(gz|bz2|zst|lz4))?$", re.IGNORECASE),
    "json": re.compile(r"\.(jsonl|ndjson|json)(\.(gz|bz2|zst|lz4))?$", re.IGNORECASE),
}
SUFFIXES: Mapping[Form, str] = {"parquet": ".parquet", "csv": ".csv", "json": ".jsonl"}
METADATA = ".metadata.json"
NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive, Spark and Delta write a null into a path
# A log can be read rightly with these; the other features change what the files mean.
READER_FEATURES = {"timestampNtz", "vacuumProtocolCheck", "v2Checkpoint", "deletionVectors", "columnMapping"}


def list_input(
    setting: str,
    location: str,
    store: pafs.FileSystem,
    path: str,
    storage_options: Mapping[str, str],
    *,
    form: Form | None,
    version: int | None = None,
) -> Listing:
    """The files of the input at a path or URI.

    A file is read whatever its ending, as Parquet where that says nothing else. Of a folder the files of known endings are, in
    subfolders too; names that start with `.` or `_` are left out, as are files of no bytes with other endings, and links to what is
    read already. A subfolder NAME=VALUE gives the column NAME.

    Args:
        form: of the files; None, what their endings say.
        version: of a Delta table, or a snapshot's id of an Iceberg table; None, the newest.

    Raises:
        DataError: nothing there, files of several forms, a file of an unknown ending, a broken link, or a table format whose log cannot
            be read rightly.
    """
    try:
        info = store.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{location}: no such file or folder. Check {setting}; relative paths start where the command runs.")
        metadata = info.path if info.base_name.endswith(METADATA) else _newest_metadata(location, store, path, info)
        if metadata is not None:
            return iceberg_files(setting, location, metadata, path, storage_options, version=version)
        is_delta = store.get_file_info(f"{path}/_delta_log").type == pafs.FileType.Directory
        if version is not None and not is_delta:
            raise DataError(f"{location}: shop.versions needs a Delta or an Iceberg table, got files. Remove it there.")
        if info.type == pafs.FileType.File:
            form = form or _form_of(info.path, list(ENDINGS)) or "parquet"
            return Listing((Found(info.path, info.base_name, info.size, info.mtime_ns or 0),), form=form)
        if is_delta:
            if form == "csv":
                raise DataError(f"{location}: must be CSV, got a Delta table. Set pairs.format to 'parquet', or check {setting}.")
            return _delta_files(setting, location, path, storage_options, version=version)
        parent = PurePosixPath(path)
        while "=" in parent.name:
            parent = parent.parent
            if store.get_file_info(f"{parent}/_delta_log").type == pafs.FileType.Directory:
                raise DataError(
                    f"{location}: is a part of the Delta table {parent}, whose log alone says what is in it. Name the table."
                )
        return _folder_files(setting, location, store, path, list(ENDINGS) if form is None else [form])
    except OSError as error:
        raise DataError(f"{location}: cannot be reached: {error}. Check {setting} and the credentials.") from error


def _newest_metadata(location: str, store: pafs.FileSystem, path: str, info: pafs.FileInfo) -> str | None:
    """The newest metadata file, by the number in its name, of an Iceberg table that lies in the folder; None where none does.

    Raises:
        DataError: several are the newest: a catalog knows which.
    """
    if info.type != pafs.FileType.Directory or store.get_file_info(f"{path}/metadata").type != pafs.FileType.Directory:
        return None
    files = [entry.path for entry in store.get_file_info(pafs.FileSelector(f"{path}/metadata")) if entry.path.endswith(METADATA)]
    numbers = {file: int(found[1]) for file in files if (found := re.match(r"v?(\d+)", PurePosixPath(file).name))}
    if not numbers:
        return None
    newest = [file for file, number in numbers.items() if number == max(numbers.values())]
    if len(newest) > 1:
        raise DataError(f"{location}: has {len(newest)} newest metadata files, of which its catalog knows the one. Name that file.")
    return newest[0]


def _form_of(path: str, forms: Sequence[Form]) -> Form | None:
    """That of the forms which the path's ending says."""
    return next((form for form in forms if ENDINGS[form].search(path)), None)


def _folder_files(setting: str, location: str, store: pafs.FileSystem, root: str, forms: Sequence[Form]) -> Listing:
    suffix, many = (" or ".join(f"{begin}{SUFFIXES[form]}" for form in forms) for begin in ("", "*"))
    seen: dict[Form, str] = {}
    left_out = Counter[str]()
    hidden: set[str] = set()
    read: list[Found] = []
    keys: list[Mapping[str, str | None]] = []
    unknown: list[str] = []
    local = isinstance(store, pafs.LocalFileSystem)
    for path, size, modified_ns in sorted(_walk(root, hidden, left_out) if local else _listed(store, root, hidden)):
        if said := _form_of(path, forms):
            seen.setdefault(said, path)
            read.append(Found(path, path.removeprefix(root).strip("/"), size, modified_ns))
            keys.append(_in_path(path.removeprefix(root)))
        elif size == 0:
            left_out["empty"] += 1
        else:
            unknown.append(path)
    for path in hidden:
        if (name := PurePosixPath(path).name) in ("_delta_log", ".hoodie"):
            table = "Delta" if name == "_delta_log" else "Hudi"
            where = PurePosixPath(path).parent
            step = f"Name it in {setting}" if table == "Delta" else f"Export it as Parquet, and name that in {setting}"
            raise DataError(f"{where}: is a {table} table, whose files cannot be read without its log. {step}.")
    if hidden:
        left_out["hidden"] = len(hidden)
    if unknown:
        raise DataError(
            f"{unknown[0]}: must end in {suffix} to be read as a part of {setting} ({len(unknown)} such file(s)). "
            "Rename it, move it away, or let its name start with _ to leave it out."
        )
    if len(seen) > 1:
        one, other = list(seen.values())[:2]
        raise DataError(f"{location}: files must be of one form, got {one} and {other}. Move those of one form away from {setting}.")
    if not read:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))
        raise DataError(f"{location}: the folder has no {many} file{f' (left out: {counts})' if counts else ''}. Check {setting}.")
    types: dict[str, pa.DataType] = {}
    values: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys(name for mine in keys for name in mine):
        types[name], values[name] = _typed({text for mine in keys if (text := mine.get(name)) is not None})
    files = [
        replace(one, partition={name: None if text is None else values[name][text] for name, text in mine.items()})
        for one, mine in zip(read, keys, strict=True)
    ]
    return Listing(tuple(files), types, dict(left_out), next(iter(seen)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)  # _kind=view is a column's value, as Spark reads it


def _walk(root: str, hidden: set[str], left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of each file of a local folder; links are followed, last, and no folder or file is met twice."""
    met: set[str] = set()
    links: list[str] = []
    files: list[str] = []

    def enter(folder: str) -> None:
        real = os.path.realpath(folder)
        if real in met:
            left_out["linked twice"] += 1
            return
        met.add(real)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _is_hidden(entry.name):
                    hidden.add(entry.path)
                elif entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    enter(entry.path)
                else:
                    files.append(entry.path)

    enter(root)
    linked: list[str] = []
    while links:
        link = links.pop(0)
        if Path(link).is_dir():
            enter(link)
        elif Path(link).exists():
            linked.append(link)
        else:
            raise DataError(f"{link}: is a link to what is not there, {Path(link).readlink()}. Mend or remove it.")
    if linked:
        reals = {os.path.realpath(file) for file in files}
        for link in linked:
            real = os.path.realpath(link)
            if real in reals:
                left_out["linked twice"] += 1
            else:
                reals.add(real)
                files.append(link)
    for file in files:
        stat = Path(file).stat()
        yield file, stat.st_size, stat.st_mtime_ns


def _listed(store: pafs.FileSystem, root: str, hidden: set[str]) -> Iterator[tuple[str, int, int]]:
    """What `_walk` tells, of an object store, which has no links."""
    for entry in store.get_file_info(pafs.FileSelector(root, recursive=True)):
        parts = entry.path.removeprefix(root).strip("/").split("/")
        first = next((number for number, part in enumerate(parts) if _is_hidden(part)), None)
        if first is not None:
            hidden.add(f"{root}/{'/'.join(parts[: first + 1])}")
        elif entry.type == pafs.FileType.File:
            yield entry.path, entry.size, entry.mtime_ns or 0


def _in_path(path: str) -> Mapping[str, str | None]:
    """Name -> value as text of the folders NAME=VALUE of a path, as Hive and Spark write them."""
    pairs = [part.partition("=") for part in path.split("/")[:-1] if "=" in part.strip("=")]
    return {unquote(name): None if value in ("", NULL) else unquote(value) for name, _, value in pairs}


def _typed(texts: set[str]) -> tuple[pa.DataType, Mapping[str, Any]]:
    """The narrowest type that keeps every text as it is written, and each text's value: `01` is a word, as 1 would be another."""
    if not texts:
        return pa.null(), {}
    if all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in texts):
        return pa.int64(), {text: int(text) for text in texts}
    if texts <= {"true", "false"}:
        return pa.bool_(), {text: text == "true" for text in texts}
    try:
        if all(re.fullmatch(r"\d{4}-\d\d-\d\d", text) for text in texts):
            return pa.date32(), {text: date.fromisoformat(text) for text in texts}
        if all(re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?", text) for text in texts):
            return pa.timestamp("us"), {text: datetime.fromisoformat(text) for text in texts}
    except ValueError:  # the 30th of February
        pass
    return pa.string(), {text: text for text in texts}


def _delta_files(setting: str, location: str, path: str, storage_options: Mapping[str, str], *, version: int | None) -> Listing:
    """The files of a version of a Delta table, the newest where none is named.

    Raises:
        DataError: the log cannot be read, or the files alone do not say what the rows are.
    """
    uri, options = delta_location(location if "://" in location else path, storage_options)
    try:
        table = DeltaTable(uri, version=version, storage_options=options)
        features = set(table.protocol().reader_features or ())
        odd = sorted(features - READER_FEATURES)
        if odd:
            raise DataError(f"{location}: the Delta table needs '{odd[0]}', which cannot be read. Write it without, or export it.")
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            raise DataError(
                f"{location}: the Delta table maps column names (delta.columnMapping.mode), which cannot be read. Copy it without."
            )
        if "deletionVectors" in features and _has_deletion_vectors(table):
            raise DataError(
                f"{location}: the Delta table has deletion vectors, which cannot be read. "
                "Run REORG TABLE … APPLY (PURGE) and turn delta.enableDeletionVectors off."
            )
        schema = pa.schema(table.schema().to_arrow())
        columns: Sequence[str] = table.metadata().partition_columns
        actions = pa.table(table.get_add_actions(flatten=True)).sort_by("path").to_pylist()
    except (DeltaError, OSError) as error:
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m|\u21b3", "", str(error)).split())
        raise DataError(f"{location}: cannot be read as a Delta table: {said}. Check {setting} and the credentials.") from error
    files: list[Found] = []
    for action in actions:
        name = unquote(action["path"])
        if "://" in name or name.startswith("/"):
            raise DataError(
                f"{location}: the Delta table names a file outside its folder, {name}, as a shallow clone. Make it a deep one."
            )
        partition = {column: action[f"partition.{column}"] for column in columns}
        files.append(Found(f"{path}/{name}", name, action["size_bytes"], action["modification_time"] * 1_000_000, partition))
    return Listing(tuple(files), {column: schema.field(column).type for column in columns}, {}, schema=schema)


def _has_deletion_vectors(table: DeltaTable) -> bool:
    try:
        return pa.table(table.deletion_vectors()).num_rows > 0
    except (DeltaError, OSError):  # there is one, and it cannot be read
        return True
