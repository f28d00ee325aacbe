import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typing_extensions import override

from recsys import config
from recsys.errors import ClusterError, ConfigError
from recsys.training import loop
from recsys.training.batches import Examples, evened
from recsys.training.checkpoints import Checkpoints, Epoch, State
from recsys.training.loop import run_epochs
from recsys.training.plan import REFIT, VALIDATE, Plan, next_epoch
from recsys.training.replica import ProcessGroup, Replica
from tests.fits import SPEC, Files, plan


class StoppedError(Exception):
    """Ends a walk where a kill would."""


class Stopping(Checkpoints):
    """Checkpoints of which the last that is wanted ends the walk."""

    left = 0

    @override
    def write(self, state: State) -> None:
        super().write(state)
        type(self).left -= 1
        if self.left == 0:
            raise StoppedError


class Full(Checkpoints):
    """A disk that is full once the first checkpoint is on it."""

    @override
    def write(self, state: State) -> None:
        if self.newest():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(state)


def alone(told: Plan) -> State:
    """The end of a fit by one worker, in this process."""
    return run_epochs(told, Replica(told, ProcessGroup()))


def stopped(told: Plan, checkpoints: int) -> None:
    """The same, up to so many checkpoints."""
    Stopping.left = checkpoints
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Checkpoints", Stopping)
        with pytest.raises(StoppedError):
            alone(told)


def assert_equal(one: State, two: State) -> None:
    """The same bits."""
    for name in ("weights", "optimizer", "best_weights"):
        for left, right in zip(getattr(one, name), getattr(two, name), strict=True):
            np.testing.assert_array_equal(left, right)
    clocks = ("first_step", "seconds", "rows_per_second")
    for left, right in zip(one.history, two.history, strict=True):
        assert {key: left[key] for key in left if key not in clocks} == {key: right[key] for key in right if key not in clocks}


def test_a_walk_goes_on_from_the_end_of_any_epoch_with_the_same_bits(files: Files, tmp_path: Path):
    mlp = config.Model(hidden=(16, 8), dropout=0.3, normalisation="batch")
    told = plan(files, tmp_path / "one", model=mlp, schedule="cosine", epochs=2, patience=None)
    undisturbed = alone(told)
    assert [(record["phase"], record["epoch"]) for record in undisturbed.history[:2]] == [(VALIDATE, 1), (VALIDATE, 2)]
    for checkpoints in range(1, len(undisturbed.history)):
        run = replace(told, run=tmp_path / str(checkpoints))
        run.run.mkdir()
        stopped(run, checkpoints)
        assert_equal(alone(run), undisturbed)


def test_whoever_follows_a_walk_hears_of_every_epoch_once_and_of_those_before_it(files: Files, tmp_path: Path):
    told = plan(files, tmp_path, epochs=2, patience=None)
    stopped(told, 1)
    heard: list[Epoch] = []
    history = run_epochs(told, Replica(told, ProcessGroup()), on_epoch=heard.append).history
    assert heard == history
    assert [record["epoch"] for record in heard[:2]] == [1, 2]


