"""The pairs door's training on one page: labelled rows -> a fitted spec -> examples -> a bundle -> metrics on rows it never saw."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from recsys import bundle as bundles
from recsys import feed, metrics, pairs, runtime
from recsys.bundle import Bundle
from recsys.config import PairsSettings
from recsys.encode import KEPT_WORDS, Encoder, count_words, fitted
from recsys.errors import DataError
from recsys.examples import as_lists
from recsys.joined import read_batches
from recsys.pairs import Batch, Rows
from recsys.pairs_score import write_joined
from recsys.profiles import mix
from recsys.rows import Reader, Rejected, no_ids
from recsys.runtime import Task
from recsys.score import Scorer
from recsys.spec import FeatureSpec, Moments
from recsys.tables import CODES, DENSE, LABEL, WEIGHT
from recsys.training import Labelled, Trained, fit_bundle, fit_inputs
from recsys.work import Receipt, Stage, digest, save_array, write_atomically


@dataclass(frozen=True)
class Fitted:
    """A bundle, and what was counted on the way to it."""

    trained: Trained
    rejected: dict[str, int]
    test: dict[str, float] | None
    """`metrics.classification` on pairs.test; None where there is none."""


def train(
    settings: PairsSettings, rows: Rows, test: Rows | None, *, on_epoch: Callable[[dict[str, Any]], None] | None = None
) -> Fitted:
    """The bundle of a model fitted to the rows, and its metrics on the test rows.

    Args:
        rows, test: from `pairs.open_rows`.

    Raises:
        DataError: as `make_examples`.
    """
    labelled, rejected = make_examples(settings, rows)
    stage = Stage(settings.run.work, "train_pairs", {**labelled.identity, **fit_inputs(settings)})
    trained = fit_bundle(stage, labelled, settings=settings, on_epoch=on_epoch)
    return Fitted(trained, rejected, None if test is None else evaluate(settings, test, trained.bundle))


def make_examples(settings: PairsSettings, rows: Rows) -> tuple[Labelled, dict[str, int]]:
    """The rows as examples, and how many were rejected by reason.

    Raises:
        DataError: a label outside 0..1, no usable row, or none held out for validation.
    """
    spec = fit_spec(settings, rows)
    tables = write_joined(settings, rows, spec)
    stage = Stage(
        settings.run.work,
        "examples_pairs",
        {"rows": rows.identity(), "spec": digest(spec.to_json()), "validation": settings.pairs.validation, "seed": settings.run.seed},
    )
    receipts = runtime.run(stage, _units(rows), _examples_task, rows, spec, tables, stage.path, unit="shards", label="examples")
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


def _units(rows: Rows) -> dict[str, dict[str, Any]]:
    return {f"shard-{shard.number:05d}": shard.unit() for shard in pairs.cut(rows, size=rows.settings.run.shard_bytes)}


# The spec -----------------------------------------------------------------------------------------------------------------------


def fit_spec(settings: PairsSettings, rows: Rows) -> FeatureSpec:
    """Normalisation and vocabularies: of rows that are not held out, and of all rows of joined tables."""
    stage = Stage(
        settings.run.work,
        "spec_pairs",
        {"rows": rows.identity(), "pairs": settings.pairs, "seed": settings.run.seed},
    )
    units = _units(rows) | {f"table-{table}": {"table": table} for table in rows.joined}
    runtime.run(stage, units, _sums_task, rows, stage.path, unit="shards", label="statistics")
    moments: dict[str, Moments] = {}
    counts: dict[str, Counter[str]] = {}
    for name, unit in units.items():
        sums = json.loads((stage.path / f"{name}.json").read_text())
        table = unit.get("table", "rows")
        mine = Moments(*(np.array(values, np.float64) for values in sums["moments"]))
        moments[table] = moments[table] + mine if table in moments else mine
        for column, words in sums["words"].items():
            counts.setdefault(column, Counter()).update(words)
    ordered = [moments[table] for table in ("rows", *rows.joined)]
    whole = Moments(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in ordered), strict=True)))
    return fitted(rows.pairs, rows.columns, whole, counts)


def _sums_task(rows: Rows, folder: Path) -> Task:
    def task(name: str, unit: dict[str, Any]) -> Receipt:
        (table,) = (place for place in ("rows", *rows.joined) if place == unit.get("table", "rows"))
        columns = rows.of(table)
        words = {column.name: Counter[str]() for column in columns if column.codes()}
        encode = Encoder(columns, dict.fromkeys(words, ()))

        def blocks() -> Any:
            if table != "rows":
                for batch in read_batches(rows.joined[table], [column.name for column in columns]):
                    count_words(columns, batch, words)
                    yield encode(batch).dense
                return
            for batch in pairs.read(rows, unit):
                _check_labels(rows, batch)
                chosen = batch.columns.filter(pa.array(~held_out(rows, batch)))
                count_words(columns, chosen, words)
                yield encode(chosen).dense

        moments = Moments.of(blocks(), encode.width)
        limits = {column: rows.pairs.words_of(column).max_vocabulary * KEPT_WORDS for column in words}
        kept = {column: dict(counts.most_common(limits[column])) for column, counts in words.items()}
        text = json.dumps({"moments": [values.tolist() for values in vars(moments).values()], "words": kept})
        write_atomically(folder / f"{name}.json", lambda file: file.write_text(text))
        return {}

    return task


def held_out(rows: Rows, batch: Batch) -> np.ndarray:
    """bool (B): rows of the validation part. Whole users where rows have a user_id, else single rows; the same in every run."""
    share, seed = rows.pairs.validation, rows.settings.run.seed
    if rows.user_id is not None:
        key = rows.user_keys(batch.columns)
    else:
        file = rows.file_numbers[batch.path]
        key = np.arange(batch.first_row, batch.first_row + batch.columns.num_rows).astype(np.uint64) + (
            np.uint64(file) << np.uint64(40)
        )
    draw = mix(mix(key) ^ np.uint64(seed))
    return draw < np.uint64(share * 2.0**64)


def _check_labels(rows: Rows, batch: Batch) -> None:
    values = batch.columns.column(rows.labels[0]).cast(pa.float64())
    wrong = pc.fill_null(pc.or_(pc.less(values, 0.0), pc.greater(values, 1.0)), False).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{batch.path}: row {batch.first_row + row}: column '{rows.labels[0]}' must be from 0 to 1, got {values[row]}. "
            "Scale the label, or name the right column in pairs.label."
        )


# Examples -----------------------------------------------------------------------------------------------------------------------


def _examples_task(rows: Rows, spec: FeatureSpec, tables: Path, folder: Path) -> Task:
    reader = Reader(rows, spec, tables)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = Rejected()
        parts: dict[str, list[pa.Table]] = {"fit": [], "validate": []}
        counts: Counter[str] = Counter()
        for batch, encoded in reader(unit):
            label, weight, reasons = labels(rows, batch)
            fine = rejected.add(batch, {**no_ids(rows, batch), **reasons, **encoded.unfit})
            held = held_out(rows, batch)
            for part, mask in (("fit", fine & ~held), ("validate", fine & held)):
                columns = [
                    as_lists(encoded.dense[mask], pa.float32()),
                    as_lists(encoded.codes[mask], pa.int32()),
                    label[mask],
                    weight[mask],
                ]
                parts[part].append(pa.table(columns, [DENSE, CODES, LABEL, WEIGHT]))
            counts.update(rows=int(fine.sum()), positives=int((label[fine] > 0).sum()), held_out=int((fine & held).sum()))
        for part, made in parts.items():
            table = pa.concat_tables(made)
            write_atomically(folder / f"{name}-{part}.arrow", lambda file, table=table: feed.write(table, file))
        return {"rows": 0, "positives": 0, "held_out": 0} | counts | {"rejected": rejected.write(folder, name)}

    return task


def labels(rows: Rows, batch: Batch) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Label and weight of a batch, float32 (B) each, and reason -> bool (B) of rows where one of them cannot be used."""
    label = batch.columns.column(rows.labels[0]).cast(pa.float32()).to_numpy(zero_copy_only=False)
    weight = np.ones(len(label), np.float32)
    if len(rows.labels) > 1:
        weight = batch.columns.column(rows.labels[1]).cast(pa.float32()).to_numpy(zero_copy_only=False)
    return label, weight, {"no label": np.isnan(label), "no weight from 0": ~(np.isfinite(weight) & (weight >= 0))}


