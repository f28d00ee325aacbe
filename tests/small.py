"""Settings that make a planted shop's night in seconds."""

from pathlib import Path
from typing import Any

import tomlkit

from recsys.config import Settings
from recsys.data.synthetic import Planted


def small(planted: Planted, work: Path, **sections: dict[str, Any]) -> Settings:
    """Of label windows of 14 days, with keys of sections added or replaced."""
    values: dict[str, dict[str, Any]] = {
        "shop": {"events": str(planted.events), "items": str(planted.items)},
        "features": {"item_categorical": ["category"]},
        "window": {"label_days": 14, "history_days": 90, "cutoffs": 2},
        "signals": {"factors": 4, "als_iterations": 2, "als_l2": 10.0, "als_alpha": 2.0, "ease_l2": 20.0},
        "candidates": {"per_user": 30},
        "model": {"hidden": [8]},
        "train": {"epochs": 1, "batch_size": 128},
        "run": {"work": str(work)},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return Settings.model_validate(values)


def small_file(folder: Path, **sections: dict[str, Any]) -> str:
    """A settings file of the shop that `synthetic.shop` made in FOLDER/shop, whose night keeps all it makes in FOLDER/made."""
    made = {name: str(folder / "made" / name) for name in ("table", "work", "bundles", "reports")}
    values: dict[str, dict[str, Any]] = {
        "shop": {name: str(folder / "shop" / name) for name in ("events", "items")},
        "features": {"item_categorical": ["category"]},
        "window": {"label_days": 14, "history_days": 60, "cutoffs": 2},
        "signals": {"factors": 4, "als_iterations": 2, "als_l2": 10.0, "als_alpha": 2.0},
        "candidates": {"per_user": 50},
        "model": {"hidden": [8]},
        "train": {"epochs": 1},
        "rank": {"k": 5},
        "gate": {"max_baseline_loss": 1.0},
        "table": {"path": made["table"]},
        "run": {"work": made["work"], "shards": 3},
        "champion": {"path": made["bundles"]},
        "report": {"path": made["reports"]},
    }
    for name, keys in sections.items():
        values[name] = values.get(name, {}) | keys
    return tomlkit.dumps(values)
