"""What a fit is: the plan that every worker is told, and which epoch comes next."""

from dataclasses import dataclass
from pathlib import Path

from recsys import config
from recsys.features.spec import FeatureSpec
from recsys.training.checkpoints import Epoch

VALIDATE = "validate"  # fit on the training rows, validation rows decide how many epochs
REFIT = "refit"  # from the start again on all rows, that many epochs


@dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    train_files: tuple[Path, ...]
    validation_files: tuple[Path, ...]
    spec: FeatureSpec
    model: config.Model
    train: config.Train
    seed: int
    run: Path
    """Folder of the checkpoints, shared by every node."""
    policy: str | None = None
    """Keras dtype policy; absent, train.precision. The proof that workers agree runs in float64."""


def next_epoch(history: list[Epoch], phase: str, train: config.Train) -> int | None:
    """The epoch to run next, from 1; None where the phase is over. All workers hold the same history, so all agree."""
    done = sum(record["phase"] == phase for record in history)
    if phase == REFIT:
        return done + 1 if train.refit and done < kept_epoch(history, train) else None
    stops = train.patience if train.privacy is None else None
    if done == train.epochs or (stops and done and done - best_epoch(history) >= stops):
        return None
    return done + 1


def kept_epoch(history: list[Epoch], train: config.Train) -> int:
    """The epoch whose weights are kept: the best; under train.privacy the last, as a choice by what users did would tell of them."""
    if train.privacy is None:
        return best_epoch(history)
    return max(record["epoch"] for record in history if record["phase"] == VALIDATE)


def best_epoch(history: list[Epoch]) -> int:
    """The epoch with the smallest validation loss, the earliest of equal ones."""
    return min((record for record in history if record["phase"] == VALIDATE), key=lambda record: record["val_loss"])["epoch"]
