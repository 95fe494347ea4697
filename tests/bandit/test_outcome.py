"""From reward events to the outcome, against the same rule written out in plain Python."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.errors import InvalidInputError
from bandit.outcome import AGGREGATIONS, OutcomeRule, Reward, RewardEvent

CLICK = Reward(name="click")
SPENT = Reward(name="spent", bounds=(0.0, 500.0), weight=0.01)
LEFT = Reward(name="left", weight=-2.0)
NOW = 1_700_000_000_000_000
SECOND = 1_000_000
EVENTS = st.lists(
    st.builds(
        RewardEvent,
        name=st.sampled_from(["click", "spent", "left"]),
        value=st.floats(0, 1),
        occurred_at=st.integers(NOW - 3 * SECOND, NOW + 15 * SECOND),
    ),
    max_size=8,
)


def rule(**parts: object) -> OutcomeRule:
    whole = {"rewards": (CLICK, SPENT, LEFT), "window": 10.0, "early": 1.0}
    return OutcomeRule(**{**whole, **parts})  # type: ignore[arg-type]


def by_hand(aggregation: str, events: list[RewardEvent]) -> float | None:
    inside = [e for e in events if NOW - SECOND <= e.occurred_at <= NOW + 10 * SECOND]
    weights = {"click": 1.0, "spent": 0.01, "left": -2.0}
    values = [weights[e.name] * e.value for e in sorted(inside, key=lambda e: e.occurred_at)]
    how = {"first": lambda v: v[0], "last": lambda v: v[-1], "sum": math.fsum, "mean": fmean}
    return {**how, "max": max, "min": min}[aggregation](values) if values else None


@given(events=EVENTS, aggregation=st.sampled_from(AGGREGATIONS))
def test_every_aggregation_matches_plain_python(events: list[RewardEvent], aggregation: str):
    expected = by_hand(aggregation, events)
    silent = rule(aggregation=aggregation, silence="ignore").outcome(events, NOW)
    default = rule(aggregation=aggregation, default=7.5).outcome(events, NOW)
    assert silent == (expected if expected is None else pytest.approx(expected))
    assert default == pytest.approx(7.5 if expected is None else expected)


@given(events=EVENTS, aggregation=st.sampled_from(["sum", "max", "min", "mean"]))
def test_the_order_of_arrival_does_not_matter(events: list[RewardEvent], aggregation: str):
    same = rule(aggregation=aggregation)
    assert same.outcome(events, NOW) == same.outcome(events[::-1], NOW)


def test_events_of_one_instant_count_in_log_order():
    two = [RewardEvent("click", 0.25, NOW), RewardEvent("click", 0.75, NOW)]
    assert rule(aggregation="first").outcome(two, NOW) == 0.25
    assert rule(aggregation="last").outcome(two, NOW) == 0.75


@pytest.mark.parametrize(
    ("since", "counts"),
    [
        (0, True),
        (10 * SECOND, True),
        (10 * SECOND + 1, False),
        (-SECOND, True),
        (-SECOND - 1, False),
    ],
)
def test_the_window_and_the_early_tolerance_end_to_the_microsecond(since: int, *, counts: bool):
    event = RewardEvent("click", 1.0, NOW + since)
    assert rule().counts(event, NOW) is counts
    assert rule().outcome([event], NOW) == (1.0 if counts else 0.0)


def test_silence_is_the_default_or_nothing():
    assert rule(silence="default", default=0.25).outcome([], NOW) == 0.25
    assert rule(silence="ignore", default=0.25).outcome([], NOW) is None


def test_a_fractional_window_is_rounded_to_microseconds():
    assert rule(window=0.1).window_us == 100_000


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("klick", 1.0, "name"),
        ("click", 1.01, "value"),
        ("click", -0.01, "value"),
        ("click", math.nan, "value"),
        ("spent", math.inf, "value"),
    ],
)
def test_an_event_out_of_bounds_is_refused(name: str, value: float, field: str):
    with pytest.raises(InvalidInputError) as caught:
        rule().check(name, value)
    assert caught.value.field == field


def test_an_event_within_bounds_is_accepted():
    rule().check("spent", 0.0)
    rule().check("spent", 500.0)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"rewards": ()}, "rewards"),
        ({"rewards": (CLICK, CLICK)}, "rewards"),
        ({"rewards": tuple(Reward(name=str(i)) for i in range(65))}, "rewards"),
        ({"window": 0}, "window"),
        ({"window": math.nan}, "window"),
        ({"window": 367 * 86_400}, "window"),
        ({"early": -1}, "early"),
        ({"early": 86_401}, "early"),
        ({"silence": "wait"}, "silence"),
        ({"default": math.nan}, "default"),
        ({"default": 1e13}, "default"),
        ({"aggregation": "median"}, "aggregation"),
    ],
)
def test_a_rule_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        rule(**parts)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"name": ""}, "name"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
        ({"bounds": (0.0, math.inf)}, "bounds"),
        ({"bounds": (math.nan, 1.0)}, "bounds"),
        ({"weight": math.nan}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"weight": 1e9, "bounds": (0.0, 1e9)}, "weight"),
    ],
)
def test_a_reward_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        Reward(**{"name": "r", **parts})  # type: ignore[arg-type]
    assert caught.value.field == field


# --- exposure and lateness --------------------------------------------------------------


def test_a_late_event_corrects_where_that_is_declared():
    refund = RewardEvent("left", 1.0, NOW + 11 * SECOND)
    told = [RewardEvent("click", 1.0, NOW + SECOND), refund]
    assert rule().outcome(told, NOW) == 1.0
    assert rule(late="correct").outcome(told, NOW) == -1.0
    assert rule(late="correct", late_window=1.0).outcome(told, NOW) == -1.0
    assert rule(late="correct", late_window=0.5).outcome(told, NOW) == 1.0


def test_an_event_before_the_window_never_counts():
    early = RewardEvent("click", 1.0, NOW - SECOND - 1)
    assert rule(late="correct", silence="ignore").outcome([early], NOW) is None


def test_the_window_runs_from_where_it_begins():
    exposed = NOW + 8 * SECOND
    told = [RewardEvent("click", 1.0, NOW + 15 * SECOND), RewardEvent("click", 0.5, NOW)]
    assert rule(exposure="confirmed").outcome(told, exposed) == 1.0


@given(at=st.integers(NOW - 30 * SECOND, NOW + 60 * SECOND), exposed=st.integers(-1, 20))
def test_whatever_may_count_is_kept_for_the_exposure_to_come(at: int, exposed: int):
    """No event that counts after its exposure was called late before it."""
    confirmed = rule(exposure="confirmed", exposure_window=20.0)
    start = NOW + exposed * SECOND
    assert confirmed.is_exposure(start, NOW)
    event = RewardEvent("click", 1.0, at)
    assert confirmed.may_count(event, NOW) or not confirmed.counts(event, start)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"exposure": "seen"}, "exposure"),
        ({"exposure_window": 5.0}, "exposure_window"),
        ({"exposure": "confirmed", "exposure_window": 0.0}, "exposure_window"),
        ({"exposure": "confirmed", "exposure_window": math.nan}, "exposure_window"),
        ({"late": "drop"}, "late"),
        ({"late_window": 5.0}, "late_window"),
        ({"late": "correct", "late_window": -1.0}, "late_window"),
        ({"late": "correct", "late_window": math.inf}, "late_window"),
    ],
)
def test_what_does_not_fit_together_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        rule(**parts)
    assert caught.value.field == field
