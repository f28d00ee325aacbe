"""What pages are put together from: sections of tables and plots, and numbers in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    name: str
    """Unique on the page, for links and tests."""
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    """Columns from the left that are words; the others are numbers, unless `all_words`."""
    all_words: bool = False
    marked: Sequence[int] = ()
    """Rows that stand out."""
    folded: bool = False
    """Only the title is seen until it is opened."""


@dataclass(frozen=True)
class Plot:
    """A picture of the page."""

    title: str
    """What it shows, for those who cannot see it."""
    svg: str
    """As a data URI."""


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    title: str
    text: str
    parts: Sequence[Table | Plot]


def lay_out(template: str, **told: Any) -> str:
    """A page of a template beside this file; whatever a shop wrote is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(**told)


# Numbers in words ---------------------------------------------------------------------------------------------------------------


def count_text(value: int | None) -> str:
    """As in `1,234`; - for None."""
    return NONE if value is None else f"{value:,}"


def number_text(value: float | None, digits: int = 4) -> str:
    """As in `0.1234`; - for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def share_text(value: float | None) -> str:
    """As in `12.3%`; - for None."""
    return NONE if value is None else f"{value:.1%}"


def interval_text(value: float | None, bounds: Sequence[float] | None) -> str:
    """As in `0.547 [0.537, 0.556]`."""
    if value is None:
        return NONE
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")
