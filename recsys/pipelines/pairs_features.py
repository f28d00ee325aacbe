"""What training and scoring of feature rows share: shards, the fitted spec, the side tables, labels."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import PairsSettings
from recsys.engine.stage import Receipt, Stage
from recsys.engine.units import Task, run_units
from recsys.errors import DataError
from recsys.features.encoding import Encoder, encoder
from recsys.features.feature_table import FeatureTable
from recsys.features.fitting import KEPT_WORDS, Moments, count_words, fit_columns
from recsys.features.reader import RowBatch, cut_shards, read_shard_rows
from recsys.features.side_tables import read_batches, write_side_table
from recsys.features.spec import FeatureSpec
from recsys.hashing import mix, sampled
from recsys.storage import digest, write_atomically

SMALL_TABLE_ROWS = 1_000_000  # of users or items: encoded in less time than an actor starts


def write_side_tables(settings: PairsSettings, rows: FeatureTable, spec: FeatureSpec) -> Stage:
    """The users and items tables as the spec encodes them, in the stage's folder; a table is a unit."""
    stage = Stage(
        settings.run.work,
        "side_tables_pairs",
        {"tables": {name: source.identity() for name, source in rows.side_tables.items()}, "spec": digest(spec.to_json())},
    )
    run_units(
        stage,
        {table: {} for table in rows.side_tables},
        _side_table_task,
        rows,
        spec,
        stage.path,
        here=all(source.rows <= SMALL_TABLE_ROWS for source in rows.side_tables.values()),
        unit="tables",
        label="side tables",
    )
    return stage


def _side_table_task(rows: FeatureTable, spec: FeatureSpec, folder: Path) -> Task:
    def task(name: str, unit: dict[str, Any]) -> Receipt:
        (table,) = (place for place in rows.side_tables if place == name)
        return write_side_table(rows.side_tables[table], rows.key_of(table), encoder(spec, table), folder, table)

    return task


def shard_units(rows: FeatureTable) -> dict[str, dict[str, Any]]:
    """The feature table's shards as units of a stage."""
    return {f"shard-{shard.number:05d}": shard.unit() for shard in cut_shards(rows, size=rows.settings.run.shard_bytes)}


# The spec -----------------------------------------------------------------------------------------------------------------------


def fit_spec(settings: PairsSettings, rows: FeatureTable) -> FeatureSpec:
    """Normalisation and vocabularies: of rows that are not held out, and of all rows of joined tables."""
    stage = Stage(
        settings.run.work,
        "spec_pairs",
        {"rows": rows.identity(), "pairs": settings.pairs, "seed": settings.run.seed},
    )
    units = shard_units(rows) | {f"table-{table}": {"table": table} for table in rows.side_tables}
    run_units(stage, units, _sums_task, rows, stage.path, unit="shards", label="statistics")
    moments: dict[str, Moments] = {}
    counts: dict[str, Counter[str]] = {}
    for name, unit in units.items():
        sums = json.loads((stage.path / f"{name}.json").read_text(encoding="utf-8"))
        table = unit.get("table", "rows")
        mine = Moments(*(np.array(values, np.float64) for values in sums["moments"]))
        moments[table] = moments[table] + mine if table in moments else mine
        for column, words in sums["words"].items():
            counts.setdefault(column, Counter()).update(words)
    ordered = [moments[table] for table in ("rows", *rows.side_tables)]
    whole = Moments(*(np.concatenate(arrays) for arrays in zip(*(vars(part).values() for part in ordered), strict=True)))
    return fit_columns(rows.pairs, rows.columns, whole, counts)


def _sums_task(rows: FeatureTable, folder: Path) -> Task:
    def task(name: str, unit: dict[str, Any]) -> Receipt:
        (table,) = (place for place in ("rows", *rows.side_tables) if place == unit.get("table", "rows"))
        columns = rows.of(table)
        words = {column.name: Counter[str]() for column in columns if column.codes()}
        encode = Encoder(columns, dict.fromkeys(words, ()))

        def blocks() -> Any:
            if table != "rows":
                for batch in read_batches(rows.side_tables[table], [column.name for column in columns]):
                    count_words(columns, batch, words)
                    yield encode(batch).dense
                return
            for batch in read_shard_rows(rows, unit):
                check_labels(rows, batch)
                chosen = batch.columns.filter(pa.array(~held_out(rows, batch)))
                count_words(columns, chosen, words)
                yield encode(chosen).dense

        moments = Moments.of(blocks(), encode.width)
        limits = {column: rows.pairs.words_of(column).max_vocabulary * KEPT_WORDS for column in words}
        kept = {column: dict(counts.most_common(limits[column])) for column, counts in words.items()}
        text = json.dumps({"moments": [values.tolist() for values in vars(moments).values()], "words": kept})
        write_atomically(folder / f"{name}.json", lambda file: file.write_text(text, encoding="utf-8"))
        return {}

    return task


def held_out(rows: FeatureTable, batch: RowBatch) -> np.ndarray:
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
    return sampled(draw, share)


def check_labels(rows: FeatureTable, batch: RowBatch) -> None:
    """Nothing, where the batch's labels can be used.

    Raises:
        DataError: one is outside 0..1.
    """
    values = batch.columns.column(rows.labels[0]).cast(pa.float64())
    wrong = pc.fill_null(pc.or_(pc.less(values, 0.0), pc.greater(values, 1.0)), False).to_numpy(zero_copy_only=False)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"{batch.path}: row {batch.first_row + row}: column '{rows.labels[0]}' must be from 0 to 1, got {values[row]}. "
            "Scale the label, or name the right column in pairs.label."
        )


def labels(rows: FeatureTable, batch: RowBatch) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Label and weight of a batch, float32 (B) each, and reason -> bool (B) of rows where one of them cannot be used."""
    label = batch.columns.column(rows.labels[0]).cast(pa.float32()).to_numpy(zero_copy_only=False)
    weight = np.ones(len(label), np.float32)
    if len(rows.labels) > 1:
        weight = batch.columns.column(rows.labels[1]).cast(pa.float32()).to_numpy(zero_copy_only=False)
    return label, weight, {"no label": np.isnan(label), "no weight from 0": ~(np.isfinite(weight) & (weight >= 0))}
