"""Small logs whose truth is known: what intervals are measured on.

Each is drawn anew from a seed. Customers fall in four segments; rewards are clicks; the value of
the evaluated policy is a finite sum. ``sims.ope.coverage`` counts how often intervals hold it.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from bandit.kernels.compiling import Floats, Ints
from sims.ope.adaptive import arm_spreads, version_spreads
from sims.ope.estimators import Weighed

Rng = np.random.Generator


class Trial(NamedTuple):
    """One log, and what is true.

    Attributes
    ----------
    weighed
        Its rows as estimators see them; the reward model is fixed, and wrong.
    truth
        Value of the evaluated policy.
    logged
        Value of the policy that logged; NaN if that changed.
    largest_weight
        No weight can be larger.
    customers : (n,)
        Whose row it is.
    spreads : (n,) or None
        Of the scores, where the policy learned.
    """

    weighed: Weighed
    truth: float
    logged: float
    largest_weight: float
    customers: Ints
    spreads: Floats | None = None


SHARES = np.array([0.4, 0.3, 0.2, 0.1])
"""Of the segments."""

RATES = np.array(
    [
        [0.10, 0.20, 0.30, 0.40, 0.50],
        [0.50, 0.40, 0.30, 0.20, 0.10],
        [0.05, 0.60, 0.05, 0.30, 0.05],
        [0.25, 0.25, 0.25, 0.25, 0.25],
    ]
)
"""Click rate of every action in every segment."""

EVALUATED = np.array(
    [
        [0.05, 0.05, 0.10, 0.20, 0.60],
        [0.60, 0.20, 0.10, 0.05, 0.05],
        [0.10, 0.60, 0.10, 0.10, 0.10],
        [0.20, 0.20, 0.20, 0.20, 0.20],
    ]
)
"""The evaluated policy, where it is one that looks at the segment."""


def _pick(rng: Rng, probabilities: Floats) -> Ints:
    """Draw a column for every row of probabilities."""
    points = rng.random((len(probabilities), 1))
    chosen: Ints = np.minimum(
        (points >= np.cumsum(probabilities, axis=1)).sum(axis=1), probabilities.shape[1] - 1
    )
    return chosen


def _trial(rng: Rng, n: int, *, rates: Floats, logging: Floats, evaluated: Floats) -> Trial:
    """Draw a log of a policy that does not change."""
    segments = rng.choice(len(SHARES), size=n, p=SHARES)
    actions = _pick(rng, logging[segments])
    rewards = (rng.random(n) < rates[segments, actions]).astype(np.float64)
    model = 0.5 * rates + 0.5 * rates.mean()
    weights = evaluated / logging
    return Trial(
        Weighed(
            rewards=rewards,
            weights=weights[segments, actions],
            fitted=model[segments, actions],
            direct=(evaluated * model).sum(axis=1)[segments],
        ),
        truth=float(SHARES @ (evaluated * rates).sum(axis=1)),
        logged=float(SHARES @ (logging * rates).sum(axis=1)),
        largest_weight=float(weights.max()),
        customers=np.arange(n),
    )


def uniform(rng: Rng, n: int) -> Trial:
    """Log all actions alike."""
    return _trial(rng, n, rates=RATES, logging=np.full((4, 5), 0.2), evaluated=EVALUATED)


def skewed(rng: Rng, n: int) -> Trial:
    """Log rarely what the evaluated policy mostly does: weights up to 30."""
    logging = np.full((4, 5), 0.02)
    logging[:, 2] = 0.92
    return _trial(rng, n, rates=RATES, logging=logging, evaluated=EVALUATED)


def rare(rng: Rng, n: int) -> Trial:
    """Draw six clicks in a thousand, a uniform log, and a policy that always sends the same."""
    always = np.zeros((4, 5))
    always[:, 1] = 1.0
    return _trial(rng, n, rates=RATES / 60.0, logging=np.full((4, 5), 0.2), evaluated=always)


def returning(rng: Rng, n: int) -> Trial:
    """Let customers come ten times each on average, each with a level of their own."""
    m = n // 10
    customers = np.sort(rng.integers(0, m, n))
    levels = rng.choice([-0.2, 0.2], size=m)[customers]
    actions = rng.integers(0, 2, n)
    rewards = (rng.random(n) < 0.4 + 0.1 * actions + levels).astype(np.float64)
    evaluated = np.array([0.2, 0.8])
    return Trial(
        Weighed(
            rewards=rewards,
            weights=2.0 * evaluated[actions],
            fitted=np.full(n, 0.4),
            direct=np.full(n, 0.4),
        ),
        truth=0.4 + 0.1 * 0.8,
        logged=0.45,
        largest_weight=1.6,
        customers=customers,
    )


class Learner(NamedTuple):
    """Thompson sampling of two actions with normal beliefs.

    Attributes
    ----------
    floor
        Smallest propensity.
    exploration
        Scale of the beliefs' standard deviations.
    cadence
        Rows between two versions.
    """

    floor: float = 0.02
    exploration: float = 1.0
    cadence: int = 50

    def share(self, counts: Floats, successes: Floats) -> Floats:
        """Give the propensity of the first action in every segment, from (segments, 2) counts."""
        mean = (successes + 1.0) / (counts + 2.0)
        variance = mean * (1.0 - mean) / (counts + 3.0)
        gap = (mean[:, 0] - mean[:, 1]) / np.sqrt(variance.sum(axis=1)) / self.exploration
        found: Floats = self.floor + (1.0 - 2 * self.floor) * special.ndtr(gap)
        return found


CAREFUL = Learner()
GREEDY = Learner(floor=0.001, exploration=0.25, cadence=20)


def thompson(rng: Rng, n: int, learner: Learner = CAREFUL) -> Trial:
    """Sample two equally good actions by Thompson's rule; evaluated: always the first.

    The policy settles on one of the two by chance, and the propensity of the other falls to the
    floor.
    """
    first = np.empty(n)
    actions, rewards = np.empty(n, dtype=np.int64), np.empty(n)
    counts, successes = np.zeros((1, 2)), np.zeros((1, 2))
    for start in range(0, n, learner.cadence):
        rows = slice(start, min(start + learner.cadence, n))
        share = float(learner.share(counts, successes)[0])
        first[rows] = share
        actions[rows] = rng.random(rows.stop - start) >= share
        rewards[rows] = rng.random(rows.stop - start) < 0.3
        np.add.at(counts[0], actions[rows], 1.0)
        np.add.at(successes[0], actions[rows], rewards[rows])
    weights = np.where(actions == 0, 1.0 / first, 0.0)
    return Trial(
        Weighed(rewards=rewards, weights=weights, fitted=np.full(n, 0.2), direct=np.full(n, 0.2)),
        truth=0.3,
        logged=float("nan"),
        largest_weight=1.0 / learner.floor,
        customers=np.arange(n),
        spreads=arm_spreads(first),
    )


def greedy(rng: Rng, n: int) -> Trial:
    """Explore little, with hardly a floor: an action may as good as vanish."""
    return thompson(rng, n, GREEDY)


def contextual_thompson(rng: Rng, n: int) -> Trial:
    """Learn by segment; the evaluated policy likes what the learner comes to avoid."""
    rates = np.array([[0.40, 0.20], [0.20, 0.40]])
    evaluated = np.array([[0.3, 0.7], [0.7, 0.3]])
    versions = np.arange(n) // CAREFUL.cadence
    segments, points = rng.integers(0, 2, n), rng.random(n)
    actions, rewards = np.empty(n, dtype=np.int64), np.empty(n)
    policies = np.empty((int(versions[-1]) + 1, 2, 2))
    counts, successes = np.zeros((2, 2)), np.zeros((2, 2))
    for version in range(len(policies)):
        rows = np.flatnonzero(versions == version)
        share = CAREFUL.share(counts, successes)
        policies[version] = np.stack([share, 1.0 - share], axis=1)
        actions[rows] = points[rows] >= share[segments[rows]]
        rewards[rows] = rng.random(len(rows)) < rates[segments[rows], actions[rows]]
        np.add.at(counts, (segments[rows], actions[rows]), 1.0)
        np.add.at(successes, (segments[rows], actions[rows]), rewards[rows])
    propensities = policies[versions, segments, actions]
    weights = evaluated[segments, actions] / propensities
    spreads = version_spreads(
        weights * rewards, weights, propensities, versions, policies[:, segments, actions]
    )
    return Trial(
        Weighed(rewards=rewards, weights=weights, fitted=np.full(n, 0.3), direct=np.full(n, 0.3)),
        truth=float((evaluated * rates).sum(axis=1).mean()),
        logged=float("nan"),
        largest_weight=0.7 / CAREFUL.floor,
        customers=np.arange(n),
        spreads=spreads,
    )


WORLDS: Mapping[str, tuple[Callable[[Rng, int], Trial], int]] = {
    "uniform": (uniform, 2000),
    "skewed": (skewed, 2000),
    "rare": (rare, 5000),
    "returning": (returning, 2000),
    "thompson": (thompson, 2000),
    "greedy": (greedy, 2000),
    "thompson with context": (contextual_thompson, 2000),
}
"""How a log is drawn, and how many rows it has."""
