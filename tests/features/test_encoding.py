import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from recsys import config
from recsys.config import Pairs
from recsys.data.catalog import most_frequent
from recsys.features.encoding import BLOCK, Encoder, encoder
from recsys.features.fitting import Moments, column_spec, count_words, fit_columns
from recsys.features.spec import CLIP, UNLIMITED, ColumnSpec, FeatureSpec, ModelInputs
from recsys.ranking import bundle, network, scorer

NAN, INF = float("nan"), float("inf")
NUMBER = ColumnSpec("x", "number")
WORD = ColumnSpec("x", "word")


def batch(**columns: pa.Array) -> pa.RecordBatch:
    return pa.record_batch(list(columns.values()), list(columns))


def encoded(column: ColumnSpec, values: pa.Array, words: Sequence[str] = (), *, limited: bool = True) -> ModelInputs:
    """A batch of one column, encoded."""
    return Encoder([column], {column.name: words}, {column.name: limited})(batch(x=values))


def dense(column: ColumnSpec, values: pa.Array) -> Any:
    found = encoded(column, values)
    assert found.dense.dtype == np.float32
    assert found.unfit == {}
    return found.dense


def codes(column: ColumnSpec, values: pa.Array, words: Sequence[str]) -> list[Any]:
    found = encoded(column, values, words)
    assert found.codes.dtype == np.int32
    assert found.dense.shape == (len(values), 0)
    return found.codes[:, 0].tolist() if column.kind == "word" else found.codes.tolist()


def pairs_of(**settings: Any) -> Pairs:
    return Pairs(path="rows", **settings)


def fit(pairs: Pairs, batches: Sequence[pa.RecordBatch], *, shards: int = 1) -> FeatureSpec:
    """The spec of the batches, their sums and counts made in so many parts and added."""
    first = batches[0].schema
    columns = [column_spec(pairs, name, first.field(name).type, table="rows", width=width_of(first, name)) for name in pairs.named]
    words = {column.name: Counter[str]() for column in columns if column.codes()}
    encode_rows = Encoder(columns, dict.fromkeys(words, ()))
    parts: list[Moments] = []
    for shard in range(shards):
        mine = batches[shard::shards]
        for one in mine:
            count_words(columns, one, words)
        parts.append(Moments.of((encode_rows(one).dense for one in mine), encode_rows.width))
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return fit_columns(pairs, columns, whole, words)


def width_of(schema: pa.Schema, name: str) -> int:
    dtype = schema.field(name).type
    return dtype.list_size if pa.types.is_fixed_size_list(dtype) else 1


def model_inputs(spec: FeatureSpec, rows: pa.RecordBatch) -> np.ndarray:
    return spec.normalise(encoder(spec, "rows")(rows).dense)


# ---- numbers


@pytest.mark.parametrize("dtype", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_floats_of_every_width_keep_nan_and_infinities_and_null_is_nan(dtype: pa.DataType) -> None:
    values = pa.array([np.float16(value) for value in (1.5, NAN, INF, -INF)] + [None, np.float16(-2)], pa.float16()).cast(dtype)
    np.testing.assert_array_equal(dense(NUMBER, values)[:, 0], np.array([1.5, NAN, INF, -INF, NAN, -2], np.float32))


@pytest.mark.parametrize(
    "dtype", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()], ids=str
)
@pytest.mark.parametrize("null", [True, False])
def test_integers_of_every_width_are_numbers_and_null_is_nan(dtype: pa.DataType, null: bool) -> None:
    least = -100 if pa.types.is_signed_integer(dtype) else 0
    values = pa.array([0, 7, 100, least, None if null else 3], dtype)
    np.testing.assert_array_equal(dense(NUMBER, values)[:, 0], np.array([0, 7, 100, least, NAN if null else 3], np.float32))


def test_the_largest_integers_are_their_nearest_float() -> None:
    values = pa.array([2**63 - 1, -(2**63)], pa.int64())
    np.testing.assert_array_equal(dense(NUMBER, values)[:, 0], np.array([2.0**63, -(2.0**63)], np.float32))
    values = pa.array([2**64 - 1], pa.uint64())
    np.testing.assert_array_equal(dense(NUMBER, values)[:, 0], np.array([2.0**64], np.float32))


def test_a_float64_beyond_float32_is_infinite() -> None:
    np.testing.assert_array_equal(dense(NUMBER, pa.array([1e300, -1e300, 1e-300])), np.array([[INF], [-INF], [0]], np.float32))


