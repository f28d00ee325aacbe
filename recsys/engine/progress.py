"""How far a stage is: a bar on a terminal, log lines elsewhere."""

import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from typing_extensions import override

log = logging.getLogger("recsys")


class PlainConsole(Console):
    """A terminal on which what a shop wrote stands as it is: no markup, no emoji codes, no control characters."""

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        """The text to show; a control character is shown as a mark."""
        told: dict[str, Any] = {**options, "markup": False, "emoji": False}
        return super().render_str(plain(text), **told)

    @override
    def on_broken_pipe(self) -> None:
        """Who read what we print has gone: the rest goes nowhere, and the work goes on."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(text: str) -> str:
    """The text with a mark in place of each control character; ends of lines and tabs stay."""
    return "".join("\ufffd" if unicodedata.category(sign) == "Cc" and sign not in "\n\t" else sign for sign in text)


console = PlainConsole(width=None if sys.stdout.isatty() else 150)  # a log file has no width; tables keep their columns
LOG_SECONDS = 10.0  # between two log lines of one stage when not on a terminal


@contextmanager
def after_commit(what: str) -> Iterator[None]:
    """A block that comes after a commit: the night stands, so whatever fails in the block is told and fails nothing.

    Args:
        what: that is done in it, for the log.
    """
    try:
        yield
    except Exception as error:  # of any kind: a scheduler must not take the night for failed
        log.warning("%s: failed after the commit, the night stands: %s: %s", what, type(error).__name__, error, exc_info=error)


@contextmanager
def progress(label: str, total: int, *, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with how many units are newly finished, and how many rows they made: a bar on a terminal, log lines elsewhere.

    Both tell rows a second, where units make rows, and about how long the rest takes.
    """
    start = time.monotonic()
    done = made = 0

    def rate(seconds: float) -> str:
        return f", {made:,} rows, {made / max(seconds, 1e-3):,.0f} rows/s" if made else ""

    if console.is_terminal:
        columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit + "{task.fields[rate]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total, rate="")

            def move(count: int, rows: int) -> None:
                nonlocal made
                made += rows
                bar.update(task, advance=count, rate=rate(time.monotonic() - start))

            yield move
        return
    said = start

    def advance(count: int, rows: int) -> None:
        nonlocal done, made, said
        done, made = done + count, made + rows
        now = time.monotonic()
        if now - said >= LOG_SECONDS and done < total:
            said = now
            left = (now - start) / done * (total - done)
            log.info("%s: %d of %d %s, %.0f s%s, about %.0f s left", label, done, total, unit, now - start, rate(now - start), left)

    yield advance
    seconds = time.monotonic() - start
    log.info("%s: %d %s in %.1f s%s", label, done, unit, seconds, rate(seconds))
