"""Write a night's lists, or what changed, into what serves them: Redis, PostgreSQL, Iceberg, Parquet or JSON lines."""

from datetime import datetime
from typing import Annotated

import typer

from jobs import Config, job, main
from recsys import config
from recsys.config import PairsSettings
from recsys.engine.progress import console
from recsys.errors import ConfigError
from recsys.publishing.export import export as exported
from recsys.secret import secret


def export(
    config_path: Config,
    to: Annotated[
        str,
        typer.Option(
            help="redis://HOST:PORT/DB, postgresql://USER@HOST/DB, iceberg://CATALOG/NAMESPACE.TABLE, parquet:FOLDER, FILE.jsonl[.gz].",
            metavar="PLACE",
        ),
    ],
    as_of: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The night; absent, the newest published.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Of a file: the night that its reader holds; absent, none.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Write all lists, whatever the place holds.")] = False,
    name: Annotated[
        str, typer.Option(help="Table in PostgreSQL, with its schema or not; beginning of keys in Redis.")
    ] = "recommendations",
    password_env: Annotated[str | None, typer.Option(help="Environment variable that holds the password.")] = None,
    password_file: Annotated[str | None, typer.Option(help="File that holds it.", metavar="PATH")] = None,
) -> None:
    """Write a night's lists, or what changed, into what serves them: Redis, PostgreSQL, Iceberg, Parquet or JSON lines."""
    with job():
        settings = config.load_either(config_path)
        door = settings.pairs if isinstance(settings, PairsSettings) else settings.shop
        if since is not None and "://" in to:
            raise ConfigError(
                f"--since {since.date()}: {to} says itself which night it holds. Leave --since out, or write all with --full."
            )
        done = exported(
            settings.table.path,
            to,
            as_of=as_of.date() if as_of else None,
            name=name,
            since=since.date() if since else None,
            full=full,
            password=secret(key="--password", variable=password_env, file=password_file),
            storage_options=door.storage_options,
        )
        console.print(f"In {to.partition('?')[0]}: {done.sentence}", highlight=False)


if __name__ == "__main__":
    main(export)
