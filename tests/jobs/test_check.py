"""`jobs.check`: what it prints of a shop that is well, and all mistakes at once of one that is not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.verbs import Ended

Run = Callable[..., Ended]


@pytest.fixture
def shop(run: Run, tmp_path: Path) -> Path:
    """A planted shop's settings."""
    made = run("planted_shop", "--out", str(tmp_path / "shop"), "--users", "80", "--items", "60", "--days", "150", "--kinds")
    assert made.status == 0, made.err
    return tmp_path / "shop" / "shop.toml"


def test_a_shop_that_is_well_is_told_of_and_nothing_is_published(run: Run, shop: Path) -> None:
    ended = run("check", "--config", str(shop), "--as-of", "2026-01-01", "--cpus", "8")
    assert (ended.status, ended.err) == (0, "")
    assert "Nothing stands in the way of the night of 2026-01-01." in ended.out
    assert "No row that was looked at would be rejected." in ended.out
    assert "80 users, 80 of them with something wanted" in ended.out
    assert "Estimated for 8 CPUs: " in ended.out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if line.startswith("│ 2025-")]
    assert [row[0] for row in rows] == ["2025-09-25", "2025-10-23", "2025-11-20"]
    assert [row[-2:] for row in rows] == [["fitting", "fitting"], ["stopping", "fitting"], ["", "stopping"]]
    assert not (shop.parent / "table").exists()


def test_all_mistakes_of_the_settings_are_said_at_once(run: Run, shop: Path) -> None:
    text = shop.read_text().replace("label_kinds", "label_kind") + "[rank]\nk = 0\n"
    shop.write_text(text)
    ended = run("check", "--config", str(shop), "--as-of", "2026-01-01")
    assert ended.status == 1
    lines = ended.err.splitlines()
    assert len(lines) == 2
    assert "unknown key 'shop.label_kind'." in lines[0]
    assert "key 'rank.k': " in lines[1]


def test_all_mistakes_of_the_files_are_said_at_once(run: Run, shop: Path) -> None:
    folder = shop.parent
    users = pq.read_table(folder / "users")
    shutil.rmtree(folder / "users")
    pq.write_table(users.set_column(0, "user_id", users["user_id"].cast(pa.string())), folder / "users.parquet")
    text = shop.read_text().replace(f'{folder}/users"', f'{folder}/users.parquet"').replace('"brand"', '"maker"')
    text = text.replace(f'"{folder}/table"', f'"{shop}/table"') + '[[rules]]\nname = "sold out"\nkind = "items"\nnever = "/nowhere"\n'
    shop.write_text(text)
    ended = run("check", "--config", str(shop), "--as-of", "2024-01-01")
    assert ended.status == 1
    lines = ended.err.splitlines()
    begin = [
        f"table.path = {shop}/table: must be a folder that can be made and written to",
        "/nowhere: no such file or folder.",
        f"{folder}/users.parquet: column 'user_id' must be int64 as in {folder}/events, got string.",
        f"{folder}/items: column 'maker' is missing",
    ]
    assert [line[: len(start)] for line, start in zip(lines, begin, strict=True)] == begin


def test_mistakes_that_only_rows_show_come_after_what_was_seen(run: Run, shop: Path) -> None:
    shop.write_text(shop.read_text().replace('"purchase"', '"sale"'))
    ended = run("check", "--config", str(shop), "--as-of", "2026-01-01")
    assert ended.status == 1
    assert "Kinds of events: view " in ended.out
    assert "Nothing stands in the way" not in ended.out
    assert "got 'sale', which no row that was looked at is of" in ended.err
    assert ended.err.count("\n") == 1