def test_truth_values_are_0_and_1() -> None:
    np.testing.assert_array_equal(dense(NUMBER, pa.array([True, False, None])), np.array([[1], [0], [NAN]], np.float32))


@pytest.mark.parametrize("dtype", [pa.int8(), pa.float32(), pa.float64(), pa.int64()], ids=str)
def test_a_dictionary_of_numbers_is_its_values(dtype: pa.DataType) -> None:
    values = pa.array([3, 1, None, 3], dtype).dictionary_encode()
    np.testing.assert_array_equal(dense(NUMBER, values)[:, 0], np.array([3, 1, NAN, 3], np.float32))


def test_a_column_of_nulls_only_is_missing_everywhere() -> None:
    np.testing.assert_array_equal(dense(NUMBER, pa.nulls(3)), np.full((3, 1), NAN, np.float32))
    np.testing.assert_array_equal(dense(ColumnSpec("x", "numbers", width=2), pa.nulls(3)), np.full((3, 2), NAN, np.float32))
    assert codes(WORD, pa.nulls(2), ["a"]) == [0, 0]
    assert codes(ColumnSpec("x", "words", width=2), pa.nulls(2), ["a"]) == [[0, 0], [0, 0]]


LISTS = [
    pa.list_(pa.float32()),
    pa.large_list(pa.float64()),
    pa.list_(pa.float64(), 2),
    pa.list_(pa.int16()),
    pa.list_(pa.float16(), 2),
]


@pytest.mark.parametrize("dtype", LISTS, ids=str)
@pytest.mark.parametrize("nulls", [True, False])
def test_a_list_of_numbers_is_one_input_a_place(dtype: pa.DataType, nulls: bool) -> None:
    rows = [[1, 2], [3, None], None, [None, 4]] if nulls else [[1, 2], [3, 4], [5, 6], [7, 8]]
    values = pa.array(rows, pa.list_(pa.int16())).cast(pa.list_(dtype.value_type))
    values = values.cast(dtype) if not nulls or not pa.types.is_fixed_size_list(dtype) else pa.array(values.to_pylist(), dtype)
    expected = [[NAN if value is None else value for value in row] if row else [NAN, NAN] for row in rows]
    np.testing.assert_array_equal(dense(ColumnSpec("x", "numbers", width=2), values), np.array(expected, np.float32))


def test_a_list_of_truth_values_or_of_a_dictionary_is_numbers_too() -> None:
    column = ColumnSpec("x", "numbers", width=2)
    np.testing.assert_array_equal(dense(column, pa.array([[True, None], [False, True]])), np.array([[1, NAN], [0, 1]], np.float32))
    values = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), pa.array([5, 6, 6, None]).dictionary_encode())
    np.testing.assert_array_equal(dense(column, values), np.array([[5, 6], [6, NAN]], np.float32))


@pytest.mark.parametrize("null", [None, [9.0, 9.0]])
def test_a_list_of_another_length_makes_its_row_unfit_and_no_other(null: list[float] | None) -> None:
    found = encoded(ColumnSpec("x", "numbers", width=2), pa.array([[1.0, 2.0], [3.0], [], [4.0, 5.0, 6.0], null, [7.0, 8.0]]))
    assert {reason: mask.tolist() for reason, mask in found.unfit.items()} == {
        "x: a list of another length": [False, True, True, True, False, False]
    }
    fit_rows = [0, 4, 5]
    expected = [[1, 2], [NAN, NAN] if null is None else null, [7, 8]]
    np.testing.assert_array_equal(found.dense[fit_rows], np.array(expected, np.float32))


def test_lists_that_are_all_of_another_length_or_all_null_are_no_crash() -> None:
    column = ColumnSpec("x", "numbers", width=3)
    assert encoded(column, pa.array([[1.0], [2.0, 3.0]])).unfit["x: a list of another length"].all()
    assert np.isnan(dense(column, pa.array([None, None], pa.list_(pa.float32())))).all()
    assert encoded(column, pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))).unfit["x: a list of another length"].all()


def test_single_columns_and_lists_stand_in_the_order_of_the_spec() -> None:
    columns = [ColumnSpec("a", "number"), ColumnSpec("x", "numbers", width=2), ColumnSpec("b", "number", indicator=True)]
    rows = BLOCK * 2 + 3  # more than two blocks
    a, x, b = np.arange(rows), np.arange(2 * rows).reshape(rows, 2) + 0.5, -np.arange(rows)
    found = Encoder(columns, {})(batch(b=pa.array(b), a=pa.array(a), x=pa.array(x.tolist())))
    np.testing.assert_array_equal(found.dense, np.column_stack([a, x, b, np.zeros(rows)]).astype(np.float32))
    assert [name for column in columns for name in column.dense()] == ["a", "x[0]", "x[1]", "b", "b is missing"]


