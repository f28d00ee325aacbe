"""Inputs and table in an object store: a server that speaks S3's protocol, and the file systems and Delta writer that a shop uses."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import load_catalog

from recsys import config
from recsys.data import synthetic
from recsys.data.inputs import open_input, read
from recsys.data.shop import open_shop
from recsys.engine import lease
from recsys.errors import LeaseError, PublishError
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing import gate, release, staging, table
from recsys.publishing.export import export
from recsys.publishing.table import commit_night, published_nights, published_run, read_night, take_back
from recsys.storage import delta_location, filesystem
from tests.addresses import SECRET, address
from tests.clocks import Clock
from tests.jobs.test_nights import DAY, write_shop
from tests.nights import NIGHT, OTHER_RUN, RUN, SHARD_0, SHARD_1, STRING, rows_of
from tests.proxies import FAULTS, flaky, made
from tests.verbs import Ended

AS_OF = date(2024, 3, 1)
HOST = "127.0.0.1"
SECRET_KEY = "marked-secret-of-the-store"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The server's URL, with a bucket named `shop` and its credentials in the environment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        told = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true"}
        for name, value in told.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                assert server.poll() is None, "the server ended"
                try:
                    with urlopen(f"http://{HOST}:{port}/moto-api/", timeout=5):
                        break
                except URLError:
                    time.sleep(0.1)
            store = pafs.S3FileSystem(endpoint_override=f"{HOST}:{port}", scheme="http", region="eu-west-1", allow_bucket_creation=True)
            store.create_dir("shop")
            yield f"http://{HOST}:{port}"
        finally:
            server.terminate()
            server.wait()


@pytest.fixture
def options(endpoint: str) -> dict[str, str]:
    return {"region": "eu-west-1", "endpoint": endpoint}


def by_polars(path: str, endpoint: str) -> pl.DataFrame:
    told = {"aws_region": "eu-west-1", "aws_endpoint": endpoint, "aws_allow_http": "true"}
    return pl.read_delta(path, storage_options=told).sort("as_of", "user_id", "rank")


def test_nights_are_published_read_and_taken_back(endpoint: str, options: dict[str, str]) -> None:
    path = "s3://shop/nights"
    types = {"user_id": STRING, "item_id": STRING}
    for as_of, run in ((NIGHT, RUN), (date(2017, 12, 2), OTHER_RUN)):
        parts = [
            staging.stage(path, rows_of(lists, run), as_of=as_of, run_id=run, shard=shard, storage_options=options)
            for shard, lists in enumerate((SHARD_0, SHARD_1))
        ]
        assert staging.audit(path, parts, as_of=as_of, k=3, storage_options=options, **types).rows == 8
        commit_night(path, parts, as_of=as_of, run_id=run, model_version="m1", keep_nights=3, storage_options=options, **types)
    assert [(night.run_id, night.rows) for night in published_nights(path, options)] == [(OTHER_RUN, 8), (RUN, 8)]
    assert by_polars(path, endpoint).height == 16
    assert read_night(path, as_of=NIGHT, user_id="bob", storage_options=options)["item_id"].to_pylist() == ["tea", "milk"]
    assert take_back(path, to=NIGHT, storage_options=options) == [date(2017, 12, 2)]
    assert by_polars(path, endpoint)["user_id"].to_list() == ["ann"] * 3 + ["bob"] * 2 + ["cid"] * 3


def test_an_iceberg_table_lists_the_nights_in_the_store(endpoint: str, options: dict[str, str], tmp_path: Path) -> None:
    path, types = "s3://shop/listed/table", {"user_id": STRING, "item_id": STRING}
    told = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": "s3://shop/listed/warehouse"}
    told |= {"s3.endpoint": endpoint, "s3.region": "eu-west-1"}
    catalog = load_catalog("house", **told)
    for day in (1, 2, 3):
        as_of, run = date(2017, 12, day), f"run{day}"
        part = staging.stage(path, rows_of(SHARD_0, run), as_of=as_of, run_id=run, shard=0, storage_options=options)
        commit_night(path, [part], as_of=as_of, run_id=run, model_version="m1", keep_nights=2, storage_options=options, **types)
        export(path, f"iceberg://house/shop.lists?{urlencode(told)}", as_of=None, name="", storage_options=options)
        rows = pl.from_arrow(catalog.load_table("shop.lists").scan().to_arrow())
        assert isinstance(rows, pl.DataFrame)
        assert rows.sort("as_of", "user_id", "rank").equals(by_polars(path, endpoint))
    assert rows["as_of"].unique().sort().to_list() == [date(2017, 12, 2), date(2017, 12, 3)]
    catalog.close()


def test_a_night_is_exported_to_a_folder_of_parquet_in_the_store(options: dict[str, str]) -> None:
    path, lists = "s3://shop/exported/table", "s3://shop/exported/lists"
    store = filesystem(path, options)[0]
    types = {"user_id": STRING, "item_id": STRING}
    for day in (1, 2, 3):
        as_of, run = date(2017, 12, day), f"run{day}"
        part = staging.stage(path, rows_of(SHARD_0, run), as_of=as_of, run_id=run, shard=0, storage_options=options)
        commit_night(path, [part], as_of=as_of, run_id=run, model_version="m1", keep_nights=3, storage_options=options, **types)
        export(path, f"parquet:{lists}", as_of=date(2017, 12, day), name="", storage_options=options)
        with store.open_input_file("shop/exported/lists/current.json") as file:
            told = json.loads(file.read())
        found = pq.read_table(f"shop/exported/lists/{told['folder']}", filesystem=store)
        assert told["as_of"] == f"2017-12-0{day}"
        assert found.num_rows == 5
    folders = [entry.base_name for entry in store.get_file_info(pafs.FileSelector("shop/exported/lists")) if not entry.is_file]
    assert sorted(name[:10] for name in folders) == ["2017-12-02", "2017-12-03"]


def test_two_runs_of_one_night_never_stand_together(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = "s3://shop/contested"
    types = {"user_id": STRING, "item_id": STRING}
    staged = {
        run: [staging.stage(path, rows_of(SHARD_0, run), as_of=NIGHT, run_id=run, shard=0, storage_options=options)]
        for run in (RUN, OTHER_RUN)
    }

    def commit(run: str) -> None:
        commit_night(path, staged[run], as_of=NIGHT, run_id=run, model_version="m1", keep_nights=3, storage_options=options, **types)

    real = table.check_table

    def overtaken(*arguments: object, **named: object) -> None:  # after the table was opened, before the commit
        monkeypatch.setattr(table, "check_table", real)
        commit(OTHER_RUN)

    monkeypatch.setattr(table, "check_table", overtaken)
    with pytest.raises(PublishError, match="published by another run during this commit"):
        commit(RUN)
    assert published_run(path, as_of=NIGHT, storage_options=options) == OTHER_RUN


def test_one_run_at_a_time_works_on_a_table_in_a_store(options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = "s3://shop/leased/table"
    store, _ = filesystem(path, options)

    def there() -> bool:
        return store.get_file_info("shop/leased/table.lease").type == pafs.FileType.File

    with lease.leased(path, options, what="the night of 2024-03-01"), lease.leased(path, options, what="within it") as ours:
        assert there()
        ours()
        said = r"^s3://shop/leased/table: one run at a time, got a second one: the night of 2024-03-01, process \d+ on .* \(since 20"
        with pytest.raises(LeaseError, match=said):
            lease._ObjectLease(path, options, "a second").take()
        assert there()
    assert not there()
    with lease.leased(path, options, what="the next"):
        assert there()
        heir = lease._ObjectLease(path, options, "the heir")
        monkeypatch.setattr(lease, "EXPIRES_SECONDS", -60.0)
        heir.take()
    assert there()  # the one before ended without having noticed, and frees nothing that is another's
    heir.free()
    assert not there()


def test_what_a_run_left_that_died_while_it_asked_for_the_time_is_cleared_away(
    options: dict[str, str], tmp_path: Path, run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = "s3://shop/asked/table", filesystem("s3://shop/asked", options)[0]
    part = staging.stage(path, rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0, storage_options=options)
    types = {"user_id": STRING, "item_id": STRING}
    commit_night(path, [part], as_of=NIGHT, run_id=RUN, model_version="m1", keep_nights=3, storage_options=options, **types)
    left, others = f"shop/asked/table.lease.{'0a' * 16}", ["shop/asked/table.lease.mine", "shop/asked/other.lease." + "0a" * 16]
    for name in (left, *others):
        with store.open_output_stream(name) as stream:
            stream.write(b"")
    told = "".join(f'{name} = "{value}"\n' for name, value in options.items())
    (tmp_path / "shop.toml").write_text(f'[shop]\nevents = "nowhere"\n[shop.storage_options]\n{told}[table]\npath = "{path}"\n')

    def there() -> set[str]:
        return {info.path for info in store.get_file_info(pafs.FileSelector("shop/asked")) if info.is_file}

    clean = ("publish", "clean", "--config", str(tmp_path / "shop.toml"))
    assert run(*clean).status == 0
    assert there() == {left, *others}  # it may be in use
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 0.0)
    ended = run(*clean)
    assert ended.status == 0, ended.err
    assert there() == set(others)


def test_a_lease_is_renewed_and_taken_over_where_it_is_not(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = "s3://shop/silent/table"
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 3.0)  # the store's times are whole seconds
    first, second = lease._ObjectLease(path, options, "the sleeper"), lease._ObjectLease(path, options, "the heir")
    first.take()
    time.sleep(4)
    first.check()
    with pytest.raises(LeaseError):
        second.take()

    def no_network(_mode: object) -> str:
        raise OSError("no network")

    put = first._put
    monkeypatch.setattr(first, "_put", no_network)
    time.sleep(4.2)
    with pytest.raises(LeaseError, match=r"this run's lease could not be renewed for [45] s. Nothing was published."):
        first.check()
    second.take()
    assert "the sleeper, process" in caplog.text
    assert "was not heard of for" in caplog.text
    monkeypatch.setattr(first, "_put", put)  # it wakes
    assert first.renewing is not None
    first.renewing.join(timeout=30)
    with pytest.raises(LeaseError, match=r"this run's lease was taken over by another run. Nothing was published."):
        first.check()
    first.free()
    second.check()  # and frees nothing that is another's
    with pytest.raises(LeaseError, match="the heir"):
        lease._ObjectLease(path, options, "a third").take()
    second.free()


def test_a_write_that_the_store_did_and_did_not_tell_of_loses_no_lease(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "s3://shop/untold/table"
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    ours = lease._ObjectLease(path, options, "a night")
    ours._put("create")  # done, and its answer lost: the next try finds it there
    ours.take()
    mark = ours._put(ours.mark)  # so too a renewal
    time.sleep(2)
    assert ours.mark != mark
    assert not ours.lost
    ours.check()
    ours.free()
    another = lease._ObjectLease(path, options, "another")
    another.take()
    another.free()  # else it is renewed, and says in other tests that it cannot be


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"what": 3}'])
def test_a_damaged_lease_is_another_run_s(options: dict[str, str], text: bytes) -> None:
    path = "s3://shop/damaged/table"
    store, _ = filesystem(path, options)
    with store.open_output_stream("shop/damaged/table.lease") as file:
        file.write(text)
    with pytest.raises(LeaseError, match="got a second one: another run works on this table"):
        lease._ObjectLease(path, options, "a night").take()


def test_a_run_whose_lease_was_taken_over_publishes_nothing(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "s3://shop/overtaken/table"
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    part = staging.stage(path, rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0, storage_options=options)
    any_lists = dict.fromkeys(gate.NAMES, "a test")
    night = release.Release(config.Table(path=path), options, NIGHT, RUN, "m1", 3, STRING, STRING, config.Gate(), any_lists)
    other = lease._ObjectLease(path, options, "the other")
    with lease.leased(path, options, what="a night") as ours:
        with monkeypatch.context() as patch:
            patch.setattr(lease, "EXPIRES_SECONDS", -60.0)
            other.take()
        renewing = lease._HELD[path].renewing
        assert renewing is not None
        renewing.join(timeout=30)
        with pytest.raises(LeaseError, match="Nothing was published"):
            release.publish_parts(night, tmp_path, [part], scored=1, seconds=0.0, still_ours=ours)
        assert published_nights(path, options) == []
    other.free()
    with lease.leased(path, options, what="a night") as ours:
        assert release.publish_parts(night, tmp_path, [part], scored=1, seconds=0.0, still_ours=ours).version is not None


def test_a_lease_that_is_given_up_by_a_dead_process_is_taken_over(
    endpoint: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "s3://shop/dead/table"
    code = (
        "import os, sys\nfrom recsys.engine.lease import leased\n"
        f"with leased({path!r}, {options!r}, what='the dead'):\n    print('works', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "works\n"
    process.kill()
    process.communicate()
    with pytest.raises(LeaseError, match=rf"the dead, process {process.pid} on "), lease.leased(path, options, what="too early"):
        pass
    monkeypatch.setattr(lease, "EXPIRES_SECONDS", 1.0)
    time.sleep(2.1)
    with lease.leased(path, options, what="the heir") as ours:
        ours()


LEASE = """
import sys, time
from pathlib import Path
from recsys.engine import lease
from recsys.errors import one_line_errors

