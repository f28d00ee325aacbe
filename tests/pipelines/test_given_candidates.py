"""A published protocol on a planted shop where nobody takes an item twice: each user's future items among 99 random ones."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.errors import BundleError
from recsys.evaluation.backtest import OURS, best_baselines
from recsys.features.spec import FeatureSpec
from recsys.pipelines.backtest import measure
from recsys.pipelines.score import check_bundle
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.ranking.bundle import Bundle
from tests.small import small

DAY = date(2024, 6, 6)
END = DAY + timedelta(days=14)
OTHERS, PROPOSED = 99, 40


@pytest.mark.usefixtures("in_process")
def test_the_model_is_not_below_its_sources_where_it_ranks_what_it_is_given(tmp_path: Path) -> None:
    planted = synthetic.shop(tmp_path / "shop", users=1_500, items=400, days=200, seed=4, end=END, events_per_user=60)
    assert planted.items is not None
    events = pq.read_table(planted.events).to_pandas().sort_values("ts").drop_duplicates(["user_id", "item_id"])
    events.to_parquet(tmp_path / "events.parquet")
    taken = events.groupby("user_id")["item_id"].agg(set)
    items = pq.read_table(planted.items)["item_id"].to_numpy()
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int]] = []
    for user, future in events[events["ts"] >= pd.Timestamp(DAY, tz="UTC")].groupby("user_id"):
        others = [item for item in rng.permutation(items) if item not in taken[user]][:OTHERS]
        rows += [(user, item) for item in (*future["item_id"], *others)]
    pd.DataFrame(rows, columns=["user_id", "item_id"]).sample(frac=1, random_state=0).to_parquet(tmp_path / "candidates.parquet")
    settings = small(
        planted,
        tmp_path / "work",
        shop={"events": str(tmp_path / "events.parquet")},
        signals={"factors": 16, "als_iterations": 5, "als_l2": 10.0, "als_alpha": 2.0},
        candidates={"per_user": PROPOSED},
        model={"hidden": [64, 32]},
        train={"epochs": 8},
        window={"cutoffs": 5, "history_days": 120},
        rank={"candidates": str(tmp_path / "candidates.parquet")},
    )
    state = shop_state(open_shop(settings, as_of=DAY), end=END, as_of=DAY)
    assert state.settings.rank.allow_repeats is False
    trained = train_shop(state, as_of=DAY)
    days = [date.fromisoformat(day) for day in trained.bundle.about["window"]["cutoffs"]]
    users = sum(state.dataset.contents.users_wanting(day) for day in days)
    assert trained.examples["candidates"] > 1.5 * PROPOSED * users  # they look like the given ones, not like what is proposed
    scored = [int(json.loads(path.read_text())["rows"]) for path in (tmp_path / "work").glob("calibrate-*/receipts/*.json")]
    assert sum(scored) > 1.5 * PROPOSED * state.dataset.contents.users_before(days[-1])
    result = measure(state, trained.bundle, as_of=DAY, end=END)
    best = best_baselines(result)["all"]
    assert best["baseline"] in ("neighbours", "factors")
    assert best["low"] > 0
    assert result["models"][OURS]["all"]["ndcg@10"] > 0.3  # of random order it is about .1


def test_a_model_that_learned_from_proposals_does_not_rank_what_is_given_nor_the_other_way(tmp_path: Path) -> None:
    sections = {"shop": {"events": "events"}, "rank": {"allow_repeats": True}}
    proposed = Settings.model_validate(sections)
    given = Settings.model_validate({**sections, "rank": {"allow_repeats": True, "candidates": "mine"}})
    for learned, ranks, said in (
        (proposed, given, "learned to rank what the sources propose, rank.candidates has it rank given candidates. Train again."),
        (given, proposed, "learned to rank given candidates, rank.candidates has it rank what the sources propose. Train again."),
    ):
        made = Bundle(
            tmp_path, FeatureSpec((), (), (), (), {}), {"settings": learned.model_dump(mode="json"), "decided": {"als": [10.0, 2.0]}}
        )
        check_bundle(made, learned)
        with pytest.raises(BundleError, match=said):
            check_bundle(made, ranks)
