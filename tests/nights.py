"""Rows of the recommendation table, staged and audited, for the tests of both."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from recsys.publishing import staging
from recsys.publishing.staging import Part
from recsys.publishing.table import commit_night
from recsys.schema import recommendations_schema

NIGHT = date(2017, 12, 1)
NEXT = date(2017, 12, 2)
STRING = pa.string()
RUN = "aaaa"
OTHER_RUN = "bbbb"

# user -> items in rank order; two shards of different size, one list shorter than k = 3
SHARD_0: Mapping[Any, list[Any]] = {"ann": ["milk", "eggs", "tea"], "bob": ["tea", "milk"]}
SHARD_1: Mapping[Any, list[Any]] = {"cid": ["eggs", "milk", "tea"]}


def rows_of(
    lists: Mapping[Any, list[Any]], run_id: str = RUN, user_id: pa.DataType = STRING, item_id: pa.DataType = STRING
) -> pa.Table:
    """RECOMMENDATIONS without as_of; the score is 1/rank, the last item of each list comes from 'popular' and has none."""
    rows = []
    for user, items in lists.items():
        for rank, item in enumerate(items, start=1):
            last = rank == len(items)
            source = "popular" if last else "own"
            rows.append(
                {
                    "user_id": user,
                    "rank": rank,
                    "item_id": item,
                    "score": None if last else 1 / rank,
                    "source": source,
                    "sources": [source],
                    "reason": "You buy it.",
                    "reason_kind": source,
                    "reason_item_id": None if last else item,
                    "reason_category": "drinks" if item == "tea" else None,
                    "model_version": "m1",
                    "run_id": run_id,
                }
            )
    return pa.Table.from_pylist(rows, schema=recommendations_schema(user_id, item_id).remove(0))


def change(rows: pa.Table, column: str, values: list[Any]) -> pa.Table:
    """The rows with one column's values replaced."""
    index = rows.schema.get_field_index(column)
    return rows.set_column(index, rows.schema.field(index), pa.array(values, rows.schema.field(index).type))


def stage(table: Path, *shards: Mapping[Any, list[Any]], as_of: date = NIGHT, run_id: str = RUN) -> list[Part]:
    return [
        staging.stage(str(table), rows_of(lists, run_id), as_of=as_of, run_id=run_id, shard=shard) for shard, lists in enumerate(shards)
    ]


def audit(table: Path, parts: list[Part], *, k: int = 3) -> staging.Audit:
    return staging.audit(str(table), parts, as_of=NIGHT, k=k, user_id=STRING, item_id=STRING)


def audit_rows(table: Path, rows: pa.Table) -> staging.Audit:
    return audit(table, [staging.stage(str(table), rows, as_of=NIGHT, run_id=RUN, shard=0)])


def parts_on_disk(table: Path) -> set[str]:
    return {str(file.relative_to(table)) for file in table.glob("as_of=*/*")}


def publish(table: Path, as_of: date, rows: pa.Table, *, ids: pa.DataType) -> None:
    run_id = f"run-{as_of}"
    rows = change(rows, "run_id", [run_id] * rows.num_rows)
    part = staging.stage(str(table), rows, as_of=as_of, run_id=run_id, shard=0)
    committed = commit_night(
        str(table), [part], as_of=as_of, run_id=run_id, model_version="m1", user_id=ids, item_id=pa.string(), keep_nights=9
    )
    assert committed is not None


def listed(table: Path, as_of: date) -> dict[Any, list[dict[str, Any]]]:
    rows = pl.scan_delta(str(table)).filter(pl.col("as_of") == as_of).sort("user_id", "rank").collect()
    return {key[0]: group.to_dicts() for key, group in rows.group_by("user_id", maintain_order=True)}
