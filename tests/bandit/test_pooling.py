"""Pooled priors against brute-force maximisation, dense formulas and simulated levels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from bandit import rng
from bandit.actions import ActionSpace, Level
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.features import FeatureMap, Term
from bandit.kernels import pooling as kernels
from bandit.kernels.compiling import Floats
from bandit.pooling import STRENGTHS, Prior, pooled_beta, pooled_prior
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Noise, Outcomes, Posterior
from bandit.question import Question
from bandit.spec_file import from_data

SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=25)
SECRET = b"sixteen bytes or more"


def space(variants: int) -> ActionSpace:
    names = tuple(Level(name=f"v{i}") for i in range(variants))
    return ActionSpace(variants=names, channels=(Level(name="c"),))


def model(levels: int, width: int, *, noise: Noise, pooled: bool = True) -> GaussianPosterior:
    terms = (Term(of="context:variant", prior_sd=1.0),)
    features = FeatureMap(space=space(levels), terms=terms, width=width)
    return GaussianPosterior(features, noise, pooled=pooled)


def world(
    levels: int, *, each: int, width: int, mean: float, spread: float, noise: float, seed: int
) -> Outcomes:
    """Give outcomes of levels whose weights scatter around a common mean."""
    random = np.random.default_rng(seed)
    weights = mean + spread * random.standard_normal((levels, width))
    x = np.column_stack([np.ones(levels * each), random.uniform(-1, 1, (levels * each, width - 1))])
    actions = np.repeat(np.arange(levels), each)
    rewards = (x * weights[actions]).sum(axis=1) + noise * random.standard_normal(len(x))
    return Outcomes(x, actions, rewards)


def statistics(outcomes: Outcomes, levels: int) -> tuple[Floats, Floats, Floats]:
    folded = model(levels, outcomes.x.shape[1], noise=Noise())
    folded.fold(outcomes, seq=1)
    return folded.precision, folded.shift, folded.sums


# --- blocks of weights ------------------------------------------------------------------


def test_without_outcomes_the_prior_is_the_declared_one():
    features = FeatureMap(
        space=space(4), terms=(Term(of="context:variant", prior_sd=0.5),), width=3
    )
    prior = GaussianPosterior(features, Noise(), pooled=True).prior()
    np.testing.assert_array_equal(prior.mean, np.zeros((4, 3)))
    np.testing.assert_array_equal(prior.precision, np.full((4, 3), 4.0))


@given(weight=st.floats(-2, 2), each=st.integers(1, 2_000))
def test_one_level_says_little_about_the_others(weight: float, each: int):
    """The common mean goes three quarters of the way at most; the width hardly changes."""
    outcomes = Outcomes(np.ones((each, 1)), np.zeros(each, dtype=np.int64), np.full(each, weight))
    mean, precision = pooled_prior(*statistics(outcomes, 3), np.ones(1), variance=1.0)
    assert abs(mean[0, 0]) <= 0.75 * abs(weight)
    assert 0.6 <= precision[0, 0] ** -0.5 <= 1.5


@FEW
@given(seed=SEEDS, empty=st.integers(1, 5))
def test_levels_without_outcomes_contribute_nothing(seed: int, empty: int):
    outcomes = world(4, each=30, width=2, mean=1.0, spread=0.3, noise=0.5, seed=seed)
    fewer = pooled_prior(*statistics(outcomes, 4), np.ones(2))
    more = pooled_prior(*statistics(outcomes, 4 + empty), np.ones(2))
    for a, b in zip(fewer, more, strict=True):
        np.testing.assert_array_equal(a[0], b[-1])


def evidence(outcomes: Outcomes, levels: int, variance: Floats, declared: Floats) -> float:
    """Log density of the rewards (noise 1) times that of the variances, from dense matrices.

    ``w_l = c + d_l`` with ``c ~ N(0, declared / 2)`` and ``d_l ~ N(0, variance)``; sqrt(variance)
    is half-Cauchy with scale sqrt(declared / 2), by the logarithm of the variance.
    """
    x, one = outcomes.x, np.eye(levels)[outcomes.actions]
    same = one @ one.T
    covariance = np.eye(len(x)) + (x * declared / 2) @ x.T + same * ((x * variance) @ x.T)
    ratio = 2 * variance / declared
    hyper = (0.5 * np.log(ratio) - np.log1p(ratio)).sum()
    mean = np.zeros(len(x))
    return float(stats.multivariate_normal.logpdf(outcomes.rewards, mean, covariance) + hyper)


@settings(max_examples=12)
@given(seed=SEEDS, levels=st.integers(1, 6), spread=st.sampled_from([0.05, 0.5, 2.0]))
def test_the_variance_is_the_mode_of_its_marginal_posterior(seed: int, levels: int, spread: float):
    outcomes = world(levels, each=12, width=2, mean=0.7, spread=spread, noise=1.0, seed=seed)
    p, h, s = statistics(outcomes, levels)
    declared = np.array([1.0, 0.25])
    mean, total = kernels.fit_blocks(p, h, s, declared, (1.0, 1.0, 0.1), 200)
    x, one = outcomes.x, np.eye(levels)[outcomes.actions]
    best = optimize.minimize(
        lambda u: -evidence(outcomes, levels, np.exp(u), declared),
        np.log(declared / 2),
        method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4_000},
    )
    variance = np.exp(best.x)
    rest = np.eye(len(x)) + (one @ one.T) * ((x * variance) @ x.T)
    precision = np.diag(2.0 / declared) + x.T @ np.linalg.solve(rest, x)
    covariance = np.linalg.inv(precision)
    expected = covariance @ x.T @ np.linalg.solve(rest, outcomes.rewards)
    np.testing.assert_allclose(mean, expected, atol=2e-3)
    np.testing.assert_allclose(np.sqrt(total), np.sqrt(variance + np.diag(covariance)), rtol=2e-3)


@FEW
@given(seed=SEEDS, levels=st.integers(3, 30), each=st.integers(10, 100))
def test_eight_rounds_are_enough(seed: int, levels: int, each: int):
    outcomes = world(levels, each=each, width=3, mean=0.5, spread=0.2, noise=0.5, seed=seed)
    p, h, s = statistics(outcomes, levels)
    noise = 0.0, 1.0, 0.1
    mean, variance = kernels.fit_blocks(p, h, s, np.ones(3), noise, 8)
    limit, width = kernels.fit_blocks(p, h, s, np.ones(3), noise, 400)
    np.testing.assert_allclose(mean, limit, atol=0.02)
    np.testing.assert_allclose(np.sqrt(variance), np.sqrt(width), rtol=0.1)


def test_mean_and_spread_of_many_levels_are_found():
    """60 levels: the mean's standard error is .026, the spread's 9 %."""
    outcomes = world(60, each=300, width=2, mean=1.0, spread=0.2, noise=0.5, seed=3)
    mean, precision = pooled_prior(*statistics(outcomes, 60), np.ones(2))
    np.testing.assert_allclose(mean[0], 1.0, atol=0.1)
    np.testing.assert_allclose(0.5 * precision[0] ** -0.5, 0.2, rtol=0.35)


@FEW
@given(seed=SEEDS)
def test_the_order_of_levels_does_not_matter(seed: int):
    outcomes = world(6, each=20, width=2, mean=0.5, spread=0.2, noise=0.5, seed=seed)
    parts, order = statistics(outcomes, 6), np.random.default_rng(seed).permutation(6)
    straight = pooled_prior(*parts, np.ones(2))
    shuffled = pooled_prior(*(np.ascontiguousarray(a[order]) for a in parts), np.ones(2))
    for a, b in zip(straight, shuffled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@settings(max_examples=60)
@given(
    seed=SEEDS,
    levels=st.integers(1, 5),
    each=st.integers(1, 40),
    unit=st.sampled_from([1e-9, 1e-3, 1.0, 1e6, 1e12]),
    kind=st.sampled_from(["random", "collinear", "constant", "zero", "huge"]),
)
def test_the_prior_is_always_finite_and_positive(
    seed: int, levels: int, each: int, unit: float, kind: str
):
    x, actions, rewards, *_ = world(
        levels, each=each, width=3, mean=0.5, spread=0.2, noise=0.5, seed=seed
    )
    x[:, 2] = {"collinear": x[:, 1], "constant": x[:, 0], "zero": 0.0 * x[:, 0]}.get(kind, x[:, 2])
    x = x * 1e6 if kind == "huge" else x
    posterior = model(levels + 1, 3, noise=Noise())
    posterior.fold(Outcomes(x, actions, rewards * unit), seq=1)
    prior = posterior.prior()
    assert np.isfinite(prior.mean).all()
    assert (prior.precision > 0).all() and np.isfinite(prior.precision).all()
    if kind == "huge":  # beyond the encoder's range; publishing refuses what is singular
        return
    moments = posterior.moments()
    assert np.isfinite(moments.mean).all() and np.isfinite(moments.lower).all()
    assert 0 < moments.noise_variance < np.inf


def test_statistics_in_units_of_the_noise_need_no_sums():
    """The form of any Gaussian approximation, such as a logistic one: known variance 1."""
    outcomes = world(5, each=50, width=2, mean=0.5, spread=0.3, noise=1.0, seed=1)
    p, h, s = statistics(outcomes, 5)
    prior = pooled_prior(p, h, np.zeros_like(s), np.ones(2), variance=1.0)
    np.testing.assert_array_equal(prior.mean, pooled_prior(p, h, s, np.ones(2), variance=1.0).mean)
    assert prior.mean.shape == prior.precision.shape == (5, 2)


@FEW
@given(seed=SEEDS, known=st.booleans())
def test_the_posterior_is_ridge_regression_around_the_prior(seed: int, known: bool):  # noqa: FBT001
    noise = Noise(sd=0.5) if known else Noise(shape=2.0, scale=3.0)
    outcomes = world(4, each=15, width=2, mean=0.8, spread=0.3, noise=0.5, seed=seed)
    posterior = model(5, 2, noise=noise)
    posterior.fold(outcomes, seq=1)
    prior, moments = posterior.prior(), posterior.moments()
    scale = 3.0
    for level in range(5):
        mine = outcomes.actions == level
        x, r = outcomes.x[mine], outcomes.rewards[mine]
        precision = x.T @ x + np.diag(prior.precision[level])
        pull = prior.precision[level] * prior.mean[level]
        mean = np.linalg.solve(precision, x.T @ r + pull)
        np.testing.assert_allclose(moments.mean[level], mean, atol=1e-9)
        np.testing.assert_allclose(moments.lower[level] @ moments.lower[level].T, precision)
        scale += 0.5 * (r @ r + prior.mean[level] @ pull - mean @ precision @ mean)
    if known:
        assert moments.noise_variance == 0.25
    else:
        np.testing.assert_allclose([moments.shape, moments.scale], [32.0, scale], rtol=1e-9)


def test_a_new_level_starts_where_the_others_are():
    outcomes = world(8, each=400, width=2, mean=0.6, spread=0.02, noise=0.3, seed=1)
    pooled, flat = model(9, 2, noise=Noise()), model(9, 2, noise=Noise(), pooled=False)
    for posterior in (pooled, flat):
        posterior.fold(outcomes, seq=1)
    np.testing.assert_allclose(pooled.moments().mean[8], 0.6, atol=0.05)
    np.testing.assert_array_equal(flat.moments().mean[8], 0.0)
    spread = np.sqrt(pooled.moments().noise_variance / pooled.prior().precision[8])
    assert (spread < 0.06).all()  # flat: .3


def test_in_the_factored_model_a_new_level_starts_from_the_shared_block():
    terms = (Term(of="context"), Term(of="context:variant", prior_sd=0.1))
    features = FeatureMap(space=space(9), terms=terms, width=2)
    posterior = GaussianPosterior(features, Noise(sd=0.3))
    outcomes = world(8, each=400, width=2, mean=0.6, spread=0.02, noise=0.3, seed=1)
    posterior.fold(outcomes, seq=1)
    mean, lower, variance, *_ = posterior.moments()
    np.testing.assert_array_equal(mean[0, -2:], 0.0)  # what the new level adds to the shared block
    np.testing.assert_allclose(mean[0, :2], 0.6, atol=0.05)
    phi = np.zeros(len(mean[0]))
    phi[[0, -2]] = 1.0
    spread = np.sqrt(variance * phi @ np.linalg.solve(lower[0] @ lower[0].T, phi))
    assert 0.03 <= spread < 0.04  # prior_sd times the noise, and what is left of the shared block


# --- Beta prior -------------------------------------------------------------------------


def log_evidence(counts: Floats, declared: tuple[float, float], a: float, b: float) -> float:
    s, f = counts.T
    total, strength = a + b, sum(declared)
    mean = declared[0] / strength
    value = (special.betaln(a + s, b + f) - special.betaln(a, b)).sum()
    value += special.xlogy(mean, a / total) + special.xlogy(1 - mean, b / total)
    return float(value + 0.5 * np.log(total / strength) - np.log1p(total / strength))


def brute_force(counts: Floats, declared: tuple[float, float]) -> float:
    """Give the largest evidence that a grid and a local search from its best points find."""
    strengths, means = np.geomspace(1, 1e6, 25), special.expit(np.linspace(-9, 9, 37))
    points = [(n * p, n * (1 - p)) for n in strengths for p in means]
    allowed = [(a, b) for a, b in points if min(a, b) >= 0.5]
    s, f = counts.T
    a, b = np.array(allowed).T[:, :, None]
    values = (special.betaln(a + s, b + f) - special.betaln(a, b)).sum(axis=1)
    top = np.array(allowed)[np.argsort(-values)[:2]]
    found = [
        optimize.minimize(
            lambda u: -log_evidence(counts, declared, *np.exp(u)),
            np.log(start),
            bounds=[(np.log(0.5), np.log(1e6))] * 2,
            method="L-BFGS-B",
        ).fun
        for start in (*top, (1.0, 1.0))
    ]
    return -min(found)


COUNTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 4.5)), min_size=1, max_size=12)


@settings(max_examples=15)
@given(arms=COUNTS, base=st.sampled_from([0.01, 0.2, 1.0]), flat=st.booleans())
def test_the_beta_prior_has_the_largest_evidence(
    arms: list[tuple[float, float]],
    base: float,
    flat: bool,  # noqa: FBT001
):
    rate, trials = np.array(arms).T
    counts = 10.0 ** trials[:, None] * np.column_stack([rate * base, 1 - rate * base])
    declared = (1.0, 1.0) if flat else (2.0, 38.0)
    found = pooled_beta(counts, declared)
    assert min(found) >= 0.5
    assert sum(found) <= STRENGTHS[-1] * (1 + 1e-9)
    assert log_evidence(counts, declared, *found) >= brute_force(counts, declared) - 1e-5


@given(seed=SEEDS, k=st.integers(1, 50), unit=st.sampled_from([1e-300, 1e-9, 1.0, 1e9, 1e15]))
def test_no_counts_make_the_beta_prior_nan_or_unbounded(seed: int, k: int, unit: float):
    random = np.random.default_rng(seed)
    counts = unit * random.uniform(0, 1, (k, 2)) * random.integers(0, 2, (k, 2))
    a, b = pooled_beta(counts, (1.0, 1.0))
    assert a >= 0.5 and b >= 0.5 and a + b <= STRENGTHS[-1] * (1 + 1e-9)


@pytest.mark.parametrize(
    "counts",
    [
        [[0, 0]],
        [[0, 900]],
        [[900, 0]],
        [[0, 5]] * 40,
        [[20, 980]] * 40,
        [[0.5, 0.5]],
        [[0, 1], [1, 0]],
    ],
)
def test_degenerate_counts_give_a_sane_prior(counts: list[list[float]]):
    given_ = np.array(counts, dtype=float)
    a, b = pooled_beta(given_, (1.0, 1.0))
    assert 0.5 <= a <= 1e6 and 0.5 <= b <= 1e6
    successes, failures = given_.sum(axis=0)
    if successes + failures > 0:
        low, high = sorted((0.5, successes / (successes + failures)))
        assert low - 1e-9 <= a / (a + b) <= high + 1e-9  # between the declared and the observed


def test_without_counts_the_beta_prior_is_the_declared_one():
    assert pooled_beta(np.zeros((5, 2)), (2.0, 98.0)) == (2.0, 98.0)
    posterior = BetaBernoulliPosterior(3, (2.0, 7.0), pooled=True)
    np.testing.assert_array_equal(posterior.parameters(), [[2.0] * 3, [7.0] * 3])


def test_arms_without_counts_do_not_move_the_beta_prior():
    counts = np.array([[3.0, 97.0], [1.0, 99.0], [6.0, 94.0]])
    more = np.vstack([counts, np.zeros((7, 2))])
    assert pooled_beta(counts, (1.0, 1.0)) == pooled_beta(more, (1.0, 1.0))


def test_the_beta_prior_of_many_arms_is_found():
    """200 arms of 2,000: the mean's standard error is .0001, the strength's about 11 %."""
    random = np.random.default_rng(2)
    rates = random.beta(10, 490, 200)
    successes = random.binomial(2_000, rates)
    a, b = pooled_beta(np.column_stack([successes, 2_000 - successes]).astype(float), (1.0, 1.0))
    assert a / (a + b) == pytest.approx(0.02, abs=0.002)
    assert a + b == pytest.approx(500, rel=0.4)


@given(x=st.floats(0.5, 1e7))
def test_gamma_functions_of_fixed_operations(x: float):
    value, first, second = kernels.gammas(x)
    scale = 1.0 + abs(special.gammaln(x))
    assert abs(value - special.gammaln(x)) <= 1e-13 * scale
    assert abs(first - special.digamma(x)) <= 1e-13 * (1.0 + abs(special.digamma(x)))
    assert second == pytest.approx(float(special.polygamma(1, x)), rel=1e-12)


# --- through the front door -------------------------------------------------------------


def experiment(policy: dict[str, object], arms: int = 10) -> Experiment:
    whole = {
        "name": "pooled",
        "actions": {"variants": [f"v{i}" for i in range(arms)], "channels": ["x"]},
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "groups": {"random": 0.0},
        "policy": policy,
    }
    return Experiment(from_data(whole), secret=SECRET)


RATES = np.linspace(0.01, 0.03, 9)


def burned(policy: dict[str, object], seed: int) -> int:
    """Count decisions for a new, ordinary arm (2 %) among nine known ones (1 to 3 %), of 2,000."""
    of, random = experiment(policy), np.random.default_rng(seed)
    posterior, rates = of.prior(), np.append(RATES, 0.02)
    teach(of, posterior)
    spent = 0
    for at in range(0, 2_000, 200):
        snapshot = of.publish(posterior, version=at)
        ids = [rng.decision_id(SECRET, "pooled", f"{seed} {at + i}", 0) for i in range(200)]
        asked = [Question(i, b"c", ()) for i in ids]
        actions = [d.action for d in of.decide_batch(snapshot, asked, propensities=False)]
        chosen = np.array(actions)
        outcomes = (random.uniform(size=200) < rates[chosen]).astype(float)
        of.learn(posterior, np.zeros((200, 0)), chosen.tolist(), outcomes, seq=at + 10)
        spent += int((chosen == 9).sum())
    return spent


def teach(of: Experiment, posterior: Posterior) -> None:
    """Let every arm but the last earn at its rate, 2,000 times."""
    for arm, rate in enumerate(RATES):
        outcomes = (np.arange(2_000) < 2_000 * rate).astype(float)
        of.learn(posterior, np.zeros((2_000, 0)), [arm] * 2_000, outcomes, seq=arm)


@pytest.mark.parametrize("posterior", ["beta_bernoulli", "gaussian"])
def test_a_new_arm_burns_less_traffic(posterior: str):
    """Fixed seeds: 275 for 1016 decisions with Beta beliefs, 308 for 610 with Gaussian ones."""
    policy = {"posterior": posterior, "noise": {"sd": 0.14}, "exploration": 1.0}
    if posterior == "gaussian":
        policy["terms"] = [{"of": "context:variant", "prior_sd": 1.0}]
    pooled = sum(burned({**policy, "pooled": True}, seed) for seed in (1, 2))
    flat = sum(burned(policy, seed) for seed in (1, 2))
    assert pooled < 0.7 * flat


def test_a_new_arm_starts_near_the_base_rate():
    of = experiment({"posterior": "beta_bernoulli", "pooled": True})
    posterior = of.prior()
    teach(of, posterior)
    assert isinstance(posterior, BetaBernoulliPosterior)
    successes, failures = posterior.parameters()
    assert successes[9] / (successes[9] + failures[9]) == pytest.approx(0.02, abs=0.002)


def test_a_pooled_prior_needs_actions_with_weights_of_their_own():
    two = {"variants": ["a", "b"], "channels": ["x", "y"]}
    base = {"name": "e", "outcome": {"window": 1, "rewards": [{"name": "r"}]}, "actions": two}
    with pytest.raises(InvalidInputError, match="weights of their own") as caught:
        from_data({**base, "policy": {"pooled": True}})
    assert caught.value.field == "policy.pooled"
    own = {"pooled": True, "terms": [{"of": "context:variant:channel"}]}
    assert from_data({**base, "policy": own}).policy.pooled


def test_a_pooled_prior_has_a_largest_size():
    fields = [{"name": f"f{i}", "kind": "flag", "required": True} for i in range(99)]
    actions = {"variants": [f"v{i}" for i in range(101)], "channels": ["x"]}
    outcome = {"window": 1, "rewards": [{"name": "r"}]}
    spec = {"name": "e", "actions": actions, "context": fields, "outcome": outcome}
    from_data(spec)
    with pytest.raises(InvalidInputError, match="at most 100,000,000"):
        from_data({**spec, "policy": {"pooled": True}})


def test_unpooled_posteriors_keep_their_declared_prior():
    posterior = model(3, 2, noise=Noise(), pooled=False)
    posterior.fold(world(3, each=9, width=2, mean=1, spread=1, noise=1, seed=1), seq=1)
    prior = posterior.prior()
    assert isinstance(prior, Prior)
    np.testing.assert_array_equal(prior.mean, np.zeros((3, 2)))
    np.testing.assert_array_equal(prior.precision, np.ones((3, 2)))
