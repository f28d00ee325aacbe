"""The runs of a shop's nights: what became of each, newest first."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job, main
from recsys import config
from recsys.engine.progress import console
from recsys.pipelines.runs import STEPS, NightRun, read_runs

Last = Annotated[int, typer.Option("--last", min=1, help="How many, at most.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")]


def runs(config_path: Config, last: Last = 20, as_json: Json = False) -> None:
    """The runs of a shop's nights: what became of each, newest first."""
    with job():
        settings = config.load(config_path)
        found = read_runs(settings)[:last]
        if as_json:
            for run in found:
                print(json.dumps(asdict(run)))
            return
        table = Table(title=f"Runs of {settings.table.path}", title_justify="left")
        for column in ("night", "state", "begun (UTC)", "took", *STEPS, "rows", "model", "said"):
            table.add_column(column, justify="right" if column in ("took", *STEPS, "rows") else "left")
        for run in found:
            steps = (_seconds(run.seconds.get(step)) for step in STEPS)
            rows = "" if run.rows is None else f"{run.rows:,}"
            begun = f"{datetime.fromisoformat(run.begun):%Y-%m-%d %H:%M}"
            table.add_row(run.as_of, run.state, begun, _seconds(_took(run)), *steps, rows, run.model_version or "", run.remark)
        console.print(table)


def _took(run: NightRun) -> float | None:
    if run.ended is None:
        return None
    return (datetime.fromisoformat(run.ended) - datetime.fromisoformat(run.begun)).total_seconds()


def _seconds(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f} s"


if __name__ == "__main__":
    main(runs)
