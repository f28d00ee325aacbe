"""Verbs, `python -m jobs.NAME`: each parses its arguments, calls the package, and reports; no logic."""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.config.paths import local_path
from recsys.engine.ending import Terminated, as_told, listen
from recsys.engine.quiet import without_noise
from recsys.errors import ConfigError, one_line_errors

if TYPE_CHECKING:
    from recsys.config import PairsSettings, Settings

Config = Annotated[Path, typer.Option("--config", help="The settings, a TOML file.", parser=local_path, metavar="PATH")]
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

PICTURES = (".png", ".svg")  # endings that say a plot's format

Day = Annotated[datetime, typer.Option("--as-of", formats=["%Y-%m-%d"], help="The day whose table this becomes.")]


def day_of(path: Path, settings: "Settings | PairsSettings", as_of: datetime | None) -> date | None:
    """The day that settings of a shop are meant for; None for feature rows, which have none.

    Raises:
        ConfigError: feature rows with a day, or a shop without one.
    """
    from recsys.config import PairsSettings

    if isinstance(settings, PairsSettings):
        if as_of is not None:
            raise ConfigError(f"{path}: labelled rows have no --as-of, got {as_of.date()}. Leave it out.")
        return None
    if as_of is None:
        raise ConfigError(f"{path}: training on a shop needs --as-of, got none. Add the day before which events count.")
    return as_of.date()


def days_of(backfill: str, as_of: datetime | None) -> tuple[date, date]:
    """The first and last day of `A..B`.

    Raises:
        ConfigError: it is no such range, or there is --as-of as well.
    """
    if as_of is not None:
        raise ConfigError(f"--backfill {backfill} and --as-of {as_of.date()}: one of the two is needed, got both. Leave one out.")
    try:
        first, last = map(date.fromisoformat, backfill.split(".."))
    except ValueError:
        first, last = date.max, date.min
    if first > last:
        raise ConfigError(
            f"--backfill: must be two dates, the earlier one first, such as 2017-11-01..2017-11-30, got '{backfill}'. Write it so."
        )
    return first, last


def check_picture(path: Path | None) -> None:
    """Refuse a plot of a format that is not drawn.

    Raises:
        ConfigError: the file's ending is none of PICTURES.
    """
    if path is not None and path.suffix not in PICTURES:
        raise ConfigError(f"--plot {path}: must end in {' or '.join(PICTURES)}, got '{path.suffix}'. Rename it.")


def check_files(**files: Path | None) -> None:
    """Refuse files that cannot be written, so that this is said before the work; nothing is left behind.

    Args:
        files: by the option's name.

    Raises:
        ConfigError: a folder stands there, or theirs cannot be made or written to.
    """
    from recsys.storage import check_folders

    for option, path in files.items():
        if path is not None and path.is_dir():
            raise ConfigError(f"--{option} {path}: must be a file, got a folder. Name a file in it.")
        if path is not None:
            check_folders(**{f"--{option}": str(path.absolute().parent)})


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
    listen()
    with without_noise(), one_line_errors():
        try:
            with as_told():
                yield
        except Terminated:
            print("Ended by SIGTERM. What is finished is kept: run the same command again to go on.", file=sys.stderr)
            raise


def main(verb: Callable[..., None]) -> None:
    """Run a verb as a command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(verb)
    with one_line_errors():  # of options, which are read before a verb's own block
        app()
