"""What the stages after ingest share: the shop as read, its own candidates, the signals as of a date, the lists of its rules.

Each function is one stage: its folder is named by the digest of what goes in, and a unit with a receipt is not done again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.config import Settings
from recsys.data.catalog import Catalog, item_vocabularies
from recsys.data.dataset import ShopDataset
from recsys.data.inputs import log_files
from recsys.data.shop import ShopInputs
from recsys.data.types import midnight
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.hashing import mix, row_hashes, sampled, stable_hash
from recsys.pipelines.daily import Daily, read_daily
from recsys.pipelines.ingest import ingest
from recsys.pipelines.past import choose_als, decide_repeats, history_of, share_of
from recsys.pipelines.supplied import make_supplied
from recsys.retrieval import rules, supplied
from recsys.retrieval import signals as signals_module
from recsys.retrieval.collaborative import Als
from recsys.retrieval.signals import Signals
from recsys.retrieval.supplied import Supplied
from recsys.schema import AVAILABLE, DAY_US, ITEM_ID, USER_ID
from recsys.storage import digest

SMALL_LISTS_ROWS = 1_000_000  # of ids that rules list: read in less time than an actor starts


@dataclass(frozen=True)
class ShopState:
    """What the stages after ingest share: the shop as read, and where signals and examples of its dates lie."""

    inputs: ShopInputs
    dataset: ShopDataset
    signals: Stage
    rules: Stage
    """The lists of ids that rules name, as `Rules` reads them."""
    examples: Stage
    supplied: Stage | None
    """The shop's own candidates by shard; None where the sources propose."""
    daily: Daily | None
    """Facts of items by day; None where the shop tells none."""
    als: Als
    """What ALS weighs in models that learn now; one that learned before scores under its own."""
    vocabularies: dict[str, tuple[str, ...]]

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.inputs.settings

    def facts_about(self, day: date) -> int | None:
        """What tells the facts of days about a date from others; None where the shop tells none."""
        return self.daily.around(day, self.settings.window.label_days) if self.daily else None

    def lists_of(self, day: date) -> dict[str, Any]:
        """What lists as of a day are made of beside a bundle, as a stage's inputs."""
        return {
            "ingest": self.dataset.digest,
            "signals": self.signals.digest,
            "examples": self.examples.digest,
            "supplied": self.supplied.digest if self.supplied else None,
            "daily": self.facts_about(day),
            "rules": self.rules.digest,
            "diversity": self.settings.rank.diversity,
            "seed": self.settings.run.seed,
        }


def shop_state(inputs: ShopInputs, *, end: date, as_of: date | None = None) -> ShopState:
    """The shop's events before `end` as histories, and the stages that start from them.

    Args:
        as_of: the day before which the shop's past decides what its settings leave open; absent, end.
    """
    log_files(inputs.events, inputs.items, inputs.users, inputs.supplied, inputs.daily, *inputs.lists.values())
    shop = ingest(inputs, end=end)
    inputs = decide_repeats(inputs, shop, as_of=as_of or end)
    settings = inputs.settings
    given = make_supplied(inputs, shop)
    daily = read_daily(inputs)
    als = choose_als(inputs, shop, as_of=as_of or end)
    vocabularies = item_vocabularies(shop.catalog(), settings.features) | shop.user_vocabularies
    signals = Stage(
        settings.run.work,
        "signals",
        {
            "ids": [str(inputs.user_id), str(inputs.item_id)],
            "signals": settings.signals,
            "history_days": settings.window.history_days,
            "unseen": _most_unseen(settings),
            "groups": settings.features.user_categorical,
            "looks": settings.shop.looks,
            "daily": [settings.features.daily_numeric, settings.window.label_days] if daily else None,
            "seed": settings.run.seed,
        },
        lasting=True,
    )
    labelled = Stage(
        settings.run.work,
        "examples",
        {
            "signals": signals.digest,
            "features": settings.features,
            "vocabularies": digest(vocabularies),
            "candidates": settings.candidates,
            "examples": settings.examples,
            "label_days": settings.window.label_days,
            "allow_repeats": settings.rank.repeats,
            "look_kinds": settings.shop.look_kinds,
            "dislikes": settings.shop.least_value is not None,
            "rules": rules.in_training(settings),
            "supplied": given.digest if given else None,
            "group": settings.train.even_groups,
            "shards": len(shop.shards),
            "seed": settings.run.seed,
        },
        lasting=True,
    )
    lists = Stage(settings.run.work, "rules", {"ingest": shop.digest, "rules": settings.rules, "lists": inputs.list_identity()})
    return ShopState(inputs, shop, signals, lists, labelled, given, daily, als, vocabularies)


def supplied_of(state: ShopState, shard: str) -> Supplied | None:
    """The shard's given candidates; None where the sources propose."""
    return None if state.supplied is None else supplied.load(state.supplied.path / f"users-{shard}.npz")


# Signals ------------------------------------------------------------------------------------------------------------------------


