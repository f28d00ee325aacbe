"""[tune]: what a search draws from."""

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import PlainValidator, ValidationError, ValidationInfo

from recsys.config.section import Section
from recsys.config.training import Model


class Range(Section):
    """A range that a search draws from, both ends included: { low = …, high = … }."""

    low: float
    """The smallest."""
    high: float
    """The largest."""
    log: bool = False
    """Draw evenly over the logarithms instead of the numbers."""


ABSENT = "absent"  # a choice: the key is left out
WHOLE = ("max_embedding", "batch_size")  # ranges of them are of whole numbers
RANGED = (*WHOLE, "dropout", "learning_rate", "warmup_epochs", "momentum", "weight_decay", "l2", "clip_norm")
CHOSEN = ("hidden", "activation", "normalisation", "initialiser", "optimizer", "schedule", "class_weights")
# the others say how long or where a fit runs, or, as the loss does, what validation loss means
OF_LISTS = ("window", "signals", "candidates", "examples")  # what is learned from: no loss compares their values
COUNTED = "window.history_days"  # says which users have a history, and so which ones count

SPACE: dict[str, Range | tuple[Any, ...]] = {
    "learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "hidden": ((128, 64), (256, 128), (512, 256, 128)),
    "dropout": Range(low=0.0, high=0.5),
    "normalisation": (ABSENT, "batch"),
}


def _space(value: Any, info: ValidationInfo) -> Any:
    """What [tune] says, each value held against [model] and [train]."""
    if not {"model", "train"} <= info.data.keys():  # there is a mistake in them already
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"tune must be a section with a key at least, got {value!r}; add one or remove [tune]")
    space: dict[str, Range | tuple[Any, ...]] = {}
    for key, told in _flat(value, info.data):
        section, name = _section_of(key, info.data)
        if isinstance(told, dict):
            try:
                told = Range.model_validate(told)
            except ValidationError as error:
                raise ValueError(f"tune.{key}: {_first(error)}") from error
        if isinstance(told, Range):
            _check_range(key, told, section, name)
            space[key] = told
        elif isinstance(told, Sequence) and not isinstance(told, str) and len(told):
            for choice in told:
                absent = choice == ABSENT and type(section).model_fields[name].default is None
                _held_against(key, section, name, None if absent else choice)
            space[key] = tuple(told)
        else:
            raise ValueError(f"tune.{key} must be a list of choices or a range {{low, high, [log]}}, got {told!r}; mend it")
    return space


def _flat(value: Mapping[str, Any], sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and what it says, those of [tune.candidates] as candidates.KEY."""
    for key, told in value.items():
        if key not in sections or key not in OF_LISTS:
            yield key, told
        elif isinstance(told, Mapping) and told:
            yield from ((f"{key}.{name}", one) for name, one in told.items())
        else:
            raise ValueError(f"tune.{key} must be a section with a key at least, got {told!r}; add one or remove it")


def _section_of(key: str, sections: Mapping[str, Any]) -> tuple[Section, str]:
    """The section that a searched key is of, as it stands, and the key's name in it."""
    _, dot, name = key.rpartition(".")
    title = title_of(key)
    if key == COUNTED:
        raise ValueError(f"tune.{key}: it says which users have a history, so trials of it would count different users; remove it")
    known = [*RANGED, *CHOSEN, *(f"{title}.KEY" for title in OF_LISTS if title in sections)]
    if dot and title in OF_LISTS and title in sections:
        known = [f"{title}.{one}" for one in type(sections[title]).model_fields]
    if key not in known:
        raise ValueError(f"unknown key 'tune.{key}'. Known here: {', '.join(known)}")
    return sections[title], name


def title_of(key: str) -> str:
    """The title of the section that a searched key is of: "candidates" for candidates.popular, "model" for hidden."""
    title, dot, name = key.rpartition(".")
    return title if dot else "model" if name in Model.model_fields else "train"


def is_whole(section: type[Section], name: str) -> bool:
    """Whether a range of the key is of whole numbers."""
    return name in WHOLE or int in _types(section, name)


def _types(section: type[Section], name: str) -> tuple[Any, ...]:
    """What a key's values may be: of `float | None` both."""
    annotation = section.model_fields[name].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(get_args(one)[0] if get_origin(one) is Annotated else one for one in parts)


def needs_lists(space: Mapping[str, Any]) -> bool:
    """Whether trials are judged by their lists: a key changes what is learned from, so that losses do not compare."""
    return any("." in key for key in space)


def _check_range(key: str, told: Range, section: Section, name: str) -> None:
    if key not in RANGED and not {int, float} & set(_types(type(section), name)):
        raise ValueError(f"tune.{key}: a range is of numbers, {key} is none; list choices instead")
    if not told.low < told.high:
        raise ValueError(f"tune.{key}: low must be below high, got {told.low:g} and {told.high:g}; mend them")
    if told.log and not told.low > 0:
        raise ValueError(f"tune.{key}: low must be above 0 for log, got {told.low:g}; raise it or remove log")
    for end in (told.low, told.high):
        _held_against(key, section, name, int(end) if is_whole(type(section), name) and end == int(end) else end)


def _held_against(key: str, section: Section, name: str, value: Any) -> None:
    try:
        type(section).model_validate({**section.model_dump(exclude_unset=True), name: value})
    except ValidationError as error:
        raise ValueError(f"tune.{key}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first mistake in a few words."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    return f"'{'.'.join(map(str, first['loc']))}': {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}; mend it"


# of Range and tuples; to pydantic of anything, as the validator is ours
Space = Annotated[dict[str, Any], PlainValidator(_space)]
