"""The pairs door's inputs: feature rows opened and held against settings or bundle, and cut into shards, before work starts."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys import encode, tables
from recsys.config import Pairs, PairsSettings
from recsys.encode import column_spec, is_number, is_word
from recsys.errors import BundleError, DataError
from recsys.inputs import Input, RowGroup, batches, family, is_list, open_input, row_groups
from recsys.profiles import stable_hash
from recsys.spec import ColumnSpec, FeatureSpec, Place

Role = Literal["path", "test", "score"]


@dataclass(frozen=True)
class Rows:
    """Feature rows that can be read as the settings say; made by `open_rows`."""

    settings: PairsSettings
    pairs: Pairs
    """Of the settings, with the columns of an original CSV named."""
    source: Input
    joined: Mapping[Place, Input]
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
        ids = batch.column(self.pairs.user_id).cast(tables.id_type(self.source.columns[self.pairs.user_id], where="", column=""))
        return stable_hash(ids.fill_null("" if pa.types.is_string(ids.type) else 0).to_numpy(zero_copy_only=False))

    def key_of(self, table: Place) -> str:
        """The column by which the rows and a joined table meet."""
        return self.pairs.user_id if table == "users" else self.pairs.item_id

    def of(self, table: Place) -> list[ColumnSpec]:
        """The feature columns that stand in a table."""
        return [column for column in self.columns if column.table == table]

    @property
    def read(self) -> list[str]:
        """The columns of the rows that are read."""
        return [*self.ids, *self.labels, *(column.name for column in self.of("rows"))]

    def id_types(self) -> dict[str, pa.DataType]:
        """`user_id` and `item_id`: int64 or string each."""
        names = ("user_id", "item_id")
        return {
            name: tables.id_type(self.source.columns[column], where=self.source.location, column=column)
            for name, column in zip(names, self.ids, strict=True)
        }

    def identity(self) -> list[str]:
        """Digests of the inputs."""
        return [source.identity() for source in (self.source, *self.joined.values())]


def open_rows(settings: PairsSettings, role: Role, spec: FeatureSpec | None = None) -> Rows:
    """The rows of pairs.path, .test or .score, every column named and of a type that can be encoded.

    Args:
        spec: of the bundle that they are scored with; absent, a spec is to be fitted to them.

    Raises:
        DataError: an input is missing or empty; a column is missing, not named anywhere, or of a type that has no encoding.
        BundleError: the bundle was fed other columns than the settings name.
    """
    pairs = settings.pairs
    location = getattr(pairs, role) or pairs.path
    csv = pairs.format != "parquet"
    if not csv and location.endswith(".csv"):
        raise DataError(f"{location}: pairs.format is parquet, got a CSV file. Set pairs.format to 'csv' or 'original_csv'.")
    source = open_input(f"pairs.{role}", location, pairs.storage_options, csv=csv)
    if pairs.format == "original_csv":
        *numeric, label = source.columns
        numeric = [name for name in numeric if name not in pairs.ignore]
        pairs = pairs.model_copy(update={"numeric": tuple(numeric), "label": label})
        for name in pairs.columns:
            if name not in numeric:
                raise DataError(f"{location}: pairs.columns names '{name}', the features are {', '.join(numeric)}. Mend the name.")
    joined: dict[Place, Input] = {}
    sides: tuple[tuple[Place, str], ...] = (("users", pairs.user_id), ("items", pairs.item_id))
    for table, key in sides:
        if (place := getattr(pairs, table)) is not None:
            joined[table] = open_input(f"pairs.{table}", place, pairs.storage_options)
            joined[table].require(key, setting=f"pairs.{key}")
    ids = () if pairs.format == "original_csv" else (pairs.user_id, pairs.item_id)
    if role == "score" or joined:
        for name, column in zip(("user_id", "item_id"), ids, strict=bool(ids)):
            source.require(column, setting=f"pairs.{name}")
        if not ids:
            raise DataError(f"{location}: rows of the original CSV have no user_id and item_id, so no lists. Use pairs.format = 'csv'.")
    ids = tuple(name for name in ids if name in source.columns)
    for name in ids:
        tables.id_type(source.columns[name], where=location, column=name)
    labels: tuple[str, ...] = ()
    if role != "score":
        _check_number(source, pairs.label, source.require(pairs.label, setting="pairs.label"))
        labels = (pairs.label,)
        if pairs.weight in source.columns and pairs.format != "original_csv":
            labels = (pairs.label, pairs.weight)
            _check_number(source, pairs.weight, source.columns[pairs.weight])
    if spec is not None:
        _check_bundle(spec, pairs.named)
    columns = _columns(pairs, source, joined, spec)
    rows = Rows(settings, pairs, source, joined, columns, ids, labels)
    if len(ids) == 2:
        for (table, key), dtype in zip(sides, rows.id_types().values(), strict=True):
            if table in joined:
                theirs = tables.id_type(joined[table].columns[key], where=joined[table].location, column=key)
                if theirs != dtype:
                    raise DataError(
                        f"{joined[table].location}: column '{key}' must be {dtype} as in {location}, got {theirs}. Convert one of them."
                    )
    _check_named(rows, pairs)
    return rows


def _columns(pairs: Pairs, source: Input, joined: Mapping[Place, Input], spec: FeatureSpec | None) -> tuple[ColumnSpec, ...]:
    """The feature columns, each found in one of the tables and of a usable type."""
    inputs: dict[Place, Input] = {"rows": source, **joined}
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
                width = _width(place, name) if is_list(dtype) and name in pairs.numeric else 1
                found.append(column_spec(pairs, name, dtype, table=table, width=width))
                continue
            column = known[name]
            if column.table != table or is_list(dtype) != (column.kind in ("numbers", "words")):
                raise BundleError(
                    f"{place.location}: column '{name}' must be as the model was trained: a {column.kind} column of {column.table}, "
                    f"got {dtype} in {table}. Convert it, or train again."
                )
            if column.kind in ("word", "words"):
                _check_words(spec, name, values, place)
            found.append(column)
    names = [column.name for column in found]
    for name in pairs.named:
        if name not in names:
            seen = "; ".join(f"{place.location}: {', '.join(place.columns)}" for place in inputs.values())
            raise DataError(f"{source.location}: column '{name}' is missing; seen {seen}. Add it, or remove it from [pairs].")
        if names.count(name) > 1:
            raise DataError(f"{source.location}: column '{name}' must stand in one table, got {names.count(name)}. Drop one.")
    if not found:
        raise DataError(f"{source.location}: at least one feature column is needed. Name them in [pairs].")
    return tuple(found)


def check_alike(rows: Rows, test: Rows) -> None:
    """Refuse test rows whose columns would be other inputs than those of the training rows.

    Raises:
        DataError: a column is of another kind, stands in another table, or holds other words.
    """
    for column in rows.columns:
        (theirs,) = (one for one in test.columns if one.name == column.name)
        place, other = (one.joined.get(column.table, one.source) for one in (rows, test))
        here, there = place.columns[column.name], other.columns.get(column.name, "none")
        words = bool(column.codes()) and isinstance(there, pa.DataType) and family(here) != family(there)
        if column != theirs or words:
            raise DataError(
                f"{test.source.location}: column '{column.name}' must be {here} as in {place.location}, got {there}. Convert one."
            )


def _check_words(spec: FeatureSpec, name: str, dtype: pa.DataType, place: Input) -> None:
    """Refuse words of another kind than the vocabulary's, which would all be unseen."""
    plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    try:
        encode.words_as(spec.vocabularies[name], plain)
    except pa.ArrowInvalid as error:
        raise BundleError(
            f"{place.location}: column '{name}' must hold words such as {', '.join(spec.vocabularies[name][:3])}, got {dtype}. "
            "Convert it, or train again."
        ) from error


