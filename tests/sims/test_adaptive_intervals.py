"""Intervals for logs of a policy that learned: by hand, by properties, and what they refuse."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.ope.adaptive import (
    WARM_UP,
    ImportanceBernstein,
    ImportanceBetting,
    arm_spreads,
    running_spreads,
    stabilised,
    version_spreads,
)
from sims.ope.estimators import Terms
from sims.ope.intervals import Moments
from sims.ope.sequences import PlugInBernstein


def some_log(n: int, seed: int, floor: float = 0.1) -> tuple[Floats, Floats]:
    """Weights with mean 1, at most 1 / floor, and rewards."""
    rng = np.random.default_rng(seed)
    propensities = rng.uniform(floor, 1.0 - floor, n)
    taken = rng.random(n) < propensities
    rewards = (rng.random(n) < 0.3).astype(float)
    return np.where(taken, 1.0 / propensities, 0.0), rewards


# --- stabilised -------------------------------------------------------------------------


def test_stabilised_by_hand():
    """Weights 1 and 1/2, scores 1 and 4: value 2, squared error (1 + 1) / 1.5**2."""
    found = stabilised(np.array([1.0, 4.0]), np.array([1.0, 2.0]))
    half = float(special.ndtri(0.975)) * math.sqrt(2.0) / 1.5
    assert found[:2] == pytest.approx((2.0 - half, 2.0 + half), rel=1e-12)


def test_equal_spreads_are_the_plain_normal_interval():
    scores = np.random.default_rng(1).gamma(2.0, size=400)
    moments = Moments.of(Terms(scores, np.ones(400)))
    half = float(special.ndtri(0.975)) * moments.error * math.sqrt(399 / 400)
    found = stabilised(scores, np.full(400, 7.0))
    assert found[:2] == pytest.approx((moments.value - half, moments.value + half), rel=1e-12)


@given(
    seed=st.integers(0, 99),
    shift=st.floats(-50, 50),
    scale=st.floats(0.01, 100),
    unit=st.floats(1e-6, 1e6),
)
@settings(max_examples=40)
def test_stabilised_moves_along_and_knows_no_unit(
    seed: int, shift: float, scale: float, unit: float
):
    rng = np.random.default_rng(seed)
    scores, spreads = rng.gamma(2.0, size=60), rng.uniform(0.1, 10.0, 60)
    plain = stabilised(scores, spreads)
    moved = stabilised(shift + scale * scores, unit * spreads)
    expected = [shift + scale * end for end in plain[:2]]
    assert moved[:2] == pytest.approx(expected, abs=1e-8 * (abs(shift) + scale))
    wider = stabilised(scores, spreads, 0.99)
    assert wider.low < plain.low < plain.high < wider.high


def test_weights_by_the_true_spread_are_the_narrowest():
    """The inverse-variance argument, for a score whose spread is 1 / sqrt(e)."""
    rng = np.random.default_rng(2)
    propensities = np.repeat([0.5, 0.02], 4000)
    scores = np.where(rng.random(8000) < propensities, 1.0 / propensities, 0.0) * 0.5
    plain = stabilised(scores, np.ones(8000)).width
    assert stabilised(scores, arm_spreads(propensities)).width < 0.75 * plain


def test_spreads_by_version_are_those_the_version_would_have():
    """Old rows, weighed over, give the spread under a policy that is quite another.

    Rows 0 .. 19,999 are logged with propensity .5, later ones with .05: the spread of
    ``1{a} r / .05`` with r ~ Bernoulli(.3) is 2.43; a relative error of 2 % is six of its own
    standard errors.
    """
    rng = np.random.default_rng(3)
    n, early = 20_500, 20_000
    versions = (np.arange(n) >= early).astype(np.int64)
    own = np.where(versions == 0, 0.5, 0.05)
    taken = rng.random(n) < own
    rewards = (rng.random(n) < 0.3).astype(float)
    propensities = np.where(taken, own, 1.0 - own)
    weights = taken / own
    under = np.stack([np.where(taken, p, 1.0 - p) for p in (0.5, 0.05)])
    spreads = version_spreads(weights * rewards, weights, propensities, versions, under)
    assert np.isinf(spreads[:early]).all()
    assert spreads[early:] == pytest.approx(math.sqrt(0.3 / 0.05 - 0.09), rel=0.02)


def test_a_past_without_success_has_a_spread_all_the_same():
    n = 2 * WARM_UP
    versions = np.repeat([0, 1], WARM_UP)
    half = np.full(n, 0.5)
    spreads = version_spreads(np.zeros(n), np.ones(n), half, versions, np.full((2, n), 0.5))
    assert (spreads[WARM_UP:] > 0.0).all()
    assert np.isfinite(spreads[WARM_UP:]).all()


def test_spreads_never_look_ahead():
    """Changing a row and all after it changes no spread up to and with it."""
    rng = np.random.default_rng(4)
    scores = rng.gamma(2.0, size=600)
    changed = scores.copy()
    changed[400:] = 100.0
    assert running_spreads(scores)[:401].tolist() == running_spreads(changed)[:401].tolist()
    assert running_spreads(scores)[401] != running_spreads(changed)[401]
    assert np.isinf(running_spreads(scores)[:WARM_UP]).all()
    versions = np.arange(600) // 100
    half, under = np.full(600, 0.5), np.full((6, 600), 0.5)
    one, other = (
        version_spreads(s, np.ones(600), half, versions, under) for s in (scores, changed)
    )
    assert one[:500].tolist() == other[:500].tolist()


def test_running_spreads_forget():
    """The spread falls from 10 to 1: after ten half-lives it is that of the newer rows."""
    rng = np.random.default_rng(5)
    scores = np.concatenate([rng.normal(0.0, 10.0, 2000), rng.normal(0.0, 1.0, 2000)])
    spreads = running_spreads(scores, half_life=200.0)
    assert spreads[1999] == pytest.approx(10.0, rel=0.3)
    assert spreads[3999] == pytest.approx(1.0, rel=0.3)


# --- importance sequences ---------------------------------------------------------------

MAKERS: dict[str, Callable[..., Any]] = {
    "bernstein": ImportanceBernstein,
    "betting": ImportanceBetting,
    "bounded": lambda *a, **k: ImportanceBetting(*a, largest_weight=10.0, **k),
}
every_kind = pytest.mark.parametrize("name", MAKERS)


def test_with_weights_of_one_it_is_the_sequence_of_the_rewards():
    """No importance, no difference: the predictions of the mean are cut at 1 and change nothing."""
    rewards = np.random.default_rng(6).random(500)
    plain, weighted = PlugInBernstein(), ImportanceBernstein()
    plain.add(rewards)
    weighted.add(np.ones(500), rewards)
    assert weighted.interval[:2] == pytest.approx(plain.interval[:2], abs=1e-12)


@every_kind
@given(cuts=st.lists(st.integers(0, 900), max_size=5), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_batches_give_the_same_bits(name: str, cuts: list[int], seed: int):
    weights, rewards = some_log(900, seed)
    whole, parts = MAKERS[name](), MAKERS[name]()
    whole.add(weights, rewards)
    for start, stop in itertools.pairwise(sorted({0, *cuts, 900})):
        parts.add(weights[start:stop], rewards[start:stop])
        _ = parts.interval
    assert parts.interval == whole.interval


@every_kind
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
@settings(max_examples=20)
def test_shift_and_scale_of_rewards_move_the_ends_along(
    name: str, seed: int, shift: float, scale: float
):
    """Unlike IPS itself, which shifts by b times the mean weight."""
    weights, rewards = some_log(400, seed)
    plain, moved = MAKERS[name](), MAKERS[name]((shift, shift + scale))
    plain.add(weights, rewards)
    moved.add(weights, np.clip(shift + scale * rewards, shift, shift + scale))
    expected = [shift + scale * end for end in plain.interval[:2]]
    assert moved.interval[:2] == pytest.approx(expected, abs=1e-7 * (abs(shift) + scale))


@every_kind
@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_failures_in_place_of_successes_mirror_the_ends(name: str, seed: int):
    weights, rewards = some_log(400, seed)
    one, other = MAKERS[name](), MAKERS[name]()
    one.add(weights, rewards)
    other.add(weights, 1.0 - rewards)
    expected = (1.0 - one.interval.high, 1.0 - one.interval.low)
    assert other.interval[:2] == pytest.approx(expected, abs=1e-9)


@every_kind
def test_a_higher_level_is_wider(name: str):
    weights, rewards = some_log(3000, seed=7)
    found = []
    for level in (0.8, 0.95, 0.999):
        sequence = MAKERS[name](level=level)
        sequence.add(weights, rewards)
        found.append(sequence.interval)
    assert found[0].width < found[1].width < found[2].width
    assert all(interval.covers(0.3) for interval in found)


def test_a_known_largest_weight_pays_where_clicks_are_rare():
    rng = np.random.default_rng(8)
    weights = 5.0 * (rng.random(20_000) < 0.2)
    rewards = (rng.random(20_000) < 0.01).astype(float)
    widths = []
    for largest in (None, 5.0):
        sequence = ImportanceBetting(largest_weight=largest)
        sequence.add(weights, rewards)
        assert sequence.interval.covers(0.01)
        widths.append(sequence.interval.width)
    assert widths[1] < 0.25 * widths[0]


@every_kind
def test_before_the_first_row_everything_is_possible(name: str):
    assert MAKERS[name]((-1.0, 2.0)).interval[:2] == (-1.0, 2.0)


def test_one_huge_weight_does_not_carry_the_lower_end():
    """A row can at most halve or multiply the wealth by what was bet before it was seen."""
    sequence = ImportanceBetting()
    sequence.add(*some_log(500, seed=9))
    before = sequence.interval
    sequence.add(np.array([1e6]), np.array([0.0]))
    assert sequence.interval.low == pytest.approx(before.low, abs=0.01)


# --- refusals ---------------------------------------------------------------------------


@every_kind
def test_rows_are_checked_and_named(name: str):
    sequence = MAKERS[name]()
    sequence.add(np.ones(3), np.zeros(3))
    one = np.ones(1)
    for weights, rewards, message in (
        (np.array([1.0, -0.5]), np.zeros(2), r"weights\[4\]: must be at least 0, got -0.5"),
        (np.array([math.inf]), one, r"weights\[3\]: must be finite"),
        (one, np.array([math.nan]), r"rewards\[3\]: must be finite"),
        (one, np.array([1.5]), r"rewards\[3\]: 1.5 is outside of the declared range"),
        (np.ones(2), one, "weights: has 2 rows, rewards have 1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            sequence.add(weights, rewards)
    assert sequence.n == 3


def test_a_weight_above_the_largest_is_named():
    sequence = ImportanceBetting(largest_weight=2.0)
    with pytest.raises(InvalidInputError, match=r"weights\[1\]: 2.5 is above the declared"):
        sequence.add(np.array([2.0, 2.5]), np.zeros(2))
    assert sequence.n == 0
    for largest in (0.5, math.inf, math.nan):
        with pytest.raises(InvalidInputError, match="largest_weight: must be finite"):
            ImportanceBetting(largest_weight=largest)


@every_kind
def test_weights_that_do_not_average_1_are_found_out(name: str):
    """Propensities that are half of what they were: no value agrees with both scores."""
    weights, rewards = some_log(20_000, seed=10, floor=0.3)
    sequence = MAKERS[name]()
    sequence.add(2.0 * weights, rewards)
    with pytest.raises(InvalidInputError, match="weights do not average 1"):
        _ = sequence.interval


def test_stabilised_refuses():
    two = np.array([1.0, 2.0])
    for scores, spreads, message in (
        (two, np.array([1.0, 0.0]), r"spreads\[1\]: must be positive, got 0.0"),
        (two, np.array([1.0, math.nan]), r"spreads\[1\]: must be positive"),
        (two, np.ones(3), r"spreads: must have shape \(2,\)"),
        (np.array([1.0, math.nan]), np.ones(2), r"scores\[1\]: must be finite"),
        (two, np.array([1.0, math.inf]), "needs 2 rows that count"),
        (np.zeros(5), np.ones(5), "their spread is unknown"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            stabilised(scores, spreads)


def test_spreads_refuse():
    with pytest.raises(InvalidInputError, match=r"propensities\[1\]: must lie in \(0, 1\]"):
        arm_spreads(np.array([0.5, 0.0]))
    with pytest.raises(InvalidInputError, match="half_life: must be positive"):
        running_spreads(np.zeros(3), half_life=0.0)
    good: dict[str, Any] = {
        "scores": np.zeros(4),
        "weights": np.ones(4),
        "propensities": np.full(4, 0.5),
        "versions": np.array([0, 0, 1, 1]),
        "under": np.full((2, 4), 0.5),
    }
    version_spreads(**good)
    for field, bad in (
        ("weights", np.ones(3)),
        ("propensities", np.array([0.5, 0.0, 0.5, 0.5])),
        ("versions", np.array([0, 1, 0, 1])),
        ("versions", np.array([0, 0, 1, 2])),
        ("under", np.full((2, 3), 0.5)),
        ("under", np.full((2, 4), 1.5)),
    ):
        with pytest.raises(InvalidInputError, match=field):
            version_spreads(**{**good, field: bad})