# Test ---------------------------------------------------------------------------------------------------------------------------


def evaluate(settings: PairsSettings, test: Rows, bundle: Bundle) -> dict[str, float]:
    """`metrics.classification` of the bundle on labelled rows, and `rows`, how many could be used."""
    tables = write_joined(settings, test, bundle.spec)
    stage = Stage(settings.run.work, "test_pairs", {"rows": test.identity(), "model": bundle.model_version, "pairs": settings.pairs})
    receipts = runtime.run(stage, _units(test), _test_task, test, str(bundle.folder), tables, stage.path, unit="shards", label="test")
    label, raw, weight = (
        np.concatenate(arrays) for arrays in zip(*(np.load(stage.path / f"{name}.npy") for name in receipts), strict=True)
    )
    if not len(label):
        raise DataError(f"{test.source.location}: no row can be used. See the rejected rows in {stage.path}.")
    return metrics.classification(label, expit(raw.astype(np.float64)), weight) | {"rows": len(label)}


def _test_task(rows: Rows, folder: str, tables: Path, out: Path) -> Task:
    loaded = bundles.load(folder)
    reader, scorer = Reader(rows, loaded.spec, tables), Scorer(loaded)

    def task(name: str, unit: dict[str, Any]) -> Receipt:
        rejected = Rejected()
        found = [np.empty((3, 0), np.float32)]
        for batch, encoded in reader(unit):
            _check_labels(rows, batch)
            label, weight, reasons = labels(rows, batch)
            raw = scorer(encoded.dense, encoded.codes)
            infinite = {"the score is not finite": ~np.isfinite(raw)}
            fine = rejected.add(batch, {**no_ids(rows, batch), **reasons, **encoded.unfit, **infinite})
            found.append(np.stack([label, raw, weight])[:, fine])
        save_array(out / f"{name}.npy", np.hstack(found))
        return {"rejected": rejected.write(out, name)}

    return task
