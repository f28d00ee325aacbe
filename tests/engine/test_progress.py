import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from recsys.engine.progress import PlainConsole, after_commit, plain

NAMES = ["Tea [organic] 500g", "Set [/2] cups", "[bold]Box[/bold]", ":tea: pot", "[link=x]y", "\\[a]", "A [/", "<b>b</b>"]


def shown(*things: object) -> str:
    console = PlainConsole(file=io.StringIO(), width=80)
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_the_shop_wrote_it_in_text_title_head_and_cell(name: str):
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    assert shown(name, table).count(name) == 4


def test_control_characters_are_shown_as_a_mark_and_lines_stay_lines():
    assert plain("A\x1b[31mred\x07\x9b2J\nnext\tone") == "A\ufffd[31mred\ufffd\ufffd2J\nnext\tone"
    assert "\x1b" not in shown("A\x1b[31mred")


def test_what_fails_after_a_commit_is_told_and_fails_nothing(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "recsys")
    with after_commit("the page"):
        raise KeyError("column")
    assert "the page: failed after the commit, the night stands: KeyError: 'column'" in caplog.text


def test_an_end_that_is_asked_for_is_no_failure():
    with pytest.raises(KeyboardInterrupt), after_commit("the page"):
        raise KeyboardInterrupt


def test_a_reader_who_has_gone_does_not_fail_the_night(tmp_path: Path):
    code = (
        "import time; from recsys.engine.progress import after_commit, console; time.sleep(0.5)\n"
        "with after_commit('nightly'):\n    for _ in range(100_000):\n        console.print('a line')\n"
    )
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    os.close(writer)
    os.close(reader)
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, b"")
