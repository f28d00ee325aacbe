import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import typer
import typer.main

import jobs
from recsys.data import synthetic
from recsys.publishing import staging
from recsys.publishing.table import commit_night, read_night
from recsys.schema import ITEM_ID, RANK, TIMESTAMP, TS, USER_ID
from tests.nights import NEXT, NIGHT, SHARD_0, SHARD_1, change, rows_of
from tests.pages import Opener
from tests.processes import alive, descendants
from tests.verbs import ROOT, Ended

pytestmark = pytest.mark.timeout(600)

VERBS = sorted({module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"printing"})
STAGES = ("ingest", "train", "score", "backtest", "nightly")  # verbs that take a shop and a day


# ---- help


@pytest.mark.parametrize("name", VERBS)
def test_help_says_what_a_verb_does_and_explains_each_option(name: str, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch):
    commands: list[Any] = []
    build = typer.main.get_command

    def seen(app: typer.Typer) -> Any:
        commands.append(build(app))
        return commands[-1]

    monkeypatch.setattr(typer.main, "get_command", seen)
    shown = run(name, "--help")
    assert shown.status == 0
    (command,) = commands
    assert command.help
    assert command.help.split()[0] in shown.out
    for option in command.params:
        assert getattr(option, "help", None), f"jobs.{name}: {option.name} has no help"
        assert option.opts[0] in shown.out


def test_every_stage_takes_a_shop_and_a_day(run: Callable[..., Ended]):
    for name in STAGES:
        shown = run(name, "--help").out
        assert re.search(r"--config\b.*settings", shown)
        assert re.search(r"--as-of\b.*known\s+before", shown, re.DOTALL)


# ---- mistakes, told before any work starts

FIRST, LAST = date(2024, 1, 1), date(2024, 5, 31)
DAY = "2024-06-01"


def events(**columns: Any) -> pa.Table:
    """Three events from FIRST to LAST, with columns replaced, or dropped where None."""
    times = [datetime(day.year, day.month, day.day, 12, tzinfo=UTC) for day in (FIRST, date(2024, 4, 1), LAST)]
    table = {USER_ID: pa.array([1, 1, 2]), ITEM_ID: pa.array([5, 6, 5]), TS: pa.array(times, TIMESTAMP)} | columns
    return pa.table({name: values for name, values in table.items() if values is not None})


ITEMS = pa.table({ITEM_ID: [5, 6], "brand": ["x", "y"], "available": [True, True]})
WORDS = pa.array(["a", "b", "c"])
NAIVE = pa.array([datetime(2024, 1, 1), datetime(2024, 4, 1), datetime(2024, 5, 31)], pa.timestamp("us"))


class Mistake(NamedTuple):
    """A shop with one mistake in it, and the sentence that must name it."""

    sentence: str
    events: pa.Table | None = events()
    items: pa.Table | None = ITEMS
    toml: str = ""
    as_of: str = DAY
    mistakes: int = 1
    """Sentences, a line each."""


