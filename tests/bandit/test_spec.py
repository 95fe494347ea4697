"""A specification checks that its parts fit together."""

import pytest

from bandit.choosing import Uniform
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec, Publishing
from bandit.spec_file import from_data


def spec(**parts: object) -> ExperimentSpec:
    whole = {
        "name": "e",
        "actions": {"variants": ["a", "b"], "channels": ["x", "y"]},
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
    }
    return from_data({**whole, **parts})


ONE = {"variants": ["a", "b"], "channels": ["x"]}


@pytest.mark.parametrize(
    ("parts", "is_joint"),
    [
        ({}, True),
        ({"actions": ONE}, False),
        ({"policy": {"posterior": "beta_bernoulli"}}, False),
        ({"policy": {"terms": [{"of": "context:variant:channel"}]}}, False),
    ],
)
def test_propensities_are_drawn_where_actions_share_weights(
    parts: dict[str, object], *, is_joint: bool
):
    assert spec(**parts).is_joint is is_joint


def test_declared_terms_replace_the_default():
    declared = spec(policy={"terms": [{"of": "variant"}, {"of": "channel"}]})
    assert [term.of for term in declared.features.terms] == ["variant", "channel"]
    assert len(spec().features.terms) == 4


def test_features_are_as_wide_as_the_encoded_context():
    wide = spec(
        context=[{"name": "vip", "kind": "flag"}, {"name": "h", "kind": "cyclic", "period": 24}]
    )
    assert wide.features.width == wide.encoder.width == 1 + 2 + 3


def test_equal_specs_are_equal_whatever_was_derived():
    one, two = spec(), spec()
    assert isinstance(spec(policy={"kind": "uniform"}).chooser, Uniform)
    assert one.features.cells.shape == (4, 4)
    assert (one, hash(one)) == (two, hash(two))


@pytest.mark.parametrize(
    ("reward", "aggregation", "default"),
    [
        ({"bounds": [0, 2]}, "max", 0),
        ({"bounds": [-1, 1]}, "max", 0),
        ({"weight": -1}, "max", 0),
        ({}, "sum", 0),
        ({}, "max", 2),
    ],
)
def test_beta_bernoulli_takes_outcomes_from_0_to_1_only(
    reward: dict[str, object], aggregation: str, default: float
):
    outcome = {
        "window": 60,
        "aggregation": aggregation,
        "default": default,
        "rewards": [{"name": "r", **reward}],
    }
    with pytest.raises(InvalidInputError, match=r"outcomes in \[0, 1\]") as caught:
        spec(outcome=outcome, policy={"posterior": "beta_bernoulli"})
    assert caught.value.field == "policy.posterior"


def test_beta_bernoulli_scales_rewards_by_their_weight():
    outcome = {
        "window": 60,
        "aggregation": "mean",
        "rewards": [{"name": "r", "bounds": [0, 50], "weight": 0.02}],
    }
    assert not spec(outcome=outcome, policy={"posterior": "beta_bernoulli"}).is_joint


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"outcomes": 0}, "outcomes"),
        ({"outcomes": 1_000_001}, "outcomes"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 5.0, "max_age": 5.0}, "max_age"),
        ({"max_age": float("inf")}, "max_age"),
    ],
)
def test_publishing_out_of_range_is_refused(parts: dict[str, float], field: str):
    with pytest.raises(InvalidInputError) as caught:
        Publishing(**parts)  # type: ignore[arg-type]
    assert caught.value.field == field
