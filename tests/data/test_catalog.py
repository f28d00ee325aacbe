from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import config
from recsys.data import catalog
from recsys.data.catalog import Catalog
from tests import shops


def test_an_items_code_is_its_row_number() -> None:
    assert len(shops.catalog()) == 7
    codes = shops.catalog().codes_of(pa.array([70, 10, 50, 10], pa.int64()))
    assert codes.tolist() == [6, 0, 4, 0]
    assert codes.dtype == np.int32
    assert shops.catalog().codes_of(pa.chunked_array([[20], [60, 30]], pa.int64())).tolist() == [1, 5, 2]


def test_an_id_that_the_catalog_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="2 item ids are not in the catalog"):
        shops.catalog().codes_of(pa.array([10, 11, 12], pa.int64()))


def test_an_item_is_called_by_its_name_or_else_its_id() -> None:
    items = np.array([6, 5, 0], np.int32)
    assert shops.catalog().names(items) == ["spade", "60", "milk"]
    assert Catalog(shops.catalog().table.drop_columns("name")).names(items) == ["70", "60", "10"]
    assert shops.catalog(name=pa.array([""] * 7)).names(items) == ["70", "60", "10"]


def test_available_goes_by_code_over_all_chunks() -> None:
    table = shops.catalog().table
    chunked = Catalog(pa.concat_tables([table.slice(0, 3), table.slice(3)]))
    assert np.flatnonzero(~chunked.available).tolist() == [4]
    assert chunked.item_id.to_pylist() == [10, 20, 30, 40, 50, 60, 70]


def test_a_value_is_coded_by_its_place_in_the_vocabulary_and_an_unseen_one_by_0() -> None:
    codes = catalog.encode(pa.array(["b", "a", None, "z", "b"]), ("a", "b"))
    assert codes.tolist() == [2, 1, 0, 0, 2]
    assert codes.dtype == np.int32
    assert catalog.encode(pa.chunked_array([["a"], ["b", None]]), ("b", "a")).tolist() == [2, 1, 0]
    assert catalog.encode(pa.array(["a"]), ()).tolist() == [0]


def test_a_column_of_the_catalog_is_coded_item_by_item() -> None:
    department = shops.catalog().table.column("department")
    assert catalog.encode(department, shops.VOCABULARIES["department"]).tolist() == [2, 2, 1, 1, 1, 0, 0]


def test_values_are_counted_most_frequent_first_ties_by_value_and_nulls_not_at_all() -> None:
    counts = catalog.value_counts(pa.chunked_array([["b", "c", None], ["c", "a", None, None]]))
    assert counts == [("c", 2), ("a", 1), ("b", 1)]


def test_the_most_frequent_values_are_kept_ties_by_value() -> None:
    assert catalog.most_frequent({"x": 1, "b": 3, "a": 3, "y": 1}, limit=3) == ("a", "b", "x")


@given(st.lists(st.sampled_from(["a", "b", "c", "ä", "10", "9"]), max_size=30), st.integers(1, 6))
def test_the_most_frequent_words_are_kept_in_their_order_and_ties_go_by_the_word(words: list[str], limit: int) -> None:
    kept = catalog.most_frequent(Counter(words), limit=limit)
    assert len(kept) == min(limit, len(set(words)))
    assert list(kept) == sorted(kept)
    last = max(((-words.count(word), word) for word in kept), default=(0, ""))
    assert all((-words.count(word), word) > last for word in set(words) - set(kept))


def test_every_categorical_column_of_items_has_a_vocabulary_of_limited_length() -> None:
    features = config.Features(item_categorical=("department", "name"), max_vocabulary=2)
    assert catalog.item_vocabularies(shops.catalog(), features) == {"department": ("bakery", "dairy"), "name": ("bread", "cake")}
