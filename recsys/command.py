"""`recsys VERB …`: the verbs of `jobs/` under one name, as the wheel installs it; in the repository `python -m recsys VERB`.

In a wheel `jobs` and `cluster` lie in `recsys/house`, which is on the path of this command alone: a site has no `jobs` of ours.
"""

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path

import typer

from recsys.errors import one_line_errors

HOUSE = Path(__file__).parent / "house"
VERBS = {
    "A shop to begin with": ("init", "check", "plan", "planted_shop", "demo_shop"),
    "Every night": ("nightly", "runs", "show", "explain", "browse", "export", "changes", "publish", "erase", "work"),
    "Models": ("train", "tune", "backtest", "bundles", "privacy", "examples"),
    "One stage alone": ("ingest", "score"),
    "Feature rows": ("score_pairs",),
    "On a cluster": ("submit",),
    "Measured": ("bench", "shops"),
}


def main() -> None:
    """The command line."""
    if HOUSE.is_dir():
        sys.path.insert(0, str(HOUSE))
    with one_line_errors():
        app()(prog_name="recsys")


def app() -> typer.Typer:
    """All verbs with their sentences; the one that is asked for with its options, as to import them all takes seconds."""
    made = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Recommendations for a shop, every night.")
    words = [*sys.argv[1:], *os.environ.get("COMP_WORDS", "").split()]  # which a shell sets that completes
    for panel, verbs in VERBS.items():
        for verb in verbs:
            if verb in words:
                _add(made, verb, panel)
            else:
                made.command(verb, help=_sentence(verb), rich_help_panel=panel)(_unnamed)
    return made


def _add(made: typer.Typer, verb: str, panel: str) -> None:
    module = importlib.import_module(f"jobs.{verb}" if verb != "bench" else "jobs.bench.__main__")
    if hasattr(module, "app"):
        made.add_typer(module.app, name=verb, rich_help_panel=panel)
    else:
        made.command(verb, help=module.__doc__, rich_help_panel=panel)(getattr(module, verb))


def _sentence(verb: str) -> str:
    """What the verb's module says of it, read without importing it."""
    found = importlib.util.find_spec(f"jobs.{verb}" if verb != "bench" else "jobs.bench.__main__")
    assert found is not None
    assert found.origin is not None
    return ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""


def _unnamed() -> None:
    """Of a verb that the command line does not name."""
