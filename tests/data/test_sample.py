"""What is seen of a shop before any work, against what the shop was made with."""

import dataclasses
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import sample, synthetic
from recsys.data.sample import ShopSample, Wanting, check_kinds, look_at
from recsys.data.shop import ShopInputs, open_shop
from recsys.data.synthetic import Planted
from recsys.errors import DataError, Mistakes
from recsys.schema import ITEM_ID, KIND, TS, USER_ID
from tests.data.bad_rows import bad_rows

END = date(2024, 6, 6)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return synthetic.shop(tmp_path / "shop", users=60, items=80, days=98, seed=1, end=END, events_per_user=20, kinds=True)


def opened(planted: Planted, tmp_path: Path, **shop: object) -> ShopInputs:
    places = {"events": str(planted.events), "items": str(planted.items), "users": str(planted.users)}
    values = {"shop": places | {"label_kinds": ["purchase"]} | shop, "window": {"label_days": 14, "history_days": 60, "cutoffs": 2}}
    return open_shop(Settings.model_validate(values | {"run": {"work": str(tmp_path / "work")}}), as_of=END)


def looked(inputs: ShopInputs) -> ShopSample:
    mistakes = Mistakes()
    seen = look_at(inputs, mistakes, as_of=END)
    mistakes.end()
    return seen


def events_of(planted: Planted) -> pa.Table:
    return pq.read_table(planted.events)


def test_figures_are_those_of_the_rows(planted: Planted, tmp_path: Path) -> None:
    table = events_of(planted).to_pandas()
    bad = bad_rows(planted, seed=1, null_user=3, null_item=2, null_ts=1, future_ts=4, negative_quantity=5)
    seen = looked(opened(planted, tmp_path))
    assert seen.rows == {"events": len(table) + sum(bad.values()), "items": 80, "users": pq.read_table(planted.users).num_rows}
    assert seen.rejected == {"events": {"negative_quantity": 5, "future_ts": 4, "null_user_id": 3, "null_item_id": 2, "null_ts": 1}}
    bought = table[table[KIND] == "purchase"]
    assert seen.wanted == len(bought)
    recent = bought[bought[TS] >= "2024-04-07"]
    assert (seen.with_history, seen.bought) == (recent[USER_ID].nunique(), recent[ITEM_ID].nunique())
    assert seen.users == 60
    assert seen.items == 80
    assert seen.available == pc.sum(pq.read_table(planted.items)["available"]).as_py()
    for start, end in (("2024-05-23", "2024-06-06"), ("2024-05-09", "2024-05-23"), ("2024-04-25", "2024-05-09")):
        within = bought[(bought[TS] >= start) & (bought[TS] < end)]
        assert seen.wanting[date.fromisoformat(start)] == Wanting(within[USER_ID].nunique(), len(within))
    assert len(seen.wanting) == 3


def test_of_a_large_shop_some_row_groups_are_looked_at_spread_evenly(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = events_of(planted).sort_by(TS)
    for file in planted.events.glob("*.parquet"):
        file.unlink()
    pq.write_table(table, planted.events / "all.parquet", row_group_size=100)
    inputs = opened(planted, tmp_path)
    monkeypatch.setattr(sample, "ROWS", table.num_rows // 3)
    seen = looked(inputs)
    assert table.num_rows / 5 < seen.rows["events"] < table.num_rows / 2
    assert all(wanting.users for wanting in seen.wanting.values())  # each window has row groups


def test_a_file_that_cannot_be_read_is_told_of_and_the_others_are_looked_at(planted: Planted, tmp_path: Path) -> None:
    inputs = opened(planted, tmp_path)
    file = min(planted.events.glob("*.parquet"))
    rows = pq.read_metadata(file).num_rows
    content = bytearray(file.read_bytes())
    content[100:400] = b"\0" * 300
    file.write_bytes(content)
    mistakes = Mistakes()
    seen = look_at(inputs, mistakes, as_of=END)
    assert seen.rows["events"] == inputs.events.rows - rows
    with pytest.raises(DataError, match=rf"^{file}: cannot be read: "):
        mistakes.end()


def test_kinds_that_no_event_is_of_are_named(planted: Planted, tmp_path: Path) -> None:
    inputs = opened(planted, tmp_path, label_kinds=["purchase", "sale", "gift"])
    seen = looked(inputs)
    with pytest.raises(DataError) as caught:
        check_kinds(inputs, seen)
    views, purchases = seen.kinds["view"], seen.kinds["purchase"]
    assert purchases > views
    told = f"which no row that was looked at is of; seen purchase {purchases:,}, view {views:,}. Mend it."
    assert caught.value.sentences == tuple(
        f"{planted.events}: shop.label_kinds must be kinds of events, got '{kind}', {told}" for kind in ("sale", "gift")
    )
    check_kinds(opened(planted, tmp_path), seen)
    with pytest.raises(DataError, match="no usable event that is wanted"):
        check_kinds(opened(planted, tmp_path), dataclasses.replace(seen, wanted=0))
