import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import ConfigError, PublishError
from recsys.publishing import changes
from recsys.publishing.changes import write_changes
from recsys.schema import recommendations_schema
from tests.nights import NEXT, NIGHT, SHARD_0, SHARD_1, change, listed, publish, rows_of

THIRD = date(2017, 12, 3)
lists = st.dictionaries(
    st.integers(0, 12), st.lists(st.sampled_from(["milk", "eggs", "tea", "salt"]), min_size=1, max_size=3, unique=True), min_size=1
)


def applied(store: Mapping[Any, list[dict[str, Any]]], folder: Path) -> dict[Any, list[dict[str, Any]]]:
    """A key-value store of lists, after the changes in the folder."""
    upserts = pl.read_parquet(folder / "upserts" / "*.parquet").sort("user_id", "rank")
    deletes = pl.read_parquet(folder / "deletes" / "*.parquet")["user_id"].to_list()
    assert not set(deletes) - store.keys()
    kept = {user: rows for user, rows in store.items() if user not in deletes}
    groups = {key[0]: group.to_dicts() for key, group in upserts.group_by("user_id", maintain_order=True)}
    return {**kept, **groups}


def told(store: Mapping[Any, list[dict[str, Any]]]) -> dict[Any, list[dict[str, Any]]]:
    """Without what is the night's alone."""
    return {
        user: [{name: value for name, value in row.items() if name not in ("as_of", "run_id", "model_version")} for row in rows]
        for user, rows in store.items()
    }


