"""Examples of either door -> a bundle, made once for the same examples and settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys import bundle as bundles
from recsys import train
from recsys.bundle import Bundle
from recsys.calibrate import Calibrated
from recsys.config import PairsSettings, Settings
from recsys.runtime import log
from recsys.spec import FeatureSpec
from recsys.work import Stage


@dataclass(frozen=True)
class Labelled:
    """What a fit reads, made by either door."""

    fitting: Sequence[Path]
    """Files of examples to fit, as `train.fit` takes them."""
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
        "train": settings.train.model_dump(mode="json", exclude=train.FREE),
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
    receipt = stage.receipt("bundle")
    if receipt is None:
        log.info("train: %s examples, %s workers", f"{labelled.counts['rows']:,}", settings.train.workers)
        fed = labelled.spec()
        fit = train.fit(
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
        about = {"settings": settings.model_dump(mode="json"), "window": labelled.window}
        metrics: dict[str, Any] = {"history": fit.history, "best_epoch": fit.best_epoch, "examples": labelled.counts}
        calibration = None
        if calibrate is not None:
            validated = bundles.save(stage.path / "validated", fit.model(fit.validated_weights), fed, metrics=metrics, **about)
            calibrated = calibrate(validated)
            calibration = calibrated.calibration
            metrics |= {"calibration": {"kind": calibration.kind, "held_out_log_loss": calibrated.held_out}}
        bundles.save(folder, fit.model(), fed, metrics=metrics, calibration=calibration, **about)
        receipt = stage.finish("bundle", {"history": fit.history, "best_epoch": fit.best_epoch})
    return Trained(bundles.load(folder), labelled.counts, receipt["history"], receipt["best_epoch"])
