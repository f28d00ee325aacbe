"""What a night's lists look like: counts, scores, concentration, and how they differ from the night before's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import metrics
from recsys.hashing import mix, sampled, stable_hash
from recsys.schema import ITEM_ID, RANK, SCORE, SOURCE, USER_ID

COLUMNS = (USER_ID, RANK, ITEM_ID, SCORE, SOURCE)
SCORE_BINS = 480  # of the log-odds from -12 to 12, 0.05 wide; what lies outside counts in the first and last
DRIFT_BINS = 10  # that population stability is taken over, of nearly equal mass the night before
SMALLEST_SHARE = 1e-4  # what an empty bin counts as, so that its logarithm is finite
PAIRED_USERS = 200_000  # whose pairs are kept: overlap is known to .001 from them, and all pairs would grow the driver
HELD = 32  # batches whose counts wait to be added up: memory goes by distinct items, not by rows
PRESENT = 0.01  # a source with less than this share of the rows may vanish without notice


@dataclass(frozen=True)
class ListFigures:
    """What a night's lists look like; counts over all rows, and pairs of a sample of users."""

    rows: int
    users: int
    """Lists."""
    short_users: int
    """Lists of fewer than k items."""
    sources: Mapping[str, int]
    """Rows by source."""
    items: Mapping[int | str, int]
    """Rows by item id."""
    scores: np.ndarray
    """int64 (SCORE_BINS + 1): rows by log-odds of the score; the last counts rows without a score."""
    low: float
    """The lowest score, NaN where there is none."""
    high: float
    """The highest score."""
    sampled: np.ndarray
    """uint64: hashes of the sampled users, one for each of their lists, ascending."""
    user: np.ndarray
    """uint64 (M): rows of users whose pairs are kept: hash of the user …"""
    pair: np.ndarray
    """uint64 (M): … and of user and item; ascending …"""
    odds: np.ndarray
    """float32 (M): … and the log-odds of the score, NaN where there is none."""

    @property
    def repeated_users(self) -> int:
        """Lists of sampled users beyond each one's first."""
        return len(self.sampled) - len(np.unique(self.sampled))

    @cached_property
    def gini(self) -> float:
        """Concentration of rows on recommended items: 0 where all have the same number, towards 1 where one has nearly all.

        (Gini 1912; as sum of (2 i - n - 1) x_i / (n sum of x) over x ascending)
        """
        counts = np.sort(np.fromiter(self.items.values(), np.float64, len(self.items)))
        place = np.arange(1, len(counts) + 1)
        return float(((2 * place - len(counts) - 1) @ counts) / (len(counts) * counts.sum()))


def figures_of(batches: Iterable[pa.RecordBatch], *, k: int, share: float, pair_share: float) -> ListFigures:
    """What the lists of a table look like, batch by batch.

    Args:
        batches: with COLUMNS; every user's ranks are 1, 2, … as the audit demands.
        share: of the users, chosen by hash, who are sampled: 8 bytes a user.
        pair_share: of the users whose pairs are kept too, at most `share`: 20 bytes a row.
    """
    rows = users = full = 0
    counts: dict[str, list[pa.Table]] = {SOURCE: [], ITEM_ID: []}
    scores = np.zeros(SCORE_BINS + 1, np.int64)
    low, high = np.inf, -np.inf
    nothing = np.empty(0, np.uint64)
    chosen, user, pair, odds = [nothing], [nothing], [nothing], [np.empty(0, np.float32)]
    for batch in batches:
        rows += batch.num_rows
        rank = batch.column(RANK).to_numpy()
        users += int((rank == 1).sum())
        full += int((rank == k).sum())
        for name, held in counts.items():
            held.append(pa.Table.from_struct_array(pc.value_counts(batch.column(name))))
            if len(held) == HELD:
                counts[name] = [_added(held)]
        known = batch.column(SCORE).drop_null().to_numpy().astype(np.float64)
        scores += np.bincount(_bins(known), minlength=SCORE_BINS + 1)
        scores[-1] += batch.num_rows - len(known)
        if len(known):
            low, high = min(low, known.min()), max(high, known.max())
        of_user, of_item = (_hashes(batch.column(name)) for name in (USER_ID, ITEM_ID))
        chosen.append(of_user[sampled(of_user, share) & (rank == 1)])
        kept = sampled(of_user, pair_share)
        user.append(of_user[kept])
        pair.append(mix(of_user[kept] ^ mix(of_item[kept])))
        score = batch.column(SCORE).to_numpy(zero_copy_only=False).astype(np.float64)  # null is NaN
        odds.append(_log_odds(score[kept]).astype(np.float32))
    pairs = np.concatenate(pair)
    order = np.argsort(pairs)
    ends = (float(low), float(high)) if np.isfinite(low) else (float("nan"), float("nan"))
    return ListFigures(
        rows,
        users,
        users - full,
        _by_value(counts[SOURCE]),
        _by_value(counts[ITEM_ID]),
        scores,
        *ends,
        np.sort(np.concatenate(chosen)),
        np.concatenate(user)[order],
        pairs[order],
        np.concatenate(odds)[order],
    )


