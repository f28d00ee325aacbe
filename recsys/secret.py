"""Values that do not belong into a settings file: read from the environment or from a file, and never shown."""

import os
from pathlib import Path

from recsys.errors import ConfigError


def secret(*, key: str, variable: str | None, file: str | None) -> str | None:
    """The value of an environment variable, or what a file holds, without the white space around it; None where neither is named.

    Args:
        key: of the settings, for messages; `key`_env names the variable, `key`_file the file.

    Raises:
        ConfigError: the variable is not set, the file cannot be read, or there is nothing in it.
    """
    if variable is not None:
        value, where = os.environ.get(variable, "").strip(), f'{key}_env = "{variable}": the environment variable'
        seen, todo = "an empty one" if variable in os.environ else "none", "Export it where the job's driver runs"
    elif file is not None:
        where, seen, todo = f'{key}_file = "{file}": the file', "an empty one", "Put the value there"
        try:
            value = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            value, seen = "", str(getattr(error, "strerror", None) or "other bytes than UTF-8")
    else:
        return None
    if not value:
        raise ConfigError(f"{where} must hold a value, got {seen}. {todo}.")
    return value
