"""Labelled feature rows as of earlier dates: what a shop's model learns from.

Each function of a pipeline is one stage: it names the stage's folder by the digest of what goes in, says what a unit is, and hands the
units to the engine. A stage whose receipts are all there does nothing. The pure work is done by the modules that a task calls.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.data.histories import Histories
from recsys.data.label_windows import label_windows, learns_from
from recsys.data.types import midnight
from recsys.engine.stage import Receipt
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.features import candidate_sampling, examples
from recsys.features.candidate_features import Featurizer, embedded
from recsys.features.fitting import fit_examples
from recsys.hashing import stable_hash
from recsys.pipelines.signals import ShopState, examples_of, fit_signals, supplied_of
from recsys.retrieval import signals as signals_module
from recsys.retrieval.supplied import Supplied
from recsys.schema import DAY_US, USER_ID
from recsys.storage import write_arrow, write_atomically
from recsys.training.fit import Labelled

SHAPE_ROWS = 5_000_000  # of supplied candidates that are looked at: the counts of their items are known well enough from them


def make_examples(state: ShopState, days: Sequence[date]) -> tuple[dict[date, str], dict[date, list[Receipt]]]:
    """The names, as `examples_of`, and receipts of the labelled rows as of each cutoff; a unit is a cutoff and a shard of users."""
    names = examples_of(state, days)
    units = {
        f"{name}-{shard}": {"cutoff": day.isoformat(), "shard": shard} for day, name in names.items() for shard in state.dataset.shards
    }
    paths = {day.isoformat(): path for day, path in zip(days, fit_signals(state, days), strict=True)}
    receipts = run_units(state.examples, units, _examples_task, state, paths, unit="parts")
    return names, {day: [receipts[f"{name}-{shard}"] for shard in state.dataset.shards] for day, name in names.items()}


def shape_as_of(state: ShopState, featurizer: Featurizer) -> candidate_sampling.Shape | None:
    """How the shop's own candidates look to the sources as of the featurizer's date; None where the sources propose."""
    given: list[tuple[Histories, Supplied]] = []
    for shard in state.dataset.shards:  # each holds users chosen by hash, so the first ones look like all
        if (one := supplied_of(state, shard)) is not None and sum(len(other.item) for _, other in given) < SHAPE_ROWS:
            given.append((state.dataset.histories(shard), one))
    return candidate_sampling.shape_of(featurizer, given, seed=state.settings.run.seed) if given else None


def _examples_task(state: ShopState, paths: Mapping[str, Path]) -> Task:
    settings = state.settings
    catalog = state.dataset.catalog()
    featurizer: dict[str, tuple[Featurizer, candidate_sampling.Shape | None]] = {}
    contents = state.dataset.contents

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        cutoff, day = unit["cutoff"], date.fromisoformat(unit["cutoff"])
        if cutoff not in featurizer:  # units come in order of cutoff: one set of signals at a time
            featurizer.clear()
            signals = signals_module.load(paths[cutoff], catalog)
            made = Featurizer(settings, catalog, signals, state.vocabularies)
            featurizer[cutoff] = made, shape_as_of(state, made)
        features, shape = featurizer[cutoff]
        start = midnight(day)
        end = start + settings.window.label_days * DAY_US
        tables: list[pa.Table] = []
        counts: Counter[str] = Counter()
        names: tuple[str, ...] = ()
        share = settings.examples.max_users / max(contents.users_wanting(day), 1)
        histories = examples.learned_from(state.dataset.histories(unit["shard"]), start=start, end=end, share=share)
        only = None
        if shape is not None:
            only = candidate_sampling.sample_candidates(
                shape, features, histories, wanted=histories.between(start, end), seed=settings.run.seed
            )
        for batch, users, candidates, inputs in features(histories, only):
            label = examples.bought(candidates, users, window=batch.between(start, end))
            hashes = stable_hash(batch.users.column(USER_ID).to_numpy())
            chosen = examples.sample(candidates, label, negatives=settings.examples.negatives, user_hash=hashes, seed=settings.run.seed)
            tables.append(examples.chosen_examples(candidates, users, inputs, label, chosen, group=settings.train.even_groups))
            counts.update(rows=int(chosen.sum()), positives=int(label.sum()), candidates=len(candidates))
            names = inputs.names
        table = pa.concat_tables(tables)
        write_atomically(state.examples.path / f"{name}.arrow", lambda file: write_arrow(table, file))
        return {**counts, "features": names}

    return task


def export_examples(state: ShopState, *, as_of: date, out: Path) -> dict[str, int]:
    """The labelled rows that a model as of a date learns from, as Parquet for the pairs door; and its settings, OUT/pairs.toml.

    OUT/train holds the rows of all cut-offs but the newest, OUT/test those of the newest: a file for each cut-off and shard.

    Returns:
        Rows of `train` and `test`.

    Raises:
        DataError: as `train`.
    """
    days = training_cutoffs(state, as_of)
    words = {name: state.vocabularies[name] for name in embedded(state.settings.features, state.vocabularies)}
    counts: Counter[str] = Counter()
    names: tuple[str, ...] = ()
    made, parts = make_examples(state, days)
    for day, receipts in parts.items():
        part = "test" if day == days[-1] else "train"
        (out / part).mkdir(parents=True, exist_ok=True)
        for shard, receipt in zip(state.dataset.shards, receipts, strict=True):
            names = tuple(receipt["features"])
            with pa.memory_map(str(state.examples.path / f"{made[day]}-{shard}.arrow")) as source:
                table = examples.named(pa.ipc.open_file(source).read_all(), names, words)
            write_atomically(
                out / part / f"{day.isoformat()}-{shard}.parquet",
                lambda file, table=table: pa.parquet.write_table(table, file, compression="zstd"),
            )
            counts[part] += table.num_rows
    pairs = {
        "path": str(out / "train"),
        "test": str(out / "test"),
        "numeric": list(names),
        "categorical": list(words),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in pairs.items()]
    text = "\n".join(["# Feature rows of jobs.examples: python -m jobs.train --config this file", "[pairs]", *lines, ""])
    write_atomically(out / "pairs.toml", lambda file: file.write_text(text, encoding="utf-8"))
    return dict(counts)


def labelled(state: ShopState, *, as_of: date) -> Labelled:
    """The examples that a fit as of a date reads, made if they are not there; those of the newest cutoff validate.

    Raises:
        DataError: fewer than two windows, or no positive example.
    """
    settings = state.settings
    days = training_cutoffs(state, as_of)
    made, receipts = make_examples(state, days)
    parts = [receipt for day in days for receipt in receipts[day]]
    counts = {key: sum(part[key] for part in parts) for key in ("rows", "positives", "candidates")}
    if counts["positives"] == 0:
        raise DataError(f"--as-of {as_of}: no candidate was bought in any label window. Check shop.label_kinds and window.label_days.")
    files = {day: [state.examples.path / f"{made[day]}-{shard}.arrow" for shard in state.dataset.shards] for day in days}
    fitting = [file for day in days[:-1] for file in files[day]]
    dates = [day.isoformat() for day in days]
    known = days[-1] + timedelta(days=settings.window.label_days)  # what is bought from then on is not
    return Labelled(
        fitting,
        files[days[-1]],
        identity={"examples": state.examples.digest, "cutoffs": list(made.values())},
        spec=lambda: fit_examples(fitting, parts[0]["features"], embedded(settings.features, state.vocabularies), state.vocabularies),
        decided={"als": state.als},
        window={"as_of": known.isoformat(), "cutoffs": dates, "label_days": settings.window.label_days},
        counts=counts,
    )


def training_cutoffs(state: ShopState, as_of: date) -> list[date]:
    """`label_windows` of the shop; the last one's examples validate.

    Raises:
        DataError: fewer than two.
    """
    window, first = state.settings.window, state.dataset.first
    days = label_windows(window, as_of=as_of, first=first)
    if len(days) < 2:  # rows of the first days, which `check_as_of` saw, may have been rejected
        raise DataError(
            f"--as-of {as_of}: training needs two label windows of {window.label_days} days with as much history before them; the "
            f"first usable event is of {first}. {learns_from(window, first=first)}"
        )
    return days
