"""What is logged is what happens: shares, moments and correlations over many decisions.

Seeds are fixed, so a test passes always or never. Each states how often it would fail for
another seed if the engine were right (``ALPHA``, one in a million unless said otherwise),
and each check is shown to fail on the fault that it is there to find.
"""

from functools import cache

import numpy as np
import pytest
from scipy import special, stats

from bandit import rng
from bandit.decision import Group
from bandit.experiment import Experiment
from bandit.kernels import scoring
from bandit.kernels.compiling import Floats, Ints
from bandit.kernels.streams import fill_normals, uniform
from bandit.posterior import GaussianPosterior, Posterior
from bandit.snapshot import Asked, SampleBank
from bandit.spec_file import from_data

ALPHA = 1e-6
DECISIONS = 100_000
SECRET = b"sixteen bytes or more"
FORMS: dict[str, dict[str, object]] = {
    "disjoint": {},
    "disjoint with floor": {"floor": 0.1},
    "joint": {"terms": [{"of": "context"}, {"of": "context:variant"}]},
    "joint with floor": {"terms": [{"of": "context:variant"}, {"of": "variant"}], "floor": 0.1},
    "beta": {"posterior": "beta_bernoulli"},
    "beta with floor": {"posterior": "beta_bernoulli", "floor": 0.1},
    "uniform": {"kind": "uniform"},
}
every_form = pytest.mark.parametrize("form", FORMS)
each_mode = pytest.mark.parametrize("propensities", [True, False], ids=["decide", "draw"])


def experiment(policy: dict[str, object], **parts: object) -> Experiment:
    whole = {
        "name": "e",
        "actions": {"variants": ["a", "b", "c"], "channels": ["x"]},
        "context": [{"name": "age", "kind": "number", "bounds": [-2, 2], "required": True}],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "policy": {"exploration": 1.0, **policy},
    }
    return Experiment(from_data({**whole, **parts}), secret=SECRET)


def learned(of: Experiment, n: int = 60) -> Posterior:
    random, posterior = np.random.default_rng(3), of.prior()
    k = of.spec.actions.size
    rows, actions = random.uniform(-2, 2, (n, 1)), random.integers(0, k, n)
    of.learn(posterior, rows, actions, random.uniform(0.2, 0.6, n) + 0.05 * actions, seq=n)
    return posterior


@cache
def streams() -> np.ndarray:
    ids = (rng.decision_id(SECRET, "e", str(i), i) for i in range(DECISIONS))
    names = b"".join(rng.decision_stream(SECRET, "e", one) for one in ids)
    return rng.words(names).reshape(-1, 4)


@cache
def played(form: str, *, propensities: bool) -> tuple[Ints, Floats]:
    """Decide for one context under many ids; give the actions and the logged propensities."""
    of = experiment(FORMS[form])
    belief = of.publish(learned(of), version=1).belief
    x = np.repeat(of.spec.encoder.encode(np.array([[0.5]])), DECISIONS, axis=0)
    asked = Asked(
        x, np.zeros(DECISIONS, dtype=np.int64), np.ones((1, 3), dtype=np.bool_), streams()
    )
    actions, p = of.spec.chooser.choose(belief, asked, propensities=propensities)
    if p is None:
        one = Asked(x[:1], asked.which[:1], asked.masks, asked.streams[:1])
        p = of.spec.chooser.choose(belief, one, propensities=True).propensities
    assert p is not None
    return actions, p[0]


def follows(actions: Ints, p: Floats) -> bool:
    """Whether shares of actions agree with probabilities, by a chi-square at ``ALPHA``."""
    counts = np.bincount(actions, minlength=len(p))
    expected = p * len(actions)
    if counts[expected == 0.0].any():
        return False
    rare = expected < 10.0
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0.0
    return bool(stats.chisquare(counts[kept], expected[kept]).pvalue > ALPHA)


