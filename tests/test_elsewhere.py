"""A verb from a folder that is not the repository's."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_verb_runs_from_any_folder_once_the_environment_knows_the_repository(tmp_path: Path) -> None:
    repository, elsewhere = tmp_path / "a repository", tmp_path / "elsewhere"
    repository.mkdir()
    elsewhere.mkdir()
    for name in ("Makefile", "jobs", "recsys", "cluster"):
        (repository / name).symlink_to(ROOT / name)
    python = repository / ".venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", repository / ".venv"], check=True)
    packages = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}  # those of a fresh environment, without installing them
    command = [python, "-m", "jobs.ingest", "--config", "mine.toml", "--as-of", "2024-01-01"]

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, cwd=elsewhere, env=packages, capture_output=True, text=True, check=False)

    assert "No module named 'jobs'" in run().stderr
    subprocess.run(["make", "here"], cwd=repository, check=True)
    assert run().stderr.startswith("mine.toml: no such settings file.")  # a relative path starts where the command runs
    (elsewhere / "mine.toml").write_text('[shop]\nevents = "events"\n')
    assert "events: no such file or folder. Check shop.events; relative paths start where the command runs." in run().stderr
