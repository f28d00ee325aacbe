"""Print one user's list with names and reasons, the purchases beside it, and what changed since the night before."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, _print, job, main
from recsys import bundle, config, pipeline, runtime
from recsys import show as lists
from recsys.prepare import prepare
from recsys.shop import open_shop


def show(
    config_path: Config,
    user: Annotated[str, typer.Option(help="The user's id.")],
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The night; absent, the newest published.")] = None,
    bundle_path: Annotated[
        Path | None,
        typer.Option(
            "--bundle", help="With --contributions, the model's folder; absent, that which scored the night, trained again if gone."
        ),
    ] = None,
    contributions: Annotated[
        int, typer.Option(min=0, help="For each row this many inputs with the largest contributions to its raw output.")
    ] = 0,
) -> None:
    """Print one user's list with names and reasons, the purchases beside it, and what changed since the night before."""
    with job():
        settings = config.load(config_path)
        night, before = lists.find_night(settings, as_of=as_of.date() if as_of else None)
        sources = open_shop(settings, as_of=night.as_of)
        user_id = lists.parse_user(user, sources.user_id)
        loaded = bundle.load(bundle_path) if bundle_path else lists.find_bundle(settings, night) if contributions else None
        with runtime.connect():
            prepared = prepare(sources, end=night.as_of)
            shown = lists.show(prepared, user_id, night=night, before=before)
            _print.user_list(shown)
            if contributions:
                if loaded is None:
                    loaded = pipeline.train(prepared, as_of=night.as_of, on_epoch=_print.epoch_line).bundle
                _print.contributions(*lists.contributed(prepared, loaded, shown, largest=contributions))


if __name__ == "__main__":
    main(show)
