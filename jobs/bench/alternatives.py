"""What jobs.bench holds `jobs.score_pairs` against, each run as a file in a process of its own.

Nothing of recsys or jobs is imported here: what that costs would count against the alternatives.
"""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IDS = ["user_id", "item_id"]
K = 10
CLIP = 8.0  # standard deviations, as of recsys.features.spec
BATCH = 1024  # of the common pattern: Ray Data's own size
PARTITIONS = 8  # of its groupby: with the 200 that are Ray Data's own, two cores start tasks most of the time


def bare(onnx: Path, out: Path, files: Sequence[Path]) -> tuple[float, float]:
    """One core's share of the ceiling: read, scale, score, keep the top k and write, without Ray, checks or receipts.

    Returns:
        When its first file was begun and its last one done, in seconds.
    """
    import onnxruntime

    pa.set_cpu_count(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    mean, scale = np.zeros(64, np.float32), np.ones(64, np.float32)
    begun = time.time()
    for file in files:
        parts: list[pa.Table] = []
        parquet = pq.ParquetFile(file)
        features = [name for name in parquet.schema_arrow.names if name not in IDS]
        for batch in parquet.iter_batches(65_536, use_threads=False):
            columns = [batch.column(name).to_numpy() for name in features]
            raw = np.empty(batch.num_rows, np.float32)
            for start in range(0, len(raw), 1024):
                dense = np.stack([column[start : start + 1024] for column in columns], axis=1)
                dense -= mean
                dense *= scale
                np.clip(dense, -CLIP, CLIP, out=dense)
                raw[start : start + 1024] = session.run(None, {"dense": dense})[0][:, 0]
            parts.append(pa.table([*(batch.column(name) for name in IDS), pa.array(raw)], [*IDS, "raw"]))
        rows = pa.concat_tables(parts)
        user, raw = rows["user_id"].to_numpy(), rows["raw"].to_numpy()
        order = np.lexsort((rows["item_id"].to_numpy(), -raw, user))
        place = np.arange(len(order)) - np.searchsorted(user[order], user[order])
        pq.write_table(rows.take(pa.array(order[place < K])), out / file.name, compression="zstd")
    return begun, time.time()


def common(keras_file: Path, folder: Path, out: Path, *, grouped: bool = False) -> float:
    """Seconds of the pattern that most people write, from its first scored batch to its end: the start of actors and models is out.

    Args:
        grouped: each user's K best rows are written, by a groupby; otherwise all rows, which ends with the last scored batch.
    """
    import keras
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy

    class Predict:
        def __init__(self) -> None:
            self.model = keras.saving.load_model(keras_file)
            self.model.predict(np.zeros((BATCH, 64), np.float32), verbose=0)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            started = time.time()
            features = np.stack([values for name, values in batch.items() if name not in IDS], axis=1)
            scores = self.model.predict(features, verbose=0)[:, 0]
            times = {"started": np.full(len(scores), started), "ended": np.full(len(scores), time.time())}
            return {**{name: batch[name] for name in IDS}, "score": scores, **times}

    def best(user: Any) -> dict[str, np.ndarray]:
        order = np.lexsort((user["item_id"], -user["score"]))[:K]
        started = np.full(len(order), user["started"].min())  # of all the user's rows, those too that are not kept
        return {**{name: values[order] for name, values in user.items()}, "started": started}

    # two actors, and a CPU for the tasks that read and write: with two CPUs in all it would hang
    ray.init(num_cpus=3, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(str(folder)).map_batches(
        Predict, batch_size=BATCH, batch_format="numpy", compute=ActorPoolStrategy(size=2), num_cpus=1
    )
    if grouped:  # materialised first, else the groupby's actors wait for the cores that the model's hold
        rows = rows.materialize().groupby("user_id", num_partitions=PARTITIONS).map_groups(best, batch_format="numpy")
    rows.write_parquet(str(out))
    ended = time.time()
    times = pq.read_table(out, columns=["started", "ended"])
    return (ended if grouped else float(times["ended"].to_numpy().max())) - float(times["started"].to_numpy().min())


def stand() -> None:
    """A Ray whose address is printed, until this process's input is closed."""
    import ray

    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    places = [Path(argument) for argument in arguments]
    match what:
        case "bare":
            print(*bare(places[0], places[1], places[2:]))
        case "common" | "grouped":
            print(common(*places, grouped=what == "grouped"))
        case _:
            stand()
