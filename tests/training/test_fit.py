import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.cloudpickle
from typing_extensions import override

import recsys
from recsys import config
from recsys.errors import ClusterError, ConfigError, DataError
from recsys.features.spec import FeatureSpec
from recsys.metrics import classification
from recsys.training import fit as fit_module
from recsys.training.batches import Examples
from recsys.training.checkpoints import HISTORY, Checkpoints, Epoch, State
from recsys.training.fit import Fit, fit_model, launch_plan
from recsys.training.loop import run_epochs
from recsys.training.plan import REFIT, VALIDATE, Plan
from recsys.training.worker import check_gpus, join
from tests import fits
from tests.fits import HELD_OUT, SPEC, Files, plan, write
from tests.processes import alive, descendants


class DyingSpec(FeatureSpec):
    """Kills its worker, once, in the middle of the second epoch: an epoch is 11 batches, and a block of validation rows."""

    calls = 0
    marker = Path()

    @override
    def normalise(self, dense: np.ndarray) -> np.ndarray:
        cls = type(self)
        cls.calls += 1
        if cls.calls == 15 and not cls.marker.exists():
            cls.strike()
        return super().normalise(dense)

    @classmethod
    def strike(cls) -> None:
        cls.marker.touch()
        time.sleep(1)  # until the driver, which looks now and then, has told of the first epoch
        os.kill(os.getpid(), signal.SIGKILL)


class RegicidalSpec(DyingSpec):
    """Kills Ray Train's controller instead."""

    @override
    @classmethod
    def strike(cls) -> None:
        command = ["ps", "--ppid", str(os.getppid()), "-o", "pid=,args="]  # what the raylet started
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        controllers = [int(line.split()[0]) for line in listed if "ray::TrainContr" in line]
        cls.marker.write_text(str(len(controllers)))
        for one in controllers:
            os.kill(one, signal.SIGKILL)
        time.sleep(60)  # Ray ends this process, whose owner is gone


@contextmanager
def by_value() -> Iterator[None]:
    """Inside, Ray sends what is defined in these files as it is: workers cannot import them."""
    modules = (sys.modules[__name__], fits)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


# N workers are one ---------------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # dtype, [model], [train]
    "adam": ("float64", {}, {"optimizer": "adam"}),
    "sgd": ("float64", {}, {"optimizer": "sgd"}),
    "everything else": (
        "float64",
        {"activation": "gelu", "normalisation": "batch", "initialiser": "he_normal"},
        {"optimizer": "sgd", "schedule": "cosine", "warmup_epochs": 1, "clip_norm": 0.5, "l2": 1e-3, "class_weights": "balanced"}
        | {"loss": "mean_squared_error", "learning_rate": 0.1},
    ),
    "adamw and layer normalisation": (
        "float64",
        {"activation": "tanh", "normalisation": "layer", "initialiser": "random_normal"},
        {"optimizer": "adamw", "weight_decay": 0.1, "class_weights": [1.0, 3.0]},
    ),
    "adam in float32": ("float32", {}, {"optimizer": "adam"}),
    "sgd in float32": ("float32", {}, {"optimizer": "sgd"}),
}
STEPS = 50  # 5 epochs of 9 batches of 64 rows and one of 3: of four workers one has no row then
PROVED_ROWS = 9 * 64 + 3


