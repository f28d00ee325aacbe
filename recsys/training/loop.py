"""One worker's way through a fit, epoch by epoch, from the last checkpoint to the end. The same in every worker, at the same time.

First the training rows are fitted and the validation rows say which epoch was best; then, if refit is on, everything starts again
on all rows for so many epochs. Every decision rests on numbers that all workers hold with the same bits, so all decide alike.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from recsys.errors import ClusterError, ConfigError
from recsys.metrics import classification
from recsys.training.batches import Examples, class_weighted, evened
from recsys.training.checkpoints import Checkpoints, Epoch, State
from recsys.training.plan import REFIT, VALIDATE, Plan, kept_epoch, next_epoch

if TYPE_CHECKING:
    from recsys.training.replica import Replica

SECOND = 1.0  # of train.checkpoint_seconds; a test shortens it


def run_epochs(plan: Plan, replica: "Replica", *, on_epoch: Callable[[Epoch], None] | None = None) -> State:
    """The state at the end of the fit.

    Args:
        on_epoch: called after every epoch, first for those of the checkpoint that the fit goes on from.

    Raises:
        ConfigError: the loss stopped being finite.
        ClusterError: the checkpoint at the end of an epoch could not be written. One inside an epoch may fail: the next is tried.
    """
    checkpoints = Checkpoints(plan.run)
    first = replica.group.rank == 0
    start = state = State([], [], replica.weights(), replica.optimizer_state(), best_weights=[])
    # one worker looks and all hear of it: a file that is just being renamed would be there for some only
    if number := int(replica.total(np.array([checkpoints.newest() if first else 0], np.float64))[0]):
        state = checkpoints.read(number)
    if on_epoch is not None:
        for record in state.history:
            on_epoch(record)
    validation = Examples(plan.validation_files, plan.spec)
    for phase in (VALIDATE, REFIT):
        rows = Examples(plan.train_files if phase == VALIDATE else plan.train_files + plan.validation_files, plan.spec)
        if rows.group is not None:
            rows.weight = evened(rows.group, rows.weight)
        rows.weight = class_weighted(rows.label, rows.weight, plan.train.class_weights)
        begun = phase == VALIDATE or state.losses or any(record["phase"] == phase for record in state.history)
        replica.restore(state if begun else start)
        while (epoch := next_epoch(state.history, phase, plan.train)) is not None:
            batches = replica.passes(rows, epoch=epoch)
            losses, done = list(state.losses), len(state.losses)
            begin = saved = time.monotonic()
            first_step = 0.0
            for loss in replica.steps(rows, batches, start=done, epoch=epoch):
                _check_finite(loss, f"step {len(losses) + 1} of epoch {epoch} ({phase})", plan)
                losses.append(loss)
                first_step = first_step or round(time.time(), 3)
                if first and time.monotonic() - saved >= plan.train.checkpoint_seconds * SECOND and len(losses) < len(batches.rows):
                    with suppress(OSError):
                        here = State(state.history, losses, replica.weights(), replica.optimizer_state(), state.best_weights)
                        checkpoints.write(here)
                    saved = time.monotonic()
            seconds = time.monotonic() - begin
            record: Epoch = {"epoch": epoch, "phase": phase, "loss": batches.mean(losses), "workers": replica.group.workers}
            record |= {"first_step": first_step, "seconds": seconds, "rows_per_second": sum(map(len, batches.rows[done:])) / seconds}
            record |= replica.told(rows, batches)
            if phase == VALIDATE:
                record |= {f"val_{name}": value for name, value in _figures(replica, validation, plan.train.loss).items()}
                _check_finite(record["val_loss"], f"validation after epoch {epoch}", plan)
            history = [*state.history, record]
            weights = replica.weights()
            better = phase == VALIDATE and kept_epoch(history, plan.train) == epoch
            state = State(history, [], weights, replica.optimizer_state(), weights if better else state.best_weights)
            _write(checkpoints, state, replica, first=first)
            if on_epoch is not None:
                on_epoch(record)
    return state


def _figures(replica: "Replica", rows: Examples, loss: str) -> dict[str, float]:
    """Of all rows, by all workers; the same for every number of them."""
    chances = expit(replica.logits_of(rows).astype(np.float64))
    figures = classification(rows.label, chances, rows.weight)
    if loss == "mean_squared_error":
        figures["loss"] = float(np.average((rows.label - chances) ** 2, weights=rows.weight))
    return figures


def _check_finite(loss: float, where: str, plan: Plan) -> None:
    if not np.isfinite(loss):
        raise ConfigError(
            f"training: the loss must be finite, got {loss} in {where}. Lower train.learning_rate "
            f"({plan.train.learning_rate:g}), set train.clip_norm, or look for absurd values in the numeric columns. "
            f"The last checkpoint before it stands in {plan.run}."
        )


def _write(checkpoints: Checkpoints, state: State, replica: "Replica", *, first: bool) -> None:
    """The checkpoint, written by the first worker; the others wait, and hear if it failed."""
    reason = None
    if first:
        try:
            checkpoints.write(state)
        except OSError as error:
            reason = error.strerror
    if replica.total(np.array([reason is not None], np.float64))[0]:
        epoch = state.history[-1]["epoch"]
        raise ClusterError(
            f"{checkpoints.folder}: the checkpoint after epoch {epoch} must be written, got: {reason}. Make room and run the same "
            "command again: it goes on from the last checkpoint, which stands."
        )