MISTAKES = {
    "a wrong key": Mistake(r"shop\.toml: unknown key 'rank\.K'", toml="[rank]\nK = 5"),
    "a wrong value": Mistake(r"shop\.toml: key 'rank\.k': .* got 'ten'", toml='[rank]\nk = "ten"'),
    "no toml": Mistake(r"shop\.toml: not a TOML file", toml="[rank"),
    "no events": Mistake(r"events\.parquet: no such file or folder\. Check shop\.events", events=None),
    "no items": Mistake(r"items\.parquet: no such file or folder\. Check shop\.items", items=None),
    "no users": Mistake(r"nobody: no such file or folder\. Check shop\.users", toml='users = "nobody"'),
    "a missing column": Mistake(r"events\.parquet: column 'user_id' is missing; seen item_id, ts", events=events(user_id=None)),
    "a missing column under the shop's name": Mistake(
        r"column 'who' is missing; .* shop\.columns\.user_id", toml='[shop.columns]\nuser_id = "who"'
    ),
    "a missing feature": Mistake(r"items\.parquet: column 'colour' is missing", toml='[features]\nitem_categorical = ["colour"]'),
    "a wrong type of id": Mistake(
        r"column 'item_id' must be an integer .* got double", events=events(item_id=pa.array([0.5, 1.5, 2.5]))
    ),
    "another type of id in items": Mistake(r"items\.parquet: column 'item_id' must be string as in", events=events(item_id=WORDS)),
    "a wrong type of time": Mistake(r"column 'ts' must be timestamp, got int64", events=events(ts=pa.array([1, 2, 3]))),
    "times without a zone": Mistake(r"column 'ts' has times without a zone .* Set shop\.timezone", events=events(ts=NAIVE)),
    "a wrong type of quantity": Mistake(r"column 'quantity' must be a number, got string", events=events(quantity=WORDS)),
    "a wrong type of availability": Mistake(
        r"'available' must be bool, got int64", items=ITEMS.set_column(2, "available", pa.array([1, 0]))
    ),
    "a wrong type of feature": Mistake(r"column 'brand' must be a number, got string", toml='[features]\nitem_numeric = ["brand"]'),
    "an empty table": Mistake(r"events\.parquet: shop\.events has no rows", events=events().slice(0, 0)),
    "only nulls": Mistake(r"column 'ts' holds no time before", events=events(ts=pa.nulls(3, TIMESTAMP))),
    "a day before the data": Mistake(r"--as-of 2023-06-01: needs two label windows .* 2024-01-01 to 2024-05-31", as_of="2023-06-01"),
    "a day too early": Mistake(r"--as-of 2024-04-10: needs two label windows of 28 days .* Use 2024-04-11 or a", as_of="2024-04-10"),
    "a rule without its column": Mistake(
        r"items\.parquet: column 'seller' is missing; .* set the rule 'one each'",
        toml='[[rules]]\nname = "one each"\nkind = "cap"\ncolumn = "seller"\nat_most = 1',
    ),
    "a rule on words for numbers": Mistake(
        r"items\.parquet: column 'brand' must be a number, got string\. .* the rule 'dear'",
        toml='[[rules]]\nname = "dear"\nkind = "range"\ncolumn = "brand"\nmin = 3',
    ),
    "a rule without its list": Mistake(
        r"nowhere\.parquet: no such file or folder\. Check the rule 'recalled'",
        toml='[[rules]]\nname = "recalled"\nkind = "items"\nnever = "nowhere.parquet"',
    ),
    "optional columns that are not there": Mistake(
        r"events\.parquet: column 'event_typ' of shop\.columns\.kind is missing, did you mean 'event_type'\? .* "
        r"column 'prise' of shop\.columns\.price is missing, .* remove shop\.columns\.price\. "
        r".*items\.parquet: column 'activ' of shop\.columns\.available is missing, seen item_id, brand, available\.",
        events=events(event_type=WORDS),
        toml='[shop.columns]\nkind = "event_typ"\nprice = "prise"\navailable = "activ"',
        mistakes=3,
    ),
    "an optional column in capitals": Mistake(
        r"column 'Price' looks like price, .* Set shop\.columns\.price = \"Price\", or name it in shop\.ignore",
        events=events(Price=pa.array([1.0, 2.0, 3.0])),
    ),
    "an optional column but for a character": Mistake(
        r"items\.parquet: column 'availble' looks like available", items=ITEMS.rename_columns([ITEM_ID, "brand", "availble"])
    ),
    "an optional column all in capitals": Mistake(
        r"column 'QUANTITY' looks like quantity, .* Set shop\.columns\.quantity = \"QUANTITY\"",
        events=events(QUANTITY=pa.array([1, 2, 3])),
    ),
    "a name that is no word": Mistake(
        r"column 'name' must be a string, integer or bool .* shop\.columns\.name",
        items=ITEMS.append_column("name", pa.array([{"en": "x"}, {"en": "y"}])),
    ),
    "a feature with a name of ours": Mistake(
        r"features: user column 'price' has a name that is ours; rename it in the table of users",
        toml='users = "users"\n[features]\nuser_numeric = ["price"]',
    ),
    "a rule of another kind": Mistake(r"key 'rules\.0\.kind' must be one of", toml='[[rules]]\nname = "recalled"\nkind = "item"'),
    "a day after the data": Mistake(
        r"--as-of 2024-06-29: more than window\.label_days \(28\) after the last event", as_of="2024-06-29"
    ),
}


def write(folder: Path, mistake: Mistake) -> list[str]:
    """The arguments that name the shop written into the folder."""
    for name in ("events", "items"):
        if (table := getattr(mistake, name)) is not None:
            pq.write_table(table, folder / f"{name}.parquet")
    text = f"""
    [table]
    path = "{folder}/table"
    [run]
    work = "{folder}/work"
    [champion]
    path = "{folder}/bundles"
    [report]
    path = "{folder}/reports"
    [shop]
    events = "{folder}/events.parquet"
    items = "{folder}/items.parquet"
    {mistake.toml}
    """
    (folder / "shop.toml").write_text(text)
    return ["--config", str(folder / "shop.toml"), "--as-of", mistake.as_of]


