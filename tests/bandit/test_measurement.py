"""Intervals of groups against NumPy, and a sample-ratio check that sees a broken split."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.decision import Group
from bandit.groups import Groups
from bandit.measurement import Lift, Sample, lift, sample_ratio_p_value

OUTCOMES = st.lists(st.integers(-1_000, 1_000).map(lambda v: v / 10), min_size=2, max_size=50)


def sample(outcomes: list[float]) -> Sample:
    values = np.array(outcomes)
    return Sample.of(values.tolist())


@given(outcomes=OUTCOMES)
def test_a_sample_has_the_mean_and_standard_error_of_its_outcomes(outcomes: list[float]):
    found = sample(outcomes)
    error = np.std(outcomes, ddof=1) / np.sqrt(len(outcomes))
    assert found.mean == pytest.approx(np.mean(outcomes), abs=1e-9)
    assert math.sqrt(found.variance) == pytest.approx(error, abs=1e-5)
    expected = np.mean(outcomes) + np.array([-1.959964, 1.959964]) * error
    np.testing.assert_allclose(found.interval, expected, atol=1e-4)


@pytest.mark.parametrize("found", [Sample.of([]), Sample.of([3.0])])
def test_too_few_outcomes_have_no_interval(found: Sample):
    assert all(math.isnan(end) for end in found.interval)
    assert math.isnan(lift(found, sample([1.0, 2.0])).low)


@given(one=OUTCOMES, two=OUTCOMES)
def test_the_difference_has_welchs_interval(one: list[float], two: list[float]):
    found = lift(sample(one), sample(two))
    error = math.hypot(*(np.std(o, ddof=1) / np.sqrt(len(o)) for o in (one, two)))
    assert found.difference == pytest.approx(np.mean(one) - np.mean(two), abs=1e-9)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, abs=1e-4)


@given(one=OUTCOMES, two=OUTCOMES)
def test_a_lift_turned_round_is_its_mirror(one: list[float], two: list[float]):
    there, back = lift(sample(one), sample(two)), lift(sample(two), sample(one))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert math.isnan(there.relative) == math.isnan(back.relative)
    if not math.isnan(there.relative):
        assert (1 + there.relative) * (1 + back.relative) == pytest.approx(1)
        assert (1 + there.relative_low) * (1 + back.relative_high) == pytest.approx(1)


def test_the_relative_lift_of_two_click_rates():
    """Delta method by hand: the log ratio's variance is (1-p)/(n p) of each, summed."""
    found = lift(Sample.of([1.0] * 1_200 + [0.0] * 8_800), Sample.of([1.0] * 1_000 + [0.0] * 9_000))
    half = 1.959964 * math.sqrt(0.88 / 1_200 + 0.90 / 1_000)
    expected = [math.exp(math.log(1.2) + side * half) - 1 for side in (0, -1, 1)]
    np.testing.assert_allclose(found[3:], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "against", [Sample.of([0.0] * 50), sample([-1.0, 1.0]), sample([-2.0, -1.9])]
)
def test_nothing_is_relative_to_a_mean_that_may_not_be_positive(against: Sample):
    found = lift(sample([1.0, 1.1, 1.2]), against)
    assert isinstance(found, Lift)
    assert all(math.isnan(part) for part in found[3:])
    assert not math.isnan(found.low)


HALF = Groups(random=0.25, baseline=0.25)
RIGHT = {Group.BANDIT: 5_000, Group.RANDOM: 2_500, Group.BASELINE: 2_500}


@pytest.mark.parametrize(
    ("customers", "low", "high"),
    [
        (RIGHT, 0.999, 1.0),
        ({**RIGHT, Group.RANDOM: 2_560}, 0.1, 0.9),
        ({**RIGHT, Group.RANDOM: 2_900}, 0.0, 1e-6),
        ({**RIGHT, Group.NO_CONTACT: 1}, 0.0, 0.0),
        ({Group.BANDIT: 5_000, Group.RANDOM: 5_000}, 0.0, 1e-9),
    ],
)
def test_a_split_is_as_likely_as_its_chi_square(
    customers: dict[Group, int], low: float, high: float
):
    assert low <= sample_ratio_p_value(customers, HALF) <= high


def test_without_customers_or_a_split_there_is_nothing_to_test():
    assert math.isnan(sample_ratio_p_value({}, HALF))
    assert sample_ratio_p_value({Group.BANDIT: 7}, Groups(random=0.0)) == 1.0


def test_intervals_hold_when_customers_resemble_themselves():
    """A/A with 300 customers of 20 decisions: by decision, 30 % of intervals would miss 0.

    2,000 comparisons; a share of misses outside [.035, .07] has a chance below 1e-4.
    """
    random = np.random.default_rng(7)

    def group() -> Sample:
        own = random.binomial(20, random.beta(1, 9, 300)).astype(float)
        mean = own.sum() / 6_000
        return Sample(6_000, float(own.sum()), 300, float(((own - 20 * mean) ** 2).sum()))

    found = [lift(group(), group()) for _ in range(2_000)]
    misses = np.mean([not line.low <= 0.0 <= line.high for line in found])
    assert 0.035 < misses < 0.07
