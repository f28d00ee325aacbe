"""Keyed ids through whole nights: no file of ours holds a raw id or the key, and who has the key finds a user by the id."""

import hashlib
import hmac
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomlkit

from recsys import Shop
from recsys.config import Settings
from recsys.config import load as config_of
from recsys.data import synthetic
from recsys.data.keyed import Key, key_of, user_ids
from recsys.data.shop import open_shop
from recsys.errors import ConfigError, DataError
from recsys.pipelines.browse import Browser
from tests.contents import content
from tests.small import small_file
from tests.verbs import Ended

Run = Callable[..., Ended]
DAY = date(2024, 6, 6)
KEY, OTHER = "a key of thirty-two characters 1", "a key of thirty-two characters 2"
LOOSE = {"min_overlap": 0.0, "max_drift": 100.0, "max_score_shift": 100.0, "max_source_change": 1.0, "min_source_kept": 0.0}


def settings_file(folder: Path) -> str:
    """With rules that name users by lists, and a gate that lets another population pass."""
    pairs = {"name": "hidden from her", "kind": "pairs", "never": str(folder / "shop" / "pairs.parquet")}
    audience = {"ids": str(folder / "shop" / "audience.parquet")}
    dear = {"name": "nothing dear", "kind": "range", "column": "price", "max": 0.0, "audience": audience}
    return small_file(
        folder,
        shop={"users": str(folder / "shop" / "users")},
        features={"user_categorical": ["age"]},
        gate=LOOSE | {"min_items": 0.0, "max_concentration_rise": 1.0},
        privacy={"key_env": "WHO"},
    ) + tomlkit.dumps({"rules": [pairs, dear]})


def person(number: int) -> str:
    return f"person-{number:05d}@example.org"


