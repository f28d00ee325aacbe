"""The shop's own candidates -> rows by shard of its users.

Two passes as in ingest: a part of the input is a unit, then a shard.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.data.dataset import ShopDataset, parts_of, read_shard, write_by_shard
from recsys.data.inputs import read
from recsys.data.keyed import user_ids
from recsys.data.shop import ShopInputs
from recsys.data.types import readable
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.retrieval import supplied
from recsys.schema import ITEM_ID, USER_ID
from recsys.storage import save_arrays


def make_supplied(inputs: ShopInputs, shop: ShopDataset) -> Stage | None:
    """The shop's own candidates hashed into the shards of its users; None where the settings name none."""
    source = inputs.supplied
    if source is None:
        return None
    stage = Stage(inputs.settings.run.work, "supplied", {"supplied": source.identity(), "ingest": shop.digest})
    parts = {f"part-{number:05d}": unit for number, unit in enumerate(parts_of(source, "supplied"))}
    run_units(stage, parts, _supplied_part_task, inputs, stage.path, label="supplied: read", unit="parts")
    units = {f"users-{shard}": {"shard": shard, "parts": list(parts)} for shard in shop.shards}
    receipts = run_units(stage, units, _supplied_task, shop, stage.path, label="supplied: group", unit="shards")
    told = supplied_rows(stage)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in told["rejected"].items()) or "none"
    users = sum(receipt["users"] for receipt in receipts.values())
    log.info("supplied: %s rows read, rejected: %s", f"{told['rows']:,}", reasons)
    if not users:
        raise DataError(f"{source.location}: no usable candidate; rejected: {reasons}. Check the ids in it, or remove rank.candidates.")
    if without := shop.rows["users kept"] - users:
        users_there = f"{shop.rows['users kept']:,}"
        log.warning("supplied: %s of %s users have no row in %s and get no list", f"{without:,}", users_there, source.location)
    return stage


def supplied_rows(stage: Stage) -> dict[str, Any]:
    """Of a finished stage of given candidates: `rows` read, and `rejected`, reason -> rows."""
    receipts = [stage.receipt(path.stem) or {} for path in sorted((stage.path / "receipts").glob("*.json"))]
    rejected = Counter[str]()
    for receipt in receipts:
        rejected.update(receipt["rejected"])
    return {"rows": sum(receipt["rows"] for receipt in receipts if "users" not in receipt), "rejected": dict(sorted(rejected.items()))}


def _supplied_part_task(inputs: ShopInputs, folder: Path) -> Task:
    source, columns = inputs.supplied, inputs.settings.shop.columns
    assert source is not None
    schema = pa.schema([(USER_ID, inputs.user_id), (ITEM_ID, inputs.item_id)])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        file = source.files[unit["file"]]
        raw = read(source, file, unit["row_groups"], [columns.user_id, columns.item_id])
        ids: list[pa.ChunkedArray] = []
        for column, dtype, key in ((columns.user_id, inputs.user_id, inputs.key), (columns.item_id, inputs.item_id, None)):
            with readable(file.path, column):
                ids.append(user_ids(raw.column(column), dtype, key))
        rows = pa.table(ids, schema=schema)
        kept = rows.drop_null()
        write_by_shard(folder / f"{name}.arrow", kept, shards=inputs.shards)
        nulls = rows.num_rows - kept.num_rows
        return {"rows": rows.num_rows, "rejected": {"null_id": nulls} if nulls else {}}

    return task


def _supplied_task(shop: ShopDataset, folder: Path) -> Task:
    catalog = shop.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rows = pa.concat_tables(read_shard(folder / f"{part}.arrow", int(unit["shard"])) for part in unit["parts"])
        users = shop.histories(unit["shard"]).users.column(USER_ID).combine_chunks()
        found, rejected = supplied.rows_of(rows, users, catalog)
        save_arrays(folder / f"{name}.npz", user_row=found.user_row, item=found.item)
        return {"rows": len(found.item), "users": len(np.unique(found.user_row)), "rejected": rejected}

    return task
