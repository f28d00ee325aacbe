"""The night in order: read the shop, train, choose the bundle, score every user, publish the table."""

import time
from datetime import timedelta

from jobs import AsOf, Config, Override, Why, _print, job, main
from recsys import champion, config, gate, pipeline, record, runtime, work
from recsys.prepare import prepare
from recsys.registry import Registry
from recsys.shop import check_as_of, open_shop


def nightly(config_path: Config, as_of: AsOf, override: Override = None, why: Why = None) -> None:
    """The night in order: read the shop, train, choose the bundle, score every user, publish the table."""
    with job():
        allowed = gate.overrides(override or [], why)
        settings = config.load(config_path)
        day = as_of.date()
        before = day - timedelta(days=settings.window.label_days)
        sources = open_shop(settings, as_of=day)
        check_as_of(sources, before)
        with runtime.connect():
            prepared = prepare(sources, end=day)
            _print.rows(prepared.ingest)
            chosen = champion.choose(prepared, Registry(settings.champion.path), as_of=day, on_epoch=_print.epoch_line)
            _print.training(chosen.tested)
            _print.metrics(chosen.metrics)
            _print.decision(chosen)
            with record.page(prepared, chosen.bundle, as_of=day, chosen=chosen):
                night = pipeline.score(prepared, chosen.bundle, as_of=day, overrides=allowed, ndcg=chosen.ndcg)
            _print.published(night, prepared, as_of=day, overrides=allowed)
        work.prune(settings.run.work, before=time.time() - settings.run.keep_work_days * 86_400)


if __name__ == "__main__":
    main(nightly)
