import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest

from cluster import working_dir
from recsys import config
from recsys.errors import ConfigError


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "shop.toml"
    path.write_text('[shop]\nevents = "shop/events"\nitems = "s3://bucket/items"\n[rank]\nk = 7\n')
    return path


def test_relative_paths_become_absolute_where_the_nodes_are_this_machine(
    settings: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tomllib.loads(working_dir.settings_text(settings, remote=False)) == {
        "shop": {"events": f"{tmp_path}/shop/events", "items": "s3://bucket/items"},
        "rank": {"k": 7},
        "table": {"path": f"{tmp_path}/var/recommendations"},  # defaults are relative too
        "run": {"work": f"{tmp_path}/var/work"},
        "champion": {"path": f"{tmp_path}/var/bundles"},
        "report": {"path": f"{tmp_path}/var/reports"},
    }


def test_relative_paths_are_refused_where_the_nodes_are_other_machines(settings: Path) -> None:
    with pytest.raises(ConfigError, match=r"shop\.events: 'shop/events' is relative"):
        working_dir.settings_text(settings, remote=True)
    settings.write_text('[shop]\nevents = "s3://bucket/events"\n[table]\npath = "/shared/table"\n')
    with pytest.raises(ConfigError, match=r"run\.work: 'var/work' is relative"):
        working_dir.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[run]\nwork = "/shared/work"\n')
    with pytest.raises(ConfigError, match=r"champion\.path: 'var/bundles' is relative"):
        working_dir.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[champion]\npath = "/shared/bundles"\n')
    with pytest.raises(ConfigError, match=r"report\.path: 'var/reports' is relative"):
        working_dir.settings_text(settings, remote=True)
    settings.write_text(settings.read_text() + '[report]\npath = "/shared/reports"\n')
    assert tomllib.loads(working_dir.settings_text(settings, remote=True)) == tomllib.loads(settings.read_text())


def test_the_settings_of_the_pairs_door_travel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "pairs.toml"
    settings.write_text('[pairs]\npath = "rows"\nusers = "s3://bucket/users"\nnumeric = ["a b"]\n[pairs.columns."a b"]\nlog1p = true\n')
    sent = tomllib.loads(working_dir.settings_text(settings, remote=False))
    assert sent["pairs"] == {
        "path": f"{tmp_path}/rows",
        "users": "s3://bucket/users",
        "numeric": ["a b"],
        "columns": {"a b": {"log1p": True}},
    }
    assert sent["table"] == {"path": f"{tmp_path}/var/pairs_recommendations"}
    assert working_dir.shared_arguments(["--all-scores", "all"], remote=False) == ("--all-scores", f"{tmp_path}/all")


def leaves(annotation: Any) -> list[Any]:
    """Every type within an annotation but what stands in tables and arrays."""
    if get_origin(annotation) is Annotated:
        return leaves(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [leaf for one in get_args(annotation) for leaf in leaves(one)]
    return [annotation]


def test_every_text_among_the_settings_is_known_to_be_a_path_or_not() -> None:
    texts = {
        f"{section}.{name}"
        for door in (config.Settings, config.PairsSettings)
        for section, model in door.model_fields.items()
        if isinstance(model.annotation, type) and issubclass(model.annotation, config.Section)
        for name, field in model.annotation.model_fields.items()
        if str in leaves(field.annotation)
    }
    columns = {f"pairs.{name}" for name in ("user_id", "item_id", "label", "weight")}
    others = {"shop.timezone", "shop.ts_format", "notify.url", "notify.url_env", "privacy.key_env", "train.even_groups", *columns}
    assert texts - set(working_dir.PATHS) == others, "a new text: if it is a path, put it into working_dir.PATHS"
    assert set(working_dir.PATHS) <= texts


def test_paths_among_the_arguments_of_a_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--out", "metrics.json", "--bundle=~/models/7", "--all-scores", "s3://shop/scores", "--horizon-days", "91"]
    expected = ("--out", f"{tmp_path}/metrics.json", "--bundle=/home/me/models/7", *given[3:])
    assert working_dir.shared_arguments(given, remote=False) == expected
    with pytest.raises(ConfigError, match=r"--out: 'metrics\.json' is relative"):
        working_dir.shared_arguments(given, remote=True)
    with pytest.raises(ConfigError, match="must be a path on a disk"):
        working_dir.shared_arguments(["--bundle=s3://models/7"], remote=False)
    with pytest.raises(ConfigError, match="before the `--`"):
        working_dir.shared_arguments(["--config=other.toml"], remote=False)


def test_places_of_exports_travel_as_paths_that_every_node_understands(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = settings.read_text()
    places = {
        "parquet:lists": f"parquet:{tmp_path}/lists",
        "parquet:s3://shop/lists": "parquet:s3://shop/lists",
        "lists.jsonl": f"{tmp_path}/lists.jsonl",
        "redis://h/0": "redis://h/0",
        "iceberg://house/shop.lists": "iceberg://house/shop.lists",
    }
    settings.write_text(told + "".join(f'[[exports]]\nto = "{place}"\n' for place in places) + 'password_file = "secret"\n')
    sent = tomllib.loads(working_dir.settings_text(settings, remote=False))["exports"]
    assert [one["to"] for one in sent] == list(places.values())
    assert sent[-1]["password_file"] == f"{tmp_path}/secret"
    settings.write_text(told.replace("shop/events", "/shop/events") + '[[exports]]\nto = "parquet:lists"\n')
    with pytest.raises(ConfigError, match=r"is relative"):
        working_dir.settings_text(settings, remote=True)


def test_lists_of_rules_travel_as_paths_that_every_node_understands(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = settings.read_text()
    settings.write_text(
        told + '[[rules]]\nname = "a"\nkind = "items"\nonly = "these"\naudience = { ids = "s3://bucket/users" }\n'
        '[[rules]]\nname = "b"\nkind = "pairs"\nnever = "returned"\n'
        '[[rules]]\nname = "c"\nkind = "column"\ncolumn = "seller"\nonly = ["we"]\naudience = { ids = "testers" }\n'
    )
    first, second, third = tomllib.loads(working_dir.settings_text(settings, remote=False))["rules"]
    assert first == {"name": "a", "kind": "items", "only": f"{tmp_path}/these", "audience": {"ids": "s3://bucket/users"}}
    assert second == {"name": "b", "kind": "pairs", "never": f"{tmp_path}/returned"}
    assert (third["only"], third["audience"]) == (["we"], {"ids": f"{tmp_path}/testers"})
    settings.write_text(
        told.replace("shop/events", "/shop/events")
        + '[table]\npath = "/t"\n[run]\nwork = "/w"\n[champion]\npath = "/b"\n[report]\npath = "/r"\n'
        + '[[rules]]\nname = "b"\nkind = "pairs"\nnever = "r"'
    )
    with pytest.raises(ConfigError, match="the rule 'b': 'r' is relative"):
        working_dir.settings_text(settings, remote=True)


def test_the_settings_survive_being_written_again(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(
        '[shop]\nevents = "/e"\nlabel_kinds = ["purchase"]\n[shop.columns]\nuser_id = "Käufer \\"Nr\\" \\u007f \\\\"\n'
        '[shop.storage_options]\n"region" = "eu"\n[model]\nhidden = [512, 16]\ndropout = 0.25\n[rank]\nallow_repeats = false\n'
        '[[rules]]\nname = "a"\nkind = "column"\ncolumn = "b"\nnever = [1, true, "\\u007f"]\n'
        '[rules.audience]\ncolumn = "c"\nvalues = ["d"]\n'
        '[[rules]]\nname = "e"\nkind = "range"\ncolumn = "f"\nmin = 1.5\n'
    )
    path.write_text(path.read_text().replace('events = "/e"', 'events = "/e"\nitems = "/i"\nusers = "/u"'))
    written = tmp_path / "again.toml"
    written.write_text(working_dir.settings_text(path, remote=False), encoding="utf-8")
    before, after = config.load(path).model_dump(), config.load(written).model_dump()
    for section in ("table", "run", "champion", "report"):  # their defaults are paths, absolute now
        before.pop(section)
        after.pop(section)
    assert before == after
