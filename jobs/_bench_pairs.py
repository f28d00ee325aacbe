"""What the pairs door is measured against: bare processes, and the pattern that most people write. Run by jobs.bench."""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IDS = ["user_id", "item_id"]
BATCH = 1024  # of the common pattern: Ray Data's and Keras's usual size


def bare(onnx: Path, files: list[Path], out: Path, *, k: int) -> None:
    """One core's share of the ceiling: read, scale, score, keep the top k and write, in one process without Ray or receipts."""
    import onnxruntime

    pa.set_cpu_count(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    for file in files:
        parts: list[pa.Table] = []
        parquet = pq.ParquetFile(file)
        features = [name for name in parquet.schema_arrow.names if name not in IDS]
        for batch in parquet.iter_batches(65_536, use_threads=False):
            columns = [batch.column(name).to_numpy() for name in features]
            raw = np.empty(batch.num_rows, np.float32)
            for start in range(0, len(raw), 1024):
                dense = np.stack([column[start : start + 1024] for column in columns], axis=1)
                np.clip((dense - 0.0) * 1.0, -8, 8, out=dense)
                raw[start : start + 1024] = session.run(None, {"dense": dense})[0][:, 0]
            parts.append(pa.table([*(batch.column(name) for name in IDS), pa.array(raw)], [*IDS, "raw"]))
        rows = pa.concat_tables(parts)
        user, raw = rows["user_id"].to_numpy(), rows["raw"].to_numpy()
        order = np.lexsort((rows["item_id"].to_numpy(), -raw, user))
        place = np.arange(len(order)) - np.searchsorted(user[order], user[order])
        pq.write_table(rows.take(pa.array(order[place < k])), out / file.name, compression="zstd")


def common(keras_file: Path, folder: Path, out: Path) -> float:
    """Seconds of the pattern that most people write, from the first to the last batch, its actors and model started before."""
    import keras
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy

    class Predict:
        def __init__(self) -> None:
            self.model = keras.saving.load_model(keras_file)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            features = np.stack([values for name, values in batch.items() if name not in IDS], axis=1)
            started = time.time()
            scores = self.model.predict(features, verbose=0)[:, 0]
            return {**{name: batch[name] for name in IDS}, "score": scores, "started": np.full(len(scores), started)}

    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR", log_to_driver=False)  # two actors, and a CPU for tasks
    ray.data.DataContext.get_current().enable_progress_bars = False
    scored = ray.data.read_parquet(str(folder)).map_batches(
        Predict, batch_size=BATCH, batch_format="numpy", compute=ActorPoolStrategy(size=2), num_cpus=1
    )
    scored.write_parquet(str(out))
    ended = time.time()
    first = min(pq.read_table(file, columns=["started"])["started"].to_numpy().min() for file in out.glob("*.parquet"))
    return ended - float(first)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "bare":
        onnx, out, k, *files = arguments
        bare(Path(onnx), [Path(file) for file in files], Path(out), k=int(k))
    else:
        print(common(*(Path(argument) for argument in arguments)))
