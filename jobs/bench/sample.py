"""NDCG@10 by how many users the model learns from, on a planted shop and against learning from all of them; part of jobs.bench."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.bench.rows import END, planted_shop
from recsys import config
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.evaluation.backtest import OURS
from recsys.pipelines.backtest import measure, paired
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.ranking.bundle import Bundle

SMALL = (4_000, 5_000)  # users and items
FULL = (40_000, 20_000)
PARTS = (16, 8, 4, 2)  # one user of so many is learned from


def sample(folder: Path, *, users: int, items: int) -> list[dict[str, Any]]:
    """Of models that learn from a growing number of users, all of them last: examples, NDCG@10 of lists over a label window that none
    of them knows, and the paired difference from the one of all."""
    values, _ = planted_shop(folder, users=users, items=items)
    figures: list[dict[str, Any]] = []
    made: list[Bundle] = []
    numbers = sorted({*(users // part for part in PARTS), min(config.Examples().max_users, users), users})
    with connect():
        for number in numbers:
            settings = config.Settings.model_validate({**values, "examples": {"max_users": number}})
            day = END - timedelta(days=settings.window.label_days)
            state = shop_state(open_shop(settings, as_of=day), end=END, as_of=day)
            trained = train_shop(state, as_of=day)
            made.append(trained.bundle)
            told = measure(state, trained.bundle, as_of=day, end=END)
            figures.append(
                {
                    "learned_from": number,
                    "users": users,
                    "examples": trained.examples["rows"],
                    "counted": told["users"]["all"],
                    "ndcg": told["models"][OURS]["all"]["ndcg@10"],
                    "ndcg_new": told["models"][OURS]["new"]["ndcg@10"],
                }
            )
        for figure, bundle in zip(figures, made, strict=True):
            figure["difference"] = paired(state, bundle, made[-1], as_of=day, end=END)
    return figures


def show(figures: Sequence[dict[str, Any]]) -> Table:
    """A line for each number of users."""
    title = f"NDCG@10 by users learned from, of {figures[-1]['users']:,}; {figures[-1]['counted']:,} users count"
    table = Table(title=title)
    for column in ("users", "examples", "all items", "new items", "of what all give", "difference, 95%"):
        table.add_column(column, justify="right")
    for one in figures:
        low, high = one["difference"]["interval"] or (float("nan"),) * 2
        table.add_row(
            f"{one['learned_from']:,}",
            f"{one['examples']:,}",
            f"{one['ndcg']:.4f}",
            f"{one['ndcg_new']:.4f}",
            f"{one['ndcg'] / figures[-1]['ndcg']:.4f}",
            f"{one['difference']['mean']:+.4f} [{low:+.4f}, {high:+.4f}]",
        )
    return table
