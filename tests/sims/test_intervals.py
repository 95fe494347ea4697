"""Intervals with a formula: oracles, equivariance, batches, and what they refuse."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.ope.estimators import Terms
from sims.ope.intervals import (
    BLOCK,
    Moments,
    clopper_pearson,
    empirical_bernstein,
    student,
)


def mean_of(values: Floats) -> Terms:
    return Terms(np.asarray(values, dtype=float), np.ones(len(values)))


def some_terms(n: int, seed: int) -> Terms:
    rng = np.random.default_rng(seed)
    weights = rng.gamma(2.0, size=n)
    return Terms(weights * rng.normal(1.0, 2.0, n), weights, rng.normal(3.0, 1.0, n))


# --- against other people's numbers -----------------------------------------------------


def test_student_is_the_normal_interval_of_vw_estimators(data_folder: Path):
    """They take the normal quantile where ours is Student's; the standard error is the same."""
    log = np.load(data_folder / "oracles/obp_synthetic_2000.npz")
    told = json.loads((data_folder / "oracles/ope_vw_estimators.json").read_text())
    weights = log["pi_e"][np.arange(2000), log["action"]] / log["pscore"]
    moments = Moments.of(mean_of(weights * log["reward"]))
    half = float(special.ndtri(0.975)) * moments.error
    assert moments.value == pytest.approx(told["ips"], rel=1e-12)
    ends = moments.value - half, moments.value + half
    assert ends == pytest.approx(told["gaussian_interval"], abs=1e-9)
    wider = float(special.stdtrit(1999, 0.975) / special.ndtri(0.975)) * half
    assert student(moments).width == pytest.approx(2 * wider, rel=1e-12)


def test_student_is_scipys():
    values = np.random.default_rng(1).normal(size=30)
    told = stats.t.interval(0.9, 29, values.mean(), stats.sem(values))
    assert student(Moments.of(mean_of(values)), 0.9)[:2] == pytest.approx(told, rel=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 4000)])
def test_clopper_pearson_is_scipys(hits: int, n: int):
    values = np.zeros(n)
    values[:hits] = 1.0
    told = stats.binomtest(hits, n).proportion_ci(0.9, method="exact")
    ours = clopper_pearson(Moments.of(mean_of(values)), level=0.9)
    assert ours[:2] == pytest.approx((told.low, told.high), abs=1e-12)
    scaled = clopper_pearson(Moments.of(mean_of(5.0 * values)), unit=5.0, level=0.9)
    assert scaled[:2] == pytest.approx((5 * told.low, 5 * told.high), abs=1e-11)


def test_empirical_bernstein_by_hand():
    """Theorem 4 of Maurer & Pontil at half of 5 %: ln(2 / .025) = 4.382."""
    values = np.tile([0.0, 1.0], 50)
    half = math.sqrt(2 * (25 / 99) * 4.382026634673881 / 100) + 7 * 4.382026634673881 / (3 * 99)
    ours = empirical_bernstein(Moments.of(mean_of(values)), (0.0, 1.0))
    assert ours[:2] == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_the_delta_method_is_the_influence_of_the_terms():
    terms = some_terms(500, seed=2)
    moments = Moments.of(terms)
    assert moments.value == pytest.approx(terms.value, rel=1e-12)
    assert moments.variance == pytest.approx(np.var(terms.influence, ddof=1), rel=1e-12)


def test_clusters_are_the_ratio_estimator_of_the_reports():
    """A mean by customer equals ``bandit.measurement``."""
    rng = np.random.default_rng(3)
    customers = rng.integers(0, 40, 300)
    values = rng.normal(size=300) + customers % 3
    moments = Moments.of(mean_of(values), customers)
    assert moments.n == len(set(customers.tolist()))
    mean = values.mean()
    deviation = sum(
        (values[customers == c].sum() - mean * (customers == c).sum()) ** 2
        for c in set(customers.tolist())
    )
    told = deviation * moments.n / (moments.n - 1) / 300**2
    assert moments.error**2 == pytest.approx(told, rel=1e-12)


# --- properties -------------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 3 * BLOCK + 17), max_size=6),
    seed=st.integers(0, 9),
)
@settings(max_examples=25)
def test_batches_give_the_same_bits(cuts: list[int], seed: int):
    n = 3 * BLOCK + 17
    terms = some_terms(n, seed)
    edges = sorted({0, *cuts, n})
    parts = Moments()
    for start, stop in itertools.pairwise(edges):
        assert terms.offsets is not None
        parts.add(
            Terms(
                terms.numerators[start:stop],
                terms.denominators[start:stop],
                terms.offsets[start:stop],
            )
        )
    whole = Moments.of(terms)
    assert (parts.value, parts.variance) == (whole.value, whole.variance)
    assert student(parts) == student(whole)