def prove(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every case, one after the other, in one worker of a real Ray Train run; what the first of them holds at the end."""
    told = job["plan"]
    group = join(told)
    from recsys.training import replica as replicas

    vars(replicas)["BLOCK"] = 32  # so that 150 validation rows are five blocks, and every worker has one
    held: dict[str, dict[str, Any]] = {}
    for name, (policy, model, settings) in CASES.items():
        mlp = config.Model(hidden=(16, 8), dropout=0.0, **model)
        fitted = config.Train.model_validate({**told.train.model_dump(), **settings})
        case = replace(told, model=mlp, train=fitted, policy=policy, run=told.run / name)
        case.run.mkdir(exist_ok=True)
        replica = replicas.Replica(case, group)
        validation = Examples(case.validation_files, case.spec)
        logits = replica.logits_of(validation)
        steps: list[float] = []
        taken = replica.steps

        def kept(*arguments: Any, steps: list[float] = steps, taken: Any = taken, **options: Any) -> Iterator[float]:
            for loss in taken(*arguments, **options):
                steps.append(loss)
                yield loss

        replica.steps = kept  # type: ignore[method-assign]
        state = run_epochs(case, replica)
        parts = [float(np.frombuffer(weights.tobytes(), np.uint8).astype(np.float64).sum()) for weights in state.weights]
        spread = replica.total(np.array(parts)) - group.workers * np.array(parts)
        held[name] = {
            "weights": state.weights,
            "losses": steps,
            "history": state.history,
            "logits": logits,
            "figures": classification(validation.label, 1 / (1 + np.exp(-logits.astype(np.float64))), validation.weight),
            "spread": float(np.abs(spread).max()),
        }
    return held


Proofs = Callable[[int], dict[str, dict[str, Any]]]
MANY = pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.long)])  # four on two cores take minutes: make drill


@pytest.fixture(scope="module")
def proofs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Proofs:
    """What so many workers end with, case by case; each number of them is run once."""
    folder = tmp_path_factory.mktemp("proofs")
    first, second = write(folder / "0.arrow", slice(0, 300)), write(folder / "1.arrow", slice(300, PROVED_ROWS))
    files = Files((first, second), (write(folder / "2.arrow", slice(fits.ROWS, fits.ROWS + HELD_OUT)),))

    @functools.cache
    def run(workers: int) -> dict[str, dict[str, Any]]:
        with by_value():
            told = plan(files, folder / str(workers), workers=workers, epochs=5, patience=None, refit=False, max_failures=0)
            return launch_plan(prove, told)

    return run


def apart(left: Any, right: Any) -> float:
    """The largest relative difference, of what is not 0; what `make drill` prints beside a proof."""
    left, right = np.ravel(left), np.ravel(right)
    return float(np.max(np.abs(right - left)[left != 0] / np.abs(left[left != 0]), initial=0.0))


@pytest.mark.ray
@pytest.mark.drill
@MANY
@pytest.mark.parametrize("case", [name for name, (policy, *_) in CASES.items() if policy == "float64"])
def test_one_two_and_four_workers_agree_in_every_weight_after_fifty_steps(proofs: Proofs, workers: int, case: str):
    one, other = proofs(1)[case], proofs(workers)[case]
    assert len(one["losses"]) == STEPS
    # a bias before batch normalisation has no gradient but for rounding: it stays at 0, where a relative measure says nothing
    nothing = 1e-12 if case == "everything else" else 0
    for left, right in zip(one["weights"], other["weights"], strict=True):
        assert left.dtype == np.float64
        np.testing.assert_allclose(right, left, rtol=1e-7, atol=nothing)
    assert other["losses"] == pytest.approx(one["losses"], rel=1e-7)
    assert not np.array_equal(right, left + 1e-6)
    held = [np.concatenate([values.ravel() for values in run["weights"]]) for run in (one, other)]
    told = np.abs(held[0]) > nothing
    weights, losses = apart(held[0][told], held[1][told]), apart(one["losses"], other["losses"])
    print(f"{workers} workers and 1, {case}: {told.sum()} weights at most {weights:.1e} apart, losses {losses:.1e}")


@pytest.mark.ray
@pytest.mark.drill
@MANY
@pytest.mark.parametrize("case", ["adam in float32", "sgd in float32"])
def test_in_float32_their_losses_agree_to_a_ten_thousandth(proofs: Proofs, workers: int, case: str):
    one, other = proofs(1)[case]["losses"], proofs(workers)[case]["losses"]
    assert len(one) == STEPS
    assert other == pytest.approx(one, rel=1e-4)
    print(f"{workers} workers and 1, {case}: losses at most {apart(one, other):.1e} apart")


@pytest.mark.ray
def test_fifty_steps_moved_every_weight_that_they_could(proofs: Proofs):
    """Else equal weights would prove nothing."""
    for case in CASES:
        losses = proofs(1)[case]["losses"]
        assert np.mean(losses[-10:]) < 0.98 * np.mean(losses[:10])


@pytest.mark.ray
@MANY
def test_all_workers_of_a_run_hold_the_same_bits(proofs: Proofs, workers: int):
    assert {held["spread"] for held in proofs(workers).values()} == {0.0}


@pytest.mark.ray
@pytest.mark.drill
@MANY
def test_validation_goes_over_all_rows_and_does_not_depend_on_the_number_of_workers(proofs: Proofs, workers: int):
    for case in CASES:
        one, other = proofs(1)[case], proofs(workers)[case]
        assert len(one["logits"]) == HELD_OUT
        assert all(block.any() for block in np.array_split(one["logits"], range(32, HELD_OUT, 32)))
        np.testing.assert_array_equal(other["logits"], one["logits"])
        assert other["figures"] == one["figures"]
        for left, right in zip(one["history"], other["history"], strict=True):
            names = [name for name in left if name.startswith("val_")]
            exact = CASES[case][0] == "float64"
            assert [right[name] for name in names] == pytest.approx([left[name] for name in names], rel=1e-7 if exact else 1e-2)
    print(f"1 and {workers} workers, {len(CASES)} cases: {HELD_OUT} logits of equal weights, and their figures, equal bit for bit")


# Faults --------------------------------------------------------------------------------------------------------------------------

SETTINGS = config.Train(epochs=3, patience=1, batch_size=fits.BATCH, workers=2, learning_rate=0.01, max_failures=1)
MLP = config.Model(hidden=(16, 8), dropout=0.2, normalisation="batch")


def fit(files: Files, folder: Path, *, spec: FeatureSpec = SPEC, settings: config.Train = SETTINGS, known: int = 0) -> Fit:
    """A fit; of its epochs, those are told of as they are made that an earlier one had not made."""
    told: list[Epoch] = []
    fitted = fit_model(
        files.train,
        files.validation,
        spec=spec,
        model=MLP,
        train=settings,
        seed=5,
        folder=folder,
        name="fit",
        on_epoch=told.append,
    )
    assert told == fitted.history[known:]  # seconds too: no epoch was told of and then made again
    return fitted


def assert_equal(one: Fit, two: Fit) -> None:
    """The same bits in weights and losses."""
    for left, right in zip(one.weights + one.validated_weights, two.weights + two.validated_weights, strict=True):
        np.testing.assert_array_equal(left, right)
    assert [(record["phase"], record["epoch"], record["loss"]) for record in one.history] == [
        (record["phase"], record["epoch"], record["loss"]) for record in two.history
    ]
    print(f"{sum(map(np.size, one.weights))} weights and {len(one.history)} epochs' losses equal bit for bit")


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Two workers, with dropout and batch normalisation."""
    return fit(files, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.ray
@pytest.mark.drill
def test_a_worker_killed_in_mid_epoch_changes_no_bit_of_the_weights(undisturbed: Fit, files: Files, tmp_path: Path):
    DyingSpec.marker = tmp_path / "died"
    with by_value():
        killed = fit(files, tmp_path, spec=DyingSpec(SPEC.dense, SPEC.mean, SPEC.scale, SPEC.codes, SPEC.vocabularies))
    assert DyingSpec.marker.exists()
    assert_equal(killed, undisturbed)


@pytest.mark.ray
@pytest.mark.long
def test_a_controller_of_ray_s_that_dies_is_started_again_and_changes_no_bit(undisturbed: Fit, files: Files, tmp_path: Path):
    RegicidalSpec.marker = tmp_path / "killed"
    with by_value():
        killed = fit(files, tmp_path, spec=RegicidalSpec(SPEC.dense, SPEC.mean, SPEC.scale, SPEC.codes, SPEC.vocabularies))
    assert RegicidalSpec.marker.read_text() == "1"
    assert_equal(killed, undisturbed)


@pytest.mark.ray
@pytest.mark.long
def test_a_controller_that_dies_too_often_is_one_sentence(files: Files, tmp_path: Path):
    RegicidalSpec.marker = tmp_path / "killed"
    told = SETTINGS.model_copy(update={"max_failures": 0})
    spec = RegicidalSpec(SPEC.dense, SPEC.mean, SPEC.scale, SPEC.codes, SPEC.vocabularies)
    with (
        by_value(),
        pytest.raises(ClusterError, match=r"Ray gave up on the training: ActorDiedError: .* started again 0 times\. The last"),
    ):
        fit(files, tmp_path, spec=spec, settings=told)


DRIVER = """
import sys, time
from pathlib import Path
from tests import fits
from recsys import config
from recsys.engine import workers
from recsys.engine.connect import connect
from recsys.features.spec import FeatureSpec
from recsys.training.fit import fit_model

class SlowSpec(FeatureSpec):
    def normalise(self, dense):
        time.sleep(0.3)
        return super().normalise(dense)

s, examples = fits.SPEC, Path(sys.argv[1])
settings = config.Train(epochs=3, patience=1, batch_size=fits.BATCH, workers=2, learning_rate=0.01, checkpoint_seconds=1)
with connect(cpus=2):
    fit_model(
        [examples / "0.arrow", examples / "1.arrow"], [examples / "2.arrow"],
        spec=SlowSpec(s.dense, s.mean, s.scale, s.codes, s.vocabularies), model=config.Model(hidden=(16, 8), normalisation="batch"),
        train=settings, seed=5, folder=Path(sys.argv[2]), name="fit",
    )
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Python on its own, which finds the package and these files."""
    environment = {**os.environ, "PYTHONPATH": str(Path(recsys.__file__).parents[1]), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(folder: Path) -> State | None:
    """The newest checkpoint of the one run in a folder."""
    runs = list(folder.glob("fit-*"))
    assert len(runs) <= 1
    kept = Checkpoints(runs[0]) if runs else None
    return kept.read(kept.newest()) if kept and kept.newest() else None


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.long
def test_a_driver_killed_and_run_again_goes_on_from_within_the_epoch_to_the_same_bits(undisturbed: Fit, files: Files, tmp_path: Path):
    first = start(DRIVER, files.train[0].parent, tmp_path)
    deadline = time.monotonic() + 120
    while (state := newest(tmp_path)) is None or not (state.history and state.losses):  # within the second epoch or a later one
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)  # what it started is known before it ends
    started = descendants(first.pid)
    assert len(started) > 5  # itself, Ray's own processes, a controller and two workers
    for pid in alive(started):  # Ray ends what a killed driver leaves behind, a minute or two later; as when the machine goes down
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()  # ends once none of them holds its output
    while alive(started):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    left = newest(tmp_path)
    assert left is not None
    assert left.losses
    assert left.history
    again = fit(files, tmp_path, known=len(left.history))
    end = newest(tmp_path)  # in the same folder
    assert end is not None
    assert again.history == end.history
    assert again.history[: len(left.history)] == left.history  # with their seconds: not made again
    print(f"killed after {len(left.history)} epochs and {len(left.losses)} steps of the next")
    assert_equal(again, undisturbed)


class Full(Checkpoints):
    """On a disk that is full after one checkpoint: what is written goes to /dev/full, where the kernel says so."""

    @override
    def write(self, state: State) -> None:
        if self.newest():
            with Path("/dev/full").open("wb", buffering=0) as file:
                file.write(b"0")
        super().write(state)


def disasters(job: dict[str, Any]) -> dict[str, Any]:
    """In one worker of a real run: a loss that is no number, then a full disk, then the same fit with room again."""
    from recsys.training import loop

    told = job["plan"]
    group = join(told)
    from recsys.training.replica import Replica

    said: dict[str, Any] = {}

    def one(name: str, case: Plan) -> None:
        case.run.mkdir(exist_ok=True)
        try:
            said[name] = run_epochs(case, Replica(case, group)).weights
        except (ClusterError, ConfigError) as error:
            said[name] = error

    wild = config.Train.model_validate({**told.train.model_dump(), "learning_rate": 1e38})
    one("wild", replace(told, train=wild, run=told.run / "wild"))
    full = replace(told, run=told.run / "full")
    loop.Checkpoints = Full
    one("full", full)
    loop.Checkpoints = Checkpoints
    one("room", full)
    one("undisturbed", replace(told, run=told.run / "undisturbed"))
    return said


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_end_with_one_sentence_where_the_loss_is_no_number_or_the_disk_is_full(files: Files, tmp_path: Path):
    with by_value():
        said = launch_plan(disasters, plan(files, tmp_path, workers=2, epochs=2, patience=None, max_failures=0))
    assert isinstance(said["wild"], ConfigError)
    assert "the loss must be finite" in str(said["wild"])
    assert isinstance(said["full"], ClusterError)
    assert "the checkpoint after epoch 2 must be written, got: No space left on device. Make room" in str(said["full"])
    for room, weights in zip(said["room"], said["undisturbed"], strict=True):
        np.testing.assert_array_equal(room, weights)


def die(job: dict[str, Any]) -> None:
    """The second worker is killed while the first waits for its gradients."""
    group = join(job["plan"])
    import tensorflow as tf

    total = tf.function(group.total)
    total(tf.ones(100_000))
    if group.rank == 1:
        time.sleep(2)
        (job["plan"].run / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    total(tf.ones(100_000))


@pytest.mark.ray
@pytest.mark.drill
def test_a_killed_worker_that_the_others_wait_for_ends_the_fit_at_once_and_in_one_sentence(
    ray_cluster: None, files: Files, tmp_path: Path
):
    with by_value(), pytest.raises(ClusterError) as told:
        launch_plan(die, plan(files, tmp_path, workers=2, epochs=1, max_failures=0))
    waited = time.time() - float((tmp_path / "died").read_text())
    print(f"the fit ended {waited:.1f} s after a worker was killed: {told.value}")
    assert waited < 20  # gRPC's own health check would take a minute
    assert "training failed and was retried 0 times: " in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.ray
@pytest.mark.drill
@pytest.mark.usefixtures("ray_cluster")
def test_the_sentence_reaches_who_asked_for_the_fit(files: Files, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"the loss must be finite, got (nan|inf) in .*Lower train\.learning_rate \(1e\+38\)"):
        fit(files, tmp_path, settings=SETTINGS.model_copy(update={"learning_rate": 1e38, "workers": 1}))
    assert newest(tmp_path) is None  # the first step's loss was none


def test_with_a_refit_its_weights_are_the_fit_s_and_without_one_those_of_the_best_epoch(files: Files, tmp_path: Path):
    """Of a checkpoint, without the fit."""
    refitted, best = [np.array([1.0])], [np.array([2.0])]

    def launch(work: object, told: Plan) -> None:
        Checkpoints(told.run).write(State([{"phase": VALIDATE, "epoch": 1, "val_loss": 0.5}], [], refitted, [], best))

    def check(*arguments: object, **named: object) -> None:
        pass

    for refit, weights in ((True, refitted), (False, best)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit_module, "check_room", check)
            patch.setattr(fit_module, "launch_plan", launch)
            fitted = fit(files, tmp_path, settings=SETTINGS.model_copy(update={"refit": refit}))
        assert (fitted.weights, fitted.validated_weights, fitted.best_epoch) == (weights, best, 1)


@pytest.mark.drill
def test_a_changed_setting_has_checkpoints_of_its_own_and_more_retries_go_on(files: Files, tmp_path: Path):
    """Which folder a fit works in, without the fit."""

    def run(folder: Path, *, seed: int = 5, spec: FeatureSpec = SPEC, model: config.Model = MLP, **changes: Any) -> Path:
        seen: list[Path] = []
        settings = SETTINGS.model_copy(update=changes)

        def launch(work: object, told: Plan) -> ConfigError:
            seen.append(told.run)
            return ConfigError("stopped")

        def check(*arguments: object, **named: object) -> None:
            pass

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit_module, "check_room", check)
            patch.setattr(fit_module, "launch_plan", launch)
            with pytest.raises(ConfigError, match="stopped"):
                fit_model(files.train, files.validation, spec=spec, model=model, train=settings, seed=seed, folder=folder, name="fit")
        return seen[0]

    base = run(tmp_path)
    assert run(tmp_path) == base
    assert run(tmp_path, max_failures=9, checkpoint_seconds=5) == base
    wider = FeatureSpec(SPEC.dense, (0.5, *SPEC.mean[1:]), SPEC.scale, SPEC.codes, SPEC.vocabularies)
    others = [
        run(tmp_path, learning_rate=0.02),
        run(tmp_path, workers=3),
        run(tmp_path, optimizer="sgd"),
        run(tmp_path, seed=6),
        run(tmp_path, spec=wider),
        run(tmp_path, model=config.Model(hidden=(16, 9))),
    ]
    assert len({base, *others}) == 1 + len(others)


ELASTIC = """
import os, json, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests import fits
from recsys import config
from recsys.engine import workers
from recsys.engine.connect import connect
from recsys.features.spec import FeatureSpec
from recsys.training.fit import fit_model

class Coordinator(_AutoscalingCoordinatorActor):
    TICK_INTERVAL_S = 1  # Ray's looks at the nodes every 20 s, which no variable changes; Train takes the one that is there

class SlowSpec(FeatureSpec):
    def normalise(self, dense):
        if not fast.exists():
            time.sleep(0.1)
        return super().normalise(dense)

examples, folder, said = map(Path, sys.argv[1:])
fast = folder / "fast"
seen = []  # workers of each epoch
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
workers.RESIZE_SECONDS = 1.0
s = fits.SPEC

def fit():
    try:
        fitted = fit_model(
            [examples / "0.arrow", examples / "1.arrow"], [examples / "2.arrow"],
            spec=SlowSpec(s.dense, s.mean, s.scale, s.codes, s.vocabularies),
            model=config.Model(hidden=(16, 8), normalisation="batch"),
            train=config.Train(epochs=100, patience=None, refit=False, batch_size=fits.BATCH, workers=(1, 2), checkpoint_seconds=1),
            seed=5, folder=folder, name="fit", on_epoch=lambda record: seen.append(record["workers"]),
        )
        said.write_text(json.dumps(fitted.history))
    finally:
        ended.set()

def wait(number, workers):
    while not ended.is_set() and workers not in seen[number:]:
        time.sleep(0.1)
    return len(seen)

ended = threading.Event()
os.environ["RAY_ADDRESS"] = cluster.address
# so long Train waits for the workers of a node that is gone before it looks again what there is; 60 s if nothing is said
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
with connect():
    head = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    coordinator = ray.remote(num_cpus=0)(Coordinator).options(
        name="AutoscalingCoordinator", namespace="AutoscalingCoordinator", lifetime="detached", scheduling_strategy=head
    ).remote()
    fitting = threading.Thread(target=fit)  # nodes are added by the main thread alone
    fitting.start()
    number = wait(0, 1)
    node = cluster.add_node(num_cpus=1)
    number = wait(number, 2)
    cluster.remove_node(node, allow_graceful=False)
    wait(number, 1)
    fast.touch()
    fitting.join()
cluster.shutdown()
sys.exit(0 if said.exists() else 1)
"""


@pytest.mark.ray
@pytest.mark.long
def test_an_elastic_fit_starts_with_what_there_is_grows_and_shrinks_with_the_cluster(files: Files, tmp_path: Path):
    process = start(ELASTIC, files.train[0].parent, tmp_path, tmp_path / "said.json")
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    history = json.loads((tmp_path / "said.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, 101))
    workers = [record["workers"] for record in history]
    changes = [number for number, before in zip(workers, [0, *workers], strict=False) if number != before]
    assert changes == [1, 2, 1]
    print(f"workers of {len(workers)} epochs: {', then '.join(f'{len(list(run))} of {number}' for number, run in groupby(workers))}")
    assert history[-1]["loss"] < history[0]["loss"]


# One fit -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_loss_falls_and_the_refit_runs_the_best_number_of_epochs(undisturbed: Fit):
    validated = [record for record in undisturbed.history if record["phase"] == VALIDATE]
    refit = [record["epoch"] for record in undisturbed.history if record["phase"] == REFIT]
    assert validated[-1]["loss"] < 0.9 * validated[0]["loss"]
    assert validated[undisturbed.best_epoch - 1]["val_loss"] == min(record["val_loss"] for record in validated)
    assert refit == list(range(1, undisturbed.best_epoch + 1))
    figures = {f"val_{name}" for name in ("loss", "auc", "accuracy", "precision", "recall", "f1")}
    assert validated[0].keys() == {"epoch", "phase", "loss", "workers", "first_step", "seconds", "rows_per_second"} | figures


@pytest.mark.ray
def test_the_best_weights_score_the_validation_rows_as_the_history_says(undisturbed: Fit, files: Files):
    dense, codes, label, share = Examples(files.validation, SPEC).batch(np.arange(HELD_OUT), HELD_OUT, 1.0)
    chance = np.asarray(undisturbed.model(undisturbed.validated_weights)([dense, codes]))[:, 0].astype(np.float64)
    loss = -(share * np.where(label > 0, np.log(chance), np.log1p(-chance))).sum() / share.sum()
    assert loss == pytest.approx(undisturbed.history[undisturbed.best_epoch - 1]["val_loss"], rel=1e-5)
    assert not np.array_equal(undisturbed.weights[-1], undisturbed.validated_weights[-1])  # the refit saw more rows


@pytest.mark.ray
def test_a_fit_leaves_its_history_and_its_checkpoints_and_nothing_of_ray_s(undisturbed: Fit):
    names = sorted(path.name for path in undisturbed.plan.run.iterdir())
    last = len(undisturbed.history)
    assert names == [f"checkpoint-{last - 1:06d}.npz", f"checkpoint-{last:06d}.npz", HISTORY]


# Refused at once -----------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_cpus_are_refused_at_once(files: Files, tmp_path: Path):
    with pytest.raises(ClusterError, match=r"1000 workers on cpu need 1000 CPUs, the cluster has \d+"):
        fit(files, tmp_path, settings=config.Train(workers=1000))
    with pytest.raises(ClusterError, match=r"900 workers on cpu need 900 CPUs, the cluster has \d+"):
        fit(files, tmp_path, settings=config.Train(workers=(900, 1000)))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_gpus_that_are_not_there_are_refused_at_once(files: Files, tmp_path: Path):
    with pytest.raises(ClusterError, match="1 workers on gpu need 1 GPUs, the cluster has 0"):
        fit(files, tmp_path, settings=config.Train(workers=1, device="gpu"))


def test_a_worker_without_the_gpu_it_needs_says_so():
    with pytest.raises(ClusterError, match="needs a GPU in every worker, TensorFlow sees none"):
        check_gpus([], "float32")
    turing = [{"compute_capability": (7, 5)}]
    with pytest.raises(ConfigError, match=r"compute capability must be 8\.0 or above, got 7\.5"):
        check_gpus(turing, "mixed_bfloat16")
    check_gpus(turing, "float32")
    check_gpus([{"compute_capability": (8, 0)}], "mixed_bfloat16")


def test_no_rows_no_weight_and_other_columns_are_refused(files: Files, tmp_path: Path):
    empty = write(tmp_path / "empty.arrow", slice(0, 0))
    with pytest.raises(DataError, match="validation examples: at least one row is needed"):
        fit(Files(files.train, (empty,)), tmp_path)
    with pytest.raises(DataError, match="training examples: at least one row is needed"):
        fit(Files((), files.validation), tmp_path)
    table = pa.ipc.open_file(str(files.train[0])).read_all()
    weightless = tmp_path / "weightless.arrow"
    number = table.schema.get_field_index("weight")
    table = table.set_column(number, table.schema.field(number), pa.array(np.zeros(len(table), np.float32)))
    with pa.OSFile(str(weightless), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="training examples: their weights must add up to more than 0, got 0 over 450 rows"):
        fit(Files((weightless,), files.validation), tmp_path)
    wider = FeatureSpec((*SPEC.dense, "f"), (*SPEC.mean, 0.0), (*SPEC.scale, 1.0), SPEC.codes, SPEC.vocabularies)
    with pytest.raises(DataError, match=r"0\.arrow: column 'dense' must be fixed_size_list.*\[6\], got fixed_size_list.*\[5\]"):
        fit(files, tmp_path, spec=wider)
