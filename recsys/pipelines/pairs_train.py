"""The pairs door's training on one page: labelled rows -> a fitted spec -> examples -> a bundle -> metrics on rows it never saw."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import expit

from recsys import metrics
from recsys.config import PairsSettings
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.features.examples import examples_table
from recsys.features.feature_table import FeatureTable
from recsys.features.reader import Reader, RejectedRows, no_ids
from recsys.features.spec import FeatureSpec
from recsys.pipelines.pairs_features import check_labels, fit_spec, held_out, labels, shard_units, write_side_tables
from recsys.ranking import bundle as bundles
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Scorer
from recsys.storage import digest, save_array, write_arrow, write_atomically
from recsys.training.fit import Labelled, Trained, fit_bundle, fit_inputs


@dataclass(frozen=True)
class Fitted:
    """A bundle, and what was counted on the way to it."""

    trained: Trained
    rejected: dict[str, int]
    test: dict[str, float] | None
    """`metrics.classification` on pairs.test; None where there is none."""


def train(
    settings: PairsSettings, rows: FeatureTable, test: FeatureTable | None, *, on_epoch: Callable[[dict[str, Any]], None] | None = None
) -> Fitted:
    """The bundle of a model fitted to the rows, and its metrics on the test rows.

    Args:
        rows, test: from `feature_table.open_feature_table`.

    Raises:
        DataError: as `make_examples`.
    """
    labelled, rejected = make_examples(settings, rows)
    stage = Stage(settings.run.work, "train_pairs", {**labelled.identity, **fit_inputs(settings)})
    trained = fit_bundle(stage, labelled, settings=settings, on_epoch=on_epoch)
    return Fitted(trained, rejected, None if test is None else evaluate(settings, test, trained.bundle))


def make_examples(settings: PairsSettings, rows: FeatureTable) -> tuple[Labelled, dict[str, int]]:
    """The rows as examples, and how many were rejected by reason.

    Raises:
        DataError: a label outside 0..1, no usable row, or none held out for validation.
    """
    spec = fit_spec(settings, rows)
    tables = write_side_tables(settings, rows, spec).path
    stage = Stage(
        settings.run.work,
        "examples_pairs",
        {"rows": rows.identity(), "spec": digest(spec.to_json()), "validation": settings.pairs.validation, "seed": settings.run.seed},
    )
    receipts = run_units(stage, shard_units(rows), _examples_task, rows, spec, tables, stage.path, unit="shards", label="examples")
    counts: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for receipt in receipts.values():
        counts.update({name: receipt[name] for name in ("rows", "positives", "held_out")})
        rejected.update(receipt["rejected"])
    if not 0 < counts["held_out"] < counts["rows"]:
        raise DataError(
            f"{rows.source.location}: training and validation both need rows, got {counts['rows'] - counts['held_out']} and "
            f"{counts['held_out']}; rejected: {dict(rejected)}. Change pairs.validation ({settings.pairs.validation}) or add rows."
        )
    labelled = Labelled(
        [stage.path / f"{name}-fit.arrow" for name in receipts],
        [stage.path / f"{name}-validate.arrow" for name in receipts],
        identity={"examples": stage.digest},
        spec=lambda: spec,
        window={},
        counts=dict(counts),
    )
    return labelled, dict(rejected)


# Examples -----------------------------------------------------------------------------------------------------------------------


def _examples_task(rows: FeatureTable, spec: FeatureSpec, tables: Path, folder: Path) -> Task:
    reader = Reader(rows, spec, tables)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = RejectedRows()
        parts: dict[str, list[pa.Table]] = {"fit": [], "validate": []}
        counts: Counter[str] = Counter()
        for batch, encoded in reader(unit):
            label, weight, reasons = labels(rows, batch)
            fine = rejected.add(batch, {**no_ids(rows, batch), **reasons, **encoded.unfit})
            held = held_out(rows, batch)
            for part, mask in (("fit", fine & ~held), ("validate", fine & held)):
                parts[part].append(examples_table(encoded.dense[mask], encoded.codes[mask], label[mask], weight[mask]))
            counts.update(rows=int(fine.sum()), positives=int((label[fine] > 0).sum()), held_out=int((fine & held).sum()))
        for part, made in parts.items():
            table = pa.concat_tables(made)
            write_atomically(folder / f"{name}-{part}.arrow", lambda file, table=table: write_arrow(table, file))
        return {"rows": 0, "positives": 0, "held_out": 0} | counts | {"rejected": rejected.write(folder, name)}

    return task


# Test ---------------------------------------------------------------------------------------------------------------------------


def evaluate(settings: PairsSettings, test: FeatureTable, bundle: Bundle) -> dict[str, float]:
    """`metrics.classification` of the bundle on labelled rows, and `rows`, how many could be used."""
    tables = write_side_tables(settings, test, bundle.spec).path
    stage = Stage(settings.run.work, "test_pairs", {"rows": test.identity(), "model": bundle.model_version, "pairs": settings.pairs})
    receipts = run_units(
        stage, shard_units(test), _test_task, test, str(bundle.folder), tables, stage.path, unit="shards", label="test"
    )
    label, raw, weight = (
        np.concatenate(arrays) for arrays in zip(*(np.load(stage.path / f"{name}.npy") for name in receipts), strict=True)
    )
    if not len(label):
        raise DataError(f"{test.source.location}: no row can be used. See the rejected rows in {stage.path}.")
    return metrics.classification(label, expit(raw.astype(np.float64)), weight) | {"rows": len(label)}


def _test_task(rows: FeatureTable, folder: str, tables: Path, out: Path) -> Task:
    loaded = bundles.load(folder)
    reader, scorer = Reader(rows, loaded.spec, tables), Scorer(loaded)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = RejectedRows()
        found = [np.empty((3, 0), np.float32)]
        for batch, encoded in reader(unit):
            check_labels(rows, batch)
            label, weight, reasons = labels(rows, batch)
            raw = scorer(encoded.dense, encoded.codes)
            infinite = {"the score is not finite": ~np.isfinite(raw)}
            fine = rejected.add(batch, {**no_ids(rows, batch), **reasons, **encoded.unfit, **infinite})
            found.append(np.stack([label, raw, weight])[:, fine])
        save_array(out / f"{name}.npy", np.hstack(found))
        return {"rejected": rejected.write(out, name)}

    return task
