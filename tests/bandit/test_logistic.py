"""The logistic posterior against a dense Laplace fit, a Polya-Gamma sampler and itself."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from bandit import encoding, rng
from bandit import logistic as module
from bandit.actions import ActionSpace, Level
from bandit.errors import CorruptionError, InvalidInputError
from bandit.experiment import Experiment
from bandit.features import FeatureMap, Term, default_terms
from bandit.kernels.compiling import Floats
from bandit.logistic import LogisticPosterior, capacity, prior_mean
from bandit.posterior import Noise, Outcomes
from bandit.spec_file import from_data

SEEDS = st.integers(0, 2**32 - 1)
MEAN, SD = 0.05, 0.05
"""How far a mean may be from the reference, in its sd, and a sd, as a share."""


def space(variants: int, channels: int) -> ActionSpace:
    return ActionSpace(
        variants=tuple(Level(name=f"v{i}") for i in range(variants)),
        channels=tuple(Level(name=f"c{i}") for i in range(channels)),
    )


def disjoint(arms: int, width: int, prior_sd: float = 1.0) -> FeatureMap:
    term = Term(of="context:variant", prior_sd=prior_sd)
    return FeatureMap(space=space(arms, 1), terms=(term,), width=width)


def factored(variants: int, channels: int, width: int) -> FeatureMap:
    whole = space(variants, channels)
    return FeatureMap(space=whole, terms=default_terms(whole), width=width)


MODELS = {
    "one arm": disjoint(1, 6),
    "three arms": disjoint(3, 12),
    "factored": factored(3, 2, 7),
    "attributes": FeatureMap(
        space=ActionSpace(
            variants=tuple(
                Level(name=f"v{i}", attributes=(("long", i / 3 - 0.5), ("warm", (i % 2) - 0.3)))
                for i in range(4)
            ),
            channels=(Level(name="c"),),
        ),
        terms=(Term(of="context"), Term(of="context:variant.attributes"), Term(of="variant")),
        width=4,
    ),
    "bare terms": FeatureMap(
        space=space(3, 2),
        terms=(Term(of="variant:channel"), Term(of="context:channel", prior_sd=0.5)),
        width=8,
    ),
}
every_model = pytest.mark.parametrize("model", MODELS)


def design(features: FeatureMap, outcomes: Outcomes) -> Floats:
    """Spell phi out: a dense row of b * m numbers for every outcome."""
    n, k = len(outcomes.rewards), features.space.size
    if features.is_disjoint:
        return np.einsum("ta,ti->tai", np.eye(k)[outcomes.actions], outcomes.x).reshape(n, -1)
    pairs = zip(outcomes.x, outcomes.actions.tolist(), strict=True)
    return np.array([features.design(x, action) for x, action in pairs]).reshape(n, -1)


def laplace(
    phi: Floats, rewards: Floats, precision: Floats, centre: Floats, weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Find mode and covariance by damped Newton steps on dense matrices."""
    ones = np.ones(len(rewards)) if weights is None else weights

    def height(w: Floats) -> float:
        eta = phi @ w
        likelihood = ones @ (rewards * eta - np.logaddexp(0.0, eta))
        return float(likelihood - 0.5 * precision @ (w - centre) ** 2)

    w = centre.copy()
    for _ in range(200):
        p = special.expit(phi @ w)
        gradient = phi.T @ (ones * (rewards - p)) - precision * (w - centre)
        curvature = (phi * (ones * p * (1.0 - p))[:, None]).T @ phi + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        far = 1.0
        while far > 1e-6 and height(w + far * step) < height(w):
            far /= 2
        w = w + far * step
        if np.abs(phi @ step).max(initial=0.0) < 1e-9:
            break
    return w, np.linalg.inv(curvature)


def some(features: FeatureMap, n: int, *, rate: float, seed: int) -> Outcomes:
    """Draw contexts, actions and rewards whose share of successes is about ``rate``."""
    random = np.random.default_rng(seed)
    k, d = features.space.size, features.width
    x = np.column_stack([np.ones(n), random.uniform(-1, 1, (n, d - 1))])
    actions = random.integers(0, k, n)
    eta = np.einsum("ij,ij->i", x, random.normal(0, 0.5, (k, d))[actions])
    level = special.logit(rate)
    for _ in range(20):
        level += special.logit(rate) - special.logit(special.expit(eta + level).mean())
    return Outcomes(x, actions, (random.random(n) < special.expit(eta + level)).astype(float))


