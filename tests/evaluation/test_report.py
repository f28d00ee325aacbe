"""The page of a made-up night, as headless Chromium shows it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

from recsys import metrics
from recsys.evaluation import backtest, report
from tests.pages import Opener, cells

FIGURES = {f"{name}@{k}": 0.25 for name in metrics.RANKING for k in backtest.KS}


def each(value: Any) -> dict[str, Any]:
    return {part: dict.fromkeys(FIGURES, value) for part in backtest.SLICES}


def check(name: str, value: float | None, *, passed: bool, limit: str) -> dict[str, Any]:
    return {"name": name, "value": value, "low": 0.6, "high": None, "meaning": f"what {name} is", "passed": passed, "limit": limit}


def calibration() -> dict[str, Any]:
    deciles = [{"rows": 100 + place, "bought": place / 20, "before": place / 10, "after": place / 21} for place in range(10)]
    part = {"rows": 1045, "bought": 0.225, "ece": {"before": 0.31, "after": 0.0123}, "log_loss": {"before": 0.61, "after": 0.41}}
    return {"users": 77, **part, "deciles": deciles, "segments": {"items bought before": {**part, "deciles": deciles}}}


def epoch(phase: str, number: int, **figures: float) -> dict[str, Any]:
    return {"phase": phase, "epoch": number, "rows_per_second": 31_234.4, **figures}


RECORD: dict[str, Any] = {
    "as_of": "2024-06-01",
    "run_id": "run-1",
    "model_version": "model-1",
    "k": 7,
    "rows": 1_477,
    "users": 211,
    "short_users": 3,
    "scored": 12_660,
    "dropped": {"available": 5, "<recalled>": 1_234},
    "short": {"<recalled>": 2, "": 1},
    "gate": {
        "before": "2024-05-31",
        "overrides": {},
        "checks": [
            check("rows", 0.9871, passed=True, limit="at least 0.8"),
            check("items", 0.75, passed=True, limit="at least 0.6"),
            check("overlap", 0.8125, passed=True, limit="at least 0.4"),
            check("ndcg", None, passed=True, limit="at least 0"),
        ],
    },
    "status": "published",
    "table": "var/recommendations",
    "finished_utc": "2024-06-01T03:14:15+00:00",
    "inputs": {"events": 9_000, "items": 150, "users": 190},
    "given": {"rows": 1_000, "rejected": {"unknown_user": 100, "unknown_item": 7}},
    "words": {"brand": [500, 100], "<age>": [0, 0]},
    "rejected": {"events": {"duplicate": 11, "null_id": 22}},
    "funnel": {"events read": 9_000, "events kept": 8_967, "users": 211, "candidates scored": 12_660, "rows": 1_477},
    "metrics": {
        "as_of": "2024-05-18",
        "horizon_days": 14,
        "users": {"all": 201, "new": 199},
        "models": {model: each(0.25) for model in backtest.MODELS},
        "intervals": {model: each([0.2, 0.3]) for model in backtest.MODELS},
        "differences": {model: each({"mean": 0.0625, "interval": [0.03125, 0.09375]}) for model in backtest.MODELS[1:]},
        "candidates": {"recall": {"own": 0.5, "union": 0.875}, "per_user": 60.0},
        "calibration": calibration(),
    },
    "fallback": None,
    "decision": {
        "as_of": "2024-06-01",
        "champion": "model-0",
        "challenger": "model-9",
        "why": "that its NDCG@10 is not worse by more than 0.01 is not shown",
        "difference": -0.0321,
        "low": -0.05,
        "high": -0.0125,
        "margin": 0.01,
        "users": 201,
    },
    "training": [
        {
            "fit": "tested",
            "model_version": "model-9",
            "as_of": "2024-05-18",
            "examples": {"rows": 12_972},
            "best_epoch": 1,
            "history": [epoch("validate", 1, loss=0.5, val_loss=0.4375), epoch("validate", 2, loss=0.25, val_loss=0.5)],
        }
    ],
    "lists": {
        "items": 97,
        "available_share": 0.6736,
        "gini": 0.4321,
        "sources": {"own": 1_000, "popular": 477},
        "scores": {"edges": [0.01, 0.1, 0.5, 0.9], "rows": [70, 1_400, 0], "without": 7},
    },
    "popularity": [{"items": "1 to 10", "rows": 0.5, "purchases": 0.25}, {"items": "11 to 150", "rows": 0.5, "purchases": 0.75}],
    "sample": [
        {
            "user_id": "u<1>",
            "rows": [
                {
                    "rank": 1,
                    "item": "<script>console.error('broken out')</script>",
                    "score": 0.5,
                    "source": "own",
                    "reason": "Bought on 9 days & more.",
                },
                {"rank": 2, "item": "milk", "score": None, "source": "popular", "reason": "Popular."},
            ],
        }
    ],
    "stages": [{"stage": "score", "units": 7, "seconds": 12.25, "slowest": "part-00003", "longest": 4.5}],
    "shards": [{"shard": "00003", "seconds": 4.5, "users": 31, "candidates": 1_860, "rows": 217}],
    "nights": [
        {
            "as_of": "2024-05-31",
            "rows": 1_470,
            "model_version": "model-0",
            "users": 210,
            "short_users": 2,
            "items": 99,
            "gini": 0.4111,
            "overlap": None,
            "ndcg": 0.26,
            "ndcg_interval": [0.21, 0.31],
            "scores": {"edges": [0.01, 0.1, 0.5, 0.9], "rows": [170, 1_300, 0], "without": 0},
        },
        {"as_of": "2024-05-30", "rows": 1_400, "model_version": "model-0"}
        | dict.fromkeys(("users", "short_users", "items", "gini", "overlap", "ndcg", "ndcg_interval", "scores")),
    ],
}


def changed(**values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RECORD), **values}


# ---- without a browser


def test_tables_hold_the_record_s_numbers() -> None:
    html = report.render(RECORD)
    assert cells(html, "gate")[0] == ["rows", "0.9871", "at least 0.8", "passed", "what rows is"]
    assert cells(html, "gate")[3][1] == "-"
    assert cells(html, "funnel")[-2:] == [["candidates scored", "12,660"], ["rows", "1,477"]]
    assert cells(html, "inputs")[0] == ["events", "9,000", "33"]
    assert cells(html, "rejected") == [["events", "duplicate", "11"], ["events", "null_id", "22"]]
    assert cells(html, "metrics-all")[0] == ["mlp", "0.250 [0.200, 0.300]", "-", "0.250", "0.250", "0.250"]
    assert cells(html, "metrics-new")[1][:3] == ["popular", "0.250 [0.200, 0.300]", "0.062 [0.031, 0.094]"]
    assert cells(html, "recall") == [["own", "0.500"], ["union", "0.875"]]
    assert cells(html, "decision") == [["model-9", "-0.032 [-0.050, -0.013]", "0.010", "201"]]
    assert cells(html, "training")[1] == ["tested", "validate", "2", "0.2500", "0.5000", "31,234"]
    assert cells(html, "calibration")[0] == ["all", "1,045", "0.2250", "0.3100", "0.0123", "0.6100", "0.4100"]
    assert cells(html, "deciles")[9] == ["10", "109", "0.9000", "0.4286", "0.4500"]
    assert cells(html, "coverage")[1:4] == [
        ["users with fewer than 7 rows", "3"],
        ["distinct items", "97"],
        ["share of the available items", "67.4%"],
    ]
    assert cells(html, "sources") == [["own", "1,000", "67.7%"], ["popular", "477", "32.3%"]]
    assert cells(html, "popularity")[0] == ["1 to 10", "50.0%", "25.0%"]
    assert cells(html, "rules")[1:] == [["&lt;recalled&gt;", "1,234", "2"], ["no rule: too few candidates", "-", "1"]]
    assert cells(html, "user-0")[1] == ["2", "milk", "-", "popular", "Popular."]
    assert cells(html, "stages") == [["score", "7", "12.2", "4.5", "part-00003"]]
    assert cells(html, "shards") == [["00003", "4.5", "31", "1,860", "217"]]
    tonight, eve, before = cells(html, "nights")
    assert tonight[:2] == ["2024-06-01", "1,477"]
    assert tonight[6:] == ["81.2%", "0.250 [0.200, 0.300]", "model-1"]
    assert eve[5:8] == ["0.411", "-", "0.260 [0.210, 0.310]"]
    assert before == ["2024-05-30", "1,400", *["-"] * 6, "model-0"]


def test_the_same_record_gives_the_same_page() -> None:
    assert report.render(RECORD) == report.render(json.loads(json.dumps(RECORD)))


def test_a_stopped_night_says_first_which_figure_it_was_and_what_it_may_be() -> None:
    stopped = changed(status="stopped")
    stopped["gate"]["checks"][1] = check("items", 0.4321, passed=False, limit="at least 0.6")
    stopped["gate"]["checks"][2] = check("overlap", 0.1, passed=False, limit="at least 0.4")
    stopped["gate"]["overrides"] = {"overlap": "a new season"}
    html = report.render(stopped)
    (status,) = re.findall(r'<div class="status stopped".*?</div>', html, re.DOTALL)
    said = " ".join(re.sub(r"<[^>]+>", " ", status).split())
    assert said.startswith("Stopped by the gate: items must be at least 0.6, got 0.4321. Nothing was published;")
    assert [row[3] for row in cells(html, "gate")] == ["passed", "FAILED", "overridden: a new season", "passed"]


def test_a_night_let_through_by_hand_says_so() -> None:
    told = changed()
    told["gate"]["overrides"] = {"items": "the summer range is gone"}
    assert "though items might fail by hand" in report.render(told)


def test_a_night_in_a_baselines_order_says_so_first() -> None:
    told = {"baseline": "factors", "difference": -0.02, "low": -0.03, "high": -0.01}
    said = "The lists are in the order of factors: the model&#39;s NDCG@10 less that baseline&#39;s is -0.020 [-0.030, -0.010]."
    assert said in report.render(RECORD | {"fallback": told})
    assert "in the order of" not in report.render(RECORD)


def test_a_night_without_metrics_decision_or_an_earlier_night_has_a_page_too() -> None:
    html = report.render(changed(metrics=None, decision=None, training=[], nights=[], sample=[]))
    assert "metrics-all" not in html
    assert "no challenger met the champion" in html
    assert cells(html, "nights")[0][7] == "-"


def test_a_night_of_which_nobody_was_tested_has_a_page_too() -> None:
    told = changed()
    told["metrics"]["models"] = {model: each(None) for model in backtest.MODELS}
    told["metrics"]["intervals"] = {model: each(None) for model in backtest.MODELS}
    told["metrics"]["differences"] = {model: each({"mean": None, "interval": None}) for model in backtest.MODELS[1:]}
    told["metrics"]["candidates"] = {"recall": {"own": None}, "per_user": None}
    told["metrics"]["calibration"] = None
    told["metrics"]["users"] = {"all": 0, "new": 0}
    assert cells(report.render(told), "metrics-all")[0] == ["mlp", *["-"] * 5]


# ---- in headless Chromium


def written(path: Path, record: Any) -> Path:
    path.write_text(report.render(record), encoding="utf-8")
    return path


def test_a_browser_shows_the_page_without_an_error_a_request_or_a_word_that_is_markup(opened: Opener, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", RECORD)
    shown = opened(page)
    assert shown.said == []
    assert shown.width <= 390
    assert shown.tables["user-0"][0][1] == "<script>console.error('broken out')</script>"
    assert shown.tables["rules"][1] == ["<recalled>", "1,234", "2"]
    assert shown.tables["metrics-all"] == cells(page.read_text(), "metrics-all")
    assert len(shown.tables) == len(re.findall("<table", page.read_text()))


def test_what_the_browser_says_of_a_spoiled_page(opened: Opener, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", RECORD)
    broken = '<img src="https://example.org/x.png" alt="x"><script>console.error("no")</script><pre>' + "wide" * 200 + "</pre>"
    page.write_text(page.read_text().replace("</body>", broken + "</body>"))
    shown = opened(page)
    assert {"error: no", "https://example.org/x.png", "no picture: x"} <= set(shown.said)
    assert shown.width > 390
