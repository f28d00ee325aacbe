"""Look at a shop's files, guess what they mean, and write a settings file that says of each guess why."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.prompt import Prompt
from rich.table import Table

from jobs import check_files, job, main
from recsys import config
from recsys.config.paths import local_path, location
from recsys.data.guess import Guess
from recsys.data.guess_shop import guess_shop, written
from recsys.data.shop import open_shop
from recsys.engine.progress import console
from recsys.errors import ConfigError
from recsys.storage import absolute, write_atomically

Place = Annotated[str | None, typer.Option(help="Path or URI, as events.", metavar="PATH")]
FOLDERS = {"table.path": "table", "run.work": "work", "champion.path": "bundles", "report.path": "reports"}


def init(
    events: Annotated[
        str, typer.Option(help="Parquet, CSV or JSON lines: a file, a folder or a Delta table; path or URI.", metavar="PATH")
    ],
    out: Annotated[Path, typer.Option(help="The settings file, which must not exist yet.", parser=local_path, metavar="PATH")],
    items: Place = None,
    users: Place = None,
) -> None:
    """Look at a shop's files, guess what they mean, and write a settings file that says of each guess why."""
    with job():
        if out.exists():
            raise ConfigError(f"--out {out}: must not exist yet. Name another file, or remove it.")
        check_files(out=out)
        named = {"events": events, "items": items, "users": users}
        places = {name: absolute(location(place)) for name, place in named.items() if place is not None}
        guessed = guess_shop(places, choose=_asked if sys.stdin.isatty() else _first, today=datetime.now(UTC).date())
        home = out.absolute().parent / out.stem
        text = written(guessed, places, {name: str(home / folder) for name, folder in FOLDERS.items()})
        write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))
        _table(guessed.guesses)
        console.print(f"Settings: {out}")
        day = guessed.past.last + timedelta(days=1)
        open_shop(config.load(out), as_of=day)
        console.print(f"Next: python -m jobs.check --config {out} --as-of {day}")


def _first(guess: Guess) -> Any:
    """Without a terminal nobody is asked: the likeliest, marked in the file."""
    return guess.value


def _asked(guess: Guess) -> Any:
    choices = {str(other) if not isinstance(other, list) else ", ".join(other): other for other in guess.others}
    default = next((text for text, other in choices.items() if other == guess.value), next(iter(choices)))
    console.print(f"{guess.key}: {guess.why}.")
    if guess.free:
        return Prompt.ask(f"What is {guess.key}?", default=default, console=console)
    return choices[Prompt.ask(f"Which is {guess.key}?", choices=list(choices), default=default, console=console)]


def _table(guesses: list[Guess]) -> None:
    table = Table(title="Guessed", title_justify="left")
    for column in ("setting", "value", "sure", "why"):
        table.add_column(column)
    for guess in guesses:
        value = ", ".join(map(str, guess.value)) if isinstance(guess.value, list) else str(guess.value)
        table.add_row(f"{guess.section}.{guess.key}", value, "CHECK" if guess.others else "", guess.why)
    console.print(table)


if __name__ == "__main__":
    main(init)
