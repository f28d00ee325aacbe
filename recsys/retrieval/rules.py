"""The shop's rules: what a user may not be shown, and how much of one value a list may hold.

A rule that decides about a user and an item alone becomes a mask over a batch, which is laid over every source's scores before the
source proposes anything, so each proposes its best allowed items (`candidates.propose`). A cap decides about an item among others
and acts where lists are cut (`top_k.cut_lists`). Drops are counted under the first rule that asks for them: the built-in ones
("available", and "repeats" unless rank.allow_repeats), then [[rules]] in their order.

Where rules act: all of them in scoring and in the backtest, its baselines too. In training, which is to see the candidates that
scoring will see, all but those with a list of ids: a list says what holds tonight and may change every night, and a new list must
not make a new model. So [[rules]] without lists are part of the digest of the examples, lists of that of the lists to be made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import config
from recsys.config import AVAILABLE, REPEATS
from recsys.data.catalog import Catalog
from recsys.hashing import stable_hash
from recsys.retrieval.supplied import read_list
from recsys.retrieval.users import UserBatch
from recsys.schema import USER_ID

Mask = Callable[[UserBatch], np.ndarray]


@dataclass(frozen=True)
class Cap:
    """At most so many items of one value in a list."""

    number: int
    """Place of the rule in `Rules.names`."""
    at_most: int
    value: np.ndarray
    """int32 (I): which value each item of the catalog has, -1 where it has none."""


class Rules:
    """The rules, held against a catalog.

    Args:
        lists: the folder of `write_list`'s files; None: rules with lists do not act, as in training.
    """

    def __init__(self, settings: config.Settings, catalog: Catalog, lists: Path | None) -> None:
        self.names: tuple[str, ...] = names(settings)
        self.caps: list[Cap] = []
        self._masks: list[tuple[int, Mask]] = [(0, _of_items(~catalog.available))]
        if REPEATS in self.names:
            self._masks.append((1, _bought(None)))
        first = len(self.names) - len(settings.rules)
        for place, rule in enumerate(settings.rules):
            if isinstance(rule, config.CapRule):
                codes = _words(catalog.table.column(rule.column)).dictionary_encode()
                value = pc.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
                self.caps.append(Cap(first + place, rule.at_most, value))
            elif lists is not None or not rule.lists():
                self._masks.append((first + place, _mask(rule, place, catalog, lists)))

    def barred(self, users: UserBatch) -> np.ndarray:
        """uint16 (U, J), or (1, J) where all users are treated alike: 0 where the user may see the item, else 1 + the place in
        `names` of the first rule that forbids it.
        """
        barred = np.zeros((1, len(users.signals.items)), np.uint16)
        for number, mask in self._masks:
            forbids = mask(users)
            if not forbids.any():
                continue
            if len(forbids) > len(barred):
                barred = np.repeat(barred, len(users), axis=0)
            np.copyto(barred, np.uint16(number + 1), where=(barred == 0) & forbids)
        return barred


@dataclass(frozen=True, kw_only=True)
class RuledUsers(UserBatch):
    """A batch of users, and what they may see."""

    rules: Rules

    @cached_property
    def barred(self) -> np.ndarray:
        """uint16 (U, J) or (1, J): 0 where the rules let the user see the item, as `Rules.barred` tells."""
        return self.rules.barred(self)


def names(settings: config.Settings) -> tuple[str, ...]:
    """The rules in the order in which drops are counted."""
    return (AVAILABLE, *(() if settings.rank.allow_repeats else (REPEATS,)), *(rule.name for rule in settings.rules))


def in_training(settings: config.Settings) -> list[config.AnyRule]:
    """Those of [[rules]] that shape the examples: no lists, which may change every night, and no caps, which act in lists alone."""
    return [rule for rule in settings.rules if not isinstance(rule, config.CapRule) and not rule.lists()]


def _mask(rule: config.AnyRule, place: int, catalog: Catalog, lists: Path | None) -> Mask:
    match rule:
        case config.BoughtRule():
            mask = _bought(rule.days)
        case config.ColumnRule():
            words = pa.array(rule.only or rule.never, pa.string())
            found = pc.is_in(_words(catalog.table.column(rule.column)), value_set=words).to_numpy(zero_copy_only=False)
            mask = _of_items(~found if rule.only else found)
        case config.RangeRule():
            values = catalog.table.column(rule.column).to_numpy()  # null is NaN, which is within no bounds
            low = np.float32(-np.inf if rule.min is None else rule.min)
            high = np.float32(np.inf if rule.max is None else rule.max)
            mask = _of_items(~((values >= low) & (values <= high)))
        case config.ItemsRule():
            found = read_list(lists, place, "items")
            mask = _of_items(~found if rule.only else found)
        case config.PairsRule():
            return _pairs(read_list(lists, place, "pairs"))
        case config.CapRule():
            raise AssertionError("a cap is no mask")
    if rule.audience is None:
        return mask
    audience = _audience(rule.audience, None if rule.audience.ids is None else read_list(lists, place, "users"))
    return lambda users: mask(users) & audience(users)[:, None]


def _of_items(forbidden: np.ndarray) -> Mask:
    """The same for all users; bool (I)."""
    return lambda users: forbidden[users.signals.items][None, :]


def _bought(days: int | None) -> Mask:
    """What the user bought in the last `days` of the history, or in all of it."""

    def mask(users: UserBatch) -> np.ndarray:
        forbidden = np.zeros((len(users), len(users.signals.items)), bool)
        lately = slice(None) if days is None else users.own.last[:-1] < days  # 0: within the last 24 hours
        forbidden.ravel()[users.own_key[lately]] = True
        return forbidden

    return mask


def _pairs(pairs: np.ndarray) -> Mask:
    """What a list of pairs holds; uint64 (2, P) of `write_list`."""

    def mask(users: UserBatch) -> np.ndarray:
        forbidden = np.zeros((len(users), len(users.signals.items)), bool)
        hashes = _hashes(users)
        start, stop = (np.searchsorted(pairs[0], hashes, side) for side in ("left", "right"))
        count = stop - start
        row = np.repeat(np.arange(len(users)), count)
        place = np.arange(len(row)) + np.repeat(start - np.cumsum(count) + count, count)
        item = users.signals.position[pairs[1][place].astype(np.int64)]
        forbidden[row[item >= 0], item[item >= 0]] = True
        return forbidden

    return mask


def _audience(audience: config.Audience, listed: np.ndarray | None) -> Mask:
    """bool (U): whom a rule is for."""
    if listed is not None:
        return lambda users: np.isin(_hashes(users), listed)
    words = pa.array(audience.values or audience.other_than, pa.string())

    def mask(users: UserBatch) -> np.ndarray:
        found = pc.is_in(_words(users.history.users.column(audience.column)), value_set=words).to_numpy(zero_copy_only=False)
        return found if audience.values else ~found

    return mask


def _words(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().cast(pa.string())


def _hashes(users: UserBatch) -> np.ndarray:
    return stable_hash(users.history.users.column(USER_ID).to_numpy())
