from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from jobs import PICTURES
from recsys.evaluation.plots import plot_reliability
from recsys.evaluation.reliability import count, summary, zero
from recsys.ranking.recommend import ScoredUsers
from recsys.retrieval import candidates
from recsys.schema import DAY_US
from tests import shops
from tests.shops import CUTOFF, END

RAW = np.log(np.array([1, 2, 3, 4, 5, 6]) / 10)  # of the active positions milk, cheese, bread, roll, cake, spade


def halved(raw: np.ndarray, purchases: np.ndarray) -> np.ndarray:
    """A calibration: half the model's own probability."""
    assert (purchases > 0).all()
    return (expit(raw) / 2).astype(np.float32)


def counted(end: int = END) -> dict[str, np.ndarray]:
    events = shops.whole()
    total = zero()
    for histories, users, found, _ in shops.featurizer(events=events)(events):
        batch = ScoredUsers(histories, users, found, RAW[found.item].astype(np.float32), np.diff(users.matrix.indptr) > 0)
        more = count(batch, chance=halved, end=end)
        total = {name: values + more[name] for name, values in total.items()}
    return total


def figures(end: int = END) -> Mapping[str, Any]:
    found = summary(counted(end))
    assert found is not None
    return found


def test_all_candidates_of_users_with_history_count() -> None:
    found = figures()
    # Ann, bob, cid and dee have five candidates each. Ann bought bread and roll, bob cheese, cid spade, dee bread.
    assert (found["users"], found["rows"], found["bought"]) == (4, 20, 5 / 20)
    before = expit(RAW)[[0, 1, 2, 3, 5]]
    assert sum(one["rows"] * one["before"] for one in found["deciles"]) == pytest.approx(4 * before.sum(), rel=1e-6)
    assert sum(one["rows"] * one["after"] for one in found["deciles"]) == pytest.approx(2 * before.sum(), rel=1e-6)
    for when, chance in (("before", before), ("after", before / 2)):
        hits = np.array([0, 1, 2, 1, 1])
        loss = -(hits @ np.log(chance) + (4 - hits) @ np.log1p(-chance)) / 20
        assert found["log_loss"][when] == pytest.approx(loss, rel=1e-6)
        # each item is one cell, four rows, and the five cells fall into five bins
        assert found["ece"][when] == pytest.approx(np.abs(4 * chance - hits).sum() / 20, rel=1e-6)


def test_deciles_ascend_and_hold_every_row() -> None:
    deciles = figures()["deciles"]
    assert [one["rows"] for one in deciles] == [4] * 5
    assert [one["bought"] for one in deciles] == [0, 0.25, 0.5, 0.25, 0.25]
    assert [one["before"] for one in deciles] == pytest.approx(expit(RAW)[[0, 1, 2, 3, 5]].tolist())


def test_segments_are_thirds_of_users_by_purchases_and_what_was_bought_before() -> None:
    found = figures()["segments"]
    # purchases on distinct days: ann 5, bob 3, cid 3 (milk once a day), dee 1
    assert list(found) == [
        "users with 1 to 1 purchases",
        "users with 3 to 3 purchases",
        "users with 5 to 5 purchases",
        "items not bought before",
        "items bought before",
    ]
    assert [part["rows"] for part in found.values()] == [5, 10, 5, 12, 8]
    # of what was bought only ann's bread was bought in the history
    assert [part["rows"] * part["bought"] for part in found.values()] == pytest.approx([1, 2, 2, 4, 1])


def test_only_the_label_window_counts() -> None:
    assert figures(CUTOFF + DAY_US)["bought"] == 1 / 20  # ann's bread on the first day


def test_batches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = counted()
    monkeypatch.setattr(candidates, "BATCH", 1)
    for name, values in counted().items():
        assert values == pytest.approx(whole[name])


def test_without_users_there_are_no_figures() -> None:
    assert summary(zero()) is None


@pytest.mark.parametrize("kind", PICTURES)
def test_the_plot_is_a_picture_of_its_format(tmp_path: Path, kind: str) -> None:
    plot_reliability(figures(), tmp_path / "picture", kind=kind, title="20 candidates")
    start = (tmp_path / "picture").read_bytes()[:6]
    assert start in (b"\x89PNG\r\n", b"<?xml ")
    assert (start == b"<?xml ") == (kind == ".svg")
