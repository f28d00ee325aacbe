"""Train a model and write its bundle: of a shop on what was known before a day, or of labelled feature rows."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, ShopAsOf, day_of, job, main, printing
from recsys import config
from recsys.config import PairsSettings, Settings
from recsys.config.paths import local_path
from recsys.engine.connect import connect
from recsys.ranking import bundle
from recsys.storage import check_folders


def train(
    config_path: Config,
    as_of: ShopAsOf = None,
    out: Annotated[Path | None, typer.Option(help="A further folder to copy the bundle to.", parser=local_path, metavar="PATH")] = None,
) -> None:
    """Train a model and write its bundle: of a shop on what was known before a day, or of labelled feature rows."""
    with job():
        settings = config.load_either(config_path)
        if out is not None:
            check_folders(**{"--out": str(out)})
        day = day_of(config_path, settings, as_of)
        made = _of_rows(settings) if isinstance(settings, PairsSettings) else _of_shop(settings, day)
        if out is not None:
            bundle.copy(made, out)
            print(out)


def _of_shop(settings: Settings, day: date | None) -> bundle.Bundle:
    from recsys.data.shop import open_shop
    from recsys.pipelines.signals import shop_state
    from recsys.pipelines.train import train_shop

    assert day is not None, "settings of a shop have a day"
    inputs = open_shop(settings, as_of=day)
    with connect():
        state = shop_state(inputs, end=day)
        printing.rows(state.dataset)
        trained = train_shop(state, as_of=day, on_epoch=printing.epoch_line)
        printing.training(trained)
    return trained.bundle


def _of_rows(settings: PairsSettings) -> bundle.Bundle:
    from recsys.features.feature_table import check_alike, open_feature_table
    from recsys.pipelines import pairs_train

    rows = open_feature_table(settings, "path")
    test = open_feature_table(settings, "test") if settings.pairs.test else None
    if test is not None:
        check_alike(rows, test)
    with connect():
        fitted = pairs_train.train(settings, rows, test, on_epoch=printing.epoch_line)
        printing.training(fitted.trained)
        printing.pairs_test(fitted)
    return fitted.trained.bundle


if __name__ == "__main__":
    main(train)
