"""Known vulnerabilities of the pinned packages, `make audit`: exit 1 where there is one; 0 where none is, or nobody can be asked."""

import json
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parents[1] / "requirements" / "runtime.txt"


def report(said: dict[str, list[dict[str, object]]]) -> tuple[list[str], int]:
    """Lines to print and the exit status, of what pip-audit says as JSON."""
    packages = said["dependencies"]
    asked = [one for one in packages if "skip_reason" not in one]
    lines = [
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version yet'}"
        for one in asked
        for found in one["vulns"]
    ]
    if not asked:
        return [f"No source of advisories answered here: none of {len(packages)} packages was audited."], 0
    left = f"; of {len(packages) - len(asked)} nothing is known there" if len(asked) < len(packages) else ""
    return [*lines, f"{len(asked)} of {len(packages)} packages audited, {len(lines)} known vulnerabilities{left}."], int(bool(lines))


def main() -> int:
    """Ask, and tell."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--disable-pip", "--require-hashes"]
    asked = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        lines, status = report(json.loads(asked.stdout))
    except (ValueError, KeyError):
        last = (asked.stderr.strip().splitlines() or ["no word"])[-1]
        lines, status = [f"No source of advisories answered here, nothing was audited: {last}"], 0
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
