"""Explanations: shares that add up, ranks and probabilities as counted by hand, rules by name."""

import json
import math
from dataclasses import asdict, replace
from functools import cache
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit import rng
from bandit.actions import Exclusion
from bandit.decision import Decision, Group, Reason
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.explanation import BASELINE, NON_LINEAR, Explainer, Explanation, explain
from bandit.kernels.compiling import Floats
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Posterior
from bandit.spec_file import from_data

SECRET = b"sixteen bytes or more"
CONTEXT = [
    {"name": "age", "kind": "number", "bounds": [0, 100]},
    {"name": "plan", "kind": "category", "levels": ["free", "pro"]},
    {"name": "hour", "kind": "cyclic", "period": 24, "required": True},
]
FORMS: dict[str, dict[str, object]] = {
    "disjoint": {"terms": [{"of": "context:variant:channel"}]},
    "joint": {},
    "bent": {"fourier": {"features": 8, "length_scale": 0.5}, "noise": {"sd": 0.5}},
    "bent disjoint": {"terms": [{"of": "context:variant:channel"}], "fourier": {"features": 4}},
    "beta": {"posterior": "beta_bernoulli"},
}
RULES = (
    Exclusion(variant="a", channel="x", reason="own rule"),
    Exclusion(variant="b", reason="no b"),
    Exclusion(channel="y", reason="no y"),
)
ROW = st.tuples(
    st.floats(-10, 110) | st.just(math.nan),
    st.sampled_from([0.0, 1.0, -1.0, math.nan]),
    st.floats(0, 24),
)


@cache
def learned(form: str, kind: str = "thompson_sampling") -> tuple[Experiment, Posterior, Explainer]:
    """Give 3 x 2 actions, of which a/x is always excluded, after 60 outcomes."""
    spec = from_data(
        {
            "name": "welcome",
            "actions": {
                "variants": ["a", "b", "c"],
                "channels": ["x", "y"],
                "exclusions": [{"variant": "a", "channel": "x", "reason": "own rule"}],
            },
            "context": CONTEXT,
            "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
            "policy": {"exploration": 1.0, **FORMS[form], "kind": kind},
        }
    )
    of = Experiment(spec, secret=SECRET)
    random = np.random.default_rng(1)
    posterior = of.prior()
    rows = np.column_stack(
        [random.uniform(0, 100, 60), random.integers(-1, 2, 60), random.uniform(0, 24, 60)]
    )
    rows[::7, 0] = math.nan
    actions = random.integers(1, 6, 60)
    outcomes = np.clip(0.2 * actions * (rows[:, 2] < 12) + random.normal(0, 0.1, 60), 0, 1)
    of.learn(posterior, rows, actions.tolist(), outcomes, seq=60)
    return of, posterior, Explainer(of, posterior)


def decided(action: int | None, reason: Reason = Reason.POLICY, **parts: Any) -> Decision:  # noqa: ANN401
    whole = Decision(
        decision_id=UUID(int=7),
        action=action,
        propensity=0.25,
        group=Group.BANDIT,
        reason=reason,
        snapshot_version=3,
    )
    return replace(whole, **parts)


def means(of: Experiment, posterior: Posterior, row: Floats) -> Floats:
    """Give every action's mean the slow way: one dense design vector each."""
    if isinstance(posterior, BetaBernoulliPosterior):
        a, b = posterior.parameters()
        return a / (a + b)
    x, mean = (
        of.spec.encoder.encode(row[None])[0],
        cast("GaussianPosterior", posterior).moments()[0],
    )
    if of.spec.features.is_disjoint:
        return mean @ x
    return np.array([mean[0] @ phi(of, x, action) for action in range(6)])


def phi(of: Experiment, x: Floats, action: int) -> Floats:
    f = of.spec.features
    parts = []
    for t, cell in enumerate(f.cells[:, action]):
        parts.append(np.kron(np.eye(f.counts[t])[cell], x if f.crossed[t] else np.ones(1)))
    return np.concatenate(parts)


# --- shares -----------------------------------------------------------------------------


