"""Courses: the same for everybody however they are split, and what is expected is what comes.

Stochastic tests fix their seed; each says how often it would fail with another one.
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bandit import spec_file
from bandit.actions import Exclusion
from bandit.errors import InvalidInputError, NotFoundError
from bandit.features import Encoder
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims import worlds
from sims.worlds import (
    Availability,
    Course,
    Delay,
    Effect,
    Fatigue,
    Generated,
    Traffic,
    Trait,
    Unsubscribes,
    World,
)

DAY = 86_400.0
MONDAY = 1_767_571_200.0  # 2026-01-05, 00:00 UTC


def experiment(**outcome: object) -> ExperimentSpec:
    rule = {
        "window": 3_600,
        "aggregation": "first",
        "rewards": [{"name": "click", "terminal": True}],
        **outcome,
    }
    return spec_file.from_data(
        {
            "name": "small",
            "actions": {
                "variants": ["a", "b"],
                "channels": ["email", "push"],
                "slots": [{"name": "now"}, {"name": "late", "time": "21:00"}],
            },
            "context": [
                {"name": "age", "kind": "number", "bounds": [18, 80]},
                {"name": "segment", "kind": "category", "levels": ["new", "old"]},
                {"name": "hour", "kind": "cyclic", "period": 24},
            ],
            "outcome": rule,
        }
    )


SPEC = experiment()
WORLD = World(
    reward="click",
    base=-1.0,
    traits=(
        Trait(field="age", low=18, high=80, missing=0.1, each_visit=True),
        Trait(field="segment", levels={"new": 1, "old": 3}),
        Trait(field="hour", clock="hour"),
    ),
    effects=(
        Effect(adds=0.7, variant="a", slope="age"),
        Effect(adds=0.9, channel="push", hours=(18, 6)),
        Effect(adds=-0.5, weekdays=("sat", "sun")),
        Effect(adds=0.0, variant="b", walk=0.5),
    ),
    traffic=Traffic(per_hour=60, hours=tuple(range(24)), weekdays=(5, 5, 5, 5, 5, 1, 0)),
)
LINEAR = replace(WORLD, response="linear", noise=0.7, base=2.0)
PRESETS = {name: worlds.preset(name) for name in worlds.names()}
REQUIRED = {
    "stationary", "rare-click", "drift", "delay", "cold-start", "many-actions", "fatigue", "wheel",
}  # fmt: skip


def test_the_common_questions_have_a_world():
    assert set(PRESETS) >= REQUIRED
    assert PRESETS["many-actions"].spec.actions.size == 2_400
    with pytest.raises(NotFoundError, match="stationary"):
        worlds.preset("flat-earth")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_something_to_find(name: str):
    """The optimum beats the best constant action, and that beats chance."""
    _, spec, world = PRESETS[name]
    assert spec.name == name
    assert spec.description.endswith(("?", "."))
    course = Course(world, spec, seed=1)
    arrivals = course.arrivals(0, 2_000)
    spec.schema.check_rows(arrivals.rows)
    expected = course.expected(arrivals, 0, course.history())
    assert expected.shape == (2_000, spec.actions.size)
    eligible = course.eligible(arrivals)
    optimum = course.optimum(arrivals, expected)
    np.testing.assert_array_equal(optimum, np.where(eligible, expected, -np.inf).max(axis=1))
    constant = expected.mean(axis=0)[eligible.all(axis=0)]
    assert optimum.mean() > 1.04 * constant.max() > constant.mean()


# --- the same for everybody ---------------------------------------------------------------


@pytest.mark.parametrize("name", [*PRESETS, "walk"])
@given(cuts=st.lists(st.integers(0, 60), max_size=5), start=st.sampled_from([0, 17, 4_080, 8_190]))
@settings(max_examples=8)
@example(cuts=list(range(60)), start=4_080)
def test_any_split_gives_the_same_bits(name: str, cuts: list[int], start: int):
    spec, world = (SPEC, WORLD) if name == "walk" else PRESETS[name][1:]
    whole = Course(world, spec, seed=5, replication=2)
    parts = Course(world, spec, seed=5, replication=2)
    arrivals = whole.arrivals(start, start + 60)
    expected = whole.expected(arrivals, start, whole.history())
    actions = np.arange(60) % spec.actions.size - (np.arange(60) % 7 == 0)
    responses = whole.respond(arrivals, start, actions, expected)
    ends = [0, *sorted(cuts), 60]
    for a, b in reversed(list(pairwise(ends))):
        some = parts.arrivals(start + a, start + b)
        for mine, all_ in zip(some[:3], arrivals[:3], strict=True):
            np.testing.assert_array_equal(mine, all_[a:b])
        assert list(some.exclusions) == list(arrivals.exclusions[a:b])
        means = parts.expected(some, start + a, parts.history())
        np.testing.assert_array_equal(means, expected[a:b])
        got = parts.respond(some, start + a, actions[a:b], means)
        for mine, all_ in zip(got, responses, strict=True):
            np.testing.assert_array_equal(mine, all_[a:b])


def test_seed_and_replication_make_another_course():
    def first(**key: int) -> Floats:
        return Course(WORLD, SPEC, **key).arrivals(0, 5).rows[:, 0]

    same, again = first(seed=1), first(seed=1, replication=0)
    np.testing.assert_array_equal(same, again)
    others = [first(seed=2), first(seed=1, replication=1), first(seed=0, replication=1)]
    assert len({row.tobytes() for row in [same, *others]}) == 4


@pytest.mark.parametrize("world", [WORLD, LINEAR])
def test_chance_is_the_same_for_every_policy(world: World):
    """Where two policies choose alike they see the same, and a better action is never worse."""
    course = Course(world, SPEC, seed=3)
    arrivals = course.arrivals(0, 3_000)
    expected = course.expected(arrivals, 0, course.history())
    one, other = np.zeros(3_000, dtype=np.int64), np.arange(3_000) % 8
    a = course.respond(arrivals, 0, one, expected)
    b = course.respond(arrivals, 0, other, expected)
    np.testing.assert_array_equal(a.rewards[other == 0], b.rewards[other == 0])
    rows = np.arange(3_000)
    better = expected[rows, other] >= expected[rows, one]
    assert (b.rewards[better] >= a.rewards[better]).all()
    assert (b.rewards[~better] <= a.rewards[~better]).all()
    assert (a.rewards != b.rewards).any()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3)])
def test_visits_have_numbers(start: int, stop: int):
    with pytest.raises(InvalidInputError):
        Course(WORLD, SPEC).arrivals(start, stop)


# --- what is expected is what comes -------------------------------------------------------


LEAVING = replace(
    WORLD,
    unsubscribes=Unsubscribes(share=0.05, channels={"push": 0.2}, reward="left"),
    traffic=Traffic(customers=1_000_000),
)
TOLD = experiment(aggregation="sum", rewards=[{"name": "click"}, {"name": "left", "weight": -2.0}])
WORLDS: dict[str, tuple[World, ExperimentSpec]] = {
    "logistic": (WORLD, SPEC),
    "linear": (LINEAR, SPEC),
    "weighted": (WORLD, experiment(rewards=[{"name": "click", "weight": 2.5}], default=0.5)),
    "late": (replace(WORLD, delay=Delay(mean=3_600)), SPEC),
    "late value": (
        replace(LINEAR, delay=Delay(mean=7_200, kind="lognormal", spread=1.0)),
        experiment(default=-1.0, rewards=[{"name": "click", "bounds": [-9, 9], "weight": 3}]),
    ),
    "ignored silence": (
        replace(WORLD, delay=Delay(mean=3_600)),
        experiment(silence="ignore"),
    ),
    "missing": (replace(WORLD, missing=0.4), SPEC),
    "bots": (replace(WORLD, bots=0.3), SPEC),
    "bots of value": (replace(LINEAR, bots=0.3), SPEC),
    "leaving": (LEAVING, TOLD),
    "leaving bots": (replace(LEAVING, bots=0.5), TOLD),
    "wheel": PRESETS["wheel"][:0:-1],
    "delay": PRESETS["delay"][:0:-1],
}


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_expected_is_the_mean_of_what_comes(name: str):
    """40,000 visits, five standard errors in each of four groups: 2e-6 to fail; seed fixed."""
    world, spec = WORLDS[name]
    course = Course(world, spec, seed=11)
    n = 40_000
    arrivals = course.arrivals(0, n)
    expected = course.expected(arrivals, 0, course.history())
    actions = np.arange(n) % (spec.actions.size + 1) - 1
    rewards = course.respond(arrivals, 0, actions, expected).rewards
    of_action = expected[np.arange(n), actions]
    meant = np.where(actions < 0, course.without_message, of_action)
    for group in (actions < 0, actions == 0, actions == 1, actions >= 0):
        heard = group & ~np.isnan(rewards)
        errors = rewards[heard] - meant[heard]
        assert abs(errors.mean()) <= 5 * errors.std() / math.sqrt(heard.sum()) + 1e-12
    assert name == "wheel" or np.nanstd(rewards[actions >= 0]) > 0


def test_nothing_sent_pays_the_declared_base():
    """20,000 visits, five standard deviations: 6e-7 to fail; seed fixed."""
    course = Course(replace(WORLD, without_message=0.2), SPEC, seed=2)
    arrivals = course.arrivals(0, 20_000)
    expected = course.expected(arrivals, 0, course.history())
    rewards = course.respond(arrivals, 0, np.full(20_000, -1), expected).rewards
    assert course.without_message == pytest.approx(0.2)
    assert abs(rewards.mean() - 0.2) < 5 * math.sqrt(0.16 / 20_000)


@pytest.mark.parametrize(("world", "spec"), [(WORLD, SPEC), (LEAVING, TOLD)])
def test_bots_click_everything(world: World, spec: ExperimentSpec):
    """20,000 visits, five standard deviations: 6e-7 to fail; seed fixed."""
    course = Course(replace(world, base=-30.0, effects=(), bots=0.25), spec, seed=2)
    arrivals = course.arrivals(0, 20_000)
    expected = course.expected(arrivals, 0, course.history())
    bots = (expected == 1.0).all(axis=1)
    assert abs(bots.mean() - 0.25) < 5 * math.sqrt(0.1875 / 20_000)
    responses = course.respond(arrivals, 0, np.zeros(20_000, dtype=np.int64), expected)
    lost = -2.0 * responses.unsubscribed
    np.testing.assert_array_equal(responses.rewards, np.where(bots, 1.0, lost))


# --- when ---------------------------------------------------------------------------------


def test_visits_come_when_the_profile_says():
    """Six weeks of about 10,000 visits each: five standard deviations of a count; seed fixed."""
    course = Course(WORLD, SPEC, seed=4)
    times = course.arrivals(0, 60_480).times
    assert (np.diff(times) >= 0).all()
    assert times[0] >= MONDAY
    weekly = (times < MONDAY + 35 * DAY).sum() / 5
    assert abs(weekly - 10_080) < 5 * math.sqrt(10_080 / 5)
    hour, weekday = (times % DAY) // 3_600, ((times - MONDAY) % (7 * DAY)) // DAY
    hours = np.bincount(hour.astype(int), minlength=24)
    assert hours[0] == 0
    wanted = len(times) * np.arange(24) / 276
    assert (np.abs(hours - wanted)[1:] < 5 * np.sqrt(wanted[1:])).all()
    days = np.bincount(weekday.astype(int), minlength=7)
    assert days[6] == 0
    assert days[5] / days[0] == pytest.approx(0.2, rel=0.15)
    np.testing.assert_allclose(course.arrivals(0, 500).rows[:, 2], (times[:500] % DAY) / 3_600)


def test_even_visits():
    world = replace(WORLD, traffic=Traffic(per_hour=60, spacing="even"))
    times = Course(world, SPEC).arrivals(5, 10_000).times
    np.testing.assert_allclose(times - MONDAY, 60.0 * np.arange(5, 10_000), rtol=0, atol=1e-3)


@given(spread=st.sampled_from([None, 0.5]), seed=st.integers(0, 5))
@settings(max_examples=8)
def test_feedback_comes_late(spread: float | None, seed: int):
    """5,000 delays: five standard errors of their mean, 6e-7 to fail."""
    kind = "exponential" if spread is None else "lognormal"
    delay = Delay(mean=600.0, kind=kind, spread=spread)
    world = replace(WORLD, delay=delay, base=50.0)
    course = Course(world, experiment(window=30_000), seed=seed)
    arrivals = course.arrivals(0, 5_000)
    expected = course.expected(arrivals, 0, course.history())
    responses = course.respond(arrivals, 0, np.zeros(5_000, dtype=np.int64), expected)
    waits = responses.due - arrivals.times
    assert waits.min() > 0
    sd = 600.0 if spread is None else 600.0 * math.sqrt(math.expm1(spread**2))
    assert abs(waits.mean() - 600.0) < 5 * sd / math.sqrt(5_000)


def test_when_an_outcome_is_known():
    """A terminal event closes it; silence, and what comes too late, wait for the window's end."""
    world = replace(WORLD, delay=Delay(mean=3_600.0), base=0.0, effects=())
    course = Course(world, SPEC, seed=1)
    arrivals = course.arrivals(0, 5_000)
    expected = course.expected(arrivals, 0, course.history())
    zeros = np.zeros(5_000, dtype=np.int64)
    responses = course.respond(arrivals, 0, zeros, expected)
    events = course.events(arrivals, 0, zeros, expected)
    in_time = ~np.isnan(events.values) & (events.times <= arrivals.times + 3_600)
    np.testing.assert_array_equal(responses.rewards, in_time.astype(float))
    np.testing.assert_allclose(responses.due[in_time], events.times[in_time])
    np.testing.assert_allclose(responses.due[~in_time], arrivals.times[~in_time] + 3_600)
    assert in_time.sum() < (~np.isnan(events.values)).sum()
    at_once = Course(replace(world, delay=None), SPEC, seed=1)
    at_once.arrivals(0, 1)
    np.testing.assert_array_equal(at_once.respond(arrivals, 0, zeros, expected).due, arrivals.times)


