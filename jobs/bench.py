"""Speed, as ratios taken in one run on one machine: each line is ours against a named alternative on the same input."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from jobs import _bench_pairs, _bench_training, job, main
from recsys import bundle, config
from recsys.candidates import best
from recsys.runtime import ENVIRONMENT, console
from recsys.score import Scorer, probabilities
from recsys.spec import FeatureSpec
from recsys.work import write_atomically

DENSE, CODES, VOCABULARY, SCORED, ENCODED = 80, 6, 1000, 100_000, 500_000


def bench(
    rows: Annotated[int, typer.Option(min=100_000, help="Feature rows of the pairs door's runs.")] = 2_000_000,
    files: Annotated[int, typer.Option(min=2, help="Parquet files that they lie in.")] = 32,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of the scoring and choosing figures, after one that is not.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Where the rows are generated; absent, the system's temporary folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Speed, as ratios taken in one run on one machine: each line is ours against a named alternative on the same input."""
    with job():
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            training = _bench_training.compare(Path(place) / "training")
            first_step = _bench_training.first_step(Path(place) / "first_step")
            pairs = _bench_pairs.compare(Path(place) / "rows", rows=rows, files=files)
            pairs += _bench_pairs.compare_encoding(Path(place) / "encoding", rows=ENCODED)
            pairs += _bench_pairs.compare_joined(Path(place) / "joined", rows=rows // 4, files=files)
        results = [*_scoring(SCORED, runs), _choosing(runs), *training, *pairs]
        title = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; medians where there are several runs"
        table = Table(title=title)
        for column in ("what", "ours", "alternative", "ratio", "runs"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for result in results:
            ratios = [f"{ratio:.2f}" for ratio in result.get("ratios", ())]
            cells = [f"{result['ours']:,.0f}", f"{result['alternative']:,.0f}", f"{result['ratio']:.2f}"]
            table.add_row(result["what"], *cells, ", ".join(ratios) or "1")
        console.print(table)
        run = pairs[0]
        console.print(
            f"jobs.score_pairs: first row scored {run['first_row_seconds']:.1f} s after the command with a Ray of its own, "
            f"{run['running_first_row_seconds']:.1f} s on a running one; "
            f"at most {run['driver_mib']:,.0f} MiB in the driver and {run['actor_mib']:,.0f} MiB in an actor."
        )
        console.print(f"jobs.train: first step made {first_step:.1f} s after the command.")
        if out is not None:
            figures = {"cpus": os.cpu_count(), "runs": runs, "first_step_seconds": first_step, "results": results}
            text = json.dumps(figures, indent=1) + "\n"
            write_atomically(out, lambda file: file.write_text(text))


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
    return _bench_pairs.paired(what, speeds)


def _scoring(rows: int, runs: int) -> list[dict[str, Any]]:
    """Rows scored per second: our Scorer on one thread against Keras on all of them."""
    import keras

    from recsys.model import build

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


def _choosing(runs: int) -> dict[str, Any]:
    """Users per second whose best 150 of 60,000 items are found: by bound against a partition of every row."""
    scores = np.random.default_rng(0).normal(size=(64, 60_000)).astype(np.float32)
    return _paired(
        "users/s, best 150 of 60,000 items: bound by groups | numpy argpartition",
        lambda: best(scores, 150),
        lambda: np.argpartition(-scores, 150, axis=1),
        work=len(scores),
        runs=runs,
    )


if __name__ == "__main__":
    main(bench)
