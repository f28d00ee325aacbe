"""Kinds of planted shops: how often users buy, whether they buy a thing again, when it appeals, and what they look at before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Kind = Literal["groceries", "media", "fashion", "gifts", "sparse", "views-and-carts"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LIFE_DAYS = 75.0  # that a fashion item sells, from its launch on
SEASON_DAYS = 25.0  # standard deviation of the days around its best in which a gift sells
OFF_SEASON = 0.1  # how a gift appeals far from them, against its best day
YEAR = 365.25
TRIES = 40  # to draw an item that appeals on the day
EVENT_KINDS = ("purchase", "view", "cart")
CARTED, VIEWED = 0.9, 0.95  # of what is bought, before
IDLE_VIEWS, IDLE_CARTS = 3.0, 0.4  # a purchase, of what is not bought

Appeal = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Traits:
    """What tells one kind of shop from another."""

    events_per_user: float
    """Purchases, unless told otherwise."""
    staples: bool = False
    """Users buy some things again and again."""
    again: bool = False
    """A user may take an item more than once."""
    looks: bool = False
    """Views and carts come before purchases, and more of them without one."""


TRAITS: dict[Kind, Traits] = {
    "groceries": Traits(40.0, staples=True, again=True),
    "media": Traits(60.0),
    "fashion": Traits(20.0),
    "gifts": Traits(12.0),
    "sparse": Traits(2.0, again=True),
    "views-and-carts": Traits(12.0, again=True, looks=True),
}


def appeal_of(kind: Kind, *, items: int, days: int, random: np.random.Generator) -> tuple[Appeal | None, np.ndarray]:
    """How much items appeal on days, from 0 to 1; None where always alike. And bool (I): the item is still sold when history ends.

    The function takes item numbers and days from the history's first, (B,) each.
    """
    on_sale = np.ones(items, bool)
    if kind == "fashion":
        launch = random.uniform(-LIFE_DAYS, days, items)

        def sold(item: np.ndarray, day: np.ndarray) -> np.ndarray:
            return ((launch[item] <= day) & (day < launch[item] + LIFE_DAYS)).astype(np.float64)

        return sold, launch + LIFE_DAYS > days
    if kind == "gifts":
        best = random.uniform(0, YEAR, items)

        def season(item: np.ndarray, day: np.ndarray) -> np.ndarray:
            apart = np.abs((day - best[item] + YEAR / 2) % YEAR - YEAR / 2)
            return OFF_SEASON + (1 - OFF_SEASON) * np.exp(-((apart / SEASON_DAYS) ** 2) / 2)

        return season, on_sale
    return None, on_sale


def draw_appealing(
    draw: Callable[[np.ndarray], np.ndarray], day: np.ndarray, appeal: Appeal | None, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Items int32 (B,) for purchases on days (B,), drawn again, TRIES times at most, where they do not appeal; and the places of those
    that do, ascending: the others are not bought.

    Args:
        draw: places (P,) among the purchases -> an item each.
    """
    left = np.arange(len(day))
    item = draw(left)
    if appeal is None:
        return item, left
    for _ in range(TRIES):
        left = left[random.random(len(left)) >= appeal(item[left], day[left])]
        if not len(left):
            break
        item[left] = draw(left)
    return item, np.setdiff1d(np.arange(len(day)), left)


def looks(
    user: np.ndarray, item: np.ndarray, day: np.ndarray, *, idle: Callable[[np.ndarray], np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """User, item, day and place in EVENT_KINDS of the views and carts around purchases (B,).

    Args:
        idle: places (P,) among the purchases -> an item that their user looks at without buying it.
    """
    found = []
    for kind, share, apart in ((1, VIEWED, 5.0), (2, CARTED, 1.0)):
        chosen = np.flatnonzero(random.random(len(user)) < share)
        found.append((user[chosen], item[chosen], np.maximum(day[chosen] - random.exponential(apart, len(chosen)), 0), kind))
    for kind, mean in ((1, IDLE_VIEWS), (2, IDLE_CARTS)):
        chosen = np.repeat(np.arange(len(user)), random.poisson(mean, len(user)))
        found.append((user[chosen], idle(chosen), np.maximum(day[chosen] - random.exponential(5.0, len(chosen)), 0), kind))
    users, items, days, kinds = zip(*found, strict=True)
    codes = np.repeat(kinds, [len(one) for one in users])
    return np.concatenate(users), np.concatenate(items), np.concatenate(days), codes