@given(
    form=st.sampled_from(sorted(FORMS)),
    row=ROW,
    action=st.integers(1, 5),
    rules=st.sets(st.sampled_from(RULES[1:])),
)
def test_shares_of_fields_and_of_terms_add_up_to_the_difference(
    form: str, row: tuple[float, ...], action: int, rules: set[Exclusion]
):
    of, posterior, explainer = learned(form)
    exclusions = tuple(sorted(rules, key=lambda rule: rule.reason))
    mask = of.spec.actions.eligible(exclusions)
    if not mask[action]:
        return
    found = explainer.explain(row, decided(action), exclusions)
    expected = means(of, posterior, np.array(row))
    assert found.chosen is not None
    assert found.chosen.mean == pytest.approx(expected[action], abs=1e-9)
    assert found.chosen.rank == 1 + (expected[mask] > expected[action] + 1e-12).sum()
    assert found.eligible == mask.sum()
    mask = mask.copy()
    mask[action] = False
    if not mask.any():
        assert found.comparison is None
        return
    against = found.comparison
    assert against is not None
    assert against.rival.mean == pytest.approx(expected[mask].max(), abs=1e-9)
    assert mask[against.rival.index]
    difference = expected[action] - expected[against.rival.index]
    for total in (
        against.difference,
        sum(share.amount for share in against.fields),
        sum(share.amount for share in against.terms),
        found.chosen.mean - against.rival.mean,
    ):
        assert total == pytest.approx(difference, abs=1e-9)
    assert found.is_explored == (found.chosen.rank > 1)


@given(form=st.sampled_from(["disjoint", "joint"]), row=ROW, action=st.integers(1, 5))
def test_a_field_counts_for_what_its_columns_add(form: str, row: tuple[float, ...], action: int):
    """Zeroing a field's columns changes the difference of the means by exactly its share."""
    of, posterior, explainer = learned(form)
    against = explainer.explain(row, decided(action)).comparison
    assert against is not None
    owners = np.array(of.spec.encoder.owners)
    x = of.spec.encoder.encode(np.array([row]))[0]
    mean = cast("GaussianPosterior", posterior).moments().mean
    shares = {share.name: share.amount for share in against.fields}
    assert list(shares) == [BASELINE, "age", "plan", "hour"]
    for place, name in enumerate(("age", "plan", "hour")):
        mine = np.where(owners == place, x, 0.0)
        if of.spec.features.is_disjoint:
            gap = (mean[action] - mean[against.rival.index]) @ mine
        else:
            one, other = (phi(of, mine, a) for a in (action, against.rival.index))
            crossed = np.repeat(of.spec.features.crossed, of.spec.features.sizes)
            gap = mean[0] @ ((one - other) * crossed)
        assert shares[name] == pytest.approx(gap, abs=1e-9)


def test_a_term_that_both_actions_share_says_nothing():
    _, _, explainer = learned("joint")
    against = explainer.explain([30.0, 0.0, 9.0], decided(5)).comparison
    assert against is not None
    found = {share.term: share for share in against.terms}
    assert list(found) == ["context", "context:variant", "context:channel", "variant:channel"]
    assert found["context"].amount == 0.0
    assert found["context:variant"].chosen == ("c",)
    assert found["variant:channel"].chosen == ("c", "y")
    for share in found.values():
        assert share.amount == 0.0 or share.chosen != share.rival


def test_waves_stand_as_one_share_beside_the_fields():
    _, _, explainer = learned("bent")
    against = explainer.explain([30.0, 0.0, 9.0], decided(3)).comparison
    assert against is not None
    assert [share.name for share in against.fields] == [
        BASELINE,
        "age",
        "plan",
        "hour",
        NON_LINEAR,
    ]
    assert against.fields[-1].amount != 0.0
    assert [share.value for share in against.fields] == [None, 30.0, "free", 9.0, None]


def test_a_belief_without_context_gives_the_action_all():
    _, _, explainer = learned("beta")
    found = explainer.explain([30.0, 0.0, 9.0], decided(2))
    assert found.comparison is not None
    assert [share.name for share in found.comparison.fields] == [BASELINE]
    assert [share.term for share in found.comparison.terms] == ["variant:channel"]
    assert found.unit == "rate"