def test_the_indicator_says_where_a_value_is_missing() -> None:
    column = ColumnSpec("x", "number", indicator=True)
    np.testing.assert_array_equal(dense(column, pa.array([1.0, None, NAN]))[:, 1], [0, 1, 1])


def test_the_indicator_of_a_list_says_where_any_of_its_values_is_missing() -> None:
    column = ColumnSpec("x", "numbers", width=2, indicator=True)
    values = pa.array([[1.0, 2.0], [None, 1.0], [1.0, None], None, [None, None]])
    np.testing.assert_array_equal(dense(column, values)[:, 2], [0, 1, 1, 1, 1])


def test_below_0_under_log1p_makes_a_row_unfit() -> None:
    column = ColumnSpec("x", "number", log1p=True)
    found = encoded(column, pa.array([0.0, -0.5, -1.0, -7.0, None, 3.0]))
    assert found.unfit["x: below 0 under log1p"].tolist() == [False, True, True, True, False, False]
    np.testing.assert_allclose(found.dense[[0, 5], 0], [0, np.log(4)], rtol=1e-6)
    assert np.isnan(found.dense[4, 0])


def test_one_value_below_0_makes_the_row_of_a_list_unfit() -> None:
    found = encoded(ColumnSpec("x", "numbers", width=2, log1p=True), pa.array([[1.0, 2.0], [3.0, -1.0]]))
    assert found.unfit["x: below 0 under log1p"].tolist() == [False, True]


@pytest.mark.parametrize("limited", [True, False])
def test_an_infinite_value_makes_a_row_unfit_where_nothing_cuts_it(limited: bool) -> None:
    found = encoded(NUMBER, pa.array([INF, -INF, 1.0, None, NAN, 1e300]), limited=limited)
    assert {reason: mask.tolist() for reason, mask in found.unfit.items()} == (
        {} if limited else {"x: infinite": [True, True, False, False, False, True]}
    )


@pytest.mark.parametrize(("scale", "unfit"), [("standard", 0), ("minmax", 1), ("none", 1)])
def test_only_standard_scaling_cuts_infinite_values(scale: str, unfit: int) -> None:
    rows = batch(x=pa.array([1.0, 2.0, 4.0]), y=pa.array([1.0, 2.0, 4.0]))
    spec = fit(pairs_of(numeric=("x", "y"), columns={"x": {"scale": scale}}), [rows])
    wild = batch(x=pa.array([INF, 1.0]), y=pa.array([INF, -INF]))
    assert len(encoder(spec, "rows")(wild).unfit) == unfit
    assert model_inputs(spec, wild)[:, 1].tolist() == [CLIP, -CLIP]


def test_the_encoder_of_a_table_has_its_columns_only() -> None:
    columns = (ColumnSpec("x", "number"), ColumnSpec("age", "number", table="users"), ColumnSpec("brand", "word", table="items"))
    spec = FeatureSpec(
        ("x", "age"), (0, 0), (1, 1), ("brand",), {"brand": ("a",)}, fill=(0, 0), limit=(8.0, UNLIMITED), columns=columns
    )
    parts = [
        encoder(spec, "rows")(batch(x=pa.array([1.0, 2.0]))),
        encoder(spec, "users")(batch(age=pa.array([30.0, INF]))),
        encoder(spec, "items")(batch(brand=pa.array(["b", "a"]))),
    ]
    assert [part.dense.tolist() for part in parts] == [[[1], [2]], [[30], [INF]], [[], []]]
    assert [part.codes.tolist() for part in parts] == [[[], []], [[], []], [[0], [1]]]
    assert [{reason: mask.tolist() for reason, mask in part.unfit.items()} for part in parts] == [
        {},
        {"age: infinite": [False, True]},
        {},
    ]


# ---- numbers as the model sees them, against float64


