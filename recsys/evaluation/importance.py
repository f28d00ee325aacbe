"""What the model's lists rest on: how much NDCG@10 they lose when one input is shuffled among candidates.

An input's importance is the NDCG@10 of the lists as they are less that of lists ranked with the input's values drawn at random from
other rows, on purchases that the model never saw. (Breiman 2001, Random forests; Fisher, Rudin and Dominici 2019, All models are
wrong, but many are useful) Inputs that tell the same share it: each of them alone may be missed by nobody.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from recsys import metrics
from recsys.data.histories import Histories
from recsys.evaluation import backtest, bootstrap
from recsys.features.candidate_features import Featurizer
from recsys.hashing import stable_hash
from recsys.ranking.recommend import ScoredUsers, check_inputs, cut_batch
from recsys.ranking.scorer import Scorer
from recsys.ranking.top_k import item_lists
from recsys.retrieval.supplied import Supplied
from recsys.schema import USER_ID

K = 10
USERS, BASE = "|users", "|ndcg"  # keys of `count` that are no inputs


def count(
    histories: Histories,
    featurizer: Featurizer,
    scorer: Scorer,
    supplied: Supplied | None = None,
    *,
    start: int,
    end: int,
    seed: int,
    diversity: float,
) -> dict[str, np.ndarray]:
    """Sums over the users who want something in [start, end), microseconds, that `summary` turns into figures.

    Args:
        supplied: as of `recommend.score_users`.

    Returns:
        float64 (1 + RESAMPLES): `USERS`, NDCG@10 as it is, `BASE`, and by input what it loses.
    """
    total: dict[str, np.ndarray] = {}
    for number, (batch, users, candidates, inputs) in enumerate(featurizer(histories, supplied)):
        check_inputs(inputs, scorer.bundle)
        actual = backtest.truth(batch, start=start, end=end, new=False)
        counted = users.known & (actual.count > 0)

        def ndcg(dense: np.ndarray, codes: np.ndarray) -> np.ndarray:
            raw = scorer(dense, codes)
            scored = ScoredUsers(batch, users, candidates, raw, users.known)  # noqa: B023
            ranked, _ = cut_batch(scored, candidates, raw, k=K, diversity=diversity)  # noqa: B023
            lists = item_lists(ranked, candidates, users.signals.items, users=len(users), k=K)  # noqa: B023
            found = np.zeros(len(users))  # noqa: B023
            hits = metrics.hits(lists, actual.offsets, actual.items)[counted]  # noqa: B023
            found[counted] = metrics.ndcg(hits, actual.count[counted], K)  # noqa: B023
            return found

        base = ndcg(inputs.dense, inputs.codes)
        spec = scorer.bundle.spec
        values = {USERS: counted.astype(np.float64), BASE: base}
        random = np.random.default_rng([seed, number])
        for place, name in enumerate(spec.dense):
            dense = inputs.dense.copy()
            dense[:, place] = random.permutation(dense[:, place])
            values[name] = base - ndcg(dense, inputs.codes)
        for name in dict.fromkeys(spec.codes):
            mine = [place for place, one in enumerate(spec.codes) if one == name]
            codes = inputs.codes.copy()
            codes[:, mine] = random.permutation(codes[:, mine])
            values[name] = base - ndcg(inputs.dense, codes)
        weights = bootstrap.draws(stable_hash(batch.users.column(USER_ID).to_numpy()), seed=seed)
        sums = bootstrap.sums(np.stack([*values.values()], axis=1), weights)
        total = backtest.add([total, dict(zip(values, sums.T, strict=True))])
    return total


def summary(sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The figures of `count`'s sums over all shards, as JSON holds them.

    Returns:
        `users` counted; `ndcg@10` of their lists as they are; `inputs`: each with the mean of what is lost without it, `loss`, and its
        95% `interval`, most first. None and no inputs where nobody counts.
    """
    users = sums.get(USERS, np.zeros(1 + bootstrap.RESAMPLES))
    if not users[0]:
        return {"users": 0, "ndcg@10": None, "inputs": []}
    inputs = [
        {"input": name, "loss": float(total[0] / users[0]), "interval": bootstrap.interval(total, users)}
        for name, total in sums.items()
        if name not in (USERS, BASE)
    ]
    return {
        "users": int(users[0]),
        "ndcg@10": float(sums[BASE][0] / users[0]),
        "inputs": sorted(inputs, key=lambda one: (-one["loss"], one["input"])),
    }