# --- spread and probability -------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(FORMS))
def test_sd_and_best_probability_match_draws_from_the_posterior(form: str):
    """200,000 draws; each bound is 5.5 standard errors, a false alarm below 1e-6 in all."""
    of, posterior, explainer = learned(form)
    row = np.array([70.0, 1.0, 9.0])
    random, n = np.random.default_rng(2), 200_000
    mask = of.spec.actions.mask
    if isinstance(posterior, BetaBernoulliPosterior):
        a, b = posterior.parameters()
        drawn = random.beta(a, b, (n, 6))
    else:
        x = of.spec.encoder.encode(row[None])[0]
        mean, lower, variance, _, _ = cast("GaussianPosterior", posterior).moments()
        covariance = [variance * np.linalg.inv(factor @ factor.T) for factor in lower]
        if of.spec.features.is_disjoint:
            sds = np.sqrt([x @ c @ x for c in covariance])
            drawn = mean @ x + sds * random.standard_normal((n, 6))
        else:
            design = np.array([phi(of, x, action) for action in range(6)])
            spread = design @ covariance[0] @ design.T
            drawn = random.multivariate_normal(design @ mean[0], spread, n, method="svd")
    wins = np.bincount(np.where(mask, drawn, -np.inf).argmax(axis=1), minlength=6) / n
    for action in np.flatnonzero(mask).tolist():
        found = explainer.explain(row, decided(action))
        assert found.chosen is not None and found.comparison is not None
        assert found.chosen.sd == pytest.approx(drawn[:, action].std(), rel=5.5 / math.sqrt(n))
        gap = drawn[:, action] - drawn[:, found.comparison.rival.index]
        assert found.comparison.difference_sd == pytest.approx(gap.std(), rel=5.5 / math.sqrt(n))
        draws = n if "disjoint" in form or form == "beta" else of.spec.policy.draws
        error = math.sqrt(0.25 / draws) + math.sqrt(0.25 / n)
        assert abs(found.chosen.best_probability - wins[action]) < 5.5 * error


def test_propensities_are_those_of_the_decision():
    of, posterior, explainer = learned("joint")
    snapshot = of.publish(posterior, version=0)
    customer = next(c for c in (str(i).encode() for i in range(99)) if of.group(c) is Group.BANDIT)
    context = {"age": 30, "plan": "free", "hour": 9}
    one = rng.decision_id(SECRET, "welcome", "r", 0)
    decision = of.decide(snapshot, context, decision_id=one, customer=customer)
    row = of.spec.schema.row(context)
    found = explain(of, posterior, row, decision)
    assert found == Explainer(of, posterior, snapshot).explain(row, decision)
    assert found.chosen is not None and found.comparison is not None
    assert decision.propensities is not None
    rival = found.comparison.rival
    assert found.chosen.propensity == decision.propensity
    assert rival.propensity == decision.propensities[rival.index]
    silent = of.decide(snapshot, context, decision_id=one, customer=customer, propensities=False)
    unknown = explainer.explain(row, silent)
    assert unknown.chosen is not None and unknown.chosen.propensity is None


# --- who chose, and what was taken away -------------------------------------------------


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.POLICY])
@pytest.mark.parametrize("action", [3, None])
def test_what_the_model_did_not_choose_is_explained_by_its_reason(
    reason: Reason, action: int | None
):
    _, _, explainer = learned("joint")
    found = explainer.explain([30.0, 0.0, 9.0], decided(action, reason))
    assert found.chosen_by == found.reason == reason.name.lower()
    assert found.is_explored is None and found.comparison is None
    assert (found.chosen is None) == (action is None)


@pytest.mark.parametrize("kind", ["uniform"])
def test_a_policy_without_model_is_named(kind: str):
    _, _, explainer = learned("joint", kind)
    found = explainer.explain([30.0, 0.0, 9.0], decided(3))
    assert (found.chosen_by, found.is_explored, found.comparison) == (kind, None, None)


@given(rules=st.lists(st.sampled_from(RULES), max_size=4))
def test_every_removed_action_is_named_once_by_the_first_rule_that_hit_it(
    rules: list[Exclusion],
):
    of, _, explainer = learned("disjoint")
    exclusions = tuple(rules)
    found = explainer.explain([30.0, 0.0, 9.0], decided(None, Reason.PAUSED), exclusions)
    expected: dict[str, list[dict[str, str]]] = {}
    for rule in (*of.spec.actions.exclusions, *exclusions):
        expected.setdefault(rule.reason, [])
    for action in range(6):
        variant, channel, _ = (level.name for level in of.spec.actions.levels(action))
        for rule in (*of.spec.actions.exclusions, *exclusions):
            if rule.variant in (None, variant) and rule.channel in (None, channel):
                name = {"variant": variant, "channel": channel, "slot": "now"}
                expected[rule.reason].append(name)
                break
    told = {effect.reason: [asdict(name) for name in effect.actions] for effect in found.removed}
    assert told == expected
    assert all(effect.count == len(effect.actions) for effect in found.removed)
    assert found.eligible == 6 - sum(effect.count for effect in found.removed)


