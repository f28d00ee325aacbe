"""Read the shop: events, items and users into the catalog and one profile per user."""

from jobs import AsOf, Config, job, main, printing
from recsys import config
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.pipelines.signals import shop_state


def ingest(config_path: Config, as_of: AsOf) -> None:
    """Read the shop: events, items and users into the catalog and one profile per user."""
    with job():
        inputs = open_shop(config.load(config_path), as_of=as_of.date())
        with connect():
            state = shop_state(inputs, end=as_of.date())
            printing.rows(state.dataset)
            print(state.dataset.folder)


if __name__ == "__main__":
    main(ingest)
