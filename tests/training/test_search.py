import json
import math
import runpy
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import PICTURES
from jobs.bench.rows import feature_rows
from recsys import config
from recsys.config import PairsSettings
from recsys.errors import ConfigError
from recsys.ranking import bundle
from recsys.training import search
from recsys.training.fit import Labelled
from recsys.training.loop import run_epochs
from recsys.training.plan import Plan
from recsys.training.search import Trial
from tests import fits
from tests.fits import SPEC, Files

ABSURD, SLOW = 1e38, 1e-9  # learning rates: the loss is soon no number, and does not move
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "hidden": [[16, 8], [4]],
    "dropout": {"low": 0.0, "high": 0.5},
    "batch_size": {"low": 16, "high": 64},
    "normalisation": ["absent", "batch"],
}


def settings_with(work: Path | str = "work", *, space: dict[str, Any] | None = None, seed: int = 0, **fitted: Any) -> PairsSettings:
    return PairsSettings.model_validate(
        {
            "pairs": {"path": "unread"},
            "model": {"hidden": [16, 8], "dropout": 0.0},
            "train": {"epochs": 3, "patience": None, "batch_size": fits.BATCH, "learning_rate": 0.01, "workers": 7} | fitted,
            "tune": space or SPACE,
            "run": {"work": str(work), "seed": seed},
        }
    )


# What is tried --------------------------------------------------------------------------------------------------------------------


def test_the_first_trial_has_the_settings_as_they_stand():
    values = search.draw(settings_with(), 1)
    assert values == {"learning_rate": 0.01, "hidden": [16, 8], "dropout": 0.0, "batch_size": fits.BATCH, "normalisation": "absent"}
    tried = search.applied(settings_with(), values)
    assert (tried.model, tried.train) == (settings_with().model, settings_with().train)


@given(st.integers(0, 2**32), st.integers(2, 10_000))
def test_every_value_lies_in_the_space_and_makes_settings(seed: int, number: int):
    settings = settings_with(seed=seed)
    values = search.draw(settings, number)
    assert values == search.draw(settings, number)
    assert values.keys() == SPACE.keys()
    assert 1e-4 <= values["learning_rate"] <= 1e-2
    assert 0 <= values["dropout"] <= 0.5
    assert 16 <= values["batch_size"] <= 64
    assert values["hidden"] in SPACE["hidden"]
    tried = search.applied(settings, values)
    model, train = tried.model, tried.train
    assert (list(model.hidden), model.dropout) == (values["hidden"], values["dropout"])
    assert model.normalisation == {"absent": None, "batch": "batch"}[values["normalisation"]]
    assert (train.learning_rate, train.batch_size, train.epochs) == (values["learning_rate"], values["batch_size"], 3)


def test_another_seed_and_another_number_give_other_trials_and_the_order_of_keys_none():
    drawn = [json.dumps(search.draw(settings_with(seed=seed), number)) for seed in range(5) for number in range(2, 12)]
    assert len(set(drawn)) == 50
    turned = settings_with(space=dict(reversed(SPACE.items())))
    assert [search.draw(turned, number) for number in range(2, 12)] == [search.draw(settings_with(), number) for number in range(2, 12)]


def test_both_ends_of_a_range_of_whole_numbers_are_drawn_and_a_logarithmic_one_is_even_over_magnitudes():
    settings = settings_with(space={"batch_size": {"low": 1, "high": 3}, "learning_rate": {"low": 1e-6, "high": 1.0, "log": True}})
    drawn = [search.draw(settings, number) for number in range(2, 402)]
    assert {values["batch_size"] for values in drawn} == {1, 2, 3}
    magnitudes = np.log10([values["learning_rate"] for values in drawn])
    assert np.histogram(magnitudes, bins=3, range=(-6, 0))[0].min() > 400 / 3 - 40


def test_keys_of_what_is_learned_from_are_drawn_whole_where_they_are_whole_and_take_their_places():
    told = {"candidates": {"popular": {"low": 50, "high": 52}}, "signals": {"ease_l2": {"low": 1, "high": 9}}, "dropout": [0.1]}
    settings = config.Settings.model_validate({"shop": {"events": "x"}, "candidates": {"own": 7}, "tune": told})
    assert search.draw(settings, 1) == {"candidates.popular": 100, "signals.ease_l2": 500.0, "dropout": 0.2}
    assert search.applied(settings, search.draw(settings, 1)).candidates == settings.candidates
    drawn = [search.draw(settings, number) for number in range(2, 62)]
    assert {values["candidates.popular"] for values in drawn} == {50, 51, 52}
    tried = search.applied(settings, drawn[0])
    assert (tried.candidates.own, tried.candidates.popular) == (7, drawn[0]["candidates.popular"])
    assert (tried.signals.ease_l2, tried.model.dropout) == (drawn[0]["signals.ease_l2"], 0.1)
    assert 1 <= tried.signals.ease_l2 <= 9
    said = tomllib.loads(search.written('[shop]\nevents = "x"\n[candidates]\nown = 7 # few\n', drawn[0]))
    assert said["candidates"] == {"own": 7, "popular": drawn[0]["candidates.popular"]}
    assert said["signals"] == {"ease_l2": drawn[0]["signals.ease_l2"]}


