"""One contract, kept by every policy on every form of belief."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import rng
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.policy import ActionName, Fixed, PolicySpec, ThompsonSampling, Uniform, build
from bandit.snapshot import Asked, Belief, Choices
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data

SECRET = b"sixteen bytes or more"
SIX = {"variants": ["a", "b", "c"], "channels": ["x", "y"]}
FIXED = {"kind": "fixed", "action": {"variant": "b", "channel": "y"}}
FULL = [{"of": "context:variant:channel"}]
POLICIES: dict[str, dict[str, object]] = {
    "disjoint": {"terms": FULL},
    "disjoint with floor": {"terms": FULL, "floor": 0.05},
    "joint": {},
    "joint with floor": {"floor": 0.05, "draws": 64},
    "beta": {"posterior": "beta_bernoulli"},
    "beta with floor": {"posterior": "beta_bernoulli", "floor": 0.05},
    "greedy disjoint": {"terms": FULL, "exploration": 0.0},
    "greedy joint": {"exploration": 0.0},
    "greedy beta": {"posterior": "beta_bernoulli", "exploration": 0.0},
    "uniform": {"kind": "uniform"},
    "fixed": FIXED,
}
every_policy = pytest.mark.parametrize("name", POLICIES)
each_mode = pytest.mark.parametrize("propensities", [True, False], ids=["decide", "draw"])
MASKS = np.array(
    [
        [True, True, True, True, True, True],
        [False, True, True, True, False, True],
        [True, True, True, False, False, False],
        [False, False, True, False, False, False],
    ]
)
ROWS = 48


def spec(policy: dict[str, object]) -> ExperimentSpec:
    return from_data(
        {
            "name": "e",
            "actions": SIX,
            "context": [{"name": "age", "kind": "number", "bounds": [-2, 2]}],
            "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
            "policy": policy,
        }
    )


@cache
def prepared(name: str) -> tuple[ExperimentSpec, Belief, Asked]:
    """Give a policy that has learned a little, and decisions to make with every mask."""
    experiment = Experiment(spec(POLICIES[name]), secret=SECRET)
    random = np.random.default_rng(7)
    posterior, ages = experiment.prior(), random.standard_normal((60, 1))
    experiment.learn(posterior, ages, random.integers(0, 6, 60), random.uniform(0, 1, 60), seq=60)
    ids = [rng.decision_id(SECRET, "e", str(i), 0) for i in range(ROWS)]
    streams = rng.words(b"".join(rng.decision_stream(SECRET, "e", one) for one in ids))
    x = experiment.spec.encoder.encode(random.standard_normal((ROWS, 1)))
    asked = Asked(x, random.integers(0, len(MASKS), ROWS), MASKS, streams.reshape(-1, 4))
    return experiment.spec, experiment.publish(posterior, version=1).belief, asked


def choose(name: str, *, propensities: bool, rows: slice | np.ndarray = slice(None)) -> Choices:
    policy, belief, (x, which, masks, streams) = prepared(name)
    part = Asked(x[rows], which[rows], masks, streams[rows])
    return policy.chooser.choose(belief, part, propensities=propensities)


@every_policy
def test_propensities_are_a_distribution_over_the_eligible(name: str):
    policy, _, asked = prepared(name)
    actions, p = choose(name, propensities=True)
    floor = policy.chooser.floor if isinstance(policy.chooser, ThompsonSampling) else 0.0
    eligible = MASKS[asked.which]
    assert p.shape == (ROWS, 6)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)
    assert (p[eligible] >= floor).all()
    assert (p[~eligible] == 0.0).all()
    assert (p[np.arange(ROWS), actions] > 0.0).all()


@every_policy
@each_mode
def test_the_chosen_action_is_eligible(name: str, *, propensities: bool):
    actions = choose(name, propensities=propensities).actions
    assert actions.shape == (ROWS,)
    assert (actions >= 0).all()
    assert MASKS[prepared(name)[2].which, actions].all()


@every_policy
@each_mode
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6), order=st.permutations(range(ROWS)))
def test_any_grouping_gives_the_same_bits(
    name: str, cuts: list[int], order: list[int], *, propensities: bool
):
    whole, places = choose(name, propensities=propensities), np.array(order)
    for start, end in pairwise([0, *sorted(cuts), ROWS]):
        part = choose(name, propensities=propensities, rows=places[start:end])
        np.testing.assert_array_equal(part.actions, whole.actions[places[start:end]])
        if part.propensities is not None and whole.propensities is not None:
            np.testing.assert_array_equal(part.propensities, whole.propensities[places[start:end]])


@every_policy
@each_mode
def test_one_alone_is_the_same_as_in_a_batch(name: str, *, propensities: bool):
    whole = choose(name, propensities=propensities)
    for i in range(0, ROWS, 5):
        alone = choose(name, propensities=propensities, rows=slice(i, i + 1))
        assert alone.actions[0] == whole.actions[i]
        if alone.propensities is not None and whole.propensities is not None:
            np.testing.assert_array_equal(alone.propensities[0], whole.propensities[i])


@every_policy
@each_mode
def test_choosing_changes_neither_question_nor_belief(name: str, *, propensities: bool):
    asked = prepared(name)[2]
    before = [part.copy() for part in asked]
    first = choose(name, propensities=propensities)
    again = choose(name, propensities=propensities)
    np.testing.assert_array_equal(first.actions, again.actions)
    for part, copy in zip(asked, before, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.parametrize("name", [n for n in POLICIES if not n.startswith(("greedy", "fixed"))])
@each_mode
def test_each_decision_has_a_draw_of_its_own(name: str, *, propensities: bool):
    policy, belief, (x, which, masks, streams) = prepared(name)
    alike = Asked(np.repeat(x[:1], ROWS, axis=0), which * 0, masks, streams)
    actions = policy.chooser.choose(belief, alike, propensities=propensities).actions
    assert len(set(actions.tolist())) > 1


def test_propensities_can_be_switched_off():
    assert choose("joint", propensities=False).propensities is None
    assert choose("disjoint", propensities=False).propensities is None


def test_uniform_gives_every_eligible_action_the_same():
    _, p = choose("uniform", propensities=True)
    eligible = MASKS[prepared("uniform")[2].which]
    np.testing.assert_array_equal(p, eligible / eligible.sum(axis=1, keepdims=True))


def test_fixed_takes_its_action_or_any_of_the_rest():
    asked = prepared("fixed")[2]
    actions, p = choose("fixed", propensities=True)
    for action, share, eligible in zip(actions, p, MASKS[asked.which], strict=True):
        if eligible[3]:
            assert action == 3
            np.testing.assert_array_equal(share, np.eye(6)[3])
        else:
            np.testing.assert_array_equal(share, eligible / eligible.sum())


# --- declaring a policy -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kind"),
    [({"kind": "uniform"}, Uniform), (FIXED, Fixed), ({}, ThompsonSampling)],
)
def test_a_spec_builds_its_policy(policy: dict[str, object], kind: type):
    assert isinstance(spec(policy).chooser, kind)


def test_the_floor_is_zero_where_propensities_are_exact_and_small_where_drawn():
    space = spec({}).actions
    assert build(PolicySpec(), space, is_joint=False) == ThompsonSampling(0.0)
    assert build(PolicySpec(draws=100), space, is_joint=True) == ThompsonSampling(1 / 600)
    assert build(PolicySpec(floor=0.1), space, is_joint=True) == ThompsonSampling(0.1)
    assert build(PolicySpec(floor=0.0), space, is_joint=True) == ThompsonSampling(0.0)


def test_a_floor_must_leave_room_to_choose():
    with pytest.raises(InvalidInputError, match=r"less than 0\.166667") as caught:
        build(PolicySpec(floor=1 / 6), spec({}).actions, is_joint=False)
    assert caught.value.field == "floor"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"kind": "greedy"}, "kind"),
        ({"posterior": "gamma"}, "posterior"),
        ({"exploration": -0.1}, "exploration"),
        ({"exploration": float("nan")}, "exploration"),
        ({"exploration": 101}, "exploration"),
        ({"floor": 1.0}, "floor"),
        ({"floor": -0.1}, "floor"),
        ({"draws": 15}, "draws"),
        ({"draws": 16_385}, "draws"),
        ({"successes": 0.4}, "successes"),
        ({"failures": float("inf")}, "failures"),
        ({"kind": "fixed"}, "action"),
        ({"action": ActionName(variant="a", channel="x")}, "action"),
    ],
)
def test_a_policy_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        PolicySpec(**parts)  # type: ignore[arg-type]
    assert caught.value.field == field