def learned(features: FeatureMap, outcomes: Outcomes, rate: float = 0.5) -> LogisticPosterior:
    posterior = LogisticPosterior(features, rate)
    posterior.fold(outcomes, seq=len(outcomes.rewards))
    return posterior


def distances(posterior: LogisticPosterior, outcomes: Outcomes) -> tuple[float, float]:
    """Give the largest error of a mean, in sd, and of a sd, as a share, against ``laplace``."""
    f = posterior.features
    found, mean, sd = posterior.moments(), 0.0, 0.0
    for i in range(f.blocks):
        mine = outcomes.actions == i if f.is_disjoint else np.ones(len(outcomes.actions), bool)
        own = Outcomes(*(part[mine] for part in outcomes[:3]))
        phi = own.x if f.is_disjoint else design(f, own)
        prior = posterior.prior_precision[i], posterior.prior_mean[i]
        mode, covariance = laplace(phi, own.rewards, *prior)
        lower, spread = found.lower[i], np.sqrt(np.diag(covariance))
        ratio = np.sqrt(np.diag(np.linalg.inv(lower @ lower.T))) / spread
        mean = max(mean, float(np.abs((found.mean[i] - mode) / spread).max()))
        sd = max(sd, float(np.abs(ratio - 1.0).max()))
    return mean, sd


# --- accuracy ---------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("n", [50, 500, 5_000])
def test_mean_and_sd_are_those_of_a_full_laplace_fit(model: str, rate: float, n: int):
    """All that is allowed is .05 sd and 5 %; while all outcomes are held, far less is needed."""
    outcomes = some(MODELS[model], n, rate=rate, seed=n)
    mean, sd = distances(learned(MODELS[model], outcomes, rate), outcomes)
    print(f"\n{model}, rate {rate}, n {n}: {mean:.1e} sd, {sd:.1e}")  # noqa: T201
    assert mean < MEAN / 50
    assert sd < SD / 25


@pytest.mark.parametrize("model", ["three arms", "factored"])
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01])
def test_thinned_outcomes_still_give_the_moments_of_all(model: str, rate: float):
    """After 20,000 outcomes, of which at most 16,384 are held."""
    outcomes = some(MODELS[model], 20_000, rate=rate, seed=3)
    posterior = learned(MODELS[model], outcomes, rate)
    assert posterior.held < capacity(MODELS[model].width)
    mean, sd = distances(posterior, outcomes)
    print(f"\n{model}, rate {rate}: mean within {mean:.4f} sd, sd within {100 * sd:.2f} %")  # noqa: T201
    assert mean < MEAN
    assert sd < SD


def test_a_small_window_would_not_do(monkeypatch: pytest.MonkeyPatch):
    """Freezing early sites is what the window is there to avoid; the checks above notice it."""
    monkeypatch.setattr(module, "capacity", lambda _: 512)
    outcomes = some(MODELS["three arms"], 5_000, rate=0.01, seed=3)
    mean, _ = distances(learned(MODELS["three arms"], outcomes, 0.01), outcomes)
    assert mean > MEAN


def polya_gamma(
    phi: Floats, rewards: Floats, precision: Floats, centre: Floats, draws: int
) -> Floats:
    """Draw weights by Gibbs steps of Polson, Scott & Windle, JASA 108, 2013.

    PG(1, c) is a sum of 30 exponentials, and the mean of the rest.
    """
    random = np.random.default_rng(1)
    odd = (np.arange(30) + 0.5) ** 2
    w, kept = centre.copy(), np.empty((draws, len(centre)))
    for t in range(draws + 100):
        c = np.maximum(np.abs(phi @ w), 1e-6)
        scale = 2.0 * np.pi**2 * (odd + (c[:, None] / (2 * np.pi)) ** 2)
        omega = (random.standard_exponential(scale.shape) / scale).sum(axis=1)
        omega += np.tanh(c / 2) / (2 * c) - (1.0 / scale).sum(axis=1)
        lower = np.linalg.cholesky((phi * omega[:, None]).T @ phi + np.diag(precision))
        shift = phi.T @ (rewards - 0.5) + precision * centre
        mean = np.linalg.solve(lower.T, np.linalg.solve(lower, shift))
        w = mean + np.linalg.solve(lower.T, random.standard_normal(len(w)))
        if t >= 100:
            kept[t - 100] = w
    return kept


