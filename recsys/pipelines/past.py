"""What a shop's own past decides where its settings leave it open: whether items may be repeated, and what ALS weighs."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from recsys.config import Settings
from recsys.data.contents import Contents
from recsys.data.dataset import ShopDataset
from recsys.data.histories import purchase_days
from recsys.data.label_windows import label_windows
from recsys.data.shop import ShopInputs
from recsys.data.types import midnight
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.hashing import mix, sampled, stable_hash
from recsys.retrieval.collaborative import ALS_CHOICES, Als, als_quality
from recsys.schema import DAY_US, USER_ID
from recsys.storage import digest

LEAST_REPEATS = 0.01  # of purchases: where fewer are of an item bought before, a place in the list for one is a place lost
LEAST_USERS = 30  # who want something new: fewer tell nothing of a shop
MOST_USERS = 5_000  # whose lists are judged, about: more change no choice
JUDGED = np.uint64(0xD1B54A32D192ED03)  # turns the hashes of users, so that others are judged than are tested elsewhere
SMALL_EVENTS = 300_000  # fitted in less time than an actor starts


def decide_repeats(inputs: ShopInputs, shop: ShopDataset, *, as_of: date) -> ShopInputs:
    """The inputs with rank.allow_repeats set: as they stand, else by what was bought before as_of."""
    settings = inputs.settings
    if settings.rank.allow_repeats is not None:
        return inputs
    share = shop.contents.repeats_before(as_of)
    allowed = share >= LEAST_REPEATS
    told = f"{share:.1%}", as_of, "true" if allowed else "false"
    log.info("shop: %s of what was bought before %s had been bought on an earlier day: rank.allow_repeats is %s", *told)
    return replace(inputs, settings=settings.model_copy(update={"rank": settings.rank.model_copy(update={"allow_repeats": allowed})}))


def history_of(settings: Settings, contents: Contents, day: date, *, end: date) -> dict[str, Any]:
    """What the events of a day's history are, and those from then to the end; and the share of users that signals are fitted on."""
    start = date.fromordinal(max(1, day.toordinal() - settings.window.history_days))
    share = share_of(contents.users_before(day), settings.signals.max_users)
    return {"events": contents.of_days(start, day), "after": contents.of_days(day, end), "share": share}


def share_of(users: int, at_most: int) -> float:
    """The share of so many users that about `at_most` are; 1 where there are no more."""
    return min(1.0, at_most / max(users, 1))


# What ALS weighs ----------------------------------------------------------------------------------------------------------------


def choose_als(inputs: ShopInputs, shop: ShopDataset, *, as_of: date) -> Als:
    """What ALS weighs: as set, else that of ALS_CHOICES with the best NDCG@10 of lists of new items, by ALS alone.

    Judged on the last label window that ends label_days before as_of or earlier: a model is tested on what comes after it. A choice is
    a unit, and serves until another window is full.
    """
    settings, window = inputs.settings, inputs.settings.window
    if settings.signals.als_l2 is not None and settings.signals.als_alpha is not None:
        return Als(settings.signals.als_l2, settings.signals.als_alpha)
    days = label_windows(window, as_of=as_of - timedelta(days=window.label_days), first=shop.first)
    if not days:
        log.info("shop: too young to tell what ALS should weigh: als_l2 %g, als_alpha %g", *ALS_CHOICES[0])
        return ALS_CHOICES[0]
    day = days[-1]
    made_of = history_of(settings, shop.contents, day, end=day + timedelta(days=window.label_days))
    stage = Stage(
        settings.run.work,
        "als",
        {
            "ids": [str(inputs.user_id), str(inputs.item_id)],
            "signals": settings.signals,
            "window": [window.history_days, window.label_days],
            "seed": settings.run.seed,
        },
        lasting=True,
    )
    units = {f"{day}-{digest(made_of)}-{number}": {"cutoff": day.isoformat(), "als": als} for number, als in enumerate(ALS_CHOICES)}
    here = inputs.events.rows <= SMALL_EVENTS
    receipts = [*run_units(stage, units, _als_task, settings, shop, unit="choices", label="als", here=here).values()]
    return _chosen(receipts, day=day)


