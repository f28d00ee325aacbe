"""Examples of either door -> a bundle, fitted once for the same examples and settings.

Every worker holds the whole model and takes its part of each global batch; gradients are summed over the workers before the
optimizer sees them. The step is our own (`replica.py`) as Keras's `fit` fails with two or more workers (keras#20585, ray#47464). Step s
of epoch e is a slice of an order seeded by (seed, epoch) that knows nothing of workers; no row is lost or taken twice.

Ray Train starts the workers, and starts all of them again when one fails or the cluster changes; they go on from the last checkpoint
(`checkpoints.py`), as does the same command run again.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys import config
from recsys.config import PairsSettings, Settings
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.workers import check_room, launch
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle as bundles
from recsys.ranking.bundle import Bundle
from recsys.ranking.calibration import Calibrated
from recsys.storage import code_digest, digest
from recsys.training.accounting import check_accountant, spent
from recsys.training.batches import check_examples
from recsys.training.checkpoints import HISTORY, Checkpoints, Epoch, Weights
from recsys.training.plan import Plan, kept_epoch
from recsys.training.worker import work

if TYPE_CHECKING:
    import keras

FREE = {"max_failures", "checkpoint_seconds"}  # settings of [train] that no weight depends on


@dataclass(frozen=True)
class Fit:
    """What a fit leaves."""

    history: list[Epoch]
    best_epoch: int
    """From 1: the epoch whose weights are kept, that with the smallest validation loss; the refit ran this many."""
    weights: Weights
    """Of the refit, which saw the validation rows too; without one, of the best epoch."""
    validated_weights: Weights
    """Of the best epoch, which never saw them: what calibration may trust."""
    plan: Plan

    def model(self, weights: Weights | None = None) -> "keras.Model":
        """The fitted model with the fit's weights, or with those given; imports Keras."""
        from recsys.ranking.network import build

        model = build(self.plan.spec, self.plan.model, seed=self.plan.seed)
        model.set_weights(self.weights if weights is None else weights)
        return model


