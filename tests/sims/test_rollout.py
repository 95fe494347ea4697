"""Rollouts: common random numbers, shards, records, and what is refused."""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import special

from bandit.errors import InvalidInputError
from bandit.outcome import OutcomeRule, Reward
from bandit.policy import ActionName, PolicySpec
from sims.rollouts import (
    AtOnce,
    Published,
    Rollout,
    Shard,
    named,
    plan_of,
    reduce,
    rollout,
    shards,
    stage,
    task,
)
from sims.rollouts.tracks import COUNTS, SUMS, Track, Tracker
from sims.worlds import (
    Arrivals,
    Availability,
    Course,
    Effect,
    World,
)
from tests.sims.rollout_plans import MODELS, plan, played, spec, world


def equal(mine: Track, theirs: Track) -> None:
    """Check that two tracks are the same, bit for bit."""
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_any_split_into_shards_gives_the_same_bits():
    of = plan_of(*MODELS["own weights, late and lost"](), customers=200, replications=5)
    whole = task(of, Shard(0, 5))
    for size in (1, 2, 3):
        found = reduce(of, [task(of, shard) for shard in shards(of, size)])
        equal(found.track, whole)
    with pytest.raises(InvalidInputError, match="in order"):
        reduce(of, [task(of, shard) for shard in reversed(shards(of, 2))])
    with pytest.raises(InvalidInputError, match="in order"):
        reduce(of, [task(of, Shard(0, 4))])
    with pytest.raises(InvalidInputError, match="tracks: are none"):
        reduce(of, [])


