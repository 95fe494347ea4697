"""Forgetting: weighted regression, any grouping, any elapsed time, and a changed world."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import encoding, rng
from bandit.errors import CorruptionError, InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels import forgetting
from bandit.kernels.compiling import Floats, Ints
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Posterior
from bandit.question import Question
from bandit.spec_file import from_data, to_json

GOLDEN = Path(__file__).parents[1] / "golden/posterior-1-fading.hex"
SECRET = b"sixteen bytes or more"
SEEDS = st.integers(0, 2**32 - 1)
HALF_LIVES = st.floats(-3.0, 9.0).map(lambda x: 10.0**x)
FORMS: dict[str, dict[str, object]] = {
    "disjoint": {"terms": [{"of": "context:variant"}]},
    "joint": {"terms": [{"of": "context", "prior_sd": 0.5}, {"of": "variant", "prior_sd": 2.0}]},
    "beta": {"posterior": "beta_bernoulli"},
}
every_form = pytest.mark.parametrize("form", FORMS)


def experiment(form: str, half_life: float | None, **parts: object) -> Experiment:
    """Give two actions and one number as context."""
    policy = dict(FORMS[form])
    if half_life is not None:
        policy["half_life"] = half_life
    whole = {
        "name": "e",
        "actions": {"variants": ["a", "b"], "channels": ["x"]},
        "context": [{"name": "z", "kind": "number", "bounds": [-1, 1], "required": True}],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "policy": policy,
        "groups": {"random": 0.0},
    }
    return Experiment(from_data({**whole, **parts}), secret=SECRET)


class Log:
    """Random outcomes at random times, most of them in order."""

    def __init__(self, n: int, seed: int, span: float, start: float = 1.7e9) -> None:
        random = np.random.default_rng(seed)
        self.rows = random.uniform(-1, 1, (n, 1))
        self.actions: Ints = random.integers(0, 2, n)
        self.rewards: Floats = random.uniform(0, 1, n)
        self.times = start + np.sort(random.uniform(0, span, n)) * random.choice([1, 1, 0.9], n)

    def learn(self, of: Experiment, into: Posterior, start: int, stop: int) -> None:
        here = slice(start, stop)
        of.learn(
            into,
            self.rows[here],
            self.actions[here],  # type: ignore[arg-type]
            self.rewards[here],
            times=self.times[here],
            seq=stop,
        )


def learned(of: Experiment, log: Log) -> Posterior:
    posterior = of.prior()
    log.learn(of, posterior, 0, len(log.times))
    return posterior


# --- the weights ------------------------------------------------------------------------


@given(half_life=HALF_LIVES, lives=st.floats(-1e5, 1e5))
def test_whole_half_lives_and_the_rest_are_exact(half_life: float, lives: float):
    elapsed = half_life * lives
    whole, rest = forgetting.half_lives(elapsed, half_life)
    assert rest == math.fmod(elapsed, half_life)
    assert whole == int(whole)
    assert abs(whole + rest / half_life - elapsed / half_life) <= 1e-15 * abs(elapsed / half_life)


@given(whole=st.integers(-1000, 1000), rest=st.floats(-1.0, 1.0))
def test_a_power_of_two_is_one(whole: int, rest: float):
    expected = math.ldexp(2.0**rest, whole)
    assert forgetting.power(float(whole), rest, 1.0) == pytest.approx(expected, rel=2e-15)
    assert forgetting.power(float(whole), 0.0, 7.0) == math.ldexp(1.0, whole)


def test_a_power_too_small_is_zero_and_never_an_error():
    assert forgetting.power(-1e15, 0.5, 1.0) == 0.0
    assert 0.0 < forgetting.power(-1074.0, 0.0, 1.0) < 1e-300


# --- the dense regression ---------------------------------------------------------------


def weights(times: Floats, half_life: float) -> Floats:
    fade: Floats = 2.0 ** (-(times.max() - times) / half_life)
    return fade


@given(n=st.integers(1, 60), seed=SEEDS, lives=st.sampled_from([0.1, 3.0, 50.0, 700.0]))
def test_moments_are_those_of_the_weighted_regression(n: int, seed: int, lives: float):
    """Over up to 700 half-lives: the landmark moves ten times on the way."""
    half_life = 3600.0
    of, log = experiment("joint", half_life), Log(n, seed, lives * half_life)
    posterior = learned(of, log)
    assert isinstance(posterior, GaussianPosterior)
    mean, lower, _, shape, scale = posterior.moments()
    w = weights(log.times, half_life)
    x = np.column_stack([np.ones(n), log.rows])
    phi = np.column_stack([x, np.eye(2)[log.actions]])
    prior = np.diag([4.0, 4.0, 0.25, 0.25])
    precision = prior + phi.T @ (w[:, None] * phi)
    expected = np.linalg.solve(precision, phi.T @ (w * log.rewards))
    residual = w @ (log.rewards - phi @ expected) ** 2 + expected @ prior @ expected
    np.testing.assert_allclose(mean[0], expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(lower[0] @ lower[0].T, precision, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([shape, scale], [1.0 + w.sum() / 2, 0.1 + residual / 2], rtol=1e-9)


@given(n=st.integers(1, 60), seed=SEEDS, half_life=st.floats(60.0, 1e6))
def test_counts_of_success_fade_towards_the_prior(n: int, seed: int, half_life: float):
    of, log = experiment("beta", half_life), Log(n, seed, 1e6)
    posterior = learned(of, log)
    assert isinstance(posterior, BetaBernoulliPosterior)
    w, arms = weights(log.times, half_life), np.eye(2)[log.actions]
    successes, failures = posterior.parameters()
    np.testing.assert_allclose(successes, 1.0 + arms.T @ (w * log.rewards), rtol=1e-9)
    np.testing.assert_allclose(failures, 1.0 + arms.T @ (w * (1.0 - log.rewards)), rtol=1e-9)


def test_a_late_outcome_weighs_less_and_turns_no_clock_back():
    of = experiment("beta", 10.0)
    posterior = of.prior()
    assert isinstance(posterior, BetaBernoulliPosterior)
    ones, rows = np.ones(3), np.zeros((3, 1))
    times = np.array([100.0, 80.0, -1e12])
    of.learn(posterior, rows, [0, 1, 1], ones, times=times, seq=3)
    successes, failures = posterior.parameters()
    assert (successes.tolist(), failures.tolist()) == ([2.0, 1.25], [1.0, 1.0])
    assert posterior.count == 3


def test_idle_time_forgets_nothing():
    """Belief is a function of the log alone: it fades when the next outcome comes."""
    of = experiment("beta", 10.0)
    posterior = of.prior()
    assert isinstance(posterior, BetaBernoulliPosterior)
    of.learn(posterior, np.zeros((1, 1)), [0], np.ones(1), times=np.array([5.0]), seq=1)
    of.learn(posterior, np.zeros((0, 1)), [], np.ones(0), times=np.ones(0), seq=900)
    assert posterior.parameters()[0].tolist() == [2.0, 1.0]
    of.learn(posterior, np.zeros((1, 1)), [1], np.ones(1), times=np.array([15.0]), seq=901)
    assert posterior.parameters()[0].tolist() == [1.5, 2.0]


# --- bits -------------------------------------------------------------------------------


@every_form
@settings(max_examples=30)
@given(seed=SEEDS, lives=st.floats(0.1, 2000.0), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_any_grouping_gives_the_same_bits(form: str, seed: int, lives: float, cuts: list[int]):
    of, log = experiment(form, 60.0), Log(40, seed, 60.0 * lives)
    parts = of.prior()
    for start, stop in pairwise(sorted([0, *cuts, 40])):
        log.learn(of, parts, start, stop)
        again = of.prior()  # stored and read in between, as after a restart
        encoding.load(again, encoding.to_bytes(parts))
        parts = again
    assert encoding.to_bytes(parts) == encoding.to_bytes(learned(of, log))


@every_form
def test_without_a_half_life_the_bits_are_those_of_before(form: str):
    of, log = experiment(form, None), Log(40, 1, 1e6)
    posterior, timeless = learned(of, log), of.prior()
    actions = log.actions.tolist()
    of.learn(timeless, log.rows, actions, log.rewards, seq=40)
    assert encoding.to_bytes(posterior) == encoding.to_bytes(timeless)
    assert "clock" not in posterior.arrays()
    assert "half_life" not in to_json(of.spec)


@every_form
def test_the_landmark_moves_without_a_trace(form: str):
    """Its moves are powers of two: every sum keeps its bits, as of the latest outcome."""
    of, log = experiment(form, 60.0), Log(40, 2, 60.0 * 50)
    still, moved = learned(of, log), learned(of, log)
    moved._move_landmark(moved.clock[1] + 40.0)
    for name, array in still.present().items():
        np.testing.assert_array_equal(array, moved.present()[name])
    assert moved.clock[1] == still.clock[1] + 40.0


@every_form
@pytest.mark.parametrize("half_life", [1e-3, 60.0, 1e6])
def test_a_hundred_thousand_half_lives_stay_finite(form: str, half_life: float):
    of, log = experiment(form, half_life), Log(200, 3, 1e5 * half_life, start=0.0)
    posterior = learned(of, log)
    assert all(np.isfinite(a).all() for a in posterior.arrays().values())
    assert all(np.abs(a).max() < 1e3 for a in posterior.present().values())
    who = {"decision_id": rng.decision_id(SECRET, "e", "r", 0), "customer": b"c"}
    p = of.decide(of.publish(posterior, version=1), {"z": 0.5}, **who).propensities
    assert p is not None
    assert p.sum() == pytest.approx(1.0, abs=1e-9)


def test_the_stored_form_never_changes():
    """The file was written by the first release that forgets, from whole half-lives."""
    golden = bytes.fromhex(GOLDEN.read_text())
    of = experiment("beta", 60.0)
    posterior = of.prior()
    times = 1.7e9 + 60.0 * np.array([0.0, 3.0, 1.0, 70.0])
    rewards = np.array([1.0, 0.25, 0.5, 1.0])
    of.learn(posterior, np.zeros((4, 1)), [0, 1, 1, 0], rewards, times=times, seq=9)
    assert encoding.to_bytes(posterior) == golden
    read = of.prior()
    encoding.load(read, golden)
    assert encoding.to_bytes(read) == golden
    assert read.clock.tolist() == [1.7e9, 70.0, 1.7e9 + 4200.0]


def test_a_belief_with_a_clock_is_not_read_as_one_without():
    fading, lasting = experiment("beta", 60.0), experiment("beta", None)
    with pytest.raises(CorruptionError, match="clock"):
        encoding.load(fading.prior(), encoding.to_bytes(lasting.prior()))
    with pytest.raises(CorruptionError, match="half-life"):
        encoding.load(lasting.prior(), encoding.to_bytes(fading.prior()))


# --- refusals ---------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("times", [None, [1.0], [1.0, np.nan], [1.0, -np.inf], [1.0, 1.1e12]])
def test_outcomes_without_a_good_time_are_refused(form: str, times: list[float] | None):
    of = experiment(form, 60.0)
    posterior = learned(of, Log(5, 1, 100.0))
    before = encoding.to_bytes(posterior)
    given_times = None if times is None else np.array(times)
    with pytest.raises(InvalidInputError) as caught:
        of.learn(posterior, np.zeros((2, 1)), [0, 1], np.ones(2), times=given_times, seq=9)
    assert caught.value.field == "times"
    assert encoding.to_bytes(posterior) == before


@pytest.mark.parametrize("half_life", [0.0, -1.0, 1e-4, 1.1e9, float("nan"), float("inf")])
def test_a_half_life_out_of_range_is_refused(half_life: float):
    with pytest.raises(InvalidInputError, match=r"policy.half_life"):
        experiment("beta", half_life)


# --- a world that changes ---------------------------------------------------------------


def share_of_best(half_life: float | None, seed: int) -> float:
    """Play 3,000, 1,000 and 1,000 steps with a best arm each; give its share of the last 500.

    Of 50 steps, 10 are random, so that every arm is well known.
    """
    arms = {"variants": ["a", "b", "c"], "channels": ["x"]}
    of = experiment("disjoint", half_life, actions=arms)
    posterior, random = of.prior(), np.random.default_rng(seed)
    snapshot, right = of.publish(posterior, version=0), 0
    for at in range(0, 5_000, 50):
        rows, best = random.uniform(-1, 1, (50, 1)), (at >= 3_000) + (at >= 4_000)
        ids = [rng.decision_id(SECRET, "e", f"{seed} {at} {i}", 0) for i in range(40)]
        questions = [Question(one, b"c", row) for one, row in zip(ids, rows.tolist(), strict=False)]
        decided = of.decide_batch(snapshot, questions, propensities=False)
        chosen = [d.action for d in decided] + random.integers(0, 3, 10).tolist()
        means = 0.3 + 0.2 * rows[:, 0] + 0.3 * (np.array(chosen) == best)
        outcomes = means + random.normal(0.0, 0.1, 50)
        times = float(at) + np.arange(50)
        of.learn(posterior, rows, chosen, outcomes, times=times, seq=at + 50)
        snapshot = of.publish(posterior, version=at // 50 + 1)
        right += sum(d.action == best for d in decided) if at >= 4_500 else 0
    return right / 400


def test_after_two_swaps_the_forgetting_policy_adapts_and_the_other_does_not():
    """Fixed seeds: the share of the best arm from 500 to 1,000 steps after the second swap."""
    fading = [share_of_best(200.0, seed) for seed in range(4)]
    lasting = [share_of_best(None, seed) for seed in range(4)]
    assert min(fading) > 0.9, fading
    assert max(lasting) < 0.1, lasting