def test_mean_and_sd_are_those_of_a_polya_gamma_sampler():
    """Four weights, 300 outcomes, half successes: the exact posterior is close to normal.

    The sampler's own error is about .015 sd and 1 % (6,000 draws), so this passes with room.
    """
    features = disjoint(1, 4)
    outcomes = some(features, 300, rate=0.5, seed=2)
    posterior = learned(features, outcomes)
    draws = polya_gamma(
        design(features, outcomes),
        outcomes.rewards,
        posterior.prior_precision[0],
        posterior.prior_mean[0],
        6_000,
    )
    found = posterior.moments()
    sd = np.sqrt(np.diag(np.linalg.inv(found.lower[0] @ found.lower[0].T)))
    assert np.abs((found.mean[0] - draws.mean(axis=0)) / draws.std(axis=0)).max() < MEAN
    assert np.abs(sd / draws.std(axis=0) - 1.0).max() < SD


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("n", [50, 500, 5_000])
def test_how_far_the_exact_posterior_is(rate: float, n: int):
    """Importance sampling from a wide t: the skew of rare successes is in the intercept.

    The sampler's own error is about .02 sd; seeds are fixed.
    """
    features = MODELS["one arm"]
    outcomes = some(features, n, rate=rate, seed=3)
    found = learned(features, outcomes, rate).moments()
    mode, lower = found.mean[0], found.lower[0]
    random, draws, freedom = np.random.default_rng(1), 6_000, 5.0
    z = random.standard_normal((draws, 6))
    z /= np.sqrt(random.chisquare(freedom, (draws, 1)) / freedom)
    w = mode + 1.2 * np.linalg.solve(lower.T, z.T).T
    eta, centre = w @ outcomes.x.T, prior_mean(features, rate)[0]
    log = eta @ outcomes.rewards - np.logaddexp(0.0, eta).sum(axis=1)
    log -= 0.5 * ((w - centre) ** 2).sum(axis=1)
    log += 0.5 * (freedom + 6) * np.log1p((z**2).sum(axis=1) / freedom)
    share = np.exp(log - log.max())
    share /= share.sum()
    mean = share @ w
    sd = np.sqrt(share @ (w - mean) ** 2)
    skew = (mode - mean) / sd
    ratio = np.sqrt(np.diag(np.linalg.inv(lower @ lower.T))) / sd
    clicks = int(outcomes.rewards.sum())
    print(f"\n{n}, {clicks}: {skew[0]:.2f}, {np.abs(skew[1:]).max():.2f}, {ratio.round(2)}")  # noqa: T201
    assert -0.05 < skew[0] < 0.8
    assert np.abs(skew[1:]).max() < 0.2
    assert np.abs(ratio - 1.0).max() < 0.1


def test_fractions_count_as_parts_of_a_success():
    features = disjoint(2, 3)
    outcomes = some(features, 200, rate=0.5, seed=1)
    outcomes = outcomes._replace(rewards=np.random.default_rng(1).random(200))
    mean, sd = distances(learned(features, outcomes), outcomes)
    assert max(mean, sd) < 1e-3


def test_without_outcomes_the_prior_is_left():
    for model in MODELS.values():
        posterior = LogisticPosterior(model, 0.02)
        mean, lower, variance, _, _ = posterior.moments()
        np.testing.assert_allclose(mean, posterior.prior_mean, rtol=1e-12)
        for each in lower:
            np.testing.assert_allclose(each @ each.T, np.diag(model.prior_precision), rtol=1e-12)
        assert variance == 1.0


@every_model
def test_the_prior_expects_the_base_rate_of_every_action(model: str):
    features = MODELS[model]
    mean, k = prior_mean(features, 0.03), features.space.size
    x = np.zeros((k, features.width))
    x[:, 0] = 1.0
    x[:, 1:] = np.random.default_rng(1).uniform(-1, 1, (k, features.width - 1))
    outcomes = Outcomes(x, np.arange(k), np.zeros(k))
    if features.is_disjoint:
        rates = special.expit(np.einsum("ij,ij->i", x, mean))
    else:
        rates = special.expit(design(features, outcomes) @ mean[0])
    np.testing.assert_allclose(rates, 0.03, rtol=1e-12)


