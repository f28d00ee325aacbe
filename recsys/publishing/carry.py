"""Rows of the night before, carried over to tonight for users whom tonight's run did not reach."""

from collections.abc import Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.publishing.delta import open_table, table_files
from recsys.publishing.release import Release
from recsys.publishing.staging import Part
from recsys.publishing.table import readable
from recsys.schema import AS_OF, CARRIED_FROM, ITEM_ID, MODEL_VERSION, RANK, RUN_ID, USER_ID, complete, recommendations_schema
from recsys.storage import filesystem


def carry_over(release: Release, *, since: date, users: pa.Array, items: pa.Array, shard: int) -> list[Part]:
    """Receipts of staged parts that hold what the users had on the night `since`, one for each of its files; unseen like all parts.

    Rows get tonight's run and model, as a night is of one run, and say in `carried_from` which night made them. Items that may not be
    recommended tonight go, and those behind them move up. A file of the night is in memory at a time.

    Args:
        users: ids of those whose rows are carried.
        items: ids of the items that may be recommended.
        shard: number of the first part; the others follow.

    Raises:
        PublishError: the night's files cannot be read.
    """
    table = open_table(release.table.path, release.storage_options)
    assert table is not None, f"{release.table.path}: no table"
    store, root = filesystem(release.table.path, release.storage_options)
    names = sorted(file["path"] for file in table_files(table) if file[AS_OF] == since)
    parts: list[Part] = []
    for name in names:
        with readable(release.table.path, since), store.open_input_file(f"{root}/{name}") as file:
            rows = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
            wanted = pc.and_(pc.is_in(rows.column(USER_ID), value_set=users), pc.is_in(rows.column(ITEM_ID), value_set=items))
        rows = rows.filter(wanted).sort_by([(USER_ID, "ascending"), (RANK, "ascending")])
        if rows.num_rows:
            parts.append(release.stage(_tonight(rows, release, since), shard=shard + len(parts)))
    return parts


def _tonight(rows: pa.Table, release: Release, since: date) -> pa.Table:
    """Rows by user and rank of a part as rows of tonight's, without as_of."""
    schema = recommendations_schema(release.user_id, release.item_id)
    schema = schema.remove(schema.get_field_index(AS_OF))
    rows = complete(rows, schema)
    changed = {
        RANK: pa.array(_places(rows.column(USER_ID)), pa.int32()),
        RUN_ID: pa.repeat(release.run_id, rows.num_rows),
        MODEL_VERSION: pa.repeat(release.model_version, rows.num_rows),
        CARRIED_FROM: pc.fill_null(rows.column(CARRIED_FROM), pa.scalar(since, pa.date32())),  # that it was carried to before stays
    }
    return pa.table([changed.get(name, rows.column(name)) for name in schema.names], schema=schema)


def _places(users: pa.ChunkedArray) -> np.ndarray:
    """1, 2, 3 ... within each run of equal ids."""
    codes = users.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.arange(1, len(codes) + 1) - np.repeat(starts, np.diff(starts, append=len(codes)))


def ids_of(release: Release, parts: Sequence[Part]) -> pa.Array:
    """Ids of the users who have a row in staged parts, each once."""
    store, root = filesystem(release.table.path, release.storage_options)
    found = [pa.array([], release.user_id)]
    for part in parts:
        if part["rows"]:
            with store.open_input_file(f"{root}/{part['path']}") as file:
                found.append(pc.unique(pq.ParquetFile(file).read(columns=[USER_ID]).column(USER_ID)))
    return pa.concat_arrays(found)
