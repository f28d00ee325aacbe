"""A step under differential privacy, held against one gradient a user by a tape; what it spends, held against another accountant."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from recsys import config
from recsys.errors import ConfigError
from recsys.features.spec import FeatureSpec
from recsys.ranking.network import logits
from recsys.training import private
from recsys.training.accounting import check_delta, spent
from recsys.training.batches import Examples
from recsys.training.fit import fit_model
from recsys.training.loop import run_epochs
from recsys.training.plan import Plan, kept_epoch, next_epoch
from recsys.training.private import PrivateReplica, UserPass
from recsys.training.replica import ProcessGroup
from tests.fits import SPEC, Files, plan

USERS = 130
NOISELESS = 1e-12  # of which nothing is seen beside a gradient
MANY = FeatureSpec(
    dense=SPEC.dense,
    mean=SPEC.mean,
    scale=SPEC.scale,
    codes=("brand", "tags", "tags"),
    vocabularies={"brand": SPEC.vocabularies["brand"], "tags": ("x", "y")},
)


@pytest.fixture(autouse=True)
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a secret of each run is the same in every run of a test, but of the one that looks at it."""
    monkeypatch.setattr(private.secrets, "randbits", random.Random(7).getrandbits)


@pytest.fixture
def of_users(files: Files, tmp_path: Path) -> Files:
    """The same rows, of users in both files, who have 1 to 11 rows."""
    rng = np.random.default_rng(8)
    made = []
    for file in (*files.train, *files.validation):
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        ids = pa.array(
            [f"user {number}" for number in np.minimum(rng.integers(0, USERS, table.num_rows), rng.integers(0, USERS, table.num_rows))]
        )
        table = table.set_column(0, pa.field("user_id", pa.string(), nullable=False), ids)
        made.append(tmp_path / f"users-{file.name}")
        with pa.OSFile(str(made[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=170)
    return Files(tuple(made[:2]), (made[2],))


def private_plan(files: Files, run: Path, *, noise: float = NOISELESS, clip: float = 0.3, **changes: Any) -> Plan:
    told = {"noise": noise, "clip": clip, "delta": 1e-5, "users": 40, "rows": 4}
    settings: dict[str, Any] = {"privacy": told | changes.pop("privacy", {}), "optimizer": "sgd", "momentum": 0.0} | changes
    return plan(files, run, **settings)


def of_user(replica: PrivateReplica, rows: Examples, mine: np.ndarray) -> list[np.ndarray]:
    """The gradient of one user's mean loss, by a tape, float64."""
    dense, codes, label, _ = rows.batch(mine, len(mine), 1.0)
    weight = rows.weight[mine] / rows.weight[mine].sum()
    scores = logits(replica.model)
    with tf.GradientTape() as tape:
        logit = scores([dense, codes][: len(scores.inputs)], training=False)[:, 0]
        loss = tf.reduce_sum(weight * tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(label, logit.dtype), logit))
    return [
        tf.convert_to_tensor(one).numpy()
        for one in tape.gradient(loss, [variable.value for variable in replica.model.trainable_variables])
    ]


def check_step(files: Files, run: Path, **changes: Any) -> UserPass:
    """One step at a clip that half of the users' gradients are longer than, held against them; what it drew."""
    spec = changes.get("spec", SPEC)
    rows = Examples(files.train, spec)
    first = PrivateReplica(private_plan(files, run, policy="float64", **changes), ProcessGroup())
    drawn = first.passes(rows, epoch=1)
    users = np.split(drawn.rows[0], np.cumsum(drawn.users[0])[:-1])
    clip = float(np.median([length(of_user(first, rows, mine)) for mine in users]))
    replica = PrivateReplica(private_plan(files, run, policy="float64", clip=clip, **changes), ProcessGroup())
    before = [variable.numpy() for variable in replica.model.trainable_variables]
    expected, longer = clipped_sum(replica, rows, users, clip)
    assert 0.3 * len(users) < longer < 0.7 * len(users)
    assert math.isfinite(next(replica.steps(rows, drawn, start=0, epoch=1)))
    for old, variable, slope in zip(before, replica.model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(old - variable.numpy(), float(np.float32(0.01)) * slope / 40, rtol=1e-5, atol=1e-10)
    return drawn


def length(arrays: list[np.ndarray]) -> float:
    return math.sqrt(sum(float((one**2).sum()) for one in arrays))


def clipped_sum(replica: PrivateReplica, rows: Examples, users: list[np.ndarray], clip: float) -> tuple[list[np.ndarray], int]:
    """The sum over users of the gradients, none longer than `clip`; and how many were."""
    total, longer = [np.zeros(variable.shape) for variable in replica.model.trainable_variables], 0
    for mine in users:
        found = of_user(replica, rows, mine)
        longer += length(found) > clip
        for place, one in enumerate(found):
            total[place] += one * min(1.0, clip / length(found))
    return total, longer


@pytest.mark.parametrize(
    "model",
    [
        config.Model(hidden=(16, 8), dropout=0.0),
        config.Model(hidden=(7,), dropout=0.0, normalisation="layer", activation="gelu"),
    ],
)
def test_a_step_is_the_mean_of_the_users_clipped_gradients(of_users: Files, tmp_path: Path, model: config.Model) -> None:
    drawn = check_step(of_users, tmp_path / "run", model=model)
    assert private.CHUNK < len(drawn.users[0]) < 100  # more than one chunk
    assert set(drawn.users[0]) == {1, 2, 3, 4}


def test_several_values_of_a_column_are_one_user_s_too(of_users: Files, tmp_path: Path) -> None:
    wide = []
    for file in (*of_users.train, *of_users.validation):
        with pa.memory_map(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        codes = np.random.default_rng(1).integers(0, 3, (table.num_rows, 3), dtype=np.int32)
        table = table.set_column(3, "codes", pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 3))
        wide.append(tmp_path / f"wide-{file.name}")
        with pa.OSFile(str(wide[-1]), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    files = Files(tuple(wide[:2]), (wide[2],))
    check_step(files, tmp_path / "run", spec=MANY)


def test_the_noise_is_that_of_the_settings_and_another_one_in_every_run(
    of_users: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private.secrets, "randbits", random.SystemRandom().getrandbits)
    ends = []
    for run in ("one", "two"):
        given = private_plan(
            of_users, tmp_path / run, noise=50.0, clip=0.1, learning_rate=1.0, model=config.Model(hidden=(64, 32), dropout=0.0)
        )
        replica = PrivateReplica(given, ProcessGroup())
        rows = Examples(of_users.train, SPEC)
        before = np.concatenate([variable.numpy().ravel() for variable in replica.model.trainable_variables])
        next(replica.steps(rows, replica.passes(rows, epoch=1), start=0, epoch=1))
        ends.append(np.concatenate([variable.numpy().ravel() for variable in replica.model.trainable_variables]) - before)
    expected = 50.0 * 0.1 / 40
    for moved in ends:
        assert np.std(moved) == pytest.approx(expected, rel=0.1)  # of some 2,600 numbers
        assert abs(np.mean(moved)) < 4 * expected / math.sqrt(len(moved))
    assert np.corrcoef(ends[0], ends[1])[0, 1] < 0.1


def test_each_user_is_drawn_alike_and_alone_with_no_more_rows_than_said(of_users: Files, tmp_path: Path) -> None:
    replica = PrivateReplica(private_plan(of_users, tmp_path / "run"), ProcessGroup())
    rows = Examples(of_users.train, SPEC)
    of, starts = rows.by_user
    users = len(starts) - 1
    assert (rows.weight[of] > 0).all()
    assert len(of) == int((rows.weight > 0).sum())
    mine = {tuple(of[starts[user] : starts[user + 1]]): user for user in range(users)}
    seen = np.zeros(users)
    sizes = []
    drawn = replica.passes(rows, epoch=1)
    for epoch in range(1, 101):
        drawn = replica.passes(rows, epoch=epoch)
        assert len(drawn.rows) == -(-users // 40)
        for batch, counts in zip(drawn.rows, drawn.users, strict=True):
            sizes.append(len(counts))
            ends = np.cumsum([0, *counts])
            for first, last in itertools.pairwise(ends.tolist()):
                owner = next(user for all_rows, user in mine.items() if batch[first] in all_rows)
                theirs = of[starts[owner] : starts[owner + 1]]
                assert set(batch[first:last]) <= set(theirs)
                assert last - first == min(len(theirs), 4)
                seen[owner] += 1
    steps = len(sizes)
    chance = 40 / users
    assert np.mean(sizes) == pytest.approx(40, abs=4 * math.sqrt(40 * (1 - chance) / steps))
    assert np.var(sizes) == pytest.approx(40 * (1 - chance), rel=0.35)  # of a binomial, not of batches of one size
    assert (np.abs(seen / steps - chance) < 5 * math.sqrt(chance * (1 - chance) / steps)).all()
    assert drawn.mean([0.0] * (len(drawn.rows) - 1) + [1.0]) == pytest.approx(drawn.weights[-1] / sum(drawn.weights))
    assert UserPass([], [], []).mean([]) == 0.0


def test_two_workers_sum_to_one(of_users: Files, tmp_path: Path) -> None:
    rows = Examples(of_users.train, SPEC)
    drawn: UserPass | None = None
    sent: list[list[np.ndarray]] = []
    for rank, workers in ((0, 1), (0, 2), (1, 2)):
        given = private_plan(of_users, tmp_path / "run", policy="float64")
        replica = PrivateReplica(given, ProcessGroup(rank, workers))
        drawn = drawn or replica.passes(rows, epoch=1)
        applied: list[np.ndarray] = []
        sent.append(applied)

        def apply(flat: Any, expected: Any, applied: list[np.ndarray] = applied) -> Any:
            assert float(expected) == 40
            applied.append(flat.numpy())
            return tf.constant(0.0)

        replica._apply = apply
        next(replica.steps(rows, drawn, start=0, epoch=1))
    (whole,), (first,), (second,) = sent
    np.testing.assert_allclose(first + second, whole, rtol=1e-9, atol=1e-12)
    assert min(np.abs(first).max(), np.abs(second).max()) > 0


def test_all_epochs_run_the_last_is_kept_and_the_history_tells_what_was_spent(of_users: Files, tmp_path: Path) -> None:
    given = private_plan(of_users, tmp_path / "run", noise=1.0, epochs=4, patience=1, learning_rate=0.5)
    state = run_epochs(given, PrivateReplica(given, ProcessGroup()))
    validated = [record for record in state.history if record["phase"] == "validate"]
    refit = [record for record in state.history if record["phase"] == "refit"]
    assert (len(validated), len(refit)) == (4, 4)
    assert kept_epoch(state.history, given.train) == 4
    assert next_epoch(state.history, "refit", given.train) is None
    users = len(Examples(of_users.train, SPEC).by_user[1]) - 1
    more = len(Examples(of_users.train + of_users.validation, SPEC).by_user[1]) - 1
    assert users < more
    assert {(record["users"], record["steps"]) for record in validated} == {(users, -(-users // 40))}
    assert {(record["users"], record["steps"]) for record in refit} == {(more, -(-more // 40))}
    assert given.train.privacy is not None
    told = spent(given.train.privacy, state.history)
    assert told["steps"] == 4 * -(-users // 40) + 4 * -(-more // 40)
    assert told["sampled"] == 40 / users
    assert told["epsilon"] > spent(given.train.privacy, validated)["epsilon"] > 0


@pytest.mark.parametrize(("noise", "users", "steps"), [(1.0, 2_000, 100), (2.0, 1_000, 400), (0.8, 100_000, 500), (3.0, 200, 20)])
def test_epsilon_is_a_little_below_renyi_s(noise: float, users: int, steps: int) -> None:
    given = config.TrainPrivacy(noise=noise, clip=1.0, delta=1e-6, users=256)
    told = spent(given, [{"users": users, "steps": steps}])
    renyi = RdpAccountant()
    chance = min(256 / users, 1)
    renyi.compose(dp_event.PoissonSampledDpEvent(chance, dp_event.GaussianDpEvent(noise)), steps)
    bound = renyi.get_epsilon(1e-6)
    assert 0.5 * bound < told["epsilon"] < bound
    assert told["sampled"] == chance


def test_what_cannot_hold_is_refused(of_users: Files, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.privacy\.delta must be below 1 over the 2,000 users to learn from, got 0\.001\. Set it to 5e-05"
    ):
        check_delta(config.TrainPrivacy(noise=1.0, clip=1.0, delta=1e-3), 2_000)
    check_delta(config.TrainPrivacy(noise=1.0, clip=1.0, delta=1e-4), 2_000)
    given = private_plan(of_users, tmp_path / "run", privacy={"delta": 0.5})
    with pytest.raises(ConfigError, match=r"train\.privacy\.delta must be below 1 over"):
        run_epochs(given, PrivateReplica(given, ProcessGroup()))
    with pytest.raises(TypeError, match=r"no length is known of the gradient of a GroupBatchNormalization"):
        PrivateReplica(
            private_plan(of_users, tmp_path / "batch", model=config.Model(hidden=(4,), normalisation="batch")), ProcessGroup()
        )


@pytest.mark.ray
@pytest.mark.usefixtures("two_actors")
def test_two_workers_of_ray_fit_as_one_does_but_for_the_noise(of_users: Files, tmp_path: Path) -> None:
    given = private_plan(of_users, tmp_path / "one", noise=0.001, epochs=2, learning_rate=0.2, refit=False)
    alone = run_epochs(given, PrivateReplica(given, ProcessGroup()))
    fitted = fit_model(
        of_users.train,
        of_users.validation,
        spec=SPEC,
        model=given.model,
        train=given.train.model_copy(update={"workers": 2}),
        seed=5,
        folder=tmp_path,
        name="fit",
    )
    assert [(one["workers"], one["users"], one["steps"]) for one in fitted.history] == [
        (2, one["users"], one["steps"]) for one in alone.history
    ]
    first, last = fitted.history[0]["val_loss"], fitted.history[-1]["val_loss"]
    assert last < first < 0.75
    assert last == pytest.approx(alone.history[-1]["val_loss"], rel=0.1)  # other users were drawn
    with np.testing.assert_raises(AssertionError):
        np.testing.assert_allclose(fitted.weights[0], alone.weights[0], rtol=1e-6)


def test_what_users_did_chooses_no_epoch() -> None:
    """The validation loss rises from the first epoch on: without privacy that ends the fit, and keeps the first."""
    history = [{"epoch": number, "phase": "validate", "val_loss": float(number)} for number in (1, 2, 3)]
    without = config.Train(epochs=4, patience=1)
    private_one = config.Train(epochs=4, patience=1, privacy=config.TrainPrivacy(noise=1.0, clip=1.0, delta=1e-6))
    assert (kept_epoch(history, without), next_epoch(history, "validate", without)) == (1, None)
    assert (kept_epoch(history, private_one), next_epoch(history, "validate", private_one)) == (3, 4)