def test_a_prior_of_every_weight_is_used():
    """What a pooled prior needs: precision and mean are arrays of shape (b, m)."""
    features, random = disjoint(2, 3), np.random.default_rng(1)
    outcomes = some(features, 100, rate=0.3, seed=1)
    posterior = learned(features, outcomes)
    posterior.prior_precision = random.uniform(0.5, 20, (2, 3))
    posterior.prior_mean = random.normal(0, 2, (2, 3))
    mean, sd = distances(posterior, outcomes)
    assert max(mean, sd) < 1e-3


# --- order, not grouping ----------------------------------------------------------------


@pytest.mark.parametrize("model", ["three arms", "factored"])
@settings(max_examples=15)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 120), max_size=6), publish=st.booleans())
def test_any_grouping_gives_the_same_bits(model: str, seed: int, cuts: list[int], *, publish: bool):
    features = MODELS[model]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capacity", lambda _: 40)  # thinned four times and more
        outcomes = some(features, 120, rate=0.3, seed=seed)
        whole, parts = LogisticPosterior(features, 0.3), LogisticPosterior(features, 0.3)
        whole.fold(outcomes, seq=120)
        for a, b in pairwise([0, *sorted(cuts), 120]):
            parts.fold(Outcomes(*(part[a:b] for part in outcomes[:3])), seq=b)
            if publish:
                parts.moments()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, parts.arrays()[name])
    for one, other in zip(whole.moments(), parts.moments(), strict=True):
        np.testing.assert_array_equal(one, other)


@every_model
def test_one_step_at_a_time_is_all_at_once(model: str):
    outcomes = some(MODELS[model], 300, rate=0.2, seed=4)
    whole, parts = learned(MODELS[model], outcomes), LogisticPosterior(MODELS[model])
    for t in range(300):
        parts.fold(Outcomes(*(part[t : t + 1] for part in outcomes[:3])), seq=t + 1)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, parts.arrays()[name])


def test_rarely_chosen_arms_keep_their_outcomes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "capacity", lambda _: 100)
    outcomes = some(MODELS["three arms"], 1_000, rate=0.3, seed=1)
    outcomes.actions[:] = 0
    outcomes.actions[::100] = 2
    posterior = learned(MODELS["three arms"], outcomes)
    arrays = posterior.arrays()
    assert (arrays["weights"][arrays["chosen"] == 2] == 1.0).sum() == 10
    assert not posterior.precision[1:].any()
    assert posterior.precision[0].any()


# --- hard data --------------------------------------------------------------------------


def sane(posterior: LogisticPosterior) -> None:
    """Everything finite, no variance above the prior's, and the mode a place of rest."""
    found = posterior.moments()
    for array in (*posterior.arrays().values(), found.mean, found.lower):
        assert np.isfinite(array).all()
    prior = 1.0 / posterior.prior_precision
    for lower, widest in zip(found.lower, prior, strict=True):
        variance = np.diag(np.linalg.inv(lower @ lower.T))
        assert (variance <= widest * (1 + 1e-6)).all()


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("prior_sd", [0.001, 1.0, 1_000.0])
@pytest.mark.parametrize("base_rate", [1e-6, 0.5])
def test_outcomes_that_are_all_alike_end_somewhere(
    reward: float, prior_sd: float, base_rate: float
):
    features = disjoint(2, 4, prior_sd)
    outcomes = some(features, 3_000, rate=0.5, seed=1)
    outcomes.rewards[:] = reward
    posterior = learned(features, outcomes, base_rate)
    sane(posterior)
    mean, sd = distances(posterior, outcomes)
    assert max(mean, sd) < 0.01


def test_separable_outcomes_end_where_the_prior_holds_them():
    features = disjoint(1, 3, 100.0)
    outcomes = some(features, 500, rate=0.5, seed=1)
    outcomes.rewards[:] = outcomes.x[:, 1] > 0
    posterior = learned(features, outcomes)
    sane(posterior)
    mean, sd = distances(posterior, outcomes)
    assert max(mean, sd) < 0.01


def test_collinear_and_constant_features_share_their_weight():
    features = disjoint(1, 4, 1_000.0)
    outcomes = some(features, 4_000, rate=0.2, seed=1)
    outcomes.x[:, 1] = 1.0
    outcomes.x[:, 3] = outcomes.x[:, 2]
    posterior = learned(features, outcomes)
    sane(posterior)
    mean = posterior.moments().mean[0]
    assert mean[0] == pytest.approx(mean[1], abs=1e-3)
    assert mean[2] == pytest.approx(mean[3], abs=1e-3)


