"""The shop's rules: what a user may not be shown, and how much of one value a list may hold.

A rule that decides about a user and an item alone is asked while a source looks for its best items, so each proposes its best allowed
ones, and what the rule took from them is counted (`candidates.propose`). A cap or an exposure decides about an item among others
and acts where lists are cut (`top_k.cut_lists`). Drops are counted under the first rule that asks for them: the built-in ones
("available", "repeats" unless rank.allow_repeats, and with shop.least_value "dislikes"), then [[rules]] in their order.

Where rules act: all of them in scoring and in the backtest, its baselines too. In training, which is to see the candidates that
scoring will see, all but those with a list of ids: a list says what holds tonight and may change every night, and a new list must
not make a new model. So [[rules]] without lists are part of the digest of the examples, lists of that of the lists to be made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import config
from recsys.config import AVAILABLE, DISLIKES, REPEATS
from recsys.data.catalog import Catalog
from recsys.hashing import stable_hash
from recsys.retrieval.heaps import Barred
from recsys.retrieval.supplied import read_list
from recsys.retrieval.users import UserBatch
from recsys.schema import USER_ID

OfUsers = Callable[[UserBatch], np.ndarray]


@dataclass(frozen=True)
class Cap:
    """At most so many items of one value in a list."""

    number: int
    """Place of the rule in `Rules.names`."""
    at_most: int
    value: np.ndarray
    """int32 (I): which value each item of the catalog has, -1 where it has none."""


@dataclass(frozen=True)
class Exposure:
    """At least and at most such a share of every list's first places for some items."""

    number: int
    """Place of the rule in `Rules.names`."""
    at_least: float
    at_most: float
    member: np.ndarray
    """bool (I): the items."""


@dataclass(frozen=True)
class _Mask:
    """What one rule forbids, whatever else is on a list."""

    number: int
    """Place of the rule in `Rules.names`."""
    items: np.ndarray | None = None
    """bool (I): forbidden to all in the audience."""
    pairs: OfUsers | None = None
    """int64: user row x J + active position of what is forbidden to a user alone; without repeats."""
    audience: OfUsers | None = None
    """bool (U): whom the rule is for; None: everybody."""


