"""What README, CONTRIBUTING and docs/ say is so: links, files, commands, and the reference of the settings."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from jobs import docs

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
README, START = ROOT / "README.md", ROOT / "docs" / "start.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TODAY = [page for page in PAGES if page.name != "log.md"]  # a log names what there was
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link into a page may end in, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """The commands of a page's blocks of code, in order, without comments, and with what may be left out."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in fenced for line in block.splitlines()]
    lines += re.findall(r"^    (\S.*)$", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    found = [re.split(r"\s+#", line)[0].removeprefix(".venv/bin/") for line in lines]
    return [re.sub(r"[\[\]]", "", line) for line in found if line.startswith(("make ", "python -m ")) and " ... " not in line]


def all_commands(start: str) -> list[str]:
    return sorted({line for page in TODAY for line in commands(page) if line.startswith(start)})


# ---- the reference


def test_the_reference_says_what_the_settings_classes_say():
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "docs/settings.md is stale. Run `make docs`."


def test_every_key_of_the_settings_has_a_text_and_tells_what_it_may_be():
    for section in docs.sections():
        for key in section.keys:
            assert key.about or section.title == "[tune]", f"{section.title}: {key.name} has no docstring"
            assert key.kind
        assert section.about, f"{section.title} has no docstring"


def test_a_stale_reference_is_one_sentence_and_exit_1(tmp_path: Path):
    app = typer.Typer()
    app.command()(docs.docs)
    page = tmp_path / "settings.md"
    assert CliRunner().invoke(app, ["--out", str(page), "--check"]).exit_code == 1
    assert not page.exists()
    assert CliRunner().invoke(app, ["--out", str(page)]).exit_code == 0
    assert CliRunner().invoke(app, ["--out", str(page), "--check"]).exit_code == 0
    page.write_text(page.read_text(encoding="utf-8").replace("whole number", "number"), encoding="utf-8")
    stale = CliRunner().invoke(app, ["--out", str(page), "--check"])
    assert (stale.exit_code, "make docs" in stale.stderr) == (1, True)


# ---- pages


def test_readme_is_read_in_five_minutes():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page: Path):
    for file, anchor in LINK.findall(prose(page)):
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {file} does not exist"
        assert not anchor or anchor in anchors(there), f"{page.name}: {there.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_opens_with_a_command(page: Path):
    title, blank, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    assert first.startswith(("    make ", "    python -m jobs."))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_readme_leads_to_every_page(page: Path):
    assert f"](docs/{page.name})" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", TODAY, ids=names(TODAY))
def test_every_file_that_a_page_names_exists(page: Path):
    spans = [span for span in SPAN.findall(prose(page)) if re.fullmatch(r"(recsys|jobs|cluster|tests)/[a-z_/]*[a-z_](\.py|/)", span)]
    assert [span for span in spans if not (ROOT / span).exists()] == []


def test_every_test_that_a_page_names_exists():
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = {span for page in TODAY for span in SPAN.findall(prose(page)) if re.fullmatch(r"test_\w+", span)}
    assert named - {"test_a_bought_item_is_never_recommended"} - defined == set()  # that one is an example of a name


# ---- commands


@pytest.mark.parametrize("command", all_commands("make "))
def test_make_knows_the_target(command: str):
    made = subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("command", all_commands("python -m jobs."))
def test_a_verb_understands_its_command(command: str, monkeypatch: pytest.MonkeyPatch):
    module, *arguments = shlex.split(command)[2:]

    def parse(app: typer.Typer, *_: Any) -> None:
        verb: Any = typer.main.get_command(app)
        given = arguments
        if hasattr(verb, "commands"):  # publish and bundles have verbs of their own
            verb, given = verb.commands[given[0]], given[1:]
        verb.make_context(module, list(given))  # exits where an option is unknown, missing, or has another type

    monkeypatch.setattr(typer.Typer, "__call__", parse)
    file = ROOT / f"{module.replace('.', '/')}.py"
    runpy.run_path(str(file if file.exists() else file.with_suffix("")), run_name="__main__")


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_the_commands_of_start_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands(START) if line.startswith("python -m jobs.")]
    assert len(lines) > 5
    for line in lines:
        module, *arguments = shlex.split(line)[2:]
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / f"{module.replace('.', '/')}.py"), run_name="__main__")
        shown = capsys.readouterr()
        assert not ended.value.code, f"{line}: {shown.err}"
        assert shown.out, line
    assert (tmp_path / "var" / "planted" / "reports" / "2025-12-01.html").is_file()
