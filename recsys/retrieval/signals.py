"""What history says about items as of a date: popularity, prices, repeat timing, neighbours and factors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from recsys import config
from recsys.data.catalog import Catalog
from recsys.data.histories import Histories
from recsys.errors import DataError
from recsys.hashing import mix, stable_hash
from recsys.retrieval.collaborative import Als, evidence_of, item_factors, look_weights, neighbour_weights, on_grid, whole_numbers
from recsys.retrieval.item_sums import MONTH, POPULARITY_DAYS, ItemSums
from recsys.schema import DAY_US, ITEM_ID, USER_ID
from recsys.storage import load_arrays, save_arrays, write_arrow, write_atomically


@dataclass(frozen=True)
class Signals:
    """What is known of the J active items; arrays go by active position.

    Active are the items wanted at least once in [start, cutoff), and those that may be recommended all the same: of them there are no
    buyers, no neighbours, a vector of zeros, and NaN for what only purchases tell.
    """

    start: np.ndarray
    """int64 (), microseconds."""
    cutoff: np.ndarray
    """int64 (), microseconds; nothing from then on is in any signal."""
    items: np.ndarray
    """int32 (J): item code of each active position, ascending."""
    position: np.ndarray
    """int32 (I): active position of each item code, -1 where it has none."""
    popularity: np.ndarray
    """float32 (W + 1, J): each item's share of the purchases in each window of POPULARITY_DAYS, then in the whole history."""
    buyers: np.ndarray
    """float32 (W + 1, J): users who bought the item in each of these windows."""
    first_ts: np.ndarray
    """int64 (J): first purchase, microseconds; the cutoff where there is none."""
    last_ts: np.ndarray
    """int64 (J): last purchase, microseconds; the cutoff where there is none."""
    price: np.ndarray
    """float32 (J): mean price paid for one unit, NaN where none is known."""
    repeat_rate: np.ndarray
    """float32 (J): share of buyers who bought it on two days or more, NaN without buyers."""
    repeat_days: np.ndarray
    """float32 (J): mean days between two purchases by one user, NaN where nobody repeated."""
    neighbour_offsets: np.ndarray
    """int64 (J + 1): row pointers of the neighbour weights."""
    neighbour_items: np.ndarray
    """int32 (N): active position that a weight speaks for."""
    neighbour_weights: np.ndarray
    """float32 (N): what a purchase of the row's item adds to the score of that one."""
    factors: np.ndarray
    """float32 (J, D): item factors of ALS."""
    als_weights: np.ndarray
    """float64 (3): l2, alpha and looks, under which they were fitted; users are folded in under the same."""
    look_rates: np.ndarray
    """float64 (K): of the pairs of a user and an item with a look of each kind, the share that the user bought on the day of the first
    such look or later; kinds are OTHER_LOOK, then those of shop.look_kinds. Empty where no look is known from a purchase."""
    looks: np.ndarray
    """float32 (W, J): each item's share of the looks of all kinds in each window of POPULARITY_DAYS, a user's of one day as one."""
    groups: np.ndarray
    """uint64 (G): keys of the groups of users that are large enough, ascending; of `group_keys`."""
    group_offsets: np.ndarray
    """int64 (G + 1): row pointers of the groups' purchases."""
    group_items: np.ndarray
    """int32 (P): active position of what users of a group bought in the last 28 days."""
    group_counts: np.ndarray
    """float32 (P): how many of its users bought that."""
    daily: np.ndarray
    """float32 (F, J): what the shop says of days about the cutoff, in the order of `data.daily.names`; NaN where it says nothing."""

    @cached_property
    def neighbours(self) -> sp.csr_matrix:
        """(J, J): row = item bought, column = item scored."""
        count = len(self.items)
        return sp.csr_matrix((self.neighbour_weights, self.neighbour_items, self.neighbour_offsets), shape=(count, count))

    @cached_property
    def neighbours_by_scored(self) -> sp.csc_matrix:
        """The same weights by column, for asking why an item scored."""
        return self.neighbours.tocsc()

    @cached_property
    def share_of_buyers(self) -> np.ndarray:
        """float32 (J): each item's share of all items' buyers in the last 28 days; those without follow in order of the history.

        Buyers, not purchases: what few users buy often is nothing for all.
        """
        shares = self.buyers / np.maximum(self.buyers.sum(axis=1, keepdims=True, dtype=np.float64), 1)
        return np.where(shares[MONTH] > 0, shares[MONTH], shares[-1] * 1e-6).astype(np.float32)

    @cached_property
    def log_popularity(self) -> np.ndarray:
        """float32 (W + 1, J): log of `popularity`, of which one in ten million is too little to tell apart."""
        return np.log(self.popularity + 1e-7)

    @cached_property
    def log_price(self) -> np.ndarray:
        """float32 (J): log of `price` and a cent."""
        return np.log(self.price + 0.01)

    @cached_property
    def by_popularity(self) -> np.ndarray:
        """int32: items that anybody bought, those of the highest `share_of_buyers` first, ties by item."""
        order = np.argsort(-self.share_of_buyers, kind="stable")
        return order[: np.count_nonzero(self.share_of_buyers)].astype(np.int32)

    @property
    def als(self) -> Als:
        """`als_weights` by name."""
        return Als(*self.als_weights.tolist())

    @cached_property
    def look_weights(self) -> np.ndarray:
        """float64 (K): what looks of each kind weigh beside those of the weightiest."""
        return look_weights(self.look_rates)

    @cached_property
    def log_looks(self) -> np.ndarray:
        """float32 (W, J): log of `looks`, as `log_popularity`."""
        return np.log(self.looks + 1e-7)

    @cached_property
    def gram(self) -> np.ndarray:
        """float32 (D, D): the sum over items of the outer products of their factors."""
        return self.factors.T @ self.factors

    @cached_property
    def largest_factor(self) -> float:
        """The largest absolute value among the factors."""
        return max(float(self.factors.max(initial=0.0)), -float(self.factors.min(initial=0.0)))

    @cached_property
    def by_length(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 and float64: items that anybody bought, those of the longest vectors on the grid of products first, and the lengths."""
        power = on_grid(np.empty((0, self.factors.shape[1]), np.float32), self.largest_factor)[2]
        length = np.empty(len(self.items))
        for start in range(0, len(length), 1 << 16):  # whole numbers take twice the memory
            whole = whole_numbers(self.factors[start : start + (1 << 16)], power)
            length[start : start + len(whole)] = np.sqrt((whole * whole).sum(axis=1)) / power
        bought = np.flatnonzero(self.buyers[-1] > 0)
        order = bought[np.argsort(-length[bought], kind="stable")]
        return order.astype(np.int32), length[order]

    def arrays(self) -> dict[str, np.ndarray]:
        """Every field by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, path: Path, catalog: Catalog) -> None:
        """Two files, PATH.arrow with the ids of the active items and PATH.npz, uncompressed and without pickle, with all else."""
        ids = pa.table({ITEM_ID: catalog.item_id.take(pa.array(self.items))})
        write_atomically(path.with_suffix(".arrow"), lambda file: write_arrow(ids, file))
        save_arrays(
            path.with_suffix(".npz"), **{name: array for name, array in self.arrays().items() if name not in ("items", "position")}
        )