class Rules:
    """The rules, held against a catalog.

    Args:
        lists: the folder of `write_list`'s files; None, as in training: rules with lists do not act, nor does what the catalog has
            available, as both are of tonight and not of the days that are learned from.
    """

    def __init__(self, settings: config.Settings, catalog: Catalog, lists: Path | None) -> None:
        self.names: tuple[str, ...] = names(settings)
        self.caps: list[Cap] = []
        self.exposures: list[Exposure] = []
        self._masks: list[_Mask] = [_Mask(0, items=~catalog.available & (lists is not None))]
        if REPEATS in self.names:
            self._masks.append(_Mask(self.names.index(REPEATS), pairs=_bought(None)))
        if DISLIKES in self.names:
            self._masks.append(_Mask(self.names.index(DISLIKES), pairs=lambda users: users.disliked_key))
        first = len(self.names) - len(settings.rules)
        for place, rule in enumerate(settings.rules):
            if isinstance(rule, config.CapRule):
                codes = _words(catalog.table.column(rule.column)).dictionary_encode()
                value = pc.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
                self.caps.append(Cap(first + place, rule.at_most, value))
            elif isinstance(rule, config.ExposureRule):
                member = _with_values(catalog, rule.column, rule.values)
                self.exposures.append(Exposure(first + place, rule.at_least, rule.at_most, member))
            elif lists is not None or not rule.lists():
                self._masks.append(_mask(rule, first + place, place, catalog, lists))

    def forbidden(self) -> np.ndarray:
        """bool (I): items that no user may be shown, whoever it is."""
        masks = [mask.items for mask in self._masks if mask.items is not None and mask.audience is None]
        return np.logical_or.reduce(masks)

    def barred(self, users: UserBatch) -> Barred:
        """What the rules forbid the users; a pair that several forbid is the first one's."""
        everybody = np.ones(len(users), bool)
        heard = [everybody if mask.audience is None else mask.audience(users) for mask in self._masks]
        audiences, row = np.unique(np.stack(heard, axis=1), axis=0, return_inverse=True)
        shared = np.zeros((max(len(audiences), 1), len(users.signals.items)), np.uint16)
        keys, places = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        for at, mask in enumerate(self._masks):
            place = np.uint16(mask.number + 1)
            if mask.items is not None:
                forbidden = mask.items[users.signals.items]
                for number in np.flatnonzero(audiences[:, at]):
                    np.copyto(shared[number], place, where=(shared[number] == 0) & forbidden)
            if mask.pairs is not None:
                key = mask.pairs(users)
                key = key[heard[at][key // len(users.signals.items)]]
                keys.append(key)
                places.append(np.full(len(key), place))
        key, first = np.unique(np.concatenate(keys), return_index=True)  # of equals the first: rules stand in their order
        user_row, item = np.divmod(key, len(users.signals.items))
        offsets = np.searchsorted(user_row, np.arange(len(users) + 1)).astype(np.int64)
        return Barred(row.ravel().astype(np.int64), shared, offsets, item.astype(np.int32), np.concatenate(places)[first])


@dataclass(frozen=True, kw_only=True)
class RuledUsers(UserBatch):
    """A batch of users, and what they may see."""

    rules: Rules

    @cached_property
    def barred(self) -> Barred:
        """What the rules forbid."""
        return self.rules.barred(self)


def names(settings: config.Settings) -> tuple[str, ...]:
    """The rules in the order in which drops are counted."""
    repeats = () if settings.rank.repeats else (REPEATS,)
    dislikes = () if settings.shop.least_value is None else (DISLIKES,)
    return (AVAILABLE, *repeats, *dislikes, *(rule.name for rule in settings.rules))


def in_training(settings: config.Settings) -> list[config.AnyRule]:
    """Those of [[rules]] that shape the examples: no lists, which may change every night, nor caps and exposures, which act in lists
    alone."""
    return [rule for rule in settings.rules if not isinstance(rule, config.CapRule | config.ExposureRule) and not rule.lists()]


def _mask(rule: config.AnyRule, number: int, place: int, catalog: Catalog, lists: Path | None) -> _Mask:
    items: np.ndarray | None = None
    pairs: OfUsers | None = None
    match rule:
        case config.BoughtRule():
            pairs = _bought(rule.days)
        case config.ColumnRule():
            found = _with_values(catalog, rule.column, rule.only or rule.never or ())
            items = ~found if rule.only else found
        case config.RangeRule():
            values = catalog.table.column(rule.column).to_numpy()  # null is NaN, which is within no bounds
            low = np.float32(-np.inf if rule.min is None else rule.min)
            high = np.float32(np.inf if rule.max is None else rule.max)
            items = ~((values >= low) & (values <= high))
        case config.ItemsRule():
            found = read_list(lists, place, "items")
            items = ~found if rule.only else found
        case config.PairsRule():
            return _Mask(number, pairs=_pairs(read_list(lists, place, "pairs")))
        case config.CapRule() | config.ExposureRule():
            raise AssertionError("it decides about an item among others")
    if rule.audience is None:
        return _Mask(number, items, pairs)
    audience = _audience(rule.audience, None if rule.audience.ids is None else read_list(lists, place, "users"))
    return _Mask(number, items, pairs, audience)


def _bought(days: int | None) -> OfUsers:
    """What the user bought in the last `days` of the history, or in all of it."""
    if days is None:
        return lambda users: users.own_key
    return lambda users: users.own_key[users.own.last[:-1] < days]  # 0: within the last 24 hours


def _pairs(pairs: np.ndarray) -> OfUsers:
    """What a list of pairs holds; uint64 (2, P) of `write_list`."""

    def forbidden(users: UserBatch) -> np.ndarray:
        hashes = _hashes(users)
        start, stop = (np.searchsorted(pairs[0], hashes, side) for side in ("left", "right"))
        count = stop - start
        row = np.repeat(np.arange(len(users)), count)
        place = np.arange(len(row)) + np.repeat(start - np.cumsum(count) + count, count)
        item = users.signals.position[pairs[1][place].astype(np.int64)].astype(np.int64)
        return np.unique((row * len(users.signals.items) + item)[item >= 0])

    return forbidden


def _audience(audience: config.Audience, listed: np.ndarray | None) -> OfUsers:
    """bool (U): whom a rule is for."""
    if listed is not None:
        return lambda users: np.isin(_hashes(users), listed)
    words = pa.array(audience.values or audience.other_than, pa.string())

    def mask(users: UserBatch) -> np.ndarray:
        found = pc.is_in(_words(users.history.users.column(audience.column)), value_set=words).to_numpy(zero_copy_only=False)
        return found if audience.values else ~found

    return mask


def _with_values(catalog: Catalog, column: str, values: Sequence[str]) -> np.ndarray:
    """bool (I): the items whose word is one of these."""
    words = pa.array(values, pa.string())
    return pc.is_in(_words(catalog.table.column(column)), value_set=words).to_numpy(zero_copy_only=False)


def _words(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().cast(pa.string())


def _hashes(users: UserBatch) -> np.ndarray:
    return stable_hash(users.history.users.column(USER_ID).to_numpy())
