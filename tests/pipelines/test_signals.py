from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.pipelines.signals import shop_state
from tests.small import small

DAY = date(2024, 6, 6)


@pytest.mark.usefixtures("in_process")
def test_whether_items_may_come_again_is_decided_by_the_past_where_the_settings_leave_it_open(tmp_path: Path) -> None:
    planted = synthetic.shop(tmp_path / "shop", users=60, items=60, days=120, seed=3, end=DAY)
    settings = small(planted, tmp_path / "work")
    decided = shop_state(open_shop(settings, as_of=DAY), end=DAY).settings
    assert decided.rank.allow_repeats is True

    events = pq.read_table(planted.events).to_pandas().sort_values("ts")
    once = tmp_path / "once.parquet"
    events.drop_duplicates(["user_id", "item_id"]).to_parquet(once)
    never = small(planted, tmp_path / "work", shop={"events": str(once)})
    state = shop_state(open_shop(never, as_of=DAY), end=DAY)
    assert state.settings.rank.allow_repeats is False
    assert state.settings.shop == never.shop
    told = small(planted, tmp_path / "work", shop={"events": str(once)}, rank={"allow_repeats": True})
    assert shop_state(open_shop(told, as_of=DAY), end=DAY).settings.rank.allow_repeats is True

    # only what lies before as_of decides: of the first day nothing was bought before it
    first = events["ts"].min().date()
    known = shop_state(open_shop(settings, as_of=DAY), end=DAY, as_of=first)
    assert known.settings.rank.allow_repeats is False
