"""The pairs door's speed beside that of bare processes and of the pattern that most people write; part of jobs.bench."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench import alternatives
from jobs.bench.alternatives import BATCH, IDS
from jobs.bench.rows import ITEMS, feature_rows
from recsys import config
from recsys.engine.progress import log
from recsys.features.encoding import encoder
from recsys.features.feature_table import FeatureTable, open_feature_table
from recsys.features.fitting import Moments, count_words, fit_columns
from recsys.features.side_tables import read_batches
from recsys.features.spec import CLIP, ColumnSpec, FeatureSpec
from recsys.ranking import bundle
from recsys.ranking.bundle import Bundle
from recsys.ranking.scorer import Scorer

COMMON_FILES = 2  # of it: it would take an hour for all
T = TypeVar("T")
U = TypeVar("U")

LOOK_SECONDS = 1.0  # between two looks at memory; five a second took a twentieth of the cores
AUTHENTICATED = {"RAY_AUTH_MODE": "token"}  # who starts a Ray has it by default, who joins one says so
AS_OF = "2026-01-01"
PAIRS = 3  # runs of each kind, in turn: a machine moves by a tenth from one to the next


def paired(what: str, speeds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """A line of the table: medians of ours and the alternative's speeds, which were taken in turn, and of the ratios pair by pair."""
    return {
        "what": what,
        "ours": statistics.median(ours for ours, _ in speeds),
        "alternative": statistics.median(other for _, other in speeds),
        "ratio": statistics.median(ours / other for ours, other in speeds),
        "ratios": [round(ours / other, 3) for ours, other in speeds],
    }


def in_turn(ours: Callable[[], T], other: Callable[[], U]) -> Iterator[tuple[T, U]]:
    """What a few runs of both return, in pairs; who comes first changes, and no run has the disk write what the one before left."""
    for turn in range(PAIRS):
        made: dict[bool, Any] = {}
        for mine in (True, False) if turn % 2 == 0 else (False, True):
            os.sync()
            made[mine] = ours() if mine else other()
        yield made[True], made[False]


def compare_pairs(folder: Path, *, rows: int, files: int) -> list[dict[str, Any]]:
    """Whole runs on the same generated rows of 64 float32 columns: the ceiling, `jobs.score_pairs`, and the common pattern."""
    paths = list(feature_rows(folder / "rows", rows=rows, files=files, numeric=64))
    names = tuple(f"f{column:02d}" for column in range(64))
    settings, made = _bundle(folder, names, {"path": str(folder / "rows"), "numeric": list(names)})
    log.info("bench: %s rows in %d files", f"{rows:,}", files)
    assert alternatives.CLIP == CLIP, "the ceiling must do the same work"
    runs = list(in_turn(lambda: _scored_anew(settings, made), lambda: _ceiling(made, paths, folder / "bare")))
    what = f"rows/s, {rows:,} rows of 64 columns, {{}}: jobs.score_pairs | bare processes with pyarrow and ONNX Runtime, one a core"
    figures = [
        paired(what.format(name), [(rows / ours[key], rows / ceiling[key]) for ours, ceiling in runs])
        for name, key in (("whole runs", "seconds"), ("steady state", "steady_seconds"))
    ]
    figures[0] |= {name: max(ours[name] for ours, _ in runs) for name in ("driver_mib", "actor_mib")}
    figures[0]["first_row_seconds"] = statistics.median(ours["first_row_seconds"] for ours, _ in runs)
    (folder / "few").mkdir()
    for path in paths[:COMMON_FILES]:
        (folder / "few" / path.name).symlink_to(path)
    few = sum(pq.read_metadata(path).num_rows for path in paths[:COMMON_FILES])
    steady, pattern = figures[1]["ours"], f"read_parquet -> map_batches(Keras predict, batch {BATCH})"
    for name, end in (("common", "write_parquet"), ("grouped", f"groupby user -> top {alternatives.K} -> write_parquet")):
        other = few / _alone(name, made.folder / bundle.KERAS, folder / "few", folder / name)
        what = f"rows/s, steady state: jobs.score_pairs | {pattern} -> {end}"
        figures.append({"what": what, "ours": steady, "alternative": other, "ratio": steady / other})
    few_settings, few_made = _bundle(folder / "running", names, {"path": str(folder / "few"), "numeric": list(names)})
    with _running_ray() as address:
        figures[0]["running_first_row_seconds"] = _score(few_settings, few_made, address=address)["first_row_seconds"]
    return figures


def _scored_anew(settings: Path, made: Bundle) -> dict[str, float]:
    """`_score` of a table that is not there yet, by a command that nothing was done for."""
    told = config.load_pairs(settings)
    for folder in (told.run.work, told.table.path):
        shutil.rmtree(folder, ignore_errors=True)
    return _score(settings, made)


