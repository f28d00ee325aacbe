"""What differential privacy costs in NDCG@10 and buys against who asks whom a model learned from, by noise."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs import AsOf, Config, check_files, job, main
from recsys import config
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.engine.progress import console
from recsys.errors import ConfigError
from recsys.pipelines.backtest import horizon_end
from recsys.pipelines.privacy import Fitted, compare
from recsys.pipelines.signals import shop_state
from recsys.training.accounting import check_accountant


def privacy(
    config_path: Config,
    as_of: AsOf,
    noise: Annotated[list[float] | None, typer.Option(help="May come several times; absent, that of train.privacy.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.", parser=local_path, metavar="PATH")] = None,
) -> None:
    """What differential privacy costs in NDCG@10 and buys against who asks whom a model learned from, by noise.

    Half of the users are learned from, so lists are worse than a night's. Their NDCG@10 is that of the label window after the day.
    """
    with job():
        check_accountant()
        check_files(out=out)
        if wrong := [one for one in noise or () if not 0 < one < float("inf")]:
            raise ConfigError(f"--noise {wrong[0]:g}: must be above 0 and finite, as train.privacy.noise. Name another.")
        settings = config.load(config_path)
        day = as_of.date()
        inputs = open_shop(settings, as_of=day)
        end = horizon_end(inputs, as_of=day, horizon_days=settings.window.label_days)
        noises = noise or ([settings.train.privacy.noise] if settings.train.privacy else [])
        with connect():
            found = compare(shop_state(inputs, end=end, as_of=day), as_of=day, end=end, noises=noises)
        table = Table(title=f"As of {day}, against {(end - day).days} days", title_justify="left")
        for column in ("noise", "epsilon", "NDCG@10", "less that without, 95%", "advantage", "p"):
            table.add_column(column, justify="right")
        for one in found:
            table.add_row(*_cells(one))
        console.print(table)
        console.print(
            f"Advantage: over {found[0].members:,} users learned from and {found[0].others:,} others, by their mean losses. Signals, "
            "scaling and vocabularies are made of both and not private.",
            highlight=False,
        )
        if out is not None:
            told = {"as_of": str(day), "end": str(end), "models": [asdict(one) for one in found]}
            out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _cells(one: Fitted) -> list[str]:
    ndcg = "" if one.ndcg is None else f"{one.ndcg:.4f}"
    difference = ""
    if one.difference is not None and one.difference["mean"] is not None:
        low, high = one.difference["interval"]
        difference = f"{one.difference['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
    noise = "none" if one.noise is None else f"{one.noise:g}"
    return [noise, "" if one.epsilon is None else f"{one.epsilon:.2f}", ndcg, difference, f"{one.advantage:.3f}", f"{one.p_value:.3f}"]


if __name__ == "__main__":
    main(privacy)
