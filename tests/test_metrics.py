from collections.abc import Callable
from math import isnan, log, log2
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys import metrics


def one(*ranks: int, length: int = 5) -> np.ndarray:
    """The hits of one user: True at the given ranks, which start at 1."""
    row = np.zeros((1, length), bool)
    row[0, [rank - 1 for rank in ranks]] = True
    return row


def some(count: int) -> np.ndarray:
    return np.array([count])


def csr(wanted: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, wanted)])
    return offsets, np.array([item for items in wanted for item in sorted(items)], np.int32)


# ---- hits


def test_a_wanted_item_is_a_hit_at_its_rank() -> None:
    lists = np.array([[4, 2, 9], [9, 4, 2]], np.int32)
    assert metrics.hits(lists, *csr([[2, 7], [9]])).tolist() == [[False, True, False], [True, False, False]]


def test_padding_is_never_a_hit() -> None:
    # Key arithmetic alone would take user 1's padding for user 0's last item.
    lists = np.array([[0, -1], [-1, -1]], np.int32)
    assert metrics.hits(lists, *csr([[3], [3]])).tolist() == [[False, False], [False, False]]
    assert metrics.hits(np.array([[0, 1], [-1, -1]], np.int32), *csr([[1], [0]])).tolist() == [[False, True], [False, False]]


def test_nothing_wanted_gives_no_hits() -> None:
    assert metrics.hits(np.array([[1, 2]], np.int32), *csr([[]])).tolist() == [[False, False]]
    assert metrics.hits(np.zeros((0, 3), np.int32), *csr([])).shape == (0, 3)


