"""Candidate rows -> model inputs; training and scoring both call `candidate_features`, so they cannot differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys import config
from recsys.data import daily
from recsys.data.catalog import Catalog, encode
from recsys.data.histories import Histories
from recsys.features import kernels
from recsys.features.spec import ModelInputs
from recsys.retrieval.candidates import NOT_FEATURES, Candidates, propose, user_batches
from recsys.retrieval.item_sums import MONTH, POPULARITY_DAYS
from recsys.retrieval.rules import RuledUsers, Rules
from recsys.retrieval.signals import Signals
from recsys.retrieval.sources import Seen, Source, sources
from recsys.retrieval.supplied import Supplied
from recsys.retrieval.users import UserBatch, group_days
from recsys.retrieval.vectors import cosines
from recsys.schema import DAY_US

RECENT_DAYS = 28.0


class Featurizer:
    """Histories -> candidates and their model inputs as of the signals' cutoff; the one road of examples, scoring and backtest.

    Args:
        vocabularies: of every categorical column, as in the bundle's spec.
        lists: as of `Rules`; absent, as in training.
    """

    def __init__(
        self,
        settings: config.Settings,
        catalog: Catalog,
        signals: Signals,
        vocabularies: Mapping[str, tuple[str, ...]],
        lists: Path | None = None,
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.signals = signals
        self.vocabularies = vocabularies
        self.rules = Rules(settings, catalog, lists)
        self.sources: list[tuple[Source, int]] = sources(settings)
        self.categories = {
            name: encode(catalog.table.column(name), vocabularies[name])[signals.items] for name in settings.features.item_categorical
        }

    def users(self, histories: Histories, supplied: Supplied | None = None) -> RuledUsers:
        """The users as of the cutoff: whatever is later in their histories is cut off here and nowhere else."""
        history = histories.between(int(self.signals.start), int(self.signals.cutoff))
        return RuledUsers(history, self.signals, self.catalog, self.categories, supplied, rules=self.rules)

    def __call__(
        self, histories: Histories, supplied: Supplied | None = None
    ) -> Iterator[tuple[Histories, RuledUsers, Candidates, ModelInputs]]:
        """Batch by batch: whole histories of its users, the users as of the cutoff, their candidates and inputs.

        Args:
            supplied: the only candidates of the histories' users; absent, the sources propose them.
        """
        for start, stop in user_batches(len(histories)):
            batch = histories.select(start, stop)
            users = self.users(batch, supplied.select(start, stop) if supplied is not None else None)
            candidates = propose(users, self.sources, per_user=self.settings.candidates.per_user)
            yield batch, users, candidates, self.inputs(candidates, users)

    def inputs(self, candidates: Candidates, users: UserBatch) -> ModelInputs:
        """The features of candidates of these users."""
        settings, kinds = self.settings, self.settings.shop.look_kinds or ()
        return candidate_features(candidates, users, features=settings.features, vocabularies=self.vocabularies, look_kinds=kinds)


def embedded(features: config.Features, vocabularies: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The categorical columns whose words the model gets as such: those of few words, item columns first."""
    columns = features.item_categorical + features.user_categorical
    return tuple(name for name in columns if len(vocabularies[name]) <= features.max_embedded)