@pytest.fixture
def shop(tmp_path: Path) -> synthetic.Planted:
    """Text ids that are easily found again; one user may not see one item, and two are shown nothing that costs anything."""
    made = synthetic.shop(tmp_path / "shop", users=60, items=60, days=98, seed=3, end=DAY + timedelta(days=1), events_per_user=20)
    assert made.users is not None
    for place in (made.events, made.users):
        for file in place.glob("*.parquet"):
            table = pq.read_table(file)
            ids = pa.array([None if user is None else person(user) for user in table["user_id"].to_pylist()])
            pq.write_table(table.set_column(table.schema.get_field_index("user_id"), "user_id", ids), file)
    users = made.user_ids.to_pylist()
    pq.write_table(pa.table({"user_id": [person(users[5])], "item_id": pa.array([1], pa.int64())}), tmp_path / "shop" / "pairs.parquet")
    pq.write_table(pa.table({"user_id": [person(users[6]), person(users[7])]}), tmp_path / "shop" / "audience.parquet")
    (tmp_path / "shop.toml").write_text(settings_file(tmp_path))
    return made


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_no_file_of_a_night_holds_an_id_or_the_key(
    shop: synthetic.Planted, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", KEY)
    config = str(tmp_path / "shop.toml")
    night = run("nightly", "--config", config, "--as-of", str(DAY))
    assert night.status == 0, night.err
    files = [file for file in (tmp_path / "made").rglob("*") if file.is_file()]
    assert {".parquet", ".arrow", ".json", ".html", ".npz", ".npy"} <= {file.suffix for file in files}
    for file in files:
        assert "example.org" not in content(file), file
        assert KEY not in content(file), file
    assert "example.org" not in night.out + night.err
    assert KEY not in night.out + night.err

    users = shop.user_ids.to_pylist()
    table = polars.scan_delta(str(tmp_path / "made" / "table")).collect()
    digests = {hmac.new(KEY.encode(), person(user).encode(), hashlib.sha256).hexdigest()[:32]: user for user in users}
    assert set(table["user_id"]) <= digests.keys()
    assert table["user_id"].n_unique() >= 58
    of = {user: digest for digest, user in digests.items()}
    assert 1 not in table.filter(polars.col("user_id") == of[users[5]])["item_id"].to_list()  # the lists of rules are of digests too
    assert set(table["user_id"]).isdisjoint({of[users[6]], of[users[7]]})

    shown = run("show", "--config", config, "--user", person(users[9]))
    assert f"Recommendations of user {of[users[9]]}" in shown.out
    mine = table.filter(polars.col("user_id") == of[users[9]]).sort("rank")["item_id"].to_list()
    assert Shop(config).recommend(person(users[9])).column("item_id").to_pylist() == mine
    explained = run("explain", "--config", config, "--user", person(users[9]), "--item", str(mine[0]))
    assert (explained.status, f"for user {of[users[9]]} as of {DAY}: rank 1." in " ".join(explained.out.split())) == (0, True)

    browser = Browser(config_of(config))
    pages = [browser.user(name, None) for name in (person(users[9]), of[users[9]])]  # by the id, and by a link from an item's page
    assert [page.title for page in pages] == [f"User {of[users[9]]} as of {DAY}"] * 2
    with pytest.raises(ConfigError, match="no such user"):
        browser.user("nobody", None)

    monkeypatch.setenv("WHO", OTHER)  # a rotated key is a new population, and that is said
    refused = run("show", "--config", config, "--user", person(users[9]))
    assert (refused.status, f"has no row in the night of {DAY}" in refused.err) == (1, True)
    rotated = run("nightly", "--config", config, "--as-of", str(DAY + timedelta(days=1)))
    assert rotated.status == 0, rotated.err
    keys = Key(KEY.encode()).fingerprint, Key(OTHER.encode()).fingerprint
    said = f"users were digests by key {keys[0]} on {DAY} and are digests by key {keys[1]} now: a new population"
    assert said in rotated.err
    later = polars.scan_delta(str(tmp_path / "made" / "table")).filter(polars.col("as_of") == DAY + timedelta(days=1)).collect()
    assert set(later["user_id"]).isdisjoint(table["user_id"])
    assert "example.org" not in "".join(content(file) for file in (tmp_path / "made").rglob("*") if file.is_file())


def test_digests_are_those_of_the_rfc_and_of_the_text_of_a_number() -> None:
    key = Key(KEY.encode())
    expected = hmac.new(KEY.encode(), b"7", hashlib.sha256).hexdigest()[:32]
    columns: list[Any] = [pa.array([7, None, 7]), pa.chunked_array([["7"], [None, "7"]]), pa.array(["7", " ", "7"]).dictionary_encode()]
    for column in columns:
        assert user_ids(column, pa.string(), key).to_pylist() == [expected, None, expected]
    assert user_ids(pa.array([7]), pa.int64(), None).to_pylist() == [7]
    assert key.of(7) == key.of("7") == expected
    assert KEY not in repr(key)


def settings(folder: Path, **privacy: str) -> Settings:
    return Settings.model_validate(
        {"shop": {"events": str(folder / "nowhere")}, "privacy": privacy, "run": {"work": str(folder / "work")}}
    )


def test_a_key_that_is_not_there_or_too_short_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of(settings(tmp_path)) is None
    monkeypatch.delenv("WHO", raising=False)
    with pytest.raises(ConfigError, match=r'^privacy.key_env = "WHO": the environment variable must hold a value, got none'):
        key_of(settings(tmp_path, key_env="WHO"))
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ConfigError, match=r"^privacy.key: must have at least 16 characters, as ids are easily guessed, got 5\."):
        key_of(settings(tmp_path, key_file=str(tmp_path / "key")))
    with pytest.raises(ConfigError) as caught:  # beside what else is wrong
        open_shop(settings(tmp_path, key_file=str(tmp_path / "key")), as_of=DAY)
    assert [sentence.split(":")[0] for sentence in caught.value.sentences] == ["privacy.key", str(tmp_path / "nowhere")]
    with pytest.raises(ValueError, match="the key must be named once, got key_env and key_file"):
        settings(tmp_path, key_env="WHO", key_file="key")


def test_a_type_that_is_no_id_stays_refused() -> None:
    with pytest.raises(DataError, match="must be an integer"):
        user_ids(pa.array([0.5]), pa.string(), Key(KEY.encode()))