def refused(ended: Ended, folder: Path, *, mistakes: int = 1) -> str:
    """The line a mistake that a verb left, having done nothing else."""
    assert ended.status == 1
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert len(lines) == mistakes
    assert all(re.search(r"[.)]$", line) for line in lines)
    assert not (folder / "work").exists()
    assert not (folder / "table").exists()
    return " ".join(lines)


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        raise AssertionError("work starts")

    monkeypatch.setattr("recsys.engine.connect.connect", connect)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_status_1_before_any_work(mistake: Mistake, run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, mistake)
    assert re.search(mistake.sentence, refused(run("nightly", *arguments), tmp_path, mistakes=mistake.mistakes))


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", STAGES)
def test_every_stage_refuses_alike(name: str, run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, MISTAKES["a missing column"])
    assert "column 'user_id' is missing" in refused(run(name, *arguments), tmp_path)
    assert "no such settings file" in refused(run(name, "--config", "nowhere.toml", "--as-of", DAY), tmp_path)


OF_A_SHOP = {"backtest": (), "tune": ("--trials", "1"), "train": (), "examples": ()}  # and what they need beside the shop


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", [*OF_A_SHOP, "shops", "bench", "planted_shop", "demo_shop"])
@pytest.mark.parametrize("place", ["events.parquet/below/out", "/proc/recsys/out"])  # in a file, nowhere
def test_an_out_that_cannot_be_written_is_refused_before_any_work(name: str, place: str, run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    said = refused(run(name, *((*arguments, *OF_A_SHOP[name]) if name in OF_A_SHOP else ()), "--out", str(tmp_path / place)), tmp_path)
    assert re.match(rf"--out = {tmp_path / place}|--out = {(tmp_path / place).parent}", said), said
    assert ": must be a folder that can be made and written to, got: " in said


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", ["backtest", "tune", "shops", "bench"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_any_work(name: str, run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    said = refused(run(name, *((*arguments, *OF_A_SHOP[name]) if name in OF_A_SHOP else ()), "--out", str(tmp_path)), tmp_path)
    assert said == f"--out {tmp_path}: must be a file, got a folder. Name a file in it."


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("setting", ["run.work", "table.path", "champion.path", "report.path"])
@pytest.mark.parametrize("place", ["events.parquet", "events.parquet/below", "/proc/recsys/below"])  # a file, in a file, nowhere
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(setting: str, place: str, run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    file, name = tmp_path / "shop.toml", {"run.work": "work", "table.path": "table", "champion.path": "bundles"}.get(setting, "reports")
    file.write_text(file.read_text().replace(f'"{tmp_path}/{name}"', f'"{tmp_path / place}"'))
    said = refused(run("nightly", *arguments), tmp_path)
    assert said.startswith(f"{setting} = {tmp_path / place}: must be a folder that can be made and written to, got: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "items.parquet", "shop.toml"]


@pytest.mark.usefixtures("no_ray")
def test_without_a_mistake_work_starts(run: Callable[..., Ended], tmp_path: Path):
    for as_of in (DAY, "2024-06-28", "2024-04-11"):  # the last and the first day that could be meant
        with pytest.raises(AssertionError, match="work starts"):
            run("ingest", *write(tmp_path, Mistake("", as_of=as_of)))


@pytest.mark.usefixtures("no_ray")
def test_a_folder_that_is_no_bundle_is_refused_before_any_work(run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    assert "nothing" in refused(run("score", *arguments, "--bundle", str(tmp_path / "nothing")), tmp_path)


@pytest.mark.usefixtures("no_ray")
def test_a_horizon_without_events_is_refused_before_any_work(run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    assert "--as-of 2024-06-01: no event from then on" in refused(run("backtest", *arguments), tmp_path)


@pytest.mark.usefixtures("no_ray")
def test_a_night_whose_backtest_has_too_few_windows_is_refused_before_any_work(run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake("", as_of="2024-05-08"))  # two windows, and a day less than the test takes
    assert "28 days for the test of what was learned; the events span 2024-01-01 to 2024-05-31. Use 2024-05-09 or" in refused(
        run("nightly", *arguments), tmp_path
    )


@pytest.mark.usefixtures("no_ray")
def test_a_plot_of_no_known_format_is_refused_before_any_work(run: Callable[..., Ended], tmp_path: Path):
    arguments = write(tmp_path, Mistake(""))
    assert "plot.jpg: must end in .png or .svg, got '.jpg'." in refused(run("backtest", *arguments, "--plot", "plot.jpg"), tmp_path)


def test_changes_are_written_for_a_store_and_counted(run: Callable[..., Ended], tmp_path: Path):
    for as_of, lists in ((NIGHT, {**SHARD_0, **SHARD_1}), (NEXT, SHARD_0)):
        rows = change(rows_of(lists), "run_id", [f"run-{as_of}"] * rows_of(lists).num_rows)
        part = staging.stage(str(tmp_path / "table"), rows, as_of=as_of, run_id=f"run-{as_of}", shard=0)
        kinds = {"user_id": pa.string(), "item_id": pa.string()}
        commit_night(str(tmp_path / "table"), [part], as_of=as_of, run_id=f"run-{as_of}", model_version="m", keep_nights=3, **kinds)
    (tmp_path / "shop.toml").write_text(f'[shop]\nevents = "nowhere"\n[table]\npath = "{tmp_path}/table"\n')
    arguments = ("changes", "--config", str(tmp_path / "shop.toml"), "--since", "2017-12-01", "--to", "2017-12-02")
    shown = run(*arguments, "--out", str(tmp_path / "out"))
    assert shown.status == 0
    said = f"0 users to write, 1 to delete, 2 as they were; from 2017-12-01 to 2017-12-02, in {tmp_path}/out"
    assert " ".join(shown.out.split()) == said
    again = run(*arguments, "--out", str(tmp_path / "out"))
    assert (again.status, again.err.count("\n")) == (1, 1)
    assert "must be empty" in again.err


@pytest.mark.parametrize("verb", ["publish", "bundles", "runs", "work", "submit", "nothing"])
def test_what_no_cluster_runs_is_not_submitted(verb: str, run: Callable[..., Ended], tmp_path: Path):
    shown = run("submit", verb, "--address", "http://127.0.0.1:1")
    assert shown.status == 1
    assert (
        f"'{verb}' is no verb that a cluster runs. There are backtest, bench, changes, check, demo_shop, examples, explain" in shown.err
    )


# ---- a second shop, other columns, string ids, no items, no users: a night on two CPUs, killed, and run again

SHOP_DAY, LABEL_DAYS, SHARDS = date(2024, 6, 1), 14, 6
NAMES = {USER_ID: "klant", ITEM_ID: "artikel", TS: "moment", "quantity": "stuks", "price": "prijs", "kind": "soort"}

# The verb on a Ray of two CPUs whatever the machine has, and scoring slow enough to be killed in the middle of it. Each training
# worker and each scoring actor leaves a file that tells of it.
SLOWLY = """
import functools, os, pathlib, runpy, sys, time
from recsys.engine import connect
from recsys.pipelines import score as pipeline
from recsys.training import fit

told = pathlib.Path(sys.argv.pop(1))

def score_task(*arguments):
    from recsys.pipelines.score import _score_task
    score = _score_task(*arguments)
    def task(name, unit):
        (told / f"actor-{os.getpid()}").touch()
        time.sleep(1.5)
        return score(name, unit)
    return task

def work(job):
    import ray.train
    from recsys.training import worker
    (told / f"worker-{ray.train.get_context().get_world_rank()}-{os.getpid()}").touch()
    return worker.work(job)

pipeline._score_task, fit.work = score_task, work
connect.connect = functools.partial(connect.connect, cpus=2)
runpy.run_module("jobs.nightly", run_name="__main__", alter_sys=False)
"""


class Killed(NamedTuple):
    """The shop's night: killed in the middle of scoring, then run again."""

    arguments: list[str]
    folder: Path
    planted: synthetic.Planted
    told: list[str]
    """Of training workers and scoring actors."""
    scored: list[str]
    """Shards that were finished when the kill came."""
    before: dict[Path, str]
    """When each receipt was written that the killed run left."""
    log: str
    """What the second run said."""


def settings_of(folder: Path, planted: synthetic.Planted) -> str:
    columns = "\n".join(f'{ours} = "{theirs}"' for ours, theirs in NAMES.items())
    return f"""
[shop]
events = "{planted.events}"
label_kinds = ["purchase"]
[shop.columns]
{columns}
[window]
label_days = {LABEL_DAYS}
cutoffs = 2
[signals]
factors = 8
als_iterations = 4
als_l2 = 10
als_alpha = 2
look_weight = 0.3
ease_l2 = 20.0
[candidates]
per_user = 50
[model]
hidden = [16]
[train]
epochs = 1
batch_size = 128
workers = 2
[run]
work = "{folder}/work"
shards = {SHARDS}
actors = 2
[table]
path = "{folder}/table"
[gate]
max_baseline_loss = 1.0  # one epoch on two hundred users is below what they bought most
[champion]
path = "{folder}/bundles"
[report]
path = "{folder}/reports"
"""


def receipts(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(folder.glob("work/*/receipts/*.json"))}  # when a unit was begun is in it


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("second")
    planted = synthetic.shop(
        folder,
        users=120,
        items=70,
        days=84,
        seed=4,
        end=SHOP_DAY,
        ids="string",
        events_per_user=25,
        columns=NAMES,
        with_items=False,
        with_users=False,
        kinds=True,
    )
    (folder / "shop.toml").write_text(settings_of(folder, planted))
    (folder / "told").mkdir()
    arguments = ["--config", str(folder / "shop.toml"), "--as-of", SHOP_DAY.isoformat()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    command = [sys.executable, "-c", SLOWLY, str(folder / "told"), *arguments]
    with (folder / "first.log").open("w") as log:
        first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    started: set[int] = set()
    try:
        while len(list(folder.glob("work/score-*/receipts/*.json"))) < 2:
            assert first.poll() is None, (folder / "first.log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # what it started is known before it ends, and no shard is finished meanwhile
        started = descendants(first.pid)
    finally:
        for pid in alive({first.pid} | started):
            os.kill(pid, signal.SIGKILL)
        first.wait()
    before = receipts(folder)
    scored = [path.stem for path in before if path.parts[-3].startswith("score-")]
    assert not (folder / "table" / "_delta_log").exists()

    command = [sys.executable, "-m", "jobs.nightly", *arguments]
    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    told = sorted(path.name for path in (folder / "told").iterdir())
    return Killed(arguments, folder, planted, told, scored, before, second.stdout + second.stderr)


@pytest.mark.ray
def test_two_training_workers_and_two_scoring_actors_run_on_two_cpus(killed: Killed) -> None:
    # Two fits, of the night and of its backtest.
    assert [name.rsplit("-", 1)[0] for name in killed.told] == ["actor", "actor", "worker-0", "worker-0", "worker-1", "worker-1"]
    assert len({name.rsplit("-", 1)[1] for name in killed.told}) == 6


@pytest.mark.ray
def test_after_a_kill_in_the_middle_of_scoring_the_same_command_does_what_is_left(killed: Killed) -> None:
    assert 2 <= len(killed.scored) < SHARDS
    after = receipts(killed.folder)
    assert {path: after[path] for path in killed.before} == killed.before
    new = after.keys() - killed.before.keys()
    made = {path for path in new if path.parts[-3].startswith("importance-")}  # for the model's card, after the commit
    assert len(made) == SHARDS
    new -= made
    assert {path.parts[-3].split("-")[0] for path in new} == {"score"}
    assert sorted([*killed.scored, *(path.stem for path in new)]) == [f"part-{shard:05d}" for shard in range(SHARDS)]
    assert "Committed as version 1 of the table" in killed.log


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_every_verb_runs_on_the_second_shop_and_shares_what_the_night_did(killed: Killed, run: Callable[..., Ended]) -> None:
    made = receipts(killed.folder)
    page = killed.folder / "reports" / f"{SHOP_DAY}.html"
    written = page.stat().st_mtime_ns
    shown = run("ingest", *killed.arguments)
    assert shown.status == 0
    assert f"120 users with {killed.planted.rows:,} events; 70 items in the catalog." in shown.out
    shown = run("train", *killed.arguments, "--out", str(killed.folder / "bundle"))
    assert shown.status == 0
    assert "Best epoch 1." in shown.out
    shown = run("score", *killed.arguments, "--bundle", str(killed.folder / "bundle"))
    assert shown.status == 0
    assert "nothing was committed" in shown.out
    shown = run("score", *killed.arguments)  # the bundle that jobs.train makes
    assert shown.status == 0
    assert "nothing was committed" in shown.out
    assert page.stat().st_mtime_ns == written
    before = (SHOP_DAY - timedelta(days=LABEL_DAYS)).isoformat()
    backtest = ["--config", killed.arguments[1], "--as-of", before, "--horizon-days", str(LABEL_DAYS)]
    shown = run("backtest", *backtest, "--out", str(killed.folder / "metrics.json"))
    assert shown.status == 0
    assert receipts(killed.folder) == made


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_backtest_writes_the_promised_json(killed: Killed, run: Callable[..., Ended]) -> None:
    out = killed.folder / "promised.json"
    before = (SHOP_DAY - timedelta(days=LABEL_DAYS)).isoformat()
    plot = killed.folder / "plot.svg"
    shown = run("backtest", "--config", killed.arguments[1], "--as-of", before, "--out", str(out), "--plot", str(plot))
    assert "Expected calibration error and log loss, before and after" in shown.out
    assert plot.read_text().startswith("<?xml ")
    result = json.loads(out.read_text())
    assert result.keys() == {
        "as_of",
        "horizon_days",
        "users",
        "models",
        "intervals",
        "differences",
        "candidates",
        "calibration",
        "exposures",
    }
    assert result["exposures"] == {}  # no rule is one
    calibration = result["calibration"]
    assert calibration.keys() == {"users", "rows", "bought", "ece", "log_loss", "deciles", "segments"}
    assert calibration["log_loss"]["after"] < calibration["log_loss"]["before"]
    assert calibration["ece"]["after"] < calibration["ece"]["before"]
    assert sum(one["rows"] for one in calibration["deciles"]) == calibration["rows"]
    assert (result["as_of"], result["horizon_days"]) == (before, LABEL_DAYS)
    assert result["users"].keys() == {"all", "new"}
    assert 120 >= result["users"]["all"] > result["users"]["new"] > 0
    assert list(result["models"]) == ["mlp", "popular", "popular_28d", "popular_7d", "own", "own_then_popular", "neighbours", "factors"]
    metrics = {f"{name}@{k}" for name in ("ndcg", "recall", "hitrate", "map") for k in (10, 20)}
    for model in result["models"].values():
        assert model.keys() == {"all", "new"}
        for values in model.values():
            assert values.keys() == metrics
            assert all(0 <= value <= 1 for value in values.values())
    low, high = result["intervals"]["mlp"]["all"]["ndcg@10"]
    assert low < result["models"]["mlp"]["all"]["ndcg@10"] < high
    assert (
        f"{result['models']['mlp']['all']['ndcg@10']:.3f} [{low:.3f}, {high:.3f}]".replace("[0.", "[.").replace(" 0.", " .")
        in shown.out
    )
    assert result["differences"].keys() == result["models"].keys() - {"mlp"}
    assert result["differences"]["own"]["all"]["ndcg@10"].keys() == {"mean", "interval"}
    assert result["candidates"].keys() == {"recall", "per_user"}
    assert set(result["candidates"]["recall"]) >= {"own", "neighbours", "factors", "popular", "union"}
    recall = {name: value for name, value in result["candidates"]["recall"].items() if name != "union"}
    assert max(recall.values()) <= result["candidates"]["recall"]["union"] <= sum(recall.values())
    assert 0 < result["candidates"]["per_user"] <= 50


@pytest.mark.ray
def test_the_page_of_the_night_holds_the_numbers_of_its_record_and_of_the_table(killed: Killed, opened: Opener) -> None:
    folder = killed.folder / "reports"
    assert sorted(path.name for path in folder.iterdir()) == [f"{SHOP_DAY}.html", f"{SHOP_DAY}.json", "runs"]
    record = json.loads((folder / f"{SHOP_DAY}.json").read_text())
    shown = opened(folder / f"{SHOP_DAY}.html")
    assert shown.said == []
    assert shown.width <= 390
    assert shown.status.startswith("Published: 1,200 rows for 120 users.")
    funnel = {name: int(value.replace(",", "")) for name, value in shown.tables["funnel"]}
    assert funnel == record["funnel"]
    assert (funnel["events read"], funnel["rows"]) == (killed.planted.rows, 120 * 10)
    assert [row[0] for row in shown.tables["gate"]] == [check["name"] for check in record["gate"]["checks"]]
    assert {row[3] for row in shown.tables["gate"]} == {"passed"}
    ours = record["metrics"]["models"]["mlp"]["all"]
    assert shown.tables["metrics-all"][0][1].startswith(f"{ours['ndcg@10']:.3f} [")
    assert shown.tables["metrics-all"][0][3] == f"{ours['recall@10']:.3f}"
    # the challenger won before the kill; its refit, finished then, is told of all the same
    assert [(row[0], row[1]) for row in shown.tables["training"]] == [
        (fit, phase) for fit in ("tested", "published") for phase in ("validate", "refit")
    ]
    assert record["training"][1]["model_version"] == record["model_version"]
    assert {row[0] for row in shown.tables["shards"]} == {f"{shard:05d}" for shard in range(SHARDS)}
    assert sum(int(row[4].replace(",", "")) for row in shown.tables["shards"]) == 1_200
    table = read_night(str(killed.folder / "table"), as_of=SHOP_DAY)
    assert int(dict(shown.tables["coverage"])["distinct items"]) == len(set(table[ITEM_ID].to_pylist()))
    for number, user in enumerate(record["sample"]):
        mine = table.filter(pc.equal(table[USER_ID], user["user_id"]))
        told = [[str(row["rank"]), row["item_id"], f"{row['score']:.3f}", row["source"], row["reason"]] for row in mine.to_pylist()]
        assert shown.tables[f"user-{number}"] == told
    assert len(record["sample"]) == 10


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_table_of_the_killed_night_is_that_of_an_undisturbed_one(killed: Killed, run: Callable[..., Ended]) -> None:
    undisturbed = killed.folder / "undisturbed.toml"
    undisturbed.write_text(settings_of(killed.folder, killed.planted).replace("/table", "/undisturbed"))
    assert run("score", "--config", str(undisturbed), *killed.arguments[2:]).status == 0
    table = read_night(str(killed.folder / "table"), as_of=SHOP_DAY)
    assert read_night(str(killed.folder / "undisturbed"), as_of=SHOP_DAY).equals(table)
    assert set(table[USER_ID].to_pylist()) == set(killed.planted.user_ids.to_pylist())
    assert table[RANK].to_pylist() == [*range(1, 11)] * 120


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_user_s_list_is_shown_by_a_word_for_an_id(killed: Killed, run: Callable[..., Ended]) -> None:
    user = killed.planted.user_ids[5].as_py()
    assert isinstance(user, str)
    shown = run("show", *killed.arguments, "--user", user)
    assert shown.status == 0, shown.err
    assert f"Recommendations of user {user} as of {SHOP_DAY}" in shown.out
    for item in read_night(str(killed.folder / "table"), as_of=SHOP_DAY, user_id=user)[ITEM_ID].to_pylist():
        assert item in shown.out
    shown = run("show", *killed.arguments, "--user", "nobody")
    assert (shown.status, "--user nobody: no such user in the shop before 2024-06-01." in shown.err) == (1, True)


# ---- one run at a time


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_second_run_of_a_table_is_refused_with_a_status_of_its_own(killed: Killed, run: Callable[..., Ended]) -> None:
    table, code = killed.folder / "table", "import sys\nfrom recsys.engine.lease import leased\n"
    code += "with leased(sys.argv[1], {}, what='a night'):\n    print('works', flush=True)\n    sys.stdin.read()\n"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(table)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "works\n"
        bundle = next(killed.folder.glob("work/train-*/bundle"))
        for verb, *more in (("nightly", "--force"), ("score", "--bundle", str(bundle))):
            shown = run(verb, *killed.arguments, *more)
            assert shown.status == 6
            said = f"{table}: one run at a time, got a second one: process {other.pid} on "
            assert shown.err.splitlines()[-1].startswith(said)
    finally:
        other.kill()
        other.communicate()
    assert run("nightly", *killed.arguments).status == 0  # it stands


# ---- planted shops


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_shops_of_a_kind_are_backtested_and_told_beside_their_best_baseline(run: Callable[..., Ended], tmp_path: Path) -> None:
    told = ["--users", "300", "--items", "120", "--folder", str(tmp_path / "shops"), "--out", str(tmp_path / "shops.json")]
    shown = run("shops", "--kind", "fashion", *told)  # whose goods come and go: little of what was sold is still available
    assert (shown.status, shown.err.count("recsys:")) == (0, 0)
    result = json.loads((tmp_path / "shops.json").read_text())["fashion"]
    for part in ("all", "new"):
        ours = result["models"]["mlp"][part]["ndcg@10"]
        best = max(tree[part]["ndcg@10"] for name, tree in result["models"].items() if name != "mlp")
        cells = ["fashion", f"{result['events']:,}", part, f"{result['users'][part]:,}", f"{ours:.3f}", r"\w+", f"{best:.3f}"]
        row = " +│ +".join([*cells, rf"\{ours - best:+.3f} \["])
        assert re.search(row, shown.out), shown.out
    assert not list((tmp_path / "shops").iterdir())


# ---- feature rows


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_shop_s_examples_train_a_model_of_the_pairs_door(killed: Killed, run: Callable[..., Ended]) -> None:
    out = killed.folder / "examples"
    shown = run("examples", *killed.arguments, "--out", str(out))
    assert shown.status == 0
    assert f"python -m jobs.train --config {out}/pairs.toml" in shown.out
    train, test = (pq.read_table(out / part) for part in ("train", "test"))
    assert f"{train.num_rows:,} rows to train on, {test.num_rows:,} to test on." in shown.out
    assert {USER_ID, ITEM_ID, "label", "weight"} < set(train.column_names)
    assert 0 < sum(train["label"].to_pylist()) < train.num_rows
    small = (out / "pairs.toml").read_text() + f'[model]\nhidden = [8]\n[train]\nepochs = 1\n[run]\nwork = "{killed.folder}/work"\n'
    (out / "small.toml").write_text(small)
    shown = run("train", "--config", str(out / "small.toml"), "--out", str(killed.folder / "of_rows"))
    assert shown.status == 0
    assert f"{train.num_rows:,} rows (" in shown.out
    assert re.search(r"^Test Accuracy: [01]\.\d{4}$", shown.out, re.MULTILINE)
    assert f"{test.num_rows:,} rows" in shown.out.splitlines()[-2]
    score = ["--config", str(out / "small.toml"), "--as-of", SHOP_DAY.isoformat(), "--bundle"]
    shown = run("score_pairs", *score, str(next(killed.folder.glob("work/train-*/bundle"))))
    assert (shown.status, "was trained by the shop door" in shown.err) == (1, True)


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_the_original_run_is_one_command(run: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (ROOT / "jobs" / "original.toml").read_text()
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, rows in (("train", 600), ("test", 200)):
        pixels = rng.integers(0, 256, (rows, 12))
        label = (pixels[:, 0] > 127).astype(int)
        path = Path("var/original") / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        header = ",".join([*(f"p{column}" for column in range(12)), "bought"])
        np.savetxt(path, np.column_stack([pixels, label]), fmt="%d", delimiter=",", header=header, comments="")
    Path("original.toml").write_text(settings)
    shown = run("train", "--config", "original.toml", "--out", "bundle")
    assert shown.status == 0
    (accuracy,) = re.findall(r"^Test Accuracy: ([01]\.\d{4})$", shown.out, re.MULTILINE)
    assert float(accuracy) > 0.9
    assert re.search(r"^Test precision .*, recall .*, F1 .*, AUC .*, log loss .*, 200 rows$", shown.out, re.MULTILINE)
    about = json.loads(Path("bundle/bundle.json").read_text())
    told = about["settings"]
    assert (told["model"]["hidden"], told["model"]["dropout"]) == ([512, 256, 128], 0.2)
    assert {name: told["train"][name] for name in ("loss", "optimizer", "learning_rate", "epochs", "batch_size")} == {
        "loss": "binary_crossentropy",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "epochs": 10,
        "batch_size": 64,
    }
    assert len(about["metrics"]["history"]) == 10
    assert about["metrics"]["examples"]["held_out"] == pytest.approx(120, abs=40)


@pytest.mark.parametrize(
    ("verb", "text", "arguments", "sentence"),
    [
        (
            "train",
            '[pairs]\npath = "rows"\n',
            ["--as-of", "2024-01-01"],
            "labelled rows have no --as-of, got 2024-01-01.",
        ),
        ("train", '[shop]\nevents = "e"\n', [], "training on a shop needs --as-of, got none. Add the day before which events count."),
        ("train", '[pairs]\npath = "rows"\n[shop]\nevents = "e"\n', [], "must have a section [shop] or a section [pairs], got both."),
        ("train", '[pairs]\npath = "rows"\n', [], "rows: no such file or folder. Check pairs.path;"),
        ("nightly", '[pairs]\npath = "rows"\n', ["--as-of", "2024-01-01"], "must have a section [shop], got [pairs]."),
        (
            "score_pairs",
            '[shop]\nevents = "e"\n',
            ["--as-of", "2024-01-01", "--bundle", "b"],
            "must have a section [pairs], got [shop].",
        ),
        ("score_pairs", '[pairs]\npath = "rows"\n', ["--as-of", "2024-01-01", "--bundle", "b"], "b: no model bundle"),
    ],
)
def test_the_wrong_door_is_one_sentence(
    verb: str,
    text: str,
    arguments: list[str],
    sentence: str,
    run: Callable[..., Ended],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("settings.toml").write_text(text)
    shown = run(verb, "--config", "settings.toml", *arguments)
    assert shown.status == 1
    assert sentence in shown.err
    assert len(shown.err.splitlines()) == 1
