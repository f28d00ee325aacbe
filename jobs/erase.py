"""Take people out of everything that is kept of a shop: every night of the table, pages, work; with a certificate."""

from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, job, main
from recsys import config
from recsys.config.paths import local_path
from recsys.engine.progress import console
from recsys.pipelines.erase import erase as erased


def erase(
    config_path: Config,
    ids: Annotated[Path, typer.Option(help="A text file, an id a line, as the shop has them.", parser=local_path, metavar="PATH")],
) -> None:
    """Take people out of everything that is kept of a shop: every night of the table, pages, work; with a certificate.

    Delete them from the shop's own tables first. Readers of earlier versions of the table lose them now.
    """
    with job():
        certificate, place = erased(config.load(config_path), ids)
        console.print(certificate.sentence)
        for night in certificate.nights:
            console.print(f"{night['as_of']}: {night['users']:,} of them, {night['rows']:,} rows.")
        if certificate.bundles:
            console.print(
                f"What remains: weights of {', '.join(certificate.bundles)} may rest on them, until another model is the champion. "
                "The next one that is trained knows nothing of them."
            )
        if certificate.exports:
            console.print(f"Written anew, in full: {', '.join(certificate.exports)}.")
        console.print("Where jobs.export or jobs.changes wrote lists besides, write them again in full: --full.")
        console.print(f"Certificate: {place}")


if __name__ == "__main__":
    main(erase)
