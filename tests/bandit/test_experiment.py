"""The front door: groups and fallbacks, one answer for one request, and learning that shows."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import rng
from bandit.actions import Exclusion
from bandit.decision import Decision, Group, Reason
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.posterior import Posterior
from bandit.question import Question, Questions
from bandit.snapshot import Snapshot
from bandit.spec_file import from_data, parse, to_json

SECRET = b"sixteen bytes or more"
GOLDEN = Path(__file__).parents[1] / "golden/decisions-1.json"
SHARED = ("context", "context:variant", "context:channel", "variant:channel")
FORMS: dict[str, dict[str, object]] = {  # with the defaults of release 0.1.0
    "disjoint": {
        "exploration": 1.0,
        "terms": [{"of": "context:variant:channel", "prior_sd": 1.0}],
    },
    "joint": {"exploration": 1.0, "terms": [{"of": of, "prior_sd": 1.0} for of in SHARED]},
    "beta": {"exploration": 1.0, "posterior": "beta_bernoulli"},
}
every_form = pytest.mark.parametrize("form", FORMS)
NO_A, NO_B = Exclusion(variant="a", reason="no a"), Exclusion(variant="b", reason="no b")


def experiment(form: str = "joint", **parts: object) -> Experiment:
    """Give 2 x 2 actions; index 0 is the baseline a/x, index 2 the fallback b/x."""
    whole = {
        "name": "welcome",
        "actions": {"variants": ["a", "b"], "channels": ["x", "y"]},
        "context": [{"name": "vip", "kind": "flag"}],
        "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
        "policy": FORMS[form],
        "groups": {"random": 0.25, "baseline": 0.25, "no_contact": 0.25},
        "baseline": {"variant": "a", "channel": "x"},
        "fallback": {"variant": "b", "channel": "x"},
    }
    return Experiment(from_data({**whole, **parts}), secret=SECRET)


def request(i: int, at_ms: int = 0) -> UUID:
    return rng.decision_id(SECRET, "welcome", f"request {i}", at_ms)


def customer(of: Experiment, group: Group) -> bytes:
    return next(c for c in (str(i).encode() for i in range(999)) if of.group(c) is group)


def learned(of: Experiment, n: int = 40) -> Posterior:
    """Fold halves only, so that the posterior is the same on any machine."""
    posterior, step = of.prior(), np.arange(n)
    rows = (step % 3 == 0).astype(float)[:, None]
    of.learn(posterior, rows, (step % 4).tolist(), 0.5 * (step % 3), seq=n)
    return posterior


def ready(form: str = "joint", **parts: object) -> tuple[Experiment, Snapshot]:
    of = experiment(form, **parts)
    return of, of.publish(learned(of), version=7)


def ask(of: Experiment, snapshot: Snapshot, group: Group, **how: object) -> Decision:
    who = {"decision_id": request(1), "customer": customer(of, group)}
    return of.decide(snapshot, {"vip": True}, **who, **how)  # type: ignore[arg-type]


def mixed(n: int) -> list[Question]:
    """Give questions of every group, with contexts and exclusions that change along the way."""
    rules = [(), (NO_A,), (), (NO_A, NO_B), (Exclusion(channel="y", reason="no y"),)]
    rows = [[1.0], [0.0], [math.nan]]
    return [Question(request(i), str(i).encode(), rows[i % 3], rules[i % 5]) for i in range(n)]


def same(one: Decision, two: Decision) -> bool:
    plain = ("decision_id", "action", "group", "reason", "snapshot_version")
    return all(getattr(one, name) == getattr(two, name) for name in plain) and np.array_equal(
        [one.propensity, *_vector(one)], [two.propensity, *_vector(two)], equal_nan=True
    )


def _vector(decision: Decision) -> list[float]:
    return [] if decision.propensities is None else decision.propensities.tolist()


# --- whose snapshot ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"name": "other"},
        {"actions": {"variants": ["b", "a"], "channels": ["x", "y"]}},
        {"actions": {"variants": ["a", "b", "c"], "channels": ["x", "y"]}},
        {"context": [{"name": "vip", "kind": "flag", "required": True}]},
        {"policy": FORMS["disjoint"]},
        {"policy": FORMS["beta"]},
    ],
    ids=["name", "order", "levels", "width", "terms", "posterior"],
)
def test_a_snapshot_of_another_experiment_is_refused(parts: dict[str, object]):
    of, (other, snapshot) = experiment(), ready(**parts)
    who = {"decision_id": request(1), "customer": b"c"}
    with pytest.raises(InvalidInputError, match="was not published by") as caught:
        of.decide(snapshot, {"vip": True}, **who)  # type: ignore[arg-type]
    assert caught.value.field == "snapshot"
    with pytest.raises(InvalidInputError, match="was not published by"):
        of.decide_slate(snapshot, {"vip": True}, size=2, **who)  # type: ignore[arg-type]
    assert other.decide(snapshot, {"vip": True}, **who)  # type: ignore[arg-type]


def test_a_snapshot_of_the_same_experiment_built_again_is_taken():
    (_, snapshot), again = ready(), experiment()
    assert ask(again, snapshot, Group.BANDIT).propensity > 0.0


def test_a_snapshot_from_before_levels_were_added_is_refused():
    of, snapshot = ready()
    variants = ["a", "b", {"name": "c", "generation": 1}]
    edited = experiment(actions={"variants": variants, "channels": ["x", "y"]}).spec
    after, posterior = of.revise(learned(of), edited)
    with pytest.raises(InvalidInputError, match="present levels"):
        ask(after, snapshot, Group.BANDIT)
    assert ask(after, after.publish(posterior, version=8), Group.BANDIT).action is not None


def test_an_experiment_read_from_its_store_takes_an_edit_that_leaves_defaults_out():
    declared = experiment(policy={}).spec
    of = Experiment(parse(to_json(declared), "json"), secret=SECRET)
    assert of.spec != declared
    after, posterior = of.revise(learned(of), replace(declared, description="new"))
    assert after.spec.description == "new"
    assert posterior.count == 40


# --- one request, one answer ------------------------------------------------------------


@every_form
def test_a_request_gets_the_same_answer_again_and_later(form: str):
    of, snapshot = ready(form)
    for i in range(20):
        who = {"customer": customer(of, Group.BANDIT), "context": {"vip": i % 2 == 0}}
        first, again, later = (
            of.decide(snapshot, decision_id=request(i, at_ms), **who) for at_ms in (0, 0, 10**12)
        )
        assert same(first, again)
        assert (later.action, later.propensity) == (first.action, first.propensity)


@every_form
@pytest.mark.parametrize("propensities", [True, False], ids=["decide", "draw"])
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), order=st.permutations(range(60)))
def test_a_batch_answers_as_each_request_alone(
    form: str, cuts: list[int], order: list[int], *, propensities: bool
):
    of, snapshot = ready(form)
    questions = mixed(60)
    whole = of.decide_batch(snapshot, questions, propensities=propensities)
    assert {d.group for d in whole} == set(Group)
    for start, end in pairwise(sorted({0, *cuts, 60})):
        part = [questions[i] for i in order[start:end]]
        decisions = of.decide_batch(snapshot, part, propensities=propensities)
        for i, decision in zip(order[start:end], decisions, strict=True):
            assert same(decision, whole[i])


def test_a_named_context_is_decided_as_its_row():
    of, snapshot = ready()
    who = {"decision_id": request(3), "customer": customer(of, Group.BANDIT)}
    for context, row in (({"vip": True}, [1.0]), ({"vip": False}, [0.0]), ({}, [math.nan])):
        question = Question(**who, row=row)
        assert same(of.decide(snapshot, context, **who), of.decide_batch(snapshot, [question])[0])


def test_nothing_asked_is_nothing_decided():
    of, snapshot = ready()
    assert of.decide_batch(snapshot, []) == []


def test_decisions_of_the_first_release_are_made_again():
    """The file was written by release 0.1.0 from ``mixed`` and never changes."""
    for form, expected in json.loads(GOLDEN.read_text()).items():
        of, snapshot = ready(form)
        for decision, (action, propensity, group, reason) in zip(
            of.decide_batch(snapshot, mixed(40)), expected, strict=True
        ):
            assert (decision.action, decision.group, decision.reason) == (action, group, reason)
            assert decision.propensity == pytest.approx(propensity, abs=1e-6)


# --- groups and fallbacks ---------------------------------------------------------------


@every_form
@pytest.mark.parametrize("group", [Group.BANDIT, Group.RANDOM])
def test_a_choice_is_logged_with_its_true_probability(form: str, group: Group):
    of, snapshot = ready(form)
    decision = ask(
        of, snapshot, group, exclusions=(Exclusion(variant="a", channel="y", reason="r"),)
    )
    p = decision.propensities
    assert p is not None
    assert decision.action in (0, 2, 3)
    assert decision.propensity == p[decision.action]
    assert p.sum() == pytest.approx(1.0, abs=1e-9)
    assert p[1] == 0.0
    assert (decision.group, decision.snapshot_version) == (group, 7)
    assert decision.is_learned_from
    if group is Group.RANDOM:
        np.testing.assert_allclose(p, [1 / 3, 0, 1 / 3, 1 / 3])
        assert decision.reason is Reason.RANDOM_GROUP
    else:
        assert decision.reason is Reason.POLICY


@pytest.mark.parametrize("form", ["disjoint", "joint"])
def test_without_propensities_the_policys_is_unknown(form: str):
    of, snapshot = ready(form)
    decision = ask(of, snapshot, Group.BANDIT, propensities=False)
    assert math.isnan(decision.propensity)
    assert decision.propensities is None


PAUSED, STALE = Reason.PAUSED, Reason.STALE_SNAPSHOT
NOTHING_LEFT = (NO_A, NO_B)


@pytest.mark.parametrize(
    ("group", "refused", "exclusions", "action", "reason"),
    [
        (Group.NO_CONTACT, None, (), None, Reason.NO_CONTACT_GROUP),
        (Group.NO_CONTACT, PAUSED, (), None, PAUSED),
        (Group.NO_CONTACT, STALE, NOTHING_LEFT, None, STALE),
        (Group.NO_CONTACT, None, NOTHING_LEFT, None, Reason.NO_ELIGIBLE_ACTION),
        (Group.BASELINE, None, (), 0, Reason.BASELINE_GROUP),
        (Group.BASELINE, None, (NO_B,), 0, Reason.BASELINE_GROUP),
        (Group.BASELINE, None, (NO_A,), 2, Reason.NO_ELIGIBLE_ACTION),
        (Group.BASELINE, None, NOTHING_LEFT, None, Reason.NO_ELIGIBLE_ACTION),
        (Group.BASELINE, PAUSED, (), 2, PAUSED),
        (Group.BANDIT, PAUSED, (), 2, PAUSED),
        (Group.BANDIT, STALE, (), 2, STALE),
        (Group.BANDIT, PAUSED, (NO_B,), None, PAUSED),
        (Group.BANDIT, None, NOTHING_LEFT, None, Reason.NO_ELIGIBLE_ACTION),
        (Group.RANDOM, PAUSED, (), 2, PAUSED),
        (Group.RANDOM, None, NOTHING_LEFT, None, Reason.NO_ELIGIBLE_ACTION),
    ],
)
def test_who_is_not_chosen_for_gets_what_is_declared(
    group: Group,
    refused: Reason | None,
    exclusions: tuple[Exclusion, ...],
    action: int | None,
    reason: Reason,
):
    of, snapshot = ready()
    question = Question(request(1), customer(of, group), [1.0], exclusions)
    (decision,) = of.decide_batch(snapshot, [question], refused=refused)
    assert (decision.action, decision.reason, decision.group) == (action, reason, group)
    assert decision.propensity == 1.0
    expected = np.zeros(4) if action is None else np.eye(4)[action]
    np.testing.assert_array_equal(decision.propensities, expected)
    assert not decision.is_learned_from


def test_without_a_declared_fallback_nothing_is_sent():
    of, snapshot = ready(fallback=None)
    question = Question(request(1), customer(of, Group.BANDIT), [1.0])
    (decision,) = of.decide_batch(snapshot, [question], refused=PAUSED)
    assert (decision.action, decision.reason) == (None, PAUSED)


def test_what_the_experiment_excludes_is_never_sent():
    actions = {
        "variants": ["a", "b"],
        "channels": ["x", "y"],
        "exclusions": [{"variant": "b", "channel": "y", "reason": "too long"}],
    }
    of, snapshot = ready(actions=actions)
    decisions = of.decide_batch(snapshot, mixed(200))
    assert 3 not in {d.action for d in decisions}
    assert all(d.propensities is not None and d.propensities[3] == 0.0 for d in decisions)


def test_a_customer_keeps_the_group_whatever_is_asked():
    of, snapshot = ready()
    for i in range(50):
        who, key = of.group(str(i % 17).encode()), str(i % 17).encode()
        assert of.decide(snapshot, {}, decision_id=request(i), customer=key).group is who


def test_another_secret_or_experiment_groups_customers_anew():
    others = [
        experiment(),
        experiment(name="goodbye"),
        Experiment(experiment().spec, secret=b"another secret of enough bytes"),
    ]
    groups = [tuple(of.group(str(i).encode()) for i in range(50)) for of in others]
    assert len(set(groups)) == 3


# --- refusals ---------------------------------------------------------------------------


def test_a_short_secret_is_refused():
    with pytest.raises(InvalidInputError, match="16 bytes"):
        Experiment(experiment().spec, secret=b"fifteen bytes..")


def test_a_question_that_does_not_fit_is_refused_by_its_path():
    of, snapshot = ready()
    who = {"decision_id": request(1), "customer": b"c"}
    with pytest.raises(InvalidInputError, match=r'values\["vip"\]'):
        of.decide(snapshot, {"vip": 1}, **who)
    with pytest.raises(InvalidInputError, match=r"exclusions\[0\].slot"):
        of.decide(snapshot, {}, exclusions=(Exclusion(slot="noon", reason="r"),), **who)


@every_form
def test_a_bad_outcome_is_not_learned(form: str):
    of = experiment(form)
    posterior = learned(of)
    before = {name: array.copy() for name, array in posterior.arrays().items()}
    with pytest.raises(InvalidInputError):
        of.learn(posterior, np.ones((2, 1)), [0, 1], np.array([1.0, np.nan]), seq=99)
    assert (posterior.seq, posterior.count) == (40, 40)
    for name, array in posterior.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_phase_too_far_off_to_encode_is_refused():
    of = experiment(context=[{"name": "phase", "kind": "cyclic", "period": 0.5}])
    with pytest.raises(InvalidInputError, match=r'values\["phase"\]: .* periods from 0'):
        of.spec.schema.row({"phase": 1.7e308})
    with pytest.raises(InvalidInputError, match="phase"):
        of.spec.schema.check_rows(np.array([[1.7e308]]))


@pytest.mark.parametrize("bounds", [[0, 1e-17], [1e16, 1e16 + 2]])
def test_a_logarithmic_scale_without_width_is_refused(bounds: list[float]):
    with pytest.raises(InvalidInputError, match=r"context\[0\].bounds"):
        experiment(context=[{"name": "x", "kind": "number", "scale": "log1p", "bounds": bounds}])


# --- learning ---------------------------------------------------------------------------


def simulate(of: Experiment, rate: dict[int, tuple[float, float]], rewards: int) -> Snapshot:
    """Decide, reward and publish in batches; ``rate`` by action: without and with the flag."""
    world, posterior = np.random.default_rng(5), of.prior()
    snapshot = of.publish(posterior, version=0)
    for at in range(0, rewards, 100):
        rows = world.integers(0, 2, (100, 1)).astype(float)
        questions = [Question(request(at + i), b"c", row) for i, row in enumerate(rows.tolist())]
        actions = [d.action for d in of.decide_batch(snapshot, questions)]
        chances = [rate[a][int(row[0])] for a, row in zip(actions, rows, strict=True)]
        outcomes = (world.uniform(size=100) < chances).astype(float)
        of.learn(posterior, rows, actions, outcomes, seq=at + 100)
        snapshot = of.publish(posterior, version=snapshot.version + 1)
    return snapshot


def share(of: Experiment, snapshot: Snapshot, *, vip: bool) -> np.ndarray:
    p = of.decide(snapshot, {"vip": vip}, decision_id=request(0), customer=b"c").propensities
    assert p is not None
    return p


ALL_BANDIT = {"random": 0.0, "baseline": 0.0, "no_contact": 0.0}


@every_form
def test_the_better_arm_is_found(form: str):
    of = experiment(form, groups=ALL_BANDIT)
    rates = {0: (0.1, 0.1), 1: (0.1, 0.1), 2: (0.1, 0.1), 3: (0.4, 0.4)}
    snapshot = simulate(of, rates, 2_000)
    assert (snapshot.version, snapshot.seq, snapshot.count) == (20, 2_000, 2_000)
    assert share(of, snapshot, vip=True)[3] > 0.95


@pytest.mark.parametrize("form", ["disjoint", "joint"])
def test_the_better_arm_is_found_for_each_kind_of_customer(form: str):
    of = experiment(form, groups=ALL_BANDIT)
    rates = {0: (0.5, 0.1), 1: (0.2, 0.1), 2: (0.1, 0.2), 3: (0.1, 0.6)}
    snapshot = simulate(of, rates, 2_000)
    assert share(of, snapshot, vip=False)[0] > 0.95
    assert share(of, snapshot, vip=True)[3] > 0.95


def test_columns_decide_as_questions_do_with_exclusions_and_refusals() -> None:
    """One by one, in a batch or as columns: the same bits, whatever the rules of each row."""
    spec = parse(
        """
        name = "columns"
        fallback = {variant = "a", channel = "email"}
        baseline = {variant = "b", channel = "push"}
        actions = {variants = ["a", "b", "c"], channels = ["email", "push"]}
        context = [{name = "age", kind = "number", bounds = [0, 1]}]
        outcome = {window = 60, rewards = [{name = "click"}]}
        groups = {random = 0.3, baseline = 0.2, no_contact = 0.1}
        """,
        "toml",
    )
    of = Experiment(spec, secret=bytes(range(32)))
    random = np.random.default_rng(1)
    rows = random.random((200, 1))
    posterior = of.prior()
    of.learn(posterior, rows, random.integers(0, 6, 200), random.random(200), seq=200)
    snapshot = of.publish(posterior, version=3)
    rules = [
        (),
        (Exclusion(channel="push", reason="no consent"),),
        (Exclusion(variant="a", reason="seen"), Exclusion(channel="email", reason="no address")),
        (Exclusion(reason="nothing", channel="email"), Exclusion(reason="nothing", channel="push")),
    ]
    asked = [rules[i % 4] for i in range(200)]
    names = [f"r{i}" for i in range(200)]
    ids = rng.decision_ids(of.secret, "columns", names, 5)
    customers = rng.customer_keys(of.secret, "tenant", names)
    questions = [
        Question(
            rng.decision_id(of.secret, "columns", name, 5),
            rng.customer_key(of.secret, "tenant", name),
            row.tolist(),
            exclusions,
        )
        for name, row, exclusions in zip(names, rows, asked, strict=True)
    ]
    for refused in (None, Reason.PAUSED):
        one = of.decide_batch(snapshot, questions, refused=refused)
        columns = Questions(ids, customers, rows, asked)
        many = of.decide_columns(snapshot, columns, propensities=True, refused=refused)
        assert many.propensities is not None
        for i, decision in enumerate(one):
            assert decision.decision_id.bytes == ids[i].tobytes()
            assert (-1 if decision.action is None else decision.action) == many.actions[i]
            assert decision.propensity == many.propensity[i]
            assert (decision.group, decision.reason) == (many.groups[i], many.reasons[i])
            assert decision.propensities is not None
            assert decision.propensities.tobytes() == many.propensities[i].tobytes()
        plain = of.decide_columns(snapshot, columns, refused=refused)
        assert plain.propensities is None
        assert plain.actions.tobytes() == many.actions.tobytes()
    assert {int(group) for group in many.groups} == {1, 2, 3, 4}
