"""Train as of a day, recommend, and compare with what was bought in the days after it."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import Config, _print, job, main
from recsys import config, pipeline, reliability, runtime
from recsys.backtest import horizon_end, measure
from recsys.errors import ConfigError
from recsys.prepare import prepare
from recsys.runtime import log
from recsys.shop import open_shop
from recsys.work import write_atomically


def backtest(
    config_path: Config,
    as_of: Annotated[
        datetime,
        typer.Option("--as-of", formats=["%Y-%m-%d"], help="What was known before this day, 00:00 UTC; later events are the truth."),
    ],
    horizon_days: Annotated[int | None, typer.Option(min=1, help="Days to compare with; absent, window.label_days.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the metrics.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png or .svg file for the reliability plot.")] = None,
) -> None:
    """Train as of a day, recommend, and compare with what was bought in the days after it."""
    with job():
        settings = config.load(config_path)
        if plot is not None and plot.suffix not in reliability.FORMATS:
            raise ConfigError(f"--plot {plot}: must end in {' or '.join(reliability.FORMATS)}, got '{plot.suffix}'. Rename it.")
        day = as_of.date()
        sources = open_shop(settings, as_of=day)
        end = horizon_end(sources, as_of=day, horizon_days=horizon_days or settings.window.label_days)
        with runtime.connect():
            prepared = prepare(sources, end=end)
            _print.rows(prepared.ingest)
            trained = pipeline.train(prepared, as_of=day, on_epoch=_print.epoch_line)
            _print.training(trained)
            result = measure(prepared, trained.bundle, as_of=day, end=end)
            _print.metrics(result)
            if out is not None:
                text = json.dumps(result, indent=1) + "\n"
                write_atomically(out, lambda file: file.write_text(text))
            if plot is not None:
                _plot(result, plot, days=settings.window.label_days)


def _plot(result: dict[str, Any], path: Path, *, days: int) -> None:
    figures = result["calibration"]
    if figures is None:
        log.warning("backtest: no plot: the horizon of %d days is shorter than window.label_days (%d)", result["horizon_days"], days)
        return
    title = f"{figures['rows']:,} candidates of {figures['users']:,} users as of {result['as_of']}, bought within {days} days"
    write_atomically(path, lambda file: reliability.plot(figures, file, kind=path.suffix, title=title))


if __name__ == "__main__":
    main(backtest)
