import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation import bootstrap
from recsys.hashing import stable_hash

USERS = stable_hash(np.arange(300))


def values() -> np.ndarray:
    """Two metrics of each user that are neither alike nor symmetric."""
    rng = np.random.default_rng(4)
    return np.stack([rng.beta(2, 5, 300), rng.random(300) < 0.2], axis=1).astype(np.float64)


def test_the_first_row_is_the_users_as_they_are_and_the_others_are_poisson() -> None:
    weights = bootstrap.draws(USERS, seed=3)
    assert weights.shape == (1 + bootstrap.RESAMPLES, 300)
    assert (weights[0] == 1).all()
    drawn = weights[1:].astype(int)
    share = np.bincount(drawn.ravel(), minlength=17) / drawn.size
    expected = [math.exp(-1) / math.factorial(n) for n in range(17)]
    assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / drawn.size))
    assert np.corrcoef(drawn[0], drawn[1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(300))
    assert np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] == pytest.approx(0, abs=4 / math.sqrt(bootstrap.RESAMPLES))


def test_draws_depend_on_the_user_and_the_seed_alone() -> None:
    weights = bootstrap.draws(USERS, seed=3)
    assert (bootstrap.draws(USERS[[7, 2]], seed=3) == weights[:, [7, 2]]).all()
    assert (bootstrap.draws(USERS, seed=4)[1:] != weights[1:]).any()


def test_intervals_are_those_of_users_written_out_as_often_as_drawn() -> None:
    weights = bootstrap.draws(USERS, seed=3)
    total = bootstrap.sums(values(), weights)
    for column in range(2):
        means = [np.repeat(values()[:, column], drawn.astype(int)).mean() for drawn in weights[1:]]
        low, high = np.percentile(means, [2.5, 97.5])
        assert bootstrap.interval(total[:, column], weights.sum(axis=1)) == pytest.approx([low, high], abs=2**-23)


def test_an_interval_is_as_wide_as_the_normal_approximation_says() -> None:
    weights = bootstrap.draws(USERS, seed=3)
    interval = bootstrap.interval(bootstrap.sums(values(), weights)[:, 0], weights.sum(axis=1))
    assert interval is not None
    error = values()[:, 0].std(ddof=1) / math.sqrt(300)
    assert interval == pytest.approx([values()[:, 0].mean() - 1.96 * error, values()[:, 0].mean() + 1.96 * error], abs=0.3 * error)


@given(st.lists(st.integers(0, 299), max_size=5))
def test_the_sums_of_parts_are_the_sum_of_the_whole_to_the_last_bit(cuts: list[int]) -> None:
    whole = bootstrap.sums(values(), bootstrap.draws(USERS, seed=3))
    parts = zip(np.split(values(), sorted(cuts)), np.split(USERS, sorted(cuts)), strict=True)
    total = [bootstrap.sums(part, bootstrap.draws(users, seed=3)) for part, users in parts]
    assert (np.sum(total[::-1], axis=0) == whole).all()


def test_without_users_there_is_no_interval() -> None:
    nobody = np.zeros(1 + bootstrap.RESAMPLES)
    assert bootstrap.interval(nobody, nobody) is None


def test_resamples_without_a_user_are_left_out() -> None:
    weights = bootstrap.draws(USERS[:1], seed=3)
    assert (weights == 0).any()
    assert bootstrap.interval(bootstrap.sums(np.array([[0.25]]), weights)[:, 0], weights[:, 0]) == [0.25, 0.25]
