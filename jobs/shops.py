"""A backtest of every kind of planted shop with default settings: the model beside its best baseline."""

import json
import tempfile
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs import check_files, job, main
from jobs.planted_shop import settings_text
from recsys import config
from recsys.config.paths import local_path
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.data.shop_kinds import KINDS, Kind
from recsys.engine.connect import connect
from recsys.engine.progress import console, log
from recsys.errors import ConfigError
from recsys.evaluation.backtest import OURS, SLICES, best_baselines
from recsys.pipelines.backtest import measure
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.storage import check_folders, write_atomically

END = date(2026, 1, 1)


def shops(
    kind: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(KINDS)}; may come several times; absent, all.")] = None,
    users: Annotated[int, typer.Option(min=100, help="Users of each shop.")] = 4_000,
    items: Annotated[int, typer.Option(min=100, help="Items of each shop.")] = 5_000,
    folder: Annotated[
        Path | None, typer.Option(help="Where the shops are generated; absent, the temporary one.", parser=local_path, metavar="PATH")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the metrics.", parser=local_path, metavar="PATH")] = None,
) -> None:
    """A backtest of every kind of planted shop with default settings: the model beside its best baseline."""
    with job():
        if unknown := sorted(set(kind or KINDS) - set(KINDS)):
            raise ConfigError(f"--kind {unknown[0]}: must be one of {', '.join(KINDS)}. Choose among these.")
        check_files(out=out)
        if folder is not None:
            check_folders(**{"--folder": str(folder)})
            folder.mkdir(parents=True, exist_ok=True)
        results: dict[str, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory(dir=folder) as place, connect():
            for one in KINDS:
                if one in (kind or KINDS):
                    results[one] = _backtest(one, Path(place) / one, users=users, items=items)
        console.print(_table(results))
        console.print("In brackets: 95% intervals, bootstrap over users; differences user by user.")
        if out is not None:
            text = json.dumps(results, indent=1) + "\n"
            write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))


def _backtest(kind: Kind, folder: Path, *, users: int, items: int) -> dict[str, Any]:
    """As `backtest.measure`, of one label window that the model does not know, and `events`, the shop's."""
    log.info("shops: %s", kind)
    planted = synthetic.shop(folder, users=users, items=items, days=365, seed=0, end=END, kind=kind)
    (folder / "shop.toml").write_text(settings_text(planted, folder), encoding="utf-8")
    settings = config.load(folder / "shop.toml")
    day = END - timedelta(days=settings.window.label_days)
    state = shop_state(open_shop(settings, as_of=day), end=END, as_of=day)
    return {"events": planted.rows, **measure(state, train_shop(state, as_of=day).bundle, as_of=day, end=END)}


def _table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="NDCG@10 of planted shops with default settings", title_justify="left")
    for column in ("shop", "events", "items", "users", "mlp", "best baseline", "", "mlp minus it"):
        table.add_column(column, justify="left" if column in ("shop", "items", "best baseline") else "right", no_wrap=True)
    for kind, result in results.items():
        found = best_baselines(result)
        for part in SLICES:
            cells = [kind, f"{result['events']:,}", part, f"{result['users'][part]:,}"]
            if part not in found:  # too few users to tell
                table.add_row(*cells, "-", "-", "-", "-")
                continue
            best = found[part]
            ours, other = (result["models"][model][part]["ndcg@10"] for model in (OURS, best["baseline"]))
            difference = f"{best['difference']:+.3f} [{best['low']:+.3f}, {best['high']:+.3f}]"
            table.add_row(*cells, f"{ours:.3f}", best["baseline"], f"{other:.3f}", difference)
    return table


if __name__ == "__main__":
    main(shops)
