"""A specification checks that its parts fit together."""

import numpy as np
import pytest

from bandit.choosing import Uniform
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.posterior import BetaBernoulliPosterior, Outcomes
from bandit.spec import ExperimentSpec, Publishing
from bandit.spec_file import from_data, to_data

SECRET = b"sixteen bytes or more"


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


def test_beta_bernoulli_is_not_held_to_limits_of_weights():
    actions = {"variants": [f"v{i}" for i in range(44)], "channels": [f"c{i}" for i in range(44)]}
    context = [{"name": "c", "kind": "category", "levels": [f"l{i}" for i in range(90)]}]
    with pytest.raises(InvalidInputError, match="weights"):
        spec(actions=actions, context=context)
    of = spec(actions=actions, context=context, policy={"posterior": "beta_bernoulli"})
    edited = {**actions, "variants": [*actions["variants"], {"name": "new", "generation": 1}]}
    after = spec(actions=edited, context=context, policy={"posterior": "beta_bernoulli"})
    experiment, posterior = Experiment(of, secret=SECRET), BetaBernoulliPosterior(44 * 44, (1, 1))
    posterior.fold(Outcomes(np.ones((1, 1)), np.array([3]), np.ones(1)), seq=1)
    revised, grown = experiment.revise(posterior, after)
    assert revised.publish(grown, version=1).count == 1


def test_noise_is_known_or_has_a_prior():
    with pytest.raises(InvalidInputError, match="give one") as caught:
        spec(policy={"noise": {"sd": 1.0, "scale": 0.1}})
    assert caught.value.field == "policy.noise.scale"


@pytest.mark.parametrize("posterior", ["gaussian", "beta_bernoulli"])
def test_an_only_action_has_nothing_to_pool(posterior: str):
    alone = {"variants": ["a"], "channels": ["x"]}
    with pytest.raises(InvalidInputError, match="two actions") as caught:
        spec(actions=alone, policy={"posterior": posterior, "pooled": True})
    assert caught.value.field == "policy.pooled"
    assert spec(actions=ONE, policy={"posterior": posterior, "pooled": True}).policy.pooled


def test_a_model_id_is_about_levels_terms_and_context():
    whole = spec()
    ids = {
        part: spec(**parts).model_id
        for part, parts in {
            "name": {"name": "other"},
            "levels": {"actions": {"variants": ["a", "c"], "channels": ["x", "y"]}},
            "terms": {"policy": {"terms": [{"of": "variant"}, {"of": "channel"}]}},
            "context": {"context": [{"name": "vip", "kind": "flag"}]},
            "posterior": {"policy": {"posterior": "beta_bernoulli"}},
        }.items()
    }
    assert len({whole.model_id, *ids.values()}) == 6
    retired = {"variants": ["a", {"name": "b", "retired": True}], "channels": ["x", "y"]}
    same = spec(actions=retired, policy={"kind": "linucb", "exploration": 2.0}, description="new")
    assert same.model_id == whole.model_id == from_data(to_data(whole)).model_id


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
