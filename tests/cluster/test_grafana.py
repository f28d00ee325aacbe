"""The dashboard's file: it asks for what the runs tell, all of it and nothing else."""

import json
import re
from pathlib import Path

from recsys.engine.metrics import GAUGES, PREFIX

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana.json").read_text(encoding="utf-8"))


def test_the_dashboard_shows_every_figure_and_knows_its_tags() -> None:
    asked: set[str] = set()
    for panel in DASHBOARD["panels"]:
        (target,) = panel["targets"]
        names = re.findall(rf"ray_{PREFIX}(\w+)", target["expr"])
        tags = {tag for name in names for tag in GAUGES[name][1]}
        assert names
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) - {"__name__"} == tags, panel["title"]
        asked.update(names)
    assert asked == GAUGES.keys()


def test_panels_have_numbers_and_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(set(places)) == len(places)
