"""The feature table of the pairs door: opened, and held against settings or bundle before work starts."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import Pairs, PairsSettings
from recsys.data.inputs import Input, batches, log_files, open_input
from recsys.data.kept import Kept
from recsys.data.names import nearly
from recsys.data.row_groups import row_groups
from recsys.data.types import family, id_type, is_list, is_number, is_word, word_kind
from recsys.errors import BundleError, DataError
from recsys.features.encoding import words_as
from recsys.features.fitting import column_spec
from recsys.features.spec import ColumnSpec, FeatureSpec, Place
from recsys.hashing import stable_hash
from recsys.storage import check_folders

Role = Literal["path", "test", "score"]


@dataclass(frozen=True)
class FeatureTable:
    """Feature rows that can be read as the settings say; made by `open_feature_table`."""

    settings: PairsSettings
    pairs: Pairs
    """Of the settings, with the columns of an original CSV named."""
    source: Input
    side_tables: Mapping[Place, Input]
    """The tables `users` and `items`, where rows are joined to them."""
    columns: tuple[ColumnSpec, ...]
    """Feature columns: of the rows, then of users, then of items."""
    ids: tuple[str, ...]
    """user_id and item_id as the rows name them; empty where they have none, as a CSV of the original system."""
    labels: tuple[str, ...]
    """The label column, and the weight column where there is one; empty in scoring."""

    @functools.cached_property
    def file_numbers(self) -> dict[str, int]:
        """Each file's number, from 0 in the order of paths."""
        return {file.path: number for number, file in enumerate(self.source.files)}

    @property
    def user_id(self) -> str | None:
        """The rows' column of user ids; None where they have none."""
        return self.pairs.user_id if self.pairs.user_id in self.ids else None

    def user_keys(self, batch: pa.RecordBatch) -> np.ndarray:
        """uint64 (B): the stable hash of each row's user; null users share one."""
        ids = batch.column(self.pairs.user_id).cast(id_type(self.source.columns[self.pairs.user_id], where="", column=""))
        return stable_hash(ids.fill_null("" if pa.types.is_string(ids.type) else 0).to_numpy(zero_copy_only=False))

    def key_of(self, table: Place) -> str:
        """The column by which the rows and a joined table meet."""
        return self.pairs.user_id if table == "users" else self.pairs.item_id

    def of(self, table: Place) -> list[ColumnSpec]:
        """The feature columns that stand in a table."""
        return [column for column in self.columns if column.table == table]

    @property
    def columns_read(self) -> list[str]:
        """The columns of the rows that are read."""
        return [*self.ids, *self.labels, *(column.name for column in self.of("rows"))]

    def id_types(self) -> dict[str, pa.DataType]:
        """`user_id` and `item_id`: int64 or string each."""
        names = ("user_id", "item_id")
        return {
            name: id_type(self.source.columns[column], where=self.source.location, column=column)
            for name, column in zip(names, self.ids, strict=True)
        }

    def identity(self) -> list[str]:
        """Digests of the inputs."""
        return [source.identity() for source in (self.source, *self.side_tables.values())]


