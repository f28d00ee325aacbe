"""What a shop's own past decides where its settings leave it open: whether items may be repeated, and what ALS weighs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from recsys.config import Settings
from recsys.data.contents import Contents
from recsys.data.dataset import ShopDataset
from recsys.data.label_windows import label_windows
from recsys.data.shop import ShopInputs
from recsys.data.types import midnight
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.hashing import mix, sampled, stable_hash
from recsys.retrieval.collaborative import ALS_CHOICES, LOOK_CHOICES, Als, als_quality, evidence_of, look_weights
from recsys.retrieval.signals import ItemSums
from recsys.schema import DAY_US, USER_ID
from recsys.storage import digest

LEAST_REPEATS = 0.01  # of purchases: where fewer are of an item bought before, a place in the list for one is a place lost
LEAST_USERS = 30  # who want something new: fewer tell nothing of a shop
MOST_USERS = 5_000  # whose lists are judged, about: more change no choice
JUDGED = np.uint64(0xD1B54A32D192ED03)  # turns the hashes of users, so that others are judged than are tested elsewhere
SMALL_EVENTS = 300_000  # fitted, or ranked again input by input, in less time than an actor starts


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
    """What ALS weighs: as set, else that of ALS_CHOICES with the best NDCG@10 of lists of new items, by ALS alone; then, of a shop
    with looks, that of LOOK_CHOICES with the best of lists of what the user had not even looked at.

    Judged on the last label window that ends label_days before as_of or earlier: a model is tested on what comes after it. A choice is
    a unit, and serves until another window is full.
    """
    settings, window = inputs.settings, inputs.settings.window
    l2, alpha, looks = settings.signals.als_l2, settings.signals.als_alpha, settings.signals.look_weight
    als = ALS_CHOICES[0] if l2 is None or alpha is None else Als(l2, alpha)
    open_looks = looks is None and settings.shop.looks > 0 and shop.rows["events kept"] > shop.rows["events wanted"]
    if (l2 is not None or alpha is not None) and not open_looks:
        return als._replace(looks=looks or 0.0)
    days = label_windows(window, as_of=as_of - timedelta(days=window.label_days), first=shop.first)
    if not days:
        log.info("shop: too young to tell what ALS should weigh: als_l2 %g, als_alpha %g", als.l2, als.alpha)
        return als._replace(looks=looks or 0.0)
    if l2 is None or alpha is None:
        choices = [one._replace(looks=looks or 0.0) for one in ALS_CHOICES]
        als = _best(inputs, shop, days[-1], choices, unseen=False, told="als_l2 %g, als_alpha %g, look_weight %g")
    if open_looks:
        choices = [als._replace(looks=one) for one in LOOK_CHOICES]
        als = _best(inputs, shop, days[-1], choices, unseen=True, told="with als_l2 %g, als_alpha %g look_weight %g")
    return als


def _best(inputs: ShopInputs, shop: ShopDataset, day: date, choices: Sequence[Als], *, unseen: bool, told: str) -> Als:
    """The choice whose lists as of the day were the best, the first of equals; of a shop with too few users to tell the first of all.

    Args:
        unseen: lists are of what the user had neither bought nor looked at; else of what the user had not bought.
        told: the choice, for the log.
    """
    settings, window = inputs.settings, inputs.settings.window
    made_of = history_of(settings, shop.contents, day, end=day + timedelta(days=window.label_days))
    stage = Stage(
        settings.run.work,
        "als",
        {
            "ids": [str(inputs.user_id), str(inputs.item_id)],
            "signals": settings.signals,
            "window": [window.history_days, window.label_days],
            "looks": settings.shop.looks,
            "seed": settings.run.seed,
        },
        lasting=True,
    )
    asked = digest({**made_of, "choices": choices, "unseen": unseen})
    units = {f"{day}-{asked}-{number}": {"cutoff": day.isoformat(), "als": als, "unseen": unseen} for number, als in enumerate(choices)}
    here = inputs.events.rows <= SMALL_EVENTS
    receipts = [*run_units(stage, units, _als_task, settings, shop, unit="choices", label="als", here=here).values()]
    best = _chosen(receipts)
    if best is None:
        log.info(f"shop: %d users wanted something new from %s on: {told}", receipts[0]["users"], day, *choices[0])
        return choices[0]
    of = "items not even looked at" if unseen else "new items"
    figures = (receipts[best]["ndcg"], of, day, *choices[0], receipts[0]["ndcg"])
    log.info(f"shop: {told}: NDCG@10 %.4f of %s from %s on, where %g, %g and %g have %.4f", *choices[best], *figures)
    return choices[best]


def _chosen(receipts: Sequence[Receipt]) -> int | None:
    """The place of the first of the best; None where too few users tell."""
    return int(np.argmax([one["ndcg"] for one in receipts])) if receipts[0]["users"] >= LEAST_USERS else None


class _Past(NamedTuple):
    """What users had done as of a day, and what some of them wanted after it; (U, J) matrices of items that had a buyer."""

    days: sp.csr_matrix
    """On how many days the user had bought the item."""
    looks: list[sp.csr_matrix]
    """Of each kind: on how many days the user had looked at it."""
    weights: np.ndarray
    """float64 (K): what looks of each kind weigh beside those of the weightiest."""
    wanted: sp.csr_matrix
    """Not zero where the user wanted the item after the day; of about MOST_USERS users."""


def _als_task(settings: Settings, shop: ShopDataset) -> Task:
    read: dict[str, _Past] = {}

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        if not read:
            read["all"] = _past(settings, shop, date.fromisoformat(unit["cutoff"]))
        past, als = read["all"], Als(*unit["als"])
        evidence = evidence_of(past.days, past.looks, als.looks * past.weights, bought=np.ones(past.days.shape[1], bool))
        known = sum(past.looks, past.days) if unit["unseen"] else past.days
        wanted = past.wanted - past.wanted.multiply(known > 0)
        wanted.eliminate_zeros()
        there = np.diff(known.indptr) > 0
        with threadpool_limits(1, "blas"):  # one choice is tried on one CPU
            found = als_quality(evidence[there], known[there], wanted.tocsr()[there], settings.signals, als, seed=settings.run.seed)
        return {"users": len(found), "ndcg": float(found.mean()) if len(found) else 0.0}

    return task


def _past(settings: Settings, shop: ShopDataset, day: date) -> _Past:
    """As of a day, of the users that signals are fitted on.

    Rows are in user_id order, so that nothing depends on how users are cut into shards.
    """
    cutoff = midnight(day)
    start, end = cutoff - settings.window.history_days * DAY_US, cutoff + settings.window.label_days * DAY_US
    fitted = share_of(shop.contents.users_before(day), settings.signals.max_users)
    judged = share_of(shop.contents.users_wanting(day), MOST_USERS)
    sums = ItemSums(shop.rows["catalog"], [settings.window.history_days], looks=settings.shop.looks)
    before, after, ids = list[sp.csr_matrix](), list[sp.csr_matrix](), list[pa.Array]()
    looks: list[list[sp.csr_matrix]] = [[] for _ in range(settings.shop.looks)]
    for shard in shop.shards:
        histories = shop.histories(shard)
        hashes = stable_hash(histories.users.column(USER_ID).to_numpy())
        rows = np.flatnonzero(sampled(hashes, fitted))
        histories, hashes = histories.take(rows), hashes[rows]
        history = histories.between(start, cutoff)
        before.append(sums.add(history, cutoff=cutoff)[0])
        for number, one in enumerate(sums.add_looks(history, cutoff=cutoff)):
            looks[number].append(one)
        later = histories.between(cutoff, end)
        later = later.keep(later.wanted)
        kept = sampled(mix(hashes ^ JUDGED), judged)[later.user_row]
        pairs = np.unique(np.stack([later.user_row[kept].astype(np.int64), later.item[kept].astype(np.int64)]), axis=1)
        after.append(sp.csr_matrix((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), shape=before[-1].shape))
        ids.append(histories.users.column(USER_ID).combine_chunks())
    order = pc.sort_indices(pa.chunked_array(ids)).to_numpy()
    days, wanted, *kinds = (sp.vstack(parts, format="csr")[order] for parts in (before, after, *looks))
    bought = np.flatnonzero(np.asarray(days.sum(axis=0)).ravel() > 0)
    return _Past(days[:, bought], [one[:, bought] for one in kinds], look_weights(sums.look_rates()), wanted[:, bought])


def als_of(about: Mapping[str, Any]) -> Als:
    """What ALS weighed where a bundle learned, of its `about`: it scores under the same."""
    return Als(*about["decided"]["als"])
