"""The night in order: read the shop, train, backtest, score every user, publish the table."""

import time
from datetime import timedelta

from jobs import AsOf, Config, Override, Why, _print, job, main
from recsys import config, gate, pipeline, runtime, work
from recsys.backtest import measure
from recsys.shop import check_as_of, open_shop


def nightly(config_path: Config, as_of: AsOf, override: Override = None, why: Why = None) -> None:
    """The night in order: read the shop, train, backtest, score every user, publish the table."""
    with job():
        allowed = gate.overrides(override or [], why)
        settings = config.load(config_path)
        day = as_of.date()
        before = day - timedelta(days=settings.window.label_days)
        sources = open_shop(settings, as_of=day)
        check_as_of(sources, before)
        with runtime.connect():
            prepared = pipeline.prepare(sources, end=day)
            _print.rows(prepared.ingest)
            trained = pipeline.train(prepared, as_of=day, on_epoch=_print.epoch_line)
            _print.training(trained)
            tested = pipeline.train(prepared, as_of=before, on_epoch=_print.epoch_line)
            _print.metrics(measure(prepared, tested.bundle, as_of=before, end=day))
            night = pipeline.score(prepared, trained.bundle, as_of=day, overrides=allowed)
            _print.published(night, prepared, as_of=day, overrides=allowed)
        work.prune(settings.run.work, before=time.time() - settings.run.keep_work_days * 86_400)


if __name__ == "__main__":
    main(nightly)
