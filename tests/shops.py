"""A shop small enough to check by eye: five users, seven items, one hundred days of history.

    code  id  name    department  available          user  age   income
    0     10  milk    dairy       yes                ann   30s   41.5
    1     20  cheese  dairy       yes                bob   -     -
    2     30  bread   bakery      yes                cid   50s   18.0
    3     40  roll    bakery      yes                dee   30s   -
    4     50  cake    bakery      no                 eve   90s   7.0
    5     60  -       -           yes, never bought in the history: it has no active position
    6     70  spade   garden      yes

Active positions: milk 0, cheese 1, bread 2, roll 3, cake 4, spade 5.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from typing_extensions import override

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories, group_events
from recsys.features.candidate_features import Featurizer
from recsys.retrieval import best_kernels, candidates, signals
from recsys.retrieval.collaborative import Als
from recsys.retrieval.heaps import Barred, Heaps, empty_heaps
from recsys.retrieval.rules import RuledUsers
from recsys.retrieval.signals import Signals
from recsys.retrieval.sources import Source
from recsys.retrieval.users import UserBatch
from recsys.schema import DAY_US, OTHER_LOOK, WANTED

START, CUTOFF, END = 0, 100 * DAY_US, 110 * DAY_US
MILK, CHEESE, BREAD, ROLL, CAKE, NOTHING, SPADE = range(7)
P_MILK, P_CHEESE, P_BREAD, P_ROLL, P_CAKE, P_SPADE = range(6)  # active positions
ANN, BOB, CID, DEE, EVE = range(5)
ALS = Als(0.1, 2.0)
TONIGHT = Path("no lists")  # as in a night, not as in training; the folder is read only where rules have lists
VOCABULARIES = {"department": ("bakery", "dairy"), "age": ("30s", "50s")}  # garden and 90s are unseen


class Event(NamedTuple):
    """One event; `day` counts from 1970 and may be a fraction."""

    user: int
    item: int
    day: float
    price: float = math.nan
    quantity: float = 1.0
    wanted: bool = True
    look: int = OTHER_LOOK
    """What it is if it is not wanted."""


BEFORE = [Event(ANN, NOTHING, -5.5), Event(DEE, BREAD, -1.5), Event(EVE, ROLL, -30.5)]
HISTORY = [
    Event(ANN, CHEESE, 5.5),
    Event(ANN, MILK, 60.5, 1.0),
    Event(ANN, MILK, 80.5, 1.2),
    Event(ANN, MILK, 98.5),
    Event(ANN, BREAD, 98.5, 2.0),
    Event(BOB, MILK, 95.5, 1.4),
    Event(BOB, ROLL, 95.5, 0.5),
    Event(BOB, CHEESE, 96.5, wanted=False),
    Event(BOB, ROLL, 97.5, 0.7, quantity=6.0),
    Event(CID, BREAD, 10.5, 3.0),
    Event(CID, MILK, 99.2, 1.0),
    Event(CID, MILK, 99.6, 1.0),
    Event(CID, CAKE, 99.6, 9.0),
    Event(DEE, SPADE, 50.5, 20.0),
]
AFTER = [
    Event(ANN, BREAD, 100.0),
    Event(ANN, ROLL, 104.5),
    Event(ANN, NOTHING, 104.5),
    Event(BOB, CHEESE, 102.5),
    Event(BOB, MILK, 103.5, wanted=False),
    Event(CID, SPADE, 109.5),
    Event(CID, MILK, 110.0),
    Event(DEE, BREAD, 101.5),
    Event(EVE, BREAD, 101.5),
]


def catalog(**columns: pa.Array) -> Catalog:
    """The shop's catalog, with columns replaced."""
    table: dict[str, pa.Array] = {
        "item_id": pa.array([10, 20, 30, 40, 50, 60, 70], pa.int64()),
        "available": pa.array([True, True, True, True, False, True, True]),
        "name": pa.array(["milk", "cheese", "bread", "roll", "cake", None, "spade"]),
        "department": pa.array(["dairy", "dairy", "bakery", "bakery", "bakery", None, "garden"]),
        "size": pa.array([1.0, 0.5, None, 0.1, 2.0, 3.0, 90.0], pa.float32()),
    }
    return Catalog(pa.table(table | columns))


def users() -> pa.Table:
    """The shop's users."""
    return pa.table(
        {
            "user_id": pa.array(["ann", "bob", "cid", "dee", "eve"]),
            "age": pa.array(["30s", None, "50s", "30s", "90s"]),
            "income": pa.array([41.5, None, 18.0, None, 7.0], pa.float32()),
        }
    )


