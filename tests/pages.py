"""The report's page as tests read it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Opened(NamedTuple):
    """What a browser made of a page."""

    said: list[str]
    """Lines of its console, addresses that it asked for, and pictures that it could not show."""
    tables: dict[str, list[list[str]]]
    """The cells of each table's body."""
    status: str
    """The words at the top."""
    width: int
    """Pixels that the page needs."""


Opener = Callable[[Path], Opened]


def cells(html: str, table: str) -> list[list[str]]:
    """The cells of a table's body as the HTML says them, tags and entities left in."""
    (body,) = re.findall(rf'<table id="{table}".*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)]
