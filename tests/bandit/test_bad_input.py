"""Bad input through the front door: a clear error or a sane belief, and never a NaN in state.

A belief is sane if its state is finite, it can be published, and every decision from it has finite
propensities that sum to 1 over the eligible actions. Whatever is refused changes nothing.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import encoding, rng
from bandit.actions import Exclusion
from bandit.decision import Reason
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.posterior import GaussianPosterior, Posterior
from bandit.spec_file import from_data

SECRET = b"sixteen bytes or more"
FEW = settings(max_examples=25)
SEEDS = st.integers(0, 2**32 - 1)
JOINT = [{"of": "context"}, {"of": "context:variant"}, {"of": "channel"}]
POLICIES: dict[str, dict[str, object]] = {
    "disjoint": {"terms": [{"of": "context:variant:channel"}]},
    "joint": {"terms": JOINT},
    "beta": {"posterior": "beta_bernoulli"},
    "disjoint fading": {"terms": [{"of": "context:variant:channel"}], "half_life": 100.0},
    "joint fading": {"terms": JOINT, "half_life": 100.0},
    "beta fading": {"posterior": "beta_bernoulli", "half_life": 100.0},
}
every_policy = pytest.mark.parametrize("policy", POLICIES)
gaussian = pytest.mark.parametrize("policy", [p for p in POLICIES if "beta" not in p])
FIELDS = ("number", "level", "flag", "phase")


def experiment(policy: str, **more: object) -> Experiment:
    """Give 2 x 2 actions and a field of every kind; ``number`` is required."""
    spec = {
        "name": "e",
        "actions": {"variants": ["a", "b"], "channels": ["x", "y"]},
        "context": [
            {"name": "number", "kind": "number", "bounds": [0, 10], "required": True},
            {"name": "level", "kind": "category", "levels": ["one", "two"]},
            {"name": "flag", "kind": "flag"},
            {"name": "phase", "kind": "cyclic", "period": 24},
        ],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "policy": {**POLICIES[policy], "draws": 32, **more},
        "groups": {"random": 0.0},
    }
    return Experiment(from_data(spec), secret=SECRET)


def check_sane(of: Experiment, posterior: Posterior) -> None:
    """Finite state, and for several contexts and rules propensities that sum to 1."""
    assert all(np.isfinite(array).all() for array in posterior.arrays().values())
    snapshot = of.publish(posterior, version=1)
    contexts: list[dict[str, object]] = [
        {"number": 0.0},
        {"number": 1e300, "level": "never declared", "flag": True, "phase": -1e6},
        {"number": -1e300, "level": "two", "flag": False, "phase": 12.5},
    ]
    rules = [(), (Exclusion(variant="a", reason="r"),)]
    for i, context in enumerate(contexts):
        for exclusions in rules:
            one = rng.decision_id(SECRET, "e", f"{i}", 0)
            who = {"decision_id": one, "customer": b"c", "exclusions": exclusions}
            decision = of.decide(snapshot, context, **who)  # type: ignore[arg-type]
            p = decision.propensities
            assert p is not None
            assert np.isfinite(p).all()
            assert p.min() >= 0.0
            assert p.sum() == pytest.approx(1.0, abs=1e-9)
            assert decision.action is not None
            assert decision.propensity == p[decision.action] > 0.0
            if exclusions:
                np.testing.assert_array_equal(p[:2], 0.0)
            drawn = of.decide(snapshot, context, propensities=False, **who)  # type: ignore[arg-type]
            assert drawn.action is not None


def good_rows(random: np.random.Generator, n: int) -> Floats:
    rows = np.column_stack(
        [
            random.uniform(-5, 15, n),
            random.integers(-1, 2, n),
            random.integers(0, 2, n),
            random.uniform(-1e6, 1e6, n),
        ]
    ).astype(float)
    rows[:, 1:][random.uniform(size=(n, 3)) < 0.2] = np.nan
    return rows


def learned(of: Experiment, n: int = 30) -> Posterior:
    random, posterior = np.random.default_rng(1), of.prior()
    actions, times = random.integers(0, 4, n).tolist(), np.arange(float(n))
    of.learn(posterior, good_rows(random, n), actions, random.uniform(0, 1, n), seq=n, times=times)
    return posterior


# --- contexts that are none -------------------------------------------------------------


SCALARS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**400), 10**400),
    st.booleans(),
    st.text(max_size=5),
    st.none(),
    st.binary(max_size=3),
    st.lists(st.floats(), max_size=2),
    st.sampled_from(["one", 1e308, -1e308, 5e-324, 2**63, b"one", 3 + 4j]),
)


@every_policy
@FEW
@given(context=st.dictionaries(st.sampled_from([*FIELDS, "unknown", ""]), SCALARS, max_size=5))
def test_any_context_is_decided_on_or_refused_by_its_path(policy: str, context: dict[str, Any]):
    of = experiment(policy)
    snapshot = of.publish(of.prior(), version=0)
    who = {"decision_id": rng.decision_id(SECRET, "e", "r", 0), "customer": b"c"}
    try:
        p = of.decide(snapshot, context, **who).propensities
    except InvalidInputError as error:
        assert error.field.startswith('values["')
    else:
        assert p is not None
        assert p.sum() == pytest.approx(1.0, abs=1e-9)


@every_policy
def test_without_an_eligible_action_nothing_is_chosen(policy: str):
    of = experiment(policy)
    snapshot = of.publish(learned(of), version=1)
    everything = tuple(Exclusion(variant=v, reason="r") for v in "ab")
    who = {"decision_id": rng.decision_id(SECRET, "e", "r", 0), "customer": b"c"}
    decision = of.decide(snapshot, {"number": 1}, exclusions=everything, **who)
    assert (decision.action, decision.reason) == (None, Reason.NO_ELIGIBLE_ACTION)
    assert decision.propensities is not None
    np.testing.assert_array_equal(decision.propensities, 0.0)


# --- outcomes that are none -------------------------------------------------------------


CELLS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5, 1e15, -1e15, 1e18, 2.4e10, np.nan, np.inf]),
)


@every_policy
@FEW
@given(data=st.data(), n=st.integers(0, 4))
def test_any_row_is_learned_from_or_refused(policy: str, data: st.DataObject, n: int):
    """Cells of any value: a level that is not there must not be written beside the features."""
    of = experiment(policy)
    posterior = learned(of)
    before = encoding.to_bytes(posterior)
    cells = data.draw(st.lists(CELLS, min_size=4 * n, max_size=4 * n))
    rows = np.array(cells).reshape(n, 4)
    times = 40.0 + np.arange(n)
    try:
        of.learn(posterior, rows, [1] * n, np.full(n, 0.5), seq=99, times=times)
    except InvalidInputError as error:
        assert error.field.startswith("rows[")
        assert encoding.to_bytes(posterior) == before
        with pytest.raises(InvalidInputError):
            of.spec.schema.check_rows(rows)
    else:
        of.spec.schema.check_rows(rows)
        assert posterior.count == 30 + n
        check_sane(of, posterior)


WHOLE = np.array([1, 1])
GOOD: dict[str, Any] = {
    "rows": np.zeros((2, 4)),
    "actions": WHOLE,
    "outcomes": np.array([0.0, 1.0]),
    "times": np.array([50.0, 51.0]),
}


@every_policy
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", np.zeros((2, 3))),
        ("rows", np.zeros((2, 5))),
        ("rows", np.zeros((3, 4))),
        ("rows", np.zeros(8)),
        ("rows", np.zeros((1, 2, 4))),
        ("rows", 1.0),
        ("rows", "rows"),
        ("rows", [[1.0, 2.0], [1.0]]),
        ("rows", [[np.inf, 0, 0, 0]] * 2),
        ("rows", [[0, 2, 0, 0]] * 2),
        ("rows", [[0, 0.5, 0, 0]] * 2),
        ("rows", [[0, 0, 2, 0]] * 2),
        ("rows", [[0, 0, 0, 1e12]] * 2),
        ("rows", [[np.nan, 0, 0, 0]] * 2),
        ("actions", [0, 4]),
        ("actions", [0, -1]),
        ("actions", [0, 2**63 - 1]),
        ("actions", [0, 2**64 - 1]),
        ("actions", [0, 10**30]),
        ("actions", [0.0, 1.0]),
        ("actions", [0, math.nan]),
        ("actions", [True, False]),
        ("actions", ["a", "b"]),
        ("actions", [None, 1]),
        ("actions", [1]),
        ("actions", [[0], [1]]),
        ("actions", 1),
        ("outcomes", [0.0, math.nan]),
        ("outcomes", [0.0, math.inf]),
        ("outcomes", [0.0, 1.1e15]),
        ("outcomes", [0.0]),
        ("outcomes", [[0.0], [1.0]]),
        ("outcomes", 1.0),
        ("outcomes", ["a", "b"]),
        ("outcomes", [0.0, 10**400]),
    ],
)
def test_what_is_no_outcome_is_refused_and_changes_nothing(policy: str, name: str, value: object):
    of = experiment(policy)
    posterior = learned(of)
    before = encoding.to_bytes(posterior)
    parts = {**GOOD, name: value}
    with pytest.raises(InvalidInputError):
        of.learn(posterior, seq=99, **parts)
    assert encoding.to_bytes(posterior) == before
    of.learn(posterior, seq=99, **GOOD)
    check_sane(of, posterior)


@every_policy
@pytest.mark.parametrize("times", [[1.0], [math.nan, 1.0], [1e13, 1.0], [[1.0], [2.0]], "ab", 1.0])
def test_what_is_no_time_is_refused_where_it_is_needed(policy: str, times: object):
    of = experiment(policy)
    posterior = learned(of)
    before = encoding.to_bytes(posterior)
    parts: dict[str, Any] = {**GOOD, "times": times}
    if "fading" not in policy:
        of.learn(posterior, seq=99, **parts)
        return
    with pytest.raises(InvalidInputError, match="times"):
        of.learn(posterior, seq=99, **parts)
    assert encoding.to_bytes(posterior) == before


@every_policy
def test_an_empty_batch_only_moves_the_place(policy: str):
    of = experiment(policy)
    for posterior in (of.prior(), learned(of)):
        arrays = {name: array.copy() for name, array in posterior.arrays().items()}
        nothing = np.zeros(0)
        of.learn(posterior, np.zeros((0, 4)), [], nothing, seq=100, times=nothing)
        assert posterior.seq == 100
        for name, array in posterior.arrays().items():
            np.testing.assert_array_equal(array, arrays[name])
        check_sane(of, posterior)


# --- good input of the worst kind -------------------------------------------------------


MAGNITUDES = st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 1e6, 1e12, 1e15])
SHAPES = st.sampled_from(["random", "constant", "duplicate", "collinear", "missing"])


def contexts(shape: str, random: np.random.Generator, n: int) -> Floats:
    rows = good_rows(random, n)
    if shape == "constant":
        rows[:, 0] = 3.0
    elif shape == "duplicate":
        rows[:] = rows[0]
    elif shape == "collinear":  # the flag tells the level, and the phase stands still
        rows[:, 1], rows[:, 2], rows[:, 3] = rows[:, 2], rows[:, 2], 6.0
        rows[:, 0] = np.nan_to_num(rows[:, 2])
    elif shape == "missing":
        rows[:, 1:] = np.nan
    return rows


@gaussian
@FEW
@given(
    shape=SHAPES,
    level=MAGNITUDES,
    spread=MAGNITUDES,
    prior_sd=st.sampled_from([1e-3, 1.0, 1e3]),
    noise=st.sampled_from([{}, {"sd": 1e-9}, {"sd": 1e9}, {"shape": 1e-9, "scale": 1e-9}]),
    exploration=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    n=st.integers(1, 300),
    seed=SEEDS,
)
def test_degenerate_contexts_and_huge_rewards_leave_a_sane_belief(
    policy: str,
    shape: str,
    level: float,
    spread: float,
    prior_sd: float,
    noise: dict[str, float],
    exploration: float,
    n: int,
    seed: int,
):
    random = np.random.default_rng(seed)
    terms = [{**t, "prior_sd": prior_sd} for t in POLICIES[policy]["terms"]]  # type: ignore[attr-defined]
    of = experiment(policy, terms=terms, noise=noise, exploration=exploration)
    posterior = of.prior()
    rewards = np.clip(
        level * random.choice([-1, 1], n) + spread * random.normal(size=n), -1e15, 1e15
    )
    actions, times = random.integers(0, 2, n).tolist(), np.cumsum(random.exponential(50.0, n))
    of.learn(posterior, contexts(shape, random, n), actions, rewards, seq=n, times=times)
    assert isinstance(posterior, GaussianPosterior)
    mean, lower, variance, shape_n, scale_n = posterior.moments()
    assert np.isfinite(mean).all()
    assert np.isfinite(lower).all()
    assert np.abs(mean).max() <= 1e3 * max(np.abs(rewards).max(), 1e-300) * max(prior_sd, 1.0)
    assert 0.0 < variance < 1e32
    assert shape_n > 0.0
    assert scale_n > 0.0
    check_sane(of, posterior)


@every_policy
@FEW
@given(
    times=st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20), half_life=st.floats(1e-3, 1e9)
)
def test_any_times_in_any_order_leave_a_sane_belief(
    policy: str, times: list[float], half_life: float
):
    of = experiment(policy, half_life=half_life)
    posterior, n = of.prior(), len(times)
    rows = good_rows(np.random.default_rng(1), n)
    of.learn(posterior, rows, [i % 4 for i in range(n)], np.ones(n), seq=n, times=np.array(times))
    check_sane(of, posterior)


@every_policy
@pytest.mark.parametrize("shape", ["random", "duplicate"])
def test_a_million_updates_of_one_arm_stay_sane(policy: str, shape: str):
    """All of one arm, and rewards that never differ: the worst for rounding."""
    reward = 1.0 if "beta" in policy else 1e12
    of = experiment(policy)
    posterior, random = of.prior(), np.random.default_rng(1)
    rows = contexts(shape, random, 1_000)
    for at in range(0, 1_000_000, 100_000):
        block = np.tile(rows, (100, 1))
        times = float(at) + np.arange(100_000.0)
        rewards = np.full(100_000, reward)
        of.learn(posterior, block, [0] * 100_000, rewards, seq=at + 100_000, times=times)
    assert posterior.count == 1_000_000
    if isinstance(posterior, GaussianPosterior):
        mean, _, variance, _, _ = posterior.moments()
        x = of.spec.encoder.encode(rows)
        d = x.shape[1]
        weights, channel = mean[0, :d], 0.0
        if not of.spec.features.is_disjoint:
            weights, channel = weights + mean[0, d : 2 * d], mean[0, 3 * d]
        assert np.abs(x @ weights + channel - reward).max() < 0.05 * reward
        assert 0.0 < variance < reward**2
    check_sane(of, posterior)


# --- the noise estimate where digits are lost -------------------------------------------


def noise_of(ratio: float, prior_sd: float, n: int) -> float:
    """Learn n rewards of mean ``ratio`` and spread 1; give the estimate of the spread."""
    terms = [{"of": "context:variant:channel", "prior_sd": prior_sd}]
    of = experiment("disjoint", terms=terms)
    posterior, random = of.prior(), np.random.default_rng(1)
    rewards = ratio + random.normal(0.0, 1.0, n)
    rows = contexts("missing", random, n)
    of.learn(posterior, rows, [0] * n, rewards, seq=n)
    assert isinstance(posterior, GaussianPosterior)
    return math.sqrt(posterior.moments().noise_variance)


@pytest.mark.parametrize("n", [1_000, 100_000])
@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6, 1e9])
def test_the_noise_is_right_where_doubles_resolve_it_and_too_large_where_not(ratio: float, n: int):
    """With a wide prior, what remains is the spread 1 and the prior's pull on the mean.

    The bound of ``docs/math/gaussian.md``: at least the truth, and at most the truth and
    ``2 sqrt(eps n)`` of the rewards' size.
    """
    found = noise_of(ratio, 1e3, n)
    pull = ratio / 1e3 / math.sqrt(n)
    assert found < math.hypot(1.0, pull) * 1.1 + 2.0 * math.sqrt(2.0**-52 * n) * ratio
    assert found > 0.5 * math.hypot(1.0, 0.5 * pull)


def test_every_error_is_one_of_ours():
    """What a caller catches: one class for all that the front door refuses."""
    assert issubclass(InvalidInputError, BanditError)
    assert issubclass(InvalidInputError, ValueError)
