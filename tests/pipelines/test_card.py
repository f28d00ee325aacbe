"""A model's card: made on the night that tests a challenger, with figures that other verbs print too."""

import json
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from recsys.data import synthetic
from recsys.pipelines import card
from recsys.ranking.registry import Registry
from tests.small import small_file
from tests.verbs import Ended

Run = Callable[..., Ended]
DAY = date(2024, 6, 6)


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_challenger_gets_a_card_and_a_night_without_one_makes_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.shop(tmp_path / "shop", users=60, items=60, days=98, seed=3, end=DAY + timedelta(days=1), events_per_user=20)
    config = str(tmp_path / "shop.toml")
    sections = {
        "shop": {"users": str(tmp_path / "shop" / "users")},
        "features": {"user_categorical": ["age"], "item_categorical": ["category"]},
        "fairness": {"user_groups": ["age"]},
    }
    (tmp_path / "shop.toml").write_text(small_file(tmp_path, **sections))
    night = run("nightly", "--config", config, "--as-of", str(DAY))
    assert night.status == 0, night.err
    registry = Registry(tmp_path / "made" / "bundles")
    (version,) = registry.versions()
    place = registry.path / "bundles" / version / "card.html"
    assert f"card: {place}" in night.err
    told = json.loads(place.with_suffix(".json").read_text())
    assert told["version"] == version
    assert told["stands"] == f"It became the champion on {DAY}: the first."
    record = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())
    assert told["tested"] == record["metrics"]
    spec = registry.entry(version).tested.spec
    assert told["inputs"] == [*spec.dense, *spec.codes]
    assert {one["input"] for one in told["importance"]["inputs"]} == set(told["inputs"])
    assert 10 < told["importance"]["users"] <= card.USERS
    # about the lists of the test: those of users who count there, as no rule hides anything and all of them fit in
    assert told["importance"]["ndcg@10"] == pytest.approx(record["metrics"]["models"]["mlp"]["all"]["ndcg@10"])
    assert told["privacy"]["ids"] == "the shop's own"
    page = place.read_text()
    for heading in ("How it was chosen", "What its lists rest on", "Groups", "Chances", "People's data", "Limits"):
        assert f">{heading}</h2>" in page or f">{heading.replace(chr(39), '&#39;')}</h2>" in page
    assert not re.search(r"(?:src|href)=\"https?:", page)

    shown = run("bundles", "card", version, "--config", config)
    assert shown.status == 0, shown.err
    assert "became the champion" in shown.out
    assert told["importance"]["inputs"][0]["input"] in shown.out
    missing = run("bundles", "card", "0123456789abcdef", "--config", config)
    assert (missing.status, "must hold bundle 0123456789abcdef" in missing.err) == (1, True)

    written = place.stat().st_mtime_ns
    again = run("nightly", "--config", config, "--as-of", str(DAY + timedelta(days=1)))
    assert again.status == 0, again.err
    assert "card: " not in again.err  # the champion scored
    assert registry.versions() == [version]
    assert place.stat().st_mtime_ns == written

    def broken(*arguments: object, **options: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(card, "_keep", broken)
        place.with_suffix(".json").unlink()
        forced = run("nightly", "--config", config, "--as-of", str(DAY), "--force")
        assert forced.status == 0  # the night stands
        assert "card: failed after the commit, the night stands: OSError: no space left" in forced.err
    noted = run("bundles", "card", version, "--config", config)
    assert (noted.status, "has no card" in noted.err) == (1, True)
