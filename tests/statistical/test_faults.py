"""The faults of popular engines, one by one: each check passes here and fails on the fault.

Every check is a function of *sampled* scores or of propensities. It is run on our engine and on a
faulty twin that is written out in the test. Seeds are fixed; a check's false-alarm rate, for other
seeds, is at most ``ALPHA`` unless its docstring says otherwise.
"""

from functools import cache

import numpy as np
import pytest
from scipy import special, stats

from bandit import propensity, rng
from bandit.experiment import Experiment
from bandit.kernels import deciding, propensities, scoring, streams
from bandit.kernels.compiling import Floats
from bandit.posterior import GaussianPosterior
from bandit.question import Question
from bandit.snapshot import IndependentScores, SampleBank
from bandit.spec_file import from_data

ALPHA = 1e-6
SECRET = b"sixteen bytes or more"
DRAWS = 20_000
RANDOM = np.random.default_rng
ARMS = {"variants": ["a", "b", "c"], "channels": ["x"]}
PAIRS = {"variants": ["a", "b", "c"], "channels": ["x", "y"]}


def experiment(policy: dict[str, object], **parts: object) -> Experiment:
    whole = {
        "name": "e",
        "actions": ARMS,
        "context": [{"name": "age", "kind": "number", "bounds": [-2, 2], "required": True}],
        "outcome": {"window": 60, "rewards": [{"name": "r"}]},
        "policy": {"exploration": 1.0, **policy},
        "groups": {"random": 0.0},
    }
    return Experiment(from_data({**whole, **parts}), secret=SECRET)


def taught(of: Experiment, n: int, arms: int | None = None) -> GaussianPosterior:
    """Learn from n outcomes of the first arms, all if not told otherwise."""
    random, posterior = RANDOM(3), of.prior()
    rows = random.uniform(-2, 2, (n, 1))
    actions = random.integers(0, arms or of.spec.actions.size, n)
    rewards = 0.4 + 0.05 * actions + random.normal(0.0, 0.2, n)
    of.learn(posterior, rows, actions.tolist(), rewards, seq=n)
    assert isinstance(posterior, GaussianPosterior)
    return posterior


def names(n: int) -> np.ndarray:
    """Give the streams of n decisions."""
    ids = (rng.decision_id(SECRET, "e", str(i), i) for i in range(n))
    return rng.words(b"".join(rng.decision_stream(SECRET, "e", one) for one in ids)).reshape(-1, 4)


def dense(posterior: GaussianPosterior, block: int) -> tuple[Floats, Floats]:
    """Give mean and covariance of a block by plain algebra, with the prior of the specification."""
    lower = posterior.precision[block]
    precision = lower + np.tril(lower, -1).T + np.diag(posterior.features.prior_precision)
    noise = posterior.moments().noise_variance
    return np.linalg.solve(precision, posterior.shift[block]), noise * np.linalg.inv(precision)


# --- sampled scores of arms with weights of their own -----------------------------------


@cache
def disjoint() -> tuple[Experiment, GaussianPosterior, Floats]:
    """Give an experiment whose third arm has no data, and a context."""
    of = experiment({"noise": {"sd": 0.2}, "terms": [{"of": "context:variant", "prior_sd": 3.0}]})
    return of, taught(of, 60, arms=2), of.spec.encoder.encode(np.array([[1.5]]))[0]


@cache
def sampled() -> Floats:
    """Give the scores that decisions draw, (n, k): what ``draw_independent`` adds up."""
    of, posterior, x = disjoint()
    belief = of.publish(posterior, version=1).belief
    assert isinstance(belief, IndependentScores)
    centre, spread, z = np.empty(3), np.empty(3), np.empty(3)
    scoring.score_moments(x, belief.mean, belief.root, centre, spread)
    scores = np.empty((DRAWS, 3))
    for row, stream in zip(scores, names(DRAWS), strict=True):
        streams.fill_normals(stream, 1, z)
        row[:] = centre + spread * z
    return scores


def closed_form(arm: int) -> tuple[float, float]:
    """Give mean and standard deviation of an arm's score by plain algebra."""
    _, posterior, x = disjoint()
    mean, covariance = dense(posterior, arm)
    return float(x @ mean), float(np.sqrt(x @ covariance @ x))


