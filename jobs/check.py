"""Open all that a night would read and say what is there, what is wrong, and what the night will take; no table is touched."""

import os
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job, main
from recsys import config
from recsys.data.inputs import Input
from recsys.data.label_windows import label_windows
from recsys.data.sample import ShopSample, check_kinds, look_at
from recsys.data.shop import ShopInputs
from recsys.engine.progress import console
from recsys.errors import Mistakes
from recsys.pipelines import nightly as pipeline
from recsys.pipelines.estimate import estimate

AsOf = Annotated[
    datetime | None,
    typer.Option("--as-of", formats=["%Y-%m-%d"], help="The night that is meant. Absent: today in shop.timezone."),
]


def check(
    config_path: Config,
    as_of: AsOf = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Of the cluster that is to run the night. Absent: this machine's.")] = None,
) -> None:
    """Open all that a night would read and say what is there, what is wrong, and what the night will take; no table is touched."""
    with job():
        inputs, sample, day, mistakes = looked_at(config_path, as_of)
        settings = inputs.settings
        _inputs(inputs, sample)
        _rejected(sample)
        _people(inputs, sample)
        _windows(inputs, sample, day)
        mistakes.look(check_kinds, inputs, sample)
        mistakes.end()
        cpus = cpus or len(os.sched_getaffinity(0))
        told = estimate(settings, sample, events=inputs.events.rows, first=inputs.first, as_of=day, cpus=cpus)
        console.print(
            f"Estimated for {cpus} CPUs: {told.first_minutes:,.0f} min for a night that trains, "
            f"{told.champion_minutes:,.0f} min for one that the champion scores alone, {told.gib:,.1f} GiB of memory; half or twice as "
            "much is no surprise."
        )
        console.print(f"Nothing stands in the way of the night of {day}.")


def looked_at(config_path: Path, as_of: datetime | None) -> tuple[ShopInputs, ShopSample, date, Mistakes]:
    """What a night would read, opened; what was seen of its rows; the night's day; and what was wrong with files on the way."""
    settings = config.load(config_path)
    day = as_of.date() if as_of else pipeline.today(settings)
    inputs, mistakes = pipeline.open_night(settings, as_of=day), Mistakes()
    return inputs, look_at(inputs, mistakes, as_of=day), day, mistakes


def _inputs(inputs: ShopInputs, sample: ShopSample) -> None:
    table = Table(title="Inputs", title_justify="left")
    for column in ("table", "place", "files", "rows", "looked at", "left out"):
        table.add_column(column, justify="right" if column in ("files", "rows", "looked at") else "left")
    opened: dict[str, Input | None] = {"events": inputs.events, "items": inputs.items, "users": inputs.users}
    opened |= {"daily": inputs.daily} if inputs.daily is not None else {}  # few shops have one
    for name, source in opened.items():
        if source is None:
            table.add_row(name, "none", "", "", "", "")
            continue
        left_out = ", ".join(f"{reason} {count:,}" for reason, count in sorted(source.left_out.items()))
        counts = (f"{number:,}" for number in (len(source.files), source.rows, sample.rows.get(name, 0)))
        table.add_row(name, source.location, *counts, left_out)
    console.print(table)
    console.print(f"Events from {inputs.first} to {inputs.last}, UTC.")


def _rejected(sample: ShopSample) -> None:
    if not sample.rejected:
        console.print("No row that was looked at would be rejected.")
        return
    table = Table(title="Rows that would be rejected", title_justify="left")
    for column in ("table", "reason", "rows", "share"):
        table.add_column(column, justify="right" if column in ("rows", "share") else "left")
    for name, faults in sample.rejected.items():
        for reason, count in faults.items():
            table.add_row(name, reason, f"{count:,}", f"{count / max(sample.rows[name], 1):.2%}")
    console.print(table)


def _people(inputs: ShopInputs, sample: ShopSample) -> None:
    days = inputs.settings.window.history_days
    at_least = "" if sample.rows["events"] == inputs.events.rows else "at least "
    if sample.kinds:
        kinds = inputs.settings.shop.label_kinds or ()
        told = ", ".join(f"{name} {count:,}{' (wanted)' if name in kinds else ''}" for name, count in sample.kinds.items())
        console.print(f"Kinds of events: {told}.")
    console.print(
        f"{at_least}{sample.users:,} users, {sample.with_history:,} of them with something wanted in the {days} days before the date; "
        f"{sample.items:,} items in the catalog, {sample.available:,} of them available, {sample.bought:,} wanted in those days."
    )


def _windows(inputs: ShopInputs, sample: ShopSample, day: date) -> None:
    window = inputs.settings.window
    tested, published = (
        label_windows(window, as_of=until, first=inputs.first) for until in (day - timedelta(days=window.label_days), day)
    )
    table = Table(title="Label windows that training has", title_justify="left")
    for column in ("from", "days", "users who wanted", "events wanted", "for the tested model", "for the published one"):
        table.add_column(column, justify="right" if column in ("days", "users who wanted", "events wanted") else "left")
    for start, wanting in sample.wanting.items():
        parts = ("" if start not in one else "stopping" if start == one[-1] else "fitting" for one in (tested, published))
        table.add_row(str(start), str(window.label_days), f"{wanting.users:,}", f"{wanting.events:,}", *parts)
    console.print(table)


if __name__ == "__main__":
    main(check)