def reference(rules: Mapping[str, Any], train: Sequence[float | None], values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """What the settings promise, in float64, and how large a float32's error may be."""

    def raw(numbers: Sequence[float | None]) -> np.ndarray:
        column = np.array([NAN if number is None else np.float32(number) for number in numbers], np.float64) / rules.get("divide", 1.0)
        return np.log1p(column) if rules.get("log1p") else column

    fitted_on = raw(train)
    present = fitted_on[np.isfinite(fitted_on)]
    mean = present.mean() if len(present) else 0.0
    shift, scale = 0.0, 1.0
    if rules["scale"] == "standard":
        shift, scale = mean, present.std() if len(present) and np.ptp(present) else 1.0
    elif rules["scale"] == "minmax" and len(present):
        shift, scale = present.min(), np.ptp(present) or 1.0
    fill = rules.get("fill", "mean")
    stands = mean if fill == "mean" else raw([fill])[0]
    column = raw(values)
    column = np.where(np.isnan(column), stands, column)
    error = 2e-6 * (1 + (np.abs(column) + abs(shift)) / scale)
    column = (column - shift) / scale
    return np.clip(column, -CLIP, CLIP) if rules["scale"] == "standard" else column, error


NUMBERS = st.lists(st.one_of(st.none(), st.floats(0, 1000, width=32, allow_subnormal=False)), min_size=1, max_size=12)
RULES = st.fixed_dictionaries(
    {"scale": st.sampled_from(["standard", "minmax", "none"])},
    optional={
        "divide": st.sampled_from([255.0, 0.5, 1.0]),
        "log1p": st.booleans(),
        "fill": st.one_of(st.just("mean"), st.floats(0, 300, width=32)),
        "indicator": st.booleans(),
    },
)


@example({"scale": "standard", "log1p": True, "divide": 0.5, "fill": 3.0}, [1.0, 2.0, 7.0, None], [None, 1.0])
@given(RULES, NUMBERS, NUMBERS)
def test_model_inputs_are_what_the_settings_say(rules: dict[str, Any], train: list[float | None], values: list[float | None]) -> None:
    present = [value for value in train if value is not None]
    assume(len(set(present)) < 2 or np.ptp(present) > 1e-2)  # else float32 leaves no digits to compare
    spec = fit(pairs_of(numeric=("x",), scaling=rules), [batch(x=pa.array(train, pa.float32()))])
    spec = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))  # as a bundle keeps it
    found = model_inputs(spec, batch(x=pa.array(values, pa.float32())))
    expected, error = reference(rules, train, values)
    assert found.dtype == np.float32
    assert np.all(np.abs(found[:, 0] - expected) <= error), (found[:, 0], expected)
    if rules.get("indicator"):
        assert found[:, 1].tolist() == [float(value is None) for value in values]
    assert found.shape[1] == (2 if rules.get("indicator") else 1)


def test_the_rules_of_one_column_change_that_column_only() -> None:
    pairs = pairs_of(numeric=("x", "y"), scaling={"scale": "none"}, columns={"y": {"divide": 255.0, "indicator": True}})
    rows = batch(x=pa.array([255.0, 0.0]), y=pa.array([255.0, None]))
    spec = fit(pairs, [rows])
    assert spec.dense == ("x", "y", "y is missing")
    np.testing.assert_allclose(model_inputs(spec, rows), [[255, 1, 0], [0, 1, 1]])


def test_the_places_of_a_list_have_their_own_figures() -> None:
    rows = batch(x=pa.array([[0.0, 100.0], [10.0, 300.0]], pa.list_(pa.float64(), 2)))
    spec = fit(pairs_of(numeric=("x",), scaling={"scale": "minmax"}), [rows])
    np.testing.assert_allclose(
        model_inputs(spec, batch(x=pa.array([[5.0, 100.0], None], rows.schema.field("x").type))), [[0.5, 0], [0.5, 0.5]]
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3e8])
def test_a_constant_column_is_centred_and_no_noise_is_blown_up(value: float) -> None:
    rows = [batch(x=pa.array(np.full(60_000, value, np.float32)))] * 4
    spec = fit(pairs_of(numeric=("x",)), rows)
    assert spec.scale == (1.0,)
    assert np.abs(model_inputs(spec, batch(x=pa.array([value], pa.float32())))).max() <= 1e-7 * max(abs(value), 1)


def test_the_rounding_of_a_billion_rows_sums_does_not_make_a_constant_vary() -> None:
    count, value = np.array([1e9]), np.array([0.1])
    mean, deviation = Moments(count, count * value, count * value**2 * (1 + 1e-10), low=value, high=value).standard()
    assert (mean.tolist(), deviation.tolist()) == ([0.1], [1.0])


