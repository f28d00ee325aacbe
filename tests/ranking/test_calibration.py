import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from recsys.ranking.calibration import Calibration, _isotonic, _platt, fit_calibration

PLATT = Calibration("platt", slope=0.75, intercept=-1.5)
TASTE = Calibration("platt", slope=0.75, intercept=-1.5, activity=(0.4, 0.01))
STEPS = Calibration("isotonic", knots=(-2.0, -1.0, 1.0, 4.0), chances=(0.1, 0.2, 0.2, 0.9))


def rows(
    chance: Callable[[np.ndarray], np.ndarray], count: int = 60_000, users: int = 500
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Raw outputs, labels drawn with the chance of each, users, and their purchases, which mean nothing."""
    rng = np.random.default_rng(7)
    raw = rng.normal(-0.5, 1.7, count).astype(np.float32)
    label = rng.random(count) < chance(raw.astype(np.float64))
    user = rng.integers(0, users, count)
    return raw, label, rng.integers(0, 2**64, users, dtype=np.uint64)[user], rng.integers(1, 400, users)[user]


def bent(raw: np.ndarray) -> np.ndarray:
    """No logistic curve: it stays at 0.02, rises, and stays at 0.4."""
    return np.clip(0.02 + 0.2 * (raw + 0.5), 0.02, 0.4)


def test_a_logistic_distortion_is_recovered() -> None:
    found = fit_calibration(*rows(lambda raw: expit(0.6 * raw - 1.8)))
    assert found.calibration.kind == "platt"
    assert found.calibration.slope == pytest.approx(0.6, abs=0.03)
    assert found.calibration.intercept == pytest.approx(-1.8, abs=0.03)
    assert found.held_out["platt"] <= found.held_out["isotonic"] < found.held_out["sigmoid"] - 0.1


def rising(raw: np.ndarray) -> np.ndarray:
    return expit(0.7 * raw - 2.0)


@pytest.mark.parametrize("shape", [rising, bent])
def test_where_users_who_buy_little_are_told_too_much_a_kind_by_activity_wins_and_is_right_within_groups(
    shape: Callable[[np.ndarray], np.ndarray],
) -> None:
    raw, _, group, purchases = rows(shape)
    true = shape(raw.astype(np.float64) + 0.6 * (np.log1p(purchases) - 5.0))
    label = np.random.default_rng(3).random(len(raw)) < true
    found = fit_calibration(raw, label, group, purchases)
    assert found.calibration.name.endswith(" by activity")
    kind = found.calibration.kind
    assert found.held_out[found.calibration.name] < found.held_out[kind] - 0.002
    chance = found.calibration(raw, purchases)
    plain = fit_calibration(raw, label, group, np.ones(len(raw))).calibration(raw, purchases)
    few = purchases < 40
    assert chance[few].mean() == pytest.approx(label[few].mean(), abs=0.01)
    assert abs(plain[few].mean() - label[few].mean()) > 0.02


def test_purchases_that_mean_nothing_move_no_chance_by_much() -> None:
    raw, label, group, purchases = rows(bent)
    found = fit_calibration(raw, label, group, purchases).calibration
    assert found(raw, purchases) == pytest.approx(found(raw, purchases[::-1]), abs=0.02)


def test_isotonic_wins_where_the_chance_is_no_logistic_curve_of_the_output() -> None:
    found = fit_calibration(*rows(bent))
    assert found.calibration.kind == "isotonic"
    assert found.held_out["isotonic"] < found.held_out["platt"] - 0.002
    there = np.linspace(-3, 3, 25)
    assert found.calibration(there.astype(np.float32), np.ones(25)) == pytest.approx(bent(there), abs=0.04)


def test_the_kept_kind_is_fitted_on_all_users() -> None:
    raw, label, group, purchases = rows(bent)
    whole = fit_calibration(raw, label, group, purchases).calibration
    half = (group >> np.uint64(32)) % np.uint64(2) == 0
    assert 0.4 < half.mean() < 0.6
    assert whole == _isotonic(np.sort(raw).astype(np.float64), label[np.lexsort((label, raw))])
    assert whole != _isotonic(np.sort(raw[half]).astype(np.float64), label[half][np.lexsort((label[half], raw[half]))])


def test_the_order_of_rows_changes_no_bit() -> None:
    for chance in (bent, expit):
        raw, *others = rows(chance, 5_000)
        arrays = np.round(raw, 1), *others  # many rows of one output
        order = np.random.default_rng(1).permutation(5_000)
        assert fit_calibration(*(array[order] for array in arrays)) == fit_calibration(*arrays)


def test_one_user_alone_gets_platt() -> None:
    raw, label, _, purchases = rows(bent, 400)
    found = fit_calibration(raw, label, np.full(400, 3, np.uint64), purchases)
    assert (found.calibration.kind, found.held_out) == ("platt", {})


def test_an_output_that_tells_the_wrong_way_round_is_worth_nothing() -> None:
    raw, label, group, purchases = rows(lambda raw: expit(-raw), 4_000)
    chance = fit_calibration(raw, label, group, purchases).calibration(raw, purchases)
    assert np.ptp(chance) < 0.02
    assert chance.mean() == pytest.approx(label.mean(), abs=0.01)
    assert _platt(raw.astype(np.float64), label).slope == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_was_never_or_always_bought_is_not_certain(share: float) -> None:
    raw, _, group, purchases = rows(expit, 98)
    label = np.full(98, share == 1)
    for fitted in (_platt, _isotonic):
        chance = fitted(np.sort(raw).astype(np.float64), label)(raw, purchases)
        assert chance == pytest.approx(np.full(98, 99 / 100 if share else 1 / 100), abs=1e-4)
    assert fit_calibration(raw, label, group, purchases).calibration(raw, purchases) == pytest.approx(abs(share - 0.01), abs=1e-3)


def test_platt_s_targets_by_hand() -> None:
    # two points, two parameters: the curve goes through both targets; bought 3 of 3 and none of 2
    label = np.array([False, False, True, True, True])
    found = _platt(np.array([-1.0, -1.0, 2.0, 2.0, 2.0]), label)
    assert found(np.array([-1.0, 2.0], np.float32), np.ones(2)) == pytest.approx([1 / (2 + 2), (3 + 1) / (3 + 2)], abs=1e-4)
    assert found.slope == pytest.approx((logit(0.8) - logit(0.25)) / 3, abs=1e-3)


def test_isotonic_by_hand() -> None:
    # 2 and 3 are out of order and share a step; two of three bought: targets 1/2 twice... low is 1/(3+2), high 3/4
    label = np.array([False, True, False, False, True])
    found = _isotonic(np.array([1.0, 2.0, 3.0, 3.0, 4.0]), label)
    low, high = 1 / (3 + 2), (2 + 1) / (2 + 2)
    assert found.knots == pytest.approx([1.0, (2 + 3 + 3) / 3, 4.0])
    assert found.chances == pytest.approx([low, (high + 2 * low) / 3, high])


def test_between_knots_isotonic_is_a_straight_line_and_beyond_them_it_stays() -> None:
    raw = np.array([-50, -2, -1.5, -1, 0, 1, 2.5, 4, 50], np.float32)
    assert STEPS(raw, np.ones(9)) == pytest.approx([0.1, 0.1, 0.15, 0.2, 0.2, 0.2, 0.55, 0.9, 0.9])


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=2, max_size=40), st.lists(st.tuples(finite, st.floats(0, 1)), min_size=1, max_size=12))
def test_a_chance_is_within_0_and_1_and_never_falls(raw: list[float], steps: list[tuple[float, float]]) -> None:
    knots = tuple(sorted({float(knot) for knot, _ in steps}))
    chances = tuple(sorted(chance for _, chance in steps))[: len(knots)]
    ascending = np.sort(np.array(raw + list(knots), np.float32))
    steps_by_activity = Calibration("isotonic", knots=knots, chances=chances, activity=(0.5, -0.1))
    for calibration in (PLATT, Calibration("platt", slope=1e30), replace(steps_by_activity, activity=()), steps_by_activity, TASTE):
        found = calibration(ascending, np.full(len(ascending), 17))  # of one user
        assert found.dtype == np.float32
        assert ((found > 0) & (found < 1)).all()
        assert (np.diff(found) >= 0).all()


def test_no_rows_have_no_chances() -> None:
    assert [calibration(np.empty(0, np.float32), np.empty(0)).tolist() for calibration in (PLATT, STEPS, TASTE)] == [[], [], []]


@pytest.mark.parametrize("calibration", [PLATT, STEPS, TASTE, fit_calibration(*rows(bent, 3_000)).calibration])
def test_json_loses_no_bit(calibration: Calibration) -> None:
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
