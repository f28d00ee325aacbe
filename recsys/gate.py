"""May tonight's staged table replace what stands there? What its lists look like, against the night before and the settings' limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import config, metrics
from recsys.errors import ConfigError
from recsys.profiles import mix, stable_hash
from recsys.tables import ITEM_ID, RANK, SCORE, SOURCE, USER_ID

NAMES = (
    "repeated_users",
    "unknown_items",
    "lowest_score",
    "highest_score",
    "ndcg",
    "rows",
    "users",
    "short_users",
    "overlap",
    "items",
    "concentration",
    "drift",
    "source_change",
    "source_kept",
)
COLUMNS = (USER_ID, RANK, ITEM_ID, SCORE, SOURCE)
SCORE_BINS = 480  # of the log-odds from -12 to 12, 0.05 wide; what lies outside counts in the first and last
DRIFT_BINS = 10  # that population stability is taken over, of nearly equal mass the night before
SMALLEST_SHARE = 1e-4  # what an empty bin counts as, so that its logarithm is finite
PAIRED_USERS = 200_000  # whose pairs are kept: overlap is known to .001 from them, and all pairs would grow the driver
HELD = 32  # batches whose counts wait to be added up: memory goes by distinct items, not by rows
PRESENT = 0.01  # a source with less than this share of the rows may vanish without notice


def overrides(names: Iterable[str], why: str | None) -> dict[str, str]:
    """Check -> why it may fail, as the arguments --override and --why say.

    Raises:
        ConfigError: no such check, or one of the two without the other.
    """
    chosen = list(names)
    for name in chosen:
        if name not in NAMES:
            raise ConfigError(f"--override {name}: no such check. Known: {', '.join(NAMES)}.")
    if bool(chosen) != bool(why and why.strip()):
        raise ConfigError(f"--override and --why go together, got {chosen} and {why!r}. Say which check may fail, and why.")
    return dict.fromkeys(chosen, why or "")


@dataclass(frozen=True)
class Lists:
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
    """uint64 (M): … and of user and item; ascending."""

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


def look(batches: Iterable[pa.RecordBatch], *, k: int, share: float, pair_share: float) -> Lists:
    """What the lists of a table look like, batch by batch.

    Args:
        batches: with COLUMNS; every user's ranks are 1, 2, … as the audit demands.
        share: of the users, chosen by hash, who are sampled: 8 bytes a user.
        pair_share: of the users whose pairs are kept too, at most `share`: 16 bytes a row.
    """
    limit, pair_limit = (
        np.uint64(min(part * 2.0**64, 2.0**64 - 2048)) for part in (share, pair_share)
    )  # the largest float64 below 2^64
    rows = users = full = 0
    counts: dict[str, list[pa.Table]] = {SOURCE: [], ITEM_ID: []}
    scores = np.zeros(SCORE_BINS + 1, np.int64)
    low, high = np.inf, -np.inf
    nothing = np.empty(0, np.uint64)
    sampled, user, pair = [nothing], [nothing], [nothing]
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
        sampled.append(of_user[(of_user <= limit) & (rank == 1)])
        kept = of_user <= pair_limit
        user.append(of_user[kept])
        pair.append(mix(of_user[kept] ^ mix(of_item[kept])))
    pairs = np.concatenate(pair)
    order = np.argsort(pairs)
    ends = (float(low), float(high)) if np.isfinite(low) else (float("nan"), float("nan"))
    return Lists(
        rows,
        users,
        users - full,
        _by_value(counts[SOURCE]),
        _by_value(counts[ITEM_ID]),
        scores,
        *ends,
        np.sort(np.concatenate(sampled)),
        np.concatenate(user)[order],
        pairs[order],
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
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(scores) - np.log1p(-scores)
    odds = np.nan_to_num(odds, nan=np.inf, posinf=np.inf, neginf=-np.inf)  # outside 0..1: another check's business
    return np.clip((np.clip(odds, -12, 12) + 12) / 24 * SCORE_BINS, 0, SCORE_BINS - 1).astype(np.int64)


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


def overlap(before: Lists, now: Lists) -> float | None:
    """Share of the rows before that are in the lists now too, over users with pairs who have both; None where nobody has."""
    both = np.intersect1d(before.sampled, now.sampled)
    rows = np.isin(before.user, both)
    return float(np.isin(before.pair[rows], now.pair).mean()) if rows.any() else None


@dataclass(frozen=True)
class Check:
    """One figure of a night and what it may be."""

    name: str
    """As in --override."""
    value: float | None
    """None where there is nothing to measure."""
    low: float | None
    """The least that it may be; None: anything."""
    high: float | None
    """The most."""
    meaning: str

    @property
    def passed(self) -> bool:
        """The figure is within its limits, or there is none."""
        if self.value is None:
            return True
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def limit(self) -> str:
        """What the figure may be, in words."""
        parts = [f"at least {self.low:g}"] if self.low is not None else []
        return " and ".join(parts + ([f"at most {self.high:g}"] if self.high is not None else []))


@dataclass(frozen=True)
class Verdict:
    """The checks of a night."""

    before: date | None
    """The night compared with; None where tonight's is the first."""
    checks: tuple[Check, ...]

    def __post_init__(self) -> None:
        assert {check.name for check in self.checks} <= set(NAMES)

    def failed(self, overrides: Iterable[str] = ()) -> list[Check]:
        """The checks that stop the night, but those overridden by name."""
        return [check for check in self.checks if not check.passed and check.name not in set(overrides)]


