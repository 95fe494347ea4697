"""Each policy's mathematics against a plain twin, and what the policies are for."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bandit.actions import ActionSpace, Level
from bandit.choosing import (
    EpsilonGreedy,
    Fixed,
    LinUCB,
    Policy,
    Softmax,
    ThompsonSampling,
    TopTwo,
    Uniform,
)
from bandit.features import FeatureMap, Term
from bandit.kernels import rules
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.posterior import GaussianPosterior, Noise, Outcomes
from bandit.snapshot import Asked, Choices, Snapshot, publish

ALPHA = 1e-6


class Stated:
    """A belief that is stated: these moments, these probabilities of being best."""

    def __init__(self, centre: Floats, spread: Floats, best: Floats) -> None:
        self.centre, self.spread, self.best = centre, spread, best

    def moments(self, asked: Asked) -> tuple[Floats, Floats]:  # noqa: ARG002
        return self.centre.copy(), self.spread.copy()

    def means(self, asked: Asked) -> Floats:
        return self.moments(asked)[0]

    def decide(self, asked: Asked, floor: float) -> Choices:
        assert floor == 0.0
        return Choices(np.zeros(len(asked.which), dtype=np.int64), self.best.copy())

    draw = decide


def chosen(policy: Policy, belief: Stated, eligible: Bools) -> Floats:
    """Give the probabilities of one policy, each row with its own mask."""
    n = len(eligible)
    streams = np.random.default_rng(1).integers(0, 2**32, (n, 4), dtype=np.uint32)
    asked = Asked(np.ones((n, 1)), np.arange(n), eligible, streams)
    p = policy.choose(belief, asked, propensities=True).propensities
    assert p is not None
    return p


def some(seed: int, *, k: int = 6, n: int = 20) -> tuple[Stated, Bools]:
    random = np.random.default_rng(seed)
    eligible = random.uniform(size=(n, k)) < 0.7
    eligible[:, 2] = True
    best = np.where(eligible, random.dirichlet(np.full(k, 0.3), n) + 1e-12, 0.0)
    best /= best.sum(axis=1, keepdims=True)
    centre = random.choice([0.0, 0.1, 0.25, 1.0], (n, k))  # with ties
    return Stated(centre, random.uniform(0.01, 0.5, (n, k)), best), eligible


def floored(p: Floats, eligible: Bools, floor: float) -> Floats:
    n = eligible.sum(axis=1, keepdims=True)
    return np.where(eligible, floor + (1.0 - n * floor) * p, 0.0)


def one_hot(scores: Floats, eligible: Bools) -> Floats:
    """Give everything to the first of the best eligible scores."""
    return np.eye(scores.shape[1])[np.argmax(np.where(eligible, scores, -np.inf), axis=1)]


# --- twins ------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**9), confidence=st.floats(0, 10), floor=st.sampled_from([0.0, 0.1]))
def test_linucb_takes_the_highest_bound(seed: int, confidence: float, floor: float):
    belief, eligible = some(seed)
    expected = one_hot(belief.centre + confidence * belief.spread, eligible)
    p = chosen(LinUCB(confidence, floor), belief, eligible)
    np.testing.assert_allclose(p, floored(expected, eligible, floor), atol=1e-15)


@given(seed=st.integers(0, 10**9), epsilon=st.floats(0, 1), floor=st.sampled_from([0.0, 0.1]))
def test_epsilon_greedy_spreads_epsilon_evenly(seed: int, epsilon: float, floor: float):
    belief, eligible = some(seed)
    even = eligible / eligible.sum(axis=1, keepdims=True)
    expected = (1.0 - epsilon) * one_hot(belief.centre, eligible) + epsilon * even
    p = chosen(EpsilonGreedy(epsilon, floor), belief, eligible)
    np.testing.assert_allclose(p, floored(expected, eligible, floor), atol=1e-14)


@given(seed=st.integers(0, 10**9), scale=st.floats(-3, 3), floor=st.sampled_from([0.0, 0.1]))
def test_softmax_weighs_by_exponentials(seed: int, scale: float, floor: float):
    belief, eligible = some(seed)
    temperature = 10.0**scale
    best = np.max(np.where(eligible, belief.centre, -np.inf), axis=1, keepdims=True)
    weight = np.where(eligible, np.exp(np.minimum((belief.centre - best) / temperature, 0.0)), 0.0)
    p = chosen(Softmax(temperature, floor), belief, eligible)
    expected = floored(weight / weight.sum(axis=1, keepdims=True), eligible, floor)
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e12, 1e300])
def test_softmax_is_safe_at_any_scale(scale: float):
    """The gap of the means is 3 units of any size, the temperature the least and the most."""
    belief = Stated(scale * np.array([[0.0, 3.0, 3.0, -4.0]]), np.ones((1, 4)), np.ones((1, 4)))
    for temperature in (1e-9, 1e9):
        p = chosen(Softmax(temperature, 0.0), belief, np.ones((1, 4), dtype=np.bool_))
        assert np.isfinite(p).all()
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert p[0, 1] == p[0, 2] >= p[0, 0] >= p[0, 3] >= 0.0


def test_uniform_gives_every_eligible_action_the_same():
    belief, eligible = some(1)
    p = chosen(Uniform(), belief, eligible)
    np.testing.assert_array_equal(p, eligible / eligible.sum(axis=1, keepdims=True))


def test_fixed_takes_its_action_or_any_of_the_rest():
    belief, eligible = some(1)
    assert 0 < eligible[:, 3].sum() < len(eligible)
    even = eligible / eligible.sum(axis=1, keepdims=True)
    expected = np.where(eligible[:, [3]], np.eye(6)[3], even)
    np.testing.assert_array_equal(chosen(Fixed(3), belief, eligible), expected)


# --- top-two ----------------------------------------------------------------------------


def exact_top_two(best: Floats, share: float) -> Floats:
    """Add up leader and challenger pair by pair, in fractions."""
    p = [Fraction(float(b)) for b in best]
    total, beta = sum(p), Fraction(share)
    out = [beta * one for one in p]
    for b, leader in enumerate(p):
        rest = total - leader
        for a, challenger in enumerate(p):
            if a != b and rest:
                out[a] += (1 - beta) * leader * challenger / rest
    return np.array([float(one / sum(out)) for one in out])


@given(
    powers=st.lists(st.floats(-120, 0) | st.just(-np.inf), min_size=1, max_size=8).filter(
        lambda powers: max(powers) > -120
    ),
    share=st.floats(0.01, 1),
)
def test_top_two_is_the_sum_over_leaders_and_challengers(powers: list[float], share: float):
    best = 10.0 ** np.array(powers)
    best /= best.sum()
    eligible = np.ones((1, len(best)), dtype=np.bool_)
    p = chosen(TopTwo(share), Stated(best, best, best[None, :]), eligible)[0]
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(p, exact_top_two(best, share), rtol=1e-12, atol=0)


def test_the_short_formula_would_lose_the_challenger():
    """``S - p / (1 - p)`` of huge numbers: why the kernel subtracts nothing."""
    best = np.array([1.0 - 1e-15, 7e-16, 3e-16])
    odds = best / (1.0 - best)
    short = best * (0.5 + 0.5 * (odds.sum() - odds))
    np.testing.assert_allclose(
        rules.top_two(best[None, :], 0.5)[0], exact_top_two(best, 0.5), rtol=1e-12
    )
    assert np.abs(short / exact_top_two(best, 0.5) - 1.0).max() > 1e-4


@pytest.mark.parametrize(("best", "expected"), [([1.0, 0.0], [1.0, 0.0]), ([1.0], [1.0])])
def test_without_doubt_the_leader_is_played(best: list[float], expected: list[float]):
    p = np.array([best])
    out = chosen(TopTwo(0.5), Stated(p, p, p), np.ones(p.shape, dtype=np.bool_))
    np.testing.assert_array_equal(out, [expected])


def test_top_two_with_share_one_is_thompson_sampling():
    belief, eligible = some(3)
    p = chosen(TopTwo(1.0), belief, eligible)
    np.testing.assert_allclose(p, belief.best, rtol=1e-14)


def simulated(best: Floats, share: float, n: int, *, again: bool = True) -> Ints:
    """Play top-two as it is told: a leader, a coin, challengers drawn until one differs.

    ``again = False`` is a wrong twin, which draws a challenger once, whoever it is.
    """
    random, k = np.random.default_rng(11), len(best)
    played = random.choice(k, n, p=best)
    open_ = np.flatnonzero(random.uniform(size=n) >= share)
    leaders = played.copy()
    while len(open_):
        played[open_] = random.choice(k, len(open_), p=best)
        open_ = open_[played[open_] == leaders[open_]] if again else open_[:0]
    return np.bincount(played, minlength=k)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("best", [[0.55, 0.3, 0.1, 0.05], [0.96, 0.03, 0.01], [0.5, 0.5]])
def test_top_two_is_what_its_simulation_plays(best: list[float], share: float):
    """A chi-square over 10^6 plays, false alarms 1e-6; the wrong twin is noticed."""
    expected = 1e6 * rules.top_two(np.array([best]), share)[0]
    counts = simulated(np.array(best), share, 1_000_000)
    assert stats.chisquare(counts, expected).pvalue > ALPHA
    if best != [0.5, 0.5]:  # where all are alike the twin is right
        wrong = simulated(np.array(best), share, 1_000_000, again=False)
        assert stats.chisquare(wrong, expected).pvalue < ALPHA


# --- best-arm identification ------------------------------------------------------------

MEANS = np.array([0.50, 0.44, 0.2, 0.1])
SD = 0.3


def identify(policy: Policy, seed: int) -> tuple[int, int]:
    """Play until one arm is the best with probability .99; give outcomes seen, and the arm."""
    space = ActionSpace(
        variants=tuple(Level(name=str(i)) for i in range(4)), channels=(Level(name="x"),)
    )
    terms = (Term(of="context:variant", prior_sd=1.0),)
    posterior = GaussianPosterior(FeatureMap(space=space, terms=terms, width=1), Noise(sd=SD))
    world, n = np.random.default_rng(seed), 25
    everyone, which = np.ones((1, 4), dtype=np.bool_), np.zeros(n, dtype=np.int64)
    while True:
        streams = world.integers(0, 2**32, (n, 4), dtype=np.uint32)
        asked = Asked(np.ones((n, 1)), which, everyone, streams)
        belief = published(posterior).belief
        best = belief.decide(asked, 0.0).propensities
        assert best is not None
        if best[0].max() > 0.99:
            return posterior.seq, int(best[0].argmax())
        actions = policy.choose(belief, asked, propensities=True).actions
        rewards = MEANS[actions] + SD * world.standard_normal(n)
        posterior.fold(Outcomes(asked.x, actions, rewards), seq=posterior.seq + n)


def published(posterior: GaussianPosterior) -> Snapshot:
    stream = np.zeros(4, dtype=np.uint32)
    return publish(posterior, version=1, exploration=1.0, draws=16, stream=stream)


def test_top_two_finds_the_best_of_a_close_pair_with_fewer_outcomes():
    """Ten runs each, fixed seeds: at most 70 % of Thompson sampling's outcomes."""
    runs = {
        kind: [identify(policy, seed) for seed in range(10)]
        for kind, policy in (("two", TopTwo(0.5)), ("one", ThompsonSampling()))
    }
    seen = {kind: np.mean([outcomes for outcomes, _ in many]) for kind, many in runs.items()}
    right = {kind: np.mean([arm == 0 for _, arm in many]) for kind, many in runs.items()}
    assert right["two"] >= right["one"] - 0.1 > 0.8
    assert seen["two"] < 0.7 * seen["one"]
