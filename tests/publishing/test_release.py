"""The end of a night: what is staged is audited, held against the gate beside it, and committed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys import config
from recsys.errors import PublishError
from recsys.publishing import staging
from recsys.publishing.release import RECORD, Release, publish_parts
from recsys.publishing.staging import Part
from recsys.publishing.table import published_nights
from tests.nights import NIGHT, RUN, SHARD_0, SHARD_1, STRING, stage


def night(table: Path) -> Release:
    limits = config.Gate.model_validate({})
    return Release(config.Table(path=str(table)), {}, NIGHT, RUN, "m1", 3, STRING, STRING, limits, {})


def end(folder: Path, parts: list[Part], **told: Any) -> Any:
    (folder / "work").mkdir(parents=True, exist_ok=True)
    return publish_parts(night(folder / "table"), folder / "work", parts, scored=8, seconds=1.0, **told)


def test_what_the_audit_and_the_gate_let_through_is_the_night(tmp_path: Path) -> None:
    published = end(tmp_path, stage(tmp_path / "table", SHARD_0, SHARD_1), available=pa.array(["milk", "eggs", "tea"]))
    assert (published.version, published.rows, published.users, published.short_users) == (1, 8, 3, 1)
    assert published.verdict is not None
    assert {check.name: check.value for check in published.verdict.checks if check.name in ("repeated_users", "unknown_items")} == {
        "repeated_users": 0,
        "unknown_items": 0,
    }
    assert list(tmp_path.glob(f"work/{RECORD}"))


def test_a_damaged_part_is_the_audit_s_to_name_whatever_the_gate_saw_of_it(tmp_path: Path) -> None:
    parts = stage(tmp_path / "table", SHARD_0, SHARD_1)
    file = tmp_path / "table" / parts[1]["path"]
    content = bytearray(file.read_bytes())
    content[20:60] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(PublishError, match=r"part-00001-aaaa-.*cannot be read.*Score shard 1 again\. It was removed: the same command"):
        end(tmp_path, parts)
    assert published_nights(str(tmp_path / "table")) == []
    assert not list(tmp_path.glob(f"work/{RECORD}"))
    assert staging.missing(str(tmp_path / "table"), parts) == [parts[1]]


def test_a_damaged_part_of_a_night_that_stands_stays_where_readers_may_be_on_it(tmp_path: Path) -> None:
    parts = stage(tmp_path / "table", SHARD_0, SHARD_1)
    assert end(tmp_path, parts).version is not None
    file = tmp_path / "table" / parts[1]["path"]
    content = bytearray(file.read_bytes())
    content[20:60] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(
        PublishError, match=r"Score shard 1 again\. The night is published with it: remove it, and run the command with"
    ):
        end(tmp_path, parts)
    assert file.read_bytes() == content


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    parts = stage(tmp_path / "table", SHARD_0, SHARD_1)
    (tmp_path / "table" / parts[0]["path"]).unlink()
    with pytest.raises(PublishError, match=r"part-00000-aaaa-.*Score again shard 0"):
        end(tmp_path, parts)
    assert staging.missing(str(tmp_path / "table"), parts) == [parts[0]]
