"""Read the shop: events, items and users into the catalog and one profile per user."""

from jobs import AsOf, Config, _print, job, main
from recsys import config, runtime
from recsys.prepare import prepare
from recsys.shop import open_shop


def ingest(config_path: Config, as_of: AsOf) -> None:
    """Read the shop: events, items and users into the catalog and one profile per user."""
    with job():
        sources = open_shop(config.load(config_path), as_of=as_of.date())
        with runtime.connect():
            prepared = prepare(sources, end=as_of.date())
            _print.rows(prepared.ingest)
            print(prepared.ingest.folder)


if __name__ == "__main__":
    main(ingest)