def test_a_million_outcomes_of_one_arm():
    features = disjoint(2, 3)
    block = some(features, 100_000, rate=0.02, seed=1)
    block.actions[:] = 0
    posterior = LogisticPosterior(features, 0.02)
    for i in range(10):
        posterior.fold(block, seq=i + 1)
    sane(posterior)
    f = posterior.features
    weights = np.full(100_000, 10.0)
    prior = posterior.prior_precision.ravel(), posterior.prior_mean.ravel()
    mean, covariance = laplace(design(f, block), block.rewards, *prior, weights)
    found = posterior.moments()
    assert np.abs((found.mean[0] - mean[:3]) / np.sqrt(np.diag(covariance)[:3])).max() < MEAN
    np.testing.assert_allclose(found.mean[1], posterior.prior_mean[1])


@given(
    seed=SEEDS,
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e6]),
    rate=st.sampled_from([0.0, 1e-3, 0.5, 1.0]),
    prior_sd=st.sampled_from([1e-3, 1.0, 1e3]),
    model=st.sampled_from([disjoint, lambda k, d, _: factored(k, 2, d)]),
)
@settings(max_examples=40)
def test_no_data_put_a_nan_into_the_state(
    seed: int, scale: float, rate: float, prior_sd: float, model: object
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capacity", lambda _: 60)
        features = model(2, 3, prior_sd)  # type: ignore[operator]
        random = np.random.default_rng(seed)
        x = random.uniform(-scale, scale, (200, 3))
        rewards = (random.random(200) < rate).astype(float)
        posterior = LogisticPosterior(features)
        posterior.fold(Outcomes(x, random.integers(0, 2, 200), rewards), seq=200)
        found = posterior.moments()
    for array in (*posterior.arrays().values(), found.mean, found.lower):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf, 1e12])
def test_a_reward_outside_0_to_1_is_refused(value: float):
    posterior = learned(MODELS["factored"], some(MODELS["factored"], 10, rate=0.5, seed=1))
    before = {name: array.copy() for name, array in posterior.arrays().items()}
    outcomes = some(MODELS["factored"], 5, rate=0.5, seed=2)
    outcomes.rewards[3] = value
    with pytest.raises(InvalidInputError) as caught:
        posterior.fold(outcomes, seq=20)
    assert caught.value.field == "outcomes"
    assert (posterior.seq, posterior.count) == (10, 10)
    for name, array in posterior.arrays().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_a_feature_out_of_range_is_refused(value: float):
    outcomes = some(MODELS["factored"], 5, rate=0.5, seed=2)
    outcomes.x[3, 1] = value
    with pytest.raises(InvalidInputError, match=r"1e6|finite"):
        learned(MODELS["factored"], outcomes)


# --- storage ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["three arms", "factored"])
def test_what_is_written_is_read_and_goes_on(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "capacity", lambda _: 100)
    features = MODELS[model]
    for n in (0, 60, 230):
        outcomes = some(features, n + 50, rate=0.3, seed=1)
        first, then = (
            Outcomes(*(part[s] for part in outcomes[:3])) for s in (slice(n), slice(n, n + 50))
        )
        posterior, read = learned(features, first), learned(features, then)
        encoding.load(read, encoding.to_bytes(posterior))
        assert encoding.to_bytes(read) == encoding.to_bytes(posterior)
        for each in (posterior, read):
            each.fold(then, seq=n + 50)
        assert encoding.to_bytes(read) == encoding.to_bytes(posterior)


