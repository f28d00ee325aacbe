"""Train a model and write its bundle: of a shop on what was known before a day, or of labelled feature rows."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, ShopAsOf, _print, job, main
from recsys import bundle, config, runtime
from recsys.config import PairsSettings, Settings
from recsys.errors import ConfigError


def train(
    config_path: Config,
    as_of: ShopAsOf = None,
    out: Annotated[Path | None, typer.Option(help="A further folder to copy the bundle to.")] = None,
) -> None:
    """Train a model and write its bundle: of a shop on what was known before a day, or of labelled feature rows."""
    with job():
        settings = config.load_either(config_path)
        if isinstance(settings, PairsSettings):
            if as_of is not None:
                raise ConfigError(f"{config_path}: labelled rows have no --as-of, got {as_of.date()}. Leave it out.")
            made = _of_rows(settings)
        elif as_of is None:
            raise ConfigError(f"{config_path}: training on a shop needs --as-of, got none. Add the day before which events count.")
        else:
            made = _of_shop(settings, as_of)
        if out is not None:
            bundle.copy(made, out)
            print(out)


def _of_shop(settings: Settings, as_of: datetime) -> bundle.Bundle:
    from recsys import pipeline
    from recsys.prepare import prepare
    from recsys.shop import open_shop

    sources = open_shop(settings, as_of=as_of.date())
    with runtime.connect():
        prepared = prepare(sources, end=as_of.date())
        _print.rows(prepared.ingest)
        trained = pipeline.train(prepared, as_of=as_of.date(), on_epoch=_print.epoch_line)
        _print.training(trained)
    return trained.bundle


def _of_rows(settings: PairsSettings) -> bundle.Bundle:
    from recsys import pairs_train
    from recsys.pairs import check_alike, open_rows

    rows = open_rows(settings, "path")
    test = open_rows(settings, "test") if settings.pairs.test else None
    if test is not None:
        check_alike(rows, test)
    with runtime.connect():
        fitted = pairs_train.train(settings, rows, test, on_epoch=_print.epoch_line)
        _print.training(fitted.trained)
        _print.pairs_test(fitted)
    return fitted.trained.bundle


if __name__ == "__main__":
    main(train)
