"""What the stages after ingest share: the shop as read, its own candidates, the signals as of a date, the lists of its rules.

Each function is one stage: its folder is named by the digest of what goes in, and a unit with a receipt is not done again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from recsys.config import Settings
from recsys.data.catalog import item_vocabularies
from recsys.data.dataset import ShopDataset
from recsys.data.inputs import log_files
from recsys.data.shop import ShopInputs
from recsys.data.types import midnight
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.hashing import mix, sampled, stable_hash
from recsys.pipelines.ingest import ingest, make_supplied
from recsys.retrieval import rules, supplied
from recsys.retrieval import signals as signals_module
from recsys.retrieval.signals import Signals
from recsys.retrieval.supplied import Supplied
from recsys.schema import DAY_US, USER_ID
from recsys.storage import digest, write_atomically

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
    vocabularies: dict[str, tuple[str, ...]]

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.inputs.settings


def shop_state(inputs: ShopInputs, *, end: date) -> ShopState:
    """The shop's events before `end` as histories, and the stages that start from them."""
    settings = inputs.settings
    log_files(inputs.events, inputs.items, inputs.users, inputs.supplied, *inputs.lists.values())
    shop = ingest(inputs, end=end)
    vocabularies = item_vocabularies(shop.catalog(), settings.features) | shop.user_vocabularies
    signals = Stage(
        settings.run.work,
        "signals",
        {
            "ingest": shop.digest,
            "signals": settings.signals,
            "history_days": settings.window.history_days,
            "unseen": _most_unseen(settings),
            "seed": settings.run.seed,
        },
    )
    labelled = Stage(
        settings.run.work,
        "examples",
        {
            "signals": signals.digest,
            "vocabularies": digest(vocabularies),
            "candidates": settings.candidates,
            "examples": settings.examples,
            "label_days": settings.window.label_days,
            "allow_repeats": settings.rank.allow_repeats,
            "rules": rules.in_training(settings),
            "seed": settings.run.seed,
        },
    )
    lists = Stage(settings.run.work, "rules", {"ingest": shop.digest, "rules": settings.rules, "lists": inputs.list_identity()})
    return ShopState(inputs, shop, signals, lists, labelled, make_supplied(inputs, shop), vocabularies)


def supplied_of(state: ShopState, shard: str) -> Supplied | None:
    """The shard's given candidates; None where the sources propose."""
    return None if state.supplied is None else supplied.load(state.supplied.path / f"users-{shard}.npz")


# Signals ------------------------------------------------------------------------------------------------------------------------


def fit_signals(state: ShopState, units: Mapping[str, Mapping[str, Any]]) -> None:
    """The signals as of each unit's cutoff."""
    run_units(state.signals, units, _signals_task, state, state.signals.path, unit="cut-offs")


def _signals_task(state: ShopState, folder: Path) -> Task:
    settings, shop = state.settings, state.dataset
    catalog = shop.catalog()
    share = share_of(shop, settings.signals.max_users)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        cutoff = midnight(date.fromisoformat(unit["cutoff"]))

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
            seed=settings.run.seed,
            extra=_supplied_items(state) if unit["supplied"] else None,
            groups=settings.features.user_categorical,
            unseen=unseen[np.argsort(mix(hashes ^ np.int64(cutoff).astype(np.uint64)), kind="stable")],
            most_unseen=_most_unseen(settings),
        )
        write_atomically(folder / f"{name}.npz", fitted.save)
        return {"items": len(fitted.items), "neighbours": len(fitted.neighbour_items)}

    return task


def share_of(shop: ShopDataset, users: int) -> float:
    """The share of the shop's users that about so many are; 1 where there are no more."""
    return min(1.0, users / max(shop.rows["users kept"], 1))


def _most_unseen(settings: Settings) -> int:
    """Items nobody bought that are candidates all the same; without the source that proposes them, none."""
    limits = settings.candidates
    return limits.unseen if limits.content and settings.features.item_categorical else 0


def _supplied_items(state: ShopState) -> np.ndarray:
    """int32: the codes of all given items."""
    found = (supplied_of(state, shard) for shard in state.dataset.shards)
    return np.unique(np.concatenate([np.unique(one.item) for one in found if one is not None]))


def read_signals(state: ShopState, cutoff: date, *, lists: bool = False) -> Signals:
    """The signals as of the cutoff, made if they are not there.

    Args:
        lists: they are for lists, so given candidates must be among the active items.
    """
    name, unit = cutoff.isoformat(), {"cutoff": cutoff.isoformat(), "supplied": False}
    if lists and state.supplied is not None:
        name, unit = f"{name}-{state.supplied.digest}", unit | {"supplied": True}
    fit_signals(state, {name: unit})
    return signals_module.load(state.signals.path / f"{name}.npz")


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
        )

    return task
