"""A PostgreSQL that serves lists: one transaction a night, so that a query sees one night or the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import LiteralString

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from recsys.errors import PublishError, one_line
from recsys.publishing.changes import OF_THE_RUN, Changes
from recsys.publishing.served import parts_of, users_of
from recsys.schema import AS_OF, RANK, RUN_ID, USER_ID


class PostgresTarget:
    """As `served.Target`."""

    def __init__(self, connection: "psycopg.Connection[tuple[object, ...]]", name: str) -> None:
        self.connection = connection
        *schema, table = name.split(".")
        self.lists, self.night = sql.Identifier(*schema, table), sql.Identifier(*schema, f"{table}_night")

    def holds(self, to: str) -> tuple[date, str] | None:  # noqa: ARG002 # an export of any run is whole or not there
        """As `Target.holds`."""
        with self.connection.cursor() as cursor:
            self._make_night(cursor)
            row = cursor.execute(sql.SQL("SELECT as_of, run_id FROM {}").format(self.night)).fetchone()
        return (row[0], row[1]) if row else None  # type: ignore[return-value]

    def take(self, folder: Path, changes: Changes, *, whole: bool) -> int:
        """As `Target.take`."""
        upserts = parts_of(folder, "upserts")
        schema = pa.schema([field for field in pq.read_schema(upserts[0]) if field.name not in OF_THE_RUN])
        columns = sql.SQL(", ").join(map(sql.Identifier, schema.names))
        rows = 0
        with self.connection.cursor() as cursor:
            self._make_night(cursor)
            cursor.execute(
                sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({}, {}))").format(
                    self.lists,
                    sql.SQL(", ").join(
                        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(_type(field.type))) for field in schema
                    ),
                    sql.Identifier(USER_ID),
                    sql.Identifier(RANK),
                )
            )
            cursor.execute(
                sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(self.lists)
            )  # another export waits, readers do not
            gone = sql.SQL("CREATE TEMPORARY TABLE gone (user_id {}) ON COMMIT DROP").format(sql.SQL(_type(schema.field(USER_ID).type)))
            cursor.execute(gone)
            if whole:
                cursor.execute(sql.SQL("DELETE FROM {}").format(self.lists))
            else:
                with cursor.copy("COPY gone FROM STDIN") as copy:
                    for part in (*upserts, *parts_of(folder, "deletes")):
                        for user in dict.fromkeys(users_of(part)):
                            copy.write_row((user,))
                cursor.execute(sql.SQL("DELETE FROM {} WHERE user_id IN (SELECT user_id FROM gone)").format(self.lists))
            with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(self.lists, columns)) as copy:
                for part in upserts:
                    for batch in pq.ParquetFile(part).iter_batches(columns=schema.names):
                        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                            copy.write_row(row)
                            rows += 1
            cursor.execute(sql.SQL("DELETE FROM {}").format(self.night))
            stamp = (date.fromisoformat(changes.to), changes.to_run)
            cursor.execute(sql.SQL("INSERT INTO {} (as_of, run_id) VALUES (%s, %s)").format(self.night), stamp)
        return rows

    def _make_night(self, cursor: "psycopg.Cursor[tuple[object, ...]]") -> None:
        cursor.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({} date NOT NULL, {} text NOT NULL)").format(
                self.night, sql.Identifier(AS_OF), sql.Identifier(RUN_ID)
            )
        )


def _type(dtype: pa.DataType) -> LiteralString:
    """The column type of PostgreSQL that holds what Arrow's holds."""
    names: dict[str, LiteralString] = {"int64": "bigint", "int32": "integer", "float": "real", "double": "double precision"}
    return "text[]" if pa.types.is_list(dtype) else names.get(str(dtype), "text")


@contextmanager
def open_postgres(to: str, *, name: str, password: str | None) -> Iterator[PostgresTarget]:
    """The PostgreSQL at an address, for a block that is one transaction.

    Raises:
        PublishError: it cannot be reached or refuses a statement; nothing is written then.
    """
    try:
        with psycopg.connect(to, password=password, connect_timeout=10) as connection:
            yield PostgresTarget(connection, name)
    except psycopg.Error as error:
        raise PublishError(f"--to {to}: the PostgreSQL cannot take the lists: {one_line(error)}. Mend that, and run again.") from error
