"""Search the settings on validation, or by lists on the days before --as-of, and write the best as a settings file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs import Config, ShopAsOf, check_files, check_picture, day_of, job, main
from recsys import config
from recsys.config import PairsSettings, Settings
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.engine.progress import console, log
from recsys.errors import ConfigError
from recsys.evaluation.plots import plot_trials
from recsys.features.feature_table import open_feature_table
from recsys.pipelines import examples, pairs_train
from recsys.pipelines.signals import shop_state
from recsys.pipelines.tune import ListsTrial, best_of, open_search, search_lists
from recsys.storage import write_atomically
from recsys.training import search
from recsys.training.search import Trial


def tune(
    config_path: Config,
    trials: Annotated[int, typer.Option(min=1, help="Fits to try; the first has the settings as they stand.")],
    as_of: ShopAsOf = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A settings file to write: the given one with the best trial's values.", parser=local_path, metavar="PATH"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A .png or .svg file for a picture of the trials.", parser=local_path, metavar="PATH")
    ] = None,
) -> None:
    """Search the settings on validation, or by lists on the days before --as-of, and write the best as a settings file."""
    with job():
        settings = config.load_either(config_path)
        if settings.train.privacy is not None:
            raise ConfigError("tune: what users did chooses settings, which no epsilon counts. Search without train.privacy.")
        check_picture(plot)
        check_files(out=out, plot=plot)
        day = day_of(config_path, settings, as_of)
        if isinstance(settings, PairsSettings):
            rows = open_feature_table(settings, "path")
            with connect():
                labelled, _ = pairs_train.make_examples(settings, rows)
                values = _by_loss(search.search(settings, labelled, trials=trials, on_trial=_line), settings, plot)
        else:
            assert day is not None, "settings of a shop have a day"
            if config.needs_lists(settings.tune):
                opened = open_search(settings, as_of=day, trials=trials)
                with connect():
                    values = _by_lists(search_lists(opened, on_trial=_lists_line), plot)
            else:
                inputs = open_shop(settings, as_of=day)
                with connect():
                    labelled = examples.labelled(shop_state(inputs, end=day), as_of=day)
                    values = _by_loss(search.search(settings, labelled, trials=trials, on_trial=_line), settings, plot)
        if out is not None:
            text = search.written(config_path.read_text(encoding="utf-8"), values)
            write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))
            print(out)


def _by_loss(found: Sequence[Trial], settings: Settings | PairsSettings, plot: Path | None) -> dict[str, Any]:
    """The best values of trials, which are shown."""
    _table(found)
    if plot is not None:
        write_atomically(plot, lambda file: search.plot(found, settings.tune, file, kind=plot.suffix))
    return search.best_of(found).values


def _by_lists(found: Sequence[ListsTrial], plot: Path | None) -> dict[str, Any]:
    """The same of trials that are judged by lists."""
    winner = best_of(found)
    _lists_table(found, winner)
    if plot is not None:
        shown = [
            {key: value if isinstance(value, int | float) else search.word(value) for key, value in one.values.items()} for one in found
        ]
        ndcg = [trial.ndcg for trial in found]
        write_atomically(plot, lambda file: plot_trials(shown, ndcg, file, best=winner.number - 1, kind=plot.suffix))
    return winner.values


def _line(trial: Trial) -> None:
    """One log line of a trial that ended."""
    said = "failed" if math.isinf(trial.loss) else f"val_loss {trial.loss:.4f}, val_auc {trial.best['val_auc']:.4f}"
    log.info("tune: trial %d: %s, %d epochs%s", trial.number, said, len(trial.history), ", stopped early" if trial.stopped else "")


def _table(found: Sequence[Trial]) -> None:
    """What each trial tried and reached, the best marked."""
    winner = search.best_of(found)
    table = Table(title="Trials", title_justify="left")
    for column in ("trial", *winner.values, "epochs", "val_loss", "auc", "seconds", ""):
        table.add_column(column, justify="right" if column in ("trial", "epochs", "val_loss", "auc", "seconds") else "left")
    for trial in found:
        reached = ["-", "-"] if math.isinf(trial.loss) else [f"{trial.loss:.4f}", f"{trial.best['val_auc']:.4f}"]
        end = "best" if trial is winner else "stopped early" if trial.stopped else "failed" if trial.failed else ""
        words = map(search.word, trial.values.values())
        style = "bold" if trial is winner else ""
        table.add_row(str(trial.number), *words, str(len(trial.history)), *reached, f"{trial.seconds:.1f}", end, style=style)
    console.print(table)


def _lists_line(trial: ListsTrial) -> None:
    """One log line of a trial that ended."""
    said = trial.failed or ", ".join(f"NDCG@10 {value:.4f} of {name} items" for name, value in trial.ndcg.items())
    log.info("tune: trial %d: %s", trial.number, said)


def _lists_table(found: Sequence[ListsTrial], winner: ListsTrial) -> None:
    """What each trial tried and reached, the best marked."""
    table = Table(title="Trials, NDCG@10 of lists", title_justify="left")
    slices = list(winner.ndcg)
    right = ("trial", "candidates", *slices, "seconds")
    for column in (
        "trial",
        *winner.values,
        "candidates",
        *(part for name in slices for part in (name, f"{name} less trial 1")),
        "seconds",
        "",
    ):
        table.add_column(column, justify="right" if column in right else "left")
    for trial in found:
        cells = [str(trial.number), *map(search.word, trial.values.values())]
        cells.append("-" if trial.failed else f"{trial.candidates:.0f}")
        for name in slices:
            if trial.failed:
                cells += ["-", "-"]
                continue
            low, high = trial.differences[name]["interval"]
            less = "-" if trial.number == 1 else f"{trial.differences[name]['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
            cells += [f"{trial.ndcg[name]:.4f}", less]
        end = "best" if trial is winner else "failed" if trial.failed else ""
        table.add_row(*cells, f"{trial.seconds:.0f}", end, style="bold" if trial is winner else "")
    console.print(table)
    console.print("In brackets: 95% intervals, bootstrap over users; differences user by user.")


if __name__ == "__main__":
    main(tune)
