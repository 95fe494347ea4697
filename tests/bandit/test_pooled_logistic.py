"""Pooled priors of log-odds: dense references, new levels, order, storage and hard data."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from bandit import encoding
from bandit import logistic as module
from bandit.actions import ActionSpace, Level
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.logistic import LogisticPosterior
from bandit.online import begin
from bandit.posterior import Outcomes
from bandit.spec_file import from_data

GOLDEN = Path(__file__).parents[1] / "golden"
SEEDS = st.integers(0, 2**32 - 1)
SECRET = b"sixteen bytes or more"


def model(levels: int, width: int, prior_sd: float = 2.0) -> FeatureMap:
    names = tuple(Level(name=f"v{i}") for i in range(levels))
    space = ActionSpace(variants=names, channels=(Level(name="c"),))
    terms = (Term(of="context:variant", prior_sd=prior_sd),)
    return FeatureMap(space=space, terms=terms, width=width)


def world(
    levels: int, *, each: int, width: int, rate: float, spread: float, seed: int
) -> tuple[Outcomes, Floats]:
    """Draw clicks of levels in turn, and give their weights, which scatter around common ones."""
    random, n = np.random.default_rng(seed), levels * each
    common = np.append(special.logit(rate), random.normal(0, 0.3, width - 1))
    weights = common + spread * random.standard_normal((levels, width))
    x = np.column_stack([np.ones(n), random.uniform(-1, 1, (n, width - 1))])
    actions = np.tile(np.arange(levels), each)
    rates = special.expit((x * weights[actions]).sum(axis=1))
    return Outcomes(x, actions, (random.random(n) < rates).astype(float)), weights


def learned(
    outcomes: Outcomes, features: FeatureMap, rate: float = 0.5, *, pooled: bool = True
) -> LogisticPosterior:
    posterior = LogisticPosterior(features, rate, pooled=pooled)
    posterior.fold(outcomes, seq=len(outcomes.rewards))
    return posterior


# --- accuracy ---------------------------------------------------------------------------


def mode(x: Floats, rewards: Floats, centre: Floats, variance: Floats) -> Floats:
    """Find a block's mode with a general optimiser."""

    def loss(w: Floats) -> float:
        eta = x @ w
        likelihood = rewards @ eta - np.logaddexp(0.0, eta).sum()
        return float(0.5 * ((w - centre) ** 2 / variance).sum() - likelihood)

    def slope(w: Floats) -> Floats:
        return (w - centre) / variance - x.T @ (rewards - special.expit(x @ w))

    return optimize.minimize(loss, centre, jac=slope, method="BFGS", options={"gtol": 1e-9}).x


def dense(outcomes: Outcomes, levels: int, declared: Floats, base: Floats) -> tuple[Floats, Floats]:
    """Give mean and variance of the prior from working responses and one covariance of all rows.

    The responses ``eta + (r - p) / (p (1 - p))`` with variances ``1 / (p (1 - p))`` at the modes
    are Gaussian data; the variance between levels maximises their density, and the modes move
    until nothing does.
    """
    x, rewards, one = outcomes.x, outcomes.rewards, np.eye(levels)[outcomes.actions]
    same = one @ one.T
    mean, total, variance = np.zeros(len(declared)), declared, declared / 2
    for _ in range(12):
        modes = [
            mode(x[a], rewards[a], base + mean, total)
            for a in (outcomes.actions == i for i in range(levels))
        ]
        eta = (x * np.array(modes)[outcomes.actions]).sum(axis=1)
        p = special.expit(eta)
        response = eta + (rewards - p) / (p * (1 - p)) - x @ base
        noise = np.diag(1 / (p * (1 - p)))

        def loss(u: Floats, response: Floats = response, noise: Floats = noise) -> float:
            ratio = 2 * np.exp(u) / declared
            covariance = noise + (x * declared / 2) @ x.T + same * ((x * np.exp(u)) @ x.T)
            density = -0.5 * response @ np.linalg.solve(covariance, response)
            density -= 0.5 * np.linalg.slogdet(covariance)[1]
            return -float(density + (0.5 * np.log(ratio) - np.log1p(ratio)).sum())

        best = optimize.minimize(
            loss, np.log(variance), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9}
        )
        variance, before = np.exp(best.x), mean
        rest = noise + same * ((x * variance) @ x.T)
        covariance = np.linalg.inv(np.diag(2.0 / declared) + x.T @ np.linalg.solve(rest, x))
        mean = covariance @ x.T @ np.linalg.solve(rest, response)
        total = variance + np.diag(covariance)
        if np.abs(mean - before).max() < 1e-5:
            break
    return mean, total


