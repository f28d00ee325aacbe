"""The bundles that met the champion: list them, look at one's card, make one the champion, or go back to the one before."""

from datetime import date
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job
from recsys import config
from recsys.engine.owner import owned
from recsys.engine.progress import console
from recsys.errors import BundleError, one_line_errors
from recsys.pipelines.card import card_place, read_card
from recsys.ranking.registry import Decision, Registry

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)
INPUTS = 15  # that a card in short names
Reason = Annotated[str, typer.Option("--why", help="Why; kept with the decision.")]


def _registry(config_path: Config) -> Registry:
    return Registry(config.load(config_path).champion.path)


def _told(decision: Decision) -> None:
    console.print(f"{decision.champion} is the champion from the next night on.")


@app.command("list")
def list_(config_path: Config) -> None:
    """Every decision, oldest first, and the champion."""
    with job():
        registry = _registry(config_path)
        decisions = registry.decisions()
        table = Table(title=str(registry.path), title_justify="left")
        for column in (
            "night",
            "challenger",
            "trained as of",
            "epsilon",
            "NDCG@10 less the champion's, 95%",
            "users",
            "champion after it",
            "why",
        ):
            table.add_column(column, justify="right" if column == "users" else "left")
        for made in decisions:
            numbers = "-" if made.difference is None else f"{made.difference:+.4f} [{made.low:+.4f}, {made.high:+.4f}]"
            about = registry.entry(made.challenger).tested.about
            spent = about["metrics"].get("privacy")
            epsilon = "none" if spent is None else f"{spent['epsilon']:.2f} at {spent['delta']:g}"
            stands = "the challenger" if made.promoted else made.champion
            table.add_row(
                made.as_of,
                made.challenger,
                about["window"]["as_of"],
                epsilon,
                numbers,
                "" if made.users is None else f"{made.users:,}",
                stands,
                made.why,
            )
        console.print(table)
        for version in registry.versions():
            users, when = registry.erased_since(version)
            if users:
                console.print(f"{version} was trained before {users:,} users were erased ({when}).")
        console.print(f"The champion: {decisions[-1].champion if decisions else 'none yet'}.")


@app.command()
def card(config_path: Config, version: Annotated[str, typer.Argument(help="As `list` shows it.")]) -> None:
    """A model's card in short, and where its page lies."""
    with job():
        registry = _registry(config_path)
        entry = registry.entry(version)
        told = read_card(registry, entry.version)
        if told is None:
            raise BundleError(f"{registry.path}: model {version} has no card, as it was not tested on a night. A challenger gets one.")
        console.print(told["stands"], highlight=False)
        table = Table(title="What its lists rest on", title_justify="left")
        table.add_column("input")
        table.add_column("NDCG@10 lost when shuffled, 95%", justify="right")
        for one in told["importance"]["inputs"][:INPUTS]:
            low, high = one["interval"] or (None, None)
            bounds = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
            table.add_row(one["input"], f"{one['loss']:+.4f}{bounds}")
        console.print(table)
        console.print(" ".join(told["limits"]), highlight=False)
        console.print(f"The page: {card_place(registry, version)}", highlight=False)


@app.command()
def promote(config_path: Config, version: Annotated[str, typer.Argument(help="As `list` shows it.")], why: Reason) -> None:
    """Make a bundle the champion by hand."""
    with job():
        registry = _registry(config_path)
        with owned(registry.lock, what=str(registry.path)):
            _told(registry.promote(version, as_of=date.today(), why=why))


@app.command()
def rollback(config_path: Config, why: Reason) -> None:
    """Make the champion again what was first chosen before the present one was."""
    with job():
        registry = _registry(config_path)
        with owned(registry.lock, what=str(registry.path)):
            _told(registry.rollback(as_of=date.today(), why=why))


if __name__ == "__main__":
    with one_line_errors():
        app()