def compare_joined(folder: Path, *, rows: int, files: int) -> list[dict[str, Any]]:
    """Whole runs on the same pairs: ids beside tables of users and items, against rows with all features written out."""
    rng = np.random.default_rng(0)
    names = [f"f{column:02d}" for column in range(64)]
    wide = list(feature_rows(folder / "ids", rows=rows, files=files, numeric=0))
    tables: dict[str, pa.Table] = {}
    for key, columns, count in (("user_id", names[:32], rows // 100 + 1), ("item_id", names[32:], ITEMS)):
        features = {name: rng.standard_normal(count, np.float32) for name in columns}
        tables[key] = pa.table({key: np.arange(count), **features})
        pq.write_table(tables[key], folder / f"{key}.parquet")
    (folder / "wide").mkdir()
    for path in wide:
        ids = pq.read_table(path)
        side_tables = [tables[key].drop_columns([key]).take(ids[key]) for key in tables]
        whole = pa.table(
            {name: column for table in (ids, *side_tables) for name, column in zip(table.column_names, table.columns, strict=True)}
        )
        pq.write_table(whole, folder / "wide" / path.name, compression="zstd", row_group_size=65_536)
    parts = {"users": str(folder / "user_id.parquet"), "items": str(folder / "item_id.parquet")}
    split, made = _bundle(folder / "split", names, {"path": str(folder / "ids"), "numeric": names, **parts}, split=32)
    settings, whole_made = _bundle(folder / "whole", names, {"path": str(folder / "wide"), "numeric": names})
    runs = list(in_turn(lambda: _scored_anew(split, made), lambda: _scored_anew(settings, whole_made)))
    what = f"rows/s, {rows:,} rows of 32 + 32 columns, {{}}: ids joined to tables of users and items | the same written out"
    return [
        paired(what.format(name), [(rows / ours[key], rows / other[key]) for ours, other in runs])
        for name, key in (("whole runs", "seconds"), ("steady state", "steady_seconds"))
    ]


def compare_encoding(folder: Path, *, rows: int) -> list[dict[str, Any]]:
    """On one core: rows encoded against rows scored, and 64 single columns read and encoded against one list of 64."""
    pa.set_cpu_count(1)
    figures: list[dict[str, Any]] = []
    names = [f"f{column:02d}" for column in range(64)]
    for words in (0, 10):
        place = folder / f"words-{words}"
        list(feature_rows(place, rows=rows, files=1, numeric=64, categorical=words))
        pairs = {"path": str(place), "numeric": names, "categorical": [f"c{column:02d}" for column in range(words)]}
        opened, made = _fitted(folder / f"fitted-{words}", pairs)
        read, encoded, scored = _seconds(opened, made)
        what = f"rows/s on one core, 64 numbers{f' and {words} words' if words else ''}: encoded | scored"
        figures.append({"what": what, "ours": rows / encoded, "alternative": rows / scored, "ratio": scored / encoded})
        if not words:
            table = pq.read_table(place)
            matrix = np.stack([table[name].to_numpy() for name in names], axis=1)
            packed = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 64)
            (folder / "packed").mkdir()
            whole = table.select(IDS).append_column("packed", packed)
            pq.write_table(whole, folder / "packed" / "rows.parquet", compression="zstd", row_group_size=65_536)
            other = sum(_seconds(*_fitted(folder / "fitted-packed", {"path": str(folder / "packed"), "numeric": ["packed"]}))[:2])
            what = "rows/s on one core, read and encoded: 64 float32 columns | one fixed-size list of 64"
            ours = read + encoded
            figures.append({"what": what, "ours": rows / ours, "alternative": rows / other, "ratio": other / ours})
    return figures


def _fitted(folder: Path, pairs: dict[str, Any]) -> tuple[FeatureTable, Bundle]:
    """Opened rows, and the original network for their columns, with the vocabularies of all rows."""
    from recsys.ranking.network import build

    settings = config.PairsSettings.model_validate({"pairs": pairs})
    opened = open_feature_table(settings, "score")
    counts: dict[str, Counter[str]] = {name: Counter() for name in settings.pairs.categorical}
    for batch in read_batches(opened.source, list(counts)):
        count_words(opened.columns, batch, counts)
    width = sum(len(column.dense()) for column in opened.columns)
    spec = fit_columns(settings.pairs, opened.columns, Moments.of([], width), counts)
    made = bundle.save(folder, build(spec, settings.model, seed=0), spec, settings={}, window={}, metrics={})
    return opened, made


def _seconds(rows: FeatureTable, made: Bundle) -> tuple[float, float, float]:
    """Processor seconds of reading, encoding and scoring all rows: medians of a few passes."""
    read, encoded, scored = (statistics.median(seconds) for seconds in zip(*(_pass(rows, made) for _ in range(PAIRS)), strict=True))
    return read, encoded, scored


def _pass(rows: FeatureTable, made: Bundle) -> tuple[float, float, float]:
    """Of one pass."""
    encode, score = encoder(made.spec, "rows"), Scorer(made)
    seconds = [0.0, 0.0, 0.0]
    read = read_batches(rows.source, rows.columns_read)
    while True:
        times = [time.process_time()]
        batch = next(read, None)
        times.append(time.process_time())
        seconds[0] += times[1] - times[0]
        if batch is None:
            return seconds[0], seconds[1], seconds[2]
        inputs = encode(batch)
        times.append(time.process_time())
        score(inputs.dense, inputs.codes)
        times.append(time.process_time())
        seconds[1] += times[2] - times[1]
        seconds[2] += times[3] - times[2]


def _bundle(folder: Path, names: Sequence[str], pairs: dict[str, Any], *, split: int | None = None) -> tuple[Path, Bundle]:
    """Settings and the original network with weights as they start; the columns from `split` on are the items', those before the
    users'."""
    from recsys.ranking.network import build

    values = {"pairs": pairs, "table": {"path": str(folder / "table")}, "run": {"work": str(folder / "work")}}
    settings = config.PairsSettings.model_validate(values)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        line for section, keys in values.items() for line in (f"[{section}]", *(f"{key} = {json.dumps(keys[key])}" for key in keys))
    ]
    (folder / "pairs.toml").write_text("\n".join(lines), encoding="utf-8")
    columns = tuple(
        ColumnSpec(name, "number", table="rows" if split is None else "users" if place < split else "items")
        for place, name in enumerate(names)
    )
    zeros, ones = (0.0,) * len(names), (1.0,) * len(names)
    spec = FeatureSpec(tuple(names), zeros, ones, (), {}, zeros, (CLIP,) * len(names), columns)
    made = bundle.save(
        folder / "bundle", build(spec, settings.model, seed=0), spec, settings=settings.model_dump(mode="json"), window={}, metrics={}
    )
    return folder / "pairs.toml", made