def are_uncorrelated(scores: Floats) -> bool:
    n, k = scores.shape
    off = np.corrcoef(scores.T)[np.triu_indices(k, 1)]
    return bool(np.abs(np.arctanh(off)).max() * n**0.5 < -special.ndtri(ALPHA / 2 / len(off)))


def has_moments(scores: Floats, mean: float, sd: float) -> bool:
    """Whether scores are normal with these moments: Kolmogorov-Smirnov."""
    return bool(stats.kstest((scores - mean) / sd, "norm").pvalue > ALPHA)


def test_what_is_sampled_here_is_what_decisions_draw():
    """The engine's own choice is the best of these scores, decision by decision."""
    of, posterior, x = disjoint()
    belief = of.publish(posterior, version=1).belief
    assert isinstance(belief, IndependentScores)
    n = 2_000
    rows, which = np.repeat(x[None], n, axis=0), np.zeros(n, dtype=np.int64)
    masks = np.ones((1, 3), dtype=np.bool_)
    chosen = deciding.draw_independent(rows, which, masks, names(n), belief.mean, belief.root, 0.0)
    np.testing.assert_array_equal(chosen, sampled()[:n].argmax(axis=1))


def test_arms_do_not_draw_with_the_same_normals():
    """Theirs: one normal for all arms, correlation .98; here 0 within .05 and by Fisher's z."""
    assert are_uncorrelated(sampled())
    assert np.abs(np.corrcoef(sampled().T) - np.eye(3)).max() < 0.05
    moments = np.array([closed_form(arm) for arm in range(3)])
    z = RANDOM(1).standard_normal((DRAWS, 1))
    faulty = moments[:, 0] + moments[:, 1] * (z + 0.1 * RANDOM(2).standard_normal((DRAWS, 3)))
    assert np.corrcoef(faulty.T)[0, 1] > 0.97
    assert not are_uncorrelated(faulty)


@pytest.mark.parametrize("arm", range(3))
def test_a_precision_is_not_used_as_a_covariance(arm: int):
    """Theirs sampled 48 to 77 times too wide; here the closed form, sd within 2 %."""
    _, posterior, x = disjoint()
    mean, sd = closed_form(arm)
    scores = sampled()[:, arm]
    assert has_moments(scores, mean, sd)
    assert abs(scores.std() / sd - 1.0) < 0.02
    _, covariance = dense(posterior, arm)
    wide = float(np.sqrt(x @ np.linalg.inv(covariance) @ x))
    faulty = mean + wide * RANDOM(1).standard_normal(DRAWS)
    assert not has_moments(faulty, mean, sd)


def test_an_arm_without_data_scores_like_the_prior():
    """Theirs scored a constant; here N(0, sd**2 prior_sd**2 |x|**2), the declared prior."""
    _, _, x = disjoint()
    sd = 0.2 * 3.0 * float(np.sqrt(x @ x))
    scores = sampled()[:, 2]
    assert has_moments(scores, 0.0, sd)
    assert np.unique(scores).size == DRAWS
    assert not has_moments(np.zeros(DRAWS), 0.0, sd)
    assert not has_moments(np.full(DRAWS, 0.4), 0.0, sd)


@pytest.mark.parametrize("prior_sd", [0.1, 0.5, 3.0])
def test_the_prior_precision_is_one_over_the_variance(prior_sd: float):
    """Theirs: prior variance lambda where 1 / lambda was meant. A new weight has sd ``prior_sd``.

    One test with a known noise, against the number that the user wrote and no algebra of ours.
    """
    terms = [{"of": "context:variant", "prior_sd": prior_sd}]
    of = experiment({"noise": {"sd": 2.0}, "terms": terms}, context=[])
    belief = of.publish(of.prior(), version=0).belief
    assert isinstance(belief, IndependentScores)
    z = RANDOM(1).standard_normal(DRAWS)
    assert has_moments(float(belief.root[0, 0]) * z, 0.0, 2.0 * prior_sd)
    assert not has_moments(2.0 / prior_sd * z, 0.0, 2.0 * prior_sd)


