"""A machine without time zone data, as slim images are: the folder is hidden from a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ZONES = "/usr/share/zoneinfo"

SHOP = """
import sys
from datetime import UTC, date, datetime
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from recsys.config import Settings
from recsys.data.shop import open_shop
from recsys.data.types import utc
from recsys.errors import one_line_errors

folder, of_events, told = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3] or None
days = [datetime(2024, month, 1, 12) for month in range(1, 7)]
times = pa.array(days, pa.timestamp("us", of_events))
pq.write_table(pa.table({"user_id": [1] * 6, "item_id": [5] * 6, "ts": times}), folder / "events.parquet")
shop = {"events": str(folder / "events.parquet")} | ({"timezone": told} if told else {})
with one_line_errors():
    inputs = open_shop(Settings.model_validate({"shop": shop}), as_of=date(2024, 6, 2))
    print(inputs.first, inputs.last, utc(times, told)[0].as_py().isoformat())
"""


def without_zones(folder: Path, of_events: str, told: str) -> "subprocess.CompletedProcess[str]":
    hide = f'mount --bind "$1" {ZONES} && shift && exec "$@"' if Path(ZONES).is_dir() else 'shift && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", hide, "sh", str(folder / "nothing")]
    (folder / "nothing").mkdir()
    try:
        able = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("this process may not hide a folder from another (unshare --mount)")
    verb = [sys.executable, "-c", SHOP, str(folder), of_events, told]
    return subprocess.run([*command, *verb], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("of_events", "told"), [("UTC", ""), ("", "UTC"), ("", "Etc/UTC"), ("+00:00", ""), ("UTC", "UTC")])
def test_times_in_utc_need_no_time_zone_data(tmp_path: Path, of_events: str, told: str) -> None:
    ended = without_zones(tmp_path, of_events, told)
    assert (ended.stdout, ended.stderr) == ("2024-01-01 2024-06-01 2024-01-01T12:00:00+00:00\n", "")


def test_times_with_a_zone_of_their_own_need_none_of_the_system_s(tmp_path: Path) -> None:
    ended = without_zones(tmp_path, "Europe/Berlin", "")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_zone_that_needs_the_data_says_what_is_missing_and_a_wrong_one_is_wrong(tmp_path: Path) -> None:
    ended = without_zones(tmp_path, "", "Europe/Berlin")
    assert ended.returncode == 1
    assert ended.stderr.startswith("shop.timezone: 'Europe/Berlin' needs the system's time zone data, in /usr/share/zoneinfo, which is")
    (tmp_path / "nothing").rmdir()
    assert "'Mars/Base' is no IANA time zone" in without_zones(tmp_path, "", "Mars/Base").stderr
