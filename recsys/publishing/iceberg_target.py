"""An Iceberg table whose data files are the Delta table's own: the same Parquet, listed in a catalog, night by night.

    iceberg://CATALOG/NAMESPACE.TABLE[?PROPERTY=VALUE&…]

CATALOG is one of pyiceberg's configuration: .pyiceberg.yaml, or PYICEBERG_CATALOG__CATALOG__PROPERTY in the environment; the address
may say further properties that are no secret, such as uri and warehouse.

Nothing is copied. One commit makes the Iceberg table hold exactly the files that the Delta table holds now, whatever it held before,
so an export that was killed, failed or left out is mended by the next one, and a night taken back or erased is gone there too.
Snapshots older than the time after which files of former nights are deleted are expired with them.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import ConfigError, PublishError, one_line
from recsys.publishing.delta import RECLAIM_HOURS, open_table, table_files
from recsys.schema import AS_OF, ITEM_ID, USER_ID, recommendations_schema
from recsys.storage import filesystem

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

ATTEMPTS = 10  # commits of other writers that one commit gives way to
SECRET = re.compile(r"secret|token|password|credential|access-key|account-key", re.IGNORECASE)  # in names of properties
WITH_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
PROPERTIES = {
    "commit.retry.num-retries": "0",  # what to add and remove is worked out anew for each commit
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    f"write.metadata.metrics.column.{USER_ID}": "counts",  # no metadata names a user; row groups of the files say where one is
}
NAME_MAPPING = "schema.name-mapping.default"  # our files have names of columns, and no ids


@dataclass(frozen=True)
class Followed:
    """What one export changed in the Iceberg table."""

    nights: int
    """That it holds now."""
    newest: date
    added: int
    """Files."""
    removed: int
    rows: int
    """Of the files added."""


def follow(path: str, to: str, *, forget: bool = False, storage_options: Mapping[str, str] = {}) -> Followed:
    """Make the Iceberg table at an address hold the files of the Delta table at a path, by one commit; no commit where it does.

    Args:
        to: as above; namespace and table are made where they are not there.
        forget: expire all snapshots but the new one, now: after an erasure.

    Raises:
        ConfigError: the address is no such address.
        PublishError: there is no Delta table or no night in it, the Iceberg table holds other files than ours, or its catalog fails.
    """
    catalog, identifier = _catalog(to)
    with ExitStack() as stack:
        stack.callback(catalog.close)
        try:
            return _follow(path, to, catalog, identifier, forget=forget, storage_options=storage_options)
        except PublishError:
            raise
        except Exception as error:  # each kind of catalog has a client of its own, with errors of its own
            said = f"{type(error).__name__}: {one_line(error)}"
            raise PublishError(f"--to {_shown(to)}: the catalog cannot take the nights: {said}. Mend that, and run again.") from error


def _follow(path: str, to: str, catalog: "Catalog", identifier: str, *, forget: bool, storage_options: Mapping[str, str]) -> Followed:
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(ATTEMPTS):
        delta = open_table(path, storage_options)
        wanted = {_address(path, file["path"]): file for file in table_files(delta)} if delta is not None else {}
        if delta is None or not wanted:
            raise PublishError(f"{path}: a night must be published to be exported, got none. Run jobs.nightly.")
        types = {field.name: field.type for field in pa.schema(delta.schema().to_arrow())}
        schema = recommendations_schema(types[USER_ID], types[ITEM_ID])
        table = _opened(catalog, identifier, schema)
        standing = {task.file.file_path: task.file for task in table.scan().plan_files()}
        if strange := sorted(name for name in standing if not name.startswith(_address(path, ""))):
            raise PublishError(
                f"--to {_shown(to)}: the table must hold nothing but files of {path}, got {strange[0]}. Name a table of its own."
            )
        added, removed = sorted(wanted.keys() - standing.keys()), sorted(standing.keys() - wanted.keys())
        try:
            if added or removed:
                with table.transaction() as change, change.update_snapshot().overwrite() as files:
                    for name in removed:
                        files.delete_data_file(standing[name])
                    for name in added:
                        files.append_data_file(_data_file(table, path, name, wanted[name], storage_options))
            _expire(catalog.load_table(identifier), now=forget)
        except CommitFailedException:
            continue
        nights = {file[AS_OF] for file in wanted.values()}
        return Followed(len(nights), max(nights), len(added), len(removed), sum(wanted[name]["rows"] for name in added))
    raise PublishError(f"--to {_shown(to)}: {ATTEMPTS} commits were overtaken by other writers. Run again.")


def _catalog(to: str) -> tuple["Catalog", str]:
    """The catalog of an address, and what the table is called there."""
    from pyiceberg.catalog import load_catalog

    name, identifier, properties = read_address(to)
    try:
        return load_catalog(name, **properties), identifier
    except Exception as error:
        said = one_line(error)
        raise PublishError(
            f"--to {_shown(to)}: the catalog '{name}' cannot be opened: {said}. Name it in .pyiceberg.yaml, or mend that."
        ) from error


def read_address(to: str) -> tuple[str, str, dict[str, str]]:
    """Catalog, NAMESPACE.TABLE and properties of an address.

    Raises:
        ConfigError: it is no such address, or holds a secret.
    """
    parts = urlsplit(to)
    identifier, properties = parts.path.strip("/"), dict(parse_qsl(parts.query))
    if WITH_PASSWORD.search(to) or any(SECRET.search(name) or WITH_PASSWORD.search(value) for name, value in properties.items()):
        raise ConfigError(
            "--to: must hold no secret, which process lists and logs show. Put it into .pyiceberg.yaml or the environment."
        )
    if not parts.netloc or not re.fullmatch(r"[^./\s]+(\.[^./\s]+)+", identifier):
        raise ConfigError(f"--to {to}: must be iceberg://CATALOG/NAMESPACE.TABLE. Mend it.")
    return parts.netloc, identifier, properties


def _shown(to: str) -> str:
    return to.partition("?")[0]


def _opened(catalog: "Catalog", identifier: str, schema: pa.Schema) -> "Table":
    """The Iceberg table, made where there is none; with the columns of now, and where names of columns are ids of theirs."""
    from pyiceberg.exceptions import NoSuchTableError
    from pyiceberg.partitioning import PARTITION_FIELD_ID_START
    from pyiceberg.transforms import IdentityTransform

    # The files do not have as_of, which is the name of their partition: what is not in a file cannot be required of it.
    columns = pa.schema([field.with_nullable(True) if field.name == AS_OF else field for field in schema])
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(identifier.rpartition(".")[0])
        with catalog.create_table_transaction(identifier, schema=columns, properties=PROPERTIES) as making:
            with making.update_spec() as spec:
                spec.add_field(AS_OF, IdentityTransform(), AS_OF)
            making.set_properties({NAME_MAPPING: making.table_metadata.schema().name_mapping.model_dump_json()})
        return catalog.load_table(identifier)
    partition = [(field.field_id - PARTITION_FIELD_ID_START, field.transform, field.name) for field in table.spec().fields]
    if partition != [(0, IdentityTransform(), AS_OF)] or table.properties.get(NAME_MAPPING) is None:
        raise PublishError(f"{identifier}: must be partitioned by {AS_OF} and made by this export, got another table. Name a new one.")
    known = {field.name for field in table.schema().fields}
    if missing := [field for field in columns if field.name not in known]:
        with table.transaction() as change:
            with change.update_schema() as update:
                update.union_by_name(pa.schema(missing))
            change.set_properties({NAME_MAPPING: change.table_metadata.schema().name_mapping.model_dump_json()})
        table = catalog.load_table(identifier)
    return table


def _data_file(table: "Table", path: str, name: str, file: Mapping[str, Any], storage_options: Mapping[str, str]) -> "DataFile":
    """A file of ours as Iceberg's metadata lists it."""
    from pyiceberg.io.pyarrow import compute_statistics_plan, data_file_statistics_from_parquet_metadata, parquet_path_to_id_mapping
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    store, root = filesystem(path, storage_options)
    with store.open_input_file(f"{root}/{file['path']}") as stream:
        footer = pq.read_metadata(stream)
    schema = table.schema()
    told = data_file_statistics_from_parquet_metadata(
        footer, compute_statistics_plan(schema, table.properties), parquet_path_to_id_mapping(schema)
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=name,
        file_format=FileFormat.PARQUET,
        partition=Record((file[AS_OF] - date(1970, 1, 1)).days),
        file_size_in_bytes=file["size"],
        sort_order_id=None,
        spec_id=table.spec().spec_id,
        equality_ids=None,
        key_metadata=None,
        **told.to_serialized_dict(),
    )