@pytest.mark.parametrize(("levels", "rate", "seed"), [(3, 0.5, 1), (6, 0.1, 2), (5, 0.3, 3)])
def test_the_prior_is_that_of_a_dense_fit(
    levels: int, rate: float, seed: int, monkeypatch: pytest.MonkeyPatch
):
    outcomes, _ = world(levels, each=20, width=2, rate=rate, spread=0.6, seed=seed)
    posterior = learned(outcomes, model(levels, 2, 1.0), rate)
    base = posterior.prior_mean[0]
    mean, total = dense(outcomes, levels, np.ones(2), base)
    found = posterior.prior()
    np.testing.assert_allclose(found.mean[0] - base, mean, atol=0.03)  # as many rounds as shipped
    np.testing.assert_allclose(found.precision[0] ** -0.5, np.sqrt(total), rtol=0.06)
    monkeypatch.setattr(module, "EXPANSIONS", (200,) * 12)
    found = posterior.prior()
    np.testing.assert_allclose(found.mean[0] - base, mean, atol=1e-3)
    np.testing.assert_allclose(found.precision[0] ** -0.5, np.sqrt(total), rtol=2e-3)
    moments = posterior.moments()
    for i in range(levels):
        mine = outcomes.actions == i
        expected = mode(outcomes.x[mine], outcomes.rewards[mine], base + mean, total)
        np.testing.assert_allclose(moments.mean[i], expected, atol=2e-3)
        p = special.expit(outcomes.x[mine] @ expected)
        curvature = (outcomes.x[mine].T * p * (1 - p)) @ outcomes.x[mine] + np.diag(1 / total)
        np.testing.assert_allclose(moments.lower[i] @ moments.lower[i].T, curvature, rtol=5e-3)


