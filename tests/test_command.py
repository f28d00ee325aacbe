"""The one command: in the repository, and from the wheel that is built here, in an environment without the repository."""

import os
import pkgutil
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import jobs
from recsys.command import VERBS

ROOT = Path(__file__).parents[1]


def recsys(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False)


def test_every_verb_is_in_one_group() -> None:
    named = [verb for verbs in VERBS.values() for verb in verbs]
    assert sorted(named) == sorted({module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"printing", "docs"})


def test_help_groups_the_verbs_with_a_sentence_each() -> None:
    shown = recsys("--help", COLUMNS="200")
    assert shown.returncode == 0
    places = [shown.stdout.index(f"─ {panel} ─") for panel in VERBS]
    assert places == sorted(places)
    for verb in (verb for verbs in VERBS.values() for verb in verbs):
        assert re.search(rf"│ {verb} +[A-Z]", shown.stdout), verb


def test_a_verb_takes_its_options_and_says_its_sentence() -> None:
    ended = recsys("check", "--config", "nowhere.toml", "--as-of", "2024-01-01")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "nowhere.toml: no such settings file. Pass --config with the path of a TOML file.\n"
    assert "Did you mean 'check'?" in recsys("chek").stderr
    assert "--cpus" in recsys("check", "--help").stdout
    assert "rollback" in recsys("publish", "--help").stdout


@pytest.mark.parametrize(
    ("words", "offered"), [("recsys nigh", "nightly"), ("recsys nightly --dead", "--deadline"), ("recsys publish cl", "clean")]
)
def test_a_shell_completes_verbs_and_their_options(words: str, offered: str) -> None:
    asked = {"_RECSYS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert offered in recsys(**asked).stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return next(folder.glob("recsys-*.whl"))


def test_a_wheel_puts_one_package_into_the_site(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"recsys", next(name.split("/")[0] for name in names if ".dist-info/" in name)}
    assert {
        "recsys/house/jobs/nightly.py",
        "recsys/house/cluster/submit.py",
        "recsys/py.typed",
        "recsys/evaluation/report.html",
    } <= set(names)


def test_the_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    here = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "packages.pth").write_text(f"{here}\n")  # what the project needs, as installed here; the repository is not among it
    install = [sys.executable, "-m", "pip", "--quiet", "--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=250, check=False)

    python, command = str(home / "bin" / "python"), str(home / "bin" / "recsys")
    assert run(python, "-c", "import jobs").returncode == 1  # a name that is free for others
    where = run(python, "-c", "import recsys; print(recsys.__file__)").stdout
    assert where.startswith(str(site))
    for arguments in (
        ("planted_shop", "--out", "shop", "--users", "60", "--items", "60", "--days", "150"),
        ("init", "--events", "shop/events", "--items", "shop/items", "--out", "my.toml"),
        ("check", "--config", "my.toml", "--as-of", "2026-01-01"),
        ("ingest", "--config", "my.toml", "--as-of", "2026-01-01"),
    ):
        ended = run(command, *arguments)
        assert ended.returncode == 0, ended.stderr
    assert "60 users" in ended.stdout or "catalog" in ended.stdout
    refused = run(command, "submit", "nightly", "--address", "http://127.0.0.1:1")
    assert (refused.returncode, "Run it in a clone." in refused.stderr) == (1, True)