@pytest.mark.parametrize(
    "parts",
    [
        {"chosen": np.full(10, 3.0)},
        {"chosen": np.full(10, 0.5)},
        {"weights": np.full(10, -1.0)},
        {"weights": np.full(10, np.nan)},
        {"weights": np.ones(9)},
        {"contexts": np.ones((10, 5))},
        {"contexts": np.ones((20_000, 12))},
        {"contexts": np.array(1.0)},
        {"mode": np.full((3, 12), np.inf)},
        {"shift": np.zeros((3, 11))},
        {"more": np.zeros(1)},
    ],
)
def test_a_state_that_does_not_fit_is_not_loaded(parts: dict[str, Floats]):
    posterior = learned(MODELS["three arms"], some(MODELS["three arms"], 10, rate=0.5, seed=1))
    before = {name: array.copy() for name, array in posterior.arrays().items()}
    with pytest.raises(CorruptionError):
        posterior.load({**before, **parts}, seq=99, count=99)
    without = {name: array for name, array in before.items() if name != "weights"}
    with pytest.raises(CorruptionError):
        posterior.load(without, seq=99, count=99)
    assert (posterior.seq, posterior.count) == (10, 10)
    for name, array in posterior.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_memory_is_bounded():
    assert capacity(1) == capacity(14) == 16_384
    assert capacity(50) > 5_000
    assert capacity(2_048) == 1_024
    posterior = LogisticPosterior(MODELS["one arm"])
    block = some(MODELS["one arm"], 20_000, rate=0.5, seed=1)
    for i in range(3):
        posterior.fold(block, seq=i + 1)
        assert len(encoding.to_bytes(posterior)) < 8 * 16_384 * 8 + 10_000


# --- the front door ---------------------------------------------------------------------


def experiment(**parts: object) -> Experiment:
    whole = {
        "name": "e",
        "actions": {"variants": ["a", "b", "c"], "channels": ["x", "y"]},
        "context": [{"name": "age", "kind": "number", "bounds": [-1, 1], "required": True}],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "click"}]},
        "policy": {"posterior": "logistic", "base_rate": 0.03},
    }
    return Experiment(from_data({**whole, **parts}), secret=b"sixteen bytes or more")


def test_an_experiment_learns_which_action_is_clicked():
    of = experiment()
    posterior, random = of.prior(), np.random.default_rng(1)
    assert isinstance(posterior, LogisticPosterior)
    assert of.spec.is_joint
    rows, actions = random.uniform(-1, 1, (8_000, 1)), random.integers(0, 6, 8_000)
    rates = np.where(actions == 4, 0.12, 0.03)
    clicks = (random.random(8_000) < rates).astype(float)
    of.learn(posterior, rows, actions.tolist(), clicks, seq=8_000)
    for age in (-0.9, 0.0, 0.9):
        one = rng.decision_id(of.secret, "e", str(age), at_ms=0)
        snapshot = of.publish(posterior, version=1)
        decision = of.decide(snapshot, {"age": age}, decision_id=one, customer=b"c1")
        assert decision.propensities is not None
        assert decision.propensities.argmax() == 4
        assert decision.propensities.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"policy": {"posterior": "logistic", "noise": {"sd": 1.0}}}, "policy.noise"),
        ({"policy": {"posterior": "logistic", "base_rate": 0.0}}, "policy.base_rate"),
        ({"policy": {"posterior": "logistic", "base_rate": 1.0}}, "policy.base_rate"),
        ({"policy": {"base_rate": 0.1}}, "policy.base_rate"),
        (
            {"outcome": {"window": 60, "rewards": [{"name": "r"}], "aggregation": "sum"}},
            "policy.posterior",
        ),
        (
            {
                "outcome": {
                    "window": 60,
                    "aggregation": "max",
                    "rewards": [{"name": "r", "bounds": [0, 2]}],
                }
            },
            "policy.posterior",
        ),
    ],
)
def test_a_specification_that_does_not_fit_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        experiment(**parts)
    assert caught.value.field == field


def test_default_noise_written_out_is_accepted():
    noise = dataclasses.asdict(Noise())
    of = experiment(policy={"posterior": "logistic", "noise": {**noise, "sd": None}})
    assert of.spec.policy.base_rate == 0.5


def test_a_full_window_and_a_pause_that_forgets_all():
    features = disjoint(2, 2)
    posterior = LogisticPosterior(features, 0.3, half_life=1.0)
    n = capacity(2)
    x = np.column_stack([np.ones(n), np.linspace(-1, 1, n)])
    actions, rewards = np.arange(n) % 2, (np.arange(n) % 3 == 0).astype(float)
    posterior.fold(Outcomes(x, actions, rewards, np.zeros(n)), seq=n)
    late = Outcomes(x[:8], actions[:8], rewards[:8], np.full(8, 1_090.0))
    posterior.fold(late, seq=n + 8)
    fresh = LogisticPosterior(features, 0.3, half_life=1.0)
    fresh.fold(late, seq=8)
    for name, array in posterior.arrays().items():
        assert np.isfinite(array).all(), name
    np.testing.assert_allclose(posterior.moments().mean, fresh.moments().mean, atol=1e-9)
