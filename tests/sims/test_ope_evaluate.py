"""The front door: right numbers where the log supports them, and reasons where it does not."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from bandit import rng
from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.groups import Groups
from bandit.spec_file import parse
from sims.log import Log, taken
from sims.ope.arrays import log_of
from sims.ope.balancing import Balancer, Versions
from sims.ope.diagnostics import Counts, Limits, effective_rows
from sims.ope.estimate import Estimate
from sims.ope.estimators import ESTIMATORS
from sims.ope.evaluate import Evaluation, evaluate
from sims.ope.models import RewardModel, model_of
from sims.ope.plan import PLAIN, Plan
from sims.ope.targets import constant, fixed, target_of, uniform

LOGGING = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
RATES = np.array([[0.1, 0.3, 0.5], [0.6, 0.3, 0.2]])
BETTER = np.array([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]])
VALUE = float((0.5 * BETTER * RATES).sum())


def better(log: Log) -> np.ndarray:
    return BETTER[log.rows[:, 0].astype(int)]


def logging(log: Log) -> np.ndarray:
    return LOGGING[log.rows[:, 0].astype(int)]


def make(rows: int, seed: int = 1) -> Log:
    """Give a log with two kinds of context."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 2, rows)
    chosen = (LOGGING[x].cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    return Log(
        actions=chosen,
        rewards=(random.random(rows) < RATES[x, chosen]).astype(float),
        propensities=LOGGING[x, chosen],
        size=3,
        rows=x[:, None].astype(float),
        customers=np.arange(rows),
    )


def quick(log: object, target: object = better, **named: object) -> Evaluation:
    return evaluate(log, target, **{"replicates": 0, "estimators": ["ips"], **named})


# --- the front door ---------------------------------------------------------------------


def test_every_estimator_finds_the_value():
    """Intervals of level 1 - 1e-6, so that to fail by chance is as rare."""
    sure = {"level": 1 - 1e-6, "replicates": 0}
    found = evaluate(make(6_000), better, balancing=Balancer(), **sure)
    for name in ESTIMATORS:
        assert found[name].intervals[0].covers(VALUE), name
    found = evaluate(make(6_000), better, balancing=Balancer(), replicates=200)
    assert set(found.estimates) == {"logged", *ESTIMATORS}
    for name in ESTIMATORS:
        one = found[name]
        assert one.withheld is None, name
        if len(one.intervals) == 1:
            assert name in {"dm", "switch_dr", "dros", "clipped_dr", "clipped_ips"}
            assert one.intervals[0].kind == "student and bias"
        else:
            student, drawn = one.intervals
            assert (student.kind, drawn.kind) == ("student", "bca")
            assert drawn.width == pytest.approx(student.width, rel=0.3)
        assert one.value == found.terms(name).value
        assert (one.setting is None) == (not ESTIMATORS[name].setting)
    assert found["logged"].value == pytest.approx(make(6_000).rewards.mean())
    assert found.diagnostics.mean_weight == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("cut", [1, 700, 2_999])
def test_batches_give_what_the_whole_gives(cut: int):
    log = make(3_000)
    parts = [taken(log, slice(0, cut)), taken(log, slice(cut, 3_000))]
    named = {"models": {"a": RewardModel(fit_rows=500)}, "replicates": 40, "seed": 5}
    named |= {"balancing": Balancer(fit_rows=300)}
    whole = evaluate(log, better, **named)
    for batches in (parts, lambda: iter(parts)):
        found = evaluate(batches, better, **named)
        for name, one in whole.estimates.items():
            other = found[name]
            assert other.value == pytest.approx(one.value, rel=1e-9), name
            for a, b in zip(one.intervals, other.intervals, strict=True):
                assert a[:2] == pytest.approx(b[:2], rel=1e-9)
        assert found.diagnostics.rows == 3_000
        for one, other in zip(
            found.diagnostics.calibration, whole.diagnostics.calibration, strict=True
        ):
            assert one == pytest.approx(other, rel=1e-9)


def test_an_iterator_is_read_once_where_nothing_is_fitted():
    log = make(1_000)
    parts = [taken(log, slice(0, 400)), taken(log, slice(400, 1_000))]
    assert quick(iter(parts))["ips"].value == quick(log)["ips"].value
    with pytest.raises(InvalidInputError, match="log: is read twice where a model is fitted"):
        quick(iter(parts), estimators=["dr"])


def test_tables_are_by_row_of_the_log():
    log = make(1_000)
    target, predicted = better(log), RATES[log.rows[:, 0].astype(int)]
    given = quick(log, target, estimators=["ips", "dr"], models={"true": predicted})
    assert given["ips"].value == quick(log)["ips"].value
    assert abs(given["dr"].value - VALUE) < 5 * given["dr"].standard_error
    with pytest.raises(InvalidInputError, match="target: has 1000 rows, but the log has 600"):
        quick(taken(log, slice(0, 600)), target)
    with pytest.raises(InvalidInputError, match=r"predicted: has shape \(600, 3\)"):
        quick(log, estimators=["dm"], models={"short": predicted[:600]})


def test_several_models_are_told_apart():
    named = {"models": {"a": RewardModel(), "b": RewardModel(kind="ridge")}}
    found = quick(make(1_000), estimators=["ips", "dr"], **named)
    assert set(found.estimates) == {"logged", "ips", "dr:a", "dr:b"}
    assert found["dr:a"].value != found["dr:b"].value
    assert found.terms("dr:b").value == found["dr:b"].value


def test_the_tables():
    found = evaluate(make(1_000), better, replicates=40, estimators=["ips", "dm"], level=0.9)
    table = found.table()
    assert table["estimate"].to_pylist() == ["logged", "logged", "ips", "ips", "dm"]
    assert table["interval"].to_pylist() == [*["student", "bca"] * 2, "student and bias"]
    assert set(table["level"].to_pylist()) == {0.9}
    rows = found.calibration_table().to_pylist()
    assert [row["action"] for row in rows] == [0, 1, 2]
    assert all(abs(row["share"] - row["propensity"]) < 0.05 for row in rows)
    withheld = quick(make(50)).table().to_pylist()[1]
    assert withheld["value"] is withheld["low"] is None
    assert "at least 100" in withheld["withheld"]
    assert table.schema == quick(make(50)).table().schema
    assert isinstance(table, pa.Table)


def test_a_biased_estimate_says_so_or_has_no_interval():
    """The model is far off, so the direct method is: its interval must still hold."""
    log = make(4_000)
    wrong = np.full((4_000, 3), 0.9)
    found = quick(log, estimators=["dm", "dr"], models={"wrong": wrong}, level=1 - 1e-6)
    assert found["dm"].value == pytest.approx(0.9)
    assert found["dm"].effective_rows is None
    assert found["dm"].intervals[0].covers(VALUE)  # 1e-6 to fail
    assert found["dr"].intervals[0].covers(VALUE)
    few = quick(taken(log, slice(0, 120)), estimators=["dm"])["dm"]
    assert few.intervals == ()
    assert few.value is not None
    assert "how biased it is can not be told: the weights are worth" in few.caution


def test_the_same_seed_gives_the_same_bits():
    found = [evaluate(make(800), better, replicates=40, seed=s) for s in (1, 1, 2)]
    assert found[0].estimates == found[1].estimates
    assert found[0]["dr"] != found[2]["dr"]


def test_given_settings_are_used():
    found = quick(make(1_000), estimators=["clipped_ips"], settings={"clipped_ips": 1.0})
    assert found["clipped_ips"].setting == 1.0
    weights = np.minimum(found.columns.weighed[""].weights, 1.0)
    assert found["clipped_ips"].value == pytest.approx((weights * make(1_000).rewards).mean())
    assert found["clipped_ips"].effective_rows == pytest.approx(effective_rows(weights))


def test_progress_is_told():
    told: list[tuple[str, int]] = []
    named = {"progress": lambda *said: told.append(said), "estimators": None}
    quick(make(500), **named)
    stages = [stage for stage, _ in told]
    assert stages[0] == "reading"
    assert {"fitting auto", "evaluating", "setting dros"} <= set(stages)


def test_a_plan_refuses_what_it_does_not_know():
    for named, message in (
        ({"estimators": ["ipw"]}, "estimators: 'ipw' is not known; there are ips"),
        ({"estimators": ["balanced"]}, "balancing: 'balanced' needs the policies"),
        ({"settings": {"dr": 1.0}}, r"settings\.dr: has nothing to set"),
        ({"seed": -1}, "seed: must be in"),
        ({"level": 1.0}, "level: must lie between 0 and 1"),
        ({"models": "ridge", "replicas": 3}, "replicas: is not known; there are estimators"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            evaluate(make(200), better, **named)
    with pytest.raises(InvalidInputError, match=r"limits\.excluded: must be in \[0, 1\]"):
        Limits(excluded=2.0)
    with pytest.raises(InvalidInputError, match="needs a value, or a reason"):
        Estimate(name="ips", value=None)
    assert Plan().names == PLAIN
    assert "balanced" in Plan(balancing=Balancer()).names


def test_an_empty_log_is_refused():
    with pytest.raises(InvalidInputError, match="log: has no rows"):
        quick(make(0))
    with pytest.raises(InvalidInputError, match="log: has no rows"):
        quick([], estimators=["dr"])


# --- diagnostics, and what they withhold ------------------------------------------------


def test_effective_rows_by_hand():
    assert effective_rows(np.ones(7)) == 7.0
    assert effective_rows(np.array([1.0, 0.0, 0.0])) == 1.0
    assert effective_rows(np.array([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_rows(np.zeros(3)) == 0.0


def test_too_few_effective_rows_withhold():
    why = quick(make(150)).estimates["ips"].withheld
    assert "the weights are worth" in why
    assert "log more rows" in why
    few = quick(make(50), estimators=["dm"])["dm"].withheld
    assert few == "there are 50 rows, at least 100 are needed; log more"
    assert quick(make(150), limits=Limits(effective_rows=20))["ips"].withheld is None


def test_one_row_with_most_of_the_weight_withholds():
    log = make(3_000)
    rare = log.propensities.copy()
    rare[np.flatnonzero((log.actions == 2) & (log.rows[:, 0] == 0))[0]] = 1e-3
    log = dataclasses.replace(log, propensities=rare)
    found = quick(log, limits=Limits(effective_rows=1, mean_weight=0, calibration=0))
    assert "one row has" in found["ips"].withheld
    assert found.diagnostics.largest_weight > 100
    assert found.diagnostics.largest_share > 0.1
    clipped = quick(log, estimators=["clipped_ips"], limits=Limits(mean_weight=0, calibration=0))
    assert clipped["clipped_ips"].withheld is None


def test_actions_that_were_never_logged_withhold():
    log = make(2_000)
    log = dataclasses.replace(log, size=5)
    half = constant([0.2, 0.2, 0.2, 0.1, 0.3])
    found = quick(log, half, estimators=["ips", "dm"])
    assert found.diagnostics.unsupported == pytest.approx(0.4)
    assert [gap.action for gap in found.diagnostics.gaps] == [4, 3]
    for name in ("ips", "dm"):
        assert "40.0% of the policy falls on actions the log never took (4, 3)" in (
            found[name].withheld
        )
    assert found["logged"].withheld is None


def test_support_is_by_position():
    log = dataclasses.replace(make(2_000), positions=np.repeat([0, 1], 1_000))
    there = (log.positions == 0) | (log.actions != 1)
    found = quick(taken(log, there), constant([0.0, 1.0, 0.0]))
    assert found.diagnostics.gaps[0][:2] == (1, 1)
    assert found.diagnostics.unsupported > 0.3


def test_propensities_that_are_right_pass():
    """p-values of 40 logs: none below 1e-5, so 4e-4 to fail, twice."""
    for seed in range(40):
        log = make(2_000, seed)
        counts = Counts(3)
        counts.add(log, better(log))
        assert counts.calibration()[1] > 1e-5
        known = Counts(3)
        known.add(log, better(log), logging(log))
        assert known.calibration()[1] > 1e-5
        assert known.mismatches == 0


def test_a_small_floor_is_no_alarm():
    """Every action has a favourite's chance with a quarter of the customers, else 0.001.

    In 30 logs of 4,000 rows an action is drawn 3 times from its floor, or never; its sum of
    1 / p is then short by a quarter of all rows. Each log alarms with 1e-5 at most.
    """
    n, k = 4_000, 4
    for seed in range(30):
        random = np.random.default_rng(seed)
        policy = np.full((n, k), 0.001)
        policy[np.arange(n), random.integers(0, k, n)] = 0.997
        policy[: n // 10] = 0.25  # before it learned
        chosen = (policy.cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
        p = policy[np.arange(n), chosen]
        counts = Counts(k)
        counts.add(Log(actions=chosen, rewards=np.zeros(n), propensities=p, size=k), policy)
        assert counts.calibration()[1] > 1e-5


def test_propensities_that_are_too_large_withhold():
    """A third each, and one half is logged: every action is chosen less often than it says."""
    n, random = 2_000, np.random.default_rng(1)
    log = Log(
        actions=random.integers(0, 3, n),
        rewards=np.zeros(n),
        propensities=np.full(n, 0.5),
        size=3,
    )
    counts = Counts(3)
    counts.add(log, np.full((n, 3), 1 / 3))
    assert counts.calibration()[1] < 1e-5


def test_propensities_that_are_wrong_withhold():
    log = make(5_000)
    wrong = np.where(log.actions == 1, 0.8, 1.0) * log.propensities
    found = quick(dataclasses.replace(log, propensities=wrong), estimators=["ips", "dm"])
    assert "not chosen as often as their propensities say" in found["ips"].withheld
    assert found["dm"].withheld is None
    worst = max(found.diagnostics.calibration, key=lambda row: abs(row.z))
    assert worst.action == 1
    assert worst.share > worst.propensity
    assert not worst.low <= worst.propensity <= worst.high


def test_an_action_that_is_not_always_eligible_is_no_alarm_if_said_so():
    """Every other row could not take action 2, so that one is chosen half as often."""
    log, random = make(5_000), np.random.default_rng(1)
    few = np.arange(5_000) % 2 == 0
    policy = logging(log)
    policy[few, 2] = 0.0
    policy /= policy.sum(axis=1, keepdims=True)
    chosen = (policy.cumsum(axis=1) > random.random((5_000, 1))).argmax(axis=1)
    log = dataclasses.replace(log, actions=chosen, propensities=policy[np.arange(5_000), chosen])
    target = constant([0.5, 0.5, 0.0])
    assert "not chosen as often" in quick(log, target)["ips"].withheld
    found = quick(log, target, limits=Limits(all_eligible=False))
    assert found.diagnostics.calibration_p > 1e-3
    assert found["ips"].withheld is None


def test_another_logging_policy_is_noticed():
    found = quick(make(2_000), logging=better)
    assert found.diagnostics.mismatches > 1_000
    assert "rows have another propensity" in found["ips"].withheld
    right = quick(make(2_000), logging=logging)
    assert right.diagnostics.mismatches == 0
    assert right["ips"].withheld is None
    assert sum(row.rows for row in right.diagnostics.calibration) == 6_000


def test_a_mean_weight_that_is_not_one_withholds():
    log = make(4_000)
    kept = (log.rows[:, 0] == 0) | (log.actions != 0)
    found = quick(taken(log, kept), limits=Limits(calibration=0))
    low, high = found.diagnostics.mean_weight_interval[:2]
    assert high < 1.0
    assert low < found.diagnostics.mean_weight < high
    assert "and must be 1" in found["ips"].withheld
    assert quick(log).diagnostics.mean_weight_p > 1e-3


def test_groups_that_lost_rows_withhold():
    log = make(4_000)
    groups = np.where(np.arange(4_000) % 4 == 0, int(Group.RANDOM), int(Group.BANDIT))
    log = dataclasses.replace(log, groups=groups)
    assert quick(log, groups=Groups(random=0.25))["ips"].withheld is None
    found = quick(log, groups=Groups(random=0.35), estimators=["ips", "dm"])
    assert "the sizes of the groups are not as declared" in found["dm"].withheld
    assert quick(log).diagnostics.sample_ratio_p is None


def test_groups_with_one_action_are_left_out():
    log = make(4_000)
    groups = np.where(np.arange(4_000) < 1_000, int(Group.BASELINE), int(Group.BANDIT))
    propensities = np.where(groups == int(Group.BASELINE), 1.0, log.propensities)
    mixed = dataclasses.replace(log, groups=groups, propensities=propensities)
    found = quick(mixed, better(log))
    assert found.diagnostics.excluded == {"group with one action": 1_000}
    assert found["ips"].value == quick(taken(log, slice(1_000, 4_000)))["ips"].value


def test_many_bad_rows_withhold():
    log = dataclasses.replace(make(2_000), excluded={"reward is NaN": 500}, separated={"open": 9})
    found = quick(log)
    assert found.diagnostics.excluded == {"reward is NaN": 500, "open": 9}
    assert "500 of 2500 rows were left out as bad" in found["ips"].withheld


def test_rewards_that_never_vary_have_no_interval():
    log = dataclasses.replace(make(2_000), rewards=np.zeros(2_000))
    found = evaluate(log, better, estimators=["ips"], replicates=40)
    assert "spread is unknown" in found["ips"].withheld


# --- policies of experiments ------------------------------------------------------------

SPEC = """
name = "welcome"
actions = {variants = ["short", "long", "odd"], channels = ["email"]}
context = [{name = "kind", kind = "number", bounds = [0, 1]}]
groups = {random = 0.3, baseline = 0.2}
baseline = {variant = "short", channel = "email"}
outcome = {window = 3600, aggregation = "max", rewards = [{name = "click"}]}
policy = {posterior = "logistic", exploration = 1.0, terms = [{of = "context:variant"}]}
"""


def test_the_policy_of_an_experiment_is_what_it_would_do():
    of = Experiment(parse(SPEC, "toml"), secret=b"a secret of an experiment")
    posterior, log = of.prior(), make(600)
    of.learn(posterior, log.rows, log.actions, log.rewards, seq=1)
    snapshot = of.publish(posterior, version=3)
    policy = target_of(of, snapshot)
    found = policy(log)
    assert found.sum(axis=1) == pytest.approx(np.ones(600))
    compared = 0
    for i in range(40):
        one = rng.decision_id(of.secret, "welcome", f"r{i}", at_ms=0)
        customer = rng.customer_key(of.secret, "welcome", f"c{i}")
        decision = of.decide(snapshot, {"kind": log.rows[i, 0]}, decision_id=one, customer=customer)
        if decision.group is Group.BANDIT:
            assert found[i] == pytest.approx(decision.propensities, abs=1e-12)
            compared += 1
    assert 5 < compared < 40
    value = quick(log, policy, estimators=["dr"], models={"own": model_of(of.spec)})["dr"]
    assert value.withheld is None
    assert value.value > log.rewards.mean()


def test_versions_balance():
    random = np.random.default_rng(3)
    log, other = make(3_000), make(3_000, seed=2)
    x = other.rows[:, 0].astype(int)
    chosen = (BETTER[x].cumsum(axis=1) > random.random((3_000, 1))).argmax(axis=1)
    both = Log(
        actions=np.concatenate([log.actions, chosen]),
        rewards=np.concatenate(
            [log.rewards, (random.random(3_000) < RATES[x, chosen]).astype(float)]
        ),
        propensities=np.concatenate([log.propensities, BETTER[x, chosen]]),
        size=3,
        rows=np.concatenate([log.rows, other.rows]),
        versions=np.repeat([4, 9], 3_000),
    )
    versions = Versions(policies={4: logging, 9: better})
    found = quick(
        both, estimators=["ips", "balanced"], balancing=versions, logging_is_adaptive=False
    )
    assert abs(found["balanced"].value - VALUE) < 5 * found["balanced"].standard_error  # 6e-7
    assert found["balanced"].effective_rows > found["ips"].effective_rows
    with pytest.raises(InvalidInputError, match="has no versions to balance by"):
        quick(log, balancing=versions, estimators=["balanced"])


def test_uniform_and_fixed_policies():
    log = make(4_000)
    shares = quick(log, uniform, estimators=["snips"])["snips"]
    assert abs(shares.value - RATES.mean()) < 5 * shares.standard_error  # 6e-7 to fail
    one = quick(log, fixed(2), estimators=["snips"])["snips"]
    assert abs(one.value - RATES[:, 2].mean()) < 5 * one.standard_error


# --- arrays that are not trusted --------------------------------------------------------

BAD = {
    "propensities": (0.0, "must be in"),
    "rewards": (np.nan, "must be finite, got nan"),
    "actions": (3, r"must be in \[0, 2\], got 3"),
    "customers": (0.5, "must be whole numbers, got 0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_left_out_and_counted(name: str):
    good = make(500)
    arrays = {each: getattr(good, each) for each in ("actions", "rewards", "propensities", "rows")}
    arrays |= {"size": 3, "customers": good.customers.astype(float)}
    assert quick(log_of(**arrays))["ips"] == quick(good)["ips"]
    value, message = BAD[name]
    arrays[name] = np.where(np.isin(np.arange(500), (7, 9)), value, arrays[name])
    with pytest.raises(InvalidInputError, match=rf"{name}\[7\]: {message}"):
        log_of(**arrays)
    log = log_of(**arrays, exclude=True)
    assert len(log) == 498
    assert sum(log.excluded.values()) == 2
    found = quick(log, limits=Limits(effective_rows=50))
    assert found.diagnostics.excluded == log.excluded
    assert found["ips"].value is not None


def test_arrays_that_fit_nothing_are_refused():
    for arrays, message in (
        (([0], [1.0, 2.0], [0.5], 2), r"rewards: has shape \(2,\), there are 1 rows"),
        ((["a"], [1.0], [0.5], 2), "actions: are no numbers"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            log_of(*arrays)
    with pytest.raises(InvalidInputError, match="colour: is not a column"):
        log_of([0], [1.0], [0.5], 2, colour=[1])
