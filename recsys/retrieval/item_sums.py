"""What histories say of each item, summed shard by shard: purchases, buyers, repeats, prices, looks."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from recsys.data.histories import Histories, event_days, purchase_days
from recsys.schema import OTHER_LOOK

POPULARITY_DAYS = (7, 28, 91)  # windows beside the whole history
PRICE_UNIT = 2.0**-20  # what prices are rounded to before they are summed: such sums are exact, whatever their order
MONTH = POPULARITY_DAYS.index(28)  # the row of `popularity` that sources and shares use


class ItemSums:
    """What the histories of all shards say of each item: float64 (I) sums, exact whatever the order of shards."""

    def __init__(self, items: int, days: Sequence[int], *, looks: int) -> None:
        self.days = days
        self.windows = np.zeros((len(days), items))
        """(W, I): purchases, a user's of one day as one, in the last so many days."""
        self.buyers = np.zeros((len(days), items))
        """(W, I): users who bought in the last so many days."""
        self.repeaters = np.zeros(items)
        self.gap_days, self.gaps = np.zeros(items), np.zeros(items)
        """Days between two purchases by one user, and how many such gaps."""
        self.price, self.priced = np.zeros(items), np.zeros(items)
        self.looked, self.followed = np.zeros(looks), np.zeros(looks)
        """(K,): pairs of a user and an item with a look of each kind, and those of them that were bought then or later."""
        self.look_windows = np.zeros((len(POPULARITY_DAYS), items))
        """Looks, as `windows`."""
        self.first = np.full(items, np.iinfo(np.int64).max)
        self.last = np.full(items, np.iinfo(np.int64).min)

    def add(self, history: Histories, *, cutoff: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Count a shard's history; float32 (U, I): on how many days each user bought each item, and 1 where in the last 28 days."""
        items = len(self.repeaters)
        user, item, day = purchase_days(history, cutoff=cutoff)
        new_pair = np.ones(len(item), bool)
        new_pair[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        pair_user, pair_item, last_day = user[new_pair], item[new_pair], day[new_pair]  # of each pair the last day comes first
        for row, days in enumerate(self.days):
            self.windows[row] += np.bincount(item[day < days], minlength=items)
            self.buyers[row] += np.bincount(pair_item[last_day < days], minlength=items)
        times = np.diff(np.append(np.flatnonzero(new_pair), len(item)))
        self.repeaters += np.bincount(pair_item[times > 1], minlength=items)
        again = np.flatnonzero(~new_pair)
        self.gap_days += np.bincount(item[again], weights=(day[again] - day[again - 1]).astype(float), minlength=items)
        self.gaps += np.bincount(item[again], minlength=items)
        wanted = history.keep(history.wanted)
        has_price = np.isfinite(wanted.price)
        rounded = np.rint(wanted.price[has_price].astype(float) / PRICE_UNIT) * PRICE_UNIT
        self.price += np.bincount(wanted.item[has_price], weights=rounded, minlength=items)
        self.priced += np.bincount(wanted.item[has_price], minlength=items)
        np.minimum.at(self.first, wanted.item, wanted.ts)
        np.maximum.at(self.last, wanted.item, wanted.ts)
        lately = last_day < POPULARITY_DAYS[MONTH]
        size = (len(history), items)
        month = sp.csr_matrix((np.ones(int(lately.sum()), np.float32), (pair_user[lately], pair_item[lately])), shape=size)
        return sp.csr_matrix((times.astype(np.float32), (pair_user, pair_item)), shape=size), month

    def add_looks(self, history: Histories, *, cutoff: int) -> list[sp.csr_matrix]:
        """Count a shard's looks; of each kind float32 (U, I): on how many days each user looked at each item."""
        items = len(self.repeaters)
        if not len(self.looked) or not (history.look >= OTHER_LOOK).any():
            return [sp.csr_matrix((len(history), items), dtype=np.float32) for _ in self.looked]
        user, item, day = purchase_days(history, cutoff=cutoff)
        key = user * items + item
        pair, place = np.unique(key, return_index=True)
        last_bought = day[place]  # of each pair the last day comes first
        found: list[sp.csr_matrix] = []
        for number in range(len(self.looked)):
            user, item, day = event_days(history, history.look == OTHER_LOOK + number, cutoff=cutoff)
            key = user * items + item
            looked, starts, counts = np.unique(key, return_index=True, return_counts=True)
            first_look = day[starts + counts - 1]
            at = np.minimum(np.searchsorted(pair, looked), max(len(pair) - 1, 0))
            followed = (pair[at] == looked) & (last_bought[at] <= first_look) if len(pair) else np.zeros(len(looked), bool)
            self.looked[number] += len(looked)
            self.followed[number] += followed.sum()
            row, column = np.divmod(looked, items)
            found.append(sp.csr_matrix((counts.astype(np.float32), (row, column)), shape=(len(history), items)))
        user, item, day = event_days(history, history.look >= OTHER_LOOK, cutoff=cutoff)
        for row, days in enumerate(POPULARITY_DAYS):
            self.look_windows[row] += np.bincount(item[day < days], minlength=items)
        return found

    def look_rates(self) -> np.ndarray:
        """float64 (K): as `Signals.look_rates`."""
        return self.followed / np.maximum(self.looked, 1)
