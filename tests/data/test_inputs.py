import os
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys.data import bounds as column_bounds
from recsys.data.inputs import Input, open_input, read
from recsys.data.kept import Kept
from recsys.data.types import FIRST_US
from recsys.errors import ConfigError, DataError

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


def events(users: Sequence[int], **columns: pa.Array) -> pa.Table:
    """One event of each user, a minute apart in the order of the users' numbers, with columns added or replaced."""
    ts = pa.array([NOON + timedelta(minutes=user) for user in users], pa.timestamp("us", tz="UTC"))
    return pa.table({"user_id": pa.array(users, pa.int64()), "ts": ts} | columns)


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def opened(path: Path) -> Input:
    return open_input("shop.events", str(path), {})


def refusal(path: Path) -> str:
    """The sentence that refuses the input."""
    with pytest.raises(DataError) as caught:
        opened(path)
    return str(caught.value)


def asked(found: Input, column: str) -> str:
    """The sentence that refuses one column."""
    with pytest.raises(DataError) as caught:
        found.require(column, setting="shop.columns.x")
    with pytest.raises(DataError, match=re.escape(str(caught.value))):
        _ = found.columns[column]
    return str(caught.value)


# ---- what there is


def test_a_file_is_an_input(tmp_path: Path) -> None:
    path = write(tmp_path / "part.parquet", events([3, 4, 5]), row_group_size=2)
    found = opened(path)
    assert [(file.path, file.rows, file.row_groups, file.size) for file in found.files] == [(str(path), 3, 2, path.stat().st_size)]
    assert found.columns == {"user_id": pa.int64(), "ts": pa.timestamp("us", tz="UTC")}
    assert (found.setting, found.location, found.rows) == ("shop.events", str(path), 3)


def test_a_folder_and_its_subfolders_are_one_input_in_path_order(tmp_path: Path) -> None:
    for name, users in (("b.parquet", [1]), ("2024/a.parquet", [2, 3]), ("a.parquet", [4, 5, 6])):
        write(tmp_path / name, events(users))
    found = opened(tmp_path)
    assert [str(Path(file.path).relative_to(tmp_path)) for file in found.files] == ["2024/a.parquet", "a.parquet", "b.parquet"]
    assert [file.rows for file in found.files] == [2, 3, 1]
    assert found.rows == 2 + 3 + 1


def test_hidden_and_underscored_files_and_empty_markers_are_left_out_and_counted(tmp_path: Path) -> None:
    shop = tmp_path / "_shop" / ".v1"  # above the folder nothing is judged
    write(shop / "part.parquet", events([1]))
    for name in (".part.parquet", "_part.parquet", "_log/part.parquet", ".tmp/a/part.parquet"):
        write(shop / name, events([1, 2], other=pa.array([1, 2])))
    (shop / "part.done").write_text("")
    assert [Path(file.path).name for file in opened(shop).files] == ["part.parquet"]
    assert opened(shop).rows == 1
    assert opened(shop).left_out == {"hidden": 4, "empty": 1}  # a hidden folder is one entry


def test_a_relative_path_starts_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "shop" / "part.parquet", events([1]))
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in opened(Path("shop")).files] == [str(path)]


def test_a_uri_is_read_like_a_path(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", events([1, 2]))
    found = open_input("shop.events", f"file://{tmp_path}/", {})
    assert read(found, found.files[0], None, ["user_id"]).column("user_id").to_pylist() == [1, 2]


# ---- what is refused


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    where = tmp_path / "nowhere"
    assert refusal(where) == f"{where}: no such file or folder. Check shop.events; relative paths start where the command runs."


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "_part.parquet", events([1]))
    assert refusal(tmp_path) == f"{tmp_path}: the folder has no *.parquet file (left out: hidden 1). Check shop.events."


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", events([]))
    write(tmp_path / "b.parquet", events([]))
    assert refusal(tmp_path) == f"{tmp_path}: shop.events has no rows in 2 file(s). Nothing can be made of it."


def test_an_empty_file_beside_a_full_one_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", events([]))
    write(tmp_path / "b.parquet", events([1]))
    assert opened(tmp_path).rows == 1


