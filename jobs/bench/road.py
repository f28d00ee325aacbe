"""The shop door's road, candidates to rows of the table, on planted shops of growing size: users a second on one core, and memory; part
of jobs.bench."""

import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from implicit.als import AlternatingLeastSquares
from rich.table import Table

from jobs.bench.rows import END, planted_shop
from recsys import config
from recsys.data.shop import open_shop
from recsys.engine.connect import ENVIRONMENT, connect
from recsys.features.candidate_features import Featurizer, embedded
from recsys.features.spec import FeatureSpec
from recsys.pipelines.signals import ShopState, fit_signals, shop_state
from recsys.ranking import bundle
from recsys.ranking.recommend import ScoredUsers, listed
from recsys.ranking.scorer import Scorer
from recsys.ranking.table_rows import Stamp, recommendations
from recsys.retrieval import signals
from recsys.retrieval.candidates import propose, user_batches

SMALL = ((2_000, 10_000),)  # users and items
FULL = tuple((10_000, items) for items in (10_000, 100_000, 1_000_000)) + tuple((users, 100_000) for users in (100_000, 1_000_000))
SAMPLE = 1_024  # users whose lists are made and timed, after as many that are not
MIB = 2**20
STEPS = ("candidates", "features", "model", "lists")
PEER = "implicit"  # its recommend: k of all items by ALS, no features, no rules


def road(folder: Path, *, users: int, items: int) -> dict[str, Any]:
    """What one size costs: seconds of ingest and of the signals of one cut-off, and of the road the figures of `measure`."""
    values, events = planted_shop(folder, users=users, items=items)
    settings = config.Settings.model_validate(values)
    with connect():
        begun = time.monotonic()
        state = shop_state(open_shop(settings, as_of=END), end=END)
        ingested = time.monotonic()
        (path,) = fit_signals(state, [END])
        fitted = time.monotonic()
    driver = _peak()
    _bundle(state, path, folder / "bundle")
    figures = json.loads(_child(folder, values, path))
    size = sum(path.with_suffix(ending).stat().st_size for ending in (".npz", ".arrow")) / MIB
    seconds = {"ingest_seconds": ingested - begun, "signals_seconds": fitted - ingested}
    return {"users": users, "items": items, "events": events, **seconds, "signals_mib": size, "driver_mib": driver, **figures}


def _child(folder: Path, values: dict[str, Any], path: Path) -> str:
    """What `measure` prints in a process of its own on one core."""
    environment = {**os.environ, **ENVIRONMENT, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    (folder / "settings.json").write_text(json.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", "jobs.bench.road", str(folder), str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def measure(folder: Path, path: Path) -> dict[str, Any]:
    """Of SAMPLE users on this core: users a second, milliseconds a user by step, pairs a user, and the process's peak of memory."""
    settings = config.Settings.model_validate(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    with connect():
        state = shop_state(open_shop(settings, as_of=END), end=END)
    found = signals.load(path, state.dataset.catalog())
    featurizer = Featurizer(settings, state.dataset.catalog(), found, state.vocabularies)
    scorer = Scorer(bundle.load(folder / "bundle"))
    stamp = Stamp(END, "model", "run")
    peer = AlternatingLeastSquares(factors=found.factors.shape[1], num_threads=1)
    peer.item_factors = found.factors
    spent: defaultdict[str, float] = defaultdict(float)
    pairs = done = 0

    @contextmanager
    def step(name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        spent[name] += 1000 * (time.perf_counter() - begun)

    for _ in range(2):  # the first compiles and fills caches
        spent.clear()
        pairs = done = 0
        for shard in state.dataset.shards:
            histories = state.dataset.histories(shard)
            for start, stop in user_batches(min(len(histories), SAMPLE - done)):
                batch = histories.select(start, stop)
                with step(STEPS[0]):
                    users = featurizer.users(batch)
                    candidates = propose(users, featurizer.sources, per_user=settings.candidates.per_user)
                with step(STEPS[1]):
                    inputs = featurizer.inputs(candidates, users)
                with step(STEPS[2]):
                    raw = scorer(inputs.dense, inputs.codes)
                with step(STEPS[3]):
                    scored = ScoredUsers(batch, users, candidates, raw, np.diff(users.matrix.indptr) > 0)
                    recommendations(scored, listed(scored, settings.rank).ranked, stamp, chance=lambda raw, _: raw)
                with step(PEER):
                    peer.user_factors = users.vectors
                    peer.recommend(np.arange(len(users)), users.matrix, N=settings.rank.k, filter_already_liked_items=False)
                pairs += len(candidates)
                done += stop - start
            if done >= SAMPLE:
                break
        assert done, "a planted shop has users"
    each = {name: milliseconds / done for name, milliseconds in spent.items()}
    alternative = each.pop(PEER)
    return {
        "users_per_second": 1000 / sum(each.values()),
        "peer_users_per_second": 1000 / alternative,
        "milliseconds": each,
        "pairs": pairs / done,
        "active": len(found.items),
        "process_mib": _peak(),
    }


def _peak() -> float:
    """MiB of memory that this process took at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _bundle(state: ShopState, path: Path, folder: Path) -> None:
    """The original network, 512-256-128, with random weights: what it says does not change what it costs."""
    from recsys.ranking.network import build

    catalog = state.dataset.catalog()
    featurizer = Featurizer(state.settings, catalog, signals.load(path, catalog), state.vocabularies)
    _, _, _, inputs = next(iter(featurizer(state.dataset.histories(state.dataset.shards[0]).select(0, 1))))
    names = embedded(state.settings.features, state.vocabularies)
    width = len(inputs.names)
    spec = FeatureSpec(
        dense=inputs.names,
        mean=(0.0,) * width,
        scale=(1.0,) * width,
        codes=names,
        vocabularies={name: state.vocabularies[name] for name in names},
    )
    bundle.save(folder, build(spec, config.Model(), seed=0), spec, settings={}, window={}, metrics={})


def show(figures: Sequence[dict[str, Any]]) -> Table:
    """A line for each size."""
    table = Table(title="The shop door's road on one core, and what it takes; milliseconds a user, MiB", title_justify="left")
    columns = ("users", "items", "events", "ingest s", "signals s", "users/s", *STEPS, "rest/model")
    for column in (*columns, "implicit users/s", "ratio", "pairs", "signals MiB", "driver MiB", "process MiB"):
        table.add_column(column, justify="right")
    for one in figures:
        steps = one["milliseconds"]
        rest = sum(steps.values()) - steps["model"]
        cells = [f"{one[name]:,}" for name in ("users", "items", "events")]
        cells += [f"{one[name]:,.0f}" for name in ("ingest_seconds", "signals_seconds", "users_per_second")]
        cells += [f"{value:.2f}" for value in (*steps.values(), rest / steps["model"])]
        cells += [f"{one['peer_users_per_second']:,.0f}", f"{one['users_per_second'] / one['peer_users_per_second']:.2f}"]
        cells += [f"{one[name]:,.0f}" for name in ("pairs", "signals_mib", "driver_mib", "process_mib")]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
