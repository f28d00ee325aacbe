from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from recsys import config
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle, network
from recsys.ranking.scorer import Scorer

SPEC = FeatureSpec(
    dense=("recency", "count", "price"),
    mean=(0.0, 1.0, 2.0),
    scale=(1.0, 2.0, 3.0),
    codes=("brand", "age"),
    vocabularies={"brand": tuple("abcdefghi"), "age": ("old",)},
)
SETTINGS = config.Model(hidden=(6, 5), dropout=0.5, max_embedding=4)


def feed(rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(rows, 3)).astype(np.float32), rng.integers(0, SPEC.sizes(), (rows, 2), dtype=np.int32)]


def test_the_same_seed_starts_with_the_same_weights_and_another_seed_does_not():
    first, same, other = (network.build(SPEC, SETTINGS, seed=seed).get_weights() for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True) if a.any())  # biases start at 0


def test_two_layers_of_one_shape_start_with_different_weights():
    built = network.build(SPEC, config.Model(hidden=(8, 8, 8)), seed=0)
    assert not np.array_equal(built.get_layer("hidden_1").get_weights()[0], built.get_layer("hidden_2").get_weights()[0])


def test_the_output_is_the_sigmoid_of_the_logit():
    built = network.build(SPEC, SETTINGS, seed=0)
    inputs = feed(7)
    raw, chance = np.asarray(network.logits(built)(inputs)), np.asarray(built(inputs))
    assert chance.shape == (7, 1)
    assert chance.dtype == np.float32
    np.testing.assert_allclose(chance, 1 / (1 + np.exp(-raw)), rtol=1e-6)


def test_dropout_is_off_when_scoring_and_on_when_fitting():
    built = network.build(SPEC, SETTINGS, seed=0)
    inputs = feed(7)
    assert np.array_equal(np.asarray(built(inputs)), np.asarray(built(inputs)))
    assert not np.array_equal(np.asarray(built(inputs, training=True)), np.asarray(built(inputs)))


def test_each_code_column_reaches_its_own_embedding():
    built = network.build(SPEC, SETTINGS, seed=0)
    assert built.get_layer("embedding_0").get_weights()[0].shape == (10, 4)  # round(1.6 * 10**0.56) = 6, at most 4
    assert built.get_layer("embedding_1").get_weights()[0].shape == (2, 2)  # round(1.6 * 2**0.56)
    dense, codes = feed(1)
    for column in (0, 1):
        changed = codes.copy()
        changed[0, column] = (codes[0, column] + 1) % SPEC.sizes()[column]
        assert np.asarray(built([dense, changed])) != np.asarray(built([dense, codes]))


def test_without_code_columns_there_is_one_input():
    spec = FeatureSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), (), {})
    built = network.build(spec, config.Model(), seed=0)
    assert [tensor.name for tensor in built.inputs] == ["dense"]
    assert [layer.units for layer in built.layers if isinstance(layer, keras.layers.Dense)] == [512, 256, 128, 1]


@pytest.mark.parametrize(("size", "width"), [(1, 2), (10, 6), (1000, 77)])
def test_embedding_width_follows_the_rule(size: int, width: int):
    assert network.embedding_width(size) == width


def hidden_layers(**choices: Any) -> list[tuple[str, str]]:
    """Name and kind of the layers between inputs and logit."""
    layers = network.build(SPEC, config.Model(hidden=(6, 5), **choices), seed=0).layers
    names = [layer.name for layer in layers]
    inside = layers[names.index("hidden_0") : names.index(network.LOGIT)]
    return [(layer.name, type(layer).__name__) for layer in inside]


@pytest.mark.parametrize(
    ("choice", "kind"), [(None, None), ("batch", "BatchNormalization"), ("layer", "LayerNormalization")], ids=["none", "batch", "layer"]
)
def test_a_hidden_layer_is_dense_then_normalisation_activation_and_dropout(choice: str | None, kind: str | None):
    def one(layer: int) -> list[tuple[str, str]]:
        normalisation = [(f"normalisation_{layer}", kind)] if kind else []
        return [(f"hidden_{layer}", "Dense"), *normalisation, (f"activation_{layer}", "Activation"), (f"dropout_{layer}", "Dropout")]

    assert hidden_layers(normalisation=choice) == one(0) + one(1)
    assert network.build(SPEC, config.Model(hidden=(6,)), seed=0).get_layer("hidden_0").activation.__name__ == "linear"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("relu", [0, 0, 2]),
        ("gelu", [-0.158655, 0, 1.954500]),  # x times the standard normal's distribution function: -1 * 0.158655, 2 * 0.977250
        ("sigmoid", [1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2))]),
        ("tanh", [-np.tanh(1), 0, np.tanh(2)]),
    ],
)
def test_the_activation_reaches_every_hidden_layer(name: Any, at: list[float]):
    built = network.build(SPEC, config.Model(hidden=(6, 5), activation=name), seed=0)
    for layer in (0, 1):
        width = (6, 5)[layer]
        part = keras.Model(built.get_layer(f"hidden_{layer}").output, built.get_layer(f"dropout_{layer}").output)
        seen = np.asarray(part(np.resize(np.array([-1, 0, 2], np.float32), (1, width))))
        np.testing.assert_allclose(seen[0], np.resize(at, width), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "deviation", "largest"),
    [
        ("random_uniform", 0.05 / 3**0.5, 0.05),
        ("random_normal", 0.05, None),
        ("glorot_uniform", (2 / 600) ** 0.5, (6 / 600) ** 0.5),  # 6 / (300 inputs + 300 units)
        ("he_normal", (2 / 300) ** 0.5, None),  # truncated at two deviations, and scaled back
    ],
)
def test_the_initialiser_reaches_hidden_layers_and_logit(name: Any, deviation: float, largest: float | None):
    built = network.build(SPEC, config.Model(hidden=(300, 300), initialiser=name), seed=0)
    kernel = built.get_layer("hidden_1").get_weights()[0]
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    if largest:
        assert 0.99 * largest < np.abs(kernel).max() <= largest
    else:
        assert np.abs(kernel).max() > 2 * deviation
    other = network.build(SPEC, config.Model(hidden=(300, 300), initialiser="glorot_uniform"), seed=0)
    same = np.array_equal(built.get_layer(network.LOGIT).get_weights()[0], other.get_layer(network.LOGIT).get_weights()[0])
    assert same == (name == "glorot_uniform")


@pytest.mark.parametrize("normalisation", [None, "batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "sigmoid", "tanh"])
def test_every_activation_and_normalisation_scores_from_a_bundle_as_keras_does(tmp_path: Path, activation: Any, normalisation: Any):
    built = network.build(SPEC, config.Model(hidden=(16, 8), activation=activation, normalisation=normalisation), seed=1)
    rng = np.random.default_rng(1)
    # moments, offsets and biases that are not those of the start
    start = built.get_weights()
    built.set_weights([rng.uniform(0.1, 0.9, old.shape).astype(np.float32) if old.ndim == 1 else 4 * old for old in start])
    saved = bundle.save(tmp_path / "bundle", built, SPEC, settings={}, window={}, metrics={})
    dense, codes = feed(500)
    expected = np.asarray(network.logits(saved.keras_model())([SPEC.normalise(dense), codes]))[:, 0]
    assert expected.std() > 0.01  # what is compared is not one number
    np.testing.assert_allclose(Scorer(saved)(dense, codes), expected, rtol=1e-5, atol=1e-5)
