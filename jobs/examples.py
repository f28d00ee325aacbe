"""Write the labelled feature rows that a shop's model learns from as Parquet, with the settings to train on them."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import AsOf, Config, job, main
from recsys import config
from recsys.config.paths import local_path
from recsys.data.shop import open_shop
from recsys.engine.connect import connect
from recsys.pipelines.examples import export_examples
from recsys.pipelines.signals import shop_state
from recsys.storage import check_folders


def examples(
    config_path: Config,
    as_of: AsOf,
    out: Annotated[Path, typer.Option(help="Folder for train/, test/ and pairs.toml.", parser=local_path, metavar="PATH")],
) -> None:
    """Write the labelled feature rows that a shop's model learns from as Parquet, with the settings to train on them."""
    with job():
        check_folders(**{"--out": str(out)})
        inputs = open_shop(config.load(config_path), as_of=as_of.date())
        with connect():
            state = shop_state(inputs, end=as_of.date())
            counts = export_examples(state, as_of=as_of.date(), out=out)
        print(f"{counts['train']:,} rows to train on, {counts['test']:,} to test on. Train on them:")
        print(f"    python -m jobs.train --config {out / 'pairs.toml'}")


if __name__ == "__main__":
    main(examples)
