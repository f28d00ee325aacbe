import numpy as np
import pytest

from recsys.features.candidate_features import Featurizer
from recsys.retrieval.users import UserBatch, group_days
from tests import shops
from tests.shops import ANN, BOB, CID, DEE, EVE, P_BREAD, P_CAKE, P_CHEESE, P_MILK, P_ROLL, P_SPADE, Event


@pytest.fixture(scope="module")
def users() -> UserBatch:
    return shops.batch()


def test_purchases_are_counted_by_user_and_item(users: UserBatch) -> None:
    own = users.own
    user, item = np.divmod(users.own_key, 6)
    assert list(zip(user.tolist(), item.tolist(), strict=True)) == [
        (ANN, P_MILK),
        (ANN, P_CHEESE),
        (ANN, P_BREAD),
        (BOB, P_MILK),
        (BOB, P_ROLL),
        (CID, P_MILK),
        (CID, P_BREAD),
        (CID, P_CAKE),
        (DEE, P_SPADE),
    ]
    assert own.count[:-1].tolist() == [3, 1, 1, 1, 2, 1, 1, 1, 1]
    assert own.recent[:-1].tolist() == [2, 0, 1, 1, 2, 1, 0, 1, 0]
    assert own.last[:-1].tolist() == [1, 94, 1, 4, 2, 0, 89, 0, 49]
    assert own.first[:-1].tolist() == [39, 94, 1, 4, 4, 0, 89, 0, 49]
    assert own.decayed[0] == pytest.approx(0.5 ** (1 / 60) + 0.5 ** (19 / 60) + 0.5 ** (39 / 60))
    assert users.matrix.toarray()[BOB].tolist() == [1, 0, 0, 2, 0, 0]
    assert users.matrix.toarray()[EVE].tolist() == [0] * 6


def test_an_absent_key_is_not_found_even_beyond_the_last() -> None:
    grouped = group_days(np.array([7, 3, 7]), np.array([10, 40, 2]))
    place, known = grouped.find(np.array([3, 5, 7, 9, 0]))
    assert known.tolist() == [True, False, True, False, False]
    assert grouped.count[place[known]].tolist() == [1, 2]
    assert place[~known].tolist() == [0, 0, 0]
    assert group_days(np.array([1, 1]), np.array([27, 28])).recent[0] == 1  # 28 days are 0 to 27
    nothing = group_days(np.empty(0, np.int64), np.empty(0, np.int64))
    assert nothing.find(np.array([0, 4]))[1].tolist() == [False, False]


def test_what_is_after_the_cutoff_or_before_the_start_is_no_purchase() -> None:
    featurizer: Featurizer = shops.featurizer()
    batch = featurizer.users(shops.group([Event(ANN, 0, 99.5), Event(ANN, 2, 100.0), Event(ANN, 3, -0.001), Event(BOB, 2, 250.5)]))
    assert batch.matrix.toarray().sum(axis=1).tolist() == [1, 0, 0, 0, 0]
