"""[tune]: what a search of [model] and [train] draws from."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationError, ValidationInfo

from recsys.config.section import Section


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
    model, train = info.data["model"], info.data["train"]
    space: dict[str, Range | tuple[Any, ...]] = {}
    for key, told in value.items():
        if key not in RANGED + CHOSEN:
            raise ValueError(f"unknown key 'tune.{key}'. Known here: {', '.join(RANGED + CHOSEN)}")
        section = model if key in type(model).model_fields else train
        if isinstance(told, dict):
            try:
                told = Range.model_validate(told)
            except ValidationError as error:
                raise ValueError(f"tune.{key}: {_first(error)}") from error
        if isinstance(told, Range):
            _check_range(key, told, section)
            space[key] = told
        elif isinstance(told, Sequence) and not isinstance(told, str) and len(told):
            for choice in told:
                absent = choice == ABSENT and type(section).model_fields[key].default is None
                _held_against(section, key, None if absent else choice)
            space[key] = tuple(told)
        else:
            raise ValueError(f"tune.{key} must be a list of choices or a range {{low, high, [log]}}, got {told!r}; mend it")
    return space


def _check_range(key: str, told: Range, section: Section) -> None:
    if key not in RANGED:
        raise ValueError(f"tune.{key}: a range is of numbers, {key} is none; list choices instead")
    if not told.low < told.high:
        raise ValueError(f"tune.{key}: low must be below high, got {told.low:g} and {told.high:g}; mend them")
    if told.log and not told.low > 0:
        raise ValueError(f"tune.{key}: low must be above 0 for log, got {told.low:g}; raise it or remove log")
    for end in (told.low, told.high):
        _held_against(section, key, int(end) if key in WHOLE and end == int(end) else end)


def _held_against(section: Section, key: str, value: Any) -> None:
    try:
        type(section).model_validate({**section.model_dump(exclude_unset=True), key: value})
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
