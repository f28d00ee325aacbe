"""Score every user and publish the table of a day."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import AsOf, Config, Override, Why, _print, job, main
from recsys import bundle, champion, config, gate, pipeline, record, runtime
from recsys.prepare import prepare
from recsys.registry import Registry
from recsys.shop import open_shop


def score(
    config_path: Config,
    as_of: AsOf,
    bundle_path: Annotated[
        Path | None, typer.Option("--bundle", help="The model's folder; absent, the one that jobs.train makes of the same settings.")
    ] = None,
    override: Override = None,
    why: Why = None,
) -> None:
    """Score every user and publish the table of a day."""
    with job():
        allowed = gate.overrides(override or [], why)
        settings = config.load(config_path)
        loaded = bundle.load(bundle_path) if bundle_path else None
        if loaded is not None:
            pipeline.check_bundle(loaded, settings)
        sources = open_shop(settings, as_of=as_of.date())
        with runtime.connect():
            prepared = prepare(sources, end=as_of.date())
            if loaded is None:
                loaded = pipeline.train(prepared, as_of=as_of.date(), on_epoch=_print.epoch_line).bundle
            day = as_of.date()
            ndcg = champion.versus(prepared, Registry(settings.champion.path), loaded, as_of=day)
            with record.page(prepared, loaded, as_of=day):
                night = pipeline.score(prepared, loaded, as_of=day, overrides=allowed, ndcg=ndcg)
            _print.published(night, prepared, as_of=day, overrides=allowed)


if __name__ == "__main__":
    main(score)
