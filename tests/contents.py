"""What files hold, for tests that look for what must not be in them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def content(file: Path) -> str:
    """All that a file holds as text: its bytes, and, where they are packed, what a reader makes of them."""
    text = file.read_bytes().decode("latin-1")
    if file.suffix == ".parquet":
        text += str(pq.read_table(file, partitioning=None).to_pylist())
    if file.suffix == ".arrow":
        with pa.memory_map(str(file)) as source:
            text += str(pa.ipc.open_file(source).read_all().to_pylist())
    return text
