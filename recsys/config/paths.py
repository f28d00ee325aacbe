"""Where things lie, in settings and on command lines: `~` is the home, file:// a path, and a scheme is one that can be taken there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator, PlainSerializer, SerializationInfo
from pydantic_core import PydanticCustomError

from recsys.errors import ConfigError

READ = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")  # that Arrow reads and writes
TABLE = ("s3", "gs", "abfs", "abfss")  # that deltalake writes as well


def _local(text: str) -> str:
    """A path on a disk; a file:// URI becomes one."""
    scheme = _scheme(text)
    if scheme == "file":
        host, slash, path = re.sub("^file:(//)?", "", text).partition("/")
        if host not in ("", "localhost") or not slash:
            raise _mistake("must be a path or file:///path, on no other machine")
        return f"/{unquote(path)}"
    if scheme is not None:
        raise _mistake("must be a path on a disk, which on a cluster every node mounts; only inputs and the table may be elsewhere")
    if not text.strip():
        raise _mistake("must be a path")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError as error:
        raise _mistake("must begin with the home of somebody, or with ./~ if that is a folder's name") from error


def _among(schemes: tuple[str, ...]) -> Callable[[str], str]:
    """A path on a disk, or a URI of one of the schemes as it stands."""

    def located(text: str) -> str:
        scheme = _scheme(text)
        if scheme in (None, "file"):
            return _local(text)
        if re.match(r"\w+://[^/]*:[^/]*@", text):
            raise PydanticCustomError("secret", "must name no user and no password, which come from the environment")
        if scheme not in schemes or not re.match(r"\w+://[^/]", text):
            raise _mistake(f"must be a path, or a URI of {', '.join(f'{name}://' for name in schemes)} with a bucket or a host")
        return text

    return located


def _scheme(text: str) -> str | None:
    """What stands before `:/`, as s3 in s3://bucket; None for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    return found[1] if found else None


def _mistake(what: str) -> PydanticCustomError:
    return PydanticCustomError("path", "{what}", {"what": what})


def _unless_identity(value: Any, info: SerializationInfo) -> Any:
    """A place says where the same things lie: of a section's identity it is no part, but that there is one is."""
    return type(value)() if info.context and info.context.get("identity") else value


_Place = PlainSerializer(_unless_identity)
LocalPath = Annotated[str, AfterValidator(_local), _Place]
"""A setting that must be on a disk."""
Location = Annotated[str, AfterValidator(_among(READ)), _Place]
"""A setting of what is read."""
TableLocation = Annotated[str, AfterValidator(_among(TABLE)), _Place]
"""A setting of the table."""
StorageOptions = Annotated[dict[str, str], _Place]
"""Options of the object store."""
Address = Annotated[str, _Place]
"""A setting of whom to tell."""


def local_path(text: str | Path) -> Path:
    """The path that an option names.

    Raises:
        ConfigError: it has a scheme other than file://, or nobody's home.
    """
    return Path(_of_option(_local, str(text)))


def location(text: str) -> str:
    """The path or URI that an option names.

    Raises:
        ConfigError: it has a scheme that cannot be taken, or nobody's home.
    """
    return _of_option(_among(READ), text)


def _of_option(read: Callable[[str], str], text: str) -> str:
    try:
        return read(text)
    except PydanticCustomError as error:
        seen = "" if error.type == "secret" else f", got '{text}'"  # what was written is not shown
        raise ConfigError(f"{error}{seen}. Name another path.") from error
