"""Scored rows of any users -> the best k of each user: of one shard, of several shards' bests, and as rows of the table."""

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import tables
from recsys.profiles import stable_hash
from recsys.rank import Ranked, top
from recsys.score import probabilities
from recsys.tables import (
    AS_OF,
    ITEM_ID,
    MODEL_VERSION,
    RANK,
    RAW,
    REASON,
    REASON_ITEM_ID,
    REASON_KIND,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER_ID,
)

GIVEN = "given"  # source and kind of reason: the row was there to be scored


def best(rows: pa.Table, *, k: int) -> tuple[pa.Table, int]:
    """The k rows of each user with the highest raw output, ranked, each item once; and how many repeated rows were passed over.

    Ties break by item id. An item that a user has several times counts once, with its highest output.

    Args:
        rows: user_id, item_id and raw, float32 without NaN; in any order.

    Returns:
        The rows with a column rank; users in the order of their first row.
    """
    user = rows.column(USER_ID).combine_chunks().dictionary_encode().indices.to_numpy()
    item = order_of(rows.column(ITEM_ID).combine_chunks())
    raw = rows.column(RAW).to_numpy()
    ranked = top(user, item, raw, k=k)
    repeated = _repeats(user[ranked.row], item[ranked.row])
    passed = 0
    if repeated:  # rows that only lists without repeats have room for must be found among all
        order = np.lexsort((-raw, item, user))
        first = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)]
        once = np.sort(order[first])
        passed = len(raw) - len(once)
        ranked = top(user[once], item[once], raw[once], k=k)
        ranked = Ranked(once[ranked.row], ranked.rank)
    return rows.take(pa.array(ranked.row)).append_column(RANK, pa.array(ranked.rank)), passed


def order_of(ids: pa.Array) -> np.ndarray:
    """int (N): numbers in the order of the ids, equal where they are equal."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy()
    encoded = ids.dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int64)
    place[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy()]


def _repeats(user: np.ndarray, item: np.ndarray) -> bool:
    order = np.lexsort((item, user))
    return bool(((np.diff(user[order]) == 0) & (np.diff(item[order]) == 0)).any())


def by_bucket(rows: pa.Table, buckets: int) -> tuple[pa.Table, list[int]]:
    """The rows with those of one bucket of users together, and where each bucket starts, and the end."""
    bucket = stable_hash(rows.column(USER_ID).to_numpy()) % np.uint64(buckets)
    order = np.argsort(bucket, kind="stable")
    starts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    return rows.take(pa.array(order)), starts.tolist()


def recommendations(ranked: pa.Table, *, as_of: date, model_version: str, run_id: str) -> pa.Table:
    """Rows of `best` with `recommendations_schema`."""
    count = ranked.num_rows
    user_id, item_id = (ranked.column(name).combine_chunks() for name in (USER_ID, ITEM_ID))

    def same(value: object, dtype: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, dtype), count) if count else pa.array([], dtype)  # Arrow repeats no list 0 times

    columns = {
        AS_OF: same(as_of, pa.date32()),
        USER_ID: user_id,
        RANK: ranked.column(RANK),
        ITEM_ID: item_id,
        SCORE: pa.array(probabilities(ranked.column(RAW).to_numpy())),
        SOURCE: same(GIVEN, pa.string()),
        SOURCES: same([GIVEN], pa.list_(pa.field("element", pa.string()))),
        REASON: same("Among the rows given for the user.", pa.string()),
        REASON_KIND: same(GIVEN, pa.string()),
        REASON_ITEM_ID: pa.nulls(count, item_id.type),
        MODEL_VERSION: same(model_version, pa.string()),
        RUN_ID: same(run_id, pa.string()),
    }
    return pa.table(columns, schema=tables.recommendations_schema(user_id.type, item_id.type))
