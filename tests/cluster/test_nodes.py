"""The same night on one node and on four: Ray's own many nodes on one machine, each a raylet with processes of its own."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recsys.data import synthetic
from tests.small import small

ROOT = Path(__file__).parents[2]
NIGHT = """
import json, os, sys
from collections import Counter
from datetime import date
from pathlib import Path

from ray.cluster_utils import Cluster

from recsys.config import Settings
from recsys.data.shop import open_shop
from recsys.engine.connect import ENVIRONMENT, connect
from recsys.pipelines.score import score_shop
from recsys.pipelines.signals import shop_state
from recsys.pipelines.train import train_shop
from recsys.publishing.table import read_night
from recsys.ranking import bundle

nodes, values, day, folder = int(sys.argv[1]), json.loads(sys.argv[2]), date.fromisoformat(sys.argv[3]), sys.argv[4]
os.environ.update(ENVIRONMENT)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4 // nodes, "include_dashboard": False})
for _ in range(nodes - 1):
    cluster.add_node(num_cpus=4 // nodes)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
settings = Settings.model_validate(values)
with connect():
    state = shop_state(open_shop(settings, as_of=day), end=day)
    made = bundle.load(folder) if Path(folder).exists() else bundle.copy(train_shop(state, as_of=day).bundle, Path(folder))
    score_shop(state, made or bundle.load(folder), as_of=day)
cluster.shutdown()
receipts = [json.loads(path.read_text()) for path in Path(settings.run.work).glob("*/receipts/*.json")]
rows = read_night(settings.table.path, as_of=day).drop_columns(["run_id"])
print(json.dumps({"nodes": Counter(one["node"] for one in receipts if one.get("node")), "rows": rows.to_pylist()}, default=str))
"""


@pytest.mark.ray
def test_one_node_and_four_make_the_same_table_and_share_the_work(tmp_path: Path) -> None:
    day = date(2024, 6, 6)
    planted = synthetic.shop(tmp_path / "shop", users=150, items=80, days=98, seed=8, end=day, events_per_user=30)

    def night(nodes: int) -> dict[str, Any]:
        table = {"path": str(tmp_path / f"table-{nodes}")}
        settings = small(planted, tmp_path / f"work-{nodes}", run={"shards": 16}, table=table)
        values = settings.model_dump(mode="json", exclude_unset=True)
        command = [sys.executable, "-c", NIGHT, str(nodes), json.dumps(values), day.isoformat(), str(tmp_path / "bundle")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300, check=False)
        assert run.returncode == 0, run.stderr[-3000:]
        return json.loads(run.stdout.splitlines()[-1])

    one, four = night(1), night(4)
    assert four["rows"] == one["rows"]
    assert len(one["rows"]) == 150 * 10
    assert len(one["nodes"]) == 1
    assert len(four["nodes"]) == 4  # an actor for each CPU, so one on each node; in some short stage one may come too late for a unit
    assert max(four["nodes"].values()) <= sum(four["nodes"].values()) * 3 / 4  # those whose actors start late on a busy machine do less