def is_standard_normal(z: Floats) -> bool:
    """Whether columns are independent standard normals, at ``ALPHA`` for all of it together.

    Checks means, variances and correlations by normal approximation; n in the thousands.
    """
    n, k = z.shape
    off = np.corrcoef(z.T)[np.triu_indices(k, 1)]
    scores = np.concatenate(
        [z.mean(axis=0) * n**0.5, (z.var(axis=0) - 1) * (n / 2) ** 0.5, np.arctanh(off) * n**0.5]
    )
    return bool(np.abs(scores).max() < -special.ndtri(ALPHA / 2 / len(scores)))


# --- shares -----------------------------------------------------------------------------


@every_form
@each_mode
def test_shares_of_decisions_follow_the_logged_propensities(form: str, *, propensities: bool):
    """False alarms: 1e-6 each, 14 of them."""
    actions, p = played(form, propensities=propensities)
    assert follows(actions, p)


@every_form
def test_wrong_propensities_would_be_noticed(form: str):
    actions, p = played(form, propensities=True)
    assert not follows(actions, 0.97 * p + np.array([0.03, 0.0, 0.0]))


def test_arms_that_share_their_normals_would_be_noticed():
    """The fault of a peer: all arms drew with one normal, at a correlation of .98."""
    _, p = played("disjoint", propensities=False)
    of = experiment(FORMS["disjoint"])
    belief = of.publish(learned(of), version=1).belief
    centre, spread = np.empty(3), np.empty(3)
    x = of.spec.encoder.encode(np.array([[0.5]]))[0]
    scoring.score_moments(x, belief.mean, belief.root, centre, spread)
    z = np.random.default_rng(1).standard_normal((DECISIONS, 1))
    assert not follows(np.argmax(centre + spread * z, axis=1), p)