path, options, expires, clock = {path!r}, {options!r}, {expires}, Path({clock!r})
lease.EXPIRES_SECONDS = expires
with one_line_errors(), lease.leased(path, options, what="by another clock") as ours:
    {inside}
"""


def by_clock(clock: Clock, path: str, options: dict[str, str], *, expires: float, inside: str = "ours()") -> tuple[int, str]:
    code = LEASE.format(path=path, options=options, expires=expires, clock=str(clock.file), inside=inside)
    told = os.environ | clock.environment()
    ended = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr


def test_a_lease_goes_by_no_clock_of_a_runs_machine(options: dict[str, str], tmp_path: Path) -> None:
    path = "s3://shop/clocks/table"
    ahead, behind = Clock(tmp_path / "ahead", "+10m"), Clock(tmp_path / "behind", "-10m")
    with lease.leased(path, options, what="a night"):
        status, said = by_clock(ahead, path, options, expires=300.0)
        assert status == LeaseError.status, said
        assert "got a second one: a night, process" in said
    dead = lease._ObjectLease(path, options, "the dead")
    dead._put("create")
    time.sleep(2.1)  # the store's times are whole seconds
    assert by_clock(behind, path, options, expires=1.0)[0] == 0
    store, root = filesystem(path, options)
    assert [file.path for file in store.get_file_info(pafs.FileSelector(root.rpartition("/")[0], allow_not_found=True))] == []


def test_a_clock_set_back_hides_no_lost_lease_and_one_set_forward_loses_none(options: dict[str, str], tmp_path: Path) -> None:
    path = "s3://shop/set/table"
    clock = Clock(tmp_path / "clock")
    silent = "lease.RENEW_SECONDS = 600; clock.write_text({!r}); time.sleep({}); ours()"
    status, said = by_clock(clock, path, options, expires=2.0, inside=silent.format("-1h\n", 3))
    assert (status, "could not be renewed for 3 s. Nothing was published" in said) == (LeaseError.status, True), said
    assert by_clock(clock, path, options, expires=60.0, inside=silent.format("+1h\n", 0))[0] == 0


def test_a_store_that_takes_no_lease_is_one_sentence(options: dict[str, str]) -> None:
    with (
        pytest.raises(PublishError, match=r"^s3://nowhere/t: the lease beside the table cannot be written: .* Check the store"),
        lease.leased("s3://nowhere/t", options, what="a night"),
    ):
        pass


def test_a_lost_part_is_known_by_its_shard(options: dict[str, str]) -> None:
    path = "s3://shop/lost"
    part = staging.stage(path, rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0, storage_options=options)
    assert staging.missing(path, [part], storage_options=options) == []
    store, root = filesystem(path, options)
    store.delete_file(f"{root}/{part['path']}")
    assert staging.missing(path, [part], storage_options=options) == [part]


def test_a_store_that_cannot_be_reached_is_one_sentence(options: dict[str, str]) -> None:
    with pytest.raises(
        PublishError, match=r"s3://shop/t: cannot be opened as a Delta table: [^\n\x1b]*\. Check table\.path, the store"
    ):
        published_nights("s3://shop/t", {**options, "endpoint": f"http://{HOST}:1"})
    part = staging.stage("s3://shop/reached", rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0, storage_options=options)
    with pytest.raises(PublishError, match=r"s3://shop/reached: cannot be reached: .* Check table\.path, the store"):
        staging.missing("s3://shop/reached", [part], storage_options={**options, "endpoint": f"http://{HOST}:1"})


def test_a_store_that_fails_again_and_again_is_asked_again(endpoint: str, options: dict[str, str]) -> None:
    with flaky(endpoint, tries=4) as proxy:  # Arrow's own default gives up after the third
        told = {**options, "endpoint": proxy}
        part = staging.stage("s3://shop/again", rows_of(SHARD_0), as_of=NIGHT, run_id=RUN, shard=0, storage_options=told)
        assert staging.missing("s3://shop/again", [part], storage_options=told) == []
        assert sum(made(proxy).values()) >= 8
    assert staging.missing("s3://shop/again", [part], storage_options=options) == []


def test_an_input_in_a_store_is_listed_and_read_as_one_here(options: dict[str, str]) -> None:
    store, _ = filesystem("s3://shop", options)
    for name in ("kind=view/a.PARQUET", "kind=a%2Fb/a.parquet", "_temporary/0/a.parquet", "_temporary/1/a.parquet"):
        pq.write_table(pa.table({"user_id": [1, 2]}), f"shop/events/{name}", filesystem=store)
    found = open_input("shop.events", "s3://shop/events", options)
    assert found.left_out["hidden"] == 1
    assert [read(found, file, None, ["kind"]).column(0).to_pylist() for file in found.files] == [["a/b"] * 2, ["view"] * 2]


def test_a_delta_table_in_a_store_is_read_through_its_log(options: dict[str, str]) -> None:
    uri, deltas = delta_location("s3://shop/delta", options)
    write_deltalake(uri, pa.table({"user_id": [1, 2, 3], "kind": ["a b", "a b", "c"]}), partition_by=["kind"], storage_options=deltas)
    DeltaTable(uri, storage_options=deltas).delete("user_id = 2")
    found = open_input("shop.events", uri, options)
    rows = pa.concat_tables(read(found, file, None, ["user_id", "kind"]) for file in found.files).to_pylist()
    assert sorted(tuple(row.values()) for row in rows) == [(1, "a b"), (3, "c")]


def night(folder: Path, where: str, table: str, options: dict[str, str], *, rows: int, versions: tuple[int, ...] = (1,)) -> None:
    """A shop's night, published; its inputs and its table may lie in the store."""
    values = {
        "shop": {"events": f"{where}/events", "items": f"{where}/items", "storage_options": options},
        "window": {"history_days": 60, "label_days": 7, "cutoffs": 2},
        "signals": {"ease_items": 50, "factors": 4, "als_iterations": 2, "als_l2": 10.0, "als_alpha": 2.0},
        "model": {"hidden": [16]},
        "train": {"epochs": 1, "workers": 1, "batch_size": 128},
        "table": {"path": table},
        "run": {"work": str(folder / "work"), "shards": 3},
    }
    settings = config.Settings.model_validate(values)
    state = shop_state(open_shop(settings, as_of=AS_OF), end=AS_OF)
    assert state.dataset.rows["events"] == rows
    published = score_shop(state, train_shop(state, as_of=AS_OF).bundle, as_of=AS_OF)
    assert published.rows == 600
    assert published.version in versions  # None: nothing was committed


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_a_shop_in_a_store_gets_its_night_there_also_where_the_store_fails_now_and_then(
    endpoint: str, options: dict[str, str], tmp_path: Path
) -> None:
    planted = synthetic.shop(tmp_path / "shop", users=60, items=60, days=70, seed=3, end=AS_OF, events_per_user=20)
    store, _ = filesystem("s3://shop", options)
    pafs.copy_files(str(tmp_path / "shop"), "shop/in", destination_filesystem=store)
    night(tmp_path, "s3://shop/in", "s3://shop/recommendations", options, rows=planted.rows)
    night(tmp_path, str(tmp_path / "shop"), str(tmp_path / "recommendations"), options, rows=planted.rows)
    with flaky(endpoint) as proxy:
        night(tmp_path / "other", "s3://shop/in", "s3://shop/flaky", {**options, "endpoint": proxy}, rows=planted.rows, versions=(1, 2))
        faults = made(proxy)
    print(f"faults that the night went through: {faults}")
    assert all(faults[fault] >= 5 for fault in FAULTS)
    lists = ["user_id", "rank", "item_id", "score", "reason"]  # run and model are named by where the inputs lie
    there, here = by_polars("s3://shop/recommendations", endpoint), pl.read_delta(str(tmp_path / "recommendations"))
    assert there.select(lists).equals(here.sort("as_of", "user_id", "rank").select(lists))
    assert by_polars("s3://shop/flaky", endpoint).select(lists).equals(there.select(lists))
    assert len(published_nights("s3://shop/flaky", options)) == 1  # as version 2 where Delta's own retry makes the table twice
    assert not [info for info in store.get_file_info(pafs.FileSelector("shop", recursive=True)) if info.path.endswith("flaky.lease")]


