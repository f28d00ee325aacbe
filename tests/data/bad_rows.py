"""Rows that a shop should not have written, one kind of fault each."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.synthetic import FAR_FUTURE, Planted
from recsys.schema import ITEM_ID, QUANTITY, TS, USER_ID


def bad_rows(
    planted: Planted,
    *,
    seed: int,
    null_user: int = 0,
    null_item: int = 0,
    null_ts: int = 0,
    future_ts: int = 0,
    negative_quantity: int = 0,
    duplicates: int = 0,
) -> dict[str, int]:
    """How many bad rows of each sort were added to the shop's events, as one more file; each row is bad in one way only.

    Args:
        planted: a shop; its files stay as they are.
        future_ts: rows of the year 2100.
        duplicates: exact copies of rows of the shop, none copied twice.
    """
    counts = {
        "null_user": null_user,
        "null_item": null_item,
        "null_ts": null_ts,
        "future_ts": future_ts,
        "negative_quantity": negative_quantity,
        "duplicates": duplicates,
    }
    named = {name: planted.columns.get(name, name) for name in (USER_ID, ITEM_ID, TS, QUANTITY)}
    first = pq.read_table(min(planted.events.glob("part-*.parquet")))
    assert sum(counts.values()) <= len(first), f"bad rows are made of the first file's, which has {len(first)}"
    chosen = first.take(np.random.default_rng([seed, 3]).permutation(len(first))[: sum(counts.values())])
    sort = np.repeat(list(counts), list(counts.values()))
    for name, column, value in (
        ("null_user", USER_ID, None),
        ("null_item", ITEM_ID, None),
        ("null_ts", TS, None),
        ("future_ts", TS, FAR_FUTURE),
        ("negative_quantity", QUANTITY, -1.0),
    ):
        field = chosen.schema.field(named[column])
        values = pc.if_else(pa.array(sort == name), pa.scalar(value, field.type), chosen[field.name])
        chosen = chosen.set_column(chosen.schema.get_field_index(field.name), field, values)
    pq.write_table(chosen, planted.events / "bad.parquet")
    return counts


def no_utf8(*values: bytes) -> pa.Array:
    """Strings whose bytes nobody checked, as some writers leave them."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def damage(path: Path) -> None:
    """Break the values, so that whoever reads them fails; the footer, the size and the time stay."""
    stat, whole = path.stat(), path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    path.write_bytes(b"PAR1" + bytes(footer - 4) + whole[footer:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
