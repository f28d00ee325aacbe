"""`make audit`: what it says of what pip-audit says."""

import runpy
from pathlib import Path
from typing import Any

report: Any = runpy.run_path(str(Path(__file__).parents[1] / ".ci" / "audit.py"))["report"]

CLEAN = {"name": "a", "version": "1.0", "vulns": list[object]()}
FOUND = {
    "name": "b",
    "version": "2.0",
    "vulns": [{"id": "CVE-2026-1", "fix_versions": ["2.1", "3.0"]}, {"id": "CVE-2", "fix_versions": list[str]()}],
}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found"}


def test_a_known_vulnerability_is_named_with_what_mends_it_and_fails() -> None:
    assert report({"dependencies": [CLEAN, FOUND, SKIPPED]}) == (
        [
            "b 2.0: CVE-2026-1, mended in 2.1, 3.0",
            "b 2.0: CVE-2, mended in no version yet",
            "2 of 3 packages audited, 2 known vulnerabilities; of 1 nothing is known there.",
        ],
        1,
    )


def test_where_none_is_known_it_passes() -> None:
    assert report({"dependencies": [CLEAN]}) == (["1 of 1 packages audited, 0 known vulnerabilities."], 0)


def test_where_nobody_could_be_asked_it_says_so() -> None:
    lines, status = report({"dependencies": [SKIPPED]})
    assert (lines, status) == (["No source of advisories answered here: none of 1 packages was audited."], 0)
