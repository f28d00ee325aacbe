"""Raw rows -> rows that can be used: types and zones made one, bad rows dropped and counted by reason; pure functions on one table."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.catalog import Catalog
from recsys.data.inputs import File, read
from recsys.data.keyed import Key, user_ids
from recsys.data.shop import ShopInputs
from recsys.data.types import UNITS, as_text, clean_ids, readable, times, utc
from recsys.data.vectors import VECTOR, unit_vectors
from recsys.schema import AVAILABLE, DISLIKED, ITEM_ID, LOOK, NAME, OTHER_LOOK, PRICE, QUANTITY, TS, USER_ID, WANTED, events_schema

Rejected = Counter[str]


def clean(
    raw: pa.Table,
    *,
    settings: Settings,
    user_id: pa.DataType,
    item_id: pa.DataType,
    end: int,
    where: str = "events",
    key: Key | None = None,
) -> tuple[pa.Table, Rejected]:
    """The events of a raw table that can be used, and how many could not, by reason.

    Args:
        raw: rows as the shop wrote them, under the shop's column names.
        end: microseconds; events from then on are counted as `future_ts`.
        where: the file that they are of, for messages.
        key: that user ids become digests by, the first thing that is done with them.

    Returns:
        A table with `events_schema`; counts of null_user_id, null_item_id, null_ts, out_of_range_ts (outside of the years 1 to 9999,
        UTC; of text unreadable_ts, not of shop.ts_format), future_ts, negative_quantity (not finite ones too). A row with several
        faults is counted under the first. Absent or null quantity is 1; an absent, null, negative or not finite price is null.

    Raises:
        DataError: an id or kind is no UTF-8.
    """
    shop, columns = settings.shop, settings.shop.columns
    rows = raw.num_rows
    users = _user_ids(raw, columns.user_id, user_id, where, key)
    items = _ids(raw, columns.item_id, item_id, where)
    with readable(where, columns.ts):
        ts = utc(times(raw.column(columns.ts), shop.ts_format), shop.timezone)
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

    faults = {
        "null_user_id": pc.is_null(users),
        "null_item_id": pc.is_null(items),
        "null_ts": pc.is_null(raw.column(columns.ts)),
        "out_of_range_ts" if shop.ts_format in (None, *UNITS) else "unreadable_ts": pc.is_null(ts),
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
    table = pa.table(
        [users, items, ts, quantity, price, _looks(raw, settings, where)], names=[USER_ID, ITEM_ID, TS, QUANTITY, PRICE, LOOK]
    )
    return table.filter(pa.array(good)).cast(events_schema(user_id, item_id)), rejected


def _looks(raw: pa.Table, settings: Settings, where: str) -> pa.ChunkedArray:
    """int8: what each event is, as `schema.LOOK` has it."""
    shop, columns = settings.shop, settings.shop.columns
    look = np.full(raw.num_rows, WANTED, np.int8)
    if columns.kind in raw.column_names and shop.label_kinds is not None:
        kinds = _text(raw, columns.kind, where)
        look[:] = OTHER_LOOK
        for code, kind in enumerate(shop.look_kinds or (), start=OTHER_LOOK + 1):
            look[pc.fill_null(pc.equal(kinds, kind), False).to_numpy()] = code
        look[pc.fill_null(pc.is_in(kinds, value_set=pa.array(shop.label_kinds, pa.string())), False).to_numpy()] = WANTED
    if columns.value in raw.column_names and shop.least_value is not None:
        disliked = pc.fill_null(pc.less(raw.column(columns.value).cast(pa.float64()), shop.least_value), False)
        look[(look == WANTED) & disliked.to_numpy()] = DISLIKED
    return pa.chunked_array([pa.array(look)])


def clean_users(raw: pa.Table, inputs: ShopInputs, where: str = "users") -> tuple[pa.Table, Rejected]:
    """user_id, features and columns of rules of the users that can be used; counts of null_user_id.

    Raises:
        DataError: an id or a word is no UTF-8, in the file `where`.
    """
    columns = {USER_ID: _user_ids(raw, inputs.settings.shop.columns.user_id, inputs.user_id, where, inputs.key)}
    for field in inputs.user_fields():
        columns[field.name] = _feature(raw, field, where)
    table = pa.table(columns)
    good = pc.is_valid(table.column(USER_ID))
    bad = raw.num_rows - pc.sum(good).as_py()
    return table.filter(good), Counter({"null_user_id": bad} if bad else {})


def _user_ids(raw: pa.Table, column: str, dtype: pa.DataType, where: str, key: Key | None) -> pa.ChunkedArray:
    with readable(where, column):
        return user_ids(raw.column(column), dtype, key)


def _ids(raw: pa.Table, column: str, dtype: pa.DataType, where: str) -> pa.ChunkedArray:
    with readable(where, column):
        return clean_ids(raw.column(column), dtype)


def _text(raw: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    with readable(where, column):
        return as_text(raw.column(column))


def _feature(raw: pa.Table, field: pa.Field, where: str) -> pa.ChunkedArray:
    if field.type == pa.string():
        return _text(raw, field.name, where)
    return raw.column(field.name).cast(pa.float64()).cast(pa.float32())


def _items(inputs: ShopInputs, fields: Sequence[pa.Field], file: File, wanted: list[str]) -> pa.Table:
    """A file's items as columns of the catalog; files may write the same column as other types."""
    assert inputs.items is not None
    columns = inputs.settings.shop.columns
    raw = read(inputs.items, file, None, wanted)
    table = pa.table({ITEM_ID: _ids(raw, columns.item_id, inputs.item_id, file.path)})
    available = raw.column(columns.available) if columns.available in raw.column_names else pa.array(np.ones(raw.num_rows, bool))
    table = table.append_column(AVAILABLE, pc.fill_null(available.cast(pa.bool_()), False))
    if columns.name in raw.column_names:
        table = table.append_column(NAME, _text(raw, columns.name, file.path))
    for field in fields:
        if field.name not in table.column_names:
            table = table.append_column(field, _feature(raw, field, file.path))
    for name in inputs.settings.features.item_vectors:
        table = table.append_column(name, raw.column(name).cast(VECTOR, safe=False))
    return table


