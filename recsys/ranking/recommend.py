"""Histories -> rows of the recommendation table: candidates, features, scores, ranks and reasons of a user in one call."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from recsys import config
from recsys.data.histories import Histories
from recsys.errors import BundleError
from recsys.features.candidate_features import Featurizer
from recsys.features.spec import ModelInputs
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Scorer
from recsys.ranking.top_k import Lost, Ranked, cut_lists
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.sources import Group, Popular
from recsys.retrieval.supplied import SUPPLIED, Supplied


@dataclass(frozen=True)
class ScoredUsers:
    """One batch of users with their candidates scored."""

    histories: Histories
    """With all their events, those after the cutoff too."""
    users: RuledUsers
    candidates: Candidates
    raw: np.ndarray
    """float32 (N): what lists are ordered by."""
    modelled: np.ndarray
    """bool (U): the model stands behind the user's rows; else the user has no history yet and gets what is popular."""


def score_users(
    histories: Histories, featurizer: Featurizer, scorer: Scorer, supplied: Supplied | None = None
) -> Iterator[ScoredUsers]:
    """The histories' users batch by batch.

    Args:
        supplied: the users' only candidates; absent, the sources propose them.

    Raises:
        BundleError: the model was fed other columns than these.
    """
    for batch, users, candidates, inputs in featurizer(histories, supplied):
        check_inputs(inputs, scorer.bundle)
        raw = scorer(inputs.dense, inputs.codes)
        modelled = users.known
        candidates, popular = _fallback(candidates, modelled)
        yield ScoredUsers(batch, users, candidates, np.where(modelled[candidates.user_row], raw, popular), modelled)


def _fallback(candidates: Candidates, modelled: np.ndarray) -> tuple[Candidates, np.ndarray]:
    """What stands in for the model: float32 (N), the share of the user's group, or of everybody where there is no group; -1 for none.

    Where it is the group's, that is what the row's sources say.
    """
    popular = candidates.score[:, candidates.names.index(Popular.name)]
    if Group.name not in candidates.names:
        return candidates, np.nan_to_num(popular, nan=-1.0)
    place = candidates.names.index(Group.name)
    group = candidates.score[:, place]
    others = np.array([name not in (Group.name, SUPPLIED) for name in candidates.names])
    alike = (candidates.rank[:, place] > 0) & ~modelled[candidates.user_row]
    rank = np.where(alike[:, None] & others, 0, candidates.rank)
    return replace(candidates, rank=rank), np.nan_to_num(np.where(np.isfinite(group), group, popular), nan=-1.0)


def check_inputs(inputs: ModelInputs, bundle: Bundle) -> None:
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
    """Rule -> candidates that it kept out: pairs that a source would have proposed, or for a cap or an exposure, rows that a list would
    have held."""
    short: dict[str, int]
    """Rule -> users with fewer than k rows from whom it took the most; of equals the first. "" where no rule took anything."""


def listed(batch: ScoredUsers, rank: config.Rank) -> Listed:
    """The batch's lists."""
    users, candidates, rules = batch.users, batch.candidates, batch.users.rules
    ranked, lost = cut_batch(batch, candidates, batch.raw, k=rank.k, diversity=rank.diversity)
    dropped = candidates.dropped.copy()
    np.add.at(dropped, (candidates.user_row[lost.row], lost.number), 1)
    length = np.bincount(candidates.user_row[ranked.row], minlength=len(users))
    most = np.where(dropped.any(axis=1), dropped.argmax(axis=1), len(rules.names))[length < rank.k]
    short = np.bincount(most, minlength=len(rules.names) + 1)
    return Listed(
        ranked,
        dict(zip(rules.names, dropped.sum(axis=0).tolist(), strict=True)),
        {name: count for name, count in zip((*rules.names, ""), short.tolist(), strict=True) if count},
    )


def cut_batch(
    batch: ScoredUsers, candidates: Candidates, raw: np.ndarray, *, k: int, diversity: float, exposed: bool = True
) -> tuple[Ranked, Lost]:
    """The lists of the batch's users from some of its candidates, under the caps and, if so `exposed`, the exposures."""
    users = batch.users
    return cut_lists(
        candidates.user_row,
        candidates.item,
        raw,
        k=k,
        caps=users.rules.caps,
        exposures=users.rules.exposures if exposed else (),
        codes=users.signals.items,
        diversity=diversity,
        factors=users.signals.factors,
    )
