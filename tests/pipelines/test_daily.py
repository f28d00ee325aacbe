"""A shop that plans ahead: facts of days become inputs, and a changed plan makes anew what looks at those days alone."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.errors import DataError
from recsys.pipelines.signals import ShopState, examples_of, read_signals, shop_state
from tests.small import small, small_file
from tests.verbs import Ended

DAY = date(2024, 6, 6)
LABEL = timedelta(days=14)


def plan(path: Path, items: list[int], *, since: date, days: int, promoted: Callable[[int, int], float]) -> None:
    """A row for each item and day."""
    rows = [(item, since + timedelta(days=day), promoted(item, day)) for item in items for day in range(days)]
    ids, dates, values = zip(*rows, strict=True)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": pa.array(ids, pa.int64()), "date": dates, "promotion": values}), path)


def opened(planted: synthetic.Planted, folder: Path) -> ShopState:
    daily = {"events": str(planted.events), "items": str(planted.items), "daily": str(folder / "daily")}
    features = {"item_categorical": ["category"], "daily_numeric": ["promotion"]}
    return shop_state(open_shop(small(planted, folder / "work", shop=daily, features=features), as_of=DAY), end=DAY)


@pytest.fixture
def planted(tmp_path: Path) -> synthetic.Planted:
    made = synthetic.shop(tmp_path / "shop", users=60, items=60, days=98, seed=3, end=DAY + timedelta(days=1), events_per_user=20)
    items = made.item_ids.to_pylist()
    plan(tmp_path / "daily" / "a.parquet", items[:30], since=DAY - timedelta(days=60), days=60, promoted=lambda *_: 0.0)
    plan(tmp_path / "daily" / "b.parquet", items[:30], since=DAY, days=40, promoted=lambda item, day: float(item % 2 == 0 and day < 14))
    return made


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_changed_plan_makes_anew_what_looks_at_its_days(planted: synthetic.Planted, tmp_path: Path) -> None:
    state = opened(planted, tmp_path)
    signals = read_signals(state, DAY)
    ids = state.dataset.catalog().item_id.to_numpy()[signals.items]
    told = np.isin(ids, planted.item_ids.to_pylist()[:30])
    even = ids % 2 == 0
    ahead, change, rows = signals.daily
    np.testing.assert_array_equal(ahead[told], even[told].astype(float))
    np.testing.assert_array_equal(change[told], even[told].astype(float))
    np.testing.assert_array_equal(rows, np.where(told, 1.0, 0.0))
    assert np.isnan(ahead[~told]).all()
    assert 0 < told.sum() < len(told)

    days = [DAY - 2 * LABEL, DAY - LABEL]
    before, tonight = examples_of(state, days), sorted(path.name for path in state.signals.path.glob(f"{DAY}-*.npz"))
    items = planted.item_ids.to_pylist()
    plan(tmp_path / "daily" / "b.parquet", items[:30], since=DAY, days=40, promoted=lambda item, day: float(item % 3 == 0 and day < 20))
    again = opened(planted, tmp_path)
    assert examples_of(again, days) == before  # their windows end before the changed days
    read_signals(again, DAY)
    assert len([*again.signals.path.glob(f"{DAY}-*.npz")]) == len(tonight) + 1
    plan(
        tmp_path / "daily" / "a.parquet",
        items[:30],
        since=DAY - timedelta(days=60),
        days=60,
        promoted=lambda _, day: float(day == 50),
    )
    assert examples_of(opened(planted, tmp_path), days)[days[1]] != before[days[1]]  # ten days before DAY


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_night_learns_from_the_plan_and_explains_by_it(planted: synthetic.Planted, tmp_path: Path, run: Callable[..., Ended]) -> None:
    told = {"shop": {"daily": str(tmp_path / "daily")}, "features": {"daily_numeric": ["promotion"]}}
    (tmp_path / "shop.toml").write_text(small_file(tmp_path, **told))
    config = str(tmp_path / "shop.toml")
    looked = run("check", "--config", config, "--as-of", str(DAY))
    assert looked.status == 0, looked.err
    assert "daily" in looked.out
    assert "3,000" in looked.out
    night = run("nightly", "--config", config, "--as-of", str(DAY))
    assert night.status == 0, night.err
    assert "daily: 3,000 rows, rejected: nothing" in night.err
    record = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())
    assert record["inputs"]["daily"] == 3_000
    assert ">daily</td>" in (tmp_path / "made" / "reports" / f"{DAY}.html").read_text()
    (file,) = (tmp_path / "made" / "bundles").glob("bundles/*/card.json")
    assert {"promotion_ahead", "promotion_change", "daily_rows"} <= set(json.loads(file.read_text())["inputs"])
    items = planted.item_ids.to_pylist()
    plan(tmp_path / "daily" / "b.parquet", items[:30], since=DAY, days=40, promoted=lambda item, _: float(item % 3 == 0))
    again = run("nightly", "--config", config, "--as-of", str(DAY), "--force")
    assert again.status == 0, again.err
    changed = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())
    assert changed["run_id"] != record["run_id"]  # another plan is another table
    user = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())["sample"][0]["user_id"]
    shown = run("show", "--config", config, "--user", str(user), "--contributions", "99")
    assert "promotion_ahead" in shown.out


def test_a_table_that_does_not_fit_is_a_sentence(planted: synthetic.Planted, tmp_path: Path) -> None:
    def refused(columns: dict[str, Any]) -> str:
        pq.write_table(pa.table(columns), tmp_path / "daily" / "b.parquet")
        (tmp_path / "daily" / "a.parquet").unlink(missing_ok=True)
        with pytest.raises(DataError) as error:
            opened(planted, tmp_path)
        return str(error.value).removeprefix(f"{tmp_path}/daily: ")

    assert refused({"item_id": [1], "promotion": [1.0]}).startswith("column 'date' is missing; seen item_id, promotion. Add it, or set")
    assert refused({"item_id": [1], "date": ["today"], "promotion": [1.0]}) == (
        "column 'date' must be date or timestamp, got string. Convert it, or set shop.columns.date."
    )
    assert "column 'item_id' must be int64 as in" in refused({"item_id": ["a"], "date": [DAY], "promotion": [1.0]})
    assert "column 'promotion' must be a number, got string" in refused({"item_id": [1], "date": [DAY], "promotion": ["yes"]})


@pytest.mark.parametrize(("shop", "features"), [({"daily": "d"}, {}), ({}, {"daily_numeric": ["price"]})])
def test_where_and_which_go_together(shop: dict[str, Any], features: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="as one says where and the other which columns; set both or neither"):
        Settings.model_validate({"shop": {"events": "e", **shop}, "features": features})
