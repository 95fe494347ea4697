"""Rank-one updates give what a full fold and publication give."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import rng
from bandit.actions import ActionSpace, Level
from bandit.errors import InvalidInputError
from bandit.features import FeatureMap, Term, default_terms
from bandit.kernels import online
from bandit.logistic import LogisticPosterior
from bandit.online import OnlineArms, OnlineBelief, OnlineWeights, begin
from bandit.posterior import GaussianPosterior, Noise, Outcomes

STREAM = rng.snapshot_stream(b"secret", "e", 1)
D = 4


class Model(NamedTuple):
    """A model with what its outcomes are folded into."""

    features: FeatureMap
    posterior: GaussianPosterior
    belief: OnlineBelief


def space(*, variants: int = 3, channels: int = 1) -> ActionSpace:
    return ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(variants)),
        channels=tuple(Level(name=f"c{i}") for i in range(channels)),
    )


def model(*, joint: bool, sd: float | None = None, exploration: float = 1.0, n: int = 0) -> Model:
    actions = space(channels=2 if joint else 1)
    terms = (
        tuple(Term(of=t.of, prior_sd=0.7) for t in default_terms(actions))
        if joint
        else (Term(of="context:variant", prior_sd=0.7),)
    )
    features = FeatureMap(space=actions, terms=terms, width=D)
    posterior = GaussianPosterior(features, Noise(sd=sd))
    prior = posterior.moments()
    if n:
        posterior.fold(outcomes(n, actions.size, seed=5), seq=n)
    given_ = {"exploration": exploration, "stream": STREAM, "noise_sd": sd}
    start = posterior.moments()
    belief = (
        OnlineWeights(prior, start, features=features, **given_)
        if joint
        else OnlineArms(prior, start, **given_)
    )
    return Model(features, posterior, belief)


def outcomes(n: int, k: int, seed: int) -> Outcomes:
    random = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), random.standard_normal((n, D - 1))])
    return Outcomes(x, random.integers(0, k, n), random.normal(2.0, 1.5, n))


def covariances(belief: OnlineBelief) -> tuple[np.ndarray, np.ndarray]:
    """Give means (b, m) and covariances (b, m, m) in units of the noise."""
    if isinstance(belief, OnlineWeights):
        return belief._mean[None], (belief._root.T @ belief._root)[None]
    assert isinstance(belief, OnlineArms)
    roots = np.zeros((belief._arms.shape[1], D, D))
    roots[:, *np.tril_indices(D)] = belief._arms[D:].T
    return belief._arms[:D].T, np.swapaxes(roots, 1, 2) @ roots


def assert_same(belief: OnlineBelief, posterior: GaussianPosterior) -> None:
    moments = posterior.moments()
    mean, covariance = covariances(belief)
    expected = np.linalg.inv(moments.lower @ np.swapaxes(moments.lower, 1, 2))
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(mean, moments.mean, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(belief._state[:2], [moments.shape, moments.scale], rtol=1e-9)


@pytest.mark.parametrize("joint", [False, True])
@settings(max_examples=25)
@given(before=st.integers(0, 20), n=st.integers(1, 60), seed=st.integers(0, 10**9))
def test_updates_equal_a_fold(*, joint: bool, before: int, n: int, seed: int):
    features, posterior, belief = model(joint=joint, n=before)
    new = outcomes(n, features.space.size, seed)
    posterior.fold(new, seq=before + n)
    for x, action, reward in zip(new.x, new.actions, new.rewards, strict=True):
        belief.learn(x, int(action), float(reward))
    assert_same(belief, posterior)


@pytest.mark.parametrize("joint", [False, True])
def test_a_wrong_update_would_be_noticed(*, joint: bool):
    features, posterior, belief = model(joint=joint)
    new = outcomes(9, features.space.size, 1)
    posterior.fold(new, seq=9)
    for x, action, reward in zip(new.x, new.actions, new.rewards, strict=True):
        belief.add(x, int(action), float(reward), 1.0 + 1e-6)
    with pytest.raises(AssertionError):
        assert_same(belief, posterior)


@pytest.mark.parametrize("joint", [False, True])
@settings(max_examples=20)
@given(weight=st.floats(0.01, 10.0), share=st.floats(0.01, 1.0), seed=st.integers(0, 10**9))
def test_weights_and_forgetting_equal_a_weighted_regression(
    *, joint: bool, weight: float, share: float, seed: int
):
    features, _, belief = model(joint=joint)
    x, actions, rewards, *_ = outcomes(30, features.space.size, seed)
    for row, action, reward in zip(x, actions, rewards, strict=True):
        belief.add(row, int(action), float(reward), weight)
    belief.forget(share)
    mean, covariance = covariances(belief)
    phi = np.zeros((30, len(mean), mean.shape[1]))
    for t, action in enumerate(actions):
        if joint:
            for j, crossed in enumerate(features.crossed):
                at = features.offsets[j] + features.cells[j, action] * (D if crossed else 1)
                phi[t, 0, at : at + (D if crossed else 1)] = x[t] if crossed else 1.0
        else:
            phi[t, action] = x[t]
    w = weight * share
    precision = w * np.einsum("tbi,tbj->bij", phi, phi) + np.diag(features.prior_precision)
    np.testing.assert_allclose(covariance, np.linalg.inv(precision), rtol=1e-8, atol=1e-10)
    shift = w * np.einsum("tbi,t->bi", phi, rewards)
    expected = np.linalg.solve(precision, shift[..., None])[..., 0]
    np.testing.assert_allclose(mean, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("joint", [False, True])
def test_draws_follow_the_published_belief(*, joint: bool):
    """Shares of 20,000 draws against 200,000 of the dense posterior: 5 sd, false alarm 1e-5."""
    features, posterior, belief = model(joint=joint, n=25, exploration=1.4)
    x = np.array([1.0, 0.4, -1.0, 0.2])
    k = features.space.size
    eligible = np.ones(k, dtype=np.bool_)
    eligible[1] = False
    chosen = belief.draw_batch(np.tile(x, (20_000, 1)), eligible, 7)
    assert chosen[:50].tolist() == [belief.draw(x, eligible, 7 + i) for i in range(50)]
    mean, lower, variance, _, _ = posterior.moments()
    random = np.random.default_rng(1)
    covariance = variance * 1.4**2 * np.linalg.inv(lower @ np.swapaxes(lower, 1, 2))
    weights = [
        random.multivariate_normal(m, c, 200_000) for m, c in zip(mean, covariance, strict=True)
    ]
    scores = np.zeros((200_000, k))
    for a in range(k):
        if joint:
            for j, crossed in enumerate(features.crossed):
                at = features.offsets[j] + features.cells[j, a] * (D if crossed else 1)
                part = weights[0][:, at : at + (D if crossed else 1)]
                scores[:, a] += part @ x if crossed else part[:, 0]
        else:
            scores[:, a] = weights[a] @ x
    scores[:, 1] = -np.inf
    p = np.bincount(scores.argmax(axis=1), minlength=k) / 200_000
    share = np.bincount(chosen, minlength=k) / 20_000
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) * (1 / 20_000 + 1 / 200_000)) + 1e-12).all()


def test_every_number_names_its_own_draw():
    _, _, belief = model(joint=False)
    x, everyone = np.ones(D), np.ones(3, dtype=np.bool_)
    first = [belief.draw(x, everyone, i) for i in range(200)]
    assert first == [belief.draw(x, everyone, i) for i in range(200)]
    assert set(first) == {0, 1, 2}


def test_a_million_updates_of_one_arm_stay_a_posterior():
    _, posterior, belief = model(joint=False)
    assert isinstance(belief, OnlineArms)
    x = outcomes(200, 3, 1).x
    for i in range(1_000_000):
        online.learn_arm(x[i % 200], 0, 1.5, 1.0, belief._arms, belief._state)
    mean, covariance = covariances(belief)
    precision = 5_000 * x.T @ x + np.diag(posterior.features.prior_precision)
    np.testing.assert_allclose(covariance[0], np.linalg.inv(precision), rtol=1e-7, atol=1e-15)
    np.testing.assert_allclose(mean[0], [1.5, 0.0, 0.0, 0.0], atol=1e-5)


def test_new_arms_start_from_the_prior():
    _, posterior, belief = model(joint=False, n=30)
    assert isinstance(belief, OnlineArms)
    belief.add_arms(2)
    mean, covariance = covariances(belief)
    np.testing.assert_array_equal(mean[3:], 0.0)
    prior = np.diag(1.0 / posterior.features.prior_precision)
    np.testing.assert_allclose(covariance[3:], [prior, prior])


@settings(max_examples=50)
@given(
    eta=st.floats(-30, 30), variance=st.floats(1e-6, 1e4), reward=st.sampled_from([0.0, 0.3, 1.0])
)
def test_a_logistic_step_ends_at_the_mode(eta: float, variance: float, reward: float):
    pull, curvature = online.newton_site(eta, variance, reward)
    mode = eta + variance * pull
    p = 1.0 / (1.0 + np.exp(-mode))
    np.testing.assert_allclose(pull, reward - p, atol=1e-8)
    np.testing.assert_allclose(curvature, p * (1.0 - p), atol=1e-8)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_fading_belief_stays_beside_a_fading_posterior(*, joint: bool, size: float):
    """The prior weighs up to 1.4 % too little between refactorings, and so may the rest."""
    features, _, _ = model(joint=joint)
    posterior = GaussianPosterior(features, Noise(), 200.0)
    belief = begin(posterior, exploration=1.0, stream=STREAM)
    x, actions, rewards, *_ = outcomes(2_000, features.space.size, 3)
    rewards = size * (x @ np.array([1.0, 0.5, -0.5, 0.3]) + 0.1 * rewards)
    times = np.arange(2_000.0)
    posterior.fold(Outcomes(x, actions, rewards, times), seq=2_000)
    for row, action, reward, time in zip(x, actions, rewards, times, strict=True):
        belief.learn(row, int(action), float(reward), float(time))
    belief.forget(2.0 ** -((1_999.0 - (belief._landmark or 0.0)) / 200.0))
    moments = posterior.moments()
    mean, covariance = covariances(belief)
    expected = np.linalg.inv(moments.lower @ np.swapaxes(moments.lower, 1, 2))
    np.testing.assert_allclose(covariance, expected, rtol=0.03, atol=1e-4)
    np.testing.assert_allclose(mean, moments.mean, atol=0.03 * size)
    assert belief._state[1] / belief._state[0] == pytest.approx(moments.noise_variance, rel=0.03)


def test_a_belief_that_goes_on_from_a_fading_posterior_counts_the_pause():
    features, _, _ = model(joint=False)
    posterior = GaussianPosterior(features, Noise(), 100.0)
    x, actions, rewards, *_ = outcomes(60, 3, 4)
    posterior.fold(Outcomes(x, actions, rewards, np.arange(60.0)), seq=60)
    belief = begin(posterior, exploration=1.0, stream=STREAM)
    late = Outcomes(x[:1], actions[:1], rewards[:1], np.array([559.0]))
    posterior.fold(late, seq=61)
    belief.learn(x[0], int(actions[0]), float(rewards[0]), 559.0)
    assert_same(belief, posterior)


def test_what_can_not_be_learned_at_once_is_refused():
    features, _, _ = model(joint=False)
    with pytest.raises(InvalidInputError, match="at once"):
        begin(GaussianPosterior(features, Noise(), pooled=True), exploration=1.0, stream=STREAM)
    fading = GaussianPosterior(features, Noise(), 10.0)
    with pytest.raises(InvalidInputError, match="posterior"):
        begin(fading, exploration=1.0, stream=STREAM, half_life=5.0)


def by_surprise(half_life: float, *, joint: bool = False, sd: float | None = None) -> OnlineBelief:
    posterior = model(joint=joint, sd=sd).posterior
    return begin(posterior, exploration=1.0, stream=STREAM, surprise_half_life=half_life)


def information(belief: OnlineBelief) -> float:
    """Give how much the belief knows beyond its prior: the growth of the precision's trace."""
    _, covariance = covariances(belief)
    _, prior = covariances(by_surprise(1.0, joint=isinstance(belief, OnlineWeights)))
    precision = np.linalg.inv(covariance) - np.linalg.inv(prior)
    return float(np.trace(precision, axis1=1, axis2=2).sum())


