"""Print one user's list with names and reasons, the purchases beside it, and what changed since the night before."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, job, main, printing
from recsys import config
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.pipelines import inspect as lists
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.ranking import bundle


def show(
    config_path: Config,
    user: Annotated[str, typer.Option(help="The user's id.")],
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The night; absent, the newest published.")] = None,
    bundle_path: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            help="With --contributions, the model's folder; absent, that which scored the night, trained again if gone.",
            parser=local_path,
            metavar="PATH",
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
        inputs = open_shop(settings, as_of=night.as_of)
        user_id = lists.parse_user(user, inputs)
        loaded = bundle.load(bundle_path) if bundle_path else lists.find_bundle(settings, night) if contributions else None
        with connect():
            state = shop_state(inputs, end=night.as_of)
            shown = lists.show(state, user_id, night=night, before=before)
            printing.user_list(shown)
            if contributions:
                if loaded is None:
                    loaded = train_shop(state, as_of=night.as_of, on_epoch=printing.epoch_line).bundle
                printing.contributions(*lists.attributed(state, loaded, shown, largest=contributions))


if __name__ == "__main__":
    main(show)
