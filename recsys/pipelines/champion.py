"""Which bundle scores the night: a newly trained challenger only where it is not worse than the champion on days neither knows.

Every few nights a challenger is trained as of a label length ago, and both rank that day's lists: what was bought since decides. So did
the champion in its turn, and its tested twin, not its refit, meets the challenger. Only who wins is fitted again on all data, and that
refit publishes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from recsys.config import Settings
from recsys.engine.ending import Cut, cut_after
from recsys.engine.owner import owned
from recsys.engine.progress import log
from recsys.errors import BundleError
from recsys.evaluation.backtest import best_baselines
from recsys.evaluation.fairness import gaps_of
from recsys.pipelines.backtest import measure, paired
from recsys.pipelines.deadline import Deadline, cut_by, now
from recsys.pipelines.examples import training_cutoffs
from recsys.pipelines.score import check_bundle
from recsys.pipelines.signals import ShopState, fit_signals
from recsys.pipelines.train import train_shop
from recsys.publishing.gate import NOT_MEASURED, Quality
from recsys.ranking.bundle import Bundle
from recsys.ranking.registry import Decision, Entry, Registry
from recsys.training.fit import Trained


@dataclass(frozen=True)
class Chosen:
    """The bundle of a night, and how it came to be."""

    bundle: Bundle
    decision: Decision | None = None
    """Of tonight; None where no challenger met the champion."""
    tested: Trained | None = None
    """The challenger; None where there was none."""
    refit: Trained | None = None
    """Of the challenger where it won tonight, or the model of a night that is made up for."""
    metrics: dict[str, Any] | None = None
    """Of the challenger, as `backtest.measure`; None where none met the champion tonight."""
    due: date | None = None
    """Where there was no challenger: the night of the next one."""
    met: Decision | None = None
    """Of an earlier night, on which this very challenger met the champion: it does not again."""
    cut_off: bool = False
    """The deadline came before the challenger had met the champion."""
    quality: Quality = NOT_MEASURED
    """Of the bundle; the champion is not held against itself."""


def choose(
    state: ShopState,
    registry: Registry,
    *,
    as_of: date,
    deadline: Deadline | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Chosen:
    """The bundle that scores the night of as_of; what is decided is kept, and not decided again by a second run.

    A challenger is trained where none was for champion.every_days, or the champion cannot score. A night before the champion's own
    day, that is made up for, is scored by a model of its day.

    Args:
        deadline: where it comes nearer than scoring takes, the challenger is given up for tonight, and the champion scores.

    Raises:
        DataError: as `train.train_shop`.
        DeadlineError: it comes that near, and there is no champion that can score.
    """
    settings = state.settings
    champion = registry.champion()
    if champion is not None:
        if _publishing(champion).about["window"]["as_of"] > as_of.isoformat():
            with cut_by(deadline, settings.table.path, "a model of that day was trained"):
                refit = train_shop(state, as_of=as_of, on_epoch=on_epoch)
            return Chosen(refit.bundle, refit=refit, quality=quality_of(state, registry, refit.bundle, as_of=as_of))
        due = next_challenger(settings, registry)
        if as_of < due and as_of.isoformat() != registry.decisions()[-1].as_of and _can_score(champion, settings):
            return _standing(state, registry, as_of=as_of, due=due)
    try:
        with cut_after(deadline.learn - now() if deadline else None):
            return _meet(state, registry, as_of=as_of, on_epoch=on_epoch)
    except Cut:
        champion = registry.champion()
        assert deadline is not None, "nothing else cuts"
        if champion is None or not _can_score(champion, settings):
            seen = "none, it came while the first one was trained"
            raise deadline.missed(settings.table.path, "a model that can score", seen) from None
        log.warning("train: scoring needs the time until the deadline; tonight's challenger is given up, the champion scores")
        return replace(_standing(state, registry, as_of=as_of, due=as_of + timedelta(days=1)), cut_off=True)


def _standing(state: ShopState, registry: Registry, *, as_of: date, due: date) -> Chosen:
    """The champion, which no challenger meets before a day."""
    champion = registry.champion()
    assert champion is not None, "who calls has looked"
    standing = _publishing(champion)
    return Chosen(standing, due=due, quality=quality_of(state, registry, standing, as_of=as_of))


def _meet(state: ShopState, registry: Registry, *, as_of: date, on_epoch: Callable[[dict[str, Any]], None] | None) -> Chosen:
    """The bundle that scores, a challenger trained and held against the champion."""
    settings, champion = state.settings, registry.champion()
    before = as_of - timedelta(days=settings.window.label_days)
    days = {*training_cutoffs(state, before), *training_cutoffs(state, as_of)}
    if champion is None and state.supplied is None:  # else there may be no test, or lists have signals of their own
        days |= {before, as_of}
    fit_signals(state, sorted(days))  # all that the night needs, side by side
    tested = train_shop(state, as_of=before, on_epoch=on_epoch)
    with owned(registry.lock, what=str(registry.path)):  # another run must not decide between this one's look and its word
        challenger = tested.bundle.model_version
        champion = registry.champion()
        made = next((one for one in reversed(registry.decisions()) if one.challenger == challenger), None)
        if champion is not None and made is not None and made.as_of != as_of.isoformat():
            standing = _publishing(champion)
            return Chosen(standing, tested=tested, met=made, quality=quality_of(state, registry, standing, as_of=as_of))
        metrics = measure(state, tested.bundle, as_of=before, end=as_of)
        if champion is not None and made is not None:  # tonight, before this run was ended and begun again
            refit = train_shop(state, as_of=as_of, on_epoch=on_epoch) if champion.version == challenger else None
            return Chosen(_publishing(champion), made, tested, refit, metrics, quality=_decided(registry, made, refit))
        decision = _decide(state, champion, tested.bundle, metrics, as_of=as_of, before=before)
        refit = train_shop(state, as_of=as_of, on_epoch=on_epoch) if decision.promoted else None
        registry.keep(tested.bundle, refit.bundle if refit else None)
        registry.decide(decision)
        standing = registry.champion()
        assert standing is not None, "a decision names a champion"
        return Chosen(_publishing(standing), decision, tested, refit, metrics, quality=_decided(registry, decision, refit))


def _decided(registry: Registry, decision: Decision, refit: Trained | None) -> Quality:
    """Of the bundle that a decision of tonight, which is kept, has score."""
    return Quality(decision.high if refit else None, decision.baselines, *registry.gaps())


def next_challenger(settings: Settings, registry: Registry) -> date:
    """The night from which on a challenger is due: champion.every_days after the newest decision, which there must be."""
    last = date.fromisoformat(registry.decisions()[-1].as_of)
    return date.fromordinal(min(last.toordinal() + challenger_days(settings), date.max.toordinal()))


def challenger_days(settings: Settings) -> int:
    """Nights from one challenger to the next."""
    return settings.champion.every_days or max(1, settings.window.label_days // 4)


def _can_score(champion: Entry, settings: Settings) -> bool:
    try:
        check_bundle(_publishing(champion), settings)
    except BundleError:
        return False
    return True


def quality_of(state: ShopState, registry: Registry, bundle: Bundle, *, as_of: date) -> Quality:
    """How a bundle's lists did on the last full label window before as_of, against the champion's and against the baselines'.

    Of a refit it is its tested twin that is measured; of the champion what its decision says holds until the next. What cannot be told
    is logged: one of the two knows the window or cannot score under these settings.
    """
    champion = registry.champion()
    entries = [registry.entry(version) for version in registry.versions()]
    twins = [entry.tested for entry in entries if entry.published and entry.published.model_version == bundle.model_version]
    tested = twins[0] if twins else bundle
    stands = champion is not None and bundle.model_version in (champion.version, _publishing(champion).model_version)
    if stands and (known := registry.baselines(tested.model_version)):
        return Quality(None, known, *registry.gaps())
    before = as_of - timedelta(days=state.settings.window.label_days)
    if not _can_be_measured(tested, state.settings, before, "ndcg, baseline and baseline_new are"):
        return NOT_MEASURED
    baselines = best_baselines(measure(state, tested, as_of=before, end=as_of))
    if champion is None or stands or not _can_be_measured(champion.tested, state.settings, before, "ndcg is"):
        return Quality(None, baselines)
    difference = paired(state, tested, champion.tested, as_of=before, end=as_of)
    return Quality(difference["interval"][1] if difference["interval"] else None, baselines)


def _can_be_measured(bundle: Bundle, settings: Settings, before: date, checks: str) -> bool:
    """A bundle does not know what came after a day, and can score under these settings; what it is not is logged."""
    if (known := bundle.about["window"]["as_of"]) > before.isoformat():
        told = (checks, bundle.model_version, known, before)
        log.warning("gate: %s not measured: model %s was trained as of %s and knows what came after %s", *told)
        return False
    try:
        check_bundle(bundle, settings)
    except BundleError as error:
        log.warning("gate: %s not measured: %s", checks, error)
        return False
    return True


def _publishing(entry: Entry) -> Bundle:
    assert entry.published is not None, f"champion {entry.version} has no bundle that publishes"
    return entry.published


def _decide(
    state: ShopState, champion: Entry | None, tested: Bundle, metrics: Mapping[str, Any], *, as_of: date, before: date
) -> Decision:
    day, challenger = as_of.isoformat(), tested.model_version
    if champion is None:
        return Decision(day, challenger, challenger, "the first", baselines=best_baselines(metrics), gaps=gaps_of(metrics))
    margin = state.settings.champion.margin
    try:
        check_bundle(champion.tested, state.settings)
        difference = paired(state, tested, champion.tested, as_of=before, end=as_of)
    except BundleError as error:
        why = f"the champion cannot score under tonight's settings: {error}"
        return Decision(day, challenger, challenger, why, baselines=best_baselines(metrics), gaps=gaps_of(metrics))
    low, high = difference["interval"] or (None, None)
    wins = low is not None and low > -margin
    why = (
        f"its NDCG@10 is not worse by more than {margin:g}"
        if wins
        else f"that its NDCG@10 is not worse by more than {margin:g} is not shown"
        if low is not None
        else f"no user bought between {before} and {as_of}"
    )
    stands = challenger if wins else champion.version
    standing = metrics if wins else measure(state, champion.tested, as_of=before, end=as_of)
    told = difference["mean"], low, high, margin, difference["users"], best_baselines(standing), gaps_of(standing)
    return Decision(day, stands, challenger, why, *told)
