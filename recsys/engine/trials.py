"""Trials side by side on Ray Tune, stopped early by asynchronous successive halving (Li et al. 2020, `ASHAScheduler`)."""

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler
from typing_extensions import override

from recsys.engine.room import cpus, gpus
from recsys.errors import ClusterError, one_line, raise_ending

HALVING = 3  # of the trials that come to a rung one in so many goes on (Li et al. 2020 use 4; few trials are the rule here)

Report = Callable[[Mapping[str, Any]], None]
"""Takes what a trial says after an epoch: `best`, its smallest loss so far, `epochs`, how many it made, and whatever else."""


def run_trials(
    folder: Path,
    trials: Mapping[int, Any],
    fit: Callable[[Any, Report], None],
    *,
    ended: Sequence[Sequence[float]],
    on_end: Callable[[int, dict[str, Any]], None],
    epochs: int,
    gpu: bool,
    max_failures: int,
) -> None:
    """Run the trials side by side, a process each, judged beside those that ended before.

    Args:
        folder: shared by every node; Ray's own files lie in it while trials run.
        trials: number -> what `fit` takes beside the report.
        ended: of each trial of an earlier run its smallest loss after every epoch.
        on_end: called with the number and the last report of each trial that ends.
        epochs: the most that a trial makes.
        gpu: each trial gets one, beside its CPU.
        max_failures: how often a trial is started again whose process ended.

    Raises:
        ClusterError: a trial failed more often than that.
    """
    attempt = f"ray-{uuid.uuid4().hex}"
    follow = _Follow(on_end)
    halving = ASHAScheduler(metric="best", mode="min", time_attr="epochs", max_t=epochs, grace_period=1, reduction_factor=HALVING)
    for number, losses in enumerate(ended):  # what an earlier run told it
        trial: Any = SimpleNamespace(trial_id=f"ended-{number}")
        controller: Any = None
        halving.on_trial_add(controller, trial)
        for epoch, best in enumerate(losses, 1):
            halving.on_trial_result(controller, trial, {"best": best, "epochs": epoch})
    needs: dict[str, float] = {"CPU": 1, "GPU": 1} if gpu else {"CPU": 1}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_run_trial, trials=dict(trials), fit=fit), needs),
        param_space={"number": tune.grid_search(list(trials))},
        tune_config=tune.TuneConfig(scheduler=halving, max_concurrent_trials=max(gpus() if gpu else cpus(), 1)),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=str(folder),
            callbacks=[follow],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        tuner.fit()
    except RayError as error:
        raise_ending(error)
        raise ClusterError(
            f"{folder}: Ray gave up on the trials: {type(error).__name__}: {one_line(error)} "
            "Its logs are in its session folder; run the command again: finished trials are not redone."
        ) from error
    finally:
        shutil.rmtree(folder / attempt, ignore_errors=True)
    if follow.errors:
        number, error = next(iter(follow.errors.items()))
        raise ClusterError(
            f"{folder}: trial {number} failed and was retried {max_failures} times: {error} "
            "Mend the cause and run the same command again: finished trials are not redone."
        )


def _run_trial(config: dict[str, int], trials: dict[int, Any], fit: Callable[[Any, Report], None]) -> None:
    """One trial, in a process of its own."""
    fit(trials[config["number"]], lambda said: tune.report(dict(said)))


class _Follow(tune.Callback):
    """Hands on what trials reported last."""

    def __init__(self, on_end: Callable[[int, dict[str, Any]], None]) -> None:
        self.on_end = on_end
        self.said: dict[int, dict[str, Any]] = {}
        self.errors: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks to disk, for a way of resuming that is not ours; a progress bar cannot be written

    @override
    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.said[trial.config["number"]] = result

    @override
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        self.on_end(number, self.said[number])

    @override
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.errors[trial.config["number"]] = str(trial.get_error()).strip().splitlines()[-1]