@pytest.mark.parametrize("sd", [None, 0.5])
@pytest.mark.parametrize("joint", [False, True])
@settings(max_examples=15)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**9))
def test_surprise_is_the_squared_error_over_its_variance(
    *, joint: bool, sd: float | None, n: int, seed: int
):
    belief = by_surprise(30.0, joint=joint, sd=sd)
    features, expected = model(joint=joint).features, 0.0
    x, actions, rewards, *_ = outcomes(n, features.space.size, seed)
    for row, action, reward in zip(x, actions.tolist(), rewards.tolist(), strict=True):
        if belief._landmark is not None:
            belief._fade(belief._surprise)  # as the update itself begins
        weight = 2.0 ** ((belief._surprise - (belief._landmark or 0.0)) / 30.0)
        mean, covariance = covariances(belief)
        at, phi = (0, features.design(row, action)) if joint else (action, row)
        noise = sd * sd if sd else belief._state[1] / belief._state[0]
        spread = noise * (1.0 + weight * (phi @ covariance[at] @ phi))
        expected += min((reward - phi @ mean[at]) ** 2 / spread, 30.0)
        belief.learn(row, action, reward, time=1e6)  # time does not matter
        assert belief._surprise == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("joint", [False, True])
def test_a_change_makes_the_past_fade_sooner(*, joint: bool):
    """Outcomes that keep to the model are forgotten at the half-life's pace, others sooner."""
    random, weights = np.random.default_rng(6), np.array([1.0, 0.5, -0.5, 0.3])
    belief = by_surprise(200.0, joint=joint)
    k = model(joint=joint).features.space.size
    x, actions, *_ = outcomes(3_000, k, 8)
    noise = 0.3 * random.standard_normal(3_000)
    for t in range(2_900):
        belief.learn(x[t], int(actions[t]), float(x[t] @ weights + noise[t]))
    assert belief._surprise == pytest.approx(2_900, rel=0.15)  # sd of the mean: 2.6 %
    known, clock = information(belief), belief._surprise
    for t in range(2_900, 2_930):
        belief.learn(x[t], int(actions[t]), float(noise[t] - x[t] @ weights))
    assert belief._surprise - clock > 150.0  # in time: 30
    assert information(belief) < 0.75 * known  # in time: unchanged
    noise_sd = (belief._state[1] / belief._state[0]) ** 0.5
    assert noise_sd < 0.5  # the change does not pass for noise


