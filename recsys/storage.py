"""Files, here or in an object store, written whole or not at all; and digests, by which work is named."""

import functools
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel

from recsys.errors import ConfigError

RETRY = pafs.AwsStandardS3RetryStrategy(max_attempts=5)  # with pauses of up to 1, 2, 4 and 8 s; a wrong endpoint is told after that


def filesystem(location: str, storage_options: Mapping[str, str]) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system of a path or URI, and the path within it; a plain path becomes absolute.

    Raises:
        ConfigError: a scheme that is not known, or an option the store does not take.
    """
    if "://" not in location:
        return pafs.LocalFileSystem(), str(Path(location).absolute())
    unknown = sorted(storage_options.keys() - {"region", "endpoint"})
    if unknown:
        raise ConfigError(f"{location}: storage_options may be region and endpoint, got '{unknown[0]}'. Put it in the environment.")
    if location.startswith("s3://") and storage_options:
        endpoint = urlsplit(storage_options.get("endpoint", ""))
        store = pafs.S3FileSystem(
            region=storage_options.get("region"),
            endpoint_override=endpoint.netloc or None,
            scheme=endpoint.scheme or None,
            retry_strategy=RETRY,
        )
        return store, location.removeprefix("s3://").rstrip("/")
    try:
        store, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{location}: cannot be opened: {error}. Check the URI.") from error
    if isinstance(store, pafs.S3FileSystem) and "?" not in location:
        store = pafs.S3FileSystem(region=store.region, retry_strategy=RETRY)
    return store, root.rstrip("/")


def delta_location(path: str, storage_options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """A Delta table's root and the options as deltalake takes them."""
    if "://" not in path:
        return str(Path(path).absolute()), {}
    names = {"region": "aws_region", "endpoint": "aws_endpoint"}
    options = {names[key]: value for key, value in storage_options.items()}
    if storage_options.get("endpoint", "").startswith("http://"):
        options["aws_allow_http"] = "true"
    return path, options


def absolute(location: str) -> str:
    """The location as it is named from any folder, without links; a URI as it stands."""
    return location if "://" in location else str(Path(location).resolve())


def check_folders(**folders: str) -> None:
    """Refuse folders that cannot be made or written to, so that this is said before the work; nothing is left behind.

    Args:
        folders: path or URI by the setting's name, with `_` for its dot; URIs are passed over.

    Raises:
        ConfigError: a file stands in the way, or the disk or its permissions do.
    """
    wrong: list[str] = []
    for setting, folder in folders.items():
        if "://" in folder:
            continue
        there = Path(folder).absolute()
        try:
            while not os.path.lexists(there):
                there = there.parent
            with tempfile.TemporaryDirectory(dir=there, prefix=".recsys-"):
                pass
        except OSError as error:
            name = setting.replace("_", ".")
            wrong.append(
                f"{name} = {folder}: must be a folder that can be made and written to, got: {error.strerror}, at {there}. "
                f"Mend what stands there, or set {name} to another folder."
            )
    if wrong:
        raise ConfigError(*wrong)


def write_file(path: str, name: str, content: bytes, storage_options: Mapping[str, str]) -> None:
    """A file below a folder, path or URI, there whole or not at all."""
    store, root = filesystem(path, storage_options)
    if not isinstance(store, pafs.LocalFileSystem):
        with store.open_output_stream(f"{root}/{name}") as stream:  # an object appears when its upload completes
            stream.write(content)
        return

    def synced(file: Path) -> None:
        with file.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    write_atomically(Path(root) / name, synced)


def list_files(folder: str, storage_options: Mapping[str, str]) -> list[str]:
    """The files of a folder, path or URI, by name; those that start with `.` are passed over. None where there is no folder."""
    store, root = filesystem(folder, storage_options)
    found = store.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted(entry.base_name for entry in found if entry.type == pafs.FileType.File and not entry.base_name.startswith("."))


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of a value's canonical JSON; settings sections are taken by `Section.identity`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", context={"identity": True})
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


@functools.cache
def code_digest() -> str:
    """Digest of the package's source: work made by other code is never taken for ours."""
    root = Path(__file__).parent
    return digest({str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))})


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


def write_json(path: Path, value: Any) -> None:
    """A JSON file, on disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, default=_plain, indent=1)
        file.flush()
        os.fsync(file.fileno())


def write_arrow(table: pa.Table, path: Path) -> None:
    """An uncompressed Arrow file, which every worker of a node maps into memory and shares."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
