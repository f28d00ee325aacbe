"""Every column name, dtype and unit, and the schema of every table that passes between two modules, spelled once.

Times are UTC `timestamp[us, UTC]`; windows are half-open: start <= t < end. An item's *code* is its row number in the catalog,
which is in item_id order. Ids are int64 or string, whichever the shop has; the recommendation table keeps the type.
"""

import pyarrow as pa

from recsys.errors import DataError

USER_ID = "user_id"
ITEM_ID = "item_id"
TS = "ts"
KIND = "kind"
QUANTITY = "quantity"  # units of the item in one event
PRICE = "price"  # paid for one unit, in the shop's currency
DATE = "date"  # that a fact of an item is about
AVAILABLE = "available"  # may be recommended tonight
NAME = "name"  # what a person calls the item

ITEM = "item"  # item code, int32
LOOK = "look"  # int8, what an event is: WANTED, DISLIKED, OTHER_LOOK, or beyond it one of shop.look_kinds, in their order
WANTED = 0  # of shop.label_kinds, and of no less than shop.least_value
DISLIKED = -1  # of less
OTHER_LOOK = 1  # of a kind that neither shop.label_kinds nor shop.look_kinds names

DENSE = "dense"  # float32 model inputs, one fixed-size list a row
CODES = "codes"  # int32 model inputs, one fixed-size list a row
LABEL = "label"  # 1.0: the user bought the item within the label window
WEIGHT = "weight"  # of the row in the loss
GROUP = "group"  # of the row's user, where groups are to weigh the same in the fit; null: unknown

AS_OF = "as_of"
RANK = "rank"
RAW = "raw"  # the model's output before the sigmoid, float32: what lists are ordered by
SCORE = "score"
SOURCE = "source"
SOURCES = "sources"
REASON = "reason"
REASON_KIND = "reason_kind"
REASON_ITEM_ID = "reason_item_id"
REASON_CATEGORY = "reason_category"
MODEL_VERSION = "model_version"
RUN_ID = "run_id"
CARRIED_FROM = "carried_from"
BASELINE = "baseline-"  # a model_version that begins so: no model stands behind the night, but a baseline's order

TIMESTAMP = pa.timestamp("us", tz="UTC")
DAY_US = 86_400_000_000  # microseconds in a day


def events_schema(user_id: pa.DataType, item_id: pa.DataType) -> pa.Schema:
    """One event as it leaves the reader: bad rows gone, absent quantity 1, absent price null."""
    return pa.schema(
        [
            pa.field(USER_ID, user_id, nullable=False),
            pa.field(ITEM_ID, item_id, nullable=False),
            pa.field(TS, TIMESTAMP, nullable=False),
            pa.field(QUANTITY, pa.float32(), nullable=False),
            pa.field(PRICE, pa.float32()),
            pa.field(LOOK, pa.int8(), nullable=False),
        ]
    )


def histories_schema(user_id: pa.DataType, user_features: list[pa.Field]) -> pa.Schema:
    """One user: its features, and its events as parallel lists in (ts, item) order."""
    return pa.schema(
        [
            pa.field(USER_ID, user_id, nullable=False),
            *user_features,
            pa.field(ITEM, pa.list_(pa.int32()), nullable=False),
            pa.field(TS, pa.list_(TIMESTAMP), nullable=False),
            pa.field(QUANTITY, pa.list_(pa.float32()), nullable=False),
            pa.field(PRICE, pa.list_(pa.float32()), nullable=False),
            pa.field(LOOK, pa.list_(pa.int8()), nullable=False),
        ]
    )


def examples_schema(user_id: pa.DataType, item_id: pa.DataType, *, dense: int, codes: int, grouped: bool = False) -> pa.Schema:
    """One labelled feature row: model inputs before normalisation, the user and item for grouping, the user's group where `grouped`."""
    return pa.schema(
        [
            pa.field(USER_ID, user_id, nullable=False),
            pa.field(ITEM_ID, item_id, nullable=False),
            pa.field(DENSE, pa.list_(pa.float32(), dense), nullable=False),
            pa.field(CODES, pa.list_(pa.int32(), codes), nullable=False),
            pa.field(LABEL, pa.float32(), nullable=False),
            pa.field(WEIGHT, pa.float32(), nullable=False),
            *([pa.field(GROUP, pa.string())] if grouped else []),
        ]
    )


def recommendations_schema(user_id: pa.DataType, item_id: pa.DataType) -> pa.Schema:
    """One user and rank: the published table, partitioned by as_of."""
    return pa.schema(
        [
            pa.field(AS_OF, pa.date32(), nullable=False),
            pa.field(USER_ID, user_id, nullable=False),
            pa.field(RANK, pa.int32(), nullable=False),  # from 1
            pa.field(ITEM_ID, item_id, nullable=False),
            pa.field(SCORE, pa.float32()),  # null: no model stands behind the row
            pa.field(SOURCE, pa.string(), nullable=False),  # the source that ranked the item highest for this user
            pa.field(SOURCES, pa.list_(pa.field("element", pa.string())), nullable=False),  # every source that proposed it
            pa.field(REASON, pa.string(), nullable=False),  # a sentence for people
            pa.field(REASON_KIND, pa.string(), nullable=False),  # `ranking/reasons.py` lists them
            pa.field(REASON_ITEM_ID, item_id),  # what was bought or looked at that the reason rests on
            pa.field(REASON_CATEGORY, pa.string()),  # the category's value the reason rests on, where there is one
            pa.field(MODEL_VERSION, pa.string(), nullable=False),
            pa.field(RUN_ID, pa.string(), nullable=False),
            pa.field(CARRIED_FROM, pa.date32()),  # the night that made the row, where tonight's run did not reach the user in time
        ]
    )


def check(table: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """The table itself, when its columns are exactly those of the schema and no required one holds a null.

    Raises:
        DataError: a column is missing, extra, of another type, or holds nulls where it may not.
    """
    for name in table.column_names:
        if name not in schema.names:
            raise DataError(f"{where}: column '{name}' is not in the table's schema; expected {', '.join(schema.names)}.")
    for field in schema:
        if field.name not in table.column_names:
            raise DataError(f"{where}: column '{field.name}' is missing; seen {', '.join(table.column_names)}.")
        column = table.column(field.name)
        if column.type != field.type:
            raise DataError(f"{where}: column '{field.name}' must be {field.type}, got {column.type}.")
        if not field.nullable and column.null_count:
            raise DataError(f"{where}: column '{field.name}' must have no nulls, got {column.null_count}.")
    return table.select(schema.names)


def complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns in its order: nullable ones that it was made before are null."""
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names)


def differences(seen: pa.Schema, expected: pa.Schema) -> str:
    """What is wrong with the columns seen; empty where nothing is."""
    if seen.equals(expected):
        return ""
    lacks, extra = (
        ", ".join(f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in one if field not in list(other))
        for one, other in ((expected, seen), (seen, expected))
    )
    return f"must have columns ({lacks or ', '.join(expected.names)}), got ({extra or ', '.join(seen.names)})"
