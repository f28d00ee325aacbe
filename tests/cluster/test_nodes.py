"""The same night in one process and on four nodes: Ray's own many nodes on one machine, each a raylet with processes of its own."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recsys.config import Settings
from recsys.data import synthetic
from recsys.data.shop import open_shop
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing.table import read_night
from recsys.ranking import bundle
from tests.small import small

ROOT = Path(__file__).parents[2]
NIGHT = """
import json, os, sys
from datetime import date
from pathlib import Path

from ray.cluster_utils import Cluster

from recsys.config import Settings
from recsys.data.shop import open_shop
from recsys.engine.connect import ENVIRONMENT, connect
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import shop_state
from recsys.ranking import bundle

values, day, folder = json.loads(sys.argv[1]), date.fromisoformat(sys.argv[2]), sys.argv[3]
os.environ.update(ENVIRONMENT)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(3):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
settings = Settings.model_validate(values)
with connect():
    score_shop(shop_state(open_shop(settings, as_of=day), end=day), bundle.load(folder), as_of=day)
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("in_process")
def test_four_nodes_make_the_table_of_one_process_and_share_the_work(tmp_path: Path) -> None:
    day = date(2024, 6, 6)
    planted = synthetic.shop(tmp_path / "shop", users=150, items=80, days=98, seed=8, end=day, events_per_user=30)

    def settings(name: str) -> Settings:
        table = {"path": str(tmp_path / f"table-{name}")}
        return small(planted, tmp_path / f"work-{name}", run={"shards": 16}, table=table)

    def rows(name: str) -> list[dict[str, Any]]:
        return read_night(str(tmp_path / f"table-{name}"), as_of=day).drop_columns(["run_id"]).to_pylist()

    state = shop_state(open_shop(settings("one"), as_of=day), end=day)
    made = bundle.copy(train_shop(state, as_of=day).bundle, tmp_path / "bundle")
    score_shop(state, made, as_of=day)

    values = settings("four").model_dump(mode="json", exclude_unset=True)
    command = [sys.executable, "-c", NIGHT, json.dumps(values), day.isoformat(), str(tmp_path / "bundle")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=560, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert rows("four") == rows("one")
    assert len(rows("one")) == 150 * 10
    receipts = [json.loads(path.read_text()) for path in (tmp_path / "work-four").glob("*/receipts/*.json")]
    nodes = Counter(receipt["node"] for receipt in receipts if receipt.get("node"))
    assert len(nodes) == 4  # an actor for each CPU, so one on each node; in some short stage one may come too late for a unit
    assert max(nodes.values()) <= sum(nodes.values()) * 3 / 4  # those whose actors start late on a busy machine do less
