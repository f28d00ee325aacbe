"""What a larger shop would need: CPUs, nodes and memory for a night within so many hours."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs import Config, job, main
from jobs.check import AsOf, looked_at
from recsys.data.sample import check_kinds
from recsys.engine.progress import console
from recsys.pipelines import plan as planning
from recsys.pipelines.estimate import size_of


def plan(
    config_path: Config,
    as_of: AsOf = None,
    users: Annotated[float | None, typer.Option(min=1, help="Of the larger shop, such as 5e8. Absent: as many as here.")] = None,
    items: Annotated[float | None, typer.Option(min=1, help="That somebody wants within a year. Absent: as many as here.")] = None,
    hours: Annotated[float, typer.Option(min=0.1, help="That a night may take which trains.")] = 3.0,
    node_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a node. Absent: this machine's.")] = None,
) -> None:
    """What a larger shop would need: CPUs, nodes and memory for a night within so many hours; no table is touched."""
    with job():
        inputs, sample, day, mistakes = looked_at(config_path, as_of)
        settings = inputs.settings
        mistakes.look(check_kinds, inputs, sample)
        mistakes.end()
        seen = size_of(sample, events=inputs.events.rows)
        pace = planning.measured(Path(settings.run.work), seen, settings)
        size = planning.scaled(seen, users=users, items=items)
        cpus = node_cpus or len(os.sched_getaffinity(0))
        made = planning.plan(settings, size, pace, first=inputs.first, as_of=day, hours=hours, node_cpus=cpus)
        table = Table(title="A night that trains", title_justify="left")
        for column in ("what", "core hours", "pace here"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for name, spent in made.core_hours.items():
            table.add_row(name, f"{spent:,.2f}", f"{made.pace[name]:.2f}" if name in made.pace else "-")
        console.print(table)
        shop = f"{size.users:,.0f} users with {size.events:,.0f} events of {size.items:,.0f} items"
        console.print(
            f"{shop}, within {hours:g} h: {made.cpus:,} CPUs, {made.nodes:,} nodes of {cpus} CPUs and {made.node_gib:,.1f} GiB; "
            f"{made.minutes:,.0f} min with them. {made.shards:,} shards.",
            highlight=False,
        )
        console.print(
            "Assumed: users are like those seen, with as many events each; they cost what docs/log.md measured of shops of up to a "
            "million users and 100,000 items, a straight line beyond, times how long the work in run.work took here (pace; 1.00 where "
            "there is none); nodes do not wait for each other, and the store is as fast as a disk here. Half or twice as much is no "
            "surprise.",
            highlight=False,
        )


if __name__ == "__main__":
    main(plan)
