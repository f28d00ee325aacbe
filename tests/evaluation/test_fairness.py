"""Figures by group against those counted by hand from the same lists, and a whole backtest that names groups."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.catalog import Catalog
from recsys.errors import ConfigError
from recsys.evaluation import bootstrap, fairness
from recsys.evaluation.fairness import summary
from recsys.ranking.registry import Registry
from tests.small import small_file
from tests.verbs import Ended

DAY = date(2024, 6, 6)
SIZE = 1 + bootstrap.RESAMPLES


def sums(**figures: float) -> dict[str, np.ndarray]:
    """The same in all resamples."""
    return {name: np.full(SIZE, float(value)) for name, value in figures.items()}


def test_figures_are_ratios_and_the_gap_is_between_groups_that_are_large_enough() -> None:
    groups = {
        "20s": sums(all=50, modelled=45, counted=40, ndcg=20, rows=1_000, said=130, bought=100),
        "60s": sums(all=40, modelled=40, counted=30, ndcg=6, rows=500, said=40, bought=50),
        "90s": sums(all=9, modelled=3, counted=3, ndcg=0.3, rows=0, said=0, bought=0),
    }
    groups["20s"]["ndcg"][1:] += np.linspace(-4, 4, bootstrap.RESAMPLES)
    told = summary({f"user|age|{value}|{name}": total for value, found in groups.items() for name, total in found.items()}, _catalog())
    age = told["users"]["age"]["groups"]
    assert [(one["users"], one["counted"]) for one in age.values()] == [(50, 40), (40, 30), (9, 3)]
    assert [one["ndcg@10"] for one in age.values()] == pytest.approx([0.5, 0.2, 0.1])
    assert age["20s"]["fallback"] == pytest.approx(0.1)
    assert (age["20s"]["calibration_error"], age["60s"]["calibration_error"]) == (pytest.approx(0.03), pytest.approx(-0.02))
    assert age["90s"]["calibration_error"] is None
    gap = told["users"]["age"]["gap"]
    assert (gap["best"], gap["worst"], gap["difference"]) == ("20s", "60s", pytest.approx(0.3))  # three of 90 tell nothing
    assert gap["interval"] == pytest.approx([0.3 - 0.095, 0.3 + 0.095], abs=1e-3)


def _catalog() -> Catalog:
    brands = ["own", "own", "other", None]
    return Catalog(pa.table({"item_id": [1, 2, 3, 4], "available": [True, False, True, True], "brand": brands}))


def test_shares_of_items_are_of_what_is_available_listed_and_wanted() -> None:
    told = summary(
        {
            f"item|brand|{value}|{figure}": np.array([float(number)])
            for value, numbers in (("own", (6, 1)), ("other", (2, 3)), ("unknown", (0, 0)))
            for figure, number in zip(("exposure", "wanted"), numbers, strict=True)
        },
        _catalog(),
    )
    assert told["items"]["brand"] == {
        "other": {"catalog": 1 / 3, "exposure": 0.25, "wanted": 0.75},
        "own": {"catalog": 1 / 3, "exposure": 0.75, "wanted": 0.25},
        "unknown": {"catalog": 1 / 3, "exposure": 0.0, "wanted": 0.0},
    }


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_backtest_and_a_night_tell_groups_that_are_no_features(run: Callable[..., Ended], tmp_path: Path) -> None:
    made = synthetic.shop(tmp_path / "shop", users=150, items=60, days=112, seed=3, end=DAY + timedelta(days=14), events_per_user=20)
    config = tmp_path / "shop.toml"
    config.write_text(
        small_file(
            tmp_path,
            shop={"users": str(tmp_path / "shop" / "users")},
            fairness={"user_groups": ["age", "region"], "item_groups": ["brand"]},
        )
    )
    out = tmp_path / "metrics.json"
    ended = run("backtest", "--config", str(config), "--as-of", str(DAY), "--horizon-days", "14", "--out", str(out))
    assert ended.status == 0, ended.err
    result = json.loads(out.read_text())
    told: dict[str, Any] = result["fairness"]
    assert made.users is not None
    assert made.items is not None
    known = pl.read_parquet(f"{made.users}/*.parquet")
    for column in ("age", "region"):
        groups = told["users"][column]["groups"]
        counts = dict(known.group_by(column).len().rows())
        unknown = 150 - known.height + counts.pop(None, 0)  # in no table of users, or without a word there
        assert {value: one["users"] for value, one in groups.items()} == counts | {"unknown": unknown}
        counted = sum(one["counted"] for one in groups.values())
        assert counted == result["users"]["all"]
        total = sum(one["ndcg@10"] * one["counted"] for one in groups.values() if one["counted"])
        assert total / counted == pytest.approx(result["models"]["mlp"]["all"]["ndcg@10"], abs=1e-5)
        off = [one["calibration_error"] for one in groups.values()]
        assert all(error is not None and abs(error) < 0.5 for error in off)
        assert f"Users by {column}" in ended.out
    brands = told["items"]["brand"]
    table = pq.read_table(made.items).to_pandas()
    shares = table[table["available"]]["brand"].fillna("unknown").value_counts(normalize=True)
    assert {value: one["catalog"] for value, one in brands.items()} == pytest.approx(dict(shares))
    assert sum(one["exposure"] for one in brands.values()) == pytest.approx(1)
    assert sum(one["wanted"] for one in brands.values()) == pytest.approx(1)
    assert "Items by brand, shares" in ended.out

    ended = run("nightly", "--config", str(config), "--as-of", str(DAY))
    assert ended.status == 0, ended.err
    page = (tmp_path / "made" / "reports" / f"{DAY}.html").read_text()
    assert 'id="users-age"' in page
    assert ">group_gap</td>" in page
    record = json.loads((tmp_path / "made" / "reports" / f"{DAY}.json").read_text())
    measured = record["metrics"]["fairness"]["users"]
    (decided,) = Registry(tmp_path / "made" / "bundles").decisions()
    assert decided.gaps == {column: found["gap"] for column, found in measured.items() if found["gap"]} != {}
    (check,) = [one for one in record["gate"]["checks"] if one["name"] == "group_gap"]
    assert check["value"] == max(gap["interval"][0] for gap in decided.gaps.values())
    assert 'id="items-brand"' in page
    spec = json.loads(next((tmp_path / "made" / "bundles").rglob("spec.json")).read_text())
    assert not {"age", "region", "brand"} & {*spec["dense"], *spec["codes"], *spec["vocabularies"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('user_groups = ["age"]', "fairness.user_groups names columns but shop.users is absent; set it or remove them"),
        ('item_groups = ["size"]', "fairness: column 'size' is a number elsewhere and a word here; write it as two columns"),
    ],
)
def test_groups_that_cannot_be_are_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    from recsys import config

    file = tmp_path / "shop.toml"
    file.write_text(f'[shop]\nevents = "e"\nitems = "i"\n[features]\nitem_numeric = ["size"]\n[fairness]\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    assert caught.value.sentences == (f"{file}: {message}.",)


def test_nobody_is_asked_about_groups_without_them() -> None:
    assert Settings.model_validate({"shop": {"events": "e"}}).fairness.user_groups == ()
    assert fairness.summary({}, _catalog()) == {"users": {}, "items": {}}
