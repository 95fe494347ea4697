"""Declaring a policy: what is accepted, and what it builds."""

import pytest

from bandit.choosing import (
    EpsilonGreedy,
    Fixed,
    LinUCB,
    Softmax,
    ThompsonSampling,
    TopTwo,
    Uniform,
)
from bandit.errors import InvalidInputError
from bandit.policy import ActionName, PolicySpec, build
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data, parse, to_json

FIXED = {"kind": "fixed", "action": {"variant": "b", "channel": "y"}}


def spec(policy: dict[str, object]) -> ExperimentSpec:
    return from_data(
        {
            "name": "e",
            "actions": {"variants": ["a", "b", "c"], "channels": ["x", "y"]},
            "context": [{"name": "age", "kind": "number", "bounds": [-2, 2]}],
            "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
            "policy": policy,
        }
    )


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ({"kind": "uniform"}, Uniform()),
        (FIXED, Fixed(3)),
        ({"floor": 0.01}, ThompsonSampling(0.01)),
        ({"kind": "top_two"}, TopTwo(0.5, 1 / (6 * 256))),
        ({"kind": "top_two", "top_two_share": 0.25, "floor": 0.0}, TopTwo(0.25, 0.0)),
        ({"kind": "linucb"}, LinUCB(1.0, 0.0)),
        ({"kind": "linucb", "confidence": 2, "floor": 0.02}, LinUCB(2.0, 0.02)),
        ({"kind": "epsilon_greedy"}, EpsilonGreedy(0.1, 0.0)),
        ({"kind": "epsilon_greedy", "epsilon": 1}, EpsilonGreedy(1.0, 0.0)),
        ({"kind": "softmax"}, Softmax(0.1, 0.0)),
        ({"kind": "softmax", "temperature": 3, "floor": 0.1}, Softmax(3.0, 0.1)),
    ],
)
def test_a_spec_builds_its_policy(policy: dict[str, object], kind: object):
    built = spec(policy).chooser
    assert built == kind
    assert parse(to_json(spec(policy)), "json").chooser == kind


def test_the_floor_is_zero_where_propensities_are_exact_and_small_where_drawn():
    space = spec({}).actions
    assert build(PolicySpec(), space, is_joint=False) == ThompsonSampling(0.0)
    assert build(PolicySpec(draws=100), space, is_joint=True) == ThompsonSampling(1 / 600)
    assert build(PolicySpec(floor=0.1), space, is_joint=True) == ThompsonSampling(0.1)
    assert build(PolicySpec(floor=0.0), space, is_joint=True) == ThompsonSampling(0.0)
    assert build(PolicySpec(kind="linucb"), space, is_joint=True) == LinUCB(1.0, 0.0)


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
        ({"kind": "top_two", "top_two_share": 0.0}, "top_two_share"),
        ({"kind": "top_two", "top_two_share": 1.1}, "top_two_share"),
        ({"kind": "linucb", "confidence": -1.0}, "confidence"),
        ({"kind": "linucb", "confidence": float("inf")}, "confidence"),
        ({"kind": "epsilon_greedy", "epsilon": 1.1}, "epsilon"),
        ({"kind": "epsilon_greedy", "epsilon": float("nan")}, "epsilon"),
        ({"kind": "softmax", "temperature": 0.0}, "temperature"),
        ({"kind": "softmax", "temperature": 1e10}, "temperature"),
        ({"top_two_share": 0.4}, "top_two_share"),
        ({"kind": "softmax", "confidence": 2.0}, "confidence"),
        ({"kind": "linucb", "epsilon": 0.2}, "epsilon"),
        ({"kind": "uniform", "temperature": 1.0}, "temperature"),
        ({"action": ActionName(variant="a", channel="x")}, "action"),
    ],
)
def test_a_policy_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        PolicySpec(**parts)  # type: ignore[arg-type]
    assert caught.value.field == field