@pytest.mark.ray
@pytest.mark.usefixtures("in_process")
def test_secrets_of_a_night_are_nowhere(
    options: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Ended],
) -> None:
    import ray

    store, _ = filesystem("s3://shop", options)
    with address() as here:
        file = write_shop(tmp_path, "unused")
        pafs.copy_files(str(tmp_path / "events"), "shop/secret/events", destination_filesystem=store)
        text = file.read_text().replace('url = "unused"', 'url_env = "SHOP_WEBHOOK"')
        text = text.replace(f"{tmp_path}/events", "s3://shop/secret/events").replace(f"{tmp_path}/table", "s3://shop/secret/table")
        stored = "\n".join(f'{name} = "{value}"' for name, value in options.items())
        file.write_text(f"{text}[shop.storage_options]\n{stored}\n")
        monkeypatch.setenv("SHOP_WEBHOOK", here.url)
        ended = run("nightly", "--config", str(file), "--as-of", str(DAY))
        assert ended.status == 0, ended.err
        assert [message["state"] for message in here.messages] == ["published"]
        stopped = run("nightly", "--config", str(file), "--as-of", str(DAY), "--force", "--override", "rows", "--why", "a test")
        assert stopped.status == 0
        shown = [ended.out, ended.err, stopped.out, stopped.err, json.dumps(here.messages), run("runs", "--config", str(file)).out]
    session = Path(ray.nodes()[0]["RayletSocketName"]).parents[1]
    assert (session / "logs").is_dir()
    files = [path for folder in (tmp_path, session / "logs") for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for secret in (SECRET_KEY, SECRET):
        assert not [text for text in shown if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        for info in store.get_file_info(pafs.FileSelector("shop/secret", recursive=True)):
            assert not info.is_file or secret.encode() not in store.open_input_file(info.path).read()
