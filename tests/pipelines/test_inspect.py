import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import requests
from deltalake import write_deltalake

from recsys import Shop, config, load_night
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.errors import BundleError, ConfigError, DataError, PublishError
from recsys.pipelines import inspect
from recsys.pipelines.inspect import Shown
from recsys.pipelines.signals import ShopState, shop_state
from recsys.publishing.table import read_night
from recsys.ranking.attribution import TOLERANCE
from recsys.ranking.scorer import chances
from recsys.schema import ITEM_ID, RANK, REASON, SCORE, USER_ID
from tests.pages import cells
from tests.verbs import ROOT, Ended

pytestmark = pytest.mark.timeout(600)

BEFORE, DAY = date(2024, 6, 5), date(2024, 6, 7)  # the nights that are published; none of the day between
NEWCOMER = 5  # a user without an event; no planted id
SETTINGS = """
[shop]
events = "{folder}/events"
items = "{folder}/items"
users = "{folder}/users"
[features]
item_categorical = ["category", "brand"]
user_categorical = ["age"]
[window]
label_days = 14
history_days = 60
cutoffs = 2
[signals]
factors = 8
als_iterations = 4
als_l2 = 10
als_alpha = 2
ease_l2 = 20.0
[candidates]
per_user = 50
[model]
hidden = [16]
[train]
epochs = 1
batch_size = 128
workers = 1
[rank]
k = 6
[gate]
min_overlap = 0
max_drift = 100
max_score_shift = 100
max_source_change = 1
min_source_kept = 0
[run]
work = "{folder}/work"
shards = 3
actors = 2
[table]
path = "{folder}/table"
[champion]
path = "{folder}/bundles"
[report]
path = "{folder}/reports"
"""


class Nights(NamedTuple):
    """A planted shop with two published nights."""

    planted: synthetic.Planted
    folder: Path
    state: ShopState
    """As of DAY."""
    table: dict[date, pa.Table]

    def shown(self, user: int) -> Shown:
        night, before = inspect.find_night(self.state.settings, as_of=None)
        return inspect.show(self.state, user, night=night, before=before)

    def items(self, day: date, user: int) -> list[int]:
        rows = self.table[day].to_pylist()
        return [row[ITEM_ID] for row in sorted(rows, key=lambda row: row[RANK]) if row[USER_ID] == user]


def verb(name: str, *arguments: str) -> int:
    """The exit status of a verb that runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"jobs.{name}", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert isinstance(ended.value.code, int | None)
    return ended.value.code or 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """A verb's end, with what it printed."""

    def ended(name: str, *arguments: str) -> Ended:
        status = verb(name, *arguments)
        return Ended(status, *capsys.readouterr())

    return ended


