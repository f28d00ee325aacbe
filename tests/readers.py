"""Somebody who reads the table while drills go on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

Look = tuple[int, int, int]  # rows, users and runs


@contextmanager
def watched(table: Path, *whole: Look) -> Iterator[list[Look]]:
    """A reader that polls the table with Polars meanwhile; each look sees nothing, or one of the whole states that may be seen.

    Args:
        whole: such as the night alone, and the night with the next one.
    """
    seen: list[Look] = []
    ended = threading.Event()
    broken: list[Any] = []

    def look() -> None:
        while not ended.wait(0.1):
            if (table / "_delta_log" / "00000000000000000000.json").exists():
                try:
                    rows = pl.read_delta(str(table))
                except Exception as error:  # noqa: BLE001 # whatever a reader meets
                    if (table / "_delta_log").exists():  # else the drill has begun anew
                        broken.append(error)
                else:
                    seen.append((rows.height, rows["user_id"].n_unique(), rows["run_id"].n_unique()))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        yield seen
    finally:
        ended.set()
        reader.join()
    assert not broken
    assert {look for look in seen if look[0]} <= set(whole)
