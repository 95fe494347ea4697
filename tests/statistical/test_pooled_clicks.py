"""A pooled prior foretells the clicks of a new arm, and of arms with few outcomes, better.

Worlds of ten arms with 2 % to 8 % clicks whose weights scatter by .3 around common ones; nine
arms have 200 outcomes each, the tenth has none or 100. The loss is the expected log loss of
the belief's mean over 200 contexts, above that of the true rates, in thousandths. The base
rate is declared right, so that what pooling adds is what the arms have in common.

In 600 other worlds the pooled loss was below the other one by 7.2 with a standard deviation of
11.3 for the new arm, by 11.6 and 9.8 after 100 outcomes, by 5.0 and 1.5 for the known arms. So
the mean of 100 worlds is more than six of its standard deviations above 0: false alarms below
1e-6.
"""

import numpy as np
import pytest
from scipy import special

from bandit.actions import ActionSpace, Level
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.logistic import LogisticPosterior
from bandit.posterior import Outcomes

ARMS, WIDTH, EACH = 10, 4, 200


def loss(mean: Floats, weights: Floats, x: Floats) -> float:
    """Give what log loss expects above the true rates', in thousandths."""
    p, q = special.expit(x @ weights.T), special.expit(x @ mean.T)
    return 1e3 * float((special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).mean())


def gain(seed: int, own: int, *, known: bool) -> float:
    """Give the loss of a flat prior above that of a pooled one, in one world."""
    random = np.random.default_rng(seed)
    common = np.append(special.logit(random.uniform(0.02, 0.08)), random.normal(0, 0.4, WIDTH - 1))
    weights = common + 0.3 * random.standard_normal((ARMS, WIDTH))
    actions = np.append(np.repeat(np.arange(ARMS - 1), EACH), np.full(own, ARMS - 1))
    x = np.column_stack([np.ones(len(actions)), random.uniform(-1, 1, (len(actions), WIDTH - 1))])
    rates = special.expit((x * weights[actions]).sum(axis=1))
    outcomes = Outcomes(x, actions, (random.random(len(rates)) < rates).astype(float))
    grid = np.column_stack([np.ones(200), random.uniform(-1, 1, (200, WIDTH - 1))])
    space = ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(ARMS)), channels=(Level(name="c"),)
    )
    features = FeatureMap(space=space, terms=(Term(of="context:variant"),), width=WIDTH)
    arms = slice(ARMS - 1) if known else slice(ARMS - 1, ARMS)
    found = []
    for pooled in (False, True):
        posterior = LogisticPosterior(features, 0.05, pooled=pooled)
        posterior.fold(outcomes, seq=1)
        found.append(loss(posterior.moments().mean[arms], weights[arms], grid))
    return found[0] - found[1]


@pytest.mark.parametrize(("own", "known"), [(0, False), (100, False), (0, True)])
def test_clicks_are_foretold_better(own: int, *, known: bool):
    assert np.mean([gain(seed, own, known=known) for seed in range(100)]) > 0.0
