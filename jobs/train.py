"""Train a model on what was known before a day, and write its bundle."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import AsOf, Config, _print, job, main
from recsys import bundle, config, pipeline, runtime
from recsys.shop import open_shop


def train(
    config_path: Config,
    as_of: AsOf,
    out: Annotated[Path | None, typer.Option(help="A further folder to copy the bundle to.")] = None,
) -> None:
    """Train a model on what was known before a day, and write its bundle."""
    with job():
        sources = open_shop(config.load(config_path), as_of=as_of.date())
        with runtime.connect():
            prepared = pipeline.prepare(sources, end=as_of.date())
            _print.rows(prepared.ingest)
            trained = pipeline.train(prepared, as_of=as_of.date(), on_epoch=_print.epoch_line)
            _print.training(trained)
            if out is not None:
                bundle.copy(trained.bundle, out)
                print(out)


if __name__ == "__main__":
    main(train)