def build_catalog(inputs: ShopInputs, seen: pa.Array) -> tuple[Catalog, Rejected]:
    """The catalog: items of ITEMS, and those that only events know, which are not available unless there is no ITEMS.

    Args:
        seen: the distinct ids of all events' items.

    Returns:
        Counts of null_item_id and duplicate_item_id; of duplicates the first row stands. And of unusable_vector: such are no rows
        less, but vectors that are not finite or have no direction, which the items then lack.

    Raises:
        DataError: a file cannot be read, or holds text that is no UTF-8, or vectors of different lengths.
    """
    fields = inputs.item_fields()
    rejected: Rejected = Counter()
    if inputs.items is None:
        ids = seen.sort()
        return Catalog(pa.table({ITEM_ID: ids, AVAILABLE: pa.array(np.ones(len(ids), bool))})), rejected
    columns = inputs.settings.shop.columns
    of_vectors = inputs.settings.features.item_vectors
    wanted = [columns.item_id, *(field.name for field in fields), *of_vectors]
    wanted += [name for name in (columns.available, columns.name) if name in inputs.items.columns and name not in wanted]
    table = pa.concat_tables(_items(inputs, fields, file, wanted) for file in inputs.items.files)
    known = table.filter(pc.is_valid(table.column(ITEM_ID)))
    if nulls := table.num_rows - known.num_rows:
        rejected["null_item_id"] = nulls
    _, first = np.unique(known.column(ITEM_ID).to_numpy(), return_index=True)
    if duplicates := known.num_rows - len(first):
        rejected["duplicate_item_id"] = duplicates
    known = known.take(pa.array(np.sort(first)))
    unknown = seen.filter(pc.invert(pc.is_in(seen, value_set=known.column(ITEM_ID).combine_chunks())))
    others = pa.table({ITEM_ID: unknown, AVAILABLE: pa.array(np.zeros(len(unknown), bool))})
    table = pa.concat_tables([known, others], promote_options="default").sort_by(ITEM_ID)
    vectors: dict[str, np.ndarray] = {}
    for name in of_vectors:
        vectors[name], unusable = unit_vectors(table.column(name), where=inputs.items.location, name=name)
        if unusable:
            rejected["unusable_vector"] += unusable
    return Catalog(table.drop_columns(list(of_vectors)).combine_chunks(), vectors), rejected