def test_a_column_of_small_numbers_is_not_taken_for_constant() -> None:
    rows = batch(x=pa.array([1e-8, 2e-8, 3e-8], pa.float64()))
    np.testing.assert_allclose(model_inputs(fit(pairs_of(numeric=("x",)), [rows]), rows)[:, 0], [-(1.5**0.5), 0, 1.5**0.5], atol=1e-5)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_a_range_without_an_inverse_in_float32_is_a_constant(scale: str) -> None:
    rows = batch(x=pa.array([0.0, 1e-42], pa.float32()))
    assert np.abs(model_inputs(fit(pairs_of(numeric=("x",), scaling={"scale": scale}), [rows]), rows)).max() < 1e-30


def test_a_value_far_beyond_the_training_rows_is_cut() -> None:
    spec = fit(pairs_of(numeric=("x",)), [batch(x=pa.array([0.0, 0.5]))])
    assert model_inputs(spec, batch(x=pa.array([3e38, -3e38, 100.0]))).tolist() == [[CLIP], [-CLIP], [CLIP]]


def test_a_column_without_values_in_training_is_taken_as_it_is() -> None:
    spec = fit(pairs_of(numeric=("x",)), [batch(x=pa.nulls(4))])
    assert model_inputs(spec, batch(x=pa.array([2.5, None]))).tolist() == [[2.5], [0.0]]


@given(st.lists(NUMBERS, min_size=2, max_size=6), st.sampled_from(["standard", "minmax"]), st.integers(2, 3))
def test_sums_of_shards_fit_what_one_pass_over_all_rows_fits(columns: list[list[float | None]], scale: str, shards: int) -> None:
    pairs = pairs_of(numeric=("x",), categorical=("w",), scaling={"scale": scale})
    batches = [batch(x=pa.array(values, pa.float64()), w=pa.array([str(value) for value in values])) for values in columns]
    one, split = fit(pairs, batches), fit(pairs, batches, shards=shards)
    assert split.vocabularies == one.vocabularies
    for figures in ("mean", "scale", "fill", "limit"):
        np.testing.assert_allclose(getattr(split, figures), getattr(one, figures), rtol=1e-9, atol=1e-9)


# ---- words


WORD_COLUMNS = [
    pa.array(["a", "b", None, "zz", "c", "a"]),
    pa.array(["a", "b", None, "zz", "c", "a"], pa.large_string()),
    pa.array(["a", "b", None, "zz", "c", "a"], pa.string_view()),
    pa.array(["a", "b", None, "zz", "c", "a"]).dictionary_encode(),
    pa.array(["a", "b", None, "zz", "c", "a"], pa.large_string()).dictionary_encode(),
]


@pytest.mark.parametrize("values", WORD_COLUMNS, ids=lambda values: str(values.type))
def test_words_of_every_string_type_have_their_place_in_the_vocabulary(values: pa.Array) -> None:
    assert codes(WORD, values, ["b", "a", "c"]) == [2, 1, 0, 0, 3, 2]


@pytest.mark.parametrize("dtype", [pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64()], ids=str)
@pytest.mark.parametrize("dictionary", [True, False])
def test_integers_are_words(dtype: pa.DataType, dictionary: bool) -> None:
    values = pa.array([3, 1, None, 99, 0], dtype)
    assert codes(WORD, values.dictionary_encode() if dictionary else values, ["1", "0", "3"]) == [3, 1, 0, 0, 2]


def test_negative_words_of_an_integer_column_do_not_hinder_its_unsigned_files() -> None:
    assert codes(WORD, pa.array([3, 0], pa.uint32()), ["-1", "3"]) == [2, 0]
    assert codes(WORD, pa.array([-1, 3], pa.int8()), ["-1", "3"]) == [1, 2]


def test_the_largest_unsigned_integer_is_a_word() -> None:
    assert codes(WORD, pa.array([2**64 - 1, 1], pa.uint64()), [str(2**64 - 1)]) == [1, 0]


def test_truth_values_are_words() -> None:
    assert codes(WORD, pa.array([True, False, None]), ["false", "true"]) == [2, 1, 0]
    assert codes(WORD, pa.array([True, False, None]), ["true"]) == [1, 0, 0]


def test_a_dictionary_as_large_as_its_index_type_still_has_room_for_null() -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0, 127, None], pa.int8()), pa.array([str(word) for word in range(128)]))
    assert codes(WORD, values, ["127", "0"]) == [2, 1, 0]


def test_a_null_within_a_dictionary_is_unseen() -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert codes(WORD, values, ["a"]) == [1, 0, 0]


def test_an_empty_vocabulary_and_an_empty_batch_are_fine() -> None:
    assert codes(WORD, pa.array(["a", None]), []) == [0, 0]
    assert codes(WORD, pa.array([], pa.string()), ["a"]) == []
    assert dense(NUMBER, pa.array([], pa.float64())).shape == (0, 1)
    assert codes(ColumnSpec("x", "words", width=2), pa.array([], pa.list_(pa.string())), ["a"]) == []


