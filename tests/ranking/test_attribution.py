from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import config
from recsys.errors import BundleError
from recsys.features.spec import FeatureSpec
from recsys.ranking import attribution, bundle, network
from recsys.ranking.attribution import TOLERANCE, Attribution, in_words
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Scorer

SPEC = FeatureSpec(
    dense=("price", "age", "visits"),
    mean=(3.0, 40.0, 0.0),
    scale=(2.0, 10.0, 1.0),
    codes=("brand", "tag", "tag", "city"),
    vocabularies={"brand": ("kees", "brood"), "tag": ("red", "blue", "old"), "city": ("ede",)},
    fill=(0.0, 0.0, -0.5),
)
NAMES = ("price", "age", "visits", "brand", "tag", "city")


def saved(folder: Path, built: keras.Model, spec: FeatureSpec = SPEC) -> Bundle:
    return bundle.save(folder / "b", built, spec, settings={}, window={}, metrics={})


def scaled(built: keras.Model, factor: float) -> keras.Model:
    """The model with all weights larger: far from linear."""
    built.set_weights([weights * factor for weights in built.get_weights()])
    return built


@pytest.fixture(scope="module")
def kinked(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    built = scaled(network.build(SPEC, config.Model(hidden=(24, 12), initialiser="he_normal", normalisation="layer"), seed=4), 2.0)
    return saved(tmp_path_factory.mktemp("kinked"), built)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One hidden unit that is always active: logit = 1 price' - 2 age' + 0.5 embedding of brand + 3 of tag, on normalised inputs."""
    built = network.build(SPEC, config.Model(hidden=(1,), max_embedding=1), seed=4)
    built.get_layer("hidden_0").set_weights([np.array([[1], [-2], [0], [0.5], [3], [0]], np.float32), np.array([100], np.float32)])
    built.get_layer("logit").set_weights([np.ones((1, 1), np.float32), np.array([-100], np.float32)])
    for column, values in ((0, [0.25, 1, 2]), (1, [9, 1, 2, 4]), (3, [5, 6])):
        built.get_layer(f"embedding_{column}").set_weights([np.array(values, np.float32)[:, None]])
    return saved(tmp_path_factory.mktemp("linear"), built)


def of(made: Bundle, dense: list[list[float]], codes: list[list[int]]) -> Attribution:
    return attribution.attribute(made, np.array(dense, np.float32), np.array(codes, np.int32).reshape(len(dense), -1))


def test_in_a_linear_model_an_input_adds_its_weight_times_its_distance_from_the_baseline(linear: Bundle) -> None:
    found = of(linear, [[5.0, 20.0, 7.0], [3.0, 40.0, 2.0]], [[2, 1, 3, 1], [1, 0, 0, 0]])
    assert found.names == NAMES
    # price (5 - 3) / 2 = 1; age -2 x (20 - 40) / 10 = 4; brand 0.5 x (2 - 0.25); tag 3 x (1 + 4) / 2
    expected = [[1.0, 4.0, 0.0, 0.875, 7.5, 0.0], [0.0, 0.0, 0.0, 0.5 * (1 - 0.25), 0.0, 0.0]]
    np.testing.assert_allclose(found.added, expected, atol=1e-4)
    assert found.baseline == pytest.approx(0.5 * 0.25, abs=1e-4)
    np.testing.assert_allclose(found.raw, found.baseline + np.sum(expected, axis=1), atol=1e-4)


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_contributions_add_up_to_what_the_scorer_says(kinked: Bundle, seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.normal(SPEC.mean, SPEC.scale, (3, 3)).astype(np.float32)
    dense[rng.random((3, 3)) < 0.2] = np.nan
    codes = rng.integers(0, SPEC.sizes(), (3, 4), dtype=np.int32)
    found = attribution.attribute(kinked, dense, codes)
    scorer = Scorer(kinked)
    nothing = scorer(np.full((1, 3), np.nan, np.float32), np.zeros((1, 4), np.int32))
    difference = scorer(dense, codes) - nothing
    assert (np.abs(found.added.sum(axis=1) - difference) <= 2 * TOLERANCE * np.maximum(1, np.abs(difference))).all()
    assert (found.added[:, :3][np.isnan(dense)] == 0).all()


def test_what_is_missing_or_unknown_adds_nothing_and_the_rest_does(kinked: Bundle) -> None:
    nan = float("nan")
    found = of(kinked, [[nan, 55.0, nan], [nan, nan, nan]], [[2, 0, 0, 0], [0, 0, 0, 0]])
    assert (found.added[0] != 0).tolist() == [False, True, False, True, False, False]
    assert found.added[1].tolist() == [0.0] * 6
    assert found.raw[1] == found.baseline


def test_contributions_of_a_kinked_model_agree_with_finite_differences_along_the_line(kinked: Bundle) -> None:
    """Input by input, of the ONNX model: no gradient of TensorFlow's."""
    nan = float("nan")
    row = np.array([[9.0, 10.0, nan]], np.float32)
    codes = np.zeros((1, 4), np.int32)
    found = attribution.attribute(kinked, row, codes).added[0]
    steps, width = 2000, 1e-3
    share = (np.arange(steps) + 0.5)[:, None] / steps
    line = np.concatenate([np.array(SPEC.mean[:2]) + share * (row[:, :2] - np.array(SPEC.mean[:2])), np.full((steps, 1), nan)], axis=1)
    scorer = Scorer(kinked)
    for column in range(2):
        high, low = line.copy(), line.copy()
        high[:, column] += width * SPEC.scale[column]
        low[:, column] -= width * SPEC.scale[column]
        none = np.zeros((steps, 4), np.int32)
        slope = (scorer(high.astype(np.float32), none) - scorer(low.astype(np.float32), none)) / (2 * width * SPEC.scale[column])
        assert found[column] == pytest.approx(slope.mean() * (row[0, column] - SPEC.mean[column]), abs=0.02)
    assert np.abs(found[:2]).min() > 0.05


def test_a_model_without_codes_is_explained(tmp_path: Path) -> None:
    spec = FeatureSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), (), {})
    made = saved(tmp_path, scaled(network.build(spec, config.Model(hidden=(8,), activation="gelu"), seed=1), 3.0), spec)
    dense = np.array([[1.0, -2.0]], np.float32)
    found = attribution.attribute(made, dense, np.empty((1, 0), np.int32))
    assert found.names == ("a", "b")
    assert found.added.sum() == pytest.approx(found.raw[0] - found.baseline, abs=TOLERANCE)
    assert found.raw[0] == pytest.approx(Scorer(made)(dense, np.empty((1, 0), np.int32))[0], abs=1e-5)