def test_missing_feedback_never_arrives():
    """20,000 visits, five standard deviations: 6e-7 to fail; seed fixed."""
    course = Course(replace(WORLD, missing=0.1), SPEC, seed=1)
    arrivals = course.arrivals(0, 20_000)
    expected = course.expected(arrivals, 0, course.history())
    rewards, due, _ = course.respond(arrivals, 0, np.zeros(20_000, dtype=np.int64), expected)
    assert abs(np.isnan(rewards).mean() - 0.1) < 5 * math.sqrt(0.09 / 20_000)
    np.testing.assert_array_equal(np.isnan(rewards), np.isinf(due))


# --- what changes -------------------------------------------------------------------------


def log_odds(effect: Effect, times: Floats, **key: int) -> Floats:
    """Give what one effect adds at some times."""
    world = World(reward="click", effects=(effect,), traits=WORLD.traits)
    course = Course(world, SPEC, **key)
    arrivals = course.arrivals(0, len(times))._replace(times=times)
    p = course.expected(arrivals, 0, course.history())[:, 0]
    return np.log(p / (1 - p))


def test_a_shock_begins_and_ends_at_its_time():
    times = MONDAY + DAY * np.array([0.0, 1.999, 2.0, 3.5, 4.999, 5.0, 9.0])
    added = log_odds(Effect(adds=1.5, begins=2, ends=5), times)
    np.testing.assert_allclose(added, [0, 0, 1.5, 1.5, 1.5, 0, 0], atol=1e-9)