WORD_LISTS: list[list[str | None] | None] = [["b", "zz", "a"], None, [], ["zz", "zz"], ["a", None], ["a", "b", "a", "b"]]


@pytest.mark.parametrize("dtype", [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string_view())], ids=str)
def test_a_list_of_words_is_the_codes_of_its_first_values(dtype: pa.DataType) -> None:
    values = pa.array(WORD_LISTS, dtype)
    expected = [[2, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 2, 1]]
    assert codes(ColumnSpec("x", "words", width=3), values, ["a", "b"]) == expected


def test_a_list_of_dictionary_words_or_integers_or_nothing_is_fine() -> None:
    column = ColumnSpec("x", "words", width=2)
    words = pa.array(["a", "b", None, "c"]).dictionary_encode()
    assert codes(column, pa.ListArray.from_arrays(pa.array([0, 1, 4], pa.int32()), words), ["b", "a"]) == [[2, 0], [1, 0]]
    assert codes(column, pa.array([[5], [-1, 5]]), ["5", "-1"]) == [[1, 0], [2, 1]]
    assert codes(column, pa.array([[], None], pa.list_(pa.null())), ["a"]) == [[0, 0], [0, 0]]


def test_a_fixed_size_list_of_words_may_be_null_or_longer_than_what_counts() -> None:
    values = pa.array([["a", "b", "c"], None, ["c", None, "a"]], pa.list_(pa.string(), 3))
    assert codes(ColumnSpec("x", "words", width=2), values, ["a", "b", "c"]) == [[1, 2], [0, 0], [3, 0]]
    assert codes(ColumnSpec("x", "words", width=4), values, ["a", "b", "c"]) == [[1, 2, 3, 0], [0, 0, 0, 0], [3, 0, 1, 0]]


def test_a_null_list_over_values_counts_nothing() -> None:
    values = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), pa.array(["a", "a", "b"]), mask=pa.array([True, False]))
    assert codes(ColumnSpec("x", "words", width=2), values, ["a", "b"]) == [[0, 0], [2, 0]]
    counts = {"x": Counter[str]()}
    count_words([ColumnSpec("x", "words", width=2)], batch(x=values), counts)
    assert counts["x"] == {"b": 1}


# ---- a batch is often a slice of another


ALL_KINDS = pa.record_batch(
    {
        "half": pa.array([np.float16(1), None, np.float16(3), np.float16(4), np.float16(5)], pa.float16()),
        "whole": pa.array([1, 2, None, 4, 5], pa.int16()),
        "flag": pa.array([True, None, False, True, True]),
        "kind": pa.array([9, 9, None, 8, 7]).dictionary_encode(),
        "vector": pa.array([[1, 2], [3, 4], None, [5, None], [6, 7]], pa.list_(pa.float32(), 2)),
        "pixels": pa.array([[1, 2], [3, 4], None, [5, None], [6, 7]], pa.list_(pa.float64())),
        "brand": pa.array(["a", "b", None, "c", "a"]),
        "shop": pa.array(["s", None, "t", "s", "u"]).dictionary_encode(),
        "code": pa.array([1, 2, 3, None, 1], pa.uint8()),
        "tags": pa.array([["a", "b"], [], None, ["c", None], ["a", "a", "a"]]),
        "sizes": pa.array([[1, 2], [3, 4], None, [5, None], [2, 2]], pa.list_(pa.int64(), 2)),
    }
)
ALL_PAIRS = pairs_of(
    numeric=("half", "whole", "flag", "kind", "vector", "pixels"),
    categorical=("brand", "shop", "code"),
    multivalued=("tags", "sizes"),
    scaling={"indicator": True},
    words={"max_values": 2},
    columns={"whole": {"divide": 10.0, "scale": "minmax"}, "half": {"log1p": True}, "flag": {"scale": "none", "indicator": False}},
)


def all_columns() -> list[ColumnSpec]:
    widths = {"vector": 2, "pixels": 2}
    return [
        column_spec(ALL_PAIRS, name, ALL_KINDS.schema.field(name).type, table="rows", width=widths.get(name, 1))
        for name in ALL_PAIRS.named
    ]