def exact(clicks: Floats, each: int, variance: float, base: float) -> tuple[float, float]:
    """Give mean and sd of a new level by sums over its weights, without any normal form.

    The variance between levels is the mode of its marginal posterior, as in the fit.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    common = np.linspace(-5, 5, 401) * np.sqrt(variance / 2)
    best = (-np.inf, 0.0, 0.0)
    for t in np.geomspace(1e-4 * variance, 50 * variance, 121):
        eta = base + common[:, None] + np.sqrt(t) * nodes
        log = -(common**2) / variance
        for s in clicks:
            each_log = s * eta - each * np.logaddexp(0.0, eta)
            top = each_log.max(axis=1, keepdims=True)
            log += np.log(np.exp(each_log - top) @ weights) + top[:, 0]
        share = np.exp(log - log.max())
        height = np.log(share.sum()) + log.max() + 0.5 * np.log(t) - np.log1p(2 * t / variance)
        share /= share.sum()
        mean = float(share @ common)
        if height > best[0]:
            best = height, base + mean, float(np.sqrt(share @ (common - mean) ** 2 + t))
    return best[1], best[2]


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02, 0.005])
@pytest.mark.parametrize("each", [30, 200, 2_000])
def test_how_far_the_exact_pooled_prior_is(rate: float, each: int):
    """Ten levels that scatter by .3: the normal form puts rare clicks a little too high."""
    random = np.random.default_rng([each, int(1_000 * rate)])
    rates = special.expit(special.logit(rate) + 0.3 * random.standard_normal(10))
    clicks = random.binomial(each, rates).astype(float)
    actions = np.repeat(np.arange(10), each)
    rewards = (np.tile(np.arange(each), 10) < clicks[actions]).astype(float)
    posterior = learned(Outcomes(np.ones((10 * each, 1)), actions, rewards), model(11, 1), 0.02)
    prior = posterior.prior()
    mean, sd = exact(clicks, each, 4.0, float(posterior.prior_mean[0, 0]))
    off, ratio = (prior.mean[10, 0] - mean) / sd, prior.precision[10, 0] ** -0.5 / sd
    print(f"\nrate {rate}, {each} each, {clicks.sum():.0f} clicks: {off:.2f} sd, {ratio:.2f}")  # noqa: T201
    assert -0.1 < off < 0.4
    assert abs(ratio - 1.0) < 0.12


# --- new levels -------------------------------------------------------------------------


def test_without_outcomes_the_prior_is_the_declared_one():
    posterior = LogisticPosterior(model(4, 3, 0.5), 0.02, pooled=True)
    prior = posterior.prior()
    np.testing.assert_array_equal(prior.mean, posterior.prior_mean)
    np.testing.assert_array_equal(prior.precision, np.full((4, 3), 4.0))
    np.testing.assert_array_equal(posterior.moments().mean, posterior.prior_mean)


def test_a_new_level_starts_where_the_others_are():
    """Twenty known levels: their mean has a standard error of .05, their spread one of 16 %."""
    outcomes, weights = world(20, each=600, width=2, rate=0.05, spread=0.2, seed=1)
    pooled, flat = (learned(outcomes, model(21, 2), pooled=p) for p in (True, False))
    prior, moments = pooled.prior(), pooled.moments()
    np.testing.assert_allclose(moments.mean[20], prior.mean[20], atol=1e-12)
    np.testing.assert_allclose(
        moments.lower[20] @ moments.lower[20].T, np.diag(prior.precision[20]), atol=1e-9
    )
    np.testing.assert_allclose(moments.mean[20], weights.mean(axis=0), atol=0.2)
    assert ((prior.precision[20] ** -0.5 > 0.1) & (prior.precision[20] ** -0.5 < 0.45)).all()
    np.testing.assert_array_equal(flat.moments().mean[20], 0.0)
    np.testing.assert_array_equal(flat.moments().lower[20], 0.5 * np.eye(2))


def test_known_levels_are_nearer_to_the_truth():
    """Few clicks each: shrinking to the others beats shrinking to the declared prior."""
    outcomes, weights = world(20, each=200, width=4, rate=0.03, spread=0.2, seed=2)
    pooled, flat = (learned(outcomes, model(20, 4), pooled=p) for p in (True, False))
    error = [np.sqrt(np.mean((p.moments().mean - weights) ** 2)) for p in (pooled, flat)]
    assert error[0] < 0.6 * error[1]


@settings(max_examples=10)
@given(seed=SEEDS, empty=st.integers(1, 5))
def test_levels_without_outcomes_contribute_nothing(seed: int, empty: int):
    outcomes, _ = world(4, each=50, width=2, rate=0.2, spread=0.3, seed=seed)
    fewer, more = (learned(outcomes, model(k, 2)).prior() for k in (4, 4 + empty))
    for a, b in zip(fewer, more, strict=True):
        np.testing.assert_array_equal(a[0], b[-1])


# --- order, not grouping ----------------------------------------------------------------


@settings(max_examples=15)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 120), max_size=6), publish=st.booleans())
def test_any_grouping_gives_the_same_bits(seed: int, cuts: list[int], *, publish: bool):
    features = model(3, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capacity", lambda _: 40)  # thinned by the prior, four times or more
        outcomes, _ = world(3, each=40, width=3, rate=0.3, spread=0.5, seed=seed)
        whole, parts = learned(outcomes, features), LogisticPosterior(features, pooled=True)
        for a, b in pairwise([0, *sorted(cuts), 120]):
            parts.fold(Outcomes(*(part[a:b] for part in outcomes[:3])), seq=b)
            if publish:
                parts.moments()
        read = LogisticPosterior(features, pooled=True)
        encoding.load(read, encoding.to_bytes(parts))
        for other in (parts, read):
            assert encoding.to_bytes(other) == encoding.to_bytes(whole)
            for one, two in zip(whole.moments(), other.moments(), strict=True):
                np.testing.assert_array_equal(one, two)


def test_what_was_thinned_is_remembered(monkeypatch: pytest.MonkeyPatch):
    """Of 20,000 outcomes half are held; beside all of them the belief hardly moves."""
    outcomes, _ = world(20, each=1_000, width=6, rate=0.05, spread=0.3, seed=4)
    few = learned(outcomes, model(20, 6))
    monkeypatch.setattr(module, "capacity", lambda _: 30_000)
    everything = learned(outcomes, model(20, 6))
    assert few.held < 16_384 < everything.held
    thinned, full = few.moments(), everything.moments()
    sd = np.array([np.sqrt(np.diag(np.linalg.inv(w @ w.T))) for w in full.lower])
    other = np.array([np.sqrt(np.diag(np.linalg.inv(w @ w.T))) for w in thinned.lower])
    assert np.abs((thinned.mean - full.mean) / sd).max() < 0.05
    assert np.abs(other / sd - 1.0).max() < 0.05


@pytest.mark.parametrize("pooled", [False, True])
def test_the_stored_form_never_changes(monkeypatch: pytest.MonkeyPatch, *, pooled: bool):
    """The files were written by the first release that keeps them; the window was thinned."""
    monkeypatch.setattr(module, "capacity", lambda _: 16)
    name = "pooled" if pooled else "logistic"
    golden = bytes.fromhex((GOLDEN / f"posterior-1-{name}.hex").read_text())
    t = np.arange(30)
    x = np.column_stack([np.ones(30), (t % 5 - 2.0) / 2, (t % 3 - 1.0) / 4])
    outcomes = Outcomes(x, t % 7 % 2, ((t * t) % 11 < 3 + t % 2).astype(float))
    posterior = learned(outcomes, model(3, 3), pooled=pooled)
    assert posterior.precision.any()
    assert encoding.to_bytes(posterior) == golden
    read = LogisticPosterior(model(3, 3), pooled=pooled)
    encoding.load(read, golden)
    assert encoding.to_bytes(read) == golden


# --- hard data --------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=SEEDS,
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
    rate=st.sampled_from([0.0, 1e-3, 0.5, 1.0]),
    prior_sd=st.sampled_from([1e-3, 1.0, 1e3]),
    kind=st.sampled_from(["random", "collinear", "constant", "zero"]),
)
def test_no_data_put_a_nan_into_state_or_belief(
    seed: int, scale: float, rate: float, prior_sd: float, kind: str
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capacity", lambda _: 60)
        random = np.random.default_rng(seed)
        x = random.uniform(-scale, scale, (200, 3))
        x[:, 2] = {"collinear": x[:, 1], "constant": 1.0, "zero": 0.0}.get(kind, x[:, 2])
        rewards = (random.random(200) < rate).astype(float)
        outcomes = Outcomes(x, random.integers(0, 3, 200), rewards)
        posterior = learned(outcomes, model(4, 3, prior_sd))
        prior, moments = posterior.prior(), posterior.moments()
    for array in (*posterior.arrays().values(), *prior, moments.mean, moments.lower):
        assert np.isfinite(array).all()
    assert (prior.precision >= 0.02 * posterior.prior_precision).all()


@pytest.mark.parametrize("pooled", [False, True])
@settings(max_examples=10)
@given(seed=SEEDS, rate=st.sampled_from([0.02, 0.2, 0.5]))
def test_what_thinning_freezes_is_no_less_than_concave(seed: int, rate: float, *, pooled: bool):
    """Else the log posterior may have no mode, and weights run away after enough outcomes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capacity", lambda _: 100)
        outcomes, _ = world(3, each=300, width=5, rate=rate, spread=0.5, seed=seed)
        posterior = learned(outcomes, model(3, 5), pooled=pooled)
    for lower, prior in zip(posterior.precision, posterior.prior_precision, strict=True):
        whole = lower + np.tril(lower, -1).T + np.diag(0.01 * prior)
        assert np.linalg.eigvalsh(whole).min() > -1e-9


