"""The nearest change of one number that takes an item across a list's end, on a scorer that can be followed by eye."""

from typing import Any

import numpy as np
import pytest

from recsys.features.spec import FeatureSpec
from recsys.pipelines.explain import nearest

NAN = float("nan")
SPEC = FeatureSpec(dense=("price", "days"), mean=(10.0, 0.0), scale=(5.0, 100.0), codes=(), vocabularies={})
OTHERS = np.array([[5, 10], [20, 300], [12, 200], [NAN, 50]], np.float32)


def scorer(dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Dear items and old ones are worse; an unknown price is taken for 10."""
    return -np.nan_to_num(dense[:, 0], nan=10.0) / 10 - dense[:, 1] / 100


def changed(price: float, days: float, border: float) -> Any:
    dense = np.array([price, days], np.float32)
    raw = float(scorer(dense[None], np.zeros((1, 0)))[0])
    found = nearest(SPEC, scorer, dense, np.zeros(0, np.int32), OTHERS, border=border, raw=raw)
    if found is not None:  # done to the inputs, it is on the other side
        dense[SPEC.dense.index(found.name)] = float(found.then)
        assert (scorer(dense[None], np.zeros((1, 0)))[0] > border) != (raw > border)
    return found


def test_the_nearest_in_standard_deviations_is_told() -> None:
    found = changed(20, 200, border=-3.4)  # raw -4: a price of 12 gives -3.2, 1.6 away; 50 days -2.5, 1.5 away; 10 days -2.1, 1.9 away
    assert (found.name, found.now, found.then) == ("days", "200", "50")
    assert found.apart == pytest.approx(1.5)


def test_an_item_within_the_list_is_told_what_takes_it_off() -> None:
    found = changed(5, 10, border=-1.9)  # raw -0.6: a price of 20 gives -2.1, 3 away; 200 days -2.5, 1.9 away
    assert (found.name, found.then) == ("days", "200")


def test_a_value_that_is_missing_is_unknown() -> None:
    found = changed(NAN, 50, border=-1.1)  # raw -1.5: a price of 5 gives -1, 1 away; 10 days -1.1, not above
    assert (found.name, found.now, found.then) == ("price", "unknown", "5")


def test_where_nothing_crosses_nothing_is_told() -> None:
    assert changed(20, 300, border=5.0) is None
