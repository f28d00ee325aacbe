"""Facts of items by day, read once a file: a part of each, by day, that signals of any date take their window from."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Settings
from recsys.data.catalog import Catalog
from recsys.data.daily import FIRST, MODULUS, USUAL_DAYS, clean_daily, hash_days, means
from recsys.data.dataset import parts_of
from recsys.data.inputs import read
from recsys.data.shop import ShopInputs
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.storage import digest, write_arrow, write_atomically

SMALL_ROWS = 1_000_000  # are read in less time than an actor starts


@dataclass(frozen=True)
class Daily:
    """The facts as they were read."""

    folder: Path
    parts: tuple[str, ...]
    days: Mapping[int, int]
    """Day since 1970 -> sum of the hashes of its rows."""
    columns: tuple[str, ...]
    rows: int
    """Read, and `rejected` of them by reason."""
    rejected: Mapping[str, int]

    def around(self, cutoff: date, label_days: int) -> int:
        """What tells one set of rows about a cut-off from another, and says nothing of days that its signals do not look at."""
        now = (cutoff - FIRST).days
        return sum(value for day, value in self.days.items() if now - USUAL_DAYS <= day < now + label_days) % MODULUS

    def as_of(self, cutoff: date, label_days: int, catalog: Catalog) -> np.ndarray:
        """float32 (F, I) as `means`, of all items of the catalog."""

        def codes(ids: pa.ChunkedArray) -> np.ndarray:
            return pc.fill_null(pc.index_in(ids, value_set=catalog.item_id), -1).to_numpy()

        return means(self._read(), codes, self.columns, items=len(catalog), cutoff=cutoff, days=label_days)

    def _read(self) -> Iterator[pa.Table]:
        for part in self.parts:
            with pa.memory_map(str(self.folder / f"{part}.arrow")) as source:
                yield pa.ipc.open_file(source).read_all()


def read_daily(inputs: ShopInputs) -> Daily | None:
    """The facts of shop.daily; None where it is absent. A part of a file is a unit, and serves while the file stays.

    Raises:
        DataError: a file cannot be read, or holds text that is no UTF-8.
    """
    if inputs.daily is None:
        return None
    source, settings = inputs.daily, inputs.settings
    stage = Stage(
        settings.run.work,
        "daily",
        {
            "columns": settings.features.daily_numeric,
            "names": [settings.shop.columns.item_id, settings.shop.columns.date],
            "timezone": settings.shop.timezone,
            "item_id": str(inputs.item_id),
        },
        lasting=True,
    )
    units: dict[str, dict[str, Any]] = {}
    for unit in parts_of(source, "daily"):
        file = source.files[unit["file"]]
        units[digest([file.name, file.size, file.modified_ns, file.rows, unit["row_groups"]])] = unit
    receipts = run_units(stage, units, _daily_task, inputs, stage.path, unit="parts", here=source.rows <= SMALL_ROWS)
    days, rejected = Counter[int](), Counter[str]()
    for receipt in receipts.values():
        rejected.update(receipt["rejected"])
        days.update({int(day): value for day, value in receipt["days"].items()})
    told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(rejected.items())) or "nothing"
    rows = sum(receipt["rows"] for receipt in receipts.values())
    log.info("daily: %s rows, rejected: %s", f"{rows:,}", told)
    return Daily(stage.path, tuple(units), dict(days), settings.features.daily_numeric, rows, dict(rejected))


def _daily_task(inputs: ShopInputs, folder: Path) -> Task:
    settings: Settings = inputs.settings
    columns = dict.fromkeys([settings.shop.columns.item_id, settings.shop.columns.date, *settings.features.daily_numeric])

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        assert inputs.daily is not None
        file = inputs.daily.files[unit["file"]]
        raw = read(inputs.daily, file, unit["row_groups"], list(columns))
        kept, rejected = clean_daily(raw, settings, inputs.item_id, file.path)
        write_atomically(folder / f"{name}.arrow", lambda place: write_arrow(kept, place))
        return {"rows": raw.num_rows, "rejected": rejected, "days": hash_days(kept)}

    return task
