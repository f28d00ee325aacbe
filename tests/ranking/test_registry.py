"""The registry: bundles kept, decisions in order, back and forth by hand."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from recsys import config
from recsys.errors import BundleError
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle, network
from recsys.ranking.bundle import Bundle
from recsys.ranking.registry import Decision, Registry

DAY = date(2026, 1, 1)
SPEC = FeatureSpec(("a",), (0.0,), (1.0,), (), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("made")
    return [
        bundle.save(
            folder / str(seed), network.build(SPEC, config.Model(hidden=(2,)), seed=seed), SPEC, settings={}, window={}, metrics={}
        )
        for seed in range(4)
    ]


def won(registry: Registry, tested: Bundle, published: Bundle) -> None:
    registry.keep(tested, published)
    registry.decide(Decision("2026-01-01", tested.model_version, tested.model_version, "why"))


def champion(registry: Registry) -> str:
    entry = registry.champion()
    assert entry is not None
    return entry.version


def test_an_empty_registry_has_no_champion(tmp_path: Path):
    registry = Registry(tmp_path / "none")
    assert (registry.champion(), registry.decisions(), registry.versions()) == (None, [], [])
    with pytest.raises(BundleError, match="no bundle was the champion before"):
        registry.rollback(as_of=DAY, why="why")
    with pytest.raises(BundleError, match="must hold bundle abc, got none"):
        registry.promote("abc", as_of=DAY, why="why")


def test_what_won_publishes_its_refit_and_both_are_kept(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    won(registry, made[0], made[1])
    entry = Registry(tmp_path).champion()
    assert entry is not None
    assert entry.published is not None
    assert (entry.version, entry.tested.model_version) == (made[0].model_version, made[0].model_version)
    assert entry.published.model_version == made[1].model_version
    assert entry.tested.folder.is_relative_to(tmp_path)


def test_what_lost_is_kept_and_can_be_promoted_by_hand_as_it_was_tested(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    won(registry, made[0], made[1])
    lost = Decision("2026-01-02", made[0].model_version, made[2].model_version, "worse", -0.2, -0.3, -0.1, 0.01, 50)
    registry.keep(made[2])
    registry.decide(lost)
    assert not lost.promoted
    assert champion(registry) == made[0].model_version
    assert registry.entry(made[2].model_version).published is None
    registry.promote(made[2].model_version, as_of=DAY, why="I know better")
    entry = registry.champion()
    assert entry is not None
    assert entry.published is not None
    assert entry.published.model_version == entry.version == made[2].model_version
    assert registry.decisions()[1:] == [lost, Decision("2026-01-01", entry.version, entry.version, "I know better")]


def test_what_a_champion_reached_against_baselines_stands_until_it_is_measured_again(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    first, second = made[0].model_version, made[2].model_version
    told = [{"all": {"baseline": "factors", "difference": place / 10, "low": 0.0, "high": 0.3}} for place in range(2)]
    assert registry.baselines(first) == {}
    registry.keep(made[0], made[1])
    registry.keep(made[2], made[2])
    registry.decide(Decision("2026-01-01", first, first, "the first", baselines=told[0]))
    registry.decide(Decision("2026-01-08", second, second, "better", baselines=told[1]))
    assert (registry.baselines(first), registry.baselines(second)) == (told[0], told[1])
    registry.promote(first, as_of=DAY, why="by hand, which measures nothing")
    assert registry.baselines(first) == told[0]
    registry.decide(Decision("2026-01-09", first, second, "worse", baselines=told[1]))
    assert registry.baselines(first) == told[1]


def test_rollback_goes_back_step_by_step(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    for one in made[:3]:
        won(registry, one, one)
    assert champion(registry) == made[2].model_version
    for expected in (made[1], made[0]):
        registry.rollback(as_of=DAY, why="a bad night")
        assert champion(registry) == expected.model_version
    with pytest.raises(BundleError, match="no bundle was the champion before"):
        registry.rollback(as_of=DAY, why="once more")
    assert len(registry.decisions()) == 5
    assert registry.versions() == [one.model_version for one in made[:3]]


def test_a_decision_for_a_bundle_that_cannot_publish_is_our_own_mistake(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    registry.keep(made[0])
    with pytest.raises(AssertionError, match="has no bundle that publishes"):
        registry.decide(Decision("2026-01-01", made[0].model_version, made[0].model_version, "why"))


def test_what_is_kept_is_never_overwritten(tmp_path: Path, made: list[Bundle]):
    registry = Registry(tmp_path)
    registry.keep(made[0], made[1])
    registry.keep(made[0], made[2])
    entry = registry.entry(made[0].model_version)
    assert entry.published is not None
    assert entry.published.model_version == made[1].model_version
    assert replace(entry.tested, folder=Path()) == replace(made[0], folder=Path())
