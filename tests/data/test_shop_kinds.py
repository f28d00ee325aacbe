from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.data import shop_kinds, synthetic
from recsys.data.shop_kinds import KINDS, LIFE_DAYS, OFF_SEASON, SEASON_DAYS, TRAITS, Kind, appeal_of

END = date(2026, 1, 1)
USERS, ITEMS, DAYS = 400, 200, 365
GROCERIES = (1955, 2356772, 7078.97)  # rows, sums of item ids and of prices


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[synthetic.Planted, pd.DataFrame]]:
    made: dict[Kind, tuple[synthetic.Planted, pd.DataFrame]] = {}
    for kind in KINDS:
        planted = synthetic.shop(tmp_path_factory.mktemp(kind), users=USERS, items=ITEMS, days=DAYS, seed=3, end=END, kind=kind)
        made[kind] = planted, pq.read_table(planted.events).to_pandas()
    return made


def bought(events: pd.DataFrame) -> pd.DataFrame:
    return events[events["kind"] == "purchase"] if "kind" in events else events


@pytest.mark.parametrize("kind", KINDS)
def test_users_buy_about_as_much_as_the_kind_says(kind: Kind, shops: dict[Kind, tuple[synthetic.Planted, pd.DataFrame]]) -> None:
    planted, events = shops[kind]
    assert len(events) == planted.rows
    mean = len(bought(events)) / USERS
    low = 0.85 if TRAITS[kind].again else 0.4  # what would be taken twice is left out, as is what does not appeal
    assert low * TRAITS[kind].events_per_user < mean < 1.4 * TRAITS[kind].events_per_user
    assert events["user_id"].nunique() > 0.98 * USERS


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_taken_twice_where_the_kind_says_so(kind: Kind, shops: dict[Kind, tuple[synthetic.Planted, pd.DataFrame]]) -> None:
    repeated = bought(shops[kind][1]).duplicated(["user_id", "item_id"]).mean()
    assert (repeated == 0) == (not TRAITS[kind].again)
    if TRAITS[kind].staples:
        assert repeated > 0.3


def test_groceries_are_what_a_planted_shop_was_before_there_were_kinds(tmp_path: Path) -> None:
    planted = synthetic.shop(tmp_path, users=60, items=60, days=100, seed=3, end=END, events_per_user=40.0)
    events = pq.read_table(planted.events).to_pandas()
    assert (planted.rows, int(events["item_id"].sum()), round(float(events["price"].sum()), 2)) == GROCERIES


def test_fashion_sells_for_a_season_and_what_is_over_is_not_available(
    shops: dict[Kind, tuple[synthetic.Planted, pd.DataFrame]],
) -> None:
    planted, events = shops["fashion"]
    times = events.groupby("item_id")["ts"]
    last = times.max()
    assert (last - times.min()).max() <= pd.Timedelta(days=LIFE_DAYS)
    gone = last[last < pd.Timestamp(END, tz="UTC") - pd.Timedelta(days=LIFE_DAYS)].index
    available = dict(zip(planted.item_ids.to_pylist(), planted.available, strict=True))
    assert len(gone) > ITEMS / 4
    assert np.mean([available[item] for item in gone]) < 0.05
    assert planted.available.mean() > 0.1


def test_gifts_sell_around_their_best_day() -> None:
    appeal, on_sale = appeal_of("gifts", items=50, days=DAYS, random=np.random.default_rng(1))
    assert appeal is not None
    assert on_sale.all()
    days = np.arange(366.0)
    for item in range(50):
        values = appeal(np.full(len(days), item), days)
        best = days[values.argmax()]
        assert values.max() > 0.99
        assert values.min() == pytest.approx(OFF_SEASON, abs=0.01)
        apart = np.abs((days - best + 182.6) % 365.25 - 182.6)
        assert values[apart < SEASON_DAYS].min() > 0.6  # across the new year too
        assert values[apart > 4 * SEASON_DAYS].max() < OFF_SEASON + 0.01


def test_views_and_carts_come_before_what_is_bought_and_carts_tell_more(
    shops: dict[Kind, tuple[synthetic.Planted, pd.DataFrame]],
) -> None:
    events = shops["views-and-carts"][1]
    pairs = {kind: set(zip(mine["user_id"], mine["item_id"], strict=True)) for kind, mine in events.groupby("kind")}
    assert pairs.keys() == set(shop_kinds.EVENT_KINDS)
    carted, viewed = (len(pairs["purchase"] & pairs[kind]) / len(pairs[kind]) for kind in ("cart", "view"))
    assert carted > 1.5 * viewed
    assert len(pairs["purchase"] & pairs["view"]) > 0.9 * len(pairs["purchase"])


def test_what_does_not_appeal_is_drawn_again_and_in_the_end_not_bought() -> None:
    random = np.random.default_rng(0)
    day = np.array([0.0, 1.0, 0.0, 1.0])

    def draw(place: np.ndarray) -> np.ndarray:
        return random.integers(0, 3, len(place)).astype(np.int32)

    def second(item: np.ndarray, day: np.ndarray) -> np.ndarray:
        return ((item == 2) & (day == 1)).astype(np.float64)

    item, bought = shop_kinds.draw_appealing(draw, day, second, random)
    assert bought.tolist() == [1, 3]
    assert item[bought].tolist() == [2, 2]
    item, bought = shop_kinds.draw_appealing(draw, day, None, random)
    assert bought.tolist() == [0, 1, 2, 3]