KINDS = {
    "student": lambda m, _, level: student(m, level),
    "bernstein": lambda m, bounds, level: empirical_bernstein(m, bounds, level),
    "clopper_pearson": lambda m, bounds, level: clopper_pearson(m, bounds[1], level),
}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), low=st.floats(0.5, 0.98), more=st.floats(0.001, 0.01))
@settings(max_examples=30)
def test_a_higher_level_is_never_narrower(kind: str, seed: int, low: float, more: float):
    values = (np.random.default_rng(seed).random(50) < 0.4).astype(float)
    moments = Moments.of(mean_of(values))
    narrow, wide = (KINDS[kind](moments, (0.0, 1.0), level) for level in (low, low + more))
    assert wide.low <= narrow.low <= moments.value <= narrow.high <= wide.high
    assert narrow.level == low


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50), scale=st.floats(0.01, 100))
@settings(max_examples=50)
def test_shift_and_scale_move_the_ends_along(seed: int, shift: float, scale: float):
    values = np.random.default_rng(seed).random(40)
    plain, moved = Moments.of(mean_of(values)), Moments.of(mean_of(shift + scale * values))
    bounds = (shift - 0.01 * scale, shift + 1.01 * scale)
    size = 1e-9 * (abs(shift) + scale)
    for ours, told in (
        (student(moved), student(plain)),
        (empirical_bernstein(moved, bounds), empirical_bernstein(plain, (-0.01, 1.01))),
    ):
        expected = [shift + scale * end for end in told[:2]]
        assert ours[:2] == pytest.approx(expected, abs=size)


@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_other_way_round_mirrors_the_ends(seed: int):
    values = np.random.default_rng(seed).beta(0.3, 2.0, 60)
    ours = empirical_bernstein(Moments.of(mean_of(values)), (0.0, 1.0))
    other = empirical_bernstein(Moments.of(mean_of(-values)), (-1.0, 0.0))
    assert other[:2] == pytest.approx((-ours.high, -ours.low), abs=1e-12)


def test_large_offsets_cancel_nothing():
    """A mean of 1e9 with a spread of 1: squares of uncentred values would lose it."""
    values = np.random.default_rng(4).normal(size=20_000)
    plain, moved = Moments.of(mean_of(values)), Moments.of(mean_of(values + 1e9))
    assert moved.error == pytest.approx(plain.error, rel=1e-6)


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_a_level_lies_between_0_and_1(level: float, kind: str):
    with pytest.raises(InvalidInputError, match="level: must lie between 0 and 1"):
        KINDS[kind](Moments.of(mean_of([0.0, 1.0])), (0.0, 1.0), level)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_by_its_row(bad: float):
    moments = Moments()
    moments.add(mean_of(np.zeros(10)))
    with pytest.raises(InvalidInputError, match=r"numerators\[13\]: must be finite"):
        moments.add(mean_of([0.0, 1.0, 2.0, bad]))
    with pytest.raises(InvalidInputError, match=r"denominators\[1\]"):
        Moments.of(Terms(np.zeros(2), np.array([1.0, bad])))


@pytest.mark.parametrize("values", [[], [1.0]])
def test_a_spread_needs_two_rows(values: list[float]):
    for kind in ("student", "bernstein"):
        with pytest.raises(InvalidInputError, match="2 rows"):
            KINDS[kind](Moments.of(mean_of(values)), (0.0, 1.0), 0.95)


@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3])
def test_equal_rows_have_no_students_interval(constant: float):
    moments = Moments.of(mean_of(np.full(1000, constant)))
    with pytest.raises(InvalidInputError, match="their spread is unknown"):
        student(moments)
    ours = empirical_bernstein(moments, (-10.0, 10.0))
    assert ours.low < constant < ours.high


def test_nothing_clicked_is_not_certainty():
    """Rule of three: up to about 3.7 / n at 95 % two-sided."""
    ours = clopper_pearson(Moments.of(mean_of(np.zeros(1000))))
    assert ours.low == 0.0
    assert 0.0036 < ours.high < 0.0038


def test_rows_outside_of_the_declared_range_are_refused():
    moments = Moments.of(mean_of([0.0, 0.5, 1.5]))
    with pytest.raises(InvalidInputError, match=r"bounds: rows lie in \[0.0, 1.5\]"):
        empirical_bernstein(moments, (0.0, 1.0))
    for bounds in ((1.0, 0.0), (0.0, math.inf), (math.nan, 1.0), (1.0, 1.0)):
        with pytest.raises(InvalidInputError, match="bounds"):
            empirical_bernstein(moments, bounds)


def test_exact_intervals_are_for_zeros_and_units():
    with pytest.raises(InvalidInputError, match=r"every row must be 0 or 1.0, one is 0.5"):
        clopper_pearson(Moments.of(mean_of([0.0, 1.0, 0.5])))
    with pytest.raises(InvalidInputError, match="unit: must be positive"):
        clopper_pearson(Moments.of(mean_of([0.0])), unit=0.0)
    with pytest.raises(InvalidInputError, match="no rows"):
        clopper_pearson(Moments())


def test_ratios_are_no_means():
    moments = Moments.of(Terms(np.array([0.0, 1.0]), np.array([1.0, 2.0])))
    for kind in ("bernstein", "clopper_pearson"):
        with pytest.raises(InvalidInputError, match="plain means"):
            KINDS[kind](moments, (0.0, 1.0), 0.95)


def test_no_weight_is_no_number():
    moments = Moments.of(Terms(np.zeros(3), np.zeros(3)))
    with pytest.raises(InvalidInputError, match="no row carries weight"):
        student(moments)
    with pytest.raises(InvalidInputError, match="no row carries weight"):
        _ = Moments().value


def test_columns_and_clusters_have_one_length():
    with pytest.raises(InvalidInputError, match="denominators: has 2 rows, numerators have 3"):
        Moments.of(Terms(np.zeros(3), np.ones(2)))
    with pytest.raises(InvalidInputError, match="clusters: has 2 rows"):
        Moments.of(mean_of(np.zeros(3)), np.zeros(2, dtype=np.int64))
