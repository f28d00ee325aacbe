"""May tonight's staged table replace what stands there? Its figures beside the settings' limits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from recsys import config
from recsys.errors import ConfigError
from recsys.publishing.figures import ListFigures, drift, overlap, score_shift, source_shares

NAMES = (
    "repeated_users",
    "unknown_items",
    "lowest_score",
    "highest_score",
    "ndcg",
    "baseline",
    "baseline_new",
    "group_gap",
    "group_gap_rise",
    "rows",
    "users",
    "short_users",
    "overlap",
    "items",
    "concentration",
    "drift",
    "score_shift",
    "source_change",
    "source_kept",
)


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


@dataclass(frozen=True)
class Quality:
    """How the model's lists did on days that lie behind; what is not known passes."""

    ndcg: float | None = None
    """Upper 95% bound of its NDCG@10 less the champion's; None where it is the champion, or nobody bought."""
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As `backtest.best_baselines`; empty where too few users count."""

    gaps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Between groups of users, as `fairness.gaps_of`; empty where none are named."""
    gaps_before: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same, of the model that was measured before it."""

    def bound(self, part: str) -> float | None:
        """Upper 95% bound of its NDCG@10 less the best baseline's, over "all" items or "new" ones."""
        return self.baselines[part]["high"] if part in self.baselines else None

    def fallback(self, limits: config.Gate, overrides: Iterable[str] = ()) -> str | None:
        """The baseline whose order the night publishes in the model's stead; None where the model's own stands or falls."""
        bound = self.bound("all")
        below = bound is not None and bound < 0 - limits.max_baseline_loss
        return self.baselines["all"]["baseline"] if below and limits.fallback and "baseline" not in overrides else None


NOT_MEASURED = Quality()


def judge(
    now: ListFigures,
    before: ListFigures | None,
    *,
    limits: config.Gate,
    night_before: date | None,
    unknown_items: int,
    quality: Quality = NOT_MEASURED,
    same_order: bool = True,
) -> Verdict:
    """Tonight's figures beside their limits.

    Args:
        before: the newest night before tonight; None where there is none.
        unknown_items: rows whose item the catalog does not have, or may not be recommended.
        quality: of the model; of a baseline nothing is known.
        same_order: whether both nights are in a model's order, or in the same baseline's; else only their sizes are compared.
    """
    checks = [
        Check("repeated_users", now.repeated_users, None, limits.max_repeated_users, "lists beyond a user's first"),
        Check("unknown_items", unknown_items, None, limits.max_unknown_items, "rows with an item that is not available in the catalog"),
        Check("lowest_score", _number(now.low), 0.0, None, "a chance is not below 0"),
        Check("highest_score", _number(now.high), None, 1.0, "nor above 1"),
        Check(
            "ndcg",
            quality.ndcg,
            0 - limits.max_ndcg_loss,
            None,
            "upper 95% bound of the model's NDCG@10 less the champion's, unless it is that",
        ),
    ]
    for name, part in (("baseline", "all"), ("baseline_new", "new")):
        best = quality.baselines[part]["baseline"] if part in quality.baselines else "the best baseline"
        meaning = f"upper 95% bound of the model's NDCG@10 over {part} items less that of {best}"
        checks.append(Check(name, quality.bound(part), 0 - limits.max_baseline_loss, None, meaning))
    if quality.gaps:
        meaning = "NDCG@10 of the best group of users less that of the worst"
        least = max(gap["interval"][0] for gap in quality.gaps.values())
        now_gap, then_gap = (
            max((gap["difference"] for gap in one.values()), default=None) for one in (quality.gaps, quality.gaps_before)
        )
        rise = None if then_gap is None or now_gap is None else now_gap - then_gap
        checks += [
            Check("group_gap", least, None, limits.max_group_gap, f"lower 95% bound of the {meaning}"),
            Check("group_gap_rise", rise, None, limits.max_group_gap_rise, f"rise of the {meaning}"),
        ]
    if before is not None:
        short, then_short = now.short_users / now.users, before.short_users / before.users
        checks += [
            Check("rows", now.rows / before.rows, limits.min_rows, limits.max_growth, "as a share of the night before's"),
            Check("users", now.users / before.users, limits.min_users, limits.max_growth, "as a share of the night before's"),
            Check("short_users", short - then_short, None, limits.max_short_rise, "rise in the share of users with fewer than k items"),
        ]
    if before is not None and same_order:
        change, kept = source_shares(now, before)
        checks += [
            Check("overlap", overlap(before, now), limits.min_overlap, None, "share of the night before's rows that stay"),
            Check(
                "items", len(now.items) / len(before.items), limits.min_items, None, "distinct ones, as a share of the night before's"
            ),
            Check("concentration", now.gini - before.gini, None, limits.max_concentration_rise, "rise of the Gini index over items"),
            Check("drift", drift(before.scores, now.scores), None, limits.max_drift, "population stability index of the scores"),
            Check(
                "score_shift",
                score_shift(before, now),
                0 - limits.max_score_shift,
                limits.max_score_shift,
                "rise of the mean log-odds of a user's scores, over users of both nights",
            ),
            Check("source_change", change, None, limits.max_source_change, "largest change of a source's share of the rows"),
            Check("source_kept", kept, limits.min_source_kept, None, "smallest part of its share that a source keeps"),
        ]
    return Verdict(night_before, tuple(checks))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
