"""Moments of every action's score, on every form of belief, against plain algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit.actions import ActionSpace, Level
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.posterior import (
    BetaBernoulliPosterior,
    GaussianPosterior,
    Noise,
    Outcomes,
    Posterior,
)
from bandit.snapshot import Asked, SampleBank, publish
from tests.bandit.dense import design

WIDTH = 3
STREAM = np.arange(4, dtype=np.uint32)


def contexts(n: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    return np.column_stack([np.ones(n), random.standard_normal((n, WIDTH - 1))])


def learned(terms: list[str], seed: int, sizes: tuple[int, int, int] = (3, 2, 2)) -> Posterior:
    variants, channels, slots = (tuple(Level(name=str(i)) for i in range(n)) for n in sizes)
    space = ActionSpace(variants=variants, channels=channels, slots=slots)
    parts = tuple(Term(of=of, prior_sd=0.5) for of in terms)
    posterior = GaussianPosterior(FeatureMap(space=space, terms=parts, width=WIDTH), Noise())
    random = np.random.default_rng(seed)
    actions, rewards = random.integers(0, space.size, 40), random.uniform(0, 1, 40)
    posterior.fold(Outcomes(contexts(40, seed), actions, rewards), seq=40)
    return posterior


def asked(x: Floats, k: int) -> Asked:
    everyone, n = np.ones((1, k), dtype=np.bool_), len(x)
    return Asked(x, np.zeros(n, dtype=np.int64), everyone, np.zeros((n, 4), dtype=np.uint32))


def moments(posterior: Posterior, x: Floats, **how: float) -> tuple[Floats, Floats]:
    belief = publish(
        posterior, version=1, stream=STREAM, **{"exploration": 1.0, "draws": 256, **how}
    ).belief
    centre, spread = belief.moments(asked(x, posterior.actions))
    np.testing.assert_array_equal(belief.means(asked(x, posterior.actions)), centre)
    return centre, spread


def dense(posterior: Posterior, row: Floats) -> tuple[Floats, Floats]:
    """Give means and standard deviations by the dense posterior."""
    assert isinstance(posterior, GaussianPosterior)
    features, derived = posterior.features, posterior.moments()
    covariance = [derived.noise_variance * np.linalg.inv(c @ c.T) for c in derived.lower]
    if features.is_disjoint:
        spread = [np.sqrt(row @ one @ row) for one in covariance]
        return derived.mean @ row, np.array(spread)
    phi = design(features, row)
    return phi @ derived.mean[0], np.sqrt(np.einsum("ai,ij,aj->a", phi, covariance[0], phi))


@given(seed=st.integers(0, 10**6), exploration=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=20)
def test_independent_arms_have_the_dense_moments(seed: int, exploration: float):
    posterior, x = learned(["context:variant:channel:slot"], seed), contexts(3, seed + 1)
    centre, spread = moments(posterior, x, exploration=exploration)
    for i, row in enumerate(x):
        mean, sd = dense(posterior, row)
        np.testing.assert_allclose(centre[i], mean, atol=1e-12)
        np.testing.assert_allclose(spread[i], exploration * sd, atol=1e-12)


JOINT = {
    "default": ["context", "context:variant", "context:channel", "context:slot", "variant:slot"],
    "chain": ["variant:channel", "channel:slot", "context:variant"],
    "three planes": ["variant:channel", "channel:slot", "variant:slot", "context"],
    "flat": ["context", "variant", "channel", "slot"],
    "full": ["context:variant", "variant:channel:slot"],
}


@pytest.mark.parametrize("terms", JOINT.values(), ids=JOINT)
@pytest.mark.parametrize("draws", [4096, 4097, 4099])
def test_shared_weights_have_exact_means_and_spreads_of_the_bank(terms: list[str], draws: int):
    """Each spread within five standard errors of the exact one: 60 of them, 4e-5 in all."""
    posterior, x = learned(terms, 5), contexts(5, 6)
    centre, spread = moments(posterior, x, draws=draws, exploration=1.5)
    for i, row in enumerate(x):
        mean, sd = dense(posterior, row)
        np.testing.assert_allclose(centre[i], mean, atol=1e-12)
        np.testing.assert_allclose(spread[i], 1.5 * sd, rtol=5.0 / np.sqrt(2 * draws))


def test_spreads_are_those_of_this_very_bank():
    posterior, x = learned(JOINT["default"], 5), contexts(4, 6)
    belief = publish(posterior, version=1, stream=STREAM, exploration=1.0, draws=33).belief
    assert isinstance(belief, SampleBank)
    _, spread = belief.moments(asked(x, 12))
    for i, row in enumerate(x):
        apart = design(belief.features, row) @ (belief.bank - belief.mean[:, None])
        np.testing.assert_allclose(spread[i], np.sqrt((apart**2).mean(axis=1)), rtol=1e-12)


def test_the_error_of_a_spread_is_as_told():
    """Over 200 banks of 64 draws the relative error has the sd 1 / sqrt(128): chi-square, 1e-6."""
    posterior, x, errors = learned(JOINT["flat"], 5), contexts(1, 6), []
    _, sd = dense(posterior, x[0])
    for i in range(200):
        stream = np.array([i, 1, 2, 3], dtype=np.uint32)
        belief = publish(posterior, version=1, stream=stream, exploration=1.0, draws=64).belief
        errors.append(belief.moments(asked(x, 12))[1][0, 0] / sd[0] - 1.0)
    squares = 128 * np.sum(np.square(errors))
    assert stats.chi2.ppf(5e-7, 200) < squares < stats.chi2.ppf(1 - 5e-7, 200)


def test_without_exploration_there_is_no_spread():
    for terms in JOINT.values():
        _, spread = moments(learned(terms, 5), contexts(3, 6), exploration=0.0)
        np.testing.assert_allclose(spread, 0.0, atol=1e-12)


@pytest.mark.parametrize("exploration", [0.0, 0.5, 2.0])
def test_beta_arms_have_their_closed_form(exploration: float):
    posterior = BetaBernoulliPosterior(4, (1.0, 9.0))
    random = np.random.default_rng(1)
    rewards = random.integers(0, 2, 50).astype(float)
    posterior.fold(Outcomes(np.ones((50, 1)), random.integers(0, 3, 50), rewards), seq=50)
    arms = stats.beta(*posterior.parameters())
    centre, spread = moments(posterior, np.ones((3, 1)), exploration=exploration)
    np.testing.assert_allclose(centre, np.tile(arms.mean(), (3, 1)), rtol=1e-12)
    np.testing.assert_allclose(spread, exploration * np.tile(arms.std(), (3, 1)), rtol=1e-12)
