"""What a shop's own past decides about ALS: chosen on an earlier window, and kept by the model that learned under it."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.planted_shop import settings_text
from recsys import config
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.errors import BundleError
from recsys.pipelines import past
from recsys.pipelines.backtest import measure
from recsys.pipelines.score import check_bundle
from recsys.pipelines.signals import ShopState, read_signals, shop_state
from recsys.pipelines.train import train_shop
from recsys.retrieval.collaborative import ALS_CHOICES, LOOK_CHOICES, Als
from recsys.training.fit import Trained

DAY = date(2024, 6, 6)
LABEL = timedelta(days=14)

pytestmark = pytest.mark.ray


class Shop(NamedTuple):
    planted: synthetic.Planted
    settings: config.Settings
    state: ShopState
    trained: Trained


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, while_in_process: Callable[[], AbstractContextManager[None]]) -> Shop:
    folder = tmp_path_factory.mktemp("past")
    planted = synthetic.shop(folder, users=300, items=200, days=120, seed=5, end=DAY, events_per_user=60)
    text = settings_text(planted, folder).replace("[run]\n", "[run]\nshards = 2\n")
    quick = "[window]\nlabel_days = 14\n[signals]\nfactors = 32\n[model]\nhidden = [4]\n[train]\nepochs = 1\nworkers = 1\n"
    (folder / "shop.toml").write_text(text + quick)
    settings = config.load(folder / "shop.toml")
    with while_in_process():
        state = shop_state(open_shop(settings, as_of=DAY), end=DAY, as_of=DAY - LABEL)
        return Shop(planted, settings, state, train_shop(state, as_of=DAY - LABEL))


def by_hand(shop: Shop, als: Als, day: date) -> float:
    """NDCG@10 of new items by ALS alone, from the events themselves: every step written out."""
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    events = pq.read_table(shop.planted.events).to_pandas()
    days = events["ts"].dt.date
    history = events[days < day].assign(day=days).drop_duplicates(["user_id", "item_id", "day"])
    later = events[(days >= day) & (days < day + LABEL)]
    users, items = sorted(history["user_id"].unique()), sorted(history["item_id"].unique())
    row, column = np.searchsorted(users, history["user_id"]), np.searchsorted(items, history["item_id"])
    times = csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=(len(users), len(items)))
    damped = times.copy()
    damped.data = 1 + np.log(damped.data)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=32, regularization=als.l2, alpha=als.alpha, iterations=15, random_state=shop.settings.run.seed, num_threads=1
        )
        model.fit(damped, show_progress=False)
    vectors = np.asarray(model.item_factors, float)
    found = []
    for place, user in enumerate(users):
        mine = damped[place].toarray()[0]
        bought = {items[at] for at in np.flatnonzero(mine)}
        new = set(later[later["user_id"] == user]["item_id"]) - bought
        new &= set(items)
        if new:
            weight = np.where(mine > 0, als.alpha * mine, 1.0)
            left = vectors.T @ (weight[:, None] * vectors) + als.l2 * np.eye(32)
            scores = vectors @ np.linalg.solve(left, vectors.T @ (als.alpha * mine))
            listed = [items[at] for at in np.argsort(-scores, kind="stable") if items[at] not in bought][:10]
            gains = 1 / np.log2(np.arange(2, 12))
            found.append(sum(gain for gain, item in zip(gains, listed, strict=False) if item in new) / gains[: len(new)].sum())
    assert len(found) > 30
    return float(np.mean(found))


def receipts(shop: Shop) -> list[dict[str, Any]]:
    (folder,) = Path(shop.settings.run.work).glob("als-*")
    return [json.loads(path.read_text()) for path in sorted((folder / "receipts").glob("*.json"))]


def test_the_choice_is_what_ranked_best_before_the_test(shop: Shop) -> None:
    # as of DAY - 14 days: what a model is tested on from then on, and validates on before it, decides nothing
    day = date(2024, 4, 25)
    assert (DAY - LABEL - day) == 2 * LABEL
    told = receipts(shop)
    expected = [by_hand(shop, als, day) for als in ALS_CHOICES]
    np.testing.assert_allclose([one["ndcg"] for one in told], expected, atol=2e-3)
    assert shop.state.als == ALS_CHOICES[int(np.argmax([one["ndcg"] for one in told]))]
    assert shop.state.als != ALS_CHOICES[0]  # the first is no answer for all
    (path,) = Path(shop.settings.run.work).glob("als-*/receipts/*-0.json")
    assert path.name.startswith(day.isoformat())


def test_how_users_are_cut_into_shards_changes_nothing(
    shop: Shop, while_in_process: Callable[[], AbstractContextManager[None]]
) -> None:
    run = shop.settings.run.model_copy(update={"shards": 5})
    with while_in_process():
        other = shop_state(open_shop(shop.settings.model_copy(update={"run": run}), as_of=DAY), end=DAY, as_of=DAY - LABEL)
    assert (len(shop.state.dataset.shards), len(other.dataset.shards)) == (2, 5)
    mine, others = (past._past(shop.settings, one.dataset, date(2024, 4, 25)) for one in (shop.state, other))
    for ours, theirs in ((mine.days, others.days), (mine.wanted, others.wanted)):
        assert ours.nnz > 0
        assert (ours != theirs).nnz == 0


def test_a_model_scores_under_what_it_learned_under(shop: Shop, while_in_process: Callable[[], AbstractContextManager[None]]) -> None:
    bundle = shop.trained.bundle
    assert past.als_of(bundle.about) == shop.state.als
    assert Als(*read_signals(shop.state, DAY - LABEL).als_weights.tolist()) == shop.state.als
    with while_in_process():
        as_learned = measure(shop.state, bundle, as_of=DAY - LABEL, end=DAY)
        for path in Path(shop.settings.run.work).glob("backtest-*/receipts/*.json"):
            path.unlink()
        chosen_since = replace(shop.state, als=ALS_CHOICES[0])
        assert measure(chosen_since, bundle, as_of=DAY - LABEL, end=DAY) == as_learned
        other = read_signals(shop.state, DAY - LABEL, als=ALS_CHOICES[0])
    assert other.als == ALS_CHOICES[0]
    assert not np.array_equal(other.factors, read_signals(shop.state, DAY - LABEL).factors)


def test_what_is_set_is_taken_and_a_bundle_that_learned_otherwise_refused(shop: Shop) -> None:
    signals = shop.settings.signals.model_copy(update={"als_l2": 7.0, "als_alpha": 3.0})
    settings = shop.settings.model_copy(update={"signals": signals})
    inputs = replace(shop.state.inputs, settings=settings)
    assert past.choose_als(inputs, shop.state.dataset, as_of=DAY) == Als(7.0, 3.0)
    with pytest.raises(BundleError, match=r"was trained with signals.als_l2 = None, the settings say 7.0"):
        check_bundle(shop.trained.bundle, settings)
    check_bundle(shop.trained.bundle, shop.settings)
    older = replace(shop.trained.bundle, about={**shop.trained.bundle.about, "decided": {}})
    with pytest.raises(BundleError, match=r"does not say what ALS weighed, as of an older version. Train again."):
        check_bundle(older, shop.settings)


def test_looks_weigh_what_ranked_best_what_users_had_not_even_looked_at(
    tmp_path: Path, while_in_process: Callable[[], AbstractContextManager[None]]
) -> None:
    planted = synthetic.shop(tmp_path, users=300, items=200, days=120, seed=5, end=DAY, kind="views-and-carts")
    quick = "[window]\nlabel_days = 14\n[signals]\nfactors = 16\nals_l2 = 10\nals_alpha = 2\n"
    (tmp_path / "shop.toml").write_text(settings_text(planted, tmp_path) + quick)
    settings = config.load(tmp_path / "shop.toml")
    with while_in_process():
        state = shop_state(open_shop(settings, as_of=DAY), end=DAY, as_of=DAY - LABEL)
        told = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("work/als-*/receipts/*.json"))]
        chosen = LOOK_CHOICES[int(np.argmax([one["ndcg"] for one in told]))]
        assert state.als == Als(10.0, 2.0, chosen)
        assert chosen > 0  # what users look at in this shop is what they like
        here = past._past(settings, state.dataset, date(2024, 4, 25))
        task = past._als_task(settings, state.dataset)
        unit = {"cutoff": "2024-04-25", "als": [10.0, 2.0, 0.0], "unseen": True}
        unseen, new = (task("", unit | {"unseen": one})["users"] for one in (True, False))
        asked = settings.signals.model_copy(update={"look_weight": 0.25})
        inputs = replace(state.inputs, settings=settings.model_copy(update={"signals": asked}))
        assert past.choose_als(inputs, state.dataset, as_of=DAY) == Als(10.0, 2.0, 0.25)
    looked = sum(here.looks, here.days) > 0
    left = here.wanted - here.wanted.multiply(looked)
    assert (
        told[0]["users"] == unseen == int((left.getnnz(axis=1) > 0).sum() - (left[looked.getnnz(axis=1) == 0].getnnz(axis=1) > 0).sum())
    )
    assert 30 < unseen < new  # some wanted nothing new but what they had looked at
    assert here.weights.tolist()[0] == 0  # no event is of a kind without a name
    assert here.weights[2] == 1 > here.weights[1] > 0  # a purchase follows a cart more often than a view


def test_a_shop_too_young_to_tell_takes_the_first(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert past.choose_als(shop.state.inputs, shop.state.dataset, as_of=date(2024, 3, 20)) == ALS_CHOICES[0]
        assert "too young to tell what ALS should weigh" in caplog.text
        few = [{"users": 29, "ndcg": 0.1 * number} for number in range(len(ALS_CHOICES))]
        assert past._chosen(few) is None
        enough = [{"users": 30, "ndcg": 0.1 * number} for number in range(len(ALS_CHOICES))]
        assert past._chosen(enough) == len(ALS_CHOICES) - 1
        assert past._chosen([{**one, "ndcg": 0.1} for one in enough]) == 0
