"""Score feature rows and publish the best k of each user as the table of a day."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from jobs import Config, Day, Override, Why, job, main, printing
from recsys import config
from recsys.config import PairsSettings
from recsys.config.paths import local_path, location
from recsys.engine.connect import connect
from recsys.engine.progress import after_commit, console
from recsys.evaluation.unknown import warnings_of
from recsys.features.feature_table import open_feature_table
from recsys.pipelines import pairs_score
from recsys.pipelines.exports import check_exports, hand_on_standing
from recsys.publishing import gate
from recsys.ranking import bundle
from recsys.storage import check_folders


def score_pairs(
    config_path: Config,
    as_of: Day,
    bundle_path: Annotated[
        Path, typer.Option("--bundle", help="The model's folder, as jobs.train wrote it.", parser=local_path, metavar="PATH")
    ],
    all_scores: Annotated[
        str | None,
        typer.Option(
            help="A folder, path or URI, for every row's score as Parquet: empty, or this run's.", parser=location, metavar="PATH"
        ),
    ] = None,
    override: Override = None,
    why: Why = None,
) -> None:
    """Score feature rows and publish the best k of each user as the table of a day."""
    with job():
        allowed = gate.overrides(override or [], why)
        settings = config.load_pairs(config_path)
        loaded = bundle.load(bundle_path)
        pairs_score.check_bundle(loaded, settings)
        check_exports(settings.exports)
        check_folders(table_path=settings.table.path)
        rows = open_feature_table(settings, "score", loaded.spec)
        with connect():
            night = pairs_score.score(settings, rows, loaded, as_of=as_of.date(), all_scores=all_scores, overrides=allowed)
        with after_commit("exports"):
            hand_on_standing(settings, what=f"handing on the lists of {as_of.date()}")
        with after_commit("score_pairs"):
            _told(night, settings, as_of=as_of.date(), overrides=allowed)


def _told(night: pairs_score.PairsRun, settings: PairsSettings, *, as_of: date, overrides: Mapping[str, str]) -> None:
    table = night.published
    console.print(f"{table.rows:,} rows for {table.users:,} users; run {table.run_id}.")
    rejected = ", ".join(f"{reason} {count:,}" for reason, count in night.rejected.items())
    console.print(
        f"{night.rows:,} rows read, {sum(night.rejected.values()):,} rejected{': ' if rejected else ''}{rejected}; "
        f"{night.repeated:,} repeats of a user's item passed over."
    )
    unknown = ", ".join(f"{name} {unseen / max(count, 1):.1%}" for name, (count, unseen) in night.words.items())
    if unknown:
        console.print(f"Words that the model does not know: {unknown}.")
    printing.warnings(warnings_of(words=night.words))
    if table.seconds:
        console.print(f"Scored in {table.seconds:.1f} s with the actors' start: {table.scored / table.seconds:,.0f} rows/s.")
    printing.verdict(table.verdict, overrides)
    if table.version is None:
        console.print(f"This run is what stands for {as_of}; nothing was committed.")
    else:
        console.print(f"Committed as version {table.version} of {settings.table.path}, a Delta table partitioned by as_of.")


if __name__ == "__main__":
    main(score_pairs)