def active_items(path: Path, catalog: Catalog) -> np.ndarray:
    """int32 (J): the codes of the active items of signals that `Signals.save` wrote, under any catalog that holds them.

    Raises:
        KeyError: it does not hold one.
    """
    with pa.memory_map(str(path.with_suffix(".arrow"))) as source:
        return catalog.codes_of(pa.ipc.open_file(source).read_all().column(ITEM_ID))


def load(path: Path, catalog: Catalog) -> Signals:
    """The signals that `Signals.save` wrote, under any catalog that holds their items: codes are by id, so both ascend alike.

    Raises:
        KeyError: as `active_items`.
    """
    items = active_items(path, catalog)
    position = np.full(len(catalog), -1, np.int32)
    position[items] = np.arange(len(items))
    return Signals(items=items, position=position, **load_arrays(path.with_suffix(".npz")))


def fit(
    shards: Iterable[tuple[Histories, np.ndarray]],
    *,
    items: int,
    start: int,
    cutoff: int,
    settings: config.Signals,
    als: Als,
    seed: int,
    looks: int = 0,
    extra: np.ndarray | None = None,
    groups: Sequence[str] = (),
    unseen: np.ndarray | None = None,
    most_unseen: int = 0,
    daily: np.ndarray | None = None,
) -> Signals:
    """The signals of the events in [start, cutoff).

    Purchases of one item by one user on one day count once.

    Args:
        shards: histories with any events, and bool (U): the users whose histories fit neighbours and factors.
        items: I, the size of the catalog.
        looks: K, kinds of looks.
        extra: int (X), codes of items that are active whether bought or not.
        unseen, most_unseen: codes of items, int; the first so many of them that nobody bought are active too.
        daily: float32 (F, I), facts about the cutoff of every item.
        groups: columns of users, the one that tells most first; of chosen users, those with the same values have a popularity of
            their own, first by all columns, then by fewer from the last one on.

    Raises:
        DataError: nobody wanted anything in the time.
    """
    windows = (*POPULARITY_DAYS, max(1, -(-(cutoff - start) // DAY_US)))
    sums = ItemSums(items, windows, looks=looks)
    rows: list[sp.csr_matrix] = []
    ids: list[pa.Array] = []
    keys: list[np.ndarray] = []
    months: list[sp.csr_matrix] = []
    looked: list[list[sp.csr_matrix]] = [[] for _ in range(looks)]
    for batch, chosen in shards:
        history = batch.between(start, cutoff)
        pairs, month = sums.add(history, cutoff=cutoff)
        for number, one in enumerate(sums.add_looks(history, cutoff=cutoff)):
            if als.looks:
                looked[number].append(one[chosen])
        rows.append(pairs[chosen])
        ids.append(batch.users.column(USER_ID).filter(pa.array(chosen)).combine_chunks())
        keys.append(group_keys(batch.users, groups)[:, chosen])
        months.append(month[chosen])
    bought = sums.buyers[-1] > 0
    if not bought.any():
        raise DataError(
            f"signals: no wanted event in the {(cutoff - start) // DAY_US} days before {np.datetime64(cutoff, 'us')}. "
            "Check shop.label_kinds and window.history_days, or use another date."
        )
    chosen_items = bought.copy()
    if extra is not None:
        chosen_items[extra] = True
    if unseen is not None:
        chosen_items[unseen[~bought[unseen]][:most_unseen]] = True
    active = np.flatnonzero(chosen_items)
    sums.first[~bought] = sums.last[~bought] = cutoff
    position = np.full(items, -1, np.int32)
    position[active] = np.arange(len(active))
    with np.errstate(invalid="ignore"):
        price = sums.price[active] / sums.priced[active]
        repeat_days = np.abs(sums.gap_days[active]) / sums.gaps[active]
        repeat_rate = sums.repeaters[active] / sums.buyers[-1, active]
    # Rows in user_id order: sums of floats, and so the factors' last bits, must not depend on how users are cut into shards.
    order = pc.sort_indices(pa.chunked_array(ids)).to_numpy()
    days, *kinds = (sp.vstack(one, format="csr") for one in (rows, *(one for one in looked if one)))
    evidence = evidence_of(days, kinds, als.looks * look_weights(sums.look_rates()), bought=bought)
    evidence = evidence[order][:, np.flatnonzero(bought)]
    evidence = evidence[np.diff(evidence.indptr) > 0]
    with threadpool_limits(1, "blas"):  # one fit runs on one CPU
        weights = neighbour_weights(evidence, settings)
        vectors = item_factors(evidence, settings, als, seed=seed)
    grouped = group_purchases(np.concatenate(keys, axis=1), sp.vstack(months, format="csr")[:, active], settings.group_users)
    known = position[bought]  # fitted to what was bought, then spread to the active positions
    factors = np.zeros((len(active), vectors.shape[1]), np.float32)
    factors[known] = vectors
    lengths = np.zeros(len(active), np.int64)
    lengths[known] = np.diff(weights.indptr)
    return Signals(
        start=np.array(start, np.int64),
        cutoff=np.array(cutoff, np.int64),
        items=active.astype(np.int32),
        position=position,
        popularity=(sums.windows[:, active] / np.maximum(sums.windows.sum(axis=1, keepdims=True), 1)).astype(np.float32),
        buyers=sums.buyers[:, active].astype(np.float32),
        first_ts=sums.first[active],
        last_ts=sums.last[active],
        price=price.astype(np.float32),
        repeat_rate=repeat_rate.astype(np.float32),
        repeat_days=repeat_days.astype(np.float32),
        neighbour_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        neighbour_items=known[weights.indices],
        neighbour_weights=weights.data.astype(np.float32),
        factors=factors,
        als_weights=np.array(als, np.float64),
        look_rates=sums.look_rates(),
        looks=(sums.look_windows[:, active] / np.maximum(sums.look_windows.sum(axis=1, keepdims=True), 1)).astype(np.float32),
        groups=grouped[0],
        group_offsets=grouped[1].indptr.astype(np.int64),
        group_items=grouped[1].indices.astype(np.int32),
        group_counts=grouped[1].data.astype(np.float32),
        daily=np.zeros((0, len(active)), np.float32) if daily is None else daily[:, active],
    )


def group_keys(users: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """uint64 (L, U): for each of L columns, the key of the group of users alike in it and all columns before; null is a value too."""
    keys = np.empty((len(columns), users.num_rows), np.uint64)
    alike = np.zeros(users.num_rows, np.uint64)
    for level, column in enumerate(columns):
        words = pc.fill_null(users.column(column), "").to_numpy().astype(object)
        alike = mix(alike ^ stable_hash(words)) + np.uint64(level)
        keys[level] = alike
    return keys


def group_purchases(keys: np.ndarray, month: sp.csr_matrix, fewest: int) -> tuple[np.ndarray, sp.csr_matrix]:
    """The keys, ascending, of the groups of which at least `fewest` users bought, and (G, J) how many of its users bought what.

    Args:
        keys: uint64 (L, U), of `group_keys`.
        month: (U, J), 1 where the user bought the item.
    """
    buyers = np.flatnonzero(np.diff(month.indptr))
    user = np.tile(buyers, len(keys))
    found, group, size = np.unique(keys[:, buyers].ravel(), return_inverse=True, return_counts=True)
    member = sp.csr_matrix((np.ones(len(user), np.float64), (group, user)), shape=(len(found), month.shape[0]))
    large = np.flatnonzero(size >= fewest)
    purchases = (member[large] @ month.astype(np.float64)).tocsr()
    purchases.sort_indices()
    return found[large], purchases