def test_an_effect_changes_by_the_day():
    times = MONDAY + DAY * np.array([0.0, 1.0, 2.5])
    added = log_odds(Effect(adds=0.3, per_day=-0.2), times)
    np.testing.assert_allclose(added, [0.3, 0.1, -0.2], atol=1e-7)


def test_an_effect_has_hours_and_weekdays():
    times = MONDAY + 3_600.0 * np.array([5.9, 6.0, 17.9, 18.0, 23.9, 24 + 3.0])
    added = log_odds(Effect(adds=1.0, hours=(18, 6)), times)
    np.testing.assert_allclose(added, [1, 0, 0, 1, 1, 1], atol=1e-9)
    days = MONDAY + DAY * np.array([0.5, 5.0, 6.99, 7.0])
    added = log_odds(Effect(adds=1.0, weekdays=("sat", "sun")), days)
    np.testing.assert_allclose(added, [0, 1, 1, 0], atol=1e-9)


def test_a_walk_spreads_with_the_root_of_time():
    """400 walks: each variance within five of its standard errors, 3e-6 to fail; seed fixed."""
    times = MONDAY + DAY * np.array([0.0, 1.0, 4.0, 60.0])
    effect = Effect(adds=0.5, walk=0.3)
    walks = np.array([log_odds(effect, times, replication=r) for r in range(400)])
    np.testing.assert_allclose(walks[:, 0], 0.5, atol=1e-9)
    for column, days in ((1, 1.0), (2, 4.0), (3, 60.0)):
        wanted = 0.09 * days
        assert abs(walks[:, column].var() - wanted) < 5 * wanted * math.sqrt(2 / 400)
    steps = np.corrcoef(walks[:, 1], walks[:, 2] - walks[:, 1])[0, 1]
    assert abs(steps) < 5 / math.sqrt(400)