def all_spec() -> FeatureSpec:
    columns = all_columns()
    words = {column.name: Counter[str]() for column in columns if column.codes()}
    count_words(columns, ALL_KINDS, words)
    plain = Encoder(columns, dict.fromkeys(words, ()))
    return fit_columns(ALL_PAIRS, columns, Moments.of([plain(ALL_KINDS).dense], plain.width), words)


@pytest.mark.parametrize(("start", "length"), [(0, 2), (1, 3), (2, 1), (3, 2), (4, 1), (5, 0)])
def test_a_slice_is_encoded_as_its_rows_of_the_whole(start: int, length: int) -> None:
    whole = encoder(all_spec(), "rows")(ALL_KINDS)
    part = encoder(all_spec(), "rows")(ALL_KINDS.slice(start, length))
    np.testing.assert_array_equal(part.dense, whole.dense[start : start + length])
    np.testing.assert_array_equal(part.codes, whole.codes[start : start + length])


@pytest.mark.parametrize(("start", "length"), [(0, 5), (1, 3), (3, 2), (5, 0)])
def test_the_words_of_a_slice_are_counted_as_those_of_its_rows(start: int, length: int) -> None:
    columns = [column for column in all_columns() if column.codes()]
    found = {column.name: Counter[str]() for column in columns}
    count_words(columns, ALL_KINDS.slice(start, length), found)
    for name, counts in found.items():
        rows = ALL_KINDS.column(name).to_pylist()[start : start + length]
        words = [word for row in rows for word in (row if isinstance(row, list) else [row]) if word is not None]
        assert counts == Counter(map(str, words)), name


def test_what_parquet_gives_back_is_encoded_alike(tmp_path: Path) -> None:
    table = pa.Table.from_batches([ALL_KINDS]).append_column("view", pa.array(["v", "w", None, "v", "x"], pa.string_view()))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    read = pq.read_table(tmp_path / "rows.parquet").combine_chunks().to_batches()[0]
    assert codes(WORD, read.column("view"), ["w", "v"]) == [2, 1, 0, 2, 0]
    one, other = encoder(all_spec(), "rows")(ALL_KINDS), encoder(all_spec(), "rows")(read)
    np.testing.assert_array_equal(one.dense, other.dense)
    np.testing.assert_array_equal(one.codes, other.codes)


# ---- counting


def test_each_column_keeps_as_many_words_as_its_rule_says() -> None:
    pairs = pairs_of(categorical=("x", "y"), words={"max_vocabulary": 2}, columns={"y": {"max_vocabulary": 1}})
    values = pa.array(["c", "b", "b", "a"])
    assert fit(pairs, [batch(x=values, y=values)]).vocabularies == {"x": ("a", "b"), "y": ("b",)}


@pytest.mark.parametrize("values", WORD_COLUMNS, ids=lambda values: str(values.type))
def test_strings_of_every_type_are_counted(values: pa.Array) -> None:
    counts = {"x": Counter({"a": 10})}
    count_words([WORD], batch(x=values), counts)
    assert counts["x"] == {"a": 12, "b": 1, "c": 1, "zz": 1}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([-1, 300, None, 300]), {"-1": 1, "300": 2}),
        (pa.array([1, 200], pa.uint8()), {"1": 1, "200": 1}),
        (pa.array([2**64 - 1], pa.uint64()), {str(2**64 - 1): 1}),
        (pa.array([True, False, None, True]), {"true": 2, "false": 1}),
        (pa.array([7, 7]).dictionary_encode(), {"7": 2}),
        (pa.nulls(3), {}),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_integers_and_truth_values_are_counted_as_they_are_written(values: pa.Array, expected: dict[str, int]) -> None:
    counts = {"x": Counter[str]()}
    count_words([WORD], batch(x=values), counts)
    assert counts["x"] == expected
    kept = most_frequent(counts["x"], limit=10)
    assert [kept[code - 1] if code else None for code in codes(WORD, values, kept)] == [
        None if value is None else str(value).lower() for value in values.to_pylist()
    ]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["a", "b"], None, [], ["a", None]]),
        pa.array([["a", "b"], None, ["a", None]], pa.list_(pa.string(), 2)),
        pa.array([["a", "b"], None, [], ["a", None]], pa.large_list(pa.string_view())),
        pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), pa.array(["a", "b", "a"]).dictionary_encode()),
    ],
    ids=lambda values: str(values.type),
)
def test_every_value_of_a_list_is_counted(values: pa.Array) -> None:
    counts = {"x": Counter[str]()}
    count_words([ColumnSpec("x", "words", width=1)], batch(x=values), counts)
    assert counts["x"] == {"a": 2, "b": 1}


