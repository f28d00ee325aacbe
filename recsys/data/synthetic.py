"""A planted shop with a known answer, and load of any size.

How it is made, so that a test knows what a good list holds:

* Users fall into groups of unequal size, items into categories of unequal size; groups, categories, users and items differ in
  number. A group favours two categories, and `TASTE` of its users' purchases beyond staples come from them, the rest from any.
* Users have staples, items of the favoured categories, bought again and again at the item's own interval. Everybody has one,
  unless `events_per_user` is less than two staples come to.
* Items of a category are bought along a long tail (Zipf), and the tail shifts over time: an item's weight goes from
  `start_weight` on the first day to `end_weight` on the last. Staples were chosen by the first day's weights.
* With `kinds`, users also view items, along popularity alone whatever their group: views taken for purchases blur every taste.
* Ages go with groups; item prices lie around their category's.
* With `vectors`, items and users have a style: of CHOICES items drawn, a user buys the one whose style is most their own. No word of
  the catalog tells it; the column `vector` does, as numbers that style was turned into, and some noise.
* `shop_kinds` says how shops of other kinds than groceries differ: nothing is taken twice, items come and go, have seasons, or are
  looked at and put into carts before they are bought.

All randomness comes from the seed; a file of events depends on the seed and its own number only, so files are made one by one and
memory is bounded by one file's events, and the users and items.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data.planted_items import CHOICES, STYLES, Tail, most_liked, shares, styles, vectors_of
from recsys.data.shop_kinds import EVENT_KINDS, TRAITS, Appeal, Kind, Traits, appeal_of, draw_appealing, looks
from recsys.schema import AVAILABLE, DAY_US, ITEM_ID, KIND, NAME, PRICE, QUANTITY, TIMESTAMP, TS, USER_ID

GROUPS = 5
CATEGORIES = 12
FAVOURED = 2  # categories of one group; the last two categories are nobody's favourites
TASTE = 0.8  # share of a user's purchases beyond staples that come from the favoured categories
STAPLE_SHARE = 0.5  # of the purchases, about
UNAVAILABLE = 0.05  # share of items
UNKNOWN_USERS = 0.1  # share of users without a row in the users table
EVENTS_PER_FILE = 1_000_000
LEAST_FILES = 3
FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)  # after any clock


@dataclass(frozen=True)
class Planted:
    """The shop's tables and the truth behind them; users and items are numbered in the order of their ids."""

    events: Path
    items: Path | None
    users: Path | None
    columns: Mapping[str, str]
    """Ours = theirs, where they differ: what to put under [shop.columns]."""
    rows: int
    """Events written."""
    user_ids: pa.Array
    item_ids: pa.Array
    group: np.ndarray
    """int32 (U,): of each user."""
    favourites: np.ndarray
    """int32 (GROUPS, FAVOURED): categories that each group favours."""
    category: np.ndarray
    """int32 (I,): of each item."""
    available: np.ndarray
    """bool (I,); all True where there is no items table to say otherwise."""
    interval_days: np.ndarray
    """float64 (I,): days between two purchases of the item by one whose staple it is."""
    start_weight: np.ndarray
    """float64 (I,): share of the item in the purchases of its category on the first day."""
    end_weight: np.ndarray
    """float64 (I,): the same on the last day."""
    staple_offsets: np.ndarray
    """int64 (U + 1,)."""
    looks: tuple[str, ...]
    """Kinds of events beside purchases; without, events have no column of kinds."""
    vectors: int
    """Numbers of each item's vector; 0: there are none."""
    style: np.ndarray
    """float64 (I, STYLES), of each item; of length 1."""
    taste: np.ndarray
    """float64 (U, STYLES): the style that each user likes most."""
    staple_items: np.ndarray
    """int32: user u's staples are `staple_items[staple_offsets[u]:staple_offsets[u + 1]]`, ascending, none twice."""

    def staples(self, user: int) -> np.ndarray:
        """Items that the user buys again and again, ascending."""
        return self.staple_items[self.staple_offsets[user] : self.staple_offsets[user + 1]]

    def liked(self, user: int) -> np.ndarray:
        """Which items lie in the user's favoured categories, bool (I,)."""
        return np.isin(self.category, self.favourites[self.group[user]])