def test_a_draw_shared_by_a_batch_would_be_noticed():
    _, p = played("joint", propensities=True)
    few = np.random.default_rng(1).choice(3, size=DECISIONS // 100, p=p)
    assert not follows(np.repeat(few, 100), p)


@pytest.mark.parametrize("form", ["disjoint", "joint", "beta"])
@each_mode
def test_one_decision_says_nothing_about_the_next(form: str, *, propensities: bool):
    """A chi-square of neighbours at 1e-6 each; one draw for two in a row would fail it."""
    actions, _ = played(form, propensities=propensities)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (actions[:-1], actions[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > ALPHA
    doubled = np.repeat(actions, 2)
    np.add.at(pairs, (doubled[:-1], doubled[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue < ALPHA


def test_groups_have_their_shares():
    """False alarms: 1e-6. Shares 1 % off would be noticed."""
    shares = {"random": 0.2, "baseline": 0.05, "no_contact": 0.1}
    baseline = {"variant": "a", "channel": "x"}
    of = experiment({}, groups=shares, baseline=baseline)
    groups = np.array([of.group(str(i).encode()) for i in range(DECISIONS)]) - Group.BANDIT
    expected = np.array([0.65, 0.2, 0.05, 0.1])
    assert follows(groups, expected)
    assert not follows(groups, expected + np.array([0.01, -0.01, 0.0, 0.0]))


# --- draws ------------------------------------------------------------------------------


def test_the_uniform_of_a_decision_is_uniform():
    """Kolmogorov-Smirnov at 1e-6."""
    u = np.array([uniform(stream, 0) for stream in streams()[:20_000]])
    assert stats.kstest(u, "uniform").pvalue > ALPHA
    assert stats.kstest(u**1.1, "uniform").pvalue < ALPHA


def test_arms_of_a_disjoint_model_draw_independent_normals():
    """What ``draw`` adds to each arm's score: no correlation with any other; 1e-6 in all."""
    z = np.empty((20_000, 5))
    for row, stream in zip(z, streams(), strict=False):
        fill_normals(stream, 1, row)
    assert is_standard_normal(z)
    assert not is_standard_normal(z + 0.04)
    assert not is_standard_normal(1.03 * z)
    assert not is_standard_normal(0.999 * z + 0.045 * z[:, ::-1])


# --- the sample bank --------------------------------------------------------------------


@cache
def bank() -> tuple[Experiment, GaussianPosterior, SampleBank]:
    of = experiment(
        {"draws": 16_384, "exploration": 1.5},
        actions={"variants": ["a", "b", "c"], "channels": ["x", "y"]},
    )
    posterior = learned(of, 12)
    belief = of.publish(posterior, version=1).belief
    assert isinstance(belief, SampleBank)
    assert isinstance(posterior, GaussianPosterior)
    return of, posterior, belief


def dense() -> tuple[Floats, Floats]:
    """Give mean and covariance of the weights by plain algebra."""
    _, posterior, _ = bank()
    lower = posterior.precision[0]
    data = lower + np.tril(lower, -1).T
    precision = data + np.diag(posterior.features.prior_precision)
    noise = posterior.moments().noise_variance
    mean = np.linalg.solve(precision, posterior.shift[0])
    return mean, 1.5**2 * noise * np.linalg.inv(precision)


def test_the_bank_has_the_moments_of_the_posterior():
    """Whitened draws are standard normals, at 1e-6 in all, and weight by weight close."""
    mean, covariance = dense()
    draws = bank()[2].bank.T
    sd = np.sqrt(np.diag(covariance))
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), (draws - mean).T).T
    assert is_standard_normal(whitened)
    assert np.abs((draws.mean(axis=0) - mean) / sd).max() < 0.03
    assert np.abs(draws.std(axis=0) / sd - 1.0).max() < 0.02


def test_a_precision_used_as_a_covariance_would_be_noticed():
    """The fault of a peer: sampled standard deviations were 48 to 77 times too wide."""
    _, covariance = dense()
    z = np.random.default_rng(1).standard_normal((16_384, len(covariance)))
    wrong = np.linalg.solve(np.linalg.cholesky(covariance).T, z.T).T
    assert not is_standard_normal(np.linalg.solve(np.linalg.cholesky(covariance), wrong.T).T)


def test_actions_that_share_a_level_are_as_correlated_as_the_posterior_says():
    """Fisher's z of every pair at 1e-6 in all; independent draws would fail for these pairs."""
    of, _, belief = bank()
    _, covariance = dense()
    x, f = of.spec.encoder.encode(np.array([[0.5]]))[0], belief.features
    phi = np.zeros((6, f.weights))
    for action in range(6):
        v, c = f.space.table[action, :2]
        one_v, one_c = np.eye(3)[v], np.eye(2)[c]
        parts = [x, np.kron(one_v, x), np.kron(one_c, x), np.kron(one_v, one_c)]
        phi[action] = np.concatenate(parts)
    exact = phi @ covariance @ phi.T
    exact /= np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    pairs = np.triu_indices(6, 1)
    error = np.arctanh(np.corrcoef(phi @ belief.bank)[pairs]) - np.arctanh(exact[pairs])
    limit = -special.ndtri(ALPHA / 2 / len(error)) / np.sqrt(16_384 - 3)
    assert np.abs(error).max() < limit
    assert np.abs(np.arctanh(exact[pairs])).max() > 5 * limit


def test_propensities_of_correlated_actions_are_not_those_of_independent_ones():
    """Binomial at 1e-6. The independence formula says .556 at this correlation of .99."""
    of = experiment(
        {
            "draws": 16_384,
            "floor": 0.0,
            "noise": {"sd": 1.0},
            "terms": [{"of": "variant", "prior_sd": 0.1}, {"of": "context", "prior_sd": 0.995}],
        },
        actions={"variants": ["a", "b"], "channels": ["x"]},
        context=[],
    )
    posterior = of.prior()
    posterior.shift[0, :2] = 10.0, -10.0  # moves the means by .1 each, and no covariance
    x = of.spec.encoder.encode(np.zeros((1, 0)))
    asked = Asked(x, np.zeros(1, dtype=np.int64), np.ones((1, 2), dtype=np.bool_), streams()[:1])
    p = of.publish(posterior, version=1).belief.decide(asked, 0.0).propensities
    apart, each = 0.1 - -0.1, 0.995**2 + 0.1**2
    exact = special.ndtr(apart / np.sqrt(2 * 0.1**2))
    independent = special.ndtr(apart / np.sqrt(2 * each))
    assert p is not None
    assert stats.binomtest(round(p[0, 0] * 16_384), 16_384, exact).pvalue > ALPHA
    assert (round(exact, 3), round(independent, 3)) == (0.921, 0.556)