def test_no_rows_have_no_contributions(kinked: Bundle) -> None:
    found = attribution.attribute(kinked, np.empty((0, 3), np.float32), np.empty((0, 4), np.int32))
    assert (found.added.shape, found.raw.shape) == ((0, 6), (0,))


def test_contributions_that_do_not_add_up_are_refused(kinked: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ([[9.0, 90.0, 30.0]], [[1, 1, 2, 1]])
    of(kinked, *row)
    monkeypatch.setattr(attribution, "FEWEST_STEPS", 1)
    monkeypatch.setattr(attribution, "MOST_STEPS", 1)
    with pytest.raises(BundleError, match=r"contributions must add up to .* within 0\.00\d+, got .* in 1 steps\. Are"):
        of(kinked, *row)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, as in bundle.py
def test_a_model_whose_outputs_are_no_numbers_is_refused(tmp_path: Path) -> None:
    made = saved(tmp_path, network.build(SPEC, config.Model(hidden=(4,)), seed=4))
    broken = made.keras_model()
    broken.set_weights([np.full_like(weights, np.nan) for weights in broken.get_weights()])
    broken.save(made.folder / bundle.KERAS)
    with pytest.raises(
        BundleError, match=r"must add up to nan within 0\.001, got nan in \d+ steps\. Are the model's weights finite\?$"
    ):
        of(made, [[9.0, 90.0, 30.0]], [[1, 1, 2, 1]])


def test_values_are_said_in_words() -> None:
    dense, codes = np.array([1234.567, float("nan"), 0.5], np.float32), np.array([2, 0, 3, 0], np.int32)
    assert in_words(SPEC, dense, codes) == ("1.23e+03", "unknown", "0.5", "brood", "old", "unknown")
    assert in_words(SPEC, dense, np.array([0, 1, 3, 1], np.int32))[3:] == ("unknown", "red, old", "ede")