def group(events: Sequence[Event], table: pa.Table | None = None) -> Histories:
    """Histories of the events, of the shop's users unless others are given."""
    columns = (
        np.array([event.item for event in events], np.int32),
        np.array([round(event.day * DAY_US) for event in events], np.int64),
        np.array([event.quantity for event in events], np.float32),
        np.array([event.price for event in events], np.float32),
        np.array([WANTED if event.wanted else event.look for event in events], np.int8),
    )
    return group_events(users() if table is None else table, np.array([event.user for event in events], np.int64), columns)


def whole() -> Histories:
    """The shop's histories with all events, before, within and after the history."""
    return group([*BEFORE, *HISTORY, *AFTER])


def settings(**sections: config.Section) -> config.Settings:
    """Settings that fit the shop, with sections replaced."""
    default: dict[str, config.Section] = {
        "shop": config.Shop(events="events", items="items", users="users"),
        "features": config.Features(
            item_categorical=("department",), item_numeric=("size",), user_categorical=("age",), user_numeric=("income",)
        ),
        "signals": config.Signals(ease_items=3, ease_l2=0.5, neighbours=4, factors=2, als_iterations=3, als_l2=0.1, als_alpha=2.0),
    }
    return config.Settings.model_validate(default | sections)


def with_looks(*kinds: str) -> config.Settings:
    """Settings under which events that are not wanted are looks, of these kinds or of no kind of their own."""
    told: dict[str, Any] = {"label_kinds": ("purchase",), "look_kinds": kinds or None}
    return settings(shop=config.Shop(events="events", items="items", users="users", **told))


def fit(events: Histories, changed: config.Settings | None = None, **options: Any) -> Signals:
    """The signals of [START, CUTOFF), every user taking part."""
    chosen = np.ones(len(events), bool)
    under = changed or settings()
    told: dict[str, Any] = {"als": ALS, "looks": under.shop.looks, **options}
    return signals.fit([(events, chosen)], items=7, start=START, cutoff=CUTOFF, settings=under.signals, seed=3, **told)


def featurizer(changed: config.Settings | None = None, items: Catalog | None = None, events: Histories | None = None) -> Featurizer:
    """The shop's featurizer of the night of CUTOFF, with signals of other events where they are given."""
    return Featurizer(changed or settings(), items or catalog(), fit(events or whole(), changed), VOCABULARIES, TONIGHT)


def batch(changed: config.Settings | None = None, items: Catalog | None = None) -> RuledUsers:
    """The shop's users as of CUTOFF."""
    return featurizer(changed, items).users(whole())


def scores_of(source: Source, users: UserBatch) -> np.ndarray:
    """float32 (U, J): what the source says of every pair, -inf where it does not propose the item."""
    row, item = np.divmod(np.arange(len(users) * len(users.signals.items)), len(users.signals.items))
    score = source.scores(users, row, item).astype(np.float32)
    return np.where(np.isnan(score), -np.inf, score).reshape(len(users), -1)


def barred_of(users: RuledUsers) -> np.ndarray:
    """uint16 (U, J): 1 + the place of the rule that forbids the pair, else 0."""
    row, item = np.divmod(np.arange(len(users) * len(users.signals.items)), len(users.signals.items))
    return users.barred.of(row, item).reshape(len(users), -1)


class Scores(Source):
    """A source whose scores are given, a row a user or one for all; -inf where it does not propose the item."""

    def __init__(self, name: str, *rows: list[float]) -> None:
        self.name = name
        self.rows = np.array(rows, np.float32)

    @override
    def best(self, users: UserBatch, barred: Barred, limit: int) -> Heaps:
        found = empty_heaps(len(users), limit)
        table = np.broadcast_to(self.rows[: len(users)], (len(users), self.rows.shape[1]))
        row, item = np.nonzero(table > -np.inf)
        offsets = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int64)
        best_kernels.of_rows(offsets, item.astype(np.int32), table[row, item], barred, found)
        return found

    @override
    def scores(self, users: UserBatch, user_row: np.ndarray, item: np.ndarray) -> np.ndarray:
        score = self.rows[user_row if len(self.rows) > 1 else 0, item]
        return np.where(score > -np.inf, score, np.nan)


def items_of(found: candidates.Candidates, user: int, source: str | None = None) -> list[int]:
    """Active positions proposed to a user, by one source in order of rank, or by any in order of item."""
    mine = found.user_row == user
    if source is None:
        return found.item[mine].tolist()
    rank = found.rank[mine, found.names.index(source)]
    listed = rank > 0
    return found.item[mine][listed][np.argsort(rank[listed])].tolist()
