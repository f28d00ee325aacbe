"""Lists -> rows of the recommendation table."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.ranking.reasons import reasons_of
from recsys.ranking.recommend import ScoredUsers
from recsys.ranking.scorer import probabilities
from recsys.ranking.top_k import Ranked
from recsys.retrieval.supplied import SUPPLIED
from recsys.schema import (
    AS_OF,
    CARRIED_FROM,
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
    recommendations_schema,
)


@dataclass(frozen=True)
class Stamp:
    """What all rows of one night have alike."""

    as_of: date
    model_version: str
    run_id: str


def recommendations(
    batch: ScoredUsers, ranked: Ranked, stamp: Stamp, *, chance: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> pa.Table:
    """The rows of a batch of users with `recommendations_schema`.

    Args:
        ranked: of `listed`.
        chance: raw outputs and their users' purchases -> the score column, (B) each; it orders nothing, so what it ties stays in raw
            order.
    """
    users, candidates = batch.users, batch.candidates
    row = candidates.user_row[ranked.row]
    reasons = reasons_of(ranked, candidates, users)
    ids = users.catalog.item_id
    columns = {
        USER_ID: users.history.users.column(USER_ID).combine_chunks().take(pa.array(row)),
        RANK: pa.array(ranked.rank),
        ITEM_ID: ids.take(pa.array(users.signals.items[candidates.item[ranked.row]])),
        SCORE: pa.array(chance(batch.raw[ranked.row], users.activity[row]), pa.float32(), mask=~batch.modelled[row]),
        SOURCE: pa.array(reasons.source, pa.string()),
        SOURCES: pa.array(reasons.sources, pa.list_(pa.string())),
        REASON: pa.array(reasons.text, pa.string()),
        REASON_KIND: pa.array(reasons.kind, pa.string()),
        REASON_ITEM_ID: ids.take(pa.array(reasons.item, mask=reasons.item < 0)),
        REASON_CATEGORY: pa.array(reasons.category, pa.string()),
    }
    return _stamped(columns, stamp)


def feature_row_recommendations(ranked: pa.Table, stamp: Stamp) -> pa.Table:
    """Rows of `top_k_by_user` with `recommendations_schema`: nothing but the feature rows stands behind them."""
    count = ranked.num_rows
    item_id = ranked.column(ITEM_ID).combine_chunks()
    columns = {
        USER_ID: ranked.column(USER_ID).combine_chunks(),
        RANK: ranked.column(RANK),
        ITEM_ID: item_id,
        SCORE: pa.array(probabilities(ranked.column(RAW).to_numpy())),
        SOURCE: _same(SUPPLIED, pa.string(), count),
        SOURCES: _same([SUPPLIED], pa.list_(pa.field("element", pa.string())), count),
        REASON: _same("Among the rows given for the user.", pa.string(), count),
        REASON_KIND: _same(SUPPLIED, pa.string(), count),
        REASON_ITEM_ID: pa.nulls(count, item_id.type),
        REASON_CATEGORY: pa.nulls(count, pa.string()),
    }
    return _stamped(columns, stamp)


def _stamped(columns: dict[str, Any], stamp: Stamp) -> pa.Table:
    user_id, item_id = columns[USER_ID], columns[ITEM_ID]
    alike = {
        AS_OF: _same(stamp.as_of, pa.date32(), len(user_id)),
        MODEL_VERSION: _same(stamp.model_version, pa.string(), len(user_id)),
        RUN_ID: _same(stamp.run_id, pa.string(), len(user_id)),
        CARRIED_FROM: pa.nulls(len(user_id), pa.date32()),
    }
    return pa.table(columns | alike, schema=recommendations_schema(user_id.type, item_id.type))


def _same(value: object, dtype: pa.DataType, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, dtype), count) if count else pa.array([], dtype)  # Arrow repeats no list 0 times