def test_levels_appear_and_retire():
    world = replace(
        WORLD,
        traffic=Traffic(per_hour=10, spacing="even"),
        availability=(Availability(variant="b", appears=2), Availability(slot="late", retires=4)),
    )
    course = Course(world, SPEC)
    arrivals = course.arrivals(0, 6 * 240)
    days = (arrivals.times - MONDAY) / DAY
    names = [tuple(level.name for level in SPEC.actions.levels(a)) for a in range(8)]
    wanted = np.array(
        [[(v != "b" or d >= 2) and (s != "late" or d < 4) for v, _, s in names] for d in days]
    )
    np.testing.assert_array_equal(course.eligible(arrivals), wanted)
    for i in range(0, len(days), 37):
        np.testing.assert_array_equal(SPEC.actions.eligible(arrivals.exclusions[i]), wanted[i])
    assert arrivals.exclusions[0] == (Exclusion(variant="b", reason="not there yet"),)
    assert arrivals.exclusions[-1] == (Exclusion(slot="late", reason="no longer there"),)
    expected = course.expected(arrivals, 0, course.history())
    best = np.where(wanted, expected, -1).max(axis=1)
    np.testing.assert_array_equal(course.optimum(arrivals, expected), best)
    assert (best < expected.max(axis=1)).any()