def test_the_prior_of_shared_weights_is_one_over_the_variance_too():
    """Every weight of the bank, by the standard deviation that its term declares."""
    declared = {"context:variant": 0.1, "context:channel": 0.5, "variant:channel": 3.0}
    terms = [{"of": of, "prior_sd": sd} for of, sd in declared.items()]
    of = experiment({"noise": {"sd": 2.0}, "terms": terms, "draws": 16_384}, actions=PAIRS)
    belief = of.publish(of.prior(), version=0).belief
    assert isinstance(belief, SampleBank)
    sd = 2.0 * np.repeat(list(declared.values()), [6, 4, 6])
    for weight, draws in zip(sd, belief.bank, strict=True):
        assert has_moments(draws, 0.0, weight)
        assert not has_moments(draws * (4.0 / weight / weight), 0.0, weight)


# --- draws and batches ------------------------------------------------------------------


def are_independent(actions: list[int]) -> bool:
    """Whether a decision tells nothing of the next: a chi-square of pairs of neighbours."""
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (actions[:-1], actions[1:]), 1)
    pairs = pairs[pairs.sum(axis=1) > 0][:, pairs.sum(axis=0) > 0]
    return bool(stats.chi2_contingency(pairs).pvalue > ALPHA)


@pytest.mark.parametrize("form", ["disjoint", "joint", "beta"])
@pytest.mark.parametrize("with_p", [True, False], ids=["decide", "draw"])
def test_a_batch_does_not_share_one_draw_of_the_posterior(form: str, *, with_p: bool):
    """Theirs drew the weights once a batch, so all alike contexts got the same action."""
    joint = {"terms": [{"of": "context"}, {"of": "context:variant"}]}
    policy = {"disjoint": {}, "joint": joint, "beta": {"posterior": "beta_bernoulli"}}[form]
    rule = {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]}
    of = experiment(policy, outcome=rule)
    snapshot = of.publish(of.prior(), version=0)
    batches = [
        [Question(rng.decision_id(SECRET, "e", f"{b} {i}", 0), b"c", [0.5]) for i in range(100)]
        for b in range(60)
    ]
    chosen = [
        [d.action for d in of.decide_batch(snapshot, batch, propensities=with_p)]
        for batch in batches
    ]
    ours = [a for batch in chosen for a in batch if a is not None]
    assert len(ours) == 6_000
    assert are_independent(ours)
    shared = RANDOM(1).integers(0, 3, 60)
    assert not are_independent(np.repeat(shared, 100).tolist())


# --- propensities -----------------------------------------------------------------------


@cache
def correlated() -> tuple[Floats, SampleBank, Experiment]:
    """Give the true probability of being best of two actions that share almost everything."""
    terms = [{"of": "variant", "prior_sd": 0.1}, {"of": "context", "prior_sd": 0.995}]
    policy = {"draws": 16_384, "floor": 0.0, "noise": {"sd": 1.0}, "terms": terms}
    arms = {"variants": ["a", "b"], "channels": ["x"]}
    of = experiment(policy, actions=arms, context=[])
    posterior = of.prior()
    assert isinstance(posterior, GaussianPosterior)
    posterior.shift[0, :2] = 10.0, -10.0  # means .1 and -.1, and no covariance changes
    belief = of.publish(posterior, version=1).belief
    assert isinstance(belief, SampleBank)
    first = float(special.ndtr(0.2 / np.sqrt(2 * 0.1**2)))
    return np.array([first, 1.0 - first]), belief, of


def counts_agree(p: Floats, exact: Floats, draws: int) -> bool:
    """Whether a share of wins of joint draws agrees with the truth: binomial."""
    wins = round(float(p[0]) * draws)
    return bool(stats.binomtest(wins, draws, float(exact[0])).pvalue > ALPHA)


