"""What a fit under differential privacy has spent: epsilon at a delta, by Google's accountant of privacy loss distributions.

Two sets of users that differ in one user, present in one of them only, give weights whose chances differ by no more than a factor
exp(epsilon), but for a chance delta. That is about the steps alone: what they see of other users through signals, scaling and
vocabularies, the chosen learning rate, losses and calibration are no part of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from recsys import config
from recsys.errors import ConfigError


def check_accountant() -> None:
    """Nothing, where the accountant is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import dp_accounting  # noqa: F401 # looked for alone
    except ImportError as error:
        raise ConfigError("train.privacy: needs dp-accounting, which is not installed. Install recsys[privacy].") from error


def spent(privacy: config.TrainPrivacy, history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """epsilon, with what it rests on, as plain values: the settings, `steps`, and `sampled`, the chance of a user in a step.

    Every step draws each user with that chance, alike and alone (Poisson sampling), and adds noise of deviation noise x clip to the sum
    of gradients, of which no user's is longer than clip (the Gaussian mechanism; Abadi et al. 2016). Both phases of a fit count, as
    both saw the users.

    Args:
        history: of the fit; each epoch tells `users`, of all there are, and `steps`.
    """
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    by_chance: dict[float, int] = {}
    for epoch in history:
        chance = sampling(privacy, epoch["users"])
        by_chance[chance] = by_chance.get(chance, 0) + epoch["steps"]
    accountant = PLDAccountant()
    for chance, steps in by_chance.items():
        noisy = dp_event.GaussianDpEvent(privacy.noise)
        accountant.compose(noisy if chance == 1 else dp_event.PoissonSampledDpEvent(chance, noisy), steps)
    return {
        "epsilon": float(accountant.get_epsilon(privacy.delta)),
        **privacy.model_dump(mode="json"),
        "sampled": max(by_chance),
        "steps": sum(by_chance.values()),
    }


def sampling(privacy: config.TrainPrivacy, users: int) -> float:
    """The chance of each of so many users to be in a step."""
    return min(privacy.users / users, 1.0)


def check_delta(privacy: config.TrainPrivacy, users: int) -> None:
    """Nothing, where delta means something for so many users.

    Raises:
        ConfigError: a mechanism that shows one user whole, drawn at random, would do as well.
    """
    if privacy.delta * users >= 1:
        raise ConfigError(
            f"train.privacy.delta must be below 1 over the {users:,} users to learn from, got {privacy.delta:g}. Set it to "
            f"{0.1 / users:.0e} or less."
        )
