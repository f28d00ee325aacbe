"""Train as of a day, recommend, and compare with what was bought in the days after it."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import Config, check_files, check_picture, job, main, printing
from recsys import config
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.engine.progress import log
from recsys.evaluation.plots import plot_reliability
from recsys.pipelines.backtest import horizon_end, measure
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.storage import write_atomically


def backtest(
    config_path: Config,
    as_of: Annotated[
        datetime,
        typer.Option("--as-of", formats=["%Y-%m-%d"], help="What was known before this day, 00:00 UTC; later events are the truth."),
    ],
    horizon_days: Annotated[int | None, typer.Option(min=1, help="Days to compare with; absent, window.label_days.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the metrics.", parser=local_path, metavar="PATH")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A .png or .svg file for the reliability plot.", parser=local_path, metavar="PATH")
    ] = None,
) -> None:
    """Train as of a day, recommend, and compare with what was bought in the days after it."""
    with job():
        settings = config.load(config_path)
        check_picture(plot)
        check_files(out=out, plot=plot)
        day = as_of.date()
        inputs = open_shop(settings, as_of=day)
        end = horizon_end(inputs, as_of=day, horizon_days=horizon_days or settings.window.label_days)
        with connect():
            state = shop_state(inputs, end=end, as_of=day)
            printing.rows(state.dataset)
            trained = train_shop(state, as_of=day, on_epoch=printing.epoch_line)
            printing.training(trained)
            result = measure(state, trained.bundle, as_of=day, end=end)
            printing.metrics(result)
            if out is not None:
                text = json.dumps(result, indent=1) + "\n"
                write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))
            if plot is not None:
                _plot(result, plot, days=settings.window.label_days)


def _plot(result: dict[str, Any], path: Path, *, days: int) -> None:
    figures = result["calibration"]
    if figures is None:
        log.warning("backtest: no plot: the horizon of %d days is shorter than window.label_days (%d)", result["horizon_days"], days)
        return
    title = f"{figures['rows']:,} candidates of {figures['users']:,} users as of {result['as_of']}, bought within {days} days"
    write_atomically(path, lambda file: plot_reliability(figures, file, kind=path.suffix, title=title))


if __name__ == "__main__":
    main(backtest)
