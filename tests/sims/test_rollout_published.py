"""Rollouts at a server's cadence: beside a learner that looks at every instant, one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.actions import Exclusion
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.question import Questions
from bandit.rng import customer_keys, decision_ids
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from sims.rollouts import Plan, Published, Shard, reduce, rollout, shards, task
from sims.rollouts.plan import TENANT
from sims.rollouts.published import Embedded, Run
from sims.rollouts.stage import Cadenced, Played, Scenes
from sims.worlds import Arrivals, Course, Delay, Fatigue, Generated, Traffic, Unsubscribes, World


def spec(**parts: object) -> ExperimentSpec:
    """Give four actions with shared weights, and every traffic group."""
    return from_data(
        {
            "name": "four",
            "actions": {"variants": ["a", "b"], "channels": ["email", "push"]},
            "context": [{"name": "age", "kind": "number", "bounds": [0, 1]}],
            "outcome": {"window": 3_600, "aggregation": "first", "rewards": [CLICK]},
            "groups": {"random": 0.2, "baseline": 0.1, "no_contact": 0.1},
            "baseline": {"variant": "a", "channel": "email"},
            "policy": {"draws": 64},
            **parts,
        }
    )


CLICK = {"name": "click", "terminal": True}


def world(**parts: object) -> World:
    """Give clicks that come late and are lost at times."""
    return World(
        **{
            "reward": "click",
            "base": -1.0,
            "generated": Generated(seed=1, levels=0.8, context=0.8),
            "delay": Delay(mean=900.0),
            "missing": 0.1,
            "traffic": Traffic(per_hour=120.0),
            **parts,
        }
    )


def plan(of: ExperimentSpec, its: World, learning: Published, customers: int = 120) -> Plan:
    """Give the plan of the experiment's own policy."""
    policies = (("policy", of.policy),)
    return Plan(
        spec=of,
        world=its,
        policies=policies,
        customers=customers,
        replications=1,
        learning=learning,
    )


def played(of: Plan, size: int = 4_096) -> Played:
    """Play the first policy of the first replication."""
    course = of.course(0)
    is_timed = of.spec.policy.half_life is not None
    run = Run(Embedded(of.experiment(0, 0)), of.learning, is_timed=is_timed)  # type: ignore[arg-type]
    performer, scenes = Cadenced(run, course), Scenes(of, course, all_outcomes=False)
    parts = [
        performer.perform(scenes.read(start, min(start + size, of.customers)))
        for start in range(0, of.customers, size)
    ]
    return Played(
        *(np.concatenate([p[i] for p in parts]) for i in range(4)),  # type: ignore[misc, arg-type]
        tuple(d for p in parts for d in p.decided),
    )


class Learner:
    """The learner's rule told once more: it looks whenever the clock moves, at one outcome a time.

    Independent of ``Run``: a list that is searched, no customers who share a call.
    """

    def __init__(self, experiment: Experiment, learning: Published) -> None:
        self.of, self.every = experiment, learning
        self.posterior = experiment.prior()
        self.snapshot = experiment.publish(self.posterior, version=0)
        self.open: list[tuple[int, int, float, int, Floats, int, bool]] = []
        self.seq, self.new, self.first = 0, 0, 0

    def look(self, now: int) -> None:
        """Take in what is known by now, instant by instant, and publish where that is due."""
        limit = round(self.every.seconds * 1e6)
        while True:
            moments = [entry[0] for entry in self.open if entry[0] <= now]
            if self.new and self.first + limit <= now:
                moments.append(self.first + limit)
            if not moments:
                return
            moment = min(moments)
            for entry in sorted(e for e in self.open if e[0] == moment):
                self.open.remove(entry)
                self.fold(entry)
            if self.new and (self.new >= self.every.outcomes or moment >= self.first + limit):
                version = self.snapshot.version + 1
                self.snapshot = self.of.publish(self.posterior, version=version)
                self.new = 0

    def fold(self, entry: tuple[int, int, float, int, Floats, int, bool]) -> None:
        """Learn one outcome."""
        due, _, reward, action, row, at, is_learned = entry
        self.seq += 2  # the event and the outcome
        if not is_learned:
            return
        if not self.new:
            self.first = due
        self.new += 1
        self.of.learn(
            *(self.posterior, row, [action], np.array([reward])),
            seq=self.seq,
            times=np.array([at / 1e6]),
        )


