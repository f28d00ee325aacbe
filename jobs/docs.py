"""The reference of the settings, docs/settings.md, written from the settings classes."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import jinja2
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs import job, main
from recsys.config import PairsSettings, Range, Settings
from recsys.config.paths import local_path
from recsys.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
WIDTH = 136
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
BOUNDS = ((Gt, "gt", "above {:g}"), (Ge, "ge", "at least {:g}"), (Lt, "lt", "below {:g}"), (Le, "le", "at most {:g}"))
TEMPLATE = """\
# Settings

    python -m jobs.docs --check      # does this page say what the settings classes say?

`make docs` writes this page from the classes of `recsys/config/`; do not edit it by hand. One TOML file holds all settings of one shop.
A file with `[shop]` is for the shop door, one with `[pairs]` for feature rows. Only `shop.events`, or `pairs.path`, has to be set. A
key that is not on this page is refused, and so is a value of another type, before any work starts. A path is a URI, an absolute path,
or relative to the folder that the command runs in.
{% for door in doors %}

## {{ door.title }}

{{ door.about }}
{% for section in door.sections %}

### {{ section.title }}

{{ section.about }}
{% for key in section.keys %}
{{ "\n" if loop.first }}* `{{ key.name }}`: {{ key.kind }}; {{ key.default }}.
{% if key.about %}
{{ key.about }}
{% endif %}
{% endfor %}
{% endfor %}
{% endfor %}
"""


class Key(NamedTuple):
    """One key of a section, in words."""

    name: str
    kind: str
    default: str
    about: str


class Part(NamedTuple):
    """One section of the file, with the keys that are told of it."""

    title: str
    about: str
    keys: list[Key]


class Door(NamedTuple):
    """The sections of one door's file."""

    title: str
    about: str
    sections: list[Part]


def docs(
    out: Annotated[Path, typer.Option(help="The page.", parser=local_path, metavar="PATH")] = PAGE,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 where the page is stale.")] = False,
) -> None:
    """The reference of the settings, docs/settings.md, written from the settings classes."""
    with job():
        text = page()
        if check and (not out.is_file() or out.read_text(encoding="utf-8") != text):
            raise ConfigError(f"{out}: is not what the settings classes say. Run `make docs`.")
        if not check:
            out.write_text(text, encoding="utf-8")
        print(out)


def page() -> str:
    """The whole page, as Markdown."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)  # Markdown: nothing to escape
    return environment.from_string(TEMPLATE).render(doors=_doors()).rstrip() + "\n"


def sections() -> list[Part]:
    """Every section of both files, each told once."""
    return [part for door in _doors() for part in door.sections]


def _doors() -> list[Door]:
    shop = list(_parts(Settings, ""))
    told = {part.title: part for part in shop}
    # what both files have is told once: of the second only the keys that differ
    pairs = [_differing(part, told[part.title]) if part.title in told else part for part in _parts(PairsSettings, "")]
    also = "Sections that both files have are as above; here stand only the keys that differ."
    return [
        Door("The shop's file", _paragraphs(Settings), shop),
        Door("The file of feature rows", f"{_paragraphs(PairsSettings)} {also}", [part for part in pairs if part.keys]),
    ]


def _differing(part: Part, other: Part) -> Part:
    return part._replace(keys=[key for key in part.keys if key not in other.keys])


def _parts(section: type[BaseModel], path: str, defaults: BaseModel | None = None, title: str = "") -> Iterator[Part]:
    """A section's part and those of the sections within it, in the order of the file; of the file itself only the latter."""
    keys: list[Key] = []
    within: list[Part] = []
    for name, field in section.model_fields.items():
        default = getattr(defaults, name) if defaults is not None else field.default
        place = f"{path}.{name}" if path else name
        about = field.description or ""
        models = [kind for kind in _leaves(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(models) > 1:  # an array of rules, each of its kind
            within.append(Part(f"[[{place}]]", _wrapped(about), []))
            for model in models:
                (kind,) = get_args(model.model_fields["kind"].annotation)
                within += (part for part in _parts(model, place, title=f'[[{place}]] with kind = "{kind}"') if part not in within)
        elif models:
            named = get_origin(field.annotation) is dict  # by a name of the user's
            within += _parts(models[0], f"{place}.NAME" if named else place, default if isinstance(default, BaseModel) else None)
        elif name == "tune":
            space = [Key(key, "a list of choices or a range", f"default `{_toml(value)}`", "") for key, value in default.items()]
            within += [Part(f"[{place}]", _wrapped(about), space), *_parts(Range, f"{place}.KEY")]
        elif not (title and name == "kind"):  # which the title says
            about = textwrap.indent(_wrapped(about, WIDTH - 2), "  ")
            keys.append(Key(name, _kind(field.annotation, field.metadata), _default(field, default), about))
    if path:
        yield Part(title or f"[{path}]", _paragraphs(section), keys)
    yield from within


def _leaves(annotation: Any) -> Iterator[Any]:
    """Every type inside of an annotation."""
    if get_origin(annotation) is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif get_origin(annotation) not in (None, Literal):
        for inner in get_args(annotation):
            yield from _leaves(inner)
    else:
        yield annotation


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What values a key takes, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [part for extra in inner[1:] for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one, metadata) for one in inner if one is not NoneType)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"a list of {_kind(inner[0]).removeprefix('a ').replace('number', 'numbers')}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {_kind(inner[0])}"
    if origin is dict:
        return f"a table of names and {'texts' if inner[1] is str else 'whole numbers'}"
    bounds = [words.format(getattr(bound, field)) for kind, field, words in BOUNDS for bound in metadata if isinstance(bound, kind)]
    return " ".join([WORDS[annotation], " and ".join(bounds)]).strip()


def _default(field: FieldInfo, default: Any) -> str:
    if field.is_required():
        return "has to be set"
    return "absent if not set" if default is None else f"default `{_toml({} if field.default_factory is not None else default)}`"


def _toml(value: Any) -> str:
    """A value as the file spells it."""
    if isinstance(value, Range):
        return f"{{low = {value.low:g}, high = {value.high:g}{', log = true' if value.log else ''}}}"
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else str(value)
    return json.dumps(value)


def _paragraphs(section: type[BaseModel]) -> str:
    return "\n\n".join(_wrapped(paragraph) for paragraph in textwrap.dedent(section.__doc__ or "").split("\n\n"))


def _wrapped(text: str, width: int = WIDTH) -> str:
    return textwrap.fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main(docs)
