"""Why an item stands where it stands on a user's list, or is not on it: rules, sources, how far away, and what would change it.

The user's candidates are made again as of the night, and scored by the model that scored it. An item that no source proposed is scored
beside them, so that it has a place too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import BundleError, ConfigError
from recsys.features.candidate_features import Featurizer
from recsys.features.spec import FeatureSpec, ModelInputs
from recsys.pipelines.inspect import find_user
from recsys.pipelines.past import als_of
from recsys.pipelines.score import check_bundle, scoring
from recsys.pipelines.signals import ShopState, make_lists, read_signals
from recsys.publishing.table import PublishedNight, read_night
from recsys.ranking.attribution import attribute, in_words
from recsys.ranking.bundle import Bundle
from recsys.ranking.recommend import check_inputs, listed, score_users
from recsys.ranking.scorer import Scorer, chances
from recsys.ranking.table_rows import Stamp, recommendations
from recsys.retrieval.candidates import NOT_FEATURES, Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.schema import ITEM_ID, RANK, REASON

VALUES = 64  # of the user's other candidates that one input is tried at


@dataclass(frozen=True)
class Changed:
    """One input, at another value, with which the item would be on the other side of the list's end."""

    name: str
    now: str
    then: str
    apart: float
    """Between the two, in standard deviations of the rows that the model learned from."""


@dataclass(frozen=True)
class Explained:
    """An item and a user on a night."""

    user_id: str | int
    item_id: str | int
    name: str
    night: PublishedNight
    rank: int | None
    """On the published list; None where it is not on it."""
    reason: str | None
    """Of the row, in words; None where there is none."""
    rule: str | None
    """The first rule that forbids the item to the user."""
    known: bool
    """The model stands behind the user's list; else it is what is popular, and nothing below is there."""
    active: bool
    """Somebody wanted it within the history, or it is one of the unseen items of the night; else nothing below is there."""
    proposed: dict[str, int]
    """Source -> the item's place among what it proposed, from 1; empty where none did."""
    place: int
    """By the model's raw output among the user's candidates, with this item among them, from 1."""
    candidates: int
    score: float
    """The chance of a purchase within window.label_days."""
    end: float
    """The score of the last row of the list by scores alone; NaN where there are fewer candidates than the list has rows."""
    largest: list[tuple[str, str, float]]
    """Name, value in words and contribution to the raw output of the inputs that add or take most, largest first."""
    changed: Changed | None
    """The nearest value of one input, of those that the user's other candidates have, that takes the item onto the list, or off it."""


def explain(
    state: ShopState, bundle: Bundle, user_id: str | int, item_id: str | int, *, night: PublishedNight, largest: int = 5
) -> Explained:
    """Why the item is at its place for the user, or at none.

    Args:
        state: the shop as of the night.
        bundle: the model that scored the night.

    Raises:
        ConfigError: no such user or item as of the night.
        BundleError: another bundle than the night's, or made under other settings.
    """
    settings = state.settings
    catalog = state.dataset.catalog()
    code = pc.index(catalog.item_id, pa.scalar(item_id, catalog.item_id.type)).as_py()
    if code < 0:
        raise ConfigError(f"--item {item_id}: no such item in the shop before {night.as_of}. Check the id.")
    histories, supplied = find_user(state, user_id, night.as_of)
    featurizer, scorer = _as_of(state, bundle, night)
    rows = read_night(settings.table.path, as_of=night.as_of, user_id=user_id, storage_options=settings.shop.storage_options)
    mine = rows.filter(pc.equal(rows.column(ITEM_ID), pa.scalar(item_id, rows.column(ITEM_ID).type)))
    ((_, users, candidates, inputs),) = featurizer(histories, supplied)
    check_inputs(inputs, bundle)
    position = int(users.signals.position[code])
    barred = int(users.barred.of(np.zeros(1, np.int64), np.array([position]))[0]) if position >= 0 else 0
    about = Explained(
        user_id,
        item_id,
        catalog.names(np.array([code]))[0],
        night,
        rank=mine.column(RANK)[0].as_py() if mine.num_rows else None,
        reason=mine.column(REASON)[0].as_py() if mine.num_rows else None,
        rule=users.rules.names[barred - 1] if barred else "available" if not catalog.available[code] else None,
        known=bool(users.known[0]),
        active=position >= 0,
        proposed={},
        place=0,
        candidates=len(candidates),
        score=np.nan,
        end=np.nan,
        largest=[],
        changed=None,
    )
    if not about.known or not about.active:
        return about
    return _placed(about, position, users, candidates, inputs, featurizer, scorer, bundle, k=settings.rank.k, largest=largest)


def list_of(state: ShopState, bundle: Bundle, user_id: str | int, *, night: PublishedNight) -> pa.Table:
    """The user's rows as that night makes them, with `recommendations_schema`: scored here and now.

    Raises:
        As `explain`.
    """
    settings = state.settings
    histories, supplied = find_user(state, user_id, night.as_of)
    featurizer, scorer = _as_of(state, bundle, night)
    (batch,) = score_users(histories, featurizer, scorer, supplied)
    stamp = Stamp(night.as_of, night.model_version, night.run_id)
    return recommendations(batch, listed(batch, settings.rank).ranked, stamp, chance=chances(bundle))