def one_by_one(of: Plan) -> list[tuple[int, float, int, int]]:
    """Give action, propensity, version and reason of every customer, each decided for alone."""
    experiment, course = of.experiment(0, 0), of.course(0)
    learner, history = Learner(experiment, of.learning), course.history()  # type: ignore[arg-type]
    found = []
    for i in range(of.customers):
        arrivals = course.arrivals(i, i + 1)
        now = round(float(arrivals.times[0]) * 1e6)
        learner.look(now)
        questions = Questions(
            decision_ids(experiment.secret, "four", [f"rollout-{i}"], now // 1_000),
            customer_keys(experiment.secret, TENANT, [f"customer-{arrivals.customers[0]}"]),
            arrivals.rows,
            arrivals.exclusions,
        )
        chosen = experiment.decide_columns(learner.snapshot, questions)
        learner.seq += 1
        action, reason = int(chosen.actions[0]), int(chosen.reasons[0])
        response = course.respond(
            arrivals, i, chosen.actions, course.expected(arrivals, i, history)
        )
        history.add(arrivals.customers, arrivals.times, chosen.actions >= 0, response.unsubscribed)
        if action >= 0 and not np.isnan(response.rewards[0]):
            due = max(round(float(response.due[0]) * 1e6), now)
            reward, is_learned = float(response.rewards[0]), reason in (1, 2)
            learner.open.append((due, i, reward, action, arrivals.rows, now, is_learned))
        found.append((action, float(chosen.propensity[0]), learner.snapshot.version, reason))
    return found


def columns(of: Played) -> list[tuple[int, float, int, int]]:
    """Give what a run decided in the same form."""
    return [
        row
        for d in of.decided
        for row in zip(
            *(d.actions.tolist(), d.propensities.tolist(), d.versions.tolist()),
            d.reasons.tolist(),
            strict=True,
        )
    ]


@given(
    outcomes=st.integers(1, 40),
    seconds=st.sampled_from([0.5, 30.0, 600.0, 86_400.0]),
    delay=st.sampled_from([None, 1.0, 300.0, 3_000.0]),
)
@settings(max_examples=12)
def test_sharing_calls_changes_nothing(outcomes: int, seconds: float, delay: float | None):
    its = world(delay=None if delay is None else Delay(mean=delay))
    own = [{"of": "context:variant:channel"}]  # a bank of draws is named by its place in the log
    of = plan(spec(policy={"terms": own}), its, Published(outcomes=outcomes, seconds=seconds))
    assert columns(played(of)) == one_by_one(of)


@pytest.mark.parametrize(
    ("parts", "its"),
    [
        ({"policy": {"half_life": 1_800.0}}, {}),
        ({"policy": {"posterior": "logistic", "base_rate": 0.3}}, {}),
        ({"policy": {"posterior": "beta_bernoulli"}}, {}),
        ({}, {"delay": Delay(mean=9e3), "traffic": Traffic(per_hour=60.0, spacing="even")}),
        (
            {"outcome": {"window": 3_600, "rewards": [CLICK, {"name": "left", "weight": -1.0}]}},
            {
                "traffic": Traffic(per_hour=120.0, customers=25),
                "fatigue": Fatigue(per_message=0.6, half_life=1.0),
                "unsubscribes": Unsubscribes(share=0.05, reward="left"),
            },
        ),
    ],
    ids=["half-life", "logistic", "beta", "due as another comes", "tiring customers"],
)
def test_other_models_and_worlds(parts: dict[str, Any], its: dict[str, Any]):
    of = plan(spec(**parts), world(**its), Published(outcomes=7, seconds=3_600.0))
    done = played(of)
    assert columns(done) == one_by_one(of)
    assert columns(played(of, size=50)) == columns(done)
    assert int(done.decided[-1].versions[-1]) > 2


def test_customers_share_calls():
    of = plan(spec(), world(delay=None, missing=0.0), Published(outcomes=30, seconds=86_400.0))
    sizes = [len(d.numbers) for d in played(of).decided]
    assert sizes[0] == 30
    assert len(sizes) < 20  # 120 customers; those of other groups leave room for more


def test_groups_are_those_of_the_server():
    of = plan(spec(), world(), Published(outcomes=10), customers=1_000)
    done = played(of)
    groups = np.concatenate([d.groups for d in done.decided])
    keys = customer_keys(of.experiment(0, 0).secret, TENANT, [f"customer-{i}" for i in range(1000)])
    assert groups.tolist() == [int(of.experiment(0, 0).group(key.tobytes())) for key in keys]
    nothing = groups == 4
    assert (done.actions[nothing] == -1).all()
    assert (done.values[nothing] == of.course(0).without_message).all()
    assert (done.actions[groups == 3] == 0).all()


def test_figures_do_not_depend_on_shards():
    learning = Published(outcomes=20, seconds=600.0)
    found = rollout(spec(), world(), customers=200, replications=3, learning=learning)
    parts = [task(found.plan, shard) for shard in shards(found.plan, 2)]
    again = reduce(found.plan, parts)
    np.testing.assert_array_equal(found.each("regret", "policy"), again.each("regret", "policy"))
    assert not np.array_equal(found.track.value[0, 0], task(found.plan, Shard(1, 2)).value[0, 0])


def test_waiting_longer_for_a_publication_costs_more():
    """Regret with a belief that is never renewed is uniform's, which is more than a fresh one's."""
    its = world(missing=0.0, base=-2.0, generated=Generated(seed=1, levels=1.5))
    fresh, stale = (
        rollout(
            spec(),
            its,
            customers=800,
            replications=3,
            learning=Published(outcomes=n, seconds=86_400.0),
        )
        for n in (20, 100_000)
    )
    assert (
        fresh.each("regret", "policy")[:, -1].mean() < stale.each("regret", "policy")[:, -1].mean()
    )


def test_the_cadence_of_the_experiment_is_taken_over():
    of = spec(publishing={"outcomes": 33, "seconds": 5.0})
    assert Published.of(of) == Published(outcomes=33, seconds=5.0)
    for bad in ({"outcomes": 0}, {"seconds": 0.0}):
        with pytest.raises(InvalidInputError):
            Published(**bad)  # type: ignore[arg-type]


def test_a_course_that_leaves_no_action_is_refused(monkeypatch: pytest.MonkeyPatch):
    of = plan(spec(), world(), Published())
    whole = Course.arrivals

    def broken(self: Course, start: int, stop: int) -> Arrivals:
        rules = (Exclusion(variant="a", reason="x"), Exclusion(variant="b", reason="x"))
        return whole(self, start, stop)._replace(exclusions=[rules] * (stop - start))

    monkeypatch.setattr(Course, "arrivals", broken)
    with pytest.raises(InvalidInputError, match="leaves no action"):
        task(of, Shard(0, 1))
