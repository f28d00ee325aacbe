"""Which bundle publishes: a folder of bundles that met the champion, the champion, and every decision with its numbers.

    <path>/bundles/<version>/tested      the bundle that met the champion, trained before the window that decided
    <path>/bundles/<version>/published   its refit on all data, made after it had won; this one scores the nights
    <path>/erasures/<time>.json          users who were erased, how many, and the versions that had been trained before
    <path>/decisions/<number>.json       every decision, oldest first; the newest that chose a bundle names the champion

`version` is the model_version of the tested bundle. Nothing is ever overwritten: going back is one more decision.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from recsys.errors import BundleError
from recsys.ranking import bundle as bundles
from recsys.ranking.bundle import Bundle
from recsys.storage import write_atomically


@dataclass(frozen=True)
class Decision:
    """Which bundle is the champion from a night on, and by what numbers."""

    as_of: str
    """The night that it was made for; ISO date."""
    champion: str
    """The version that stands after it."""
    challenger: str
    """The version that was tried, or chosen by hand."""
    why: str
    difference: float | None = None
    """Mean over users of the challenger's NDCG@10 less the champion's; None where there was nothing to compare."""
    low: float | None = None
    """Its lower 95% bound; the challenger needs more than -margin."""
    high: float | None = None
    """Its upper one."""
    margin: float | None = None
    users: int | None = None
    """That counted."""
    baselines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the champion that stands after it, on the window that decided, as `backtest.best_baselines`; empty where not measured."""
    gaps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of the same, as `fairness.gaps_of`."""

    @property
    def promoted(self) -> bool:
        """The challenger became the champion."""
        return self.champion == self.challenger


@dataclass(frozen=True)
class Entry:
    """One version of the registry."""

    version: str
    tested: Bundle
    published: Bundle | None
    """None where it never won."""


class Registry:
    """The folder; see the module's description."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lock = self.path / "decisions.lock"
        """File of the lock that whoever decides takes before looking, see `engine.owner`."""

    def decisions(self) -> list[Decision]:
        """All of them, oldest first."""
        files = sorted((self.path / "decisions").glob("*.json"))
        return [Decision(**json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def champion(self) -> Entry | None:
        """What publishes; None where nothing was decided yet."""
        decisions = self.decisions()
        return self.entry(decisions[-1].champion) if decisions else None

    def baselines(self, version: str) -> Mapping[str, Mapping[str, Any]]:
        """How a version did against baselines when it was the champion last; empty where that was not measured."""
        return next((made.baselines for made in reversed(self.decisions()) if made.champion == version and made.baselines), {})

    def gaps(self) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Mapping[str, Any]]]:
        """Between groups of users, of the champion when it was last measured, and of the champion that was before that; empty where
        nothing was measured."""
        measured = [made.gaps for made in reversed(self.decisions()) if made.gaps]
        return (measured[0] if measured else {}), (measured[1] if len(measured) > 1 else {})

    def versions(self) -> list[str]:
        """Of all bundles, in the order of their first decision."""
        return list(dict.fromkeys(version for made in self.decisions() for version in (made.challenger, made.champion)))

    def entry(self, version: str) -> Entry:
        """A version's bundles.

        Raises:
            BundleError: no such version, or its bundle is damaged.
        """
        folder = self.path / "bundles" / version
        if not (folder / "tested").is_dir():
            raise BundleError(
                f"{self.path}: must hold bundle {version}, got {', '.join(self.versions()) or 'none'}. Choose one of these."
            )
        published = bundles.load(folder / "published") if (folder / "published").is_dir() else None
        return Entry(version, bundles.load(folder / "tested"), published)

    def keep(self, tested: Bundle, published: Bundle | None = None) -> None:
        """Copy a version's bundles here; what is here already stays."""
        folder = self.path / "bundles" / tested.model_version
        for made, place in ((tested, folder / "tested"), (published, folder / "published")):
            if made is not None and not place.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                bundles.copy(made, place)

    def decide(self, decision: Decision) -> None:
        """Add a decision; its champion must be here with the bundle that publishes."""
        assert self.entry(decision.champion).published is not None, f"{decision.champion} has no bundle that publishes"
        folder = self.path / "decisions"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(decision), indent=1) + "\n"
        write_atomically(folder / f"{len(self.decisions()):06d}.json", lambda file: file.write_text(text, encoding="utf-8"))

    def mark_erased(self, users: int, *, when: datetime) -> list[str]:
        """Note that so many users were erased now: the versions of before, which are returned, may have learned from them."""
        versions = self.versions()
        if versions:
            place = self.path / "erasures" / f"{when:%Y%m%dT%H%M%S}.json"
            told = {"users": users, "erased_utc": when.isoformat(timespec="seconds"), "versions": versions}
            write_atomically(place, lambda file: file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8"))
        return versions

    def erased_since(self, version: str) -> tuple[int, str | None]:
        """How many users were erased after the version was trained, and when last, UTC; none and None where nobody was."""
        marks = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((self.path / "erasures").glob("*.json"))]
        mine = [mark for mark in marks if version in mark["versions"]]
        return sum(mark["users"] for mark in mine), mine[-1]["erased_utc"] if mine else None

    def promote(self, version: str, *, as_of: date, why: str) -> Decision:
        """Make a version the champion by hand; one that never won publishes as it was tested, without a refit.

        Raises:
            BundleError: no such version.
        """
        entry = self.entry(version)
        self.keep(entry.tested, entry.published or entry.tested)
        decision = Decision(as_of.isoformat(), version, version, why)
        self.decide(decision)
        return decision

    def rollback(self, *, as_of: date, why: str) -> Decision:
        """Make the champion again what was first chosen before the present one was.

        Raises:
            BundleError: nothing was.
        """
        champions = [made.champion for made in self.decisions()]
        order = list(dict.fromkeys(champions))
        place = order.index(champions[-1]) if champions else 0
        if place == 0:
            raise BundleError(f"{self.path}: no bundle was the champion before the present one. Promote one by its version.")
        return self.promote(order[place - 1], as_of=as_of, why=why)
