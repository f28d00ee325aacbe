"""What was found in row groups is kept with the file's identity: a file is read again when it changed, and only then."""

import os
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import Settings
from recsys.data.inputs import File, Input, open_input
from recsys.data.kept import Kept
from recsys.data.shop import ShopInputs, open_shop
from recsys.errors import ConfigError, DataError
from tests.data.bad_rows import damage, no_utf8

LATIN = no_utf8(b"a", b"Caf\xe9")
DAYS = pa.array([datetime(2024, 1, 1), datetime(2024, 2, 29)], pa.timestamp("us"))


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)  # which has no statistics
    return path


def history(folder: Path, name: str = "a", **columns: Any) -> Path:
    given = {"user_id": ["u", "v"], "item_id": ["a", "b"], "ts": DAYS, "kind": ["buy", "see"]} | columns
    return write(folder / "events" / f"{name}.parquet", **given)


def opened(folder: Path, **values: Any) -> ShopInputs:
    shop = {"events": str(folder / "events"), "timezone": "UTC", "label_kinds": ["buy"]} | values.pop("shop", {})
    given = {"shop": shop, "window": {"label_days": 7}, "run": {"work": str(folder / "work")}} | values
    return open_shop(Settings.model_validate(given), as_of=date(2024, 3, 1))


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Input, list[str]]:
    for name in "ab":
        history(tmp_path, name)
    return open_input("shop.events", str(tmp_path / "events"), {}), []


def ask(source: Input, calls: list[str], work: Path, what: str = "names") -> list[str]:
    def find(file: File, number: int) -> str:
        calls.append(f"{Path(file.path).stem}{number}")
        return calls[-1]

    kept = Kept(str(work))
    found = kept.of_row_groups(source, what, [(file, 0) for file in source.files], find)
    kept.save()
    return found


def test_what_was_found_is_not_looked_for_again(tmp_path: Path, asked: tuple[Input, list[str]]) -> None:
    source, calls = asked
    assert ask(source, calls, tmp_path / "work") == ask(source, calls, tmp_path / "work") == ["a0", "b0"]
    assert sorted(calls) == ["a0", "b0"]
    ask(source, calls, tmp_path / "work", what="sizes")
    assert len(calls) == 4  # another question


def test_a_file_that_changed_is_read_again_and_the_others_are_not(tmp_path: Path, asked: tuple[Input, list[str]]) -> None:
    source, calls = asked
    ask(source, calls, tmp_path / "work")
    os.utime(tmp_path / "events/b.parquet", ns=(0, 0))
    history(tmp_path, "c")
    again = open_input("shop.events", str(tmp_path / "events"), {})
    assert ask(again, calls, tmp_path / "work") == ["a0", "b0", "c0"]
    assert sorted(calls[2:]) == ["b0", "c0"]


@pytest.mark.parametrize("damaged", [b'{"a', b"", b"null", b"[1]", b"\xff\0"])
def test_what_is_kept_and_damaged_is_found_again(tmp_path: Path, asked: tuple[Input, list[str]], damaged: bytes) -> None:
    source, calls = asked
    ask(source, calls, tmp_path / "work")
    (kept,) = (tmp_path / "work/inputs").iterdir()
    kept.write_bytes(damaged)
    assert ask(source, calls, tmp_path / "work") == ["a0", "b0"]
    assert len(calls) == 4


def test_a_file_where_it_is_to_be_kept_is_one_sentence(tmp_path: Path, asked: tuple[Input, list[str]]) -> None:
    source, calls = asked
    (tmp_path / "work").mkdir()
    (tmp_path / "work/inputs").write_text("")
    with pytest.raises(
        ConfigError, match=r"run\.work = .*/inputs: must be a folder that can be made and written to, got: Not a directory"
    ):
        ask(source, calls, tmp_path / "work")


def test_a_second_command_reads_neither_times_nor_text_of_the_same_files(tmp_path: Path) -> None:
    path = history(tmp_path)
    first = opened(tmp_path)
    damage(path)
    second = opened(tmp_path)
    assert (second.first, second.last) == (first.first, first.last) == (date(2024, 1, 1), date(2024, 2, 29))
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        opened(tmp_path)


def test_a_far_time_is_left_out_of_what_is_kept_too(tmp_path: Path) -> None:
    far = pa.array([datetime(2024, 1, 1), datetime(9999, 12, 31)], pa.timestamp("us"))
    history(tmp_path)
    path = history(tmp_path, "b", ts=far)
    opened(tmp_path)
    damage(path)
    assert opened(tmp_path).last == date(2024, 2, 29)


@pytest.mark.parametrize("mistake", [{"user_id": LATIN}, {"ts": pa.nulls(2, pa.timestamp("us"))}, {}], ids=["text", "times", "date"])
def test_a_shop_that_is_refused_leaves_nothing_behind(tmp_path: Path, mistake: dict[str, Any]) -> None:
    history(tmp_path, **mistake)
    with pytest.raises(DataError):
        opened(tmp_path, window={"label_days": 300} if not mistake else {"label_days": 7})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("column", ["user_id", "item_id", "kind"])
def test_text_of_events_that_is_no_utf8_is_refused_before_work_starts(tmp_path: Path, column: str) -> None:
    history(tmp_path)
    history(tmp_path, "b", **{column: LATIN})
    with pytest.raises(DataError, match=rf"events/b\.parquet: column '{column}' cannot be read: Invalid UTF8 .* text as UTF-8\."):
        opened(tmp_path)


def test_text_that_nobody_asked_for_may_be_anything(tmp_path: Path) -> None:
    history(tmp_path, note=LATIN)
    path = write(tmp_path / "list.parquet", item_id=["a", "b"], user_id=LATIN)
    opened(tmp_path, rules=[{"name": "no", "kind": "items", "never": str(path)}])


@pytest.mark.parametrize(("table", "column"), [("users", "user_id"), ("users", "town"), ("items", "item_id"), ("items", "name")])
def test_text_of_users_and_items_that_is_no_utf8_is_refused_before_work_starts(tmp_path: Path, table: str, column: str) -> None:
    history(tmp_path)
    columns = {f"{table[:-1]}_id": ["u", "v"], "town": ["x", "y"], "name": ["x", "y"]}
    path = write(tmp_path / f"{table}.parquet", **columns)
    settings: dict[str, Any] = {"shop": {table: str(path)}, "features": {f"{table[:-1]}_categorical": ["town"]}}
    opened(tmp_path, **settings)
    write(path, **columns | {column: LATIN})
    with pytest.raises(DataError, match=rf"{table}\.parquet: column '{column}' cannot be read: Invalid UTF8"):
        opened(tmp_path, **settings)


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_of_lists_and_candidates_that_are_no_utf8_are_refused_before_work_starts(tmp_path: Path, column: str) -> None:
    history(tmp_path)
    path = write(tmp_path / "pairs.parquet", **{"user_id": ["u", "v"], "item_id": ["a", "b"]} | {column: LATIN})
    rule = {"name": "no", "kind": "pairs", "never": str(path)}
    for given in ({"rank": {"candidates": str(path)}}, {"rules": [rule]}):
        with pytest.raises(DataError, match=rf"pairs\.parquet: column '{column}' cannot be read: Invalid UTF8"):
            opened(tmp_path, **given)