def shop(
    out: Path,
    *,
    users: int,
    items: int,
    days: int,
    seed: int,
    end: date,
    ids: Literal["int", "string"] = "int",
    kind: Kind = "groceries",
    events_per_user: float | None = None,
    columns: Mapping[str, str] | None = None,
    with_items: bool = True,
    with_users: bool = True,
    kinds: bool = False,
    vectors: int = 0,
) -> Planted:
    """The truth behind a shop, whose `events/`, `items/` and `users/` are written below `out`.

    Args:
        out: folder; the tables' own folders must not exist yet.
        items: at least 4 for each category.
        days: length of the history, which ends at the start of the day `end`, UTC.
        ids: neither kind starts at 0 nor is without gaps.
        kind: of shop, as `shop_kinds` describes it.
        events_per_user: purchases, about, on average; some users buy many times as much as others, and each at least one thing, if
            something appeals. Absent: as the kind has it.
        columns: ours = theirs, for columns that the tables shall call otherwise.
        kinds: a column `kind`, and two views for every purchase beyond staples.
        vectors: numbers of each item's vector, STYLES or more; 0: neither vectors nor styles.
    """
    traits = TRAITS[kind]
    events_per_user = events_per_user or traits.events_per_user
    assert not (kinds and traits.looks), f"a shop of {kind} has views of its own"
    assert items >= 4 * CATEGORIES, f"a planted shop needs {4 * CATEGORIES} items, got {items}"
    assert users >= GROUPS, f"a planted shop needs {GROUPS} users, got {users}"
    assert not vectors or (with_items and vectors >= STYLES), f"vectors are of items and have {STYLES} numbers or more, got {vectors}"
    names = dict(columns or {})
    random = np.random.default_rng([seed, 0])

    sizes = 1.0 / np.sqrt(np.arange(1, CATEGORIES + 1))
    category = random.permutation(
        np.r_[np.repeat(np.arange(CATEGORIES), 4), random.choice(CATEGORIES, items - 4 * CATEGORIES, p=sizes / sizes.sum())]
    ).astype(np.int32)
    zipf = 1.0 / (random.permutation(items) + 5.0)
    # A quarter of the items fades to a twentieth, a quarter rises from a twentieth, the rest stays.
    fading, rising = (random.permutation(items) * 4 // items)[None] == np.array([[0], [1]])
    start_weight = shares(zipf * np.where(rising, 0.05, 1.0), category)
    end_weight = shares(zipf * np.where(fading, 0.05, 1.0), category)
    interval_days = np.clip(np.exp(random.normal(np.log(21.0), 0.5, items)), 5.0, max(5.0, days / 4))
    price = np.round(np.exp(random.normal(1.0, 0.6, CATEGORIES))[category] * np.exp(random.normal(0, 0.3, items)) + 0.2, 2)
    available = random.random(items) >= (UNAVAILABLE if with_items else 0.0)

    group_sizes = 1.0 / np.arange(2, GROUPS + 2)
    group = random.permutation(
        np.r_[np.arange(GROUPS), random.choice(GROUPS, users - GROUPS, p=group_sizes / group_sizes.sum())]
    ).astype(np.int32)
    favourites = np.arange(GROUPS * FAVOURED, dtype=np.int32).reshape(FAVOURED, GROUPS).T
    tail = Tail(category, start_weight, end_weight)
    activity = np.exp(random.normal(-0.32, 0.8, users))  # lognormal with mean 1
    purchases = days * np.mean(1.0 / interval_days)  # of one staple
    staple_share = STAPLE_SHARE if traits.staples else 0.0
    staples = events_per_user * staple_share / purchases  # of a user, on average; everybody has one where there is more than one
    owner = np.repeat(np.arange(users), (random.random(users) < staples) + random.poisson(activity * max(0.0, staples - 1)))
    staple = tail.draw(favourites[group[owner], random.integers(0, FAVOURED, len(owner))], np.zeros(len(owner)), random)
    pairs = np.unique(owner * items + staple)
    staple_offsets = np.searchsorted(pairs, np.arange(users + 1) * items)

    appeal, on_sale = appeal_of(kind, items=items, days=days, random=random)
    available &= on_sale

    planted = Planted(
        events=out / "events",
        items=out / "items" if with_items else None,
        users=out / "users" if with_users else None,
        columns=names,
        rows=0,
        user_ids=_ids(users, ids, "user", first=10, step=3),
        item_ids=_ids(items, ids, "item", first=1000, step=7),
        group=group,
        favourites=favourites,
        category=category,
        available=available,
        interval_days=interval_days,
        start_weight=start_weight,
        end_weight=end_weight,
        staple_offsets=staple_offsets,
        looks=EVENT_KINDS[1:] if traits.looks else EVENT_KINDS[1:2] if kinds else (),
        vectors=vectors,
        style=styles(items, [seed, 3]),
        taste=styles(users, [seed, 4]),
        staple_items=(pairs % items).astype(np.int32),
    )
    beyond = events_per_user * (1 - staple_share)
    files = max(LEAST_FILES, round(users * (events_per_user + (2 * beyond if kinds else 0)) / EVENTS_PER_FILE))
    start_us = int(datetime(end.year, end.month, end.day, tzinfo=UTC).timestamp()) * 1_000_000 - days * DAY_US
    planted.events.mkdir(parents=True)
    for number in range(files):
        buyers = np.arange(number, users, files)  # every file holds users from all over
        table = _events(
            planted,
            tail,
            buyers,
            beyond * activity[buyers],
            price,
            days=days,
            start_us=start_us,
            kinds=kinds,
            traits=traits,
            appeal=appeal,
            random=np.random.default_rng([seed, 1, number]),
        )
        pq.write_table(_renamed(table, names), planted.events / f"part-{number:05d}.parquet")
        planted = replace(planted, rows=planted.rows + len(table))
    random = np.random.default_rng([seed, 2])
    if planted.items:
        planted.items.mkdir()
        pq.write_table(_renamed(_items(planted, price, random), names), planted.items / "items.parquet")
    if planted.users:
        planted.users.mkdir()
        pq.write_table(_renamed(_users(planted, random), names), planted.users / "users.parquet")
    return planted


def _ids(count: int, kind: Literal["int", "string"], word: str, *, first: int, step: int) -> pa.Array:
    numbers = pa.array(np.arange(count, dtype=np.int64) * step + first)
    if kind == "int":
        return numbers
    padded = pc.utf8_lpad(numbers.cast(pa.string()), width=len(str(count * step + first)), padding="0")
    return pc.binary_join_element_wise(word, padded, "-")


def _events(
    planted: Planted,
    tail: Tail,
    buyers: np.ndarray,
    beyond: np.ndarray,
    price: np.ndarray,
    *,
    days: int,
    start_us: int,
    kinds: bool,
    traits: Traits,
    appeal: Appeal | None,
    random: np.random.Generator,
) -> pa.Table:
    """All events of some users, in time order; `beyond` is how many purchases beyond staples to expect of each."""
    # Staples: from a random phase on, one purchase an interval, each up to a fifth of the interval early or late.
    counts = planted.staple_offsets[buyers + 1] - planted.staple_offsets[buyers]
    firsts = np.repeat(planted.staple_offsets[buyers] - np.r_[0, np.cumsum(counts)[:-1]], counts)
    staple = planted.staple_items[firsts + np.arange(len(firsts))]
    interval = planted.interval_days[staple]
    phase = random.random(len(staple)) * np.minimum(interval, days)
    times = np.maximum(np.ceil((days - phase) / interval), 1).astype(np.int64)
    turn = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    staple_day = np.repeat(phase, times) + np.repeat(interval, times) * (turn + random.uniform(-0.2, 0.2, len(turn)))
    staple_user = np.repeat(np.repeat(buyers, counts), times)

    user = np.repeat(buyers, np.maximum(random.poisson(beyond), counts == 0))
    day = random.random(len(user)) * days

    def draw(place: np.ndarray) -> np.ndarray:
        liked = planted.favourites[planted.group[user[place]], random.integers(0, FAVOURED, len(place))]
        category = np.where(random.random(len(place)) < TASTE, liked, random.integers(0, CATEGORIES, len(place)))
        if not planted.vectors:
            return tail.draw(category, day[place] / days, random)
        drawn = np.stack([tail.draw(category, day[place] / days, random) for _ in range(CHOICES)])
        return most_liked(drawn, planted.style, planted.taste[user[place]])

    item, bought = draw_appealing(draw, day, appeal, random)
    user, item, day = user[bought], item[bought], day[bought]
    if not traits.again:
        first = np.unique(user.astype(np.int64) * len(planted.category) + item, return_index=True)[1]
        user, item, day = user[first], item[first], day[first]

    users, items, day_all = [staple_user, user], [np.repeat(staple, times), item], [staple_day, day]
    if kinds:
        viewer = np.repeat(user, 2)
        view_day = random.random(len(viewer)) * days
        users.append(viewer)
        items.append(tail.draw(random.integers(0, CATEGORIES, len(viewer)), view_day / days, random))
        day_all.append(view_day)
    event_kind = np.zeros(len(staple_user) + len(user), np.int8)
    if kinds:
        event_kind = np.append(event_kind, np.ones(2 * len(user), np.int8))
    if traits.looks:
        *looked, looked_kind = looks(user, item, day, idle=draw, random=random)
        for series, more in zip((users, items, day_all), looked, strict=True):
            series.append(more)
        event_kind = np.append(event_kind, looked_kind.astype(np.int8))
    user, item = np.concatenate(users), np.concatenate(items)
    # A staple that is early at the very start or late at the very end is bought on the edge.
    ts_us = start_us + np.clip((np.concatenate(day_all) * DAY_US).astype(np.int64), 0, days * DAY_US - 1)
    order = np.argsort(ts_us, kind="stable")
    user, item = user[order], item[order]
    quantity = random.geometric(0.8, len(item)).astype(np.float64)
    reduced = np.where(random.random(len(item)) < 0.15, 0.8, 1.0)
    table = {
        USER_ID: planted.user_ids.take(pa.array(user)),
        ITEM_ID: planted.item_ids.take(pa.array(item)),
        TS: pa.array(ts_us[order]).cast(TIMESTAMP),
        QUANTITY: quantity,
        PRICE: np.round(price[item] * reduced, 2),
    }
    if kinds or traits.looks:
        table[KIND] = pa.array(EVENT_KINDS).take(pa.array(event_kind[order]))
    return pa.table(table)


def _items(planted: Planted, price: np.ndarray, random: np.random.Generator) -> pa.Table:
    """The catalog, in no order: category and brand, some brands null, and a size that says nothing."""
    count = len(planted.category)
    words = [f"category {number}" for number in range(CATEGORIES)]
    brand = random.integers(0, max(3, count // 20), count)
    table = pa.table(
        {
            ITEM_ID: planted.item_ids,
            NAME: [f"Item {number} of category {of}" for number, of in enumerate(planted.category)],
            "category": pa.array(words).take(pa.array(planted.category)),
            "brand": pa.array([f"brand {number}" for number in brand], mask=random.random(count) < 0.03),
            "size": np.round(random.gamma(2.0, 5.0, count), 1),
            PRICE: price,
            AVAILABLE: pa.array(planted.available),
        }
    )
    if planted.vectors:
        table = table.append_column("vector", vectors_of(planted.style, planted.vectors, random))
    return table.take(random.permutation(count))


def _users(planted: Planted, random: np.random.Generator) -> pa.Table:
    """Nine users of ten, in no order: an age band that mostly goes with the group, and a region that says nothing."""
    count = len(planted.group)
    ages = pa.array(["18-29", "30-39", "40-49", "50-64", "65+"])
    age = np.where(random.random(count) < 0.7, planted.group, random.integers(0, len(ages), count))
    regions = pa.array(["north", "east", "south"])
    table = pa.table(
        {
            USER_ID: planted.user_ids,
            "age": ages.take(pa.array(age, mask=random.random(count) < 0.05)),
            "region": regions.take(pa.array(random.integers(0, len(regions), count))),
        }
    )
    return table.take(random.permutation(count)[: max(1, round(count * (1 - UNKNOWN_USERS)))])


def _renamed(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    return table.rename_columns([columns.get(name, name) for name in table.column_names])
