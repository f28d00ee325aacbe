"""What lies under run.work: list it, or remove what no run used lately."""

import time
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job
from recsys import config
from recsys.engine.progress import console
from recsys.engine.stage import prune as prune_stages
from recsys.engine.stage import stage_folders
from recsys.errors import one_line_errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)


@app.command("list")
def list_(config_path: Config) -> None:
    """The folders of all stages, those used last first."""
    with job():
        work = config.load_either(config_path).run.work
        folders = stage_folders(work)
        table = Table(title=work, title_justify="left")
        for column in ("stage", "units", "MiB", "used (UTC)", ""):
            table.add_column(column, justify="right" if column in ("units", "MiB") else "left")
        for one in folders:
            size = f"{one.size / 2**20:,.1f}"
            table.add_row(one.name, f"{one.units:,}", size, f"{one.used:%Y-%m-%d %H:%M}", "a run works in it" if one.owned else "")
        console.print(table)
        console.print(f"{len(folders)} folders, {sum(one.size for one in folders) / 2**20:,.1f} MiB.")


@app.command()
def prune(
    config_path: Config,
    days: Annotated[float, typer.Option(min=0, help="What no run used for so many days goes; it can be made again.")],
) -> None:
    """Remove what no run used for some days; never what a run works in."""
    with job():
        work = config.load_either(config_path).run.work
        before = sum(one.size for one in stage_folders(work))
        removed = prune_stages(work, before=time.time() - days * 86_400)
        freed = (before - sum(one.size for one in stage_folders(work))) / 2**20
        console.print(f"Removed: {len(removed)} folders, {freed:,.1f} MiB with the units of others, below {work}.")


if __name__ == "__main__":
    with one_line_errors():
        app()
