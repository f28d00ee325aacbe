"""Speed, as ratios taken in one run on one machine: each line is ours against a named alternative on the same input."""

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from jobs import check_files, job, main
from jobs.bench import road, sample
from jobs.bench.pairs import compare_encoding, compare_joined, compare_pairs, paired
from jobs.bench.training import BATCHES, compare_training, first_step
from recsys import config
from recsys.config.paths import local_path
from recsys.engine.connect import ENVIRONMENT
from recsys.engine.progress import console
from recsys.errors import ConfigError
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle
from recsys.ranking.scorer import Scorer, probabilities
from recsys.storage import check_folders, write_atomically

PARTS = ("scoring", "training", "pairs", "road", "sample")
DENSE, CODES, VOCABULARY, SCORED, ENCODED = 80, 6, 1000, 100_000, 500_000


def bench(
    rows: Annotated[int, typer.Option(min=100_000, help="Feature rows of the pairs door's runs.")] = 2_000_000,
    files: Annotated[int, typer.Option(min=2, help="Parquet files that they lie in.")] = 32,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of the scoring figures, after one that is not.")] = 5,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the rows are generated; absent, the system's temporary folder.", parser=local_path, metavar="PATH"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.", parser=local_path, metavar="PATH")] = None,
    full: Annotated[bool, typer.Option("--full", help="road and sample at their full sizes: hours.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}; may come several times; absent, all.")] = None,
) -> None:
    """Speed, as ratios taken in one run on one machine: each line is ours against a named alternative on the same input."""
    with job():
        if unknown := sorted(set(part or PARTS) - set(PARTS)):
            raise ConfigError(f"--part {unknown[0]}: must be one of {', '.join(PARTS)}. Choose among these.")
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        check_files(out=out)
        if folder is not None:
            check_folders(**{"--folder": str(folder)})
            folder.mkdir(parents=True, exist_ok=True)
        results: list[dict[str, Any]] = []
        roads: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        said: list[str] = []
        figures: dict[str, Any] = {"cpus": os.cpu_count(), "runs": runs}
        with tempfile.TemporaryDirectory(dir=folder) as place:
            if "scoring" in (part or PARTS):
                results += _scoring(SCORED, runs)
            if "training" in (part or PARTS):
                for batch in BATCHES:
                    results += compare_training(Path(place) / f"training-{batch}", batch=batch)
                figures["first_step_seconds"] = waited = first_step(Path(place) / "first_step")
                said.append(f"jobs.train: first step made {waited:.1f} s after the command.")
            if "pairs" in (part or PARTS):
                pairs = compare_pairs(Path(place) / "rows", rows=rows, files=files)
                pairs += compare_encoding(Path(place) / "encoding", rows=ENCODED)
                pairs += compare_joined(Path(place) / "joined", rows=rows // 4, files=files)
                results += pairs
                run = pairs[0]
                said.append(
                    f"jobs.score_pairs: first row scored {run['first_row_seconds']:.1f} s after the command with a Ray of its own, "
                    f"{run['running_first_row_seconds']:.1f} s on a running one; "
                    f"at most {run['driver_mib']:,.0f} MiB in the driver and {run['actor_mib']:,.0f} MiB in an actor."
                )
            if "road" in (part or PARTS):
                for number, (users, items) in enumerate(road.FULL if full else road.SMALL):
                    roads.append(road.road(Path(place) / f"road-{number}", users=users, items=items))
                    shutil.rmtree(Path(place) / f"road-{number}")
            if "sample" in (part or PARTS):
                users, items = sample.FULL if full else sample.SMALL
                samples = sample.sample(Path(place) / "sample", users=users, items=items)
        if results:
            _show(results, said)
        if roads:
            console.print(road.show(roads))
        if samples:
            console.print(sample.show(samples))
        if out is not None:
            text = json.dumps({**figures, "results": results, "road": roads, "sample": samples}, indent=1) + "\n"
            write_atomically(out, lambda file: file.write_text(text, encoding="utf-8"))


def _show(results: Sequence[dict[str, Any]], said: Sequence[str]) -> None:
    title = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; medians where there are several runs"
    table = Table(title=title)
    for column in ("what", "ours", "alternative", "ratio", "runs"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for result in results:
        ratios = [f"{ratio:.2f}" for ratio in result.get("ratios", ())]
        cells = [f"{result['ours']:,.0f}", f"{result['alternative']:,.0f}", f"{result['ratio']:.2f}"]
        table.add_row(result["what"], *cells, ", ".join(ratios) or "1")
    console.print(table)
    for sentence in said:
        console.print(sentence)


def _paired(what: str, ours: Callable[[], Any], alternative: Callable[[], Any], *, work: int, runs: int) -> dict[str, Any]:
    """Work per second of both, run in turn, and the median of the ratios pair by pair."""
    speeds: list[tuple[float, float]] = []
    for run in range(runs + 1):
        pair: list[float] = []
        for function in (ours, alternative):
            start = time.perf_counter()
            function()
            pair.append(work / (time.perf_counter() - start))
        if run:  # the first warms up
            speeds.append((pair[0], pair[1]))
    return paired(what, speeds)


def _scoring(rows: int, runs: int) -> list[dict[str, Any]]:
    """Rows scored per second: our Scorer on one thread against Keras on all of them."""
    import keras

    from recsys.ranking.network import build

    rng = np.random.default_rng(0)
    names = tuple(f"code_{number}" for number in range(CODES))
    spec = FeatureSpec(
        dense=tuple(f"dense_{number}" for number in range(DENSE)),
        mean=(0.0,) * DENSE,
        scale=(1.0,) * DENSE,
        codes=names,
        vocabularies={name: tuple(str(value) for value in range(VOCABULARY)) for name in names},
    )
    dense = rng.normal(size=(rows, DENSE)).astype(np.float32)
    codes = rng.integers(0, VOCABULARY + 1, (rows, CODES), dtype=np.int32)
    model: keras.Model = build(spec, config.Model(), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        scorer = Scorer(bundle.save(Path(folder) / "bundle", model, spec, settings={}, window={}, metrics={}))
        return [
            _paired(
                f"rows/s scored, 512-256-128: ONNX Runtime, 1 thread | Keras predict, batch {size}, all threads",
                lambda: probabilities(scorer(dense, codes)),
                lambda size=size: model.predict([spec.normalise(dense), codes], batch_size=size, verbose=0),
                work=rows,
                runs=runs,
            )
            for size in (1024, 8192)
        ]


if __name__ == "__main__":
    main(bench)
