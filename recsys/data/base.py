"""An earlier ingest of some of the same events, linked into the folder of the one that adds to it: nothing of it is written again.

<folder>/base/catalog.parquet, histories-<shard>.parquet    links to the earlier one's
<folder>/base/codes.npy, receipts.json                      its items' codes in the catalog of now; the receipts of its histories
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.catalog import read_catalog, read_item_ids
from recsys.data.histories import Histories, read_histories
from recsys.schema import USER_ID
from recsys.storage import save_array, write_atomically, write_json

FOLDER, CODES, RECEIPTS = "base", "codes.npy", "receipts.json"


@dataclass(frozen=True)
class Base:
    """The earlier ingest, as the one that adds to it sees it."""

    folder: Path
    codes: np.ndarray
    """int32: of each of its items the code in the catalog of now."""
    receipts: Mapping[str, Mapping[str, Any]]
    """Of its histories, by shard."""

    @staticmethod
    def open(folder: Path) -> "Base | None":
        """That of the ingest in the folder; None where it stands alone."""
        place = folder / FOLDER
        if not place.is_dir():
            return None
        return Base(place, np.load(place / CODES), json.loads((place / RECEIPTS).read_text(encoding="utf-8")))

    def histories(self, shard: str) -> Histories:
        """A shard of it under the codes of now; its users are those of then, and what was known of them."""
        histories = read_histories(self.folder, shard)
        return replace(histories, item=self.codes[histories.item])


def buyers(histories: Histories) -> pa.Array:
    """The user_id of those with events, ascending."""
    return histories.users.column(USER_ID).combine_chunks().filter(pa.array(np.diff(histories.offsets) > 0))


def of_users(histories: Histories, users: pa.Table) -> Histories:
    """The same events, of the given users: all who have some, and others; both are by user_id."""
    ids = users.column(USER_ID).combine_chunks()
    place = pc.index_in(histories.users.column(USER_ID), value_set=ids).to_numpy(zero_copy_only=False)
    mine = np.diff(histories.offsets)
    counts = np.zeros(len(ids), np.int64)
    counts[place[mine > 0].astype(np.int64)] = mine[mine > 0]
    return replace(histories, users=users, offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def make_base(folder: Path, other: Path, shards: Sequence[str], receipts: Mapping[str, Mapping[str, Any]]) -> None:
    """Link the finished ingest of another folder into this one, whose catalog is there, as its base; copies, where links cannot be.

    Args:
        receipts: of the other's histories, by shard.
    """
    place = folder / f".{FOLDER}-{uuid.uuid4().hex}"
    place.mkdir()
    for name in ("catalog.parquet", *(f"histories-{shard}.parquet" for shard in shards)):
        try:
            os.link(other / name, place / name)
        except OSError:
            shutil.copy2(other / name, place / name)
    save_array(place / CODES, read_catalog(folder).codes_of(read_item_ids(place)))
    write_atomically(place / RECEIPTS, lambda file: write_json(file, dict(receipts)))
    no_base(folder)
    place.rename(folder / FOLDER)


def no_base(folder: Path) -> None:
    """The ingest in the folder stands alone, whatever a run that was ended has left there."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
