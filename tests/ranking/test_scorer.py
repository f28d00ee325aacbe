from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import config
from recsys.errors import ClusterError
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle, network
from recsys.ranking.scorer import Scorer, probabilities

ROWS = 5000  # more than two slices of score.ROWS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    spec = FeatureSpec(
        dense=tuple(f"d{column}" for column in range(33)),
        mean=tuple(float(column) for column in range(33)),
        scale=tuple(1.0 + column for column in range(33)),
        codes=("brand", "age"),
        vocabularies={"brand": tuple("abcdefgh"), "age": ("young", "old")},
    )
    built = network.build(spec, config.Model(hidden=(96, 64, 7)), seed=2)
    return bundle.save(tmp_path_factory.mktemp("score") / "b", built, spec, settings={}, window={}, metrics={})


@pytest.fixture(scope="module")
def inputs(saved: bundle.Bundle) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    dense = rng.normal(saved.spec.mean, saved.spec.scale, (ROWS, 33)).astype(np.float32)
    dense[::7, 3] = np.nan
    return dense, rng.integers(0, saved.spec.sizes(), (ROWS, 2), dtype=np.int32)


@pytest.fixture(scope="module")
def scorer(saved: bundle.Bundle) -> Scorer:
    return Scorer(saved)


@pytest.fixture(scope="module")
def raw(scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return scorer(*inputs)


def test_probabilities_are_those_of_keras(saved: bundle.Bundle, inputs: tuple[np.ndarray, np.ndarray], raw: np.ndarray):
    dense, codes = inputs
    expected = np.asarray(saved.keras_model()([saved.spec.normalise(dense), codes]))[:, 0]
    assert raw.dtype == np.float32
    assert np.ptp(expected) > 0.1  # the rows differ
    np.testing.assert_allclose(probabilities(raw), expected, atol=1e-5)


def test_a_row_has_the_same_bits_in_a_batch_of_any_size(scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray], raw: np.ndarray):
    dense, codes = inputs
    for size in (*range(1, 40), 63, 64, 65, 255, 1000, 1024, 2047, 2048, 2049, 4999):
        rows = slice(size % 11, size % 11 + size)
        assert np.array_equal(scorer(dense[rows], codes[rows]), raw[rows]), size


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, ROWS))
def test_a_row_has_the_same_bits_in_any_company(
    scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray], raw: np.ndarray, seed: int, size: int
):
    rows = np.random.default_rng(seed).permutation(ROWS)[:size]
    assert np.array_equal(scorer(inputs[0][rows], inputs[1][rows]), raw[rows])


def test_a_missing_value_scores_as_the_mean(scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray]):
    dense, codes = inputs[0][:3].copy(), inputs[1][:3]
    dense[:, 5] = np.nan
    missing = scorer(dense, codes)
    dense[:, 5] = 5.0  # the mean of d5
    assert np.array_equal(scorer(dense, codes), missing)


def test_no_rows_have_no_scores(scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray]):
    raw = scorer(inputs[0][:0], inputs[1][:0])
    assert raw.shape == (0,)
    assert raw.dtype == np.float32


@pytest.mark.parametrize("code", [-1, 9])
def test_a_code_outside_its_vocabulary_is_our_mistake(scorer: Scorer, inputs: tuple[np.ndarray, np.ndarray], code: int):
    codes = inputs[1][:4].copy()
    codes[2, 0] = code
    with pytest.raises(AssertionError, match="vocabulary"):
        scorer(inputs[0][:4], codes)


def test_a_model_without_codes_takes_an_empty_matrix(tmp_path: Path):
    spec = FeatureSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), (), {})
    built = network.build(spec, config.Model(hidden=(3,)), seed=0)
    plain = bundle.save(tmp_path / "b", built, spec, settings={}, window={}, metrics={})
    dense = np.array([[1, 2], [3, 4], [-1, 0]], np.float32)
    raw = Scorer(plain)(dense, np.empty((3, 0), np.int32))
    np.testing.assert_allclose(probabilities(raw), np.asarray(built([dense]))[:, 0], atol=1e-6)


def test_probabilities_of_extreme_logits_neither_overflow_nor_turn_to_nan():
    raw = np.array([-1000, -2, 0, 2, 1000], np.float32)
    expected = [0, 1 / (1 + np.e**2), 1 / 2, 1 - 1 / (1 + np.e**2), 1]
    np.testing.assert_allclose(probabilities(raw), expected, rtol=1e-6)
    assert probabilities(raw).dtype == np.float32


def test_a_gpu_that_is_not_there_is_refused(saved: bundle.Bundle):
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ClusterError, match="TensorFlow sees none"):
        Scorer(saved, device="gpu")