def _added(counts: Sequence[pa.Table]) -> pa.Table:
    """Columns `values`, distinct, and `counts`: the sum over the tables."""
    summed = pa.concat_tables(counts).group_by("values").aggregate([("counts", "sum")])
    return summed.rename_columns(["values", "counts"])


def _by_value(counts: Sequence[pa.Table]) -> dict[Any, int]:
    """Value -> its count in all the tables."""
    if not counts:
        return {}
    added = _added(counts)
    return dict(zip(added["values"].to_pylist(), added["counts"].to_pylist(), strict=True))


def _bins(scores: np.ndarray) -> np.ndarray:
    odds = np.nan_to_num(_log_odds(scores), nan=12.0)  # outside 0..1: another check's business
    return np.clip((odds + 12) / 24 * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    """Within -12 and 12; NaN where the score is none or no chance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.log(scores) - np.log1p(-scores), -12, 12)


def _hashes(column: pa.Array) -> np.ndarray:
    """uint64: the stable hash of every id, made once for each distinct one."""
    encoded = column.dictionary_encode()
    return stable_hash(encoded.dictionary.to_numpy(zero_copy_only=False))[encoded.indices.to_numpy()]


def drift(before: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of two histograms: sum of (q - p) ln(q / p) over bins of near-equal mass of the first.

    Below 0.1 is taken for no shift, above 0.25 for a large one. (Siddiqi 2006, Credit Risk Scorecards)

    Args:
        before, now: int (B + 1): rows by score, ascending; the last counts rows without one and is a bin of its own.
    """
    group = np.append(metrics.equal_mass(before[:-1], DRIFT_BINS), DRIFT_BINS)
    p, q = (
        np.maximum(np.bincount(group, weights=counts, minlength=DRIFT_BINS + 1) / max(counts.sum(), 1), SMALLEST_SHARE)
        for counts in (before, now)
    )
    return float(((q - p) * np.log(q / p)).sum())


def score_shift(before: ListFigures, now: ListFigures) -> float | None:
    """By how much the log-odds of a user's scores rose, each list's mean, on average over users with scores in both; None where nobody
    has."""
    (users, means), (users_now, means_now) = (_means(one) for one in (before, now))
    _, place, place_now = np.intersect1d(users, users_now, assume_unique=True, return_indices=True)
    return float((means_now[place_now] - means[place]).mean()) if len(place) else None


def _means(lists: ListFigures) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of users with scores, ascending, and the mean log-odds of each."""
    known = ~np.isnan(lists.odds)
    users, row = np.unique(lists.user[known], return_inverse=True)
    return users, np.bincount(row, weights=lists.odds[known]) / np.maximum(np.bincount(row), 1)


def overlap(before: ListFigures, now: ListFigures) -> float | None:
    """Share of the rows before that are in the lists now too, over users with pairs who have both; None where nobody has."""
    both = np.intersect1d(before.sampled, now.sampled)
    rows = np.isin(before.user, both)
    return float(np.isin(before.pair[rows], now.pair).mean()) if rows.any() else None


def source_shares(now: ListFigures, before: ListFigures) -> tuple[float, float]:
    """The largest change of any source's share of the rows, and the smallest ratio of shares of those that were PRESENT."""
    shares = [
        (before.sources.get(name, 0) / before.rows, now.sources.get(name, 0) / now.rows) for name in {*before.sources, *now.sources}
    ]
    return max(abs(q - p) for p, q in shares), min((q / p for p, q in shares if p >= PRESENT), default=1.0)
