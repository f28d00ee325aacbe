from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.pipelines.backtest import horizon_end, measure
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.schema import ITEM_ID, USER_ID
from tests.small import small

pytestmark = pytest.mark.timeout(600)

DAY = date(2024, 6, 1)
BEFORE = date(2024, 5, 18)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> synthetic.Planted:
    return synthetic.shop(tmp_path_factory.mktemp("shop"), users=60, items=50, days=98, seed=8, end=DAY, events_per_user=35)


def settings(planted: synthetic.Planted, work: Path, *, shards: int, candidates: Path | None = None, max_users: int = 60) -> Settings:
    return small(
        planted,
        work,
        train={"workers": 1},
        rank={"candidates": str(candidates) if candidates else None},
        champion={"max_users": max_users},
        run={"shards": shards, "actors": 1},
    )


def test_a_horizon_past_the_data_is_shortened_with_a_warning(
    planted: synthetic.Planted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = open_shop(settings(planted, tmp_path, shards=1), as_of=DAY)
    assert horizon_end(sources, as_of=date(2024, 5, 4), horizon_days=28) == DAY
    assert not caplog.records
    assert horizon_end(sources, as_of=date(2024, 5, 4), horizon_days=29) == DAY
    assert caplog.messages == ["backtest: the data ends on 2024-05-31, so the horizon is 28 days, not 29"]


@pytest.mark.ray
def test_shards_change_no_figure_and_given_candidates_alone_are_ranked(
    planted: synthetic.Planted, tmp_path: Path, in_process: None
) -> None:
    def measured(shards: int, candidates: Path | None = None, bundle: Any = None, max_users: int = 60) -> tuple[dict[str, Any], Any]:
        told = settings(planted, tmp_path / "work", shards=shards, candidates=candidates, max_users=max_users)
        sources = open_shop(told, as_of=BEFORE)
        state = shop_state(sources, end=DAY)
        bundle = bundle or train_shop(state, as_of=BEFORE).bundle
        return measure(state, bundle, as_of=BEFORE, end=DAY), bundle

    whole, bundle = measured(3)
    low, high = whole["intervals"]["mlp"]["all"]["ndcg@10"]
    assert low < whole["models"]["mlp"]["all"]["ndcg@10"] < high
    parts, _ = measured(2, bundle=bundle)
    assert {name: parts[name] for name in parts if name != "calibration"} == {
        name: whole[name] for name in whole if name != "calibration"
    }

    some, _ = measured(3, bundle=bundle, max_users=30)
    assert 20 <= some["users"]["all"] <= 40
    assert measured(2, bundle=bundle, max_users=30)[0]["models"] == some["models"]  # whatever the shards, the same users
    few, _ = measured(3, bundle=bundle, max_users=15)
    assert 5 <= few["users"]["all"] < some["users"]["all"]
    assert few["models"] != some["models"]
    nearly_none, _ = measured(16, bundle=bundle, max_users=2)  # most shards have nobody
    assert nearly_none["users"]["all"] <= few["users"]["all"]

    users = planted.user_ids.to_pylist()[:30]
    rows = pa.table({USER_ID: [user for user in users for _ in range(5)], ITEM_ID: planted.item_ids.to_pylist()[:5] * len(users)})
    pq.write_table(rows, tmp_path / "given.parquet")
    only, again = measured(3, candidates=tmp_path / "given.parquet")
    assert again.model_version != bundle.model_version  # it learned from rows drawn to look like them
    assert 0 < only["users"]["all"] <= 30 < whole["users"]["all"]
    assert 0 < only["candidates"]["per_user"] <= 5
    for model in ("mlp", "popular"):  # five available items at most: whoever lists them all finds the same ones
        assert only["models"][model]["all"]["recall@10"] == only["candidates"]["recall"]["union"]