def test_another_process_gives_the_same_bits():
    of = plan_of(*MODELS["shared, late and lost"](), customers=200, replications=2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(task, of, Shard(1, 2)).result()
    equal(there, task(of, Shard(1, 2)))


def test_a_policy_does_not_feel_who_is_compared_with_it():
    of, its = MODELS["own weights"]()
    alone = rollout(of, its, customers=250, replications=2)
    among = rollout(
        of, its, {"eps": "epsilon-greedy", "policy": of.policy}, customers=250, replications=2
    )
    for measure in ("regret", "reward", "best_share"):
        for label in ("policy", "uniform", "baseline"):
            np.testing.assert_array_equal(alone.each(measure, label), among.each(measure, label))
    twin = rollout(of, its, {"a": of.policy, "b": of.policy}, customers=250, replications=2)
    np.testing.assert_array_equal(twin.each("regret", "a"), twin.each("regret", "b"))
    assert not np.array_equal(alone.each("regret", "policy")[0], alone.each("regret", "policy")[1])


def test_sums_at_checkpoints_are_those_of_the_decisions():
    points = (1, 7, 130, 131, 300)
    of = plan(*MODELS["own weights, late and lost"](), checkpoints=points)
    track = task(of, Shard(0, 1))
    actions, rewards = played(of)
    course = of.course(0)
    arrivals = course.arrivals(0, 300)
    expected = course.expected(arrivals, 0, course.history())
    values, best = expected[np.arange(300), actions], course.optimum(arrivals, expected)
    before = 0
    for c, n in enumerate(points):
        heard = rewards[:n][~np.isnan(rewards[:n])]
        wanted = {
            "value": values[:n].sum(),
            "optimum": best[:n].sum(),
            "reward": heard.sum(),
            "squares": (heard**2).sum(),
            "known": len(heard),
            "best": (values[:n] == best[:n]).sum(),
            "nothing": 0,
        }
        assert set(wanted) == {*SUMS, *COUNTS}
        for name, value in wanted.items():
            assert getattr(track, name)[0, 0, c] == pytest.approx(value, rel=1e-12)
        counts = np.bincount(actions[before:n], minlength=6)
        assert track.counts[0, c].tolist() == counts.tolist()
        assert track.count_squares[0, c].tolist() == (counts**2).tolist()
        before = n


@pytest.fixture(scope="module")
def found() -> Rollout:
    """Compare three policies where one action is best for everybody."""
    its = world(generated=None, base=-2.0, effects=(Effect(adds=1.5, variant="b"),))
    policies = {"learns": "thompson", "knows": "fixed:b/email"}
    return rollout(spec(), its, policies, customers=2_000, replications=6, seed=2)


def test_who_knows_the_best_action_regrets_nothing(found: Rollout):
    rate = 1.0 / (1.0 + math.exp(0.5))
    low = 1.0 / (1.0 + math.exp(2.0))
    last = {line.policy: line for line in found.lines(only_last=True)}
    assert last["knows"].regret.mean == 0.0
    assert last["knows"].best_share.mean == 1.0
    assert last["knows"].value.mean == pytest.approx(rate)
    assert last["knows"].lift_baseline.mean == pytest.approx(rate / low - 1.0)
    assert last["baseline"].regret.mean == pytest.approx(2_000 * (rate - low))
    assert last["uniform"].best_share.mean == pytest.approx(1 / 3, abs=0.03)  # 7 sd of a share
    assert 0.0 < last["learns"].regret.mean < 0.4 * last["uniform"].regret.mean
    assert last["learns"].lift_uniform.low > 0.3


def test_tables_hold_what_the_lines_say(found: Rollout):
    table = found.table()
    assert table.num_rows == 4 * 50
    lines = list(found.lines())
    assert table["regret_high"].to_pylist() == [line.regret.high for line in lines]
    allocation = found.allocation()
    share = np.array(allocation["share"]).reshape(4, 50, 6)
    np.testing.assert_allclose(share.sum(axis=2), 1.0)
    wide = np.array(allocation["share_high"]) - np.array(allocation["share"])
    assert (wide >= 0.0).all()
    levels = found.levels("variant")
    knows = np.array(levels["share"]).reshape(4, 50, 3)[1]
    assert (knows == [0.0, 1.0, 0.0]).all()
    assert found.replications().num_rows == 4 * 6 * 50
    regrets = found.each("regret", "learns")[:, -1]
    line = next(one for one in found.lines(only_last=True) if one.policy == "learns")
    half = 2.570581835636305 * regrets.std(ddof=1) / math.sqrt(6)  # Student's, 5 degrees of freedom
    assert line.regret.high - line.regret.mean == pytest.approx(half)
    for bad in (lambda: found.each("luck", "learns"), lambda: found.levels("colour")):
        with pytest.raises(InvalidInputError):
            bad()
    with pytest.raises(InvalidInputError, match=r"label: no policy 'me'; there are learns, knows"):
        found.each("regret", "me")


def test_one_replication_has_no_intervals():
    one = rollout(spec(), world(), customers=100, replications=1)
    assert all(math.isnan(line.regret.low) for line in one.lines())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no replications": ({"replications": 0}, r"replications: .* got 0"),
    "half a customer": ({"customers": 1.5}, r"customers: must be a whole number"),
    "customers without end": ({"customers": 10**12}, r"customers: .*100,000,000"),
    "more than anybody waits for": (
        {"customers": 10**8, "replications": 10**5},
        r"customers: times replications and policies",
    ),
    "a seed that is none": ({"seed": -1}, "seed: "),
    "falling checkpoints": ({"customers": 10, "checkpoints": (5, 5, 10)}, "checkpoints: must rise"),
    "checkpoints too early": ({"customers": 10, "checkpoints": (5,)}, "checkpoints: must rise"),
    "no policies": ({"policies": ()}, "policies: needs 1 to 32"),
    "no label": ({"policies": (("", PolicySpec()),)}, "policies: needs a label"),
    "a label twice": ({"policies": (("a", PolicySpec()), ("a", PolicySpec()))}, "repeat a label"),
    "a policy of another experiment": (
        {
            "policies": (
                ("a", PolicySpec(kind="fixed", action=ActionName(variant="z", channel="email"))),
            )
        },
        r"policies\['a'\].*no variant 'z'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_says_what_is_wrong(name: str):
    given, message = BAD[name]
    with pytest.raises(InvalidInputError, match=message):
        plan(spec(), world(), **{"customers": 100, **given})


def test_a_world_of_another_experiment_is_refused():
    with pytest.raises(InvalidInputError, match="reward"):
        rollout(spec(), world(reward="bought"), customers=10)


def test_what_is_no_number_never_becomes_a_figure(monkeypatch: pytest.MonkeyPatch):
    of = plan(spec(), world())
    whole = Course.expected

    def broken(self: Course, *given: object) -> np.ndarray:
        values = whole(self, *given)
        values[17, 2] = math.nan
        return values

    monkeypatch.setattr(Course, "expected", broken)
    with pytest.raises(InvalidInputError, match="nan of action 2 for customer 17"):
        task(of, Shard(0, 1))


def test_a_context_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    of = plan(spec(), world())
    whole = Course.arrivals

    def broken(self: Course, start: int, stop: int) -> Arrivals:
        arrivals = whole(self, start, stop)
        arrivals.rows[5, 2] = 7.0
        return arrivals

    monkeypatch.setattr(Course, "arrivals", broken)
    with pytest.raises(InvalidInputError, match=r'\[5\].values\["app"\]'):
        task(of, Shard(0, 1))


def test_kinds_have_short_names():
    of = spec(kind="linucb", confidence=2.0)
    assert named(of, "ucb") is of.policy
    assert named(of, "thompson") == replace(of.policy, kind="thompson_sampling", confidence=1.0)
    assert named(of, "fixed").action == of.baseline
    assert named(of, "fixed:c/push").action == ActionName(variant="c", channel="push")
    for bad in ("bandit", "uniform:a/b", "fixed:a"):
        with pytest.raises(InvalidInputError, match="policy"):
            named(of, bad)
    with pytest.raises(InvalidInputError, match="no baseline"):
        named(replace(of, baseline=None), "fixed")


def test_progress_counts_every_decision():
    told: list[tuple[int, int]] = []
    rollout(spec(), world(), customers=5_000, replications=2, progress=lambda *at: told.append(at))
    assert told[-1] == (2 * 3 * 5_000, 2 * 3 * 5_000)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert AtOnce() == plan(spec(), world()).learning


def test_the_outcome_rule_counts(found: Rollout):
    heavy = OutcomeRule(rewards=(Reward(name="r", weight=2.0, terminal=True),), window=3_600.0)
    twice = rollout(
        replace(found.plan.spec, outcome=heavy), found.plan.world, customers=100, replications=1
    )
    once = rollout(found.plan.spec, found.plan.world, customers=100, replications=1)
    np.testing.assert_allclose(twice.each("value", "uniform"), 2.0 * once.each("value", "uniform"))


def test_the_interval_of_a_lift_holds_the_ratio():
    """The reference earns 0.1 +- 0.02 and the policy three times that: a lift of 200 %.

    1,000 intervals of 20 replications: 95 % +- 4.8 sd (1 in 1e6). What chance gives to both is no
    error of the ratio; the interval of the difference alone is twice as wide here.
    """
    random, of = np.random.default_rng(1), plan(spec(), world(), customers=1, replications=20)
    of = replace(of, policies=(*of.policies, ("other", of.spec.policy)))
    hits, tries = 0, 1_000
    for _ in range(tries):
        theirs = random.normal(0.1, 0.02, 20)
        value = np.array([3.0 * theirs + random.normal(0.0, 0.02, 20), theirs])[:, :, None]
        nothing: Any = np.zeros(value.shape)
        track = Track(np.arange(20), value, *[nothing] * 8)
        one = Rollout(plan=of, track=track).lift(of.labels[0], "other")[0]
        hits += one.low <= 2.0 <= one.high
    assert hits / tries == pytest.approx(0.95, abs=4.8 * math.sqrt(0.05 * 0.95 / tries))


def test_every_replication_has_customers_of_its_own():
    """And the same for every policy: the optimum is that of the customers, not of the policy."""
    best = rollout(spec(), world(), customers=100, replications=5).track.optimum[:, :, -1]
    assert len(set(best[0].tolist())) == best.shape[1] > 1
    np.testing.assert_array_equal(best, np.broadcast_to(best[0], best.shape))


@pytest.mark.parametrize("learning", [AtOnce(), Published(outcomes=20, seconds=86_400.0)])
def test_what_is_not_there_is_nobodys_best(learning: AtOnce | Published):
    """The best variant appears on day 1,000: who plays the better one left regrets nothing."""
    its = World(
        reward="r",
        effects=(Effect(adds=5.0, variant="c"), Effect(adds=1.0, variant="b")),
        availability=(Availability(variant="c", appears=1_000.0),),
    )
    of = replace(spec(), groups=replace(spec().groups, random=0.0))
    policies = {"b": "fixed:b/email"}
    last = next(rollout(of, its, policies, customers=60, learning=learning).lines(only_last=True))
    assert last.regret.mean == 0.0
    assert last.best_share.mean == 1.0


def test_shares_have_the_interval_of_their_replications(found: Rollout):
    of, label = found.plan, found.labels[-2]
    assert label == "uniform"
    shards_of_one = [task(of, Shard(r, r + 1)) for r in range(of.replications)]
    each = [track.counts[of.place(label), 0, 0] for track in shards_of_one]
    size = of.checkpoints[0]
    half = (
        special.stdtrit(len(each) - 1, 0.975) * np.std(each, ddof=1) / math.sqrt(len(each)) / size
    )
    table = found.allocation().to_pylist()
    row = next(one for one in table if one["policy"] == label and one["action"] == 0)
    assert row["share"] == pytest.approx(np.mean(each) / size)
    assert row["share_high"] - row["share"] == pytest.approx(half)


def test_nothing_is_no_best_action():
    """Where all are alike, whoever gets one gets a best one; who gets nothing does not."""
    nothing = np.array([-1, 0, 1])
    tracker = Tracker(np.array([3]), 2)
    tracker.add(stage.Played(nothing, np.zeros(3), np.zeros(3), np.zeros(3)))
    assert (tracker.at["best"][-1], tracker.at["nothing"][-1]) == (2, 1)
