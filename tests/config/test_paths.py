import json
from pathlib import Path

import pytest

from recsys import config
from recsys.config.paths import local_path, location
from recsys.errors import ConfigError
from recsys.storage import digest

SHOP = '[shop]\nevents = "events"\n'
FOLDERS = ("run.work", "champion.path", "report.path")
READ = ("shop.events", "shop.items", "shop.users", "rank.candidates")
RULE = '[[rules]]\nname = "recalled"\nkind = "items"\nnever = "{place}"\naudience = {{ ids = "{place}" }}\n'


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")


def settings_with(folder: Path, key: str, value: str) -> config.Settings:
    section, name = key.split(".")
    lines = {"shop": {"events": "events"}}
    lines.setdefault(section, {})[name] = value
    text = "".join(f"[{one}]\n" + "".join(f'{k} = "{v}"\n' for k, v in keys.items()) for one, keys in lines.items())
    (folder / "shop.toml").write_text(text, encoding="utf-8")
    return config.load(folder / "shop.toml")


def read(settings: config.Settings, key: str) -> str:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def test_a_secret_in_a_place_is_refused_and_not_shown(tmp_path: Path) -> None:
    for key, written in (("shop.events", "s3://KEY:SECRET@bucket/events"), ("table.path", "s3://KEY:SECRET@bucket/table")):
        with pytest.raises(ConfigError, match=r"must name no user and no password, which come from the environment\.$") as error:
            read(settings_with(tmp_path, key, written), key)
        assert "SECRET" not in str(error.value)
    azure = "abfss://container@account.dfs.core.windows.net/table"
    assert read(settings_with(tmp_path, "table.path", azure), "table.path") == azure


@pytest.mark.parametrize("key", [*FOLDERS, *READ, "table.path"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~/recs", "/home/me/recs"),
        ("~", "/home/me"),
        ("var/~/recs", "var/~/recs"),
        ("./~", "./~"),
        ("/data/a b", "/data/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("file:///data/a b", "/data/a b"),
        ("file://localhost/data", "/data"),
        ("file:/data", "/data"),
    ],
)
def test_every_path_setting_takes_the_home_and_file_uris(tmp_path: Path, key: str, written: str, meant: str) -> None:
    assert read(settings_with(tmp_path, key, written), key) == meant


@pytest.mark.parametrize("key", FOLDERS)
@pytest.mark.parametrize("written", ["s3://bucket/work", "s3:/bucket", "gs://bucket/work", "http://host/work"])
def test_what_must_be_on_a_disk_says_so(tmp_path: Path, key: str, written: str) -> None:
    with pytest.raises(ConfigError, match=rf"key '{key}': must be a path on a disk, .* got '{written}'"):
        settings_with(tmp_path, key, written)
    assert [path.name for path in tmp_path.iterdir()] == ["shop.toml"]


@pytest.mark.parametrize("key", [*READ, "table.path"])
def test_a_scheme_that_cannot_be_taken_is_refused_and_those_that_can_are_named(tmp_path: Path, key: str) -> None:
    assert read(settings_with(tmp_path, key, "s3://bucket/place"), key) == "s3://bucket/place"
    for written in ("http://host/place", "S3://bucket", "s3:/bucket", "s3:///place", "file://host/place"):
        with pytest.raises(ConfigError, match=rf"key '{key}': must be a path.* got '{written}'"):
            settings_with(tmp_path, key, written)


@pytest.mark.parametrize("key", [*FOLDERS, *READ, "table.path"])
@pytest.mark.parametrize("written", ["", "  ", "~nobody-by-this-name/recs"])
def test_no_path_and_nobodys_home_are_refused(tmp_path: Path, key: str, written: str) -> None:
    with pytest.raises(ConfigError, match=f"key '{key}': must be"):
        settings_with(tmp_path, key, written)


def test_the_lists_of_rules_and_the_rows_of_the_pairs_door_are_paths_too(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(SHOP + RULE.format(place="~/list"))
    (rule,) = config.load(tmp_path / "shop.toml").rules
    assert rule.lists() == {"items": "/home/me/list", "users": "/home/me/list"}
    (tmp_path / "shop.toml").write_text(SHOP + RULE.format(place="ftp://host/list"))
    with pytest.raises(ConfigError, match=r"key 'rules\.0\.(never|audience\.ids)': must be a path, or a URI of s3://"):
        config.load(tmp_path / "shop.toml")
    names = ("path", "test", "score", "users", "items")
    (tmp_path / "pairs.toml").write_text("[pairs]\n" + "".join(f'{name} = "~/{name}"\n' for name in names))
    pairs = config.load_pairs(tmp_path / "pairs.toml").pairs
    assert [getattr(pairs, name) for name in names] == [f"/home/me/{name}" for name in names]


def test_options_are_read_as_settings_are() -> None:
    assert local_path("~/out.json") == Path("/home/me/out.json")
    assert local_path(Path("var/shop")) == Path("var/shop")
    assert location("s3://bucket/scores") == "s3://bucket/scores"
    assert location("~/scores") == "/home/me/scores"
    with pytest.raises(ConfigError, match=r"must be a path, or a URI of s3://.* got 'http://host/scores'"):
        location("http://host/scores")
    with pytest.raises(ConfigError, match=r"must be a path on a disk, .* got 's3://bucket/out'"):
        local_path("s3://bucket/out")


def test_where_things_lie_is_no_part_of_what_settings_are(tmp_path: Path) -> None:
    def shop(place: str, more: str = "") -> config.Settings:
        (tmp_path / "shop.toml").write_text(f'''
[shop]
events = "{place}/events"
items = "{place}/items"
{more}
storage_options = {{region = "{place}"}}
[table]
path = "{place}/table"
[run]
work = "{place}/work"
[[rules]]
name = "recalled"
kind = "items"
never = "{place}/list"
''')
        return config.load(tmp_path / "shop.toml")

    one, other = shop("here"), shop("there")
    assert one != other
    assert one.identity() == other.identity()
    assert digest({"rules": one.rules, "shop": one.shop}) == digest({"rules": other.rules, "shop": other.shop})
    assert shop("here", 'users = "x"').identity() != one.identity()
    assert shop("here", 'timezone = "UTC"').identity() != one.identity()
    only = one.rules[0].model_copy(update={"only": "here/list", "never": None})
    assert digest(only) != digest(one.rules[0])
    assert "here/events" in json.dumps(one.model_dump(mode="json"))  # a bundle keeps them