def _check_bundle(spec: FeatureSpec, named: Sequence[str]) -> None:
    fed = [column.name for column in spec.columns]
    if not fed:
        raise BundleError("the bundle was trained by the shop door, whose features only it makes. Train one with this [pairs] section.")
    odd = sorted(set(fed) ^ set(named))
    if odd:
        raise BundleError(f"the bundle was fed {', '.join(sorted(fed))}; [pairs] differs in '{odd[0]}'. Train again, or name the same.")


def _check_named(rows: Rows, pairs: Pairs) -> None:
    """Refuse a column that nobody named: a forgotten feature, or something that must not be one."""
    named = {pairs.user_id, pairs.item_id, pairs.label, pairs.weight, *pairs.named, *pairs.ignore}
    for place in (rows.source, *rows.joined.values()):
        for column in place.columns:
            if column not in named:
                raise DataError(
                    f"{place.location}: column '{column}' is not named in [pairs]. Add it to numeric, categorical or multivalued, "
                    "or to ignore."
                )


def _check_number(source: Input, column: str, dtype: pa.DataType) -> None:
    if not is_number(dtype):
        raise DataError(f"{source.location}: column '{column}' must be a number or a truth value, got {dtype}. Convert it.")


def _width(source: Input, column: str) -> int:
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