def fit_signals(state: ShopState, days: Sequence[date], *, lists: bool = False, als: Als | None = None) -> list[Path]:
    """The files of the signals as of each day, made where they are not there; `signals.load` takes them.

    A unit is named by all that its signals are made of: those of a night that knew more, later, serve as well.

    Args:
        lists: they are for lists, so given candidates must be among the active items.
        als: what ALS weighs; absent, as in models that learn now.
    """
    supplied = lists and state.supplied is not None
    unseen = _content(state.dataset.catalog().table, [AVAILABLE]) if _most_unseen(state.settings) else None
    units: dict[str, dict[str, Any]] = {}
    for day in days:
        made_of = {**history_of(state.settings, state.dataset.contents, day, end=day), "als": als or state.als}
        made_of |= {"supplied": state.supplied.digest if supplied and state.supplied else None}
        made_of["users"] = state.dataset.contents.known_before(day) if state.settings.features.user_categorical else None
        made_of["available"] = unseen
        made_of["daily"] = state.facts_about(day)
        units[f"{day}-{digest(made_of)}"] = {"cutoff": day.isoformat(), "supplied": supplied, "als": als or state.als}
    run_units(state.signals, units, _signals_task, state, state.signals.path, unit="cut-offs")
    return [state.signals.path / name for name in units]


def _content(items: pa.Table, columns: Sequence[str]) -> int:
    """The sum of the hashes of these columns of items of a catalog."""
    return int(row_hashes(items.select([ITEM_ID, *columns])).sum())


def _vectors(catalog: Catalog, items: np.ndarray) -> list[str]:
    """Digests of the vectors of these items, of each column."""
    return [hashlib.sha256(vectors[items].tobytes()).hexdigest() for vectors in catalog.vectors.values()]


def _signals_task(state: ShopState, folder: Path) -> Task:
    settings, shop = state.settings, state.dataset
    catalog = shop.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        day = date.fromisoformat(unit["cutoff"])
        cutoff = midnight(day)
        share = share_of(shop.contents.users_before(day), settings.signals.max_users)

        unseen = np.flatnonzero(catalog.available)
        hashes = stable_hash(catalog.item_id.to_numpy(zero_copy_only=False))[unseen]

        def shards() -> Any:
            for shard in shop.shards:
                histories = shop.histories(shard)
                yield histories, sampled(stable_hash(histories.users.column(USER_ID).to_numpy()), share)

        fitted = signals_module.fit(
            shards(),
            items=shop.rows["catalog"],
            start=cutoff - settings.window.history_days * DAY_US,
            cutoff=cutoff,
            settings=settings.signals,
            als=Als(*unit["als"]),
            seed=settings.run.seed,
            looks=settings.shop.looks,
            extra=_supplied_items(state) if unit["supplied"] else None,
            groups=settings.features.user_categorical,
            unseen=unseen[np.argsort(mix(hashes ^ np.int64(cutoff).astype(np.uint64)), kind="stable")],
            most_unseen=_most_unseen(settings),
            daily=state.daily.as_of(day, settings.window.label_days, catalog) if state.daily else None,
        )
        fitted.save(folder / name, catalog)
        return {"items": len(fitted.items), "neighbours": len(fitted.neighbour_items)}

    return task


def _most_unseen(settings: Settings) -> int:
    """Items nobody bought that are candidates all the same; without a source that proposes them, none."""
    limits, features = settings.candidates, settings.features
    proposed = (limits.content and features.item_categorical) or (limits.vectors and features.item_vectors)
    return limits.unseen if proposed else 0


def _supplied_items(state: ShopState) -> np.ndarray:
    """int32: the codes of all given items."""
    found = (supplied_of(state, shard) for shard in state.dataset.shards)
    return np.unique(np.concatenate([np.unique(one.item) for one in found if one is not None]))


def read_signals(state: ShopState, cutoff: date, *, lists: bool = False, als: Als | None = None) -> Signals:
    """The signals as of the cutoff, made if they are not there; `lists` and `als` as in `fit_signals`."""
    (path,) = fit_signals(state, [cutoff], lists=lists, als=als)
    return signals_module.load(path, state.dataset.catalog())


def examples_of(state: ShopState, days: Sequence[date]) -> dict[date, str]:
    """The names of the examples as of each day: everything that is in them, so that examples of an earlier night serve as well."""
    settings, contents, catalog = state.settings, state.dataset.contents, state.dataset.catalog()
    columns = [field.name for field in state.inputs.item_fields()]
    names: dict[date, str] = {}
    for day, path in zip(days, fit_signals(state, days), strict=True):
        end = day + timedelta(days=settings.window.label_days)
        made_of = {
            "signals": path.name,
            **history_of(settings, contents, day, end=end),
            "users": contents.known_before(end),
            "items": _content(catalog.table.take(signals_module.active_items(path, catalog)), columns),
            "vectors": _vectors(catalog, signals_module.active_items(path, catalog)),
        }
        names[day] = f"{day}-{digest(made_of)}"
    return names


# Rules --------------------------------------------------------------------------------------------------------------------------


def make_lists(state: ShopState) -> Path:
    """The folder of the rules' lists of ids; a list is a unit."""
    lists = state.inputs.lists
    here = sum(source.rows for source in lists.values()) <= SMALL_LISTS_ROWS
    run_units(state.rules, {name: {} for name in lists}, _list_task, state, unit="lists", here=here)
    return state.rules.path


def _list_task(state: ShopState) -> Task:
    inputs, catalog = state.inputs, state.dataset.catalog()

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        return supplied.write_list(
            state.rules.path / f"{name}.npy",
            inputs.lists[name],
            what=name.rpartition("-")[2],
            columns=inputs.settings.shop.columns,
            types=(inputs.user_id, inputs.item_id),
            catalog=catalog,
            key=inputs.key,
        )

    return task
