"""Score every user and publish the table of a day."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import AsOf, Config, Override, Why, job, main, printing
from recsys import config
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.engine.progress import after_commit
from recsys.pipelines import champion
from recsys.pipelines.exports import check_exports, hand_on_standing
from recsys.pipelines.night_record import recorded
from recsys.pipelines.score import check_bundle, score_shop
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing.gate import overrides
from recsys.ranking import bundle
from recsys.ranking.registry import Registry
from recsys.storage import check_folders


def score(
    config_path: Config,
    as_of: AsOf,
    bundle_path: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            help="The model's folder; absent, the one that jobs.train makes of the same settings.",
            parser=local_path,
            metavar="PATH",
        ),
    ] = None,
    override: Override = None,
    why: Why = None,
) -> None:
    """Score every user and publish the table of a day."""
    with job():
        allowed = overrides(override or [], why)
        settings = config.load(config_path)
        loaded = bundle.load(bundle_path) if bundle_path else None
        if loaded is not None:
            check_bundle(loaded, settings)
        check_exports(settings.exports)
        check_folders(table_path=settings.table.path, report_path=settings.report.path)
        inputs = open_shop(settings, as_of=as_of.date())
        with connect():
            state = shop_state(inputs, end=as_of.date())
            if loaded is None:
                loaded = train_shop(state, as_of=as_of.date(), on_epoch=printing.epoch_line).bundle
            day = as_of.date()
            quality = champion.quality_of(state, Registry(settings.champion.path), loaded, as_of=day)
            with recorded(state, loaded, as_of=day, quality=quality, overrides=allowed):
                night = score_shop(state, loaded, as_of=day, overrides=allowed, quality=quality)
            with after_commit("exports"):
                hand_on_standing(settings, what=f"handing on the lists of {day}")
            with after_commit("score"):
                printing.published(night, state, as_of=day, overrides=allowed)


if __name__ == "__main__":
    main(score)