def test_a_walk_goes_on_from_within_an_epoch_with_the_same_bits(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a clock that is late at every look, each of the 11 steps but the last leaves a checkpoint, of the refit's 14 too."""
    told = plan(files, tmp_path / "one", model=config.Model(hidden=(16, 8), dropout=0.3), epochs=1)
    undisturbed = alone(told)
    monkeypatch.setattr(loop, "SECOND", 0.0)
    for checkpoints in (5, 16):
        run = replace(told, run=tmp_path / str(checkpoints))
        run.run.mkdir()
        stopped(run, checkpoints)
        reached = Checkpoints(run.run).read(Checkpoints(run.run).newest())
        assert (len(reached.history), len(reached.losses)) == {5: (0, 5), 16: (1, 5)}[checkpoints]
        assert_equal(alone(run), undisturbed)


def test_without_a_refit_the_fit_ends_with_the_validation(files: Files, tmp_path: Path):
    state = alone(plan(files, tmp_path, refit=False, epochs=2))
    assert {record["phase"] for record in state.history} == {VALIDATE}


def test_even_groups_reach_training_rows_and_leave_validation_alone(files: Files, tmp_path: Path):
    """Two fits that differ in the groups alone, against one whose rows were weighted by hand."""
    made: dict[str, list[Path]] = {"groups": [], "by hand": []}
    draw = np.random.default_rng(4)
    of = [pa.array(draw.choice(["a", "b"], pa.ipc.open_file(str(file)).read_all().num_rows, p=[0.9, 0.1])) for file in files.train]
    tables = [pa.ipc.open_file(str(file)).read_all() for file in files.train]
    weight = np.concatenate([table.column("weight").to_numpy() for table in tables])
    code = np.concatenate([(words.to_numpy(zero_copy_only=False) == "b").astype(np.int64) for words in of])
    by_hand = evened(code, weight)
    ends = np.cumsum([0, *(table.num_rows for table in tables)])
    for number, (table, words) in enumerate(zip(tables, of, strict=True)):
        mine = pa.array(by_hand[ends[number] : ends[number + 1]])
        changed = table.set_column(table.schema.get_field_index("weight"), table.schema.field("weight"), mine)
        for name, one in (("groups", table.append_column("group", words)), ("by hand", changed)):
            made[name].append(tmp_path / f"{name}-{number}.arrow")
            with pa.OSFile(str(made[name][-1]), "wb") as sink, pa.ipc.new_file(sink, one.schema) as writer:
                writer.write_table(one)
    held = pa.ipc.open_file(str(files.validation[0])).read_all()
    held = held.append_column("group", pa.array(["a"] * held.num_rows))
    with pa.OSFile(str(tmp_path / "held.arrow"), "wb") as sink, pa.ipc.new_file(sink, held.schema) as writer:
        writer.write_table(held)
    plain, grouped, weighted = (
        alone(plan(Files(tuple(paths), (validation,)), tmp_path / name, epochs=1, refit=False)).history[0]
        for name, paths, validation in (
            ("plain", files.train, files.validation[0]),
            ("groups", made["groups"], tmp_path / "held.arrow"),
            ("by hand", made["by hand"], files.validation[0]),
        )
    )
    assert grouped["loss"] == pytest.approx(weighted["loss"], rel=1e-6)
    assert grouped["val_loss"] == pytest.approx(weighted["val_loss"], rel=1e-6)
    assert abs(grouped["loss"] - plain["loss"]) > 1e-4


def test_class_weights_reach_training_rows_and_leave_validation_alone(files: Files, tmp_path: Path):
    plain, weighted = (
        alone(plan(files, tmp_path / str(factor), learning_rate=1e-9, epochs=1, refit=False, class_weights=[1.0, factor]))
        for factor in (1.0, 9.0)
    )
    rows = Examples(files.train, SPEC)
    replica = Replica(plan(files, tmp_path), ProcessGroup())  # at so small a rate the weights stay those of the start
    chance = 1 / (1 + np.exp(-replica.logits_of(rows).astype(np.float64)))
    losses = -np.where(rows.label > 0, np.log(chance), np.log1p(-chance))
    weight = rows.weight * np.where(rows.label > 0, 9, 1)
    assert plain.history[0]["loss"] == pytest.approx(np.average(losses, weights=rows.weight), rel=1e-5)
    assert weighted.history[0]["loss"] == pytest.approx(np.average(losses, weights=weight), rel=1e-5)
    assert weighted.history[0]["val_loss"] == pytest.approx(plain.history[0]["val_loss"], rel=1e-6)


def test_the_validation_loss_is_the_chosen_one(files: Files, tmp_path: Path):
    told = plan(files, tmp_path, loss="mean_squared_error", epochs=1, refit=False)
    replica = Replica(told, ProcessGroup())
    state = run_epochs(told, replica)
    replica.restore(state)
    rows = Examples(files.validation, SPEC)
    chance = 1 / (1 + np.exp(-replica.logits_of(rows).astype(np.float64)))
    assert state.history[0]["val_loss"] == pytest.approx(np.average((rows.label - chance) ** 2, weights=rows.weight), rel=1e-6)


def test_a_loss_that_is_no_number_ends_the_fit_and_the_checkpoint_before_it_stands(files: Files, tmp_path: Path):
    told = plan(files, tmp_path, epochs=1, refit=False)
    before = alone(told)
    wild = replace(told, train=config.Train.model_validate({**told.train.model_dump(), "epochs": 3, "learning_rate": 1e38}))
    message = r"the loss must be finite, got (nan|inf) in step \d+ of epoch 2 \(validate\)\. Lower train\.learning_rate \(1e\+38\)"
    with pytest.raises(ConfigError, match=message):
        alone(wild)
    assert_equal(Checkpoints(tmp_path).read(Checkpoints(tmp_path).newest()), before)


def test_a_full_disk_at_an_epoch_s_end_ends_the_fit_and_freeing_it_goes_on(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    undisturbed = alone(plan(files, tmp_path / "one", epochs=2))
    told = plan(files, tmp_path / "two", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "Checkpoints", Full)
        message = r"two: the checkpoint after epoch 2 must be written, got: No space left on device\. Make room"
        with pytest.raises(ClusterError, match=message):
            alone(told)
    assert len(Checkpoints(told.run).read(1).history) == 1
    assert_equal(alone(told), undisturbed)


def test_a_full_disk_inside_an_epoch_does_no_harm_before_its_end(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = plan(files, tmp_path / "two", epochs=1, refit=False)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SECOND", 0.0)
        patch.setattr(loop, "Checkpoints", Full)
        with pytest.raises(ClusterError, match="the checkpoint after epoch 1 must be written"):  # at its end, not at the second step
            alone(told)


@pytest.mark.parametrize(
    ("losses", "refits", "validate", "refit"),
    [
        ([], 0, 1, None),
        ([0.5], 0, 2, None),
        ([0.5, 0.4, 0.41], 0, 4, None),  # one epoch without a better one: patience is 2
        ([0.5, 0.4, 0.41, 0.4], 0, None, 1),  # two; an equal loss is not better
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, None, 1),  # all epochs there are
        ([0.5, 0.4, 0.41, 0.4], 1, None, 2),
        ([0.5, 0.4, 0.41, 0.4], 2, None, None),
    ],
)
def test_the_history_alone_says_what_comes_next(losses: list[float], refits: int, validate: int | None, refit: int | None):
    history: list[Epoch] = [{"phase": VALIDATE, "epoch": number, "val_loss": loss} for number, loss in enumerate(losses, start=1)] + [
        {"phase": REFIT, "epoch": number} for number in range(1, refits + 1)
    ]
    settings = config.Train(epochs=5, patience=2)
    assert next_epoch(history, VALIDATE, settings) == validate
    if validate is None:
        assert next_epoch(history, REFIT, settings) == refit


def test_without_patience_all_epochs_run_and_without_refit_none_follows():
    history: list[Epoch] = [{"phase": VALIDATE, "epoch": number, "val_loss": 0.1 * number} for number in (1, 2, 3)]
    changes: dict[str, Any] = {"epochs": 4, "patience": None, "refit": False}
    train = config.Train(**changes)
    assert next_epoch(history, VALIDATE, train) == 4
    history.append({"phase": VALIDATE, "epoch": 4, "val_loss": 0.4})
    assert (next_epoch(history, VALIDATE, train), next_epoch(history, REFIT, train)) == (None, None)