@pytest.mark.parametrize("content", [b"", b"user_id,ts\n1,2024-02-29\n", b"PAR1" + bytes(40)])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "a.parquet", events([1]))
    (tmp_path / "b.parquet").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path}/b.parquet: not a Parquet file: ")


@pytest.mark.parametrize("first", ["lacks", "has"])
def test_a_column_that_is_not_in_every_file_is_refused_when_it_is_asked_for(tmp_path: Path, first: str) -> None:
    tables = [events([1]), events([1], kind=pa.array(["view"]))]
    for name, table in zip("ab", tables if first == "lacks" else tables[::-1], strict=True):
        write(tmp_path / f"{name}.parquet", table)
    found = opened(tmp_path)
    assert read(found, found.files[1], None, ["user_id"]).to_pydict() == {"user_id": [1]}
    assert list(found.columns) == ["user_id", "ts", "kind"]
    assert asked(found, "kind") == (
        f"{tmp_path}/b.parquet: column 'kind' is not in every file of shop.events ({tmp_path}/a.parquet differs). "
        "Write all files with the same columns."
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1]), pa.array([1], pa.uint64())),
        (pa.array(["a"]), pa.array([1.0])),
        (pa.array([NOON], pa.timestamp("us", tz="UTC")), pa.array([NOON.replace(tzinfo=None)], pa.timestamp("us"))),
        (pa.array([True]), pa.array([1])),
    ],
)
def test_a_column_of_different_types_is_refused_when_it_is_asked_for(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    write(tmp_path / "a.parquet", events([1], x=one))
    write(tmp_path / "b.parquet", events([1], x=other))
    assert asked(opened(tmp_path), "x") == (
        f"{tmp_path}/b.parquet: column 'x' must be {one.type} as in {tmp_path}/a.parquet, got {other.type}. "
        "Write all files with the same types."
    )


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.array([1]), pa.array([1.5]), pa.float64()),  # as pandas writes integers without and with nulls
        (pa.array([1.5], pa.float32()), pa.array([1]), pa.float64()),
        (pa.array([None], pa.null()), pa.array(["a"]), pa.string()),
        (pa.array(["a"]), pa.array([None], pa.null()), pa.string()),
    ],
)
def test_a_column_may_hold_whole_numbers_or_nothing_in_some_files(tmp_path: Path, one: pa.Array, other: pa.Array, common: pa.DataType):
    write(tmp_path / "a.parquet", events([1], x=one))
    write(tmp_path / "b.parquet", events([1], x=other))
    assert opened(tmp_path).columns["x"] == common


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["a"]), pa.array(["a"]).dictionary_encode()),
        (pa.array(["a"]), pa.array(["a"], pa.large_string())),
        (pa.array([1], pa.int32()), pa.array([1], pa.int64())),
        (pa.array([1.0], pa.float32()), pa.array([1.0], pa.float64())),
        (pa.array([NOON], pa.timestamp("us", tz="UTC")), pa.array([NOON], pa.timestamp("ms", tz="UTC"))),
    ],
)
def test_types_that_one_reader_casts_to_one_are_the_same(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    write(tmp_path / "a.parquet", events([1], x=one))
    write(tmp_path / "b.parquet", events([1], x=other))
    assert opened(tmp_path).rows == 2


def test_a_missing_column_is_refused_with_the_setting_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", events([1]))
    assert opened(path).require("user_id", setting="shop.columns.user_id") == pa.int64()
    with pytest.raises(DataError) as caught:
        opened(path).require("household", setting="shop.columns.user_id")
    assert str(caught.value) == f"{path}: column 'household' is missing; seen user_id, ts. Add it, or set shop.columns.user_id."


def test_an_unknown_scheme_or_storage_option_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^ftp://shop/events: cannot be opened: .* Check the URI\.$"):
        open_input("shop.events", "ftp://shop/events", {})
    with pytest.raises(ConfigError, match=r"^s3://shop/events: storage_options may be region and endpoint, got 'secret'\."):
        open_input("shop.events", "s3://shop/events", {"secret": "x", "region": "eu"})


# ---- identity


def identity(folder: Path) -> str:
    return opened(folder).identity()


def test_the_identity_stands_while_no_file_changes(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", events([1]))
    before = identity(tmp_path)
    (tmp_path / "_SUCCESS").write_text("")
    assert identity(tmp_path) == before


def test_the_identity_is_the_same_wherever_the_folder_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("date=2024-01-01/a.parquet", "date=2024-01-02/a.parquet"):
        (tmp_path / "one" / name).parent.mkdir(parents=True)
        write(tmp_path / "one" / name, events([1]))
    shutil.copytree(tmp_path / "one", tmp_path / "deep" / "two", copy_function=shutil.copy2)
    before = identity(tmp_path / "one")
    assert identity(tmp_path / "deep" / "two") == before
    monkeypatch.chdir(tmp_path / "deep")
    assert identity(Path("two")) == before
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert identity(tmp_path / "link") == before
    file = "date=2024-01-01/a.parquet"
    assert opened(tmp_path / "one" / file).identity() == opened(Path("two") / file).identity()
    (Path("two") / "date=2024-01-02").rename(Path("two") / "date=2024-01-03")
    assert identity(Path("two")) != before


def test_the_identity_changes_with_a_files_size_time_or_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", events([1]))
    stat = path.stat()
    identities = [identity(tmp_path)]
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    identities.append(identity(tmp_path))
    write(path, events([1, 2, 3]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    identities.append(identity(tmp_path))
    path.rename(tmp_path / "b.parquet")
    identities.append(identity(tmp_path))
    write(tmp_path / "c.parquet", events([9]))
    identities.append(identity(tmp_path))
    assert len(set(identities)) == 5


# ---- reading


def test_read_takes_the_named_columns_of_the_named_row_groups(tmp_path: Path) -> None:
    found = opened(write(tmp_path / "a.parquet", events([5, 3, 9, 1, 7]), row_group_size=2))
    assert read(found, found.files[0], [1, 2], ["user_id"]).to_pydict() == {"user_id": [9, 1, 7]}
    assert read(found, found.files[0], None, ["user_id"]).column("user_id").to_pylist() == [5, 3, 9, 1, 7]
    assert read(found, found.files[0], [0], ["ts", "user_id"]).num_columns == 2


# ---- bounds


def bounds(found: Input, column: str, below: Any = None) -> tuple[Any, Any]:
    """The bounds of what lies below a value and, of times, after the year 1; asked twice, so once of what was kept."""
    dtype = found.columns[column]
    width = pa.int32() if pa.types.is_date32(dtype) else pa.int64()
    limit = 2**62 if below is None else pa.scalar(below, dtype).cast(width).as_py()

    def usable(values: Any) -> Any:
        whole = values.cast(dtype, safe=False).cast(width).cast(pa.int64())
        good = pc.greater(whole, FIRST_US) if pa.types.is_timestamp(dtype) else pc.is_valid(whole)
        return pc.if_else(good, whole, pa.scalar(None, pa.int64()))

    work = Path(found.location).with_name("kept")

    def ask() -> tuple[Any, Any]:
        kept = Kept(str(work))
        ends = column_bounds.bounds(found, column, usable=usable, below=limit, what=column, kept=kept)
        kept.save()
        return ends

    ends = ask()
    assert ask() == ends
    shutil.rmtree(work, ignore_errors=True)
    low, high = (None if end is None else pa.scalar(end, width).cast(dtype).as_py() for end in ends)
    return low, high


def later(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


@pytest.mark.parametrize("statistics", [(True, True), (False, False), (True, False), (False, True)])
def test_bounds_are_the_same_with_and_without_statistics(tmp_path: Path, statistics: tuple[bool, bool]) -> None:
    write(tmp_path / "a.parquet", events([5, 3, 9]), row_group_size=2, write_statistics=statistics[0])
    write(tmp_path / "b.parquet", events([4, 11, 2, 6]), row_group_size=3, write_statistics=statistics[1])
    write(tmp_path / "c.parquet", events([]))
    found = opened(tmp_path)
    assert bounds(found, "ts") == (later(2), later(11))
    assert bounds(found, "user_id") == (2, 11)


@pytest.mark.parametrize("statistics", [True, False])
def test_values_that_are_not_usable_have_no_part_in_bounds(tmp_path: Path, statistics: bool) -> None:
    write(tmp_path / "a.parquet", events([5, 3, 9, 90, 80]), row_group_size=2, write_statistics=statistics)  # 5 3 | 9 90 | 80
    found = opened(tmp_path)
    assert bounds(found, "ts", below=later(80)) == (later(3), later(9))
    assert bounds(found, "ts", below=later(9)) == (later(3), later(5))
    assert bounds(found, "ts", below=later(3)) == (None, None)


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_bounds_of_times_are_the_same_instants_with_and_without_statistics(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = [NOON, later(7)] if zone else [NOON.replace(tzinfo=None), later(7).replace(tzinfo=None)]
    column = pa.array(times, pa.timestamp(unit, tz=zone))
    for name, statistics in (("a", True), ("b", False)):
        write(tmp_path / f"{name}.parquet", events([1, 2], when=column), write_statistics=statistics)
    assert bounds(opened(tmp_path), "when") == (times[0], times[1])


@pytest.mark.parametrize("statistics", [True, False])
def test_nested_columns_before_a_column_do_not_shift_its_bounds(tmp_path: Path, statistics: bool) -> None:
    nested = pa.array([{"a": 1, "b": {"c": 2, "d": 3}}, None])
    table = pa.table({"nested": nested, "words": pa.array([["x", "y"], []])})
    for name in ("user_id", "ts"):
        table = table.append_column(name, events([8, 6]).column(name))
    found = opened(write(tmp_path / "a.parquet", table, write_statistics=statistics))
    assert bounds(found, "ts") == (later(6), later(8))
    assert bounds(found, "user_id") == (6, 8)


@pytest.mark.parametrize("statistics", [True, False])
def test_nulls_have_no_part_in_bounds(tmp_path: Path, statistics: bool) -> None:
    column = pa.array([None, None, 4, None, 1], pa.int64())
    nothing = pa.array([None] * 5, pa.int64())
    found = opened(write(tmp_path / "a.parquet", events(range(5), x=column, y=nothing), row_group_size=2, write_statistics=statistics))
    assert bounds(found, "x") == (1, 4)
    assert bounds(found, "y") == (None, None)


def test_bounds_of_int96_times_reach_beyond_nanoseconds(tmp_path: Path) -> None:
    """Int96 has no statistics, and the year 9999 as nanoseconds of 64 bits turns over into 1816."""
    sentinel = datetime(9999, 12, 31, tzinfo=UTC)
    ts = pa.array([later(5), sentinel, later(2), None], pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us"))
    path = write(
        tmp_path / "a.parquet", pa.table({"user_id": range(4), "ts": ts}), use_deprecated_int96_timestamps=True, row_group_size=2
    )
    found = opened(path)
    assert found.columns["ts"] == pa.timestamp("us")
    naive = [time.replace(tzinfo=None) for time in (later(2), later(5), sentinel)]
    assert bounds(found, "ts") == (naive[0], naive[2])
    assert bounds(found, "ts", below=naive[2]) == (naive[0], naive[1])


def test_times_beyond_pythons_calendar_are_compared_as_numbers(tmp_path: Path) -> None:
    raw = [-(10**17), int(NOON.timestamp()) * 10**6, 2 * 10**18]  # of the years -1199, 2024 and 65347
    path = write(tmp_path / "a.parquet", events(range(3)).set_column(1, "ts", pa.array(raw, pa.timestamp("us", tz="UTC"))))
    assert bounds(opened(path), "ts", below=later(60)) == (NOON, NOON)


def test_bounds_of_a_column_in_the_path_are_its_values(tmp_path: Path) -> None:
    for day in (30, 4, 21):
        write(tmp_path / f"day=2024-01-{day:02d}" / "a.parquet", events([day]))
    found = opened(tmp_path)
    assert bounds(found, "day") == (date(2024, 1, 4), date(2024, 1, 30))
    assert bounds(found, "day", below=date(2024, 1, 30)) == (date(2024, 1, 4), date(2024, 1, 21))


def test_bounds_of_files_of_different_units_are_the_same_instants(tmp_path: Path) -> None:
    for name, unit, user in (("a", "s", 3), ("b", "ns", 9), ("c", "ms", 1)):
        table = events([user])
        write(tmp_path / f"{name}.parquet", table.set_column(1, "ts", table.column("ts").cast(pa.timestamp(unit, tz="UTC"))))
    assert bounds(opened(tmp_path), "ts") == (later(1), later(9))