# Shards -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A unit of work: row groups of one or more files, of bounded bytes."""

    number: int
    groups: tuple[RowGroup, ...]
    shared: tuple[Any, ...] | None
    """Users of whom other shards may have rows too; None: any of them."""

    def unit(self) -> dict[str, Any]:
        """Plain values that `read` takes."""
        runs: list[tuple[str, list[int], int]] = []  # consecutive row groups are read in one go
        for group in self.groups:
            if runs and runs[-1][0] == group.path and runs[-1][1][-1] + 1 == group.number:
                runs[-1][1].append(group.number)
            else:
                runs.append((group.path, [group.number], group.first_row))
        known = self.shared is not None and all(group.low is not None for group in self.groups)
        return {
            "shard": self.number,
            "runs": runs,
            "shared": None if self.shared is None else list(self.shared),
            "low": min(group.low for group in self.groups) if known else None,
            "high": max(group.high for group in self.groups) if known else None,
        }


def cut(rows: Rows, *, size: int) -> tuple[Shard, ...]:
    """The rows' row groups in shards of at most `size` decoded bytes, or of one row group where it is larger.

    What joined tables add to a row counts too: it is scored like a row that was written out.

    Where the footers prove that users come in order, with at most one user on both sides of a border between two row groups,
    a shard shares no others with its neighbours. Where they do not prove it, a shard may share every user.
    """
    groups = row_groups(rows.source, rows.read, key=rows.user_id)
    clustered = all(group.low is not None for group in groups)
    if clustered:
        ordered = sorted(groups, key=lambda group: (group.low, group.high))
        clustered = all(before.high <= after.low for before, after in pairwise(ordered))
        groups = ordered if clustered else groups
    added = 4 * sum(len(column.dense()) + len(column.codes()) for column in rows.columns if column.table != "rows")
    packed: list[list[RowGroup]] = []
    filled = 0
    for group in groups:
        decoded = group.size + group.rows * added
        if not packed or filled + decoded > size:
            packed.append([])
            filled = 0
        packed[-1].append(group)
        filled += decoded
    borders = [before[-1].high for before in packed[:-1]]  # where clustered: the greatest user of each shard but the last
    shards: list[Shard] = []
    for number, mine in enumerate(packed):
        shared: set[Any] = set()
        if clustered and number > 0 and borders[number - 1] == mine[0].low:
            shared.add(mine[0].low)
        if clustered and number + 1 < len(packed) and packed[number + 1][0].low == mine[-1].high:
            shared.add(mine[-1].high)
        shards.append(Shard(number, tuple(mine), tuple(sorted(shared)) if clustered else None if len(packed) > 1 else ()))
    return tuple(shards)


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard as they were read."""

    path: str
    first_row: int
    """Of the file's rows."""
    columns: pa.RecordBatch


def read(rows: Rows, unit: Mapping[str, Any]) -> Iterator[Batch]:
    """The rows of a shard, batch by batch, in the order of its files."""
    for path, numbers, first_row in unit["runs"]:
        for batch in batches(rows.source, path, numbers, rows.read):
            yield Batch(path, first_row, batch)
            first_row += batch.num_rows
