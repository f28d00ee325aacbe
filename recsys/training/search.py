"""Search the settings of [model] and [train]: trials of the real fit on one set of examples, judged by validation loss.

Ray Tune runs the trials side by side, each a fit by one worker: several workers end with the same weights but for dropout's masks, and
one worker each wastes nothing on waiting. Asynchronous successive halving (Li et al. 2020, `ASHAScheduler`) stops a trial that at its
first, third or ninth epoch is worse than two thirds of those that came as far; which those are depends on who came first.

A trial's settings come from (seed, its number), so the same seed gives the same trials, and more trials go on where fewer ended. The
first is the settings as they stand. A finished trial leaves a receipt and is not made again; one that was interrupted goes on from its
last checkpoint.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tomlkit
import tomlkit.items

from recsys.config import ABSENT, PairsSettings, Range, Section, Settings, is_whole, title_of
from recsys.engine.progress import progress
from recsys.engine.stage import Receipt, Stage
from recsys.engine.trials import Report, run_trials
from recsys.errors import ClusterError, ConfigError
from recsys.training.checkpoints import Epoch
from recsys.training.fit import Labelled, check_fit, fit_inputs
from recsys.training.loop import run_epochs
from recsys.training.plan import VALIDATE, Plan, best_epoch, next_epoch
from recsys.training.worker import limit_threads

EitherDoor = TypeVar("EitherDoor", bound=Section)
DIVERGED = 1e30  # what the scheduler is told in place of a loss that is no number


@dataclass(frozen=True)
class Trial:
    """One fit of the search."""

    number: int
    """From 1; the first has the settings as they stand."""
    values: dict[str, Any]
    """What was tried: each searched key's value, `ABSENT` where it is left out."""
    history: list[Epoch]
    """Its epochs; empty where the loss was no number in the first."""
    failed: str | None
    """Why the fit could not go on: its loss stopped being finite."""
    stopped: bool
    """Whether it was ended early, as others did better."""

    @property
    def best(self) -> Epoch:
        """The epoch with the smallest validation loss."""
        return self.history[best_epoch(self.history) - 1]

    @property
    def loss(self) -> float:
        """The smallest validation loss; infinite for a fit that failed."""
        return math.inf if self.failed or not self.history else self.best["val_loss"]

    @property
    def seconds(self) -> float:
        """Of its epochs."""
        return sum(epoch["seconds"] for epoch in self.history)


def search(
    settings: Settings | PairsSettings, labelled: Labelled, *, trials: int, on_trial: Callable[[Trial], None] | None = None
) -> list[Trial]:
    """The trials 1 to `trials`; those that are finished already are taken as they are.

    Args:
        on_trial: called with each trial that ends.

    Raises:
        ConfigError: every trial's loss stopped being finite.
        ClusterError: the cluster has no CPU, or no GPU where train.device asks for one; or a trial's worker failed more than
            train.max_failures times.
        DataError: as `fit.fit_model`.
    """
    inputs = {**labelled.identity, **fit_inputs(settings), "space": settings.tune}
    inputs["train"] = {key: value for key, value in inputs["train"].items() if key not in ("workers", "refit")}  # a trial has its own
    stage = Stage(settings.run.work, "tune", inputs)
    with stage.owned():
        return _search(stage, settings, labelled, trials=trials, on_trial=on_trial)


def _search(
    stage: Stage,
    settings: Settings | PairsSettings,
    labelled: Labelled,
    *,
    trials: int,
    on_trial: Callable[[Trial], None] | None,
) -> list[Trial]:
    """As `search`, in a stage that this process owns."""
    names = {number: f"trial-{number:04d}" for number in range(1, trials + 1)}
    drawn = {number: draw(settings, number) for number in names}
    pending = [number for number, name in names.items() if stage.receipt(name) is None]
    if pending:
        spec = labelled.spec()
        plans: dict[int, Plan] = {}
        for number in pending:
            tried = applied(settings, drawn[number])
            folder = stage.path / names[number]
            folder.mkdir(exist_ok=True)
            fitted = tried.train.model_copy(update={"workers": 1, "refit": False})
            plans[number] = Plan(
                tuple(labelled.fitting), tuple(labelled.validating), spec, tried.model, fitted, settings.run.seed, run=folder
            )
        one = plans[pending[0]]
        check_fit(one.train_files, one.validation_files, spec=spec, train=one.train)
        ended = [_smallest(receipt["history"]) for name in names.values() if (receipt := stage.receipt(name)) is not None]
        with progress("tune", len(pending), unit="trials") as advance:

            def finish(number: int, said: dict[str, Any]) -> None:
                history, failed = said["history"], said.get("failed")
                stopped = failed is None and next_epoch(history, VALIDATE, plans[number].train) is not None
                receipt = stage.finish(names[number], {"history": history, "failed": failed, "stopped": stopped})
                advance(1, 0)
                if on_trial is not None:
                    on_trial(_trial(number, drawn[number], receipt))

            run_trials(
                stage.path,
                plans,
                _fit,
                ended=ended,
                on_end=finish,
                epochs=settings.train.epochs,
                gpu=settings.train.device == "gpu",
                max_failures=settings.train.max_failures,
            )
    receipts = {number: stage.receipt(name) for number, name in names.items()}
    missing = [number for number, receipt in receipts.items() if receipt is None]
    if missing:
        raise ClusterError(f"{stage.path}: trial {missing[0]} did not end. Run the command again: finished trials are not redone.")
    for name in names.values():
        shutil.rmtree(stage.path / name, ignore_errors=True)  # checkpoints, an interrupted search's too
    found = [_trial(number, drawn[number], receipt) for number, receipt in receipts.items() if receipt is not None]
    if math.isinf(min(trial.loss for trial in found)):
        raise ConfigError(f"tune: no trial could be fitted: {found[0].failed} Lower tune.learning_rate.")
    return found


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the smallest validation loss, the first of equal ones."""
    return min(trials, key=lambda trial: trial.loss)


def draw(settings: Settings | PairsSettings, number: int) -> dict[str, Any]:
    """What a trial tries: a value of each searched key; numbers have three digits, for people."""
    rng = np.random.default_rng([settings.run.seed, number])
    values: dict[str, Any] = {}
    for key, told in sorted(settings.tune.items()):
        section, name = getattr(settings, title_of(key)), key.rpartition(".")[2]
        if number == 1:
            standing = getattr(section, name)
            values[key] = ABSENT if standing is None else list(standing) if isinstance(standing, tuple) else standing
        elif not isinstance(told, Range):
            chosen = told[int(rng.integers(len(told)))]
            values[key] = list(chosen) if isinstance(chosen, tuple) else chosen
        elif is_whole(type(section), name):
            values[key] = min(int(_even(rng, told.low, told.high + 1, log=told.log)), int(told.high))
        else:
            values[key] = min(max(float(f"{_even(rng, told.low, told.high, log=told.log):.3g}"), told.low), told.high)
    return values


def _even(rng: np.random.Generator, low: float, high: float, *, log: bool) -> float:
    """A number from low to high: all alike, or all magnitudes alike."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high)))) if log else float(rng.uniform(low, high))


