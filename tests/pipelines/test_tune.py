"""A search judged by lists: each trial is a backtest of its own settings."""

import logging
import runpy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jobs.planted_shop import settings_text
from recsys import config
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.errors import DataError
from recsys.pipelines.backtest import measure
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.pipelines.tune import ListsTrial, best_of, open_search, search_lists, shares
from recsys.training.search import applied

DAY = date(2024, 6, 6)
ABSURD = 1e38  # a learning rate: the loss is soon no number

pytestmark = pytest.mark.ray


class Searched(NamedTuple):
    folder: Path
    settings: config.Settings
    trials: list[ListsTrial]
    told: list[int]


QUICK = """[window]
label_days = 14
[model]
hidden = [4]
[train]
epochs = 1
workers = 1
refit = false
"""


def text_of(folder: Path, planted: synthetic.Planted, *, tune: str, seed: int) -> str:
    text = settings_text(planted, folder)
    return text.replace("[run]\n", f"[run]\nshards = 2\nseed = {seed}\n") + QUICK + tune


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> synthetic.Planted:
    return synthetic.shop(tmp_path_factory.mktemp("tune"), users=80, items=60, days=120, seed=2, end=DAY, events_per_user=25)


@pytest.fixture(scope="module")
def searched(planted: synthetic.Planted, while_in_process: Callable[[], AbstractContextManager[None]]) -> Searched:
    folder = planted.events.parent
    told = f"[tune]\nlearning_rate = [0.01, {ABSURD}]\n[tune.candidates]\nper_user = [20, 500]\n"
    for seed in range(100):  # one that asks for a failed fit, and for another number of candidates
        (folder / "shop.toml").write_text(text_of(folder, planted, tune=told, seed=seed))
        settings = config.load(folder / "shop.toml")
        opened = open_search(settings, as_of=DAY, trials=3)
        tried = [(values["learning_rate"], values["candidates.per_user"]) for values, _ in opened.trials]
        if tried[1:] == [(ABSURD, 500), (0.01, 20)]:
            break
    else:
        raise AssertionError("no such seed")
    told_of: list[int] = []
    with while_in_process():
        trials = search_lists(opened, on_trial=lambda trial: told_of.append(trial.number))
    return Searched(folder, settings, trials, told_of)


def test_a_trial_is_the_backtest_of_its_settings(
    searched: Searched, while_in_process: Callable[[], AbstractContextManager[None]]
) -> None:
    before = DAY - timedelta(days=14)
    for trial in (searched.trials[0], searched.trials[2]):
        inputs = open_shop(applied(searched.settings, trial.values), as_of=before)
        with while_in_process():
            state = shop_state(inputs, end=DAY, as_of=before)
            result = measure(state, train_shop(state, as_of=before).bundle, as_of=before, end=DAY)
        assert trial.ndcg == {name: result["models"]["mlp"][name]["ndcg@10"] for name in ("all", "new")}
        assert trial.candidates == result["candidates"]["per_user"]
        for name, difference in trial.differences.items():
            assert difference["mean"] == pytest.approx(trial.ndcg[name] - searched.trials[0].ndcg[name])
            low, high = difference["interval"]
            assert low <= difference["mean"] <= high
    assert searched.trials[0].candidates > searched.trials[2].candidates + 1
    assert searched.trials[2].ndcg["all"] != searched.trials[0].ndcg["all"]


def test_a_trial_that_fails_is_told_and_the_search_goes_on(searched: Searched) -> None:
    failed = searched.trials[1]
    assert failed.failed is not None
    assert "train.learning_rate" in failed.failed
    assert (failed.ndcg, failed.differences) == ({}, {})
    assert searched.told == [1, 2, 3]
    assert shares(searched.trials)[1] == -np.inf
    assert best_of(searched.trials) is not failed


def test_trials_that_cannot_be_are_refused_before_work(planted: synthetic.Planted, tmp_path: Path) -> None:
    def opened(tune: str) -> None:
        (tmp_path / "shop.toml").write_text(text_of(tmp_path, planted, tune=tune, seed=3))
        open_search(config.load(tmp_path / "shop.toml"), as_of=DAY, trials=4)

    with pytest.raises(DataError, match=r"^tune: trial \d \(window.label_days = 35\): --as-of 2024-06-06: needs two label windows"):
        opened("[tune.window]\nlabel_days = [35]\n")


def trial(number: int, ndcg: dict[str, float], *, low: float = -0.01, failed: str | None = None) -> ListsTrial:
    differences: dict[str, Any] = {name: {"mean": 0.0, "interval": [low, 0.1], "users": 9} for name in ndcg}
    return ListsTrial(number, {}, ndcg, differences, 9.0, 1.0, failed)


def test_all_and_new_items_weigh_alike_and_an_unproven_best_is_said(caplog: pytest.LogCaptureFixture) -> None:
    trials = [trial(1, {"all": 0.5, "new": 0.1}), trial(2, {}, failed="no"), trial(3, {"all": 0.45, "new": 0.2})]
    assert shares(trials) == [pytest.approx((1 + 0.5) / 2), -np.inf, pytest.approx((0.9 + 1) / 2)]
    with caplog.at_level(logging.WARNING):
        assert best_of(trials).number == 3
        assert "trial 3 is best, but not shown to be better" in caplog.text
        caplog.clear()
        assert best_of([trials[0], trial(3, {"all": 0.45, "new": 0.2}, low=0.01)]).number == 3
        assert best_of([trials[0], trial(2, {"all": 0.5, "new": 0.1})]).number == 1  # the first of equal ones
        assert shares([trial(1, {"all": 0.0}), trial(2, {"all": 0.0})]) == [0.0, 0.0]
        assert not caplog.text


def test_the_verb_shows_the_trials_and_writes_the_best(
    searched: Searched,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    while_in_process: Callable[[], AbstractContextManager[None]],
) -> None:
    best, picture = tmp_path / "best.toml", tmp_path / "tune.png"
    arguments = ["--config", searched.folder / "shop.toml", "--as-of", DAY, "--trials", 3, "--out", best, "--plot", picture]
    monkeypatch.setattr(sys, "argv", ["jobs.tune", *map(str, arguments)])
    with while_in_process(), pytest.raises(SystemExit) as ended:
        runpy.run_module("jobs.tune", run_name="__main__")
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    assert "failed" in shown.out
    for one in (searched.trials[0], searched.trials[2]):
        assert f"{one.ndcg['new']:.4f}" in shown.out
    written, values = config.load(best), best_of(searched.trials).values
    assert written.candidates.per_user == values["candidates.per_user"]
    assert written.train.learning_rate == values["learning_rate"]
    assert picture.stat().st_size > 1000