def _expire(table: "Table", *, now: bool) -> None:
    """Forget snapshots whose files are gone, or all but the current one, with the files of metadata that only they have."""
    kept_by_name = {ref.snapshot_id for ref in table.refs().values()}  # the current one, and what somebody tagged
    before = (datetime.now(UTC) - timedelta(hours=RECLAIM_HOURS)).timestamp() * 1000
    old = [one for one in table.snapshots() if one.snapshot_id not in kept_by_name and (now or one.timestamp_ms < before)]
    if not old:
        return
    files = {name for one in old for name in _metadata_of(table, one)}
    table.maintenance.expire_snapshots().by_ids([one.snapshot_id for one in old]).commit()
    kept = {name for one in table.refresh().snapshots() for name in _metadata_of(table, one)}
    for name in sorted(files - kept):
        table.io.delete(name)


def _metadata_of(table: "Table", snapshot: Any) -> Iterable[str]:
    """The manifest list of a snapshot, and its manifests."""
    yield snapshot.manifest_list
    yield from (one.manifest_path for one in snapshot.manifests(table.io))


def _address(path: str, name: str) -> str:
    """A file below the table's root as Iceberg names it: always with a scheme, as its readers run anywhere."""
    if "://" in path:
        return f"{path.rstrip('/')}/{name}"
    return f"file://{Path(path).absolute()}/{name}"
