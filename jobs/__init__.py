"""Verbs, `python -m jobs.NAME`: each parses its arguments, calls the package, and reports; no logic."""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import RecsysError

Config = Annotated[Path, typer.Option("--config", help="The settings, a TOML file.")]
AsOf = Annotated[
    datetime,
    typer.Option("--as-of", formats=["%Y-%m-%d"], help="What was known before this day, 00:00 UTC; no event from then on is used."),
]
ShopAsOf = Annotated[
    datetime | None,
    typer.Option(
        "--as-of", formats=["%Y-%m-%d"], help="Of a shop: what was known before this day, 00:00 UTC; no event from then on is used."
    ),
]

Override = Annotated[
    list[str] | None, typer.Option(help="A check of the gate that may fail tonight; may be given several times, with --why.")
]
Why = Annotated[str | None, typer.Option(help="Why it may; kept with the night.")]

Day = Annotated[datetime, typer.Option("--as-of", formats=["%Y-%m-%d"], help="The day whose table this becomes.")]


@contextmanager
def one_line_errors() -> Generator[None]:
    """A block whose errors that a user can mend end the job: the message as one line on stderr, and the error's exit status."""
    try:
        yield
    except RecsysError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(error.status) from error


@contextmanager
def job() -> Generator[None]:
    """A verb's block: log lines on stderr, errors in one line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("recsys")
    log.handlers.clear()
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO)
    with one_line_errors():
        yield


def main(verb: Callable[..., None]) -> None:
    """Run a verb as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(verb)
    app()