def test_many_thinned_arms_stay_finite():
    """800 outcomes for each of 50 arms with 20 weights: their windows are hardly wider."""
    outcomes, weights = world(50, each=800, width=20, rate=0.05, spread=0.3, seed=1)
    for pooled, most in ((False, 0.6), (True, 0.35)):
        mean = learned(outcomes, model(50, 20), pooled=pooled).moments().mean
        assert np.sqrt(np.mean((mean - weights) ** 2)) < most


def test_what_faded_is_no_longer_pooled():
    features = model(4, 2)
    posterior = LogisticPosterior(features, 0.5, 60.0, pooled=True)
    outcomes, _ = world(3, each=200, width=2, rate=0.05, spread=0.1, seed=1)
    posterior.fold(outcomes._replace(times=np.zeros(600)), seq=600)
    near = posterior.prior()
    assert near.mean[3, 0] < -2.0
    late = Outcomes(np.ones((1, 2)), np.zeros(1, dtype=np.int64), np.ones(1), np.full(1, 1e6))
    posterior.fold(late, seq=601)
    far = posterior.prior()
    assert far.mean[3, 0] > 0.0  # of all outcomes the one success is left
    assert far.precision[3, 0] < near.precision[3, 0]


# --- through the front door -------------------------------------------------------------


