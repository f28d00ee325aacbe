"""Intervals by the Poisson bootstrap: a user stands in each resample as often as a Poisson(1) draw of its own says.

A resample's mean is a ratio of two sums over users, so shards add up, no user's value is kept, and memory does not grow with users.
(Efron 1979, Bootstrap methods; Chamandy, Muralidharan, Najmi and Naidu 2012, Estimating uncertainty for massive data streams)
The draws depend on the seed and the user alone: all models meet the same resamples, so differences between them are paired, and so
are those between two runs with one seed.
"""

import math

import numpy as np

from recsys.hashing import mix

RESAMPLES = 1_000
LEVEL = 0.95
UNIT = 2.0**-24  # what values are rounded to before they are summed: sums below 2^29 are exact, whatever their order
# P(draw <= n), as fractions of 2^64; a Poisson(1) draw above 16 has a chance of 1e-15.
CUMULATIVE = np.array([sum(math.exp(-1) / math.factorial(i) for i in range(n + 1)) for n in range(16)])


def draws(user_hash: np.ndarray, *, seed: int) -> np.ndarray:
    """float64 (1 + RESAMPLES, U): how often each user stands in each resample; row 0 is the users as they are, once each.

    Args:
        user_hash: uint64 (U), stable.
    """
    number = np.arange(1, RESAMPLES + 1, dtype=np.uint64) + mix(np.array([seed], np.int64).astype(np.uint64))
    uniform = (mix(user_hash[None, :] ^ mix(number)[:, None]) >> np.uint64(11)) * 2.0**-53
    return np.vstack([np.ones((1, len(user_hash))), np.searchsorted(CUMULATIVE, uniform, side="right")])


def sums(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (1 + RESAMPLES, C): the sum of each column over the users of each resample; exact, so parts add up to the whole.

    Args:
        values: (U, C), rounded to 2^-24.
        weights: (1 + RESAMPLES, U), of `draws`.
    """
    return weights @ (np.rint(values.astype(np.float64) / UNIT) * UNIT)


def interval(total: np.ndarray, users: np.ndarray) -> list[float] | None:
    """[low, high] of the mean, 95% by the percentile method; None where no resample has a user.

    Args:
        total, users: float64 (1 + RESAMPLES), sums of the value and of 1. Resamples without a user say nothing and are left out.
    """
    total, users = total[1:][users[1:] > 0], users[1:][users[1:] > 0]
    if not len(users):
        return None
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(total / users, (tail, 1 - tail))]