def test_one_outcome_forgets_half_at_most():
    belief = by_surprise(50.0)
    x, actions, rewards, *_ = outcomes(400, 3, 9)
    for row, action, reward in zip(x, actions, rewards, strict=True):
        belief.learn(row, int(action), float(reward))
    clock = belief._surprise
    belief.learn(x[0], 0, 1e9)
    assert belief._surprise - clock == 50.0
    mean, covariance = covariances(belief)
    assert np.isfinite(mean).all()
    assert (np.diagonal(covariance, axis1=1, axis2=2) > 0.0).all()


@pytest.mark.parametrize("joint", [False, True])
def test_surprise_counts_in_a_batch_as_one_by_one(*, joint: bool):
    one, many = by_surprise(20.0, joint=joint), by_surprise(20.0, joint=joint)
    x, actions, rewards, *_ = outcomes(60, model(joint=joint).features.space.size, 10)
    for row, action, reward in zip(x, actions, rewards, strict=True):
        one.learn(row, int(action), float(reward))
    many.learn_batch(x, actions, rewards)
    assert one._surprise == many._surprise > 0.0
    np.testing.assert_array_equal(covariances(one)[1], covariances(many)[1])


def test_a_half_life_in_surprise_that_has_no_meaning_is_refused():
    features, posterior, _ = model(joint=False)
    with pytest.raises(InvalidInputError, match="outcomes"):
        by_surprise(0.0)
    with pytest.raises(InvalidInputError, match="Gaussian"):
        begin(LogisticPosterior(features), exploration=1.0, stream=STREAM, surprise_half_life=9.0)
    with pytest.raises(InvalidInputError, match="beside"):
        begin(posterior, exploration=1.0, stream=STREAM, half_life=5.0, surprise_half_life=9.0)
    fading = GaussianPosterior(features, Noise(), 10.0)
    with pytest.raises(InvalidInputError, match="beside"):
        begin(fading, exploration=1.0, stream=STREAM, surprise_half_life=9.0)


@pytest.mark.parametrize("joint", [False, True])
def test_a_saturated_success_leaves_a_sane_logistic_belief(*, joint: bool):
    features, _, _ = model(joint=joint)
    belief = begin(LogisticPosterior(features), exploration=1.0, stream=STREAM)
    for size in (*(1.0,) * 50, 30.0, 1_000.0, 1e6):
        belief.learn(np.array([1.0, size, 0.0, 0.0]), 0, 1.0)
    belief.learn(np.array([1.0, -1e6, 0.0, 0.0]), 0, 1.0)
    mean, covariance = covariances(belief)
    assert np.isfinite(mean).all()
    assert np.isfinite(covariance).all()
    assert (np.diagonal(covariance, axis1=1, axis2=2) > 0.0).all()
