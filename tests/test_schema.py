import pyarrow as pa
import pytest

from recsys.data.types import id_type
from recsys.errors import DataError
from recsys.schema import DAY_US, check, events_schema, examples_schema, recommendations_schema

SCHEMA = pa.schema([pa.field("item_id", pa.string(), nullable=False), pa.field("price", pa.float32())])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (pa.int8(), pa.int64()),
        (pa.int32(), pa.int64()),
        (pa.int64(), pa.int64()),
        (pa.uint32(), pa.int64()),
        (pa.string(), pa.string()),
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.dictionary(pa.int32(), pa.int32()), pa.int64()),
    ],
    ids=str,
)
def test_an_id_is_an_integer_or_a_string(given: pa.DataType, kept: pa.DataType) -> None:
    assert id_type(given, where="events", column="user_id") == kept


@pytest.mark.parametrize(
    "given",
    [pa.uint64(), pa.float64(), pa.bool_(), pa.binary(), pa.null(), pa.timestamp("us"), pa.dictionary(pa.int32(), pa.uint64())],
    ids=str,
)
def test_any_other_id_is_refused(given: pa.DataType) -> None:
    seen = given.value_type if pa.types.is_dictionary(given) else given
    with pytest.raises(DataError) as error:
        id_type(given, where="events/part-3.parquet", column="household_id")
    assert str(error.value) == (
        "events/part-3.parquet: column 'household_id' must be an integer of at most 64 signed bits or a string, "
        f"got {seen}. Convert it before the run."
    )


def test_a_table_that_fits_comes_back_in_the_schema_s_order() -> None:
    table = pa.table({"price": pa.array([1.5, None], pa.float32()), "item_id": ["a", "b"]})
    checked = check(table, SCHEMA, where="items")
    assert checked.column_names == ["item_id", "price"]
    assert checked.to_pylist() == [{"item_id": "a", "price": 1.5}, {"item_id": "b", "price": None}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a"]}, "items: column 'price' is missing; seen item_id."),
        (
            {"item_id": ["a"], "price": pa.array([1.0], pa.float32()), "colour": ["red"]},
            "items: column 'colour' is not in the table's schema; expected item_id, price.",
        ),
        ({"item_id": ["a"], "price": pa.array([1.0])}, "items: column 'price' must be float, got double."),
        (
            {"item_id": ["a", None, None], "price": pa.nulls(3, pa.float32())},
            "items: column 'item_id' must have no nulls, got 2.",
        ),
    ],
    ids=["missing", "extra", "type", "nulls"],
)
def test_a_table_that_does_not_fit_is_one_sentence(columns: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as error:
        check(pa.table(columns), SCHEMA, where="items")
    assert str(error.value) == message


@pytest.mark.parametrize("user_id", [pa.int64(), pa.string()], ids=str)
@pytest.mark.parametrize("item_id", [pa.int64(), pa.string()], ids=str)
def test_schemas_keep_the_types_of_ids(user_id: pa.DataType, item_id: pa.DataType) -> None:
    for schema in (
        events_schema(user_id, item_id),
        examples_schema(user_id, item_id, dense=3, codes=2),
        recommendations_schema(user_id, item_id),
    ):
        assert schema.field("user_id").type == user_id
        assert schema.field("item_id").type == item_id
        assert not schema.field("user_id").nullable
    assert recommendations_schema(user_id, item_id).field("reason_item_id").type == item_id


def test_a_day_has_as_many_microseconds_as_it_says() -> None:
    assert DAY_US == 24 * 60 * 60 * 1_000_000
