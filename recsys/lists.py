"""Scored rows of any users -> the best k of each user: of one shard, of several shards' bests, and as rows of the table."""

from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import tables
from recsys.given import GIVEN
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
    REASON_CATEGORY,
    REASON_ITEM_ID,
    REASON_KIND,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER_ID,
)


def best(rows: pa.Table, *, k: int) -> tuple[pa.Table, int]:
    """The k rows of each user with the highest raw output, ranked, each item once; and how many repeated rows were passed over.

    Ties break by item id. An item that a user has several times counts once, with its highest output; the repeats are counted for
    users on whose lists one would have been.

    Args:
        rows: user_id, item_id and raw, float32 without NaN; in any order.

    Returns:
        The rows with a column rank; users in the order of their first row.
    """
    user = rows.column(USER_ID).combine_chunks().dictionary_encode().indices.to_numpy()
    item = order_of(rows.column(ITEM_ID).combine_chunks())
    raw = rows.column(RAW).to_numpy()
    ranked = top(user, item, raw, k=k)
    passed = 0
    crowded = _with_repeats(user[ranked.row], item[ranked.row])
    if len(crowded):  # a repeat took another item's place: make these users' lists again, from each item's best row
        again = np.zeros(int(user.max()) + 1, bool)
        again[crowded] = True
        mine = np.flatnonzero(again[user])
        order = mine[np.lexsort((-raw[mine], item[mine], user[mine]))]
        first = np.r_[True, (np.diff(user[order]) != 0) | (np.diff(item[order]) != 0)]
        passed = len(order) - int(first.sum())
        kept = np.ones(len(user), bool)
        kept[order[~first]] = False
        once = np.flatnonzero(kept)
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


def _with_repeats(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The users who have an item twice."""
    order = np.lexsort((item, user))
    user, item = user[order], item[order]
    return np.unique(user[1:][(np.diff(user) == 0) & (np.diff(item) == 0)])


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
        REASON_CATEGORY: pa.nulls(count, pa.string()),
        MODEL_VERSION: same(model_version, pa.string()),
        RUN_ID: same(run_id, pa.string()),
    }
    return pa.table(columns, schema=tables.recommendations_schema(user_id.type, item_id.type))