def candidate_features(
    candidates: Candidates,
    users: UserBatch,
    *,
    features: config.Features,
    vocabularies: Mapping[str, tuple[str, ...]],
    look_kinds: Sequence[str] = (),
) -> ModelInputs:
    """The features of every candidate row, from what was known before the signals' cutoff.

    Shares are counts divided by the total of their window, so that they mean the same as of any date.
    """
    active = _activity(users)
    columns = _of_items(candidates, users)
    columns |= _of_sources(candidates, users)
    columns |= _of_users(candidates, users, active)
    columns |= _of_own_purchases(candidates, users, active)
    if Seen.name in candidates.names:
        columns |= _of_looks(candidates, users)
        _add(columns, _of_kinds(candidates, users, look_kinds), of="looks")
    _add(columns, _of_categories(candidates, users, active), of="categories")

    _add(columns, _of_vectors(candidates, users), of="vectors")

    row, item = candidates.user_row, candidates.item
    table = users.catalog.table
    _add(columns, {name: table.column(name).to_numpy()[users.signals.items][item] for name in features.item_numeric}, of="items")
    _add(columns, dict(zip(daily.names(features.daily_numeric), users.signals.daily[:, item], strict=True)), of="days")
    _add(columns, {name: users.history.users.column(name).to_numpy()[row] for name in features.user_numeric}, of="users")

    dense = np.empty((len(columns), len(row)), np.float32)
    for place_in_row, values in enumerate(columns.values()):
        dense[place_in_row] = values
    codes_of = []
    for name in embedded(features, vocabularies):
        if name in users.categories:
            codes_of.append(users.categories[name][item])
        else:
            codes_of.append(encode(users.history.users.column(name), vocabularies[name])[row])
    codes = np.stack(codes_of, axis=1).astype(np.int32) if codes_of else np.empty((len(row), 0), np.int32)
    return ModelInputs(kernels.side_by_side(dense), codes, names=tuple(columns))


def _add(columns: dict[str, np.ndarray], more: Mapping[str, np.ndarray], *, of: str) -> None:
    """Columns that the shop named beside ours; one with the name of another is called by what it is of, too."""
    for name, values in more.items():
        while name in columns:
            name = f"{name} of {of}"
        columns[name] = values


@dataclass(frozen=True)
class _Activity:
    """What each user of a batch did in all: float64 (U) purchases, visits, and the mean log price."""

    purchases: np.ndarray
    visits: np.ndarray
    """Days with a purchase."""
    log_price: np.ndarray


def _activity(users: UserBatch) -> _Activity:
    buyer, bought, days = users.purchases
    purchases = users.activity.astype(np.float64)
    visits = np.bincount(np.unique(buyer * DAY_US + days) // DAY_US, minlength=len(users))  # distinct (user, day)
    return _Activity(purchases, visits, _mean(users.signals.log_price[bought], buyer, len(users)))


def _of_items(candidates: Candidates, users: UserBatch) -> dict[str, np.ndarray]:
    """The item: how popular, how old, how often bought again, at what price."""
    signals, item, cutoff = users.signals, candidates.item, int(users.signals.cutoff)
    columns: dict[str, np.ndarray] = {}
    names = [f"popularity_{days}d" for days in POPULARITY_DAYS] + ["popularity_all"]
    logs = signals.log_popularity[:, item]  # of the candidates alone, here and below: a catalog may be a hundred times a batch's
    for name, values in zip(names, logs, strict=True):
        columns[name] = values
    for name, shorter, longer in zip(names, logs, logs[1:], strict=False):
        columns[f"{name}_trend"] = shorter - longer
    buyers = signals.buyers[-1][item]
    columns["item_age"] = np.where(buyers > 0, np.log1p((cutoff - signals.first_ts[item]) / DAY_US), np.nan)
    columns["item_rest"] = np.where(buyers > 0, np.log1p((cutoff - signals.last_ts[item]) / DAY_US), np.nan)
    columns["item_buyers"] = np.log1p(buyers)
    columns["item_repeat_rate"] = signals.repeat_rate[item]
    columns["item_repeat_days"] = np.log1p(signals.repeat_days[item])
    columns["item_price"] = signals.log_price[item]
    return columns


def _of_sources(candidates: Candidates, users: UserBatch) -> dict[str, np.ndarray]:
    """The sources: score, its place among the user's candidates, and whether the source proposed the item."""
    row = candidates.user_row
    starts = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int64)
    columns: dict[str, np.ndarray] = {}
    described = [number for number, name in enumerate(candidates.names) if name not in NOT_FEATURES]
    for number in described:
        source = candidates.names[number]
        score = candidates.score[:, number]
        if source != "popular":
            columns[f"{source}_score"] = score
            columns[f"{source}_z"] = _standardised(score, row, len(users))
        columns[f"{source}_place"] = kernels.log_places(score, starts)
        columns[f"{source}_proposed"] = candidates.rank[:, number] > 0
    columns["sources"] = (candidates.rank[:, described] > 0).sum(axis=1)
    return columns


