"""The night in order: read the shop, train, choose the bundle, score every user, publish the table."""

import time
from contextlib import ExitStack
from datetime import date, datetime
from typing import Annotated

import typer

from jobs import Config, Override, Why, days_of, job, main, printing
from recsys import config
from recsys.data.dataset import ShopDataset
from recsys.engine.connect import connect
from recsys.engine.progress import after_commit, console
from recsys.engine.stage import prune
from recsys.errors import ConfigError
from recsys.pipelines import nightly as pipeline
from recsys.pipelines.champion import Chosen, challenger_days
from recsys.pipelines.deadline import Deadline, next_deadline
from recsys.pipelines.exports import hand_on_standing
from recsys.pipelines.runs import NightRun, kept_run
from recsys.publishing import gate
from recsys.publishing.release import Published

AsOf = Annotated[
    datetime | None,
    typer.Option(
        "--as-of",
        formats=["%Y-%m-%d"],
        help="What was known before this day, 00:00 UTC; no event from then on is used. Absent: today in shop.timezone.",
    ),
]
Backfill = Annotated[
    str | None,
    typer.Option(metavar="A..B", help="Instead of one night: those from A to B that are missing, oldest first, until one fails."),
]
By = Annotated[
    str | None,
    typer.Option("--deadline", metavar="HH:MM", help="When the table must be there, in shop.timezone; users cut off keep older rows."),
]
Force = Annotated[bool, typer.Option("--force", help="Make a night that stands anew, where anything that it depends on has changed.")]


def nightly(
    config_path: Config,
    as_of: AsOf = None,
    backfill: Backfill = None,
    deadline: By = None,
    force: Force = False,
    override: Override = None,
    why: Why = None,
) -> None:
    """The night in order: read the shop, train, choose the bundle, score every user, publish the table."""
    with job():
        overrides = gate.overrides(override or [], why)
        settings = config.load(config_path)
        if backfill is not None and deadline is not None:
            raise ConfigError(f"--backfill {backfill} and --deadline {deadline}: nights that lie behind have none. Leave one out.")
        pipeline.check_writable(settings)
        if backfill is None:
            nights = [as_of.date() if as_of else pipeline.today(settings)]
        else:
            nights = pipeline.nights_to_make(settings, *days_of(backfill, as_of), force=force)
            console.print(f"Nights of {backfill} to make: {len(nights)}.")
        until = next_deadline(settings, deadline) if deadline is not None else None
        with ExitStack() as ray:
            for day in nights:
                with kept_run(settings, as_of=day) as run:
                    _night(settings, day, run, ray, force=force, overrides=overrides, deadline=until)
        if nights:
            with after_commit("run.work"):
                days = max(settings.run.keep_work_days, challenger_days(settings) + 1)  # what the next challenger learns from stays
                prune(settings.run.work, before=time.time() - days * 86_400)


def _night(
    settings: config.Settings,
    day: date,
    run: NightRun,
    ray: ExitStack,
    *,
    force: bool,
    overrides: dict[str, str],
    deadline: Deadline | None,
) -> None:
    if not force and (standing := pipeline.finished(settings, as_of=day)):
        run.stood(standing)
        with after_commit("exports"):
            run.exported(hand_on_standing(settings, what=f"handing on the lists of {day}"))
        console.print(f"{run.sentence} --force makes it anew where anything changed.")
        return
    inputs = pipeline.open_night(settings, as_of=day)
    ray.enter_context(connect())

    def read(shop: ShopDataset) -> None:
        run.read(shop)
        printing.rows(shop)

    def chosen(choice: Chosen) -> None:
        run.step("train")
        if choice.tested is not None:
            printing.training(choice.tested)
        if choice.metrics is not None:
            printing.metrics(choice.metrics)
        printing.decision(choice)

    def published(table: Published) -> None:
        run.step("publish")
        run.published(table)

    state, table = pipeline.nightly(
        inputs,
        as_of=day,
        overrides=overrides,
        deadline=deadline,
        on_read=read,
        on_epoch=printing.epoch_line,
        on_chosen=chosen,
        on_scored=lambda: run.step("score"),
        on_published=published,
        on_exported=run.exported,
    )
    with after_commit("nightly"):
        printing.published(table, state, as_of=day, overrides=overrides)


if __name__ == "__main__":
    main(nightly)
