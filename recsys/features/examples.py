"""Labels and sampled negatives: the candidates as of a cutoff, and the window after it -> labelled feature rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from recsys.data.histories import Histories
from recsys.features.spec import ModelInputs
from recsys.hashing import mix, sampled, stable_hash
from recsys.retrieval.candidates import Candidates
from recsys.retrieval.users import UserBatch
from recsys.schema import CODES, DENSE, GROUP, ITEM_ID, LABEL, USER_ID, WEIGHT, examples_schema


def learned_from(histories: Histories, *, start: int, end: int, share: float) -> Histories:
    """The users who wanted something from start to end, microseconds, as others give no row; about a share of them, chosen by hash."""
    wanted = histories.wanted & (histories.ts >= start) & (histories.ts < end)
    wanting = np.bincount(histories.user_row[wanted], minlength=len(histories)) > 0
    return histories.take(np.flatnonzero(wanting & sampled(stable_hash(histories.users.column(USER_ID).to_numpy()), share)))


def bought(candidates: Candidates, users: UserBatch, *, window: Histories) -> np.ndarray:
    """bool (N): the user wanted the candidate in the window.

    Args:
        window: the same users' events of the label window.
    """
    wanted = window.keep(window.wanted)
    items = len(users.signals.items)
    position = users.signals.position[wanted.item]
    active = position >= 0
    keys = np.unique(wanted.user_row[active].astype(np.int64) * items + position[active])
    return np.isin(candidates.user_row * items + candidates.item, keys)


def sample(candidates: Candidates, label: np.ndarray, *, negatives: int, user_hash: np.ndarray, seed: int) -> np.ndarray:
    """bool (N): the rows to learn from: all positives, and for each one `negatives` of the user's own other candidates.

    A user without a positive gives no row; one with fewer negatives gives them all. The choice depends on the seed, the user
    and the item alone, so it is the same however users are batched.

    Args:
        user_hash: uint64 (U), stable.
    """
    positives = np.bincount(candidates.user_row, weights=label, minlength=len(user_hash))
    with np.errstate(over="ignore"):
        item = candidates.item.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        draw = mix(user_hash[candidates.user_row] ^ mix(item + np.uint64(seed)))
    order = np.lexsort((draw, ~label, candidates.user_row))
    starts = np.searchsorted(candidates.user_row, candidates.user_row)
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - starts
    return place < ((negatives + 1) * positives)[candidates.user_row]


def chosen_examples(
    candidates: Candidates,
    users: UserBatch,
    inputs: ModelInputs,
    label: np.ndarray,
    chosen: np.ndarray,
    *,
    group: str | None = None,
) -> pa.Table:
    """The chosen rows, bool (N), with `examples_schema`; every row weighs 1.

    Args:
        group: the column of users that is kept as the rows' group; None: none is.
    """
    user_id = users.history.users.column(USER_ID).combine_chunks().take(pa.array(candidates.user_row[chosen]))
    item_id = users.catalog.item_id.take(pa.array(users.signals.items[candidates.item[chosen]]))
    weight = np.ones(len(user_id), np.float32)
    table = examples_table(inputs.dense[chosen], inputs.codes[chosen], label[chosen], weight, ids=(user_id, item_id))
    if group is None:
        return table
    words = users.history.users.column(group).combine_chunks().take(pa.array(candidates.user_row[chosen]))
    return table.append_column(pa.field(GROUP, pa.string()), words.cast(pa.string()))


def examples_table(
    dense: np.ndarray, codes: np.ndarray, label: np.ndarray, weight: np.ndarray, *, ids: tuple[pa.Array, pa.Array] | None = None
) -> pa.Table:
    """Labelled model inputs as a fit reads them: the columns of `examples_schema`, those of ids where they are given.

    Args:
        dense, codes: float32 (N, F) and int32 (N, C), before normalisation.
        label, weight: (N).
        ids: of user and item, (N) each.
    """
    columns = {
        DENSE: fixed_size_lists(dense, pa.float32()),
        CODES: fixed_size_lists(codes, pa.int32()),
        LABEL: pa.array(label.astype(np.float32)),
        WEIGHT: pa.array(weight),
    }
    if ids is None:
        return pa.table(columns)
    schema = examples_schema(ids[0].type, ids[1].type, dense=dense.shape[1], codes=codes.shape[1])
    return pa.table({USER_ID: ids[0], ITEM_ID: ids[1], **columns}, schema=schema)


def fixed_size_lists(matrix: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """The rows of a matrix as fixed-size lists; of width 0 too, which Arrow cannot infer."""
    rows, width = matrix.shape
    if width == 0:
        return pa.array([[]] * rows, pa.list_(dtype, 0))
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel(), dtype), width)


def named(table: pa.Table, names: Sequence[str], vocabularies: Mapping[str, Sequence[str]]) -> pa.Table:
    """The examples of `chosen_examples` with a column for each input: float32, NaN as null, and words instead of codes, code 0 as null.

    Args:
        names: of the dense inputs, in order.
        vocabularies: of the code columns, in order.
    """
    columns = {name: table.column(name) for name in (USER_ID, ITEM_ID, LABEL, WEIGHT)}
    rows = table.num_rows
    dense = table.column(DENSE).combine_chunks().flatten().to_numpy().reshape(rows, len(names))
    codes = table.column(CODES).combine_chunks().flatten().to_numpy().reshape(rows, len(vocabularies))
    for place, name in enumerate(names):
        columns[name] = pa.array(dense[:, place], from_pandas=True)
    for place, (name, words) in enumerate(vocabularies.items()):
        columns[name] = pa.array(words, pa.string()).take(pa.array(codes[:, place] - 1, mask=codes[:, place] == 0))
    assert len(columns) == 4 + len(names) + len(vocabularies), "two inputs have one name"
    return pa.table(columns)
