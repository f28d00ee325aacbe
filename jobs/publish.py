"""The published nights: list them, take back those after a day, or clear away what was never published."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job
from recsys import config
from recsys.config import PairsSettings
from recsys.engine.lease import leased, remove_left
from recsys.engine.progress import console
from recsys.errors import one_line_errors
from recsys.pipelines.exports import check_exports, hand_on_standing, refuse_failed
from recsys.publishing.delta import leftovers, remove_leftovers
from recsys.publishing.table import published_nights, take_back

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)


def _settings(config_path: Config) -> tuple[config.Settings | PairsSettings, str, dict[str, str]]:
    """The settings of either door, the table and the options of its store."""
    settings = config.load_either(config_path)
    return settings, settings.table.path, (settings.pairs if isinstance(settings, PairsSettings) else settings.shop).storage_options


@app.command()
def nights(config_path: Config) -> None:
    """The nights that stand, newest first."""
    with job():
        _, path, storage = _settings(config_path)
        table = Table(title=path, title_justify="left")
        for column in ("as_of", "rows", "run_id", "model_version", "version", "published (UTC)"):
            table.add_column(column, justify="right" if column in ("rows", "version") else "left")
        for night in published_nights(path, storage):
            published = f"{night.published_utc:%Y-%m-%d %H:%M}" if night.published_utc else "-"
            version = "-" if night.version is None else str(night.version)
            table.add_row(str(night.as_of), f"{night.rows:,}", night.run_id, night.model_version, version, published)
        console.print(table)


@app.command()
def rollback(
    config_path: Config, to: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The night to go back to; it stays.")]
) -> None:
    """Take back the nights after a day, in one commit; and hand the night that is the newest then on to the places of [[exports]]."""
    with job():
        settings, path, storage = _settings(config_path)
        check_exports(settings.exports)
        gone = take_back(path, to=to.date(), storage_options=storage)
        console.print(f"Taken back: {', '.join(map(str, gone)) or 'nothing'}. {to.date()} is the newest night of {path}.")
        handed = hand_on_standing(settings, what=f"going back to {to.date()}")
        refuse_failed(handed, done=f"The nights after {to.date()} are taken back")


@app.command()
def clean(
    config_path: Config, dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and leave it.")] = False
) -> None:
    """Remove the parts of runs that were given up: files that no commit names, while no run works on the table."""
    with job():
        _, path, storage = _settings(config_path)
        with leased(path, storage, what="clearing away"):
            left = leftovers(path, storage)
            if not dry_run:
                remove_leftovers(path, left, storage)
                remove_left(path, storage)
        size = sum(info.size for info in left) / 2**20
        console.print(f"{'Would remove' if dry_run else 'Removed'}: {len(left):,} files, {size:,.1f} MiB, below {path}.")


if __name__ == "__main__":
    with one_line_errors():
        app()
