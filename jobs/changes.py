"""What changed between two published nights, user by user, as Parquet for a key-value store."""

from datetime import datetime
from typing import Annotated

import typer

from jobs import Config, job, main
from recsys import config
from recsys.config import PairsSettings
from recsys.config.paths import location
from recsys.engine.progress import console
from recsys.publishing.changes import write_changes


def changes(
    config_path: Config,
    to: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The night that the store is to hold.")],
    out: Annotated[str, typer.Option(help="An empty folder, path or URI, for upserts, deletes and changes.json.", metavar="PATH")],
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The night that the store holds; absent, it is empty.")
    ] = None,
    items_only: Annotated[
        bool, typer.Option("--items-only", help="A list whose items stay in their order is the same, though its scores differ.")
    ] = False,
) -> None:
    """What changed between two published nights, user by user, as Parquet for a key-value store."""
    with job():
        place = location(out)
        settings = config.load_either(config_path)
        door = settings.pairs if isinstance(settings, PairsSettings) else settings.shop
        found = write_changes(
            settings.table.path,
            since=since.date() if since else None,
            to=to.date(),
            out=place,
            items_only=items_only,
            storage_options=door.storage_options,
        )
        console.print(
            f"{found.upserts:,} users to write, {found.deletes:,} to delete, {found.same:,} as they were; "
            f"from {found.since or 'nothing'} to {found.to}, in {place}"
        )


if __name__ == "__main__":
    main(changes)
