"""What lists lose when an input is shuffled, by a scorer whose inputs are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.evaluation import importance
from recsys.evaluation.bootstrap import RESAMPLES
from recsys.features.candidate_features import Featurizer
from tests import shops
from tests.shops import CUTOFF, END


class ByInputs:
    """Scores by weights of its inputs."""

    def __init__(self, featurizer: Featurizer, **weights: float) -> None:
        ((_, _, _, inputs),) = featurizer(shops.whole())
        self.bundle: Any = SimpleNamespace(spec=SimpleNamespace(dense=inputs.names, codes=("department", "age")), folder="-")
        self.weights = weights

    def __call__(self, dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
        raw = codes[:, 0] * np.float32(self.weights.get("department", 0.0))
        for name, weight in self.weights.items():
            if name != "department":
                raw = raw + np.nan_to_num(dense[:, self.bundle.spec.dense.index(name)]) * np.float32(weight)
        return raw.astype(np.float32)


def losses(**weights: float) -> tuple[dict[str, Any], dict[str, float]]:
    featurizer = shops.featurizer()
    scorer: Any = ByInputs(featurizer, **weights)
    found = importance.summary(importance.count(shops.whole(), featurizer, scorer, start=CUTOFF, end=END, seed=3, diversity=0.0))
    return found, {one["input"]: one["loss"] for one in found["inputs"]}


def test_only_what_the_scores_rest_on_is_missed() -> None:
    found, loss = losses(own_recent=1.0)
    assert found["users"] == 4  # ann, bob, cid and dee want something; eve, who does too, has no history
    assert 0 < found["ndcg@10"] <= 1
    assert loss["own_recent"] != 0
    assert {name: value for name, value in loss.items() if value != 0}.keys() == {"own_recent"}
    assert {"department", "age"} <= loss.keys()


def test_a_column_of_words_is_shuffled_too() -> None:
    _, loss = losses(department=1.0)
    assert {name for name, value in loss.items() if value != 0} == {"department"}


def test_what_is_lost_is_told_with_an_interval_over_users_and_most_first() -> None:
    found, _ = losses(popularity_28d=1.0, department=0.5)
    assert [one["loss"] for one in found["inputs"]] == sorted((one["loss"] for one in found["inputs"]), reverse=True)
    missed = [one for one in found["inputs"] if one["loss"] != 0]
    assert missed
    for one in missed:
        assert one["interval"][0] <= one["loss"] <= one["interval"][1]


def test_shards_add_up_and_nobody_gives_nothing() -> None:
    featurizer = shops.featurizer()
    scorer: Any = ByInputs(featurizer, own_recent=1.0)
    told: dict[str, Any] = {"start": CUTOFF, "end": END, "seed": 3, "diversity": 0.0}
    whole = importance.count(shops.whole(), featurizer, scorer, **told)
    parts = [importance.count(shops.whole().select(*part), featurizer, scorer, **told) for part in ((0, 2), (2, 5))]
    for key in (importance.USERS, importance.BASE):
        np.testing.assert_allclose(whole[key], sum(part[key] for part in parts))
    assert whole[importance.USERS].shape == (1 + RESAMPLES,)
    later: dict[str, Any] = told | {"start": END + 1, "end": END + 2}
    nobody = importance.count(shops.whole(), featurizer, scorer, **later)
    assert importance.summary(nobody) == {"users": 0, "ndcg@10": None, "inputs": []}
    assert importance.summary({}) == {"users": 0, "ndcg@10": None, "inputs": []}


@pytest.mark.parametrize("seed", [3, 4])
def test_the_seed_decides_the_shuffle(seed: int) -> None:
    featurizer = shops.featurizer()
    scorer: Any = ByInputs(featurizer, popularity_28d=1.0)
    told: dict[str, Any] = {"start": CUTOFF, "end": END, "seed": seed, "diversity": 0.0}
    one, other = (importance.count(shops.whole(), featurizer, scorer, **told) for _ in range(2))
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key])