@given(nights=st.tuples(lists, lists), words=st.booleans(), data=st.data())
def test_a_store_that_takes_the_changes_holds_the_other_night(
    tmp_path_factory: pytest.TempPathFactory, nights: tuple[dict[int, list[str]], ...], words: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changes")
    table, ids = folder / "table", pa.string() if words else pa.int64()
    for as_of, night in zip((NIGHT, NEXT), nights, strict=True):
        rows = rows_of({f"u{user}" if words else user: items for user, items in night.items()}, user_id=ids)
        scores = [data.draw(st.sampled_from([None, 0.5, 0.25])) for _ in range(rows.num_rows)]
        publish(table, as_of, change(rows, "score", scores), ids=ids)
    one, other = listed(table, NIGHT), listed(table, NEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "BUCKET_ROWS", data.draw(st.sampled_from([3, 1000])))
        first = write_changes(str(table), since=None, to=NIGHT, out=str(folder / "first"))
        then = write_changes(str(table), since=NIGHT, to=NEXT, out=str(folder / "then"))
        write_changes(str(table), since=NEXT, to=NIGHT, out=str(folder / "back"))
        items = write_changes(str(table), since=NIGHT, to=NEXT, out=str(folder / "items"), items_only=True)
    store = applied({}, folder / "first")
    assert store == one
    assert (first.upserts, first.deletes, first.same) == (len(one), 0, 0)
    store = applied(store, folder / "then")
    assert told(store) == told(other)
    same = sum(told(one).get(user) == rows for user, rows in told(other).items())
    assert (then.upserts, then.deletes, then.same) == (len(other) - same, len(one.keys() - other.keys()), same)
    assert told(applied(store, folder / "back")) == told(one)
    same = sum(nights[0].get(user) == items for user, items in nights[1].items())
    assert (items.upserts, items.same) == (len(other) - same, same)
    with_items = applied(one, folder / "items")
    assert {user: [row["item_id"] for row in rows] for user, rows in with_items.items()} == {
        user: [row["item_id"] for row in rows] for user, rows in other.items()
    }


def test_the_counts_and_runs_lie_beside_the_rows(tmp_path: Path) -> None:
    publish(tmp_path / "table", NIGHT, rows_of({**SHARD_0, **SHARD_1}), ids=pa.string())
    publish(tmp_path / "table", NEXT, rows_of({**SHARD_0, "dee": ["tea"]}), ids=pa.string())
    found = write_changes(str(tmp_path / "table"), since=NIGHT, to=NEXT, out=str(tmp_path / "out"))
    runs = {"since_run": "run-2017-12-01", "to_run": "run-2017-12-02"}
    expected = {"since": "2017-12-01", "to": "2017-12-02", **runs, "upserts": 1, "deletes": 1, "same": 2}
    assert json.loads((tmp_path / "out" / "changes.json").read_text()) == expected == vars(found)
    query = "SELECT user_id, rank, item_id, as_of FROM read_parquet($files)"
    rows = duckdb.execute(query, {"files": str(tmp_path / "out" / "upserts" / "*.parquet")}).fetchall()
    assert rows == [("dee", 1, "tea", NEXT)]
    assert duckdb.execute("SELECT * FROM read_parquet($files)", {"files": f"{tmp_path}/out/deletes/*.parquet"}).fetchall() == [("cid",)]


def test_a_night_that_is_not_published_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    publish(tmp_path / "table", NIGHT, rows_of(SHARD_0), ids=pa.string())
    for since, to, name in ((THIRD, NIGHT, "--since"), (NIGHT, THIRD, "--to")):
        with pytest.raises(PublishError, match=rf"^{name} 2017-12-03: must be a published night of .*; the newest are 2017-12-01\."):
            write_changes(str(tmp_path / "table"), since=since, to=to, out=str(tmp_path / "out"))
    with pytest.raises(PublishError, match=r"--to 2017-12-01: must be a published night of .*; the newest are none"):
        write_changes(str(tmp_path / "nothing"), since=None, to=NIGHT, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(PublishError, match=r"^--out .*: must be empty, or not exist yet"):
        write_changes(str(tmp_path / "table"), since=None, to=NIGHT, out=str(tmp_path))


def test_a_folder_that_cannot_be_made_and_a_table_of_others_are_refused_in_a_sentence(tmp_path: Path) -> None:
    publish(tmp_path / "table", NIGHT, rows_of(SHARD_0), ids=pa.string())
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ConfigError, match=rf"^--out = {out}: must be a folder that can be made and written to, got: Not a directory"
        ):
            write_changes(str(tmp_path / "table"), since=None, to=NIGHT, out=str(out))
    write_deltalake(str(tmp_path / "others"), pa.table({"a": [1, 2]}))
    with pytest.raises(PublishError, match=r"must be a table of recommendations, by night, got files that do not tell as_of, run_id, "):
        write_changes(str(tmp_path / "others"), since=None, to=NIGHT, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- Delta's own feed


def test_the_table_tells_what_each_night_added_and_removed(tmp_path: Path) -> None:
    publish(tmp_path, NIGHT, rows_of(SHARD_0), ids=pa.string())
    publish(tmp_path, NEXT, rows_of(SHARD_1), ids=pa.string())
    publish(tmp_path, NIGHT, rows_of({"eve": ["salt"]}), ids=pa.string())  # anew
    feed = pl.from_arrow(pa.table(DeltaTable(str(tmp_path)).load_cdf(starting_version=2)))
    assert isinstance(feed, pl.DataFrame)
    rows = feed.select("_commit_version", "_change_type", "as_of", "user_id").unique().sort(pl.all()).rows()
    removed = [(3, "delete", NIGHT, "ann"), (3, "delete", NIGHT, "bob")]
    assert rows == [(2, "insert", NEXT, "cid"), *removed, (3, "insert", NIGHT, "eve")]


def test_a_table_of_before_the_feed_gets_it(tmp_path: Path) -> None:
    schema = recommendations_schema(pa.string(), pa.string())
    rows = rows_of(SHARD_0)
    rows = rows.append_column(pa.field("as_of", pa.date32(), nullable=False), pa.array([NIGHT] * rows.num_rows)).select(schema.names)
    write_deltalake(str(tmp_path), rows, partition_by=["as_of"])
    assert "delta.enableChangeDataFeed" not in DeltaTable(str(tmp_path)).metadata().configuration
    publish(tmp_path, NEXT, rows_of(SHARD_1), ids=pa.string())
    assert DeltaTable(str(tmp_path)).metadata().configuration["delta.enableChangeDataFeed"] == "true"
    version = DeltaTable(str(tmp_path)).version()
    feed = pa.table(DeltaTable(str(tmp_path)).load_cdf(starting_version=version))
    assert set(feed["user_id"].to_pylist()) == {"cid"}
    publish(tmp_path, THIRD, rows_of(SHARD_1), ids=pa.string())
    assert DeltaTable(str(tmp_path)).version() == version + 1