@pytest.fixture(scope="module")
def nights(all_in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    folder = tmp_path_factory.mktemp("shown")
    planted = synthetic.shop(folder, users=60, items=60, days=84, seed=6, end=DAY, events_per_user=25)
    assert planted.users is not None
    pq.write_table(pa.table({USER_ID: [NEWCOMER], "age": ["65+"], "region": ["north"]}), planted.users / "newcomer.parquet")
    (folder / "shop.toml").write_text(SETTINGS.format(folder=folder))
    for day in (BEFORE, DAY):
        assert verb("score", "--config", str(folder / "shop.toml"), "--as-of", day.isoformat()) == 0
    settings = config.load(folder / "shop.toml")
    state = shop_state(open_shop(settings, as_of=DAY), end=DAY)
    return Nights(planted, folder, state, {day: read_night(settings.table.path, as_of=day) for day in (BEFORE, DAY)})


def one_who(nights: Nights, holds: Callable[[Shown], bool]) -> Shown:
    """The first user's list of which it holds."""
    return next(shown for user in nights.planted.user_ids.to_pylist() if holds(shown := nights.shown(user)))


# ---- the list


@pytest.mark.ray
def test_the_list_is_the_table_s_with_what_changed_since_the_night_before(nights: Nights) -> None:
    catalog = nights.state.dataset.catalog()
    changes = set()
    for user in nights.planted.user_ids.to_pylist()[:30]:
        shown, now, then = nights.shown(user), nights.items(DAY, user), nights.items(BEFORE, user)
        assert (shown.night.as_of, shown.before) == (DAY, BEFORE)
        assert shown.rows.column(ITEM_ID).to_pylist() == now
        assert shown.names == catalog.names(catalog.codes_of(pa.array(now)))
        assert shown.moved == [then.index(item) - place if item in then else None for place, item in enumerate(now)]
        gone = [item for item in then if item not in now]
        assert shown.gone == [(then.index(item) + 1, catalog.names(catalog.codes_of(pa.array([item])))[0]) for item in gone]
        changes |= {None if move is None else np.sign(move) for move in shown.moved} | ({"gone"} if gone else set())
    assert changes == {None, -1, 0, 1, "gone"}  # the nights differ in every way


@pytest.mark.ray
def test_the_history_beside_the_list_is_that_of_the_events(nights: Nights) -> None:
    catalog = nights.state.dataset.catalog()
    names = dict(zip(catalog.item_id.to_pylist(), catalog.names(np.arange(len(catalog))), strict=True))
    events = pq.read_table(nights.planted.events).to_pylist()
    long = 0
    for user in nights.planted.user_ids.to_pylist()[:20]:
        days: dict[int, set[date]] = defaultdict(set)
        for event in events:
            when = event["ts"].astimezone(UTC)
            if event[USER_ID] == user and datetime(2024, 4, 8, tzinfo=UTC) <= when < datetime(2024, 6, 7, tzinfo=UTC):
                days[event[ITEM_ID]].add(when.date())  # 60 days
        shown = nights.shown(user)
        latest = sorted(days, key=lambda item: (-max(days[item]).toordinal(), -len(days[item]), item))[:10]
        frequent = sorted(days, key=lambda item: (-len(days[item]), -max(days[item]).toordinal(), item))[:10]
        for listed, expected in ((shown.latest, latest), (shown.frequent, frequent)):
            assert [tuple(vars(bought).values()) for bought in listed] == [
                (names[item], len(days[item]), max(days[item])) for item in expected
            ]
        long += len(days) > 10
    assert long  # more than are shown


@pytest.mark.ray
def test_a_user_without_history_has_a_list_and_no_purchases(nights: Nights, run: Callable[..., Ended]) -> None:
    arguments = ["--config", str(nights.folder / "shop.toml"), "--user", str(NEWCOMER), "--contributions", "2"]
    ended = run("show", *arguments)
    assert ended.status == 0
    assert "Bought last: nothing." in ended.out
    assert "No model stands behind this list, so no input contributes to it." in ended.out
    assert "Popular in the last 28 days." in ended.out


@pytest.mark.ray
def test_the_verb_prints_list_changes_history_and_contributions(nights: Nights, run: Callable[..., Ended]) -> None:
    shown = one_who(nights, lambda one: bool(one.gone) and len([move for move in one.moved if move]) > 0)
    arguments = ["--config", str(nights.folder / "shop.toml"), "--user", str(shown.user_id)]
    ended = run("show", *arguments, "--contributions", "3")
    assert ended.status == 0, ended.err
    assert f"Recommendations of user {shown.user_id} as of {DAY}, run {shown.night.run_id}" in ended.out
    for what in (*shown.names, *(bought.name for bought in [*shown.latest, *shown.frequent])):
        assert what in ended.out
    words = " ".join(ended.out.split())
    assert f"Gone since the night of {BEFORE}: " + "; ".join(f"{name} (was {rank})" for rank, name in shown.gone) in words
    assert "Bought on most days" in ended.out
    assert "Contributions to the raw output; of a row of which nothing is known it is" in ended.out
    assert ended.out.count("own_") > 0
    first = run("show", *arguments, "--as-of", BEFORE.isoformat())
    assert first.status == 0
    assert "No earlier night is published to compare it with." in first.out
    assert "Contributions" not in first.out
    assert str(shown.rows.column(REASON)[0].as_py())[:12] in ended.out


@pytest.mark.ray
def test_contributions_are_of_the_list_s_rows_and_add_up_to_their_scores(nights: Nights) -> None:
    shown = nights.shown(nights.planted.user_ids[7].as_py())
    made = inspect.find_bundle(nights.state.settings, shown.night)
    assert made is not None
    assert made.model_version == shown.night.model_version
    rows, baseline = inspect.attributed(nights.state, made, shown, largest=10_000)
    assert [row.rank for row in rows] == shown.rows.column(RANK).to_pylist()
    assert [row.name for row in rows] == shown.names
    raw = np.array([row.raw for row in rows], np.float32)
    events = pq.read_table(nights.planted.events, filters=[("user_id", "==", shown.user_id)]).to_pandas()
    end = pd.Timestamp(shown.night.as_of, tz="UTC")
    start = end - pd.Timedelta(days=nights.state.settings.window.history_days)
    days = events[(events["ts"] >= start) & (events["ts"] < end)]
    distinct = set(zip(days["item_id"], days["ts"].dt.date, strict=True))
    purchases = np.full(len(raw), len(distinct))
    np.testing.assert_allclose(chances(made)(raw, purchases), shown.rows.column(SCORE).to_numpy(), atol=1e-4)
    for row in rows:
        added = [value for _, _, value in row.largest]
        assert len(added) == len(made.spec.dense) + len(made.spec.codes)
        assert sum(added) == pytest.approx(row.raw - baseline, abs=TOLERANCE, rel=TOLERANCE)  # the larger of both
        assert added == sorted(added, key=abs, reverse=True)
    few, _ = inspect.attributed(nights.state, made, shown, largest=2)
    assert [row.largest for row in few] == [row.largest[:2] for row in rows]


@pytest.mark.ray
def test_another_model_or_other_inputs_cannot_explain_a_night(nights: Nights, tmp_path: Path) -> None:
    settings = nights.state.settings
    shown = nights.shown(nights.planted.user_ids[7].as_py())
    made = inspect.find_bundle(settings, shown.night)
    older, _ = inspect.find_night(settings, as_of=BEFORE)
    other = inspect.find_bundle(settings, older)
    assert made is not None
    assert other is not None
    with pytest.raises(BundleError, match=rf"must be the model that scored the night of {DAY}, {made.model_version}, got"):
        inspect.attributed(nights.state, other, shown, largest=2)
    elsewhere = {"run": {"work": str(tmp_path)}, "champion": {"path": str(tmp_path / "champions")}}
    without = config.Settings.model_validate(settings.model_dump(exclude_unset=True) | elsewhere)
    assert inspect.find_bundle(without, older) is None
    shutil.copytree(other.folder, tmp_path / "champions" / "bundles" / "version" / "published")
    found = inspect.find_bundle(without, older)
    assert found is not None
    assert found.model_version == older.model_version

    def changed(column: str, values: pa.Array) -> Shown:
        place = shown.rows.schema.get_field_index(column)
        return Shown(**{**vars(shown), "rows": shown.rows.set_column(place, shown.rows.schema.field(place), values)})

    with pytest.raises(DataError, match=r"the shop's inputs changed since, as a score is another now\. Score the night again\.$"):
        inspect.attributed(nights.state, made, changed(SCORE, pa.array([0.9] * 6, pa.float32())), largest=2)
    with pytest.raises(DataError, match=r"as an item of the list is no candidate any more"):
        inspect.attributed(nights.state, made, changed(ITEM_ID, pa.array([-1] * 6, pa.int64())), largest=2)


# ---- one item, and a user, in this process


@pytest.mark.ray
def test_a_user_scored_in_this_process_gets_the_rows_of_the_table(nights: Nights) -> None:
    shop = Shop(nights.folder / "shop.toml")
    assert [night.as_of for night in shop.nights()] == [DAY, BEFORE]
    assert shop.night().to_arrow().equals(nights.table[DAY])
    assert shop.night(BEFORE.isoformat()).to_polars().to_arrow().to_pylist() == nights.table[BEFORE].to_pylist()
    assert load_night(nights.folder / "table").to_pandas().equals(nights.table[DAY].to_pandas())
    for user in (nights.planted.user_ids[7].as_py(), NEWCOMER):
        mine = nights.table[DAY].filter(pc.equal(nights.table[DAY].column(USER_ID), user))
        assert shop.night().to_arrow(user=user).equals(mine)
        now = shop.recommend(user)
        assert now.drop_columns([SCORE]).equals(mine.drop_columns([SCORE]))
        np.testing.assert_allclose(pc.fill_null(now[SCORE], -1).to_numpy(), pc.fill_null(mine[SCORE], -1).to_numpy(), rtol=0, atol=1e-6)
    with pytest.raises(PublishError, match=r"night 2024-06-06 must be published to be read; the newest is 2024-06-07"):
        shop.night("2024-06-06")
    with pytest.raises(ConfigError, match=r"no such item in the shop before 2024-06-07"):
        shop.explain(nights.planted.user_ids[7].as_py(), -5)


@pytest.mark.ray
def test_every_item_has_its_place_its_sources_and_what_would_change_it(nights: Nights) -> None:
    shop = Shop(nights.folder / "shop.toml")
    user = nights.planted.user_ids[7].as_py()
    mine = nights.table[DAY].filter(pc.equal(nights.table[DAY].column(USER_ID), user)).to_pylist()
    told = {item: shop.explain(user, item, largest=3) for item in nights.planted.item_ids.to_pylist()}
    for row in mine:  # on the list: place and score of the table, where no rule and no cap moves anything
        one = told[row[ITEM_ID]]
        assert (one.rank, one.place, one.rule, one.reason) == (row[RANK], row[RANK], None, row[REASON])
        assert one.score == pytest.approx(row[SCORE], abs=1e-5)
        assert set(one.proposed) == set(row["sources"])
        assert len(one.largest) == 3
    listed = {row[ITEM_ID] for row in mine}
    others = [one for item, one in told.items() if item not in listed and one.active]
    available = dict(zip(*pq.read_table(nights.planted.items, columns=["item_id", "available"]).to_pydict().values(), strict=True))
    assert {one.item_id for one in others if one.rule == "available"} == {item for item, there in available.items() if not there}
    below = [one for one in others if one.rule is None]
    assert below
    assert all(one.rank is None and one.place > len(mine) for one in below)
    assert all(one.score <= one.end for one in below)
    changed = [one for one in told.values() if one.changed is not None]
    assert changed  # and each crosses the list's end, when it is done to the model's inputs
    assert all(one.changed.now != one.changed.then and one.changed.apart > 0 for one in changed if one.changed)


@pytest.mark.ray
def test_a_forbidden_item_and_a_user_without_history_are_told_apart(nights: Nights, run: Callable[..., Ended]) -> None:
    arguments = ["--config", str(nights.folder / "shop.toml")]
    user = nights.planted.user_ids[7].as_py()
    items = pq.read_table(nights.planted.items).to_pylist()
    gone = next(item["item_id"] for item in items if not item["available"])
    ended = run("explain", *arguments, "--user", str(user), "--item", str(gone))
    assert (ended.status, "The rule 'available' keeps it from this user" in ended.out) == (0, True), ended.err
    first = nights.items(DAY, user)[0]
    ended = run("explain", *arguments, "--user", str(user), "--item", str(first))
    words = " ".join(ended.out.split())
    assert f"(item {first}) for user {user} as of {DAY}: rank 1." in words
    assert "The model puts it at place 1 of" in words
    assert "off the list." in words or "No single number" in words
    ended = run("explain", *arguments, "--user", str(NEWCOMER), "--item", str(first))
    assert (ended.status, "The user has no history that the model knows" in ended.out) == (0, True)
    ended = run("explain", *arguments, "--user", str(user), "--item", "bread")
    assert (ended.status, ended.err.splitlines()[-1]) == (1, "--item bread: item ids of this shop are integers (int64). Pass one.")


# ---- pages


@pytest.fixture(scope="module")
def site(nights: Nights) -> Iterator[str]:
    """Where `jobs.browse` serves the nights, in a process of its own."""
    (nights.folder / "reports").mkdir(exist_ok=True)
    (nights.folder / "reports" / f"{DAY}.html").write_text("<p>the report</p>", encoding="utf-8")
    command = [sys.executable, "-m", "jobs.browse", "--config", str(nights.folder / "shop.toml"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def get(address: str, **headers: str) -> requests.Response:
    return requests.get(address, headers=headers, timeout=120)


@pytest.mark.ray
def test_pages_say_what_the_table_says(nights: Nights, site: str) -> None:
    user = nights.planted.user_ids[7].as_py()
    home = get(site)
    assert home.status_code == 200
    assert [row[0] for row in cells(home.text, "nights")] == [f'<a href="/report/{day}">{day}</a>' for day in (DAY, BEFORE)]
    shown, page = nights.shown(user), get(f"{site}user?id={user}").text
    rows = [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in cells(page, "list")]
    assert [row[0] for row in rows] == [str(rank) for rank in shown.rows.column(RANK).to_pylist()]
    assert [unescape(row[1]) for row in rows] == shown.names
    assert [row[2] for row in rows] == [f"{score:.3f}" for score in shown.rows.column(SCORE).to_pylist()]
    assert [unescape(row[5]) for row in rows] == shown.rows.column(REASON).to_pylist()
    then = nights.items(BEFORE, user)
    followed = [[str(then.index(item) + 1) if item in then else ""] for item in nights.items(DAY, user)]
    assert [row[1:] for row in cells(page, "followed")] == followed
    assert [row[0] for row in cells(page, "latest")] == [escape(bought.name) for bought in shown.latest]
    item = nights.items(DAY, user)[0]
    wanted = nights.table[DAY].filter(pc.equal(nights.table[DAY].column(ITEM_ID), item))
    page = get(f"{site}item?id={item}&as_of={DAY}").text
    assert f"On {wanted.num_rows} lists: " in page
    assert sum(int(row[1]) for row in cells(page, "ranks")) == wanted.num_rows
    assert {re.sub(r"<[^>]*>", "", row[0]) for row in cells(page, "users")} == {str(one) for one in wanted.column(USER_ID).to_pylist()}
    assert get(f"{site}report/{DAY}").text == "<p>the report</p>"


@pytest.mark.ray
def test_what_is_not_there_is_a_page_and_nobody_else_may_ask(site: str) -> None:
    for path, sentence in (
        ("user?id=6", "no such user in the shop before 2024-06-07"),
        ("user?id=<b>", "--user &lt;b&gt;: user ids of this shop are integers"),
        ("user?id=6&as_of=2024-06-06", "night 2024-06-06 must be published to be shown"),
        ("item?id=x", "item ids of this shop are integers"),
        ("report/2024-01-01", "no report of the night of 2024-01-01"),
        ("report/..%2F..%2Fetc", "must be a date such as"),
        ("item?id=7&as_of=today", "must be a date such as"),
    ):
        answer = get(f"{site}{path}")
        assert (answer.status_code, sentence in unescape(answer.text) or sentence in answer.text) == (404, True), path
        assert "<b>" not in answer.text
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert get(site, Host="shop.example").status_code == 403  # a name elsewhere that leads here
    assert get(site, Host="localhost").status_code == 200
    assert requests.post(site, timeout=60).status_code == 405


@pytest.mark.ray
def test_a_phone_finds_a_user_and_goes_on_to_an_item(nights: Nights, site: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: the pages were not opened in a browser (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    user = nights.planted.user_ids[7].as_py()
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(site)
        page.fill("input[aria-label='user id']", str(user))
        page.select_option("select >> nth=0", str(BEFORE))
        page.click("text=User")
        page.wait_for_selector("#list")
        assert page.inner_text("#status") == f"User {user} as of {BEFORE}"
        assert page.locator("#list tbody tr").count() == len(nights.items(BEFORE, user))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.click("#list tbody tr:first-child a")
        page.wait_for_selector("#users")
        assert page.inner_text("#status") == f"Item {nights.items(BEFORE, user)[0]} as of {BEFORE}"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == []


# ---- mistakes


@pytest.mark.ray
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--user", "6"], "--user 6: no such user in the shop before 2024-06-07. Check the id."),
        (["--user", "ann"], "--user ann: user ids of this shop are integers (int64). Pass one."),
        (
            ["--user", "6", "--as-of", "2024-06-06"],
            "night 2024-06-06 must be published to be shown; the newest are 2024-06-07, ",
        ),
        (["--user", "6", "--bundle", "nowhere"], "nowhere: no model bundle"),
    ],
)
def test_a_mistake_is_one_sentence(nights: Nights, run: Callable[..., Ended], arguments: list[str], sentence: str) -> None:
    ended = run("show", "--config", str(nights.folder / "shop.toml"), *arguments)
    assert (ended.status, ended.out) == (1, "")
    assert sentence in ended.err.splitlines()[-1]


@pytest.mark.ray
def test_a_user_without_a_row_is_one_sentence(nights: Nights, tmp_path: Path) -> None:
    night, _ = inspect.find_night(nights.state.settings, as_of=None)
    user = nights.planted.user_ids[3].as_py()
    table = str(tmp_path / "table")
    others = nights.table[DAY].filter(pc.not_equal(nights.table[DAY].column(USER_ID), user))
    write_deltalake(table, others, partition_by=["as_of"])
    sources = replace(nights.state.inputs, settings=nights.state.settings.model_copy(update={"table": config.Table(path=table)}))
    with pytest.raises(PublishError, match=rf"user {user} has no row in the night of {DAY}: .* Look at the night's counts"):
        inspect.show(replace(nights.state, inputs=sources), user, night=night, before=None)


def test_without_a_table_there_is_one_sentence(tmp_path: Path) -> None:
    settings = config.Settings.model_validate({"shop": {"events": "e"}, "table": {"path": str(tmp_path / "none")}})
    with pytest.raises(PublishError, match=r"none: a night must be published to be shown; there are none\. Run jobs\.nightly first\.$"):
        inspect.find_night(settings, as_of=None)


def test_ids_are_of_the_shop_s_type() -> None:
    assert inspect.parse_id("007", pa.string(), option="user") == "007"
    assert inspect.parse_id("007", pa.int64(), option="user") == 7
    for word in ("7.0", "", str(2**63)):
        with pytest.raises(ConfigError, match="user ids of this shop are integers"):
            inspect.parse_id(word, pa.int64(), option="user")