def test_a_null_within_a_dictionary_is_not_counted() -> None:
    counts = {"x": Counter[str]()}
    count_words([WORD], batch(x=pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None]), pa.array(["a", None]))), counts)
    assert counts["x"] == {"a": 2}


def test_numbers_are_not_counted() -> None:
    count_words([NUMBER], batch(x=pa.array([1.0])), {})


def test_a_list_column_of_empty_lists_only_has_no_words() -> None:
    counts = {"x": Counter[str]()}
    count_words([ColumnSpec("x", "words")], batch(x=pa.array([[], None], pa.list_(pa.null()))), counts)
    assert counts["x"] == {}


# ---- the model's side


def test_every_kind_of_column_has_its_inputs() -> None:
    spec = all_spec()
    assert spec.codes == ("brand", "shop", "code", "tags", "tags", "sizes", "sizes")
    assert spec.embeddings() == [(0, 1, 4), (1, 1, 4), (2, 1, 4), (3, 2, 4), (5, 2, 6)]
    assert len(spec.dense) == len(spec.mean) == len(spec.scale) == len(spec.fill) == len(spec.limit) == 13
    assert FeatureSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def forward(built: keras.Model, spec: FeatureSpec, inputs: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The model in float64 numpy: (B) probabilities."""
    parts = [inputs.astype(np.float64)]
    for column, count, _ in spec.embeddings():
        (table,) = built.get_layer(f"embedding_{column}").get_weights()
        if count == 1:
            parts.append(table[words[:, column]])
        else:
            rows = [[table[code] for code in row if code] for row in words[:, column : column + count]]
            parts.append(np.array([np.mean(row, axis=0) if row else np.zeros(table.shape[1]) for row in rows]))
    units = np.hstack(parts)
    for layer in ("hidden_0", "hidden_1", "logit"):
        kernel, bias = built.get_layer(layer).get_weights()
        units = units @ kernel + bias
        units = units if layer == "logit" else np.maximum(units, 0)
    return 1 / (1 + np.exp(-units[:, 0]))


def trained(spec: FeatureSpec) -> keras.Model:
    """A model with weights that set its inputs apart."""
    built = network.build(spec, config.Model(hidden=(9, 6)), seed=1)
    rng = np.random.default_rng(0)
    built.set_weights([rng.normal(scale=0.7, size=weights.shape) for weights in built.get_weights()])
    return built


def test_a_list_of_words_is_the_mean_of_its_known_words_embeddings() -> None:
    spec = all_spec()
    built = trained(spec)
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(50, len(spec.dense))).astype(np.float32)
    words = rng.integers(0, spec.sizes(), (50, len(spec.codes)), dtype=np.int32)
    words[::5, 3:] = 0  # no known word at all
    found = np.asarray(built([inputs, words]))[:, 0]
    assert np.ptp(found) > 0.3
    np.testing.assert_allclose(found, forward(built, spec, inputs, words), atol=1e-5)


def test_a_bundle_of_every_kind_of_column_scores_as_keras(tmp_path: Path) -> None:
    spec = all_spec()
    saved = bundle.save(tmp_path / "b", trained(spec), spec, settings={}, window={}, metrics={})
    rows = encoder(saved.spec, "rows")(pa.Table.from_batches([ALL_KINDS] * 40).combine_chunks().to_batches()[0])
    assert rows.unfit == {}
    found = scorer.probabilities(scorer.Scorer(saved)(rows.dense, rows.codes))
    expected = saved.keras_model().predict([saved.spec.normalise(rows.dense), rows.codes], verbose=0)[:, 0]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found, forward(trained(spec), spec, saved.spec.normalise(rows.dense), rows.codes), atol=1e-5)


@pytest.mark.parametrize("kind", ["categorical", "multivalued"])
def test_a_bundle_of_words_only_scores_as_keras(tmp_path: Path, kind: str) -> None:
    words = pa.array(["a", "b", "c", "a"])
    rows = batch(x=words if kind == "categorical" else pa.array([[word, "a"] for word in words.to_pylist()]))
    spec = fit(pairs_of(**{kind: ("x",)}), [rows])
    built = trained(spec)
    saved = bundle.save(tmp_path / "b", built, spec, settings={}, window={}, metrics={})
    inputs = encoder(saved.spec, "rows")(rows)
    found = scorer.probabilities(scorer.Scorer(saved)(inputs.dense, inputs.codes))
    assert np.ptp(found) > 0.01
    np.testing.assert_allclose(found, forward(built, spec, spec.normalise(inputs.dense), inputs.codes), atol=1e-5)
