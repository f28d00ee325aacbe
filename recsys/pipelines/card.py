"""A model's card, beside its bundles in the registry: made once its test and the decision on it are known."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.types import midnight
from recsys.engine.progress import log
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units, share
from recsys.evaluation import backtest, card, importance
from recsys.hashing import stable_hash
from recsys.pipelines.champion import Chosen
from recsys.pipelines.past import SMALL_EVENTS, als_of
from recsys.pipelines.score import scoring
from recsys.pipelines.signals import ShopState, make_lists, read_signals, supplied_of
from recsys.ranking.bundle import Bundle
from recsys.ranking.registry import Registry
from recsys.retrieval.signals import Signals
from recsys.schema import USER_ID
from recsys.storage import load_arrays, save_arrays, write_atomically

USERS = 400  # whose lists are ranked anew for each input, about
NO_NOISE = "No noise hides a single person: neighbours, factors, popularity and weights are made of everybody's events as they are."


def write_card(state: ShopState, registry: Registry, chosen: Chosen, *, as_of: date) -> Path | None:
    """The card of tonight's challenger, CARD.json and CARD.html beside its bundles; None where no challenger was tested tonight."""
    if chosen.tested is None or chosen.metrics is None or chosen.decision is None:
        return None
    bundle = chosen.tested.bundle
    place = card_place(registry, bundle.model_version)
    if read_card(registry, bundle.model_version) is None:
        before = as_of - timedelta(days=state.settings.window.label_days)
        found = importances(state, bundle, as_of=before, end=as_of)
        told = card_of(state, registry, bundle, found, metrics=chosen.metrics, decision=asdict(chosen.decision))
        _keep(place, told)
    log.info("card: %s", place)
    return place


def _keep(place: Path, told: Mapping[str, Any]) -> None:
    html, text = card.render(told), json.dumps(told, indent=1) + "\n"
    write_atomically(place, lambda file: file.write_text(html, encoding="utf-8"))
    write_atomically(place.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))  # last: with it, both are there


def read_card(registry: Registry, version: str) -> dict[str, Any] | None:
    """A version's card, as of `card_of`; None where none was made."""
    file = card_place(registry, version).with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def card_place(registry: Registry, version: str) -> Path:
    """Where a version's page lies, or would."""
    return registry.path / "bundles" / version / "card.html"


def mark_cards(registry: Registry) -> None:
    """The cards of versions that were trained before people were erased, written anew to say so."""
    for version in registry.versions():
        told, erased = read_card(registry, version), registry.erased_since(version)[0]
        if told is not None and told["privacy"]["erased"] != erased:
            _keep(card_place(registry, version), {**told, "privacy": {**told["privacy"], "erased": erased}})


def card_of(
    state: ShopState,
    registry: Registry,
    bundle: Bundle,
    found: Mapping[str, Any],
    *,
    metrics: Mapping[str, Any],
    decision: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that is known of a bundle, as JSON holds it.

    Args:
        found: of `importances`.
        metrics: of `backtest.measure`, on days that the bundle does not know.
        decision: what was decided on it.
    """
    about = bundle.about
    return {
        "version": bundle.model_version,
        "stands": card.stands(decision),
        "decision": decision,
        "window": about["window"],
        "examples": about["metrics"]["examples"],
        "inputs": [*bundle.spec.dense, *dict.fromkeys(bundle.spec.codes)],
        "settings": {name: about["settings"][name] for name in ("model", "train", "features", "candidates")},
        "decided": about["decided"],
        "tested": metrics,
        "importance": found,
        "privacy": {
            "ids": "the shop's own" if state.inputs.key is None else f"digests by key {state.inputs.key.fingerprint}",
            "noise": _noise(about["metrics"].get("privacy")),
            "erased": registry.erased_since(bundle.model_version)[0],
        },
        "limits": _limits(metrics),
        "code": about["code"],
        "packages": about["packages"],
    }


def _noise(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return NO_NOISE
    return (
        f"Its weights are differentially private for whole users: epsilon {told['epsilon']:.2f} at delta {told['delta']:g}, over "
        f"{told['steps']:,} steps with noise {told['noise']:g} at a clip of {told['clip']:g}, each drawing a user with chance "
        f"{told['sampled']:.3g}. Neighbours, factors, popularity, scaling, words, calibration and these figures are made of "
        "everybody's events as they are."
    )


def _limits(metrics: Mapping[str, Any]) -> list[str]:
    """What the model cannot do, in sentences with the test's figures."""
    recall = metrics["candidates"]["recall"].get("all")
    calibration = metrics["calibration"]
    found = [
        f"It can only list what the sources propose: {recall:.0%} of what was bought." if recall is not None else "",
        "Users without purchases and looks get what is popular, without a score.",
        f"Its chances are wrong by {calibration['ece']['after']:.4f} on average." if calibration else "",
        "The test asks what users bought by themselves: what a list changes in that, only a trial with users can tell.",
        "Columns of items and users carry no dates: what they say now is taken as known on every day it learned from.",
    ]
    return [sentence for sentence in found if sentence]


def importances(state: ShopState, bundle: Bundle, *, as_of: date, end: date) -> dict[str, Any]:
    """What the bundle's lists as of a day lose without each input, as `importance.summary`; a shard is a unit.

    Of each shard the users with the lowest hashes who want something in [as_of, end), about USERS in all.
    """
    signals = read_signals(state, as_of, lists=True, als=als_of(bundle.about))
    told = {**state.lists_of(as_of), "model": bundle.model_version, "as_of": as_of.isoformat(), "end": end.isoformat()}
    stage = Stage(state.settings.run.work, "importance", told)
    units = {f"users-{shard}": {"shard": shard} for shard in state.dataset.shards}
    arguments = (state, str(bundle.folder), share(signals.arrays()), make_lists(state), as_of, end, stage.path)
    here = state.inputs.events.rows <= SMALL_EVENTS
    receipts = run_units(stage, units, _importance_task, *arguments, actors=state.settings.run.actors, unit="shards", here=here)
    return importance.summary(backtest.add(load_arrays(stage.path / f"{name}.npz") for name in receipts))


def _importance_task(
    state: ShopState, folder: str, arrays: dict[str, np.ndarray], lists: Path, as_of: date, end: date, out: Path
) -> Task:
    featurizer, scorer = scoring(state, (folder, "cpu"), Signals(**arrays), lists)
    times = {"start": midnight(as_of), "end": midnight(end)}
    told = {"seed": state.settings.run.seed, "diversity": state.settings.rank.diversity}

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        histories, only = state.dataset.histories(unit["shard"]), supplied_of(state, unit["shard"])
        wanting = np.flatnonzero(backtest.truth(histories, new=False, **times).count > 0)
        hashes = stable_hash(histories.users.column(USER_ID).to_numpy())[wanting]
        few = -(-USERS // len(state.dataset.shards))
        rows = np.sort(wanting[np.argsort(hashes, kind="stable")[:few]])
        histories, only = histories.take(rows), only.take(rows) if only is not None else None
        save_arrays(out / f"{name}.npz", **importance.count(histories, featurizer, scorer, only, **times, **told))
        return {"users": len(rows)}

    return task