@contextmanager
def _running_ray() -> Iterator[str]:
    """The address of a Ray that stands while the block runs, as on a cluster."""
    command, env = [sys.executable, alternatives.__file__, "ray"], {**os.environ, **AUTHENTICATED}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()  # closes its input, at which it ends


def _score(settings: Path, made: Bundle, *, address: str | None = None) -> dict[str, float]:
    """One `jobs.score_pairs` from the command on: seconds in all, to the first scored row, of scoring alone; and the most memory, MiB,
    of the driver and of an actor, where the actors are the driver's.

    Args:
        address: of a running Ray; absent, the command starts its own.
    """
    command = [sys.executable, "-m", "jobs.score_pairs", "--config", str(settings), "--bundle", str(made.folder), "--as-of", AS_OF]
    started = time.time()
    env = {**os.environ, **AUTHENTICATED, "RAY_ADDRESS": address} if address else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    peaks = {"driver_mib": 0.0, "actor_mib": 0.0}
    while process.poll() is None:
        for name, pids in (("driver_mib", [process.pid]), ("actor_mib", _actors(process.pid))):
            peaks[name] = max([peaks[name], *(_peak_mib(pid) for pid in pids)])
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
    seconds = time.time() - started
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    work = Path(config.load_pairs(settings).run.work)
    receipts = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("score_pairs-*/receipts/*.json")]
    begun = [receipt["begun"] for receipt in receipts]
    first = min(receipt["first_scored"] for receipt in receipts)
    ended = [receipt["begun"] + receipt["seconds"] for receipt in receipts]
    return {"seconds": seconds, "first_row_seconds": first - started, "steady_seconds": max(ended) - min(begun), **peaks}


def _actors(driver: int) -> list[int]:
    """Scoring actors among the processes that a driver started."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            parents = _parents(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith(b"ray::MapWorker") and driver in parents:
            found.append(int(folder.name))
    return found


def _parents(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
        found.append(pid)
    return found


def _peak_mib(pid: int) -> float:
    """The most memory a process had so far; 0 where it has ended. Pages of mapped files count, as if they were its own."""
    try:
        text = (Path("/proc") / str(pid) / "status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


# The alternatives -----------------------------------------------------------------------------------


def _ceiling(made: Bundle, files: Sequence[Path], out: Path) -> dict[str, float]:
    """Seconds of as many bare processes as there are cores, each with its share of the files: in all, and without their start."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    cores = os.cpu_count() or 1
    started = time.time()
    commands = [["bare", made.folder / bundle.ONNX, out, *files[core::cores]] for core in range(cores)]
    processes = [
        subprocess.Popen(
            [sys.executable, alternatives.__file__, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    times = [[float(second) for second in process.communicate()[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0] * cores
    begun, ended = zip(*times, strict=True)
    return {"seconds": time.time() - started, "steady_seconds": max(ended) - min(begun)}


def _alone(*arguments: object) -> float:
    """What the alternatives' file prints when it is run with the arguments."""
    command = [sys.executable, alternatives.__file__, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
