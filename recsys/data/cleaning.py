"""Raw rows -> rows that can be used: types and zones made one, bad rows dropped and counted by reason; pure functions on one table."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.catalog import Catalog
from recsys.data.inputs import read
from recsys.data.shop import ShopInputs
from recsys.data.types import as_text, clean_ids, utc
from recsys.schema import AVAILABLE, ITEM_ID, NAME, PRICE, QUANTITY, TS, USER_ID, WANTED, events_schema

Rejected = Counter[str]


def clean(raw: pa.Table, *, settings: Settings, user_id: pa.DataType, item_id: pa.DataType, end: int) -> tuple[pa.Table, Rejected]:
    """The events of a raw table that can be used, and how many could not, by reason.

    Args:
        raw: rows as the shop wrote them, under the shop's column names.
        end: microseconds; events from then on are counted as `future_ts`.

    Returns:
        A table with `events_schema`; counts of null_user_id, null_item_id, null_ts, future_ts, negative_quantity (not finite ones too).
        A row with several faults is counted under the first. Absent or null quantity is 1; an absent, null, negative or not finite
        price is null.
    """
    shop, columns = settings.shop, settings.shop.columns
    rows = raw.num_rows
    users = clean_ids(raw.column(columns.user_id), user_id)
    items = clean_ids(raw.column(columns.item_id), item_id)
    ts = utc(raw.column(columns.ts), shop.timezone)
    ones = pa.chunked_array([pa.array(np.ones(rows, np.float32))])
    if columns.quantity in raw.column_names:
        quantity = pc.fill_null(raw.column(columns.quantity).cast(pa.float64()).cast(pa.float32()), 1.0)
    else:
        quantity = ones
    if columns.price in raw.column_names:
        price = raw.column(columns.price).cast(pa.float64()).cast(pa.float32())
        usable = pc.and_(pc.is_finite(price), pc.greater_equal(price, pa.scalar(0.0, pa.float32())))
        price = pc.if_else(usable, price, pa.scalar(None, pa.float32()))
    else:
        price = pa.chunked_array([pa.nulls(rows, pa.float32())])
    if columns.kind in raw.column_names and shop.label_kinds is not None:
        wanted = pc.fill_null(pc.is_in(as_text(raw.column(columns.kind)), value_set=pa.array(shop.label_kinds)), False)
    else:
        wanted = pa.chunked_array([pa.array(np.ones(rows, bool))])

    faults = {
        "null_user_id": pc.is_null(users),
        "null_item_id": pc.is_null(items),
        "null_ts": pc.is_null(ts),
        "future_ts": pc.greater_equal(ts.cast(pa.int64()), end),
        "negative_quantity": pc.invert(pc.and_(pc.is_finite(quantity), pc.greater_equal(quantity, pa.scalar(0.0, pa.float32())))),
    }
    good = np.ones(rows, bool)
    rejected: Rejected = Counter()
    for reason, fault in faults.items():
        bad = good & pc.fill_null(fault, False).to_numpy()
        if count := int(bad.sum()):
            rejected[reason] = count
        good &= ~bad
    table = pa.table([users, items, ts, quantity, price, wanted], names=[USER_ID, ITEM_ID, TS, QUANTITY, PRICE, WANTED])
    return table.filter(pa.array(good)).cast(events_schema(user_id, item_id)), rejected


def clean_users(raw: pa.Table, inputs: ShopInputs) -> tuple[pa.Table, Rejected]:
    """user_id, features and columns of rules of the users that can be used; counts of null_user_id."""
    columns = {USER_ID: clean_ids(raw.column(inputs.settings.shop.columns.user_id), inputs.user_id)}
    for field in inputs.user_fields():
        columns[field.name] = _feature(raw.column(field.name), field)
    table = pa.table(columns)
    good = pc.is_valid(table.column(USER_ID))
    bad = raw.num_rows - pc.sum(good).as_py()
    return table.filter(good), Counter({"null_user_id": bad} if bad else {})


def _feature(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    return as_text(column) if field.type == pa.string() else column.cast(pa.float64()).cast(pa.float32())


def build_catalog(inputs: ShopInputs, seen: pa.Array) -> tuple[Catalog, Rejected]:
    """The catalog: items of ITEMS, and those that only events know, which are not available unless there is no ITEMS.

    Args:
        seen: the distinct ids of all events' items.

    Returns:
        Counts of null_item_id and duplicate_item_id; of duplicates the first row stands.
    """
    fields = inputs.item_fields()
    rejected: Rejected = Counter()
    if inputs.items is None:
        ids = seen.sort()
        return Catalog(pa.table({ITEM_ID: ids, AVAILABLE: pa.array(np.ones(len(ids), bool))})), rejected
    columns = inputs.settings.shop.columns
    wanted = [columns.item_id, *(field.name for field in fields)]
    wanted += [name for name in (columns.available, columns.name) if name in inputs.items.columns and name not in wanted]
    raw = pa.concat_tables(read(inputs.items, file, None, wanted) for file in inputs.items.files)
    table = pa.table({ITEM_ID: clean_ids(raw.column(columns.item_id), inputs.item_id)})
    available = raw.column(columns.available) if columns.available in raw.column_names else pa.array(np.ones(raw.num_rows, bool))
    table = table.append_column(AVAILABLE, pc.fill_null(available, False))
    if columns.name in raw.column_names:
        table = table.append_column(NAME, as_text(raw.column(columns.name)))
    for field in fields:
        if field.name not in table.column_names:
            table = table.append_column(field, _feature(raw.column(field.name), field))
    known = table.filter(pc.is_valid(table.column(ITEM_ID)))
    if nulls := table.num_rows - known.num_rows:
        rejected["null_item_id"] = nulls
    _, first = np.unique(known.column(ITEM_ID).to_numpy(), return_index=True)
    if duplicates := known.num_rows - len(first):
        rejected["duplicate_item_id"] = duplicates
    known = known.take(pa.array(np.sort(first)))
    unknown = seen.filter(pc.invert(pc.is_in(seen, value_set=known.column(ITEM_ID).combine_chunks())))
    others = pa.table({ITEM_ID: unknown, AVAILABLE: pa.array(np.zeros(len(unknown), bool))})
    return Catalog(pa.concat_tables([known, others], promote_options="default").sort_by(ITEM_ID).combine_chunks()), rejected