def _of_users(candidates: Candidates, users: UserBatch, active: _Activity) -> dict[str, np.ndarray]:
    """The user: how active, how long, how often the same again, at what prices."""
    buyer, _, days = users.purchases
    count, visits = active.purchases, active.visits
    recent = np.bincount(buyer[days < RECENT_DAYS], minlength=len(users))
    whole = group_days(buyer, days)
    place, known = whole.find(np.arange(len(users)))
    distinct = np.bincount(users.own_key // len(users.signals.items), minlength=len(users))
    with np.errstate(divide="ignore", invalid="ignore"):
        per_user = {
            "user_purchases": np.log1p(count),
            "user_purchases_recent": np.log1p(recent),
            "user_items": np.log1p(distinct),
            "user_visits": np.log1p(visits),
            "user_basket": np.log1p(count / visits),
            "user_repeats": 1.0 - distinct / count,
            "user_rest": np.where(known, np.log1p(whole.last[place]), np.nan),
            "user_age": np.where(known, np.log1p(whole.first[place]), np.nan),
            "user_price": active.log_price,
        }
    columns = {name: values[candidates.user_row] for name, values in per_user.items()}
    columns["price_against_usual"] = users.signals.log_price[candidates.item] - active.log_price[candidates.user_row]
    return columns


def _of_own_purchases(candidates: Candidates, users: UserBatch, active: _Activity) -> dict[str, np.ndarray]:
    """The user and the item: bought how often, when last, and when again."""
    own, row, item = users.own, candidates.user_row, candidates.item
    columns: dict[str, np.ndarray] = {}
    place, known = own.find(row * len(users.signals.items) + item)
    times, last, first = own.count[place], own.last[place], own.first[place]
    interval = np.where(times > 1, (first - last) / np.maximum(times - 1, 1), np.nan)
    usual = np.where(np.isfinite(interval), interval, users.signals.repeat_days[item])
    columns["own_count"] = np.where(known, np.log1p(times), 0.0)
    columns["own_recent"] = np.where(known, np.log1p(own.recent[place]), 0.0)
    columns["own_share"] = np.where(known, times / np.maximum(active.purchases, 1)[row], 0.0)
    columns["own_per_visit"] = np.where(known, times / np.maximum(active.visits, 1)[row], 0.0)
    columns["own_decayed"] = np.where(known, np.log1p(own.decayed[place]), 0.0)
    columns["own_last"] = np.where(known, np.log1p(last), np.nan)
    columns["own_first"] = np.where(known, np.log1p(first), np.nan)
    columns["own_interval"] = np.where(known, np.log1p(interval), np.nan)
    columns["own_due"] = np.where(known, np.log((last + 1.0) / (usual + 1.0)), np.nan)
    columns["own_known"] = known
    return columns


def _of_looks(candidates: Candidates, users: UserBatch) -> dict[str, np.ndarray]:
    """The user and the item: looked at how often, when last, and since it was last bought; and who else looks at it."""
    key = candidates.user_row * len(users.signals.items) + candidates.item
    seen, own = users.seen, users.own
    place, known = seen.find(key)
    bought_place, bought = own.find(key)
    since = known & (~bought | (seen.last[place] < own.last[bought_place]))
    return {
        "seen_count": np.where(known, np.log1p(seen.count[place]), 0.0),
        "seen_recent": np.where(known, np.log1p(seen.recent[place]), 0.0),
        "seen_last": np.where(known, np.log1p(seen.last[place]), np.nan),
        "seen_known": known,
        "seen_since": since,
        **{f"looks_{days}d": logs for days, logs in zip(POPULARITY_DAYS, users.signals.log_looks[:, candidates.item], strict=True)},
    }


def _of_kinds(candidates: Candidates, users: UserBatch, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """The same of each of shop.look_kinds alone, and who looks much lately."""
    key = candidates.user_row * len(users.signals.items) + candidates.item
    columns: dict[str, np.ndarray] = {}
    for kind, looks in zip(kinds, users.looks[1:], strict=True):
        place, known = looks.find(key)
        columns[f"{kind}_count"] = np.where(known, np.log1p(looks.count[place]), 0.0)
        columns[f"{kind}_last"] = np.where(known, np.log1p(looks.last[place]), np.nan)
        row = looks.key[:-1] // len(users.signals.items)
        recent = np.bincount(row, weights=looks.recent[:-1], minlength=len(users))
        columns[f"{kind}_by_user"] = np.log1p(recent)[candidates.user_row]
    return columns


def _of_categories(candidates: Candidates, users: UserBatch, active: _Activity) -> dict[str, np.ndarray]:
    """The user and the item's categories: the user's taste for them, and the item's standing in them."""
    row, item, (buyer, bought, days) = candidates.user_row, candidates.item, users.purchases
    log_price, count = users.signals.log_price, np.maximum(active.purchases, 1)
    columns: dict[str, np.ndarray] = {}
    window = users.signals.popularity[MONTH].astype(np.float64)
    for name, codes in users.categories.items():
        size = int(codes.max(initial=0)) + 1
        grouped = group_days(buyer * size + codes[bought], days)
        code = codes[item]
        place, bought_there = grouped.find(row * size + code)
        known = bought_there & (code > 0)
        of_category = np.bincount(codes, weights=window, minlength=size)
        columns[f"{name}_share"] = np.where(known, grouped.count[place] / count[row], 0.0)
        columns[f"{name}_count"] = np.where(known, np.log1p(grouped.count)[place], 0.0)
        columns[f"{name}_recent"] = np.where(known, np.log1p(grouped.recent)[place], 0.0)
        columns[f"{name}_last"] = np.where(known, np.log1p(grouped.last)[place], np.nan)
        columns[f"{name}_popularity"] = np.log(of_category + 1e-7)[code]
        columns[f"{name}_standing"] = np.log((window[item] + 1e-7) / (of_category[code] + 1e-7))
        paid = _mean(log_price[bought], grouped.find(buyer * size + codes[bought])[0], len(grouped.key))
        columns[f"{name}_price"] = log_price[item] - np.where(bought_there, paid[place], np.nan)
    return columns


def _of_vectors(candidates: Candidates, users: UserBatch) -> dict[str, np.ndarray]:
    """The user and the item's vectors, per column: cosine to the mean of what the user took, and to that of the latest alone."""
    item, place = np.unique(candidates.item, return_inverse=True)
    pairs = np.stack([candidates.user_row, place])
    columns: dict[str, np.ndarray] = {}
    for name, vectors in users.catalog.vectors.items():
        right = vectors[users.signals.items[item]]
        columns[f"{name}_likeness"] = cosines(users.mean_vectors[name], right, pairs)
        columns[f"{name}_latest"] = cosines(users.latest_vectors[name], right, pairs)
    return columns


def _standardised(score: np.ndarray, row: np.ndarray, users: int) -> np.ndarray:
    """Each score less the mean of its user's, over their standard deviation; NaN stays NaN."""
    present = np.isfinite(score)
    values = np.where(present, score, 0.0).astype(np.float64)
    count = np.maximum(np.bincount(row, weights=present, minlength=users), 1)
    mean = np.bincount(row, weights=values, minlength=users) / count
    centred = np.where(present, values - mean[row], 0.0)
    spread = np.sqrt(np.bincount(row, weights=centred**2, minlength=users) / count)
    return np.where(present, centred / np.maximum(spread, 1e-9)[row], np.nan)


def _mean(values: np.ndarray, key: np.ndarray, size: int) -> np.ndarray:
    """Mean of the values of each key, NaN left out; NaN where a key has none."""
    present = np.isfinite(values)
    count = np.bincount(key[present], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.bincount(key[present], weights=values[present], minlength=size) / np.where(count, count, np.nan)