def applied(settings: EitherDoor, values: Mapping[str, Any]) -> EitherDoor:
    """The settings with the values in place, and nothing more to search."""
    said = settings.model_dump(exclude_unset=True, exclude={"tune"})
    for key, value in values.items():
        said.setdefault(title_of(key), {})[key.rpartition(".")[2]] = None if value == ABSENT else value
    whole: Any = type(settings)
    return whole.model_validate(said)


def written(text: str, values: Mapping[str, Any]) -> str:
    """A settings file with the values in place of what it said; all else, comments too, stays."""
    document = tomlkit.parse(text)
    for searched, value in values.items():
        section, key = title_of(searched), searched.rpartition(".")[2]
        if section not in document:
            document[section] = tomlkit.table()
        table: Any = document[section]
        if value != ABSENT:
            table[key] = value
        elif key in table:
            del table[key]
    return tomlkit.dumps(document)


def _fit(plan: Plan, report: Report) -> None:
    """One trial: a fit by one worker, in a process of its own."""
    limit_threads(plan)
    from recsys.training.replica import ProcessGroup, Replica

    history: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> None:
        history.append(epoch)
        report({"best": _smallest(history)[-1], "epochs": len(history), "history": list(history)})

    try:
        run_epochs(plan, Replica(plan, ProcessGroup()), on_epoch=on_epoch)
    except ConfigError as error:  # a loss that is no number is an answer, too
        report({"best": DIVERGED, "epochs": len(history) + 1, "history": history, "failed": str(error)})


def _smallest(history: Sequence[Epoch]) -> list[float]:
    """The smallest validation loss so far after each epoch."""
    return np.minimum.accumulate([epoch["val_loss"] for epoch in history]).tolist() if history else []


def _trial(number: int, values: dict[str, Any], receipt: Receipt) -> Trial:
    return Trial(number, values, receipt["history"], receipt["failed"], receipt["stopped"])


# The picture --------------------------------------------------------------------------------------------------------------------


def plot(trials: Sequence[Trial], space: Mapping[str, Any], path: Path, *, kind: str) -> None:
    """A picture of the trials: validation loss by epoch, and the smallest one against each searched setting.

    The best is black, the others grey; circles ran to their end, crosses were stopped early. Fits that failed are left out.

    Args:
        space: the settings' [tune].
        kind: the suffix that says the format, .png or .svg.
    """
    from matplotlib.figure import Figure

    shown = [trial for trial in trials if not math.isinf(trial.loss)]
    winner = best_of(shown)
    keys = sorted(space)
    columns = min(3, len(keys) + 1)
    rows = -(-(len(keys) + 1) // columns)
    picture = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False).ravel()
    for trial in shown:
        losses = [epoch["val_loss"] for epoch in trial.history]
        first = trial is winner
        style: dict[str, Any] = {"color": "0.0" if first else "0.6", "marker": "x" if trial.stopped else "o"}
        style["zorder"] = 2 + first  # the best on top
        style |= {} if trial.stopped else {"markerfacecolor": "white"}
        label = f"best: trial {trial.number}" if first else None
        panels[0].plot(range(1, len(losses) + 1), losses, linestyle="-" if first else "--", label=label, **style)
        for axes, key in zip(panels[1:], keys, strict=False):
            at = trial.values[key]
            axes.plot([at if isinstance(space[key], Range) else word(at)], [trial.loss], markersize=9 if first else 6, **style)
    panels[0].set(xlabel="epoch", ylabel="validation loss")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend()
    for axes, key in zip(panels[1:], keys, strict=False):
        axes.set(xlabel=key, ylabel="smallest validation loss")
        if isinstance(space[key], Range) and space[key].log:
            axes.set_xscale("log")
        axes.tick_params(axis="x", labelrotation=0 if isinstance(space[key], Range) else 20)
    for axes in panels[len(keys) + 1 :]:
        axes.set_axis_off()
    picture.suptitle(f"{len(trials)} trials; cross: stopped early")
    picture.savefig(path, format=kind.removeprefix("."), dpi=150)


def word(value: Any) -> str:
    """A value as people write it: layers as 512-256-128."""
    return "-".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
