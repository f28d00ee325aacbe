"""Verbs as `python -m jobs.NAME` runs them, in the process of a test."""

import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Ended(NamedTuple):
    """How a verb ended."""

    status: int
    out: str
    err: str


def run_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> Ended:
    """What a verb printed, and its status."""
    monkeypatch.setattr(sys, "argv", [f"jobs.{name}", *arguments])
    file = ROOT / "jobs" / f"{name}.py"
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file if file.exists() else file.with_suffix("")), run_name="__main__")
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int | None)
    return Ended(ended.value.code or 0, shown.out, shown.err)
