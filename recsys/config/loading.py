"""A TOML file -> settings, or each mistake in a sentence."""

import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from recsys.config.rules import AnyRule
from recsys.config.settings import PairsSettings, Settings
from recsys.errors import ConfigError

Door = TypeVar("Door", bound=BaseModel)


def load(path: str | Path) -> Settings:
    """The shop door's settings, of one TOML file.

    Raises:
        ConfigError: no such file, not TOML, the other door's, an unknown key, a missing one, or a value that is not allowed.
    """
    return _load(path, Settings, "shop", other="pairs")


def load_pairs(path: str | Path) -> PairsSettings:
    """As `load`, of the pairs door."""
    return _load(path, PairsSettings, "pairs", other="shop")


def load_either(path: str | Path) -> Settings | PairsSettings:
    """As `load`, of the door that the file is for: one with a section [pairs] is the pairs door's.

    Raises:
        ConfigError: as `load`; or the file has both doors' sections, or neither.
    """
    values = _read(path)
    if "pairs" in values and "shop" in values:
        raise ConfigError(f"{path}: must have a section [shop] or a section [pairs], got both. Write a file for each.")
    if "pairs" not in values and "shop" not in values:
        raise ConfigError(f"{path}: must have a section [shop] or a section [pairs], got neither. Add the one of the door you use.")
    return load_pairs(path) if "pairs" in values else load(path)


def _load(path: str | Path, door: type[Door], section: str, *, other: str) -> Door:
    values = _read(path)
    if other in values and section not in values:
        raise ConfigError(f"{path}: must have a section [{section}], got [{other}]. Pass the settings file of the {section} door.")
    try:
        return door.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*(f"{path}: {_sentence(mistake, door)}" for mistake in error.errors())) from error


def _read(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such settings file. Pass --config with the path of a TOML file.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be UTF-8, got other bytes: {error}. Save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}. Mend that place.") from error


def _sentence(mistake: ErrorDetails, door: type[BaseModel]) -> str:
    """A mistake of a failed validation in words."""
    place = mistake["loc"]
    in_rule = place[:1] == ("rules",)
    if in_rule:
        place = (*place[:2], *place[3:])  # without the kind, which pydantic puts there
    key = ".".join(str(part) for part in place)
    match mistake["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = ", ".join(get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(AnyRule))
            return f"key '{key}.kind' must be one of {kinds}, got {mistake['input'].get('kind')!r}. Mend it."
        case "value_error" if in_rule:
            return f"{key}: {mistake['msg'].removeprefix('Value error, ')}."
        case "extra_forbidden":
            return f"unknown key '{key}'. Known here: {', '.join(_section(door, mistake['loc'][:-1]).model_fields)}."
        case "missing":
            return f"key '{key}' is missing. Add it."
        case "value_error":
            return f"{mistake['msg'].removeprefix('Value error, ')}."
        case "secret":  # what was written is not shown
            return f"key '{key}': {mistake['msg']}."
        case _:
            return f"key '{key}': {mistake['msg'][0].lower()}{mistake['msg'][1:]}, got {mistake['input']!r}."


def _section(door: type[BaseModel], path: tuple[int | str, ...]) -> Any:
    """The section at a path of names."""
    section: Any = door
    for name in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(name)].annotation
        elif isinstance(name, int):  # of an array
            section = get_args(section)[0]
        elif get_origin(section) is Annotated:  # a rule by its kind
            section = next(kind for kind in get_args(AnyRule) if get_args(kind.model_fields["kind"].annotation) == (name,))
        else:  # a section by a name of the user's
            section = get_args(section)[-1]
        if isinstance(section, UnionType):  # a section or none
            section = get_args(section)[0]
    return section
