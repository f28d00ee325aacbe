"""Damaged bytes of everything that is read: one sentence, or what is left of it, never a traceback."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from hypothesis import example, given
from hypothesis import strategies as st

from recsys import config
from recsys.data import synthetic
from recsys.data.cleaning import build_catalog, clean
from recsys.data.inputs import read
from recsys.data.shop import open_shop
from recsys.data.types import midnight
from recsys.errors import ConfigError, DataError, PublishError, RecsysError
from recsys.publishing.table import published_nights, read_night
from tests.nights import NIGHT, SHARD_0, SHARD_1, stage
from tests.publishing.test_table import commit

DAY = date(2024, 6, 6)
SETTINGS = Path(__file__).parents[1] / "jobs" / "demo_shop.toml"

DAMAGE = st.tuples(st.floats(0, 1), st.sampled_from(["replace", "insert", "cut", "end"]), st.binary(min_size=1, max_size=16))
Damage = tuple[float, str, bytes]


def damaged(content: bytes, damage: Damage) -> bytes:
    """The bytes with one place changed."""
    place, how, noise = damage
    at = int(place * len(content))
    rest = {"replace": at + len(noise), "insert": at, "cut": at + 4 * len(noise), "end": len(content)}[how]
    return content[:at] + (noise if how in ("replace", "insert") else b"") + content[rest:]


def try_with(path: Path, damage: Damage, look: Callable[[], object], kind: type[RecsysError]) -> None:
    """Look at what a damaged file leaves of a thing; a mistake of another kind than ours comes through."""
    before = path.read_bytes()
    path.write_bytes(damaged(before, damage))
    try:
        look()
    except kind as error:
        assert len(str(error)) < 2_000  # noqa: PT017 # or it can be read
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(SETTINGS, tmp_path_factory.mktemp("settings") / "shop.toml"))


@given(DAMAGE)
@example((0.0, "replace", b"\xff\xfe\x00"))
@example((0.5, "insert", b"\r"))
@example((0.5, "insert", b"9" * 16))
def test_settings(settings_file: Path, damage: Damage) -> None:
    try_with(settings_file, damage, lambda: config.load_either(settings_file), ConfigError)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    synthetic.shop(folder, users=30, items=60, days=60, seed=1, end=DAY, events_per_user=10)
    return folder


def read_events(folder: Path) -> None:
    """Read, clean and count the events and the catalog, as ingest does."""
    settings = config.Settings.model_validate({"shop": {"events": str(folder / "events"), "items": str(folder / "items")}})
    inputs = open_shop(settings, as_of=DAY)
    for file in inputs.events.files:
        raw = read(inputs.events, file, None, ["user_id", "item_id", "ts"])
        ids = {"user_id": inputs.user_id, "item_id": inputs.item_id}
        kept, rejected = clean(raw, settings=settings, **ids, end=midnight(DAY), where=file.path)
        assert kept.num_rows + rejected.total() == raw.num_rows
        build_catalog(inputs, pc.unique(kept.column("item_id")))


@given(DAMAGE)
@example((0.0, "end", b"\x00"))
@example((1.0, "insert", b"PAR1"))
def test_events(shop: Path, damage: Damage) -> None:
    file = sorted((shop / "events").rglob("*.parquet"))[0]
    try_with(file, damage, lambda: read_events(shop), DataError)


@pytest.fixture(scope="module")
def delta_shop(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("delta")
    shutil.copytree(shop / "items", folder / "items")
    rows = pq.read_table(shop / "events")
    write_deltalake(str(folder / "events"), rows.slice(0, 100))
    write_deltalake(str(folder / "events"), rows.slice(100), mode="append")
    return folder


@given(st.sampled_from([0, 1]), DAMAGE)
def test_the_log_of_a_delta_table_of_events(delta_shop: Path, version: int, damage: Damage) -> None:
    try_with(delta_shop / "events" / "_delta_log" / f"{version:020d}.json", damage, lambda: read_events(delta_shop), DataError)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "table"
    commit(path, stage(path, SHARD_0, SHARD_1))
    return path


@given(st.sampled_from([0, 1]), DAMAGE)
def test_the_log_of_the_published_table(table: Path, version: int, damage: Damage) -> None:
    def look() -> None:
        if any(night.as_of == NIGHT for night in published_nights(str(table))):
            read_night(str(table), as_of=NIGHT)

    try_with(table / "_delta_log" / f"{version:020d}.json", damage, look, PublishError)


@given(DAMAGE)
def test_items(shop: Path, damage: Damage) -> None:
    file = sorted((shop / "items").rglob("*.parquet"))[0]
    try_with(file, damage, lambda: read_events(shop), DataError)


@given(DAMAGE)
def test_a_part_of_the_published_table(table: Path, damage: Damage) -> None:
    part = sorted(table.glob("as_of=*/*.parquet"))[0]
    try_with(part, damage, lambda: read_night(str(table), as_of=NIGHT), PublishError)


def test_a_log_that_does_not_tell_the_rows_of_a_file_is_one_sentence(table: Path) -> None:
    log = table / "_delta_log" / f"{1:020d}.json"
    before = log.read_text()
    first, _, rest = before.partition('numRecords\\":')
    assert rest
    log.write_text(f'{first}numRxcords\\":{rest}')  # of the first of two files
    try:
        with pytest.raises(PublishError, match=r"its log must tell .* of every file, got no rows of as_of=2017-12-01/part-.*damaged"):
            published_nights(str(table))
    finally:
        log.write_text(before)
