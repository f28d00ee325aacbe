from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner, Result

from jobs import planted_shop
from recsys import config
from recsys.data.shop import open_shop

app = typer.Typer()
app.command()(planted_shop.planted_shop)


def planted(out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["--out", str(out), "--users", "60", "--items", "50", "--events-per-user", "8", *options])


@pytest.mark.parametrize(
    "options",
    [(), ("--without-items",), ("--without-users", "--kinds"), ("--without-items", "--without-users"), ("--kind", "views-and-carts")],
)
def test_a_shop_and_settings_that_open_it(tmp_path: Path, options: tuple[str, ...]):
    result = planted(tmp_path / "shop", *options)
    assert result.exit_code == 0, result.output
    settings = config.load(tmp_path / "shop" / "shop.toml")
    sources = open_shop(settings, as_of=date(2026, 1, 1))
    assert f"{sources.events.rows:,} events of 60 users and 50 items." in result.output
    assert (settings.shop.items is None) == ("--without-items" in options)
    assert (settings.shop.users is None) == ("--without-users" in options)
    kinds = pq.read_table(settings.shop.events).column_names.count("kind")
    assert (kinds == 1) == bool({"--kinds", "views-and-carts"} & set(options)) == (settings.shop.label_kinds == ("purchase",))
    for place in (settings.table.path, settings.run.work, settings.champion.path, settings.report.path):
        assert Path(place).parent == tmp_path / "shop"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--kind", "gift"),
            "--kind gift: must be one of groceries, media, fashion, gifts, sparse, views-and-carts. Choose among these.",
        ),
        (("--kind", "views-and-carts", "--kinds"), "--kinds: a shop of views-and-carts has views and carts of its own. Leave it out."),
    ],
)
def test_a_kind_that_is_none_is_one_sentence(tmp_path: Path, options: tuple[str, ...], said: str):
    result = planted(tmp_path / "shop", *options)
    assert result.exit_code == 1
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "shop").exists()


def test_a_folder_of_any_name(tmp_path: Path):
    assert planted(tmp_path / 'a "shop" \N{SHOPPING TROLLEY}').exit_code == 0
    settings = config.load(tmp_path / 'a "shop" \N{SHOPPING TROLLEY}' / "shop.toml")
    assert Path(settings.shop.events).is_dir()


def test_the_same_seed_makes_the_same_events_and_another_seed_others(tmp_path: Path):
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        assert planted(tmp_path / name, "--seed", seed).exit_code == 0
    one, again, other = (pq.read_table(tmp_path / name / "events") for name in ("one", "again", "other"))
    assert one.equals(again)
    assert not one.equals(other)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    result = planted(tmp_path)
    assert result.exit_code == 1
    assert f"--out {tmp_path}: must not exist yet" in result.output
    assert list(tmp_path.iterdir()) == []