def _as_of(state: ShopState, bundle: Bundle, night: PublishedNight) -> tuple[Featurizer, Scorer]:
    """What scored the night.

    Raises:
        BundleError: another bundle than the night's, or made under other settings.
    """
    if bundle.model_version != night.model_version:
        raise BundleError(
            f"{bundle.folder}: must be the model that scored the night of {night.as_of}, {night.model_version}, got "
            f"{bundle.model_version}. Pass that one."
        )
    check_bundle(bundle, state.settings)
    signals = read_signals(state, night.as_of, lists=True, als=als_of(bundle.about))
    return scoring(state, (str(bundle.folder), "cpu"), signals, make_lists(state))


def _placed(
    about: Explained,
    position: int,
    users: RuledUsers,
    candidates: Candidates,
    inputs: ModelInputs,
    featurizer: Featurizer,
    scorer: Scorer,
    bundle: Bundle,
    *,
    k: int,
    largest: int,
) -> Explained:
    """With what the sources and the model say of the item beside the user's candidates."""
    proposed: dict[str, int] = {}
    found = np.flatnonzero(candidates.item == position)
    if len(found):
        others = np.arange(len(candidates)) != found[0]
        dense, codes = inputs.dense[found], inputs.codes[found]
        proposed = {name: int(rank) for name, rank in zip(candidates.names, candidates.rank[found[0]], strict=True) if rank}
    else:
        others = np.ones(len(candidates), bool)
        alone = _alone(candidates, position, users, featurizer)
        dense, codes = alone.dense, alone.codes
    raw = scorer(np.concatenate([dense, inputs.dense[others]]), np.concatenate([codes, inputs.codes[others]]))
    score = chances(bundle)(raw, np.repeat(users.activity[:1], len(raw)))
    ahead = np.sort(raw[1:])[::-1]
    added = attribute(bundle, dense, codes)
    words = in_words(bundle.spec, dense[0], codes[0])
    order = np.argsort(-np.abs(added.added[0]), kind="stable")[:largest].tolist()
    return replace(
        about,
        proposed=proposed,
        place=1 + int((raw[1:] > raw[0]).sum()),
        candidates=len(raw),
        score=float(score[0]),
        end=float(np.sort(score[1:])[::-1][k - 1]) if len(ahead) >= k else np.nan,
        largest=[(added.names[number], words[number], float(added.added[0, number])) for number in order],
        changed=nearest(bundle.spec, scorer, dense[0], codes[0], inputs.dense[others], border=float(ahead[k - 1]), raw=float(raw[0]))
        if len(ahead) >= k
        else None,
    )


def _alone(candidates: Candidates, position: int, users: RuledUsers, featurizer: Featurizer) -> ModelInputs:
    """The inputs of an item that no source proposed to the only user."""
    row, item = np.zeros(1, np.int64), np.array([position], np.int64)
    sources = {source.name: source for source, _ in featurizer.sources}
    score = np.full((1, len(candidates.names)), np.nan, np.float32)
    for place, name in enumerate(candidates.names):
        if name in sources:
            score[:, place] = sources[name].scores(users, row, item)
    one = Candidates(candidates.names, row, item, np.zeros((1, len(candidates.names)), np.int32), score)
    return featurizer.inputs(one, users)


def nearest(
    spec: FeatureSpec,
    scorer: Callable[[np.ndarray, np.ndarray], np.ndarray],
    dense: np.ndarray,
    codes: np.ndarray,
    others: np.ndarray,
    *,
    border: float,
    raw: float,
) -> Changed | None:
    """The smallest change of one number, to a value that another candidate has, that takes the raw output across the border.

    A counterfactual in the sense of Wachter, Mittelstadt, Russell 2017, of one input and among values that occur.

    Args:
        dense, codes: (F), (C) of the item.
        others: float32 (N, F) of the user's other candidates.
        border: raw output of the last row of the list.
    """
    tried: list[np.ndarray] = []
    what: list[tuple[int, float]] = []
    here = spec.normalise(dense[None])[0]
    for number, name in enumerate(spec.dense):
        if name in NOT_FEATURES:
            continue
        values = np.unique(others[:, number][~np.isnan(others[:, number])])
        for value in values[np.unique(np.linspace(0, max(len(values) - 1, 0), min(VALUES, len(values))).astype(int))].tolist():
            if value != dense[number]:
                other = dense.copy()
                other[number] = value
                tried.append(other)
                what.append((number, value))
    if not tried:
        return None
    rows = np.stack(tried)
    crossed = scorer(rows, np.repeat(codes[None], len(rows), axis=0)) > border
    there = np.flatnonzero(crossed != (raw > border))
    if not len(there):
        return None
    apart = np.abs(spec.normalise(rows[there]) - here).sum(axis=1)
    best = int(there[np.argmin(apart)])
    number, value = what[best]
    now = "unknown" if np.isnan(dense[number]) else f"{dense[number]:.3g}"
    return Changed(spec.dense[number], now, f"{value:.3g}", float(apart.min()))
