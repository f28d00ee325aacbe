"""Profiles -> rows of the recommendation table: candidates, features, scores, ranks and reasons of a user in one call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa

from recsys import config, explain, tables
from recsys.bundle import Bundle
from recsys.candidates import Candidates
from recsys.errors import BundleError
from recsys.features import Describer, Inputs
from recsys.given import GIVEN, Given
from recsys.profiles import Profiles
from recsys.rank import Lost, Ranked, cut
from recsys.retrieval import Group, Popular
from recsys.score import Scorer
from recsys.tables import (
    AS_OF,
    ITEM_ID,
    MODEL_VERSION,
    RANK,
    REASON,
    REASON_CATEGORY,
    REASON_ITEM_ID,
    REASON_KIND,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER_ID,
)
from recsys.users import Users


@dataclass(frozen=True)
class Scored:
    """One batch of users with their candidates scored."""

    profiles: Profiles
    """With all their events, those after the cutoff too."""
    users: Users
    candidates: Candidates
    raw: np.ndarray
    """float32 (N): what lists are ordered by."""
    modelled: np.ndarray
    """bool (U): the model stands behind the user's rows; else the user bought nothing yet and gets what is popular."""


def scored(profiles: Profiles, describer: Describer, scorer: Scorer, given: Given | None = None) -> Iterator[Scored]:
    """The profiles' users batch by batch.

    Args:
        given: the users' only candidates; absent, the sources propose them.

    Raises:
        BundleError: the model was fed other columns than these.
    """
    for batch, users, candidates, inputs in describer(profiles, given):
        check_inputs(inputs, scorer.bundle)
        raw = scorer(inputs.dense, inputs.codes)
        modelled = np.diff(users.matrix.indptr) > 0
        candidates, popular = _fallback(candidates, modelled)
        yield Scored(batch, users, candidates, np.where(modelled[candidates.user_row], raw, popular), modelled)


def _fallback(candidates: Candidates, modelled: np.ndarray) -> tuple[Candidates, np.ndarray]:
    """What stands in for the model: float32 (N), the share of the user's group, or of everybody where there is no group; -1 for none.

    Where it is the group's, that is what the row's sources say.
    """
    popular = candidates.score[:, candidates.names.index(Popular.name)]
    if Group.name not in candidates.names:
        return candidates, np.nan_to_num(popular, nan=-1.0)
    place = candidates.names.index(Group.name)
    group = candidates.score[:, place]
    others = np.array([name not in (Group.name, GIVEN) for name in candidates.names])
    alike = (candidates.rank[:, place] > 0) & ~modelled[candidates.user_row]
    rank = np.where(alike[:, None] & others, 0, candidates.rank)
    return replace(candidates, rank=rank), np.nan_to_num(np.where(np.isfinite(group), group, popular), nan=-1.0)


def check_inputs(inputs: Inputs, bundle: Bundle) -> None:
    """Refuse inputs that the bundle's model was not fed.

    Raises:
        BundleError: a column differs, or their order.
    """
    fed = bundle.spec.dense
    if inputs.names != fed:
        odd = sorted(set(inputs.names) ^ set(fed)) or ["the order of columns"]
        raise BundleError(f"{bundle.folder}: made by other code: {odd[0]} differs from today's inputs. Train again.")


@dataclass(frozen=True)
class Listed:
    """The lists of one batch, and what the rules took from them; names are those of `Rules.names`."""

    ranked: Ranked
    dropped: dict[str, int]
    """Rule -> candidates that it kept out: pairs that a source would have proposed, or for a cap, rows that a list would have held."""
    short: dict[str, int]
    """Rule -> users with fewer than k rows from whom it took the most; of equals the first. "" where no rule took anything."""


def listed(batch: Scored, rank: config.Rank) -> Listed:
    """The batch's lists."""
    users, candidates, rules = batch.users, batch.candidates, batch.users.rules
    ranked, lost = cut_lists(batch, candidates, batch.raw, k=rank.k, diversity=rank.diversity)
    dropped = candidates.dropped.copy()
    numbers = np.array([cap.number for cap in rules.caps], np.int64)
    np.add.at(dropped, (candidates.user_row[lost.row], numbers[lost.cap]), 1)
    length = np.bincount(candidates.user_row[ranked.row], minlength=len(users))
    most = np.where(dropped.any(axis=1), dropped.argmax(axis=1), len(rules.names))[length < rank.k]
    short = np.bincount(most, minlength=len(rules.names) + 1)
    return Listed(
        ranked,
        dict(zip(rules.names, dropped.sum(axis=0).tolist(), strict=True)),
        {name: count for name, count in zip((*rules.names, ""), short.tolist(), strict=True) if count},
    )


def cut_lists(batch: Scored, candidates: Candidates, raw: np.ndarray, *, k: int, diversity: float) -> tuple[Ranked, Lost]:
    """The lists of the batch's users from some of its candidates, under the caps."""
    users = batch.users
    return cut(
        candidates.user_row,
        candidates.item,
        raw,
        k=k,
        caps=users.rules.caps,
        codes=users.signals.items,
        diversity=diversity,
        factors=users.signals.factors,
    )


def recommendations(
    batch: Scored,
    ranked: Ranked,
    *,
    chance: Callable[[np.ndarray], np.ndarray],
    as_of: date,
    model_version: str,
    run_id: str,
) -> pa.Table:
    """The batch's rows with `recommendations_schema`.

    Args:
        ranked: of `listed`.
        chance: raw outputs -> the score column, float32 (B) each; it orders nothing, so what it ties stays in raw order.
    """
    users, candidates = batch.users, batch.candidates
    row = candidates.user_row[ranked.row]
    items = users.signals.items[candidates.item[ranked.row]]
    reasons = explain.reasons(ranked, candidates, users)
    ids = users.catalog.item_id
    user_id = users.history.users.column(USER_ID).combine_chunks()
    count = len(ranked.row)
    score = pa.array(chance(batch.raw[ranked.row]), pa.float32(), mask=~batch.modelled[row])
    return pa.table(
        {
            AS_OF: pa.array([as_of] * count, pa.date32()),
            USER_ID: user_id.take(pa.array(row)),
            RANK: pa.array(ranked.rank),
            ITEM_ID: ids.take(pa.array(items)),
            SCORE: score,
            SOURCE: pa.array(reasons.source, pa.string()),
            SOURCES: pa.array(reasons.sources, pa.list_(pa.string())),
            REASON: pa.array(reasons.text, pa.string()),
            REASON_KIND: pa.array(reasons.kind, pa.string()),
            REASON_ITEM_ID: ids.take(pa.array(reasons.item, mask=reasons.item < 0)),
            REASON_CATEGORY: pa.array(reasons.category, pa.string()),
            MODEL_VERSION: pa.array([model_version] * count, pa.string()),
            RUN_ID: pa.array([run_id] * count, pa.string()),
        },
        schema=tables.recommendations_schema(user_id.type, ids.type),
    )