def _chosen(receipts: list[Receipt], *, day: date) -> Als:
    """The first of the best; of a shop with too few users to tell the first of all."""
    best = 0
    if receipts[0]["users"] >= LEAST_USERS:
        best = int(np.argmax([receipt["ndcg"] for receipt in receipts]))
        told = (*ALS_CHOICES[best], receipts[best]["ndcg"], day, *ALS_CHOICES[0], receipts[0]["ndcg"])
        log.info("shop: als_l2 %g, als_alpha %g: NDCG@10 %.4f of new items from %s on, where %g and %g have %.4f", *told)
    else:
        log.info("shop: %d users wanted something new from %s on: als_l2 %g, als_alpha %g", receipts[0]["users"], day, *ALS_CHOICES[0])
    return ALS_CHOICES[best]


def _als_task(settings: Settings, shop: ShopDataset) -> Task:
    read: dict[str, tuple[sp.csr_matrix, sp.csr_matrix]] = {}

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if not read:
            read["all"] = _purchases(settings, shop, date.fromisoformat(unit["cutoff"]))
        with threadpool_limits(1, "blas"):  # one choice is tried on one CPU
            found = als_quality(*read["all"], settings.signals, Als(*unit["als"]), seed=settings.run.seed)
        return {"users": len(found), "ndcg": float(found.mean()) if len(found) else 0.0}

    return task


def _purchases(settings: Settings, shop: ShopDataset, day: date) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(U, J) purchase days as of a day of the users that signals are fitted on, and what about MOST_USERS of them wanted after it that
    was new to them; of items that had a buyer.

    Rows are in user_id order, so that nothing depends on how users are cut into shards.
    """
    cutoff = midnight(day)
    start, end = cutoff - settings.window.history_days * DAY_US, cutoff + settings.window.label_days * DAY_US
    fitted = share_of(shop.contents.users_before(day), settings.signals.max_users)
    judged = share_of(shop.contents.users_wanting(day), MOST_USERS)
    items = shop.rows["catalog"]
    before, after, ids = list[sp.csr_matrix](), list[sp.csr_matrix](), list[pa.Array]()
    for shard in shop.shards:
        histories = shop.histories(shard)
        hashes = stable_hash(histories.users.column(USER_ID).to_numpy())
        rows = np.flatnonzero(sampled(hashes, fitted))
        histories, hashes = histories.take(rows), hashes[rows]
        size = (len(histories), items)
        user, item, _ = purchase_days(histories.between(start, cutoff), cutoff=cutoff)
        before.append(sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=size))
        later = histories.between(cutoff, end)
        later = later.keep(later.wanted)
        kept = sampled(mix(hashes ^ JUDGED), judged)[later.user_row]
        pairs = np.unique(np.stack([later.user_row[kept].astype(np.int64), later.item[kept].astype(np.int64)]), axis=1)
        wanted = sp.csr_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), shape=size)
        after.append(wanted - wanted.multiply(before[-1] > 0))
        ids.append(histories.users.column(USER_ID).combine_chunks())
    order = pc.sort_indices(pa.chunked_array(ids)).to_numpy()
    purchases, wanted = (sp.vstack(parts, format="csr")[order] for parts in (before, after))
    bought = np.flatnonzero(np.asarray(purchases.sum(axis=0)).ravel() > 0)
    purchases, wanted = purchases[:, bought], wanted[:, bought].tocsr()
    wanted.eliminate_zeros()
    known = np.diff(purchases.indptr) > 0
    return purchases[known], wanted[known]


def als_of(about: Mapping[str, Any]) -> Als:
    """What ALS weighed where a bundle learned, of its `about`: it scores under the same."""
    return Als(*about["decided"]["als"])