def fit_model(
    train_files: Sequence[Path],
    validation_files: Sequence[Path],
    *,
    spec: FeatureSpec,
    model: config.Model,
    train: config.Train,
    seed: int,
    folder: Path,
    name: str,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fit:
    """The fitted weights: early stopping on the validation rows, then, with train.refit, a fit from the start on all rows.

    Args:
        train_files: examples as uncompressed Arrow IPC files of `schema.examples_schema`, dense inputs not normalised; every
            worker maps them into memory.
        validation_files: as `train_files`; none of them may be empty altogether.
        folder: shared by every node; checkpoints go to a folder in it.
        name: of that folder, with a digest of settings, spec, seed, code and the files' names and sizes after it: the same command run
            again goes on from the last checkpoint, another setting never does.
        on_epoch: called in this process, from another thread, after every epoch.

    Raises:
        DataError: no rows, no weight, or other columns than the spec's.
        ClusterError: the cluster cannot hold the workers, they failed more than train.max_failures times, or a checkpoint could
            not be written.
        ConfigError: the loss stopped being finite, or the GPU has no bfloat16.
    """
    check_fit(train_files, validation_files, spec=spec, train=train)
    # absolute: Train changes the workers' directory
    files = [tuple(Path(file).absolute() for file in part) for part in (train_files, validation_files)]
    identity = {
        "spec": spec.to_json(),
        "model": model,
        "train": train.model_dump(mode="json", exclude=FREE),
        "seed": seed,
        "files": [[(file.name, file.stat().st_size) for file in part] for part in files],
        "code": code_digest(),
    }
    run = Path(folder).absolute() / f"{name}-{digest(identity)}"
    run.mkdir(parents=True, exist_ok=True)
    plan = Plan(files[0], files[1], spec=spec, model=model, train=train, seed=seed, run=run)
    with _watch(run / HISTORY, on_epoch):
        error = launch_plan(work, plan)
    if error is not None:
        raise error
    checkpoints = Checkpoints(run)
    state = checkpoints.read(checkpoints.newest())
    weights = state.weights if train.refit else state.best_weights
    return Fit(state.history, kept_epoch(state.history, train), weights, state.best_weights, plan)


def launch_plan(work: Callable[[dict[str, Any]], Any], plan: Plan) -> Any:
    """What `work` returned in the first of the plan's workers; it is called in each with the plan under "plan".

    Raises:
        ClusterError: the workers failed more than train.max_failures times.
    """
    train = plan.train
    return launch(
        work,
        {"plan": plan},
        folder=plan.run,
        workers=train.workers,
        gpu=train.device == "gpu",
        max_failures=train.max_failures,
    )


def check_fit(train_files: Sequence[Path], validation_files: Sequence[Path], *, spec: FeatureSpec, train: config.Train) -> None:
    """Refuse a fit that cannot run.

    Raises:
        DataError: no rows, no weight, or other columns than the spec's.
        ClusterError: the cluster cannot hold the workers.
    """
    if train.privacy is not None:
        check_accountant()
    check_examples(train_files, spec, "training")
    check_examples(validation_files, spec, "validation")
    check_room(train.fewest_workers, gpu=train.device == "gpu")


@contextmanager
def _watch(history: Path, on_epoch: Callable[[Epoch], None] | None) -> Iterator[None]:
    """While inside, `on_epoch` gets what rank 0 adds to the history, and nothing of an earlier attempt twice."""
    if on_epoch is None:
        yield
        return
    over = threading.Event()

    def read() -> list[Epoch]:
        return json.loads(history.read_text(encoding="utf-8")) if history.exists() else []

    def follow(seen: int) -> None:
        while True:
            last = over.wait(0.5)
            records = read()
            for record in records[seen:]:
                on_epoch(record)
            seen = max(seen, len(records))
            if last:
                return

    thread = threading.Thread(target=follow, args=(len(read()),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Labelled:
    """What a fit reads, made by either door."""

    fitting: Sequence[Path]
    """Files of examples to fit, as `fit.fit_model` takes them."""
    validating: Sequence[Path]
    """Files of examples that decide the number of epochs."""
    identity: Mapping[str, Any]
    """Names them, as a stage's inputs."""
    spec: Callable[[], FeatureSpec]
    """Makes the spec of the inputs."""
    window: Mapping[str, Any]
    """The dates of the examples, as plain values."""
    counts: Mapping[str, int]
    """Of the examples; `rows` at least."""
    decided: Mapping[str, Any] = field(default_factory=dict)
    """What the shop's past decided beside the settings, as plain values."""


@dataclass(frozen=True)
class Trained:
    """A bundle and what its training printed."""

    bundle: Bundle
    examples: Mapping[str, int]
    """Rows, positives and what else the door counted."""
    history: list[dict[str, Any]]
    best_epoch: int


def fit_inputs(settings: Settings | PairsSettings) -> dict[str, Any]:
    """What the weights depend on beside the examples, as a stage's inputs."""
    return {
        "model": settings.model,
        "train": settings.train.model_dump(mode="json", exclude=FREE),
        "seed": settings.run.seed,
    }


def fit_bundle(
    stage: Stage,
    labelled: Labelled,
    *,
    settings: Settings | PairsSettings,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    calibrate: Callable[[Bundle], Calibrated] | None = None,
) -> Trained:
    """The stage's bundle; the fit runs where it is not there yet.

    The calibration is fitted to the best epoch's weights, which never saw the validation rows, and also serves the refit's. Those
    have seen every window there is, so nothing could be held against them without flattering them; they come from the same settings
    and number of epochs on somewhat more rows. The backtest measures what is published, on purchases that neither saw.

    Args:
        stage: its digest names everything that the weights depend on.
        labelled: its spec is made only where the fit runs.
        calibrate: makes the calibration of a bundle that never saw the validation rows; called only where the fit runs. Absent: the
            bundle has none.
    """
    folder = stage.path / "bundle"

    def fit_it() -> Receipt:
        log.info("train: %s examples, %s workers", f"{labelled.counts['rows']:,}", settings.train.workers)
        fed = labelled.spec()
        fit = fit_model(
            labelled.fitting,
            labelled.validating,
            spec=fed,
            model=settings.model,
            train=settings.train,
            seed=settings.run.seed,
            folder=stage.path,
            name="fit",
            on_epoch=on_epoch,
        )
        about = {"settings": settings.model_dump(mode="json"), "decided": labelled.decided, "window": labelled.window}
        metrics: dict[str, Any] = {"history": fit.history, "best_epoch": fit.best_epoch, "examples": labelled.counts}
        if settings.train.privacy is not None:
            metrics["privacy"] = spent(settings.train.privacy, fit.history)
        calibration = None
        if calibrate is not None:
            validated = bundles.save(stage.path / "validated", fit.model(fit.validated_weights), fed, metrics=metrics, **about)
            calibrated = calibrate(validated)
            calibration = calibrated.calibration
            metrics |= {"calibration": {"kind": calibration.name, "held_out_log_loss": calibrated.held_out}}
        bundles.save(folder, fit.model(), fed, metrics=metrics, calibration=calibration, **about)
        return {"history": fit.history, "best_epoch": fit.best_epoch}

    receipt = stage.once("bundle", fit_it)
    return Trained(bundles.load(folder), labelled.counts, receipt["history"], receipt["best_epoch"])
