"""The night in order: read the shop, train, choose the bundle, score every user, publish the table."""

import time

from jobs import AsOf, Config, Override, Why, job, main, printing
from recsys import config
from recsys.engine.connect import connect
from recsys.engine.progress import after_commit
from recsys.engine.stage import prune
from recsys.pipelines import nightly as pipeline
from recsys.pipelines.champion import Chosen, challenger_days
from recsys.publishing import gate


def nightly(config_path: Config, as_of: AsOf, override: Override = None, why: Why = None) -> None:
    """The night in order: read the shop, train, choose the bundle, score every user, publish the table."""
    with job():
        overrides = gate.overrides(override or [], why)
        settings = config.load(config_path)
        day = as_of.date()
        inputs = pipeline.open_night(settings, as_of=day)
        with connect():
            state, published = pipeline.nightly(
                inputs, as_of=day, overrides=overrides, on_read=printing.rows, on_epoch=printing.epoch_line, on_chosen=_chosen
            )
            with after_commit("nightly"):
                printing.published(published, state, as_of=day, overrides=overrides)
        with after_commit("run.work"):
            days = max(settings.run.keep_work_days, challenger_days(settings) + 1)  # what the next challenger learns from stays
            prune(settings.run.work, before=time.time() - days * 86_400)


def _chosen(chosen: Chosen) -> None:
    if chosen.tested is not None:
        printing.training(chosen.tested)
    if chosen.metrics is not None:
        printing.metrics(chosen.metrics)
    printing.decision(chosen)


if __name__ == "__main__":
    main(nightly)