def open_feature_table(settings: PairsSettings, role: Role, spec: FeatureSpec | None = None) -> FeatureTable:
    """The rows of pairs.path, .test or .score, every column named and of a type that can be encoded.

    Args:
        spec: of the bundle that they are scored with; absent, a spec is to be fitted to them.

    Raises:
        DataError: an input is missing or empty; a column is missing, not named anywhere, of a type that has no encoding, or holds
            text that is no UTF-8.
        BundleError: the bundle was fed other columns than the settings name.
        ConfigError: run.work cannot be written to.
    """
    check_folders(run_work=settings.run.work)
    pairs = settings.pairs
    location = getattr(pairs, role) or pairs.path
    csv = pairs.format != "parquet"
    if not csv and location.endswith(".csv"):
        raise DataError(f"{location}: pairs.format is parquet, got a CSV file. Set pairs.format to 'csv' or 'original_csv'.")
    types = _csv_types(pairs, spec) if pairs.format == "csv" else {}
    source = open_input(f"pairs.{role}", location, pairs.storage_options, form="csv" if csv else "parquet", types=types)
    if pairs.format == "original_csv":
        *numeric, label = source.columns
        numeric = [name for name in numeric if name not in pairs.ignore]
        pairs = pairs.model_copy(update={"numeric": tuple(numeric), "label": label})
        for name in pairs.columns:
            if name not in numeric:
                raise DataError(f"{location}: pairs.columns names '{name}', the features are {', '.join(numeric)}. Mend the name.")
    side_tables: dict[Place, Input] = {}
    sides: tuple[tuple[Place, str], ...] = (("users", pairs.user_id), ("items", pairs.item_id))
    for table, key in sides:
        if (place := getattr(pairs, table)) is not None:
            side_tables[table] = open_input(f"pairs.{table}", place, pairs.storage_options)
            side_tables[table].require(key, setting=f"pairs.{key}")
    ids = () if pairs.format == "original_csv" else (pairs.user_id, pairs.item_id)
    if role == "score" or side_tables:
        for name, column in zip(("user_id", "item_id"), ids, strict=bool(ids)):
            source.require(column, setting=f"pairs.{name}")
        if not ids:
            raise DataError(f"{location}: rows of the original CSV have no user_id and item_id, so no lists. Use pairs.format = 'csv'.")
    for name, column in zip(("user_id", "item_id"), ids, strict=bool(ids)):
        if name in pairs.model_fields_set:
            source.require(column, setting=f"pairs.{name}")
    ids = tuple(name for name in ids if name in source.columns)
    for name in ids:
        id_type(source.columns[name], where=location, column=name)
    labels: tuple[str, ...] = ()
    if role != "score":
        _check_number(source, pairs.label, source.require(pairs.label, setting="pairs.label"))
        labels = (pairs.label,)
        if "weight" in pairs.model_fields_set:
            source.require(pairs.weight, setting="pairs.weight")
        if pairs.weight in source.columns and pairs.format != "original_csv":
            labels = (pairs.label, pairs.weight)
            _check_number(source, pairs.weight, source.columns[pairs.weight])
    if spec is not None:
        _check_fed(spec, pairs.named)
    columns = _columns(pairs, source, side_tables, spec)
    rows = FeatureTable(settings, pairs, source, side_tables, columns, ids, labels)
    if len(ids) == 2:
        for (table, key), dtype in zip(sides, rows.id_types().values(), strict=True):
            if table in side_tables:
                theirs = id_type(side_tables[table].columns[key], where=side_tables[table].location, column=key)
                if theirs != dtype:
                    raise DataError(
                        f"{side_tables[table].location}: column '{key}' must be {dtype} as in {location}, got {theirs}. "
                        "Convert one of them" + (", or set pairs.csv_ids." if csv else ".")
                    )
    _check_named(rows)
    kept = Kept(settings.run.work)
    kept.check_utf8(source, [*ids, *(column.name for column in rows.of("rows"))])
    for table, place in side_tables.items():
        kept.check_utf8(place, [rows.key_of(table), *(column.name for column in rows.of(table))])
    kept.save()
    log_files(source, *side_tables.values())
    return rows


def _csv_types(pairs: Pairs, spec: FeatureSpec | None) -> dict[str, pa.DataType]:
    """What ids and words of a CSV are read as: text, unless the settings or the model that they are for say otherwise."""
    trained = {column.name: column.words for column in spec.columns} if spec else {}
    others = {"integer": pa.int64(), "bool": pa.bool_()}
    words = {name: others.get(trained.get(name, ""), pa.string()) for name in pairs.categorical}
    return words | dict.fromkeys((pairs.user_id, pairs.item_id), pa.string() if pairs.csv_ids == "text" else pa.int64())


def _columns(pairs: Pairs, source: Input, side_tables: Mapping[Place, Input], spec: FeatureSpec | None) -> tuple[ColumnSpec, ...]:
    """The feature columns, each found in one of the tables and of a usable type."""
    inputs: dict[Place, Input] = {"rows": source, **side_tables}
    known = {column.name: column for column in spec.columns} if spec else {}
    found: list[ColumnSpec] = []
    for table, place in inputs.items():
        for name in pairs.named:
            if name not in place.columns:
                continue
            dtype = place.columns[name]
            values = dtype.value_type if is_list(dtype) else dtype
            wanted = "numbers, truth values, or lists of them of one length"
            right = is_number(values)
            if name in pairs.categorical:
                wanted, right = "words: strings, integers or truth values", is_word(dtype)
            elif name in pairs.multivalued:
                wanted, right = "lists of strings, integers or truth values", is_list(dtype) and is_word(values)
            if not right:
                raise DataError(f"{place.location}: column '{name}' must hold {wanted}, got {dtype}. Convert or ignore it.")
            if spec is None:
                width = _list_width(place, name) if is_list(dtype) and name in pairs.numeric else 1
                found.append(column_spec(pairs, name, dtype, table=table, width=width))
                continue
            column = known[name]
            if column.table != table or is_list(dtype) != (column.kind in ("numbers", "words")):
                raise BundleError(
                    f"{place.location}: column '{name}' must be as the model was trained: a {column.kind} column of {column.table}, "
                    f"got {dtype} in {table}. Convert it, or train again."
                )
            if column.kind in ("word", "words"):
                _check_words(spec, column, values, place)
            found.append(column)
    names = [column.name for column in found]
    for name in pairs.named:
        if name not in names:
            seen = "; ".join(f"{place.location}: {', '.join(place.columns)}" for place in inputs.values())
            raise DataError(f"{source.location}: column '{name}' is missing; seen {seen}. Add it, or remove it from [pairs].")
        if names.count(name) > 1:
            raise DataError(f"{source.location}: column '{name}' must stand in one table, got {names.count(name)}. Drop one.")
    inputs_of = [name for column in found for name in column.dense()]
    twice = [name for name in inputs_of if inputs_of.count(name) > 1]
    if twice:
        raise DataError(f"{source.location}: column '{twice[0]}' has the name of an input made of another column. Rename it.")
    if not found:
        raise DataError(f"{source.location}: at least one feature column is needed. Name them in [pairs].")
    return tuple(found)