def test_shared_weights_do_not_get_the_formula_of_independent_scores():
    """Theirs: .556 where the truth is .921, at a correlation of .99."""
    exact, belief, of = correlated()
    x = of.spec.encoder.encode(np.zeros((1, 0)))
    which, masks = np.zeros(1, dtype=np.int64), np.ones((1, 2), dtype=np.bool_)
    f = belief.features
    _, p = deciding.decide_joint(x, which, masks, names(1), belief.bank, f.layout, f.planes, 0.0)
    assert counts_agree(p[0], exact, 16_384)
    spread = np.full(2, np.hypot(0.995, 0.1))
    faulty = exact_independent(np.array([0.1, -0.1]), spread)
    assert not counts_agree(faulty, exact, 16_384)
    assert (round(float(exact[0]), 3), round(float(faulty[0]), 3)) == (0.921, 0.556)


def exact_independent(centre: Floats, spread: Floats) -> Floats:
    """Give our propensities of independent normal scores."""
    out = np.empty(len(centre))
    everyone = np.ones(len(centre), dtype=np.bool_)
    propensities.normal_propensities(
        centre, spread, everyone, propensity.NODES, propensity.MARKS, out
    )
    return out


def gauss_hermite(centre: Floats, spread: Floats, nodes: int = 20) -> Floats:
    """Integrate the others' CDFs over each arm's own density: the faulty way."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    p = np.empty(len(centre))
    for a in range(len(centre)):
        t = centre[a] + spread[a] * z
        cdf = special.ndtr((t[:, None] - centre) / spread)
        cdf[:, a] = 1.0
        p[a] = w @ cdf.prod(axis=1) / w.sum()
    return p


def test_a_new_arm_against_a_mature_one_is_integrated_exactly():
    """Theirs: Gauss-Hermite on the arm's own density, .50 and .58 for .4207 and .5793."""
    centre, spread = np.array([0.10, 0.11]), np.array([0.05, 0.0005])
    first = float(special.ndtr((centre[0] - centre[1]) / np.hypot(*spread)))
    exact = np.array([first, 1.0 - first])
    np.testing.assert_allclose(exact, [0.4207, 0.5793], atol=1e-4)
    assert np.abs(exact_independent(centre, spread) - exact).max() < 1e-6
    faulty = gauss_hermite(centre, spread)
    np.testing.assert_allclose(faulty, [0.50, 0.58], atol=0.005)
    assert np.abs(faulty - exact).max() > 0.05
    assert abs(faulty.sum() - 1.0) > 0.05


def keeps_its_promises(p: Floats, raw: Floats, floor: float) -> bool:
    """Sum 1, nothing below the floor, and every action above it loses the same share."""
    mixed = floor + (1.0 - floor * len(raw)) * raw
    return (
        abs(p.sum() - 1.0) <= 1e-9
        and p.min() >= floor * (1.0 - 1e-12)
        and bool(np.allclose(p, mixed, atol=1e-12))
    )


@pytest.mark.parametrize(
    "raw", [[0.97, 0.02, 0.01], [1.0, 0.0, 0.0], [0.5, 0.499, 0.001]], ids=["one", "sure", "two"]
)
def test_a_floor_is_mixed_in_and_not_clipped(raw: list[float]):
    """Theirs: clip to the floor, then normalise, which takes actions below the floor again."""
    p, floor = np.array(raw), 0.1
    ours = p.copy()
    propensities.apply_floor(np.ones(3, dtype=np.bool_), floor, ours)
    assert keeps_its_promises(ours, p, floor)
    clipped = np.maximum(p, floor)
    clipped /= clipped.sum()
    assert clipped.min() < floor
    assert not keeps_its_promises(clipped, p, floor)


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.3])
def test_the_logged_vector_is_the_floored_one_all_the_way_through(floor: float):
    """The front door's vector is the mixture of the one without a floor, not a clipped one."""
    plain = experiment({"floor": 0.0, "exploration": 0.5})
    floored = experiment({"floor": floor, "exploration": 0.5})
    posterior = taught(plain, 60)
    who = {"decision_id": rng.decision_id(SECRET, "e", "r", 0), "customer": b"c"}
    raw, p = (
        of.decide(of.publish(posterior, version=1), {"age": 1.0}, **who).propensities
        for of in (plain, floored)
    )
    assert raw is not None
    assert p is not None
    assert keeps_its_promises(p, raw, floor)