def test_exclusions_that_took_the_chosen_action_are_refused():
    _, _, explainer = learned("joint")
    with pytest.raises(InvalidInputError, match="exclusions"):
        explainer.explain([30.0, 0.0, 9.0], decided(2), (RULES[1],))
    with pytest.raises(InvalidInputError, match="row"):
        explainer.explain([30.0], decided(2))


BAD_ROWS = {
    "length": ([30.0], "row"),
    "none": ([], "row"),
    "table": ([[30.0, 0.0, 9.0]], "row"),
    "number": (30.0, "row"),
    "text": (["a", "b", "c"], "row"),
    "ragged": ([[1.0], 2.0, 3.0], "row"),
    "infinite": ([math.inf, 0.0, 9.0], 'row.values["age"]'),
    "missing": ([30.0, 0.0, math.nan], 'row.values["hour"]'),
    "level": ([30.0, 7.0, 9.0], 'row.values["plan"]'),
    "half a level": ([30.0, 0.5, 9.0], 'row.values["plan"]'),
    "turns": ([30.0, 0.0, 1e300], 'row.values["hour"]'),
}


@pytest.mark.parametrize(("row", "field"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("form", ["joint", "beta"])
def test_a_row_that_the_schema_can_not_have_given_is_refused(
    form: str, row: list[float], field: str
):
    _, _, explainer = learned(form)
    for action in (2, None):
        with pytest.raises(InvalidInputError) as caught:
            explainer.explain(row, decided(action, Reason.POLICY))
        assert caught.value.field == field


def test_a_decision_of_another_experiment_is_refused():
    _, _, explainer = learned("joint")
    with pytest.raises(InvalidInputError, match="this experiment has 6") as caught:
        explainer.explain([30.0, 0.0, 9.0], decided(6))
    assert caught.value.field == "decision.action"
    with pytest.raises(InvalidInputError, match="shape") as caught:
        explainer.explain([30.0, 0.0, 9.0], decided(2, propensities=np.full(4, 0.25)))
    assert caught.value.field == "decision.propensities"


@pytest.mark.parametrize("other", ["disjoint", "bent", "beta"])
def test_a_belief_of_another_experiment_is_refused(other: str):
    (of, own, _), (another, posterior, _) = learned("joint"), learned(other)
    with pytest.raises(InvalidInputError) as caught:
        Explainer(of, posterior)
    assert caught.value.field == "posterior"
    with pytest.raises(InvalidInputError) as caught:
        Explainer(of, own, another.publish(posterior, version=1))
    assert caught.value.field == "snapshot"


def test_an_only_action_has_no_rival():
    _, _, explainer = learned("joint")
    found = explainer.explain([30.0, 0.0, 9.0], decided(4), RULES[1:])
    assert found.eligible == 1 and found.comparison is None and found.is_explored is False
    assert found.chosen is not None
    assert (found.chosen.rank, found.chosen.best_probability) == (1, pytest.approx(1.0))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_explanation_is_plain_data(form: str):
    _, _, explainer = learned(form)
    found: Explanation = explainer.explain([math.nan, -1.0, 9.0], decided(2), (RULES[2],))
    data = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert data["chosen"]["action"] == {"variant": "b", "channel": "x", "slot": "now"}


def test_retired_levels_are_among_what_was_removed():
    spec = from_data(
        {
            "name": "e",
            "actions": {
                "variants": ["a", "b", {"name": "c", "retired": True}],
                "channels": ["x"],
            },
            "outcome": {"window": 1, "rewards": [{"name": "r"}]},
        }
    )
    of = Experiment(spec, secret=b"sixteen bytes or more")
    found = explain(of, of.prior(), [], decided(0))
    [effect] = found.removed
    assert (effect.reason, effect.count) == ("retired", 1)
    assert effect.actions[0].variant == "c"
