"""`[train.privacy]` through a night and `jobs.privacy`: what was spent is told, and what a model remembers of people goes."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from recsys.config import Train
from recsys.data import synthetic
from recsys.ranking.registry import Registry
from recsys.training import fit, loop
from recsys.training.checkpoints import Epoch
from tests.small import small_file
from tests.verbs import Ended

Run = Callable[..., Ended]
DAY = date(2024, 6, 6)
PRIVACY = {"noise": 1.0, "clip": 0.5, "delta": 1e-3, "users": 16, "rows": 16}


def last(history: list[Epoch], _: Train) -> int:
    return max(one["epoch"] for one in history)


def write(folder: Path, **train: object) -> str:
    file = folder / "shop.toml"
    file.write_text(small_file(folder, model={"hidden": [128], "dropout": 0.0}, train=train))
    return str(file)


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_night_says_what_was_spent_and_a_model_that_knows_people_by_heart_does_no_more(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.shop(tmp_path / "shop", users=140, items=60, days=126, seed=3, end=DAY + timedelta(days=14), events_per_user=20)
    config = write(tmp_path, epochs=3, patience=1, privacy=PRIVACY)
    night = run("nightly", "--config", config, "--as-of", str(DAY))
    assert night.status == 0, night.err
    registry = Registry(tmp_path / "made" / "bundles")
    (version,) = registry.versions()
    about = registry.entry(version).tested.about
    spent = about["metrics"]["privacy"]
    assert spent["epsilon"] > 0.5
    assert PRIVACY.items() <= spent.items()
    history = about["metrics"]["history"]
    assert [one["epoch"] for one in history] == [1, 2, 3] * 2  # no patience, and a refit of as many
    assert spent["steps"] == sum(one["steps"] for one in history)
    assert f"Differential privacy of the weights: epsilon {spent['epsilon']:.2f} at delta 0.001." in night.out
    listed = run("bundles", "list", "--config", config)
    assert f"{spent['epsilon']:.2f} at 0.001" in " ".join(listed.out.split())
    card = json.loads((registry.path / "bundles" / version / "card.json").read_text())
    assert f"epsilon {spent['epsilon']:.2f} at delta 0.001" in card["privacy"]["noise"]
    page = (tmp_path / "made" / "reports" / f"{DAY}.html").read_text()
    assert "Differential privacy of the weights" in page
    assert f">{spent['epsilon']:.2f}<" in page

    for module in (loop, fit):  # by heart: without privacy too the last epoch is kept, not the best
        monkeypatch.setattr(module, "kept_epoch", last)
    config = write(tmp_path, epochs=60, patience=60, refit=False, learning_rate=0.01, batch_size=16, workers=1, privacy=PRIVACY)
    told = run("privacy", "--config", config, "--as-of", str(DAY), "--noise", "8", "--out", str(tmp_path / "told.json"))
    assert told.status == 0, told.err
    plain, noisy = json.loads((tmp_path / "told.json").read_text())["models"]
    assert (plain["noise"], plain["epsilon"], noisy["noise"]) == (None, None, 8.0)
    assert noisy["epsilon"] < spent["epsilon"]
    assert min(plain["members"], plain["others"]) > 20
    assert plain["p_value"] < 0.01 < noisy["p_value"]
    assert plain["advantage"] > 0.4 > noisy["advantage"]
    assert noisy["difference"]["users"] > 50
    assert f"{plain['advantage']:.3f}" in told.out
    assert f"over {plain['members']:,} users learned from" in told.out


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_it_needs_the_section_and_a_tuned_model_is_not_private(run: Run, tmp_path: Path) -> None:
    synthetic.shop(tmp_path / "shop", users=60, items=60, days=112, seed=3, end=DAY + timedelta(days=14), events_per_user=20)
    config = write(tmp_path, epochs=1)
    refused = run("privacy", "--config", config, "--as-of", str(DAY))
    assert (refused.status, "train.privacy: must be set, as its clip" in refused.err) == (1, True)
    config = write(tmp_path, epochs=1, privacy=PRIVACY)
    for noise in ("0", "-1", "nan", "inf"):
        refused = run("privacy", "--config", config, "--as-of", str(DAY), "--noise", noise)
        assert (refused.status, f"--noise {noise}: must be above 0 and finite" in refused.err) == (1, True)
    refused = run("tune", "--config", config, "--as-of", str(DAY), "--trials", "2")
    assert (refused.status, "which no epsilon counts. Search without train.privacy." in refused.err) == (1, True)
    config = write(tmp_path, epochs=1, privacy=PRIVACY | {"delta": 0.5})
    refused = run("train", "--config", config, "--as-of", str(DAY))
    assert (refused.status, "train.privacy.delta must be below 1 over the" in refused.err) == (1, True)
