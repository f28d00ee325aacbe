"""A shop whose items have vectors: items that nobody bought yet are listed by likeness, and another encoder makes other examples."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.pipelines.signals import ShopState, examples_of, read_signals, shop_state
from tests.small import small, small_file
from tests.verbs import Ended

DAY = date(2024, 6, 6)
LABEL = timedelta(days=14)
COLD = 7  # items of which no event is left


@pytest.fixture
def planted(tmp_path: Path) -> synthetic.Planted:
    made = synthetic.shop(
        tmp_path / "shop", users=80, items=60, days=98, seed=3, end=DAY + timedelta(days=1), events_per_user=20, vectors=8
    )
    cold = made.item_ids.take(pa.array(np.flatnonzero(made.available)[:COLD]))
    for path in made.events.glob("*.parquet"):
        events = pq.read_table(path)
        pq.write_table(events.filter(pc.invert(pc.is_in(events.column("item_id"), value_set=cold))), path)
    return replace(made, rows=0)


def opened(planted: synthetic.Planted, folder: Path) -> ShopState:
    features = {"item_categorical": ["category"], "item_vectors": ["vector"]}
    return shop_state(open_shop(small(planted, folder / "work", features=features), as_of=DAY), end=DAY)


def rewrite(planted: synthetic.Planted, chosen: np.ndarray) -> None:
    """Turn the vectors of the chosen items, by their ids, around."""
    assert planted.items
    path = planted.items / "items.parquet"
    table = pq.read_table(path)
    vectors = np.stack(table.column("vector").to_numpy())
    vectors[np.isin(table.column("item_id").to_numpy(), chosen)] *= -1
    pq.write_table(table.set_column(table.schema.get_field_index("vector"), "vector", pa.array(vectors.tolist())), path)


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_another_vector_of_an_item_makes_the_examples_anew_that_look_at_it(planted: synthetic.Planted, tmp_path: Path) -> None:
    days = [DAY - 2 * LABEL, DAY - LABEL]
    state = opened(planted, tmp_path)
    before = examples_of(state, days)
    signals = read_signals(state, days[1])
    ids = state.dataset.catalog().item_id.to_numpy()
    cold = planted.item_ids.to_numpy()[np.flatnonzero(planted.available)[:COLD]]
    assert np.isin(cold, ids[signals.items]).all()  # that nobody bought are candidates all the same
    made = sorted(path.name for path in state.signals.path.glob("*.npz"))
    rewrite(planted, np.setdiff1d(ids, ids[signals.items])[:1])
    assert examples_of(opened(planted, tmp_path), days) == before  # that item is in no candidate
    rewrite(planted, cold[:1])
    after = examples_of(opened(planted, tmp_path), days)
    assert not set(after.values()) & set(before.values())
    assert sorted(path.name for path in state.signals.path.glob("*.npz")) == made  # no signal goes by them


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_night_lists_what_nobody_bought_by_its_likeness(
    planted: synthetic.Planted, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    (tmp_path / "shop.toml").write_text(small_file(tmp_path, features={"item_vectors": ["vector"]}, rank={"k": 40}))
    config = str(tmp_path / "shop.toml")
    night = run("nightly", "--config", config, "--as-of", str(DAY))
    assert night.status == 0, night.err
    (card,) = (tmp_path / "made" / "bundles").glob("bundles/*/card.json")
    assert {"vector_likeness", "vector_latest", "vectors_score"} <= set(json.loads(card.read_text())["inputs"])
    lists = pl.scan_delta(str(tmp_path / "made" / "table")).collect()
    cold = planted.item_ids.to_numpy()[np.flatnonzero(planted.available)[:COLD]]
    found = lists.filter(pl.col("item_id").is_in(cold.tolist()))
    assert len(found) > 0
    assert set(found["source"]) == {"vectors"}  # no other knows of them
    assert set(found["reason_kind"]) == {"similar_to"}
    assert found["reason"].str.starts_with("Similar to Item ").all()
    user, item = found.row(0, named=True)["user_id"], found.row(0, named=True)["item_id"]
    told = run("explain", "--config", config, "--user", str(user), "--item", str(item))
    assert told.status == 0, told.err
    assert "vectors" in told.out


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_vectors_that_differ_in_length_stop_the_night_before_events_are_read(planted: synthetic.Planted, tmp_path: Path) -> None:
    assert planted.items
    one = pq.read_table(planted.items / "items.parquet").slice(0, 1)
    short = one.set_column(one.schema.get_field_index("vector"), "vector", pa.array([[1.0, 2.0]]))
    short = short.set_column(short.schema.get_field_index("item_id"), "item_id", pa.array([5]))
    pq.write_table(short, planted.items / "more.parquet")
    with pytest.raises(Exception, match=r"column 'vector' holds vectors of 2 and 8 numbers; one length was expected"):
        opened(planted, tmp_path)
    assert not [*(tmp_path / "work").glob("clean-*/events*")]