# The best, as settings ------------------------------------------------------------------------------------------------------------


def test_the_best_values_take_their_place_in_the_file_and_all_else_stays():
    text = '# ours\n[pairs]\npath = "x" # rows\n[train]\nepochs = 3 # few\nclip_norm = 1.0\nlearning_rate = 0.5\n[rank]\nk = 4\n'
    values = {"clip_norm": "absent", "learning_rate": 0.01, "hidden": [16, 8], "normalisation": "absent"}
    written = search.written(text, values)
    assert tomllib.loads(written) == {
        "pairs": {"path": "x"},
        "train": {"epochs": 3, "learning_rate": 0.01},
        "model": {"hidden": [16, 8]},
        "rank": {"k": 4},
    }
    assert "# ours" in written
    assert 'path = "x" # rows' in written
    assert "epochs = 3 # few" in written


# The search -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(files: Files) -> Labelled:
    return Labelled(files.train, files.validation, {"examples": "planted"}, lambda: SPEC, {}, {"rows": 850})


@pytest.fixture(scope="module")
def one_at_a_time(ray_cluster: None) -> Iterator[None]:
    """One trial after the other, so that who is stopped early is always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys.engine.trials.cpus", lambda: 1)
        yield


@pytest.fixture(scope="module")
def searched(one_at_a_time: None, labelled: Labelled, tmp_path_factory: pytest.TempPathFactory) -> tuple[PairsSettings, list[Trial]]:
    """A search that was interrupted after its first trial, and run again."""
    settings = replace_seed(tmp_path_factory.mktemp("search"))

    def interrupt(trial: Trial) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.search(settings, labelled, trials=2, on_trial=interrupt)
    ended: list[int] = []
    found = search.search(settings, labelled, trials=3, on_trial=lambda trial: ended.append(trial.number))
    assert sorted(ended) == [2, 3]  # the first was finished
    return settings, found


def replace_seed(work: Path) -> PairsSettings:
    """Settings whose second and third trials are the slow rate and the absurd one."""
    for seed in range(1000):
        settings = settings_with(work, space={"learning_rate": [0.01, SLOW, ABSURD]}, seed=seed)
        if [search.draw(settings, number)["learning_rate"] for number in (2, 3)] == [SLOW, ABSURD]:
            return settings
    raise AssertionError


@pytest.mark.ray
def test_a_trial_is_the_real_fit_by_one_worker(searched: tuple[PairsSettings, list[Trial]], labelled: Labelled, tmp_path: Path):
    from recsys.training.replica import ProcessGroup, Replica

    settings, (first, *_) = searched
    fitted = settings.train.model_copy(update={"workers": 1, "refit": False})
    seed = settings.run.seed
    plan = Plan(tuple(labelled.fitting), tuple(labelled.validating), SPEC, settings.model, fitted, seed=seed, run=tmp_path)
    history = run_epochs(plan, Replica(plan, ProcessGroup())).history
    for name in ("loss", "val_loss", "val_auc"):
        assert [epoch[name] for epoch in first.history] == pytest.approx([epoch[name] for epoch in history], rel=1e-4)
    assert not first.stopped
    assert first.loss == min(epoch["val_loss"] for epoch in first.history) < 0.69


@pytest.mark.ray
def test_a_trial_that_does_worse_is_stopped_early_and_one_whose_loss_is_no_number_is_no_best(
    searched: tuple[PairsSettings, list[Trial]],
):
    first, slow, absurd = searched[1]
    assert (slow.values, slow.stopped, slow.failed, len(slow.history)) == ({"learning_rate": SLOW}, True, None, 1)
    assert absurd.failed is not None
    assert "the loss must be finite" in absurd.failed
    assert math.isinf(absurd.loss)
    assert not absurd.stopped
    assert search.best_of(searched[1]) is first


@pytest.mark.ray
def test_a_finished_search_starts_nothing_and_another_setting_starts_anew(
    searched: tuple[PairsSettings, list[Trial]], labelled: Labelled, monkeypatch: pytest.MonkeyPatch
):
    settings, found = searched

    def run(*arguments: object, **named: object) -> None:
        raise AssertionError

    monkeypatch.setattr(search, "run_trials", run)
    assert search.search(settings, labelled, trials=3) == found
    assert search.search(settings, labelled, trials=2) == found[:2]
    more = settings.model_copy(update={"train": settings.train.model_copy(update={"workers": 1, "max_failures": 0})})
    assert search.search(more, labelled, trials=3) == found
    for other in ({"train": settings.train.model_copy(update={"epochs": 4})}, {"tune": settings.tune | {"dropout": (0.1,)}}):
        with pytest.raises(AssertionError):
            search.search(settings.model_copy(update=other), labelled, trials=1)
    with pytest.raises(AssertionError):
        search.search(settings, replace(labelled, identity={"examples": "others"}), trials=1)


@pytest.mark.ray
def test_what_a_search_leaves_are_receipts(searched: tuple[PairsSettings, list[Trial]]):
    (folder,) = {path.parents[1] for path in Path(searched[0].run.work).glob("tune-*/receipts/*")}  # others began, and did nothing
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {"stage.json", *(f"receipts/trial-000{number}.json" for number in (1, 2, 3))}


@pytest.mark.ray
def test_where_no_trial_can_be_fitted_one_sentence_says_so(one_at_a_time: None, labelled: Labelled, tmp_path: Path):
    settings = settings_with(tmp_path, learning_rate=ABSURD)
    with pytest.raises(ConfigError, match=r"tune: no trial could be fitted: training: the loss must be finite, .* tune\.learning_rate"):
        search.search(settings, labelled, trials=1)


def test_the_plot_shows_every_trial_that_has_a_loss(tmp_path: Path):
    rng = np.random.default_rng(0)
    settings = settings_with()
    trials = [
        Trial(number, search.draw(settings, number), epochs(rng.uniform(0.4, 0.7, 3 if number < 4 else 1)), None, stopped=number > 3)
        for number in range(1, 7)
    ]
    trials.append(Trial(7, search.draw(settings, 7) | {"hidden": [99]}, [], "the loss is no number", stopped=False))
    for kind in PICTURES:
        search.plot(trials, settings.tune, tmp_path / "picture", kind=kind)
        start = (tmp_path / "picture").read_bytes()[:6]
        assert start == {".png": b"\x89PNG\r\n", ".svg": b"<?xml "}[kind]
    svg = (tmp_path / "picture").read_text()
    assert svg.count('id="axes_') == 6  # losses by epoch, and five keys
    assert "<!-- 16-8 -->" in svg
    assert "<!-- 99 -->" not in svg


def epochs(losses: np.ndarray) -> list[dict[str, Any]]:
    return [{"epoch": number, "phase": "validate", "val_loss": loss, "seconds": 1.0} for number, loss in enumerate(losses, 1)]


# The verb -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_verb_shows_the_trials_and_what_it_writes_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("recsys.engine.units.cpus", lambda: 2)
    monkeypatch.setattr("recsys.engine.trials.cpus", lambda: 2)
    (rows,) = feature_rows(tmp_path / "rows", rows=3000, files=1, numeric=3)
    table = pq.read_table(rows)
    pq.write_table(table.append_column("label", pa.array((table["f01"].to_numpy() > 0).astype(np.float32))), rows)
    settings = tmp_path / "pairs.toml"
    settings.write_text(
        f'[pairs]\npath = "{tmp_path / "rows"}" # ours\nnumeric = ["f00", "f01", "f02"]\n[model]\nhidden = [8]\n'
        "[train]\nepochs = 1\nworkers = 1\nbatch_size = 256\n[tune]\nhidden = [[4], [6, 5]]\nlearning_rate = [0.05]\n"
        f'[run]\nwork = "{tmp_path / "work"}"\n'
    )

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"jobs.{name}", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"jobs.{name}", run_name="__main__")
        shown = capsys.readouterr()
        assert not ended.value.code, shown.err
        return shown.out

    best, picture = tmp_path / "best.toml", tmp_path / "tune.png"
    shown = run("tune", "--config", settings, "--trials", 3, "--out", best, "--plot", picture)
    assert "val_loss" in shown
    assert shown.count("best") >= 1
    assert picture.stat().st_size > 1000
    chosen = config.load_pairs(best)
    receipts = [json.loads(path.read_text()) for path in sorted((tmp_path / "work").glob("tune-*/receipts/*.json"))]
    losses = [min(epoch["val_loss"] for epoch in receipt["history"]) for receipt in receipts]
    values = search.draw(config.load_pairs(settings), 1 + int(np.argmin(losses)))
    assert (list(chosen.model.hidden), chosen.train.learning_rate) == (values["hidden"], values["learning_rate"])
    assert (chosen.train.epochs, chosen.train.batch_size) == (1, 256)
    run("train", "--config", best, "--out", tmp_path / "made")
    made = bundle.load(tmp_path / "made")
    assert made.about["settings"]["model"]["hidden"] == values["hidden"]
    assert made.about["metrics"]["history"][0]["val_loss"] == pytest.approx(min(losses), rel=1e-3)