# --- customers who come again -------------------------------------------------------------


TIRED = replace(
    WORLD,
    effects=(),
    traffic=Traffic(per_hour=60, customers=50),
    fatigue=Fatigue(per_message=0.5, half_life=2.0),
    unsubscribes=Unsubscribes(share=0.0, channels={"push": 1.0}),
)


def test_who_comes_again_is_the_same():
    arrivals = Course(TIRED, SPEC, seed=1).arrivals(0, 2_000)
    assert set(arrivals.customers.tolist()) == set(range(50))
    for customer in range(50):
        mine = arrivals.rows[arrivals.customers == customer]
        assert len(set(mine[:, 1].tolist())) == 1  # the segment stays
        assert len(set(mine[:, 0].tolist())) > 1  # the age is drawn at each visit


def test_messages_tire():
    course = Course(TIRED, SPEC, seed=1)
    assert not course.is_memoryless
    history = course.history()
    arrivals = course.arrivals(0, 1)
    who = arrivals.customers

    def odds(days: float) -> float:
        later = arrivals._replace(times=arrivals.times + days * DAY)
        p = course.expected(later, 0, history)[0, 0]
        return math.log(p / (1 - p))

    sent, not_sent = np.array([True]), np.array([False])
    assert odds(0) == pytest.approx(-1.0)
    history.add(who, arrivals.times, not_sent, not_sent)
    assert odds(0) == pytest.approx(-1.0)
    history.add(who, arrivals.times, sent, not_sent)
    assert odds(0) == pytest.approx(-1.5)
    assert odds(2) == pytest.approx(-1.25)
    history.add(who, arrivals.times + 2 * DAY, sent, not_sent)
    assert odds(2) == pytest.approx(-1.75)
    assert odds(4) == pytest.approx(-1.375)
    other = arrivals._replace(customers=(who + 1) % 50)
    assert course.expected(other, 0, history)[0, 0] == pytest.approx(1 / (1 + math.e))


