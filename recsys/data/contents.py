"""What all histories hold day by day: so much that a stage knows whether what it made from some days serves another night."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from recsys.data.histories import Histories
from recsys.data.label_windows import FIRST
from recsys.hashing import mix, row_hashes, stable_hash
from recsys.schema import DAY_US, USER_ID

NO_PRICE = np.uint32(0x7FC00000)  # the bits of one NaN for all of them
MODULUS = 2**64


@dataclass(frozen=True)
class Contents:
    """Days and label windows count from FIRST, 1970-01-01; those without events are absent."""

    label_days: int
    hashes: Mapping[int, int]
    """Day -> the sum of its events' hashes, modulo 2^64: the same events give the same, in any order, however users are cut up."""
    new_users: Mapping[int, int]
    """Day -> users whose first event is of it."""
    known: Mapping[int, int]
    """Day -> the sum of the hashes of what is known of these users beside their events."""
    wanting: Mapping[int, int]
    """Label window -> users who wanted something in it."""
    wanted: Mapping[int, int]
    """Day -> pairs of a user and an item that the user wanted on it."""
    repeated: Mapping[int, int]
    """Day -> those of them that the user had wanted on an earlier day."""

    def of_days(self, start: date, end: date) -> int:
        """The sum of the hashes of all events of [start, end)."""
        first, last = (start - FIRST).days, (end - FIRST).days
        return sum(value for day, value in self.hashes.items() if first <= day < last) % MODULUS

    def known_before(self, day: date) -> int:
        """The sum of the hashes of what is known of users with an event before the day."""
        return sum(value for first, value in self.known.items() if first < (day - FIRST).days) % MODULUS

    def users_before(self, day: date) -> int:
        """Users with an event before the day."""
        return sum(users for first, users in self.new_users.items() if first < (day - FIRST).days)

    def repeats_before(self, day: date) -> float:
        """How often what is wanted was wanted before: a share of all before the day; 0 where nothing was."""
        wanted, repeated = (
            sum(count for one, count in counts.items() if one < (day - FIRST).days) for counts in (self.wanted, self.repeated)
        )
        return repeated / max(wanted, 1)

    def users_wanting(self, start: date) -> int:
        """Users who wanted something in the label window that begins on the day."""
        window, rest = divmod(start - FIRST, timedelta(days=self.label_days))
        assert not rest, f"no label window begins on {start}"
        return self.wanting.get(window, 0)


def count(histories: Histories, *, label_days: int) -> dict[str, dict[str, int]]:
    """What the users of a shard add to `Contents`, as JSON holds it; `hash_days` adds `hashes`."""
    days = histories.ts // DAY_US
    row = histories.user_row
    has = np.diff(histories.offsets) > 0
    first = days[histories.offsets[:-1][has]]
    windows = days[histories.wanted] // label_days
    wanting = row[histories.wanted]  # a user's events are in order of time, so each window of a user begins once
    begins = np.ones(len(windows), bool)
    begins[1:] = (windows[1:] != windows[:-1]) | (wanting[1:] != wanting[:-1])
    return {
        "new_users": _counts(first),
        "known": _sums(first, row_hashes(histories.users)[has]),
        "wanting": _counts(windows[begins]),
        **_repeats(wanting, histories.item[histories.wanted], days[histories.wanted]),
    }


def _repeats(row: np.ndarray, item: np.ndarray, day: np.ndarray) -> dict[str, dict[str, int]]:
    """`wanted` and `repeated` of what users wanted, an event each."""
    order = np.lexsort((day, item, row))
    row, item, day = row[order], item[order], day[order]
    again = (row[1:] == row[:-1]) & (item[1:] == item[:-1])
    first, repeated = np.ones((2, len(row)), bool)
    first[1:] = ~again | (day[1:] != day[:-1])
    repeated[:1] = False
    repeated[1:] = again & (day[1:] != day[:-1])
    return {"wanted": _counts(day[first]), "repeated": _counts(day[repeated])}


def hash_days(histories: Histories, item_hashes: np.ndarray, *, before: Mapping[str, int] = {}) -> dict[str, int]:
    """Of each day the sum of its events' hashes, modulo 2^64.

    Args:
        item_hashes: uint64 (I), by item code.
        before: the sums of other events, which are added.
    """
    users = stable_hash(histories.users.column(USER_ID).to_numpy())
    price = np.where(np.isnan(histories.price), NO_PRICE, histories.price.view(np.uint32)).astype(np.uint64)
    hashes = mix(mix(users[histories.user_row]) ^ item_hashes[histories.item])
    hashes = mix(hashes ^ histories.ts.view(np.uint64))
    hashes = mix(hashes ^ (price << np.uint64(32)) ^ histories.quantity.view(np.uint32).astype(np.uint64))
    hashes = mix(hashes ^ histories.look.astype(np.int64).view(np.uint64))
    sums = Counter(before)
    sums.update(_sums(histories.ts // DAY_US, hashes))
    return {day: value % MODULUS for day, value in sums.items()}


def total(counted: Iterable[Mapping[str, Mapping[str, int]]], *, label_days: int) -> Contents:
    """The contents of all shards, of what `count` gave for each."""
    sums: dict[str, Counter[int]] = {name: Counter() for name in ("hashes", "new_users", "known", "wanting", "wanted", "repeated")}
    for part in counted:
        for name, values in part.items():
            sums[name].update({int(key): value for key, value in values.items()})
    for name in ("hashes", "known"):
        sums[name] = Counter({day: value % MODULUS for day, value in sums[name].items()})
    return Contents(label_days, **sums)


def _sums(keys: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    sums = np.add.reduceat(values[order], starts) if len(starts) else values[:0]  # of uint64: modulo 2^64
    return {str(key): int(value) for key, value in zip(found.tolist(), sums.tolist(), strict=True)}


def _counts(keys: np.ndarray) -> dict[str, int]:
    return {str(key): count for key, count in zip(*(part.tolist() for part in np.unique(keys, return_counts=True)), strict=True)}