def judge(
    now: Lists,
    before: Lists | None,
    *,
    limits: config.Gate,
    night_before: date | None,
    unknown_items: int,
    ndcg: float | None = None,
) -> Verdict:
    """Tonight's figures beside their limits.

    Args:
        ndcg: as `champion.versus`.
        before: the newest night before tonight; None where there is none.
        unknown_items: rows whose item the catalog does not have, or may not be recommended.
    """
    checks = [
        Check("repeated_users", now.repeated_users, None, limits.max_repeated_users, "lists beyond a user's first"),
        Check("unknown_items", unknown_items, None, limits.max_unknown_items, "rows with an item that is not available in the catalog"),
        Check("lowest_score", _number(now.low), 0.0, None, "a chance is not below 0"),
        Check("highest_score", _number(now.high), None, 1.0, "nor above 1"),
        Check(
            "ndcg",
            ndcg,
            0 - limits.max_ndcg_loss,
            None,
            "upper 95% bound of the model's NDCG@10 less the champion's, unless it is that",
        ),
    ]
    if before is not None:
        short, then_short = now.short_users / now.users, before.short_users / before.users
        change, kept = _sources(now, before)
        checks += [
            Check("rows", now.rows / before.rows, limits.min_rows, limits.max_growth, "as a share of the night before's"),
            Check("users", now.users / before.users, limits.min_users, limits.max_growth, "as a share of the night before's"),
            Check("short_users", short - then_short, None, limits.max_short_rise, "rise in the share of users with fewer than k items"),
            Check("overlap", overlap(before, now), limits.min_overlap, None, "share of the night before's rows that stay"),
            Check(
                "items", len(now.items) / len(before.items), limits.min_items, None, "distinct ones, as a share of the night before's"
            ),
            Check("concentration", now.gini - before.gini, None, limits.max_concentration_rise, "rise of the Gini index over items"),
            Check("drift", drift(before.scores, now.scores), None, limits.max_drift, "population stability index of the scores"),
            Check("source_change", change, None, limits.max_source_change, "largest change of a source's share of the rows"),
            Check("source_kept", kept, limits.min_source_kept, None, "smallest part of its share that a source keeps"),
        ]
    return Verdict(night_before, tuple(checks))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _sources(now: Lists, before: Lists) -> tuple[float, float]:
    """The largest change of any source's share of the rows, and the smallest ratio of shares of those that were PRESENT."""
    shares = [
        (before.sources.get(name, 0) / before.rows, now.sources.get(name, 0) / now.rows) for name in {*before.sources, *now.sources}
    ]
    return max(abs(q - p) for p, q in shares), min((q / p for p, q in shares if p >= PRESENT), default=1.0)
