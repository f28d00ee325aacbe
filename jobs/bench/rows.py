"""What the bench is held on: feature rows of any number, and planted shops of any size."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import synthetic
from recsys.engine.progress import log
from recsys.schema import ITEM_ID, USER_ID

ITEMS = 50_000  # of generated feature rows
END = date(2026, 1, 1)  # the day before which a planted shop ends


# Shops for the shop door -----------------------------------------------------------------------------------------------------------


def planted_shop(folder: Path, *, users: int, items: int) -> tuple[dict[str, Any], int]:
    """A planted shop of a year, below the folder: settings that name it, and its number of events."""
    log.info("bench: a planted shop of %s users and %s items", f"{users:,}", f"{items:,}")
    planted = synthetic.shop(folder / "shop", users=users, items=items, days=365, seed=0, end=END)
    values = {
        "shop": {"events": str(planted.events), "items": str(planted.items), "users": str(planted.users)},
        "features": {"item_categorical": ["category", "brand"], "item_numeric": ["size"], "user_categorical": ["age", "region"]},
        "run": {"work": str(folder / "work")},
    }
    return values, planted.rows


# Load for the pairs door ----------------------------------------------------------------------------------------------------------


def feature_rows(folder: Path, *, rows: int, files: int, numeric: int, categorical: int = 0) -> Iterator[Path]:
    """Parquet files of feature rows with ids, numbers f00, f01, … and words c00, c01, …; yields each file when it is written.

    Users come in order and have 100 rows each; a border between files may lie within a user.

    Args:
        rows: of all files together.
        numeric: float32 columns, standard normal.
        categorical: string columns of 1,000 words each, the frequent ones ten times as frequent as the mean.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = pa.array([f"word {number}" for number in range(1_000)])
    for number in range(files):
        start, end = rows * number // files, rows * (number + 1) // files
        rng = np.random.default_rng([0, number])
        columns = {
            USER_ID: pa.array(np.arange(start, end) // 100),
            ITEM_ID: pa.array(rng.integers(0, ITEMS, end - start)),
        }
        for column in range(numeric):
            columns[f"f{column:02d}"] = pa.array(rng.standard_normal(end - start, np.float32))
        for column in range(categorical):
            drawn = (rng.random(end - start) ** 3 * len(words)).astype(np.int32)
            columns[f"c{column:02d}"] = pa.DictionaryArray.from_arrays(drawn, words).cast(pa.string())
        table = pa.table(columns)
        path = folder / f"rows-{number:05d}.parquet"
        pq.write_table(table, path, compression="zstd", row_group_size=65_536)
        yield path