def test_after_unsubscribing_nothing_pays():
    course = Course(TIRED, SPEC, seed=1)
    history = course.history()
    push = SPEC.actions.index("a", "push", "now")
    arrivals = course.arrivals(0, 400)
    left = np.zeros(50, dtype=bool)
    for run in course.runs(arrivals):
        some = worlds.Arrivals(*(part[run] for part in arrivals))
        assert len(set(some.customers.tolist())) == len(some.customers)
        expected = course.expected(some, run.start, history)
        gone = left[some.customers]
        np.testing.assert_array_equal(expected[gone], 0.0)
        assert (expected[~gone] > 0).all()
        actions = np.where(some.customers < 25, push, 0)
        responses = course.respond(some, run.start, actions, expected)
        np.testing.assert_array_equal(responses.unsubscribed, (some.customers < 25) & ~gone)
        assert not responses.rewards[gone].any()
        history.add(some.customers, some.times, actions >= 0, responses.unsubscribed)
        left[some.customers] |= responses.unsubscribed
    assert left.sum() == 25


def test_who_expects_nothing_has_not_left():
    """A linear world without base or effects: values are noise, and a message makes half leave."""
    rules = {"name": "r", "bounds": [-50, 50]}
    spec = spec_file.from_data(
        {
            "name": "noise",
            "actions": {"variants": ["a", "b"], "channels": ["email"]},
            "outcome": {"window": 3_600, "rewards": [rules]},
        }
    )
    traffic, rule = worlds.Traffic(customers=10_000_000), worlds.Unsubscribes(share=0.5)
    world = World(reward="r", response="linear", noise=1.0, unsubscribes=rule, traffic=traffic)
    course = Course(world, spec)
    arrivals, history = course.arrivals(0, 400), course.history()
    expected = course.expected(arrivals, 0, history)
    assert expected.max() < 1e-300
    said = course.respond(arrivals, 0, np.zeros(400, dtype=np.int64), expected)
    assert 0.8 < said.rewards.std() < 1.2
    assert 0.35 < said.unsubscribed.mean() < 0.65
    history.add(arrivals.customers, arrivals.times, np.ones(400, dtype=bool), said.unsubscribed)
    later = course.respond(
        arrivals, 0, said.unsubscribed * 0, course.expected(arrivals, 0, history)
    )
    assert not later.rewards[said.unsubscribed].any()
    assert later.rewards[~said.unsubscribed].all()


def test_who_leaves_does_so_with_the_declared_probability():
    """20,000 visits: shares and the correlation with clicks within five standard errors."""
    course = Course(LEAVING, TOLD, seed=3)
    n = 20_000
    arrivals = course.arrivals(0, n)
    expected = course.expected(arrivals, 0, course.history())
    for channel, share in (("email", 0.05), ("push", 0.2)):
        actions = np.full(n, TOLD.actions.index("a", channel, "now"))
        events = course.events(arrivals, 0, actions, expected)
        left = events.unsubscribed
        assert abs(left.mean() - share) < 5 * math.sqrt(share * (1 - share) / n)
        clicks = ~np.isnan(events.values)
        assert abs(np.corrcoef(left, clicks)[0, 1]) < 5 / math.sqrt(n)
    nothing = course.events(arrivals, 0, np.full(n, -1), expected)
    assert not nothing.unsubscribed.any()


# --- random weights -----------------------------------------------------------------------


def generated(**parameters: float) -> Floats:
    """Give the log-odds of 300 visits."""
    world = World(reward="click", generated=Generated(**parameters))
    course = Course(world, SPEC, seed=8)
    p = course.expected(course.arrivals(0, 300), 0, course.history())
    return np.log(p / (1 - p))


def test_generated_weights_are_those_of_the_declared_terms():
    levels = generated(seed=1, levels=1.0)
    assert np.ptp(levels, axis=0).max() < 1e-9  # no context
    table = levels[0].reshape(2, 2, 2)
    assert abs(table[0, 0, 0] - table[1, 0, 0] - table[0, 1, 1] + table[1, 1, 1]) < 1e-9
    pairs = generated(seed=1, pairs=1.0)[0].reshape(2, 2, 2)
    assert abs(pairs[0, 0, 0] - pairs[1, 0, 0] - pairs[0, 1, 0] + pairs[1, 1, 0]) > 1e-3
    assert np.ptp(generated(seed=1, context=0.5), axis=0).min() > 0.1
    np.testing.assert_array_equal(generated(seed=1, levels=1.0), levels)
    assert (generated(seed=2, levels=1.0) != levels).all()
    np.testing.assert_allclose(generated(seed=1, levels=2.0), 2 * levels, atol=1e-7)


