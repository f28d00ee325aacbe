"""A pilot shop: fewer users than shards, down to one, is a night like any other."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.pipelines.nightly import nightly, open_night
from recsys.publishing.table import read_night
from recsys.schema import ITEM_ID, TS, USER_ID

pytestmark = pytest.mark.ray

DAY = date(2024, 6, 1)
ITEMS = 12


def settings_of(folder: Path, *, users: int, shards: int) -> Settings:
    draw = np.random.default_rng(3)
    count = 150 * users
    end = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    times = [end - timedelta(hours=float(hours)) for hours in draw.uniform(1, 24 * 84, count)]
    (folder / "events").mkdir()
    table = pa.table(
        {
            USER_ID: draw.integers(1, users + 1, count),
            ITEM_ID: draw.integers(1, ITEMS + 1, count),
            TS: pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, folder / "events" / "part.parquet")
    return Settings.model_validate(
        {
            "shop": {"events": str(folder / "events")},
            "window": {"label_days": 14, "cutoffs": 2},
            "signals": {"factors": 4, "als_iterations": 2},
            "candidates": {"per_user": 5, "popular": 5, "own": 3},
            "model": {"hidden": [4]},
            "train": {"epochs": 1, "workers": 1, "refit": False},
            "run": {"work": str(folder / "work"), "shards": shards},
            "table": {"path": str(folder / "table")},
            "champion": {"path": str(folder / "bundles")},
            "report": {"path": str(folder / "reports")},
        }
    )


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("users", "shards"), [(1, 3), (3, 8)])
def test_a_night_of_fewer_users_than_shards_is_published(users: int, shards: int, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, users=users, shards=shards)
    inputs = open_night(settings, as_of=DAY)
    state, published = nightly(inputs, as_of=DAY)
    assert published.users == users
    assert sorted(set(read_night(settings.table.path, as_of=DAY).column(USER_ID).to_pylist())) == list(range(1, users + 1))
    assert (tmp_path / "reports" / f"{DAY}.html").exists()
    assert state.dataset.rows["users kept"] == users