def check_alike(rows: FeatureTable, test: FeatureTable) -> None:
    """Refuse test rows whose columns would be other inputs than those of the training rows.

    Raises:
        DataError: a column is of another kind, stands in another table, or holds other words.
    """
    for column in rows.columns:
        (theirs,) = (one for one in test.columns if one.name == column.name)
        place, other = (one.side_tables.get(column.table, one.source) for one in (rows, test))
        here, there = place.columns[column.name], other.columns.get(column.name, "none")
        words = bool(column.codes()) and isinstance(there, pa.DataType) and family(here) != family(there)
        if column != theirs or words:
            raise DataError(
                f"{test.source.location}: column '{column.name}' must be {here} as in {place.location}, got {there}. Convert one."
            )


def _check_words(spec: FeatureSpec, column: ColumnSpec, dtype: pa.DataType, place: Input) -> None:
    """Refuse words of another kind than the vocabulary's, which would be unseen, or taken for others: 007 is no 7."""
    plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    vocabulary = spec.vocabularies[column.name]
    trained = f" of type {column.words}" if column.words else ""
    refusal = BundleError(
        f"{place.location}: column '{column.name}' must hold words{trained} such as {', '.join(vocabulary[:3])}, got {dtype}. "
        "Convert it, or train again."
    )
    kind = word_kind(dtype)
    if kind and column.words and kind != column.words:
        raise refusal
    try:
        words_as(vocabulary, plain)
    except pa.ArrowInvalid as error:
        raise refusal from error


def _check_fed(spec: FeatureSpec, named: Sequence[str]) -> None:
    fed = [column.name for column in spec.columns]
    if not fed:
        raise BundleError("the bundle was trained by the shop door, whose features only it makes. Train one with this [pairs] section.")
    odd = sorted(set(fed) ^ set(named))
    if odd:
        raise BundleError(f"the bundle was fed {', '.join(sorted(fed))}; [pairs] differs in '{odd[0]}'. Train again, or name the same.")


def _check_named(rows: FeatureTable) -> None:
    """Refuse a column that nobody named: a forgotten feature, one of ours under another name, or something that must not be one."""
    pairs = rows.pairs
    ours = ("user_id", "item_id", "weight")  # label is asked for by name
    absent = [name for name in ours if getattr(pairs, name) not in rows.source.columns]
    named = {pairs.user_id, pairs.item_id, pairs.label, pairs.weight, *pairs.named, *pairs.ignore}
    for place in (rows.source, *rows.side_tables.values()):
        for column in place.columns:
            if column not in named:
                alike = [name for name in absent if nearly(column, name)]
                like = f" It looks like {alike[0]}: set pairs.{alike[0]}, or rename it. Else add" if alike else " Add"
                raise DataError(
                    f"{place.location}: column '{column}' is not named in [pairs].{like} it to numeric, categorical or multivalued, "
                    "or to ignore."
                )


def _check_number(source: Input, column: str, dtype: pa.DataType) -> None:
    if not is_number(dtype):
        raise DataError(f"{source.location}: column '{column}' must be a number or a truth value, got {dtype}. Convert it.")


def _list_width(source: Input, column: str) -> int:
    """The length of a numeric list column's lists: of its type, or of its first list that has values."""
    dtype = source.columns[column]
    if pa.types.is_fixed_size_list(dtype):
        return dtype.list_size
    for group in row_groups(source, [column]):
        for batch in batches(source, group.path, [group.number], [column]):
            lengths = pc.fill_null(pc.list_value_length(batch.column(0)), 0).to_numpy()
            if lengths.any():
                return int(lengths[lengths > 0][0])
    return 1