def test_large_codes_of_many_users_do_not_overflow() -> None:
    users, item = 40_000, 2_000_000  # 8e10 keys: more than int32 holds
    lists = np.full((users, 1), item, np.int32)
    wanted = np.full(users, item, np.int32)
    wanted[::2] = 0
    found = metrics.hits(lists, np.arange(users + 1, dtype=np.int32), wanted)
    assert found[:, 0].tolist() == [False, True] * (users // 2)


@st.composite
def shops(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Lists and wanted items of a few users over a few items; lists may be short or empty, wanted sets never."""
    users = draw(st.integers(1, 6))
    items = st.integers(0, 8)
    lists = [draw(st.lists(items, unique=True, max_size=6)) for _ in range(users)]
    wanted = [draw(st.lists(items, unique=True, min_size=1, max_size=9)) for _ in range(users)]
    return lists, wanted


def matrix(lists: list[list[int]]) -> np.ndarray:
    return np.array([row + [-1] * (6 - len(row)) for row in lists], np.int32)


@given(shops())
def test_hits_are_membership(shop: tuple[list[list[int]], list[list[int]]]) -> None:
    lists, wanted = shop
    found = metrics.hits(matrix(lists), *csr(wanted))
    for user, row in enumerate(lists):
        assert found[user].tolist() == [item in wanted[user] for item in row] + [False] * (6 - len(row))


# ---- ranking


def test_recall_divides_by_all_relevant_items() -> None:
    assert metrics.recall(one(1, 3), some(8), 5).tolist() == [2 / 8]


def test_only_the_first_k_count() -> None:
    assert metrics.recall(one(1, 4), some(2), 3).tolist() == [1 / 2]
    assert metrics.hit_rate(one(4), some(1), 3).tolist() == [0.0]
    assert metrics.hit_rate(one(4), some(1), 4).tolist() == [1.0]
    assert metrics.ndcg(one(4), some(1), 3).tolist() == [0.0]
    assert metrics.average_precision(one(4), some(1), 3).tolist() == [0.0]


def test_ndcg_is_the_discounted_sum_over_the_ideal_one() -> None:
    expected = (1 / log2(2) + 1 / log2(4)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))
    assert metrics.ndcg(one(1, 3), some(3), 5) == pytest.approx([expected])


def test_ndcg_s_ideal_stops_at_k() -> None:
    expected = (1 / log2(3)) / (1 / log2(2) + 1 / log2(3))
    assert metrics.ndcg(one(2), some(9), 2) == pytest.approx([expected])


def test_average_precision_is_the_mean_of_precisions_at_hits() -> None:
    assert metrics.average_precision(one(1, 3), some(2), 5) == pytest.approx([(1 / 1 + 2 / 3) / 2])


def test_average_precision_divides_by_k_when_more_are_relevant() -> None:
    assert metrics.average_precision(one(2), some(9), 3) == pytest.approx([(1 / 2) / 3])


def test_a_list_shorter_than_k_is_not_forgiven() -> None:
    assert metrics.ndcg(one(1, 2, length=2), some(3), 3) == pytest.approx(
        [(1 / log2(2) + 1 / log2(3)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4))]
    )
    assert metrics.average_precision(one(1, 2, length=2), some(3), 3) == pytest.approx([(1 / 1 + 2 / 2) / 3])


Metric = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
every_metric = pytest.mark.parametrize("metric", metrics.RANKING.values(), ids=metrics.RANKING.keys())


@every_metric
def test_a_user_without_relevant_items_is_our_mistake(metric: Metric) -> None:
    with pytest.raises(AssertionError, match="no ranking metric"):
        metric(one(1), some(0), 5)


@every_metric
@given(st.integers(1, 6))
def test_a_perfect_list_has_one(metric: Metric, k: int) -> None:
    assert metric(np.ones((1, 6), bool), some(k), k) == pytest.approx([1.0])


@every_metric
def test_a_list_without_hits_has_zero(metric: Metric) -> None:
    assert metric(np.zeros((1, 6), bool), some(2), 4).tolist() == [0.0]


@every_metric
@given(shops(), st.integers(1, 8))
def test_every_metric_lies_between_zero_and_one(metric: Metric, shop: tuple[list[list[int]], list[list[int]]], k: int) -> None:
    lists, wanted = shop
    values = metric(metrics.hits(matrix(lists), *csr(wanted)), np.array([len(items) for items in wanted]), k)
    assert values.dtype == np.float64
    assert values.shape == (len(lists),)
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()


def by_hand(row: list[int], wanted: list[int], k: int) -> dict[str, float]:
    """The definitions, word by word, for one user."""
    ranks = [rank for rank, item in enumerate(row[:k], start=1) if item in wanted]
    return {
        "recall": len(ranks) / len(wanted),
        "hitrate": float(bool(ranks)),
        "ndcg": sum(1 / log2(r + 1) for r in ranks) / sum(1 / log2(r + 1) for r in range(1, min(k, len(wanted)) + 1)),
        "map": sum(sum(s <= r for s in ranks) / r for r in ranks) / min(k, len(wanted)),
    }


@given(shops(), st.integers(1, 8))
def test_the_metrics_are_their_definitions(shop: tuple[list[list[int]], list[list[int]]], k: int) -> None:
    lists, wanted = shop
    found = metrics.hits(matrix(lists), *csr(wanted))
    relevant = np.array([len(items) for items in wanted])
    for name, metric in metrics.RANKING.items():
        expected = [by_hand(row, items, k)[name] for row, items in zip(lists, wanted, strict=True)]
        assert metric(found, relevant, k) == pytest.approx(expected)


@given(shops(), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_users_does_not_matter(shop: tuple[list[list[int]], list[list[int]]], k: int, random: Random) -> None:
    lists, wanted = shop
    order = list(range(len(lists)))
    random.shuffle(order)
    found = metrics.hits(matrix(lists), *csr(wanted))
    shuffled = metrics.hits(matrix([lists[user] for user in order]), *csr([wanted[user] for user in order]))
    relevant = np.array([len(items) for items in wanted])
    for metric in metrics.RANKING.values():
        assert metric(shuffled, relevant[order], k).tolist() == metric(found, relevant, k)[order].tolist()


def test_a_summary_is_the_mean_over_users() -> None:
    found = np.vstack([one(1, length=20), one(15, length=20)])
    assert metrics.summary(found, np.array([1, 4])) == pytest.approx(
        {
            "ndcg@10": (1 / log2(2) + 0) / 2,
            "recall@10": (1 / 1 + 0 / 4) / 2,
            "hitrate@10": (1 + 0) / 2,
            "map@10": (1 + 0) / 2,
            "ndcg@20": (1 + (1 / log2(16)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4) + 1 / log2(5))) / 2,
            "recall@20": (1 / 1 + 1 / 4) / 2,
            "hitrate@20": (1 + 1) / 2,
            "map@20": (1 + (1 / 15) / 4) / 2,
        }
    )


def test_a_summary_of_nobody_is_not_a_number() -> None:
    figures = metrics.summary(np.zeros((0, 5), bool), np.zeros(0, int), ks=(3,))
    assert figures.keys() == {"ndcg@3", "recall@3", "hitrate@3", "map@3"}
    assert all(isnan(value) for value in figures.values())


# ---- classification


def test_classification_figures_are_their_definitions() -> None:
    labels = np.array([1, 1, 1, 0, 0], np.float32)
    chances = np.array([0.9, 0.6, 0.2, 0.7, 0.1])  # claimed: the first, second and fourth
    precision, recall = 2 / 3, 2 / 3
    assert metrics.classification(labels, chances) == pytest.approx(
        {
            "loss": -(log(0.9) + log(0.6) + log(0.2) + log(0.3) + log(0.9)) / 5,
            "auc": (2 + 1 + 1) / (3 * 2),  # 0.9 is above both negatives, 0.6 and 0.2 above one
            "accuracy": 3 / 5,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
        }
    )


def test_a_certain_mistake_has_a_finite_loss() -> None:
    assert metrics.classification(np.array([1.0]), np.array([0.0]))["loss"] == pytest.approx(-log(1e-7))
    assert metrics.classification(np.array([0.0]), np.array([1.0], np.float32))["loss"] == pytest.approx(-log(1e-7))


def test_a_weight_of_two_is_the_row_twice() -> None:
    labels, chances = np.array([1, 0, 1, 0]), np.array([0.8, 0.8, 0.3, 0.6])
    weighted = metrics.classification(labels, chances, np.array([2, 1, 1, 3]))
    assert weighted == pytest.approx(metrics.classification(np.repeat(labels, [2, 1, 1, 3]), np.repeat(chances, [2, 1, 1, 3])))


def test_one_class_alone_has_no_auc() -> None:
    assert isnan(metrics.classification(np.array([1, 1]), np.array([0.2, 0.9]))["auc"])
    figures = metrics.classification(np.array([0, 0]), np.array([0.2, 0.4]))
    assert isnan(figures["auc"])
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(1, 4)), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[bool, float, int]]) -> None:
    pairs = [(p, n, v * w) for label, p, v in rows if label for other, n, w in rows if not other]
    auc = metrics.classification(*(np.array(column) for column in zip(*rows, strict=True)))["auc"]
    if pairs:
        assert auc == pytest.approx(sum(w * ((p > n) + (p == n) / 2) for p, n, w in pairs) / sum(w for *_, w in pairs))
    else:
        assert isnan(auc)


# ---- calibration


def test_log_loss_by_hand() -> None:
    assert metrics.log_loss(np.array([1, 0, 0]), np.array([0.5, 0.25, 0.1])) == pytest.approx(-(log(0.5) + log(0.75) + log(0.9)) / 3)


def test_bins_of_equal_mass_hold_whole_cells() -> None:
    assert metrics.equal_mass(np.ones(6), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert metrics.equal_mass(np.array([5, 1, 0, 2, 2]), 2).tolist() == [0, 1, 1, 1, 1]
    assert metrics.equal_mass(np.zeros(2), 2).tolist() == [0, 0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_ascend_and_no_bin_is_off_by_more_than_a_cell(counts: list[int], bins: int) -> None:
    count = np.array(counts)
    found = metrics.equal_mass(count, bins)
    assert (np.diff(found) >= 0).all()
    assert 0 <= found.min() <= found.max() < bins
    mass = np.bincount(found, weights=count, minlength=bins)
    assert (np.abs(mass - count.sum() / bins) <= count.max()).all()


def test_calibration_error_by_hand() -> None:
    # 4 rows, 1 bought, chances add up to 2; 6 rows, 3 bought, chances add up to 2.5
    found = metrics.calibration_error(np.array([4, 6]), np.array([1, 3]), np.array([2.0, 2.5]))
    assert found == pytest.approx(4 / 10 * abs(1 / 4 - 2 / 4) + 6 / 10 * abs(3 / 6 - 2.5 / 6))
    assert isnan(metrics.calibration_error(*np.zeros((3, 2))))


@given(st.integers(0, 1000))
def test_chances_that_are_true_have_a_small_calibration_error_and_others_a_large_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chance = np.sort(rng.random(4_000))
    bought = rng.random(4_000) < chance
    bins = metrics.equal_mass(np.ones(4_000))

    def error(claimed: np.ndarray) -> float:
        return metrics.calibration_error(*(np.bincount(bins, weights=values) for values in (np.ones(4_000), bought, claimed)))

    assert error(chance) < 0.035  # a bin of 400 has a standard error of at most 0.025
    assert error(chance**2) == pytest.approx(1 / 2 - 1 / 3, abs=0.035)
