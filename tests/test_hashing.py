import math

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from recsys.hashing import row_hashes

row = st.fixed_dictionaries(
    {
        "id": st.integers(-5, 5),
        "word": st.sampled_from([None, "", "a", "b"]),
        "size": st.sampled_from([None, 0.0, 1.5, -2.0]),
        "there": st.booleans(),
    }
)
SCHEMA = pa.schema([("id", pa.int64()), ("word", pa.string()), ("size", pa.float32()), ("there", pa.bool_())])


@given(rows=st.lists(row, min_size=1, max_size=20))
def test_rows_have_one_hash_where_they_are_equal_and_only_there(rows: list[dict[str, object]]):
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    hashes = row_hashes(table)
    assert hashes.dtype == np.uint64
    for one, mine in zip(rows, hashes, strict=True):
        for other, theirs in zip(rows, hashes, strict=True):
            assert (mine == theirs) == (one == other)
    np.testing.assert_array_equal(row_hashes(table.select(SCHEMA.names[::-1])), hashes)
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    np.testing.assert_array_equal(row_hashes(chunks), hashes)


def test_every_nan_and_both_zeros_are_one_number():
    values = pa.array([math.nan, -math.nan, 0.0, -0.0, None], pa.float32())
    hashes = row_hashes(pa.table({"size": values}))
    assert hashes[0] == hashes[1] == hashes[4]  # a null number is kept as NaN elsewhere too
    assert hashes[2] == hashes[3] != hashes[0]