def test_generated_weights_have_the_declared_scale():
    """3,000 weights of actions: the variance within five standard errors; seed fixed."""
    spec = PRESETS["many-actions"].spec
    world = World(
        reward="click", response="linear", noise=1.0, generated=Generated(actions=0.5, seed=4)
    )
    course = Course(world, spec)
    drawn = course.expected(course.arrivals(0, 1), 0, course.history())[0]
    assert abs(drawn.var() - 0.25) < 5 * 0.25 * math.sqrt(2 / 2_400)


def test_a_linear_model_is_right_about_a_generated_world():
    """Expected values are linear in the encoder's features, an intercept and weights by action."""
    world = World(
        reward="click",
        response="linear",
        noise=0.1,
        generated=Generated(actions=1.0, action_context=1.0, seed=3),
    )
    course = Course(world, SPEC, seed=8)
    arrivals = course.arrivals(0, 200)
    values = course.expected(arrivals, 0, course.history())
    features = Encoder(SPEC.schema).encode(arrivals.rows)
    fitted, *_ = np.linalg.lstsq(features, values, rcond=None)
    np.testing.assert_allclose(features @ fitted, values, atol=1e-9)


def test_generated_weights_turn():
    world = World(
        reward="click", response="linear", noise=0.1, generated=Generated(actions=1.0, turn=10.0)
    )
    course = Course(world, SPEC)
    arrivals = course.arrivals(0, 4)
    days = arrivals._replace(times=MONDAY + DAY * np.array([0.0, 10.0, 20.0, 40.0]))
    first, turned, opposite, again = course.expected(days, 0, course.history())
    np.testing.assert_allclose(opposite, -first, atol=1e-9)
    np.testing.assert_allclose(again, first, atol=1e-9)
    assert (abs(turned - first) > 1e-3).all()


def test_weights_of_each_replication():
    def first(replication: int, *, anew: bool) -> Floats:
        drawn = Generated(actions=1.0, each_replication=anew)
        world = World(reward="click", generated=drawn)
        course = Course(world, SPEC, replication=replication)
        return course.expected(course.arrivals(0, 1), 0, course.history())[0]

    np.testing.assert_array_equal(first(0, anew=False), first(1, anew=False))
    assert (first(0, anew=True) != first(1, anew=True)).all()


# --- the wheel ----------------------------------------------------------------------------


def test_the_wheel_is_as_published():
    """100,000 visits: shares within five standard deviations, noise within 2 %; seed fixed."""
    _, spec, world = PRESETS["wheel"]
    course = Course(world, spec, seed=6)
    n = 100_000
    arrivals = course.arrivals(0, n)
    x, y = arrivals.rows.T
    radius = np.hypot(x, y)
    assert radius.max() <= 1
    outside = radius > 0.95
    assert abs(outside.mean() - (1 - 0.95**2)) < 5 * math.sqrt(0.09 / n)
    assert abs((x > 0).mean() - 0.5) < 5 * math.sqrt(0.25 / n)
    expected = course.expected(arrivals, 0, course.history())
    assert set(map(tuple, expected[~outside].tolist())) == {(1.0, 1.0, 1.0, 1.0, 1.2)}
    np.testing.assert_array_equal(expected[outside, 4], 1.2)
    best = expected[:, :4].argmax(axis=1)
    np.testing.assert_array_equal(best[outside], (2 * (x < 0) + (y < 0))[outside])
    np.testing.assert_array_equal(expected[outside].max(axis=1), 50.0)
    for action, among, sd in ((4, ~outside, 0.05), (0, outside & (best == 0), 0.01)):
        rewards = course.respond(arrivals, 0, np.full(n, action), expected).rewards
        errors = (rewards - expected[:, action])[among]
        assert errors.std() == pytest.approx(sd, rel=5 / math.sqrt(2 * among.sum()))
