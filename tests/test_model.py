import keras
import numpy as np
import pytest

from recsys import config, model
from recsys.spec import FeatureSpec

SPEC = FeatureSpec(
    dense=("recency", "count", "price"),
    mean=(0.0, 1.0, 2.0),
    scale=(1.0, 2.0, 3.0),
    codes=("brand", "age"),
    vocabularies={"brand": tuple("abcdefghi"), "age": ("old",)},
)
SETTINGS = config.Model(hidden=(6, 5), dropout=0.5, max_embedding=4)


def feed(rows: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, 3)).astype(np.float32), rng.integers(0, SPEC.sizes(), (rows, 2), dtype=np.int32)]


def test_the_same_seed_starts_with_the_same_weights_and_another_seed_does_not():
    first, same, other = (model.build(SPEC, SETTINGS, seed=seed).get_weights() for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True) if a.any())  # biases start at 0


def test_two_layers_of_one_shape_start_with_different_weights():
    built = model.build(SPEC, config.Model(hidden=(8, 8, 8)), seed=0)
    assert not np.array_equal(built.get_layer("hidden_1").get_weights()[0], built.get_layer("hidden_2").get_weights()[0])


def test_the_output_is_the_sigmoid_of_the_logit():
    built = model.build(SPEC, SETTINGS, seed=0)
    inputs = feed(7)
    raw, chance = np.asarray(model.logits(built)(inputs)), np.asarray(built(inputs))
    assert chance.shape == (7, 1)
    assert chance.dtype == np.float32
    np.testing.assert_allclose(chance, 1 / (1 + np.exp(-raw)), rtol=1e-6)


def test_dropout_is_off_when_scoring_and_on_when_fitting():
    built = model.build(SPEC, SETTINGS, seed=0)
    inputs = feed(7)
    assert np.array_equal(np.asarray(built(inputs)), np.asarray(built(inputs)))
    assert not np.array_equal(np.asarray(built(inputs, training=True)), np.asarray(built(inputs)))


def test_each_code_column_reaches_its_own_embedding():
    built = model.build(SPEC, SETTINGS, seed=0)
    assert built.get_layer("embedding_0").get_weights()[0].shape == (10, 4)  # round(1.6 * 10**0.56) = 6, at most 4
    assert built.get_layer("embedding_1").get_weights()[0].shape == (2, 2)  # round(1.6 * 2**0.56)
    dense, codes = feed(1)
    for column in (0, 1):
        changed = codes.copy()
        changed[0, column] = (codes[0, column] + 1) % SPEC.sizes()[column]
        assert np.asarray(built([dense, changed])) != np.asarray(built([dense, codes]))


def test_without_code_columns_there_is_one_input():
    spec = FeatureSpec(("a", "b"), (0.0, 0.0), (1.0, 1.0), (), {})
    built = model.build(spec, config.Model(), seed=0)
    assert [tensor.name for tensor in built.inputs] == ["dense"]
    assert [layer.units for layer in built.layers if isinstance(layer, keras.layers.Dense)] == [512, 256, 128, 1]


@pytest.mark.parametrize(("size", "width"), [(1, 2), (10, 6), (1000, 77)])
def test_embedding_width_follows_the_rule(size: int, width: int):
    assert model.embedding_width(size) == width