def spec(levels: int, **policy: object) -> dict[str, object]:
    own = [{"of": "context:variant"}]
    return {
        "name": "e",
        "actions": {
            "variants": [{"name": f"v{i}", "generation": int(i > 2)} for i in range(levels)],
            "channels": ["x"],
        },
        "context": [{"name": "age", "kind": "number", "bounds": [-1, 1], "required": True}],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "click"}]},
        "policy": {"posterior": "logistic", "pooled": True, "terms": own, **policy},
    }


def test_a_revised_experiment_has_the_state_of_its_log(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "capacity", lambda _: 60)
    of, grown = (Experiment(from_data(spec(k)), secret=SECRET) for k in (3, 5))
    outcomes, _ = world(3, each=50, width=2, rate=0.2, spread=0.3, seed=1)
    rows, actions = outcomes.x[:, 1:], outcomes.actions.tolist()
    posterior, direct = of.prior(), grown.prior()
    of.learn(posterior, rows, actions, outcomes.rewards, seq=150)
    grown.learn(direct, rows, actions, outcomes.rewards, seq=150)
    _, revised = of.revise(posterior, grown.spec)
    assert encoding.to_bytes(revised) == encoding.to_bytes(direct)


def test_pooling_can_not_be_switched_while_it_shapes_what_is_kept():
    of = Experiment(from_data(spec(3)), secret=SECRET)
    with pytest.raises(InvalidInputError) as caught:
        of.revise(of.prior(), from_data(spec(3, pooled=False)))
    assert caught.value.field == "policy.pooled"


def test_what_is_pooled_needs_weights_of_its_own_and_is_not_learned_at_once():
    shared = [{"of": "context"}, {"of": "variant"}]
    two = spec(3, terms=shared)
    with pytest.raises(InvalidInputError, match="weights of their own") as caught:
        from_data(two)
    assert caught.value.field == "policy.pooled"
    stream = np.zeros(4, dtype=np.uint32)
    with pytest.raises(InvalidInputError, match="at once"):
        begin(LogisticPosterior(model(2, 2), pooled=True), exploration=1.0, stream=stream)
