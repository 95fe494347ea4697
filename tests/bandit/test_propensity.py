"""Exact propensities: published cases, closed forms, and dense integration."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from bandit.kernels import propensities
from bandit.kernels.compiling import Bools, Floats
from bandit.propensity import MARKS, NODES, beta_table, rank_table

FEW = settings(max_examples=40)


def normal(centre: Floats, spread: Floats, eligible: Bools | None = None) -> Floats:
    everyone = np.ones(len(centre), dtype=np.bool_)
    out = np.full(len(centre), np.nan)
    asked = everyone if eligible is None else eligible
    propensities.normal_propensities(centre, spread, asked, NODES, MARKS, out)
    return out


def beta(successes: Floats, failures: Floats, eligible: Bools | None = None) -> Floats:
    everyone = np.ones(len(successes), dtype=np.bool_)
    out = np.full(len(successes), np.nan)
    table = beta_table(np.asarray(successes, float), np.asarray(failures, float))
    propensities.table_propensities(*table, everyone if eligible is None else eligible, out)
    return out


def pieces(points: Floats, nodes: int) -> tuple[Floats, Floats]:
    """Give Gauss-Legendre nodes and weights on every interval between sorted points."""
    z, w = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * np.diff(points)[:, None]
    return (points[:-1, None] + half * (1.0 + z)).ravel(), (half * w).ravel()


def dense_normal(centre: Floats, spread: Floats) -> Floats:
    """Integrate f_a prod F_i in log space: 30 nodes on every half standard deviation of any arm."""
    cuts = (centre[:, None] + spread[:, None] * np.linspace(-9.5, 9.5, 39)).ravel()
    low = (centre - 9.5 * spread).max()
    t, w = pieces(np.unique(cuts[cuts >= low]), 30)
    z = (t[:, None] - centre) / spread
    log_cdf = special.log_ndtr(z)
    others = log_cdf.sum(axis=1, keepdims=True) - log_cdf
    return w @ (stats.norm.pdf(z) / spread * np.exp(others))


def dense_beta(a: Floats, b: Floats) -> Floats:
    """Integrate over theta with t = sin(theta)**2, between many quantiles of every arm."""
    tails = special.ndtr(np.linspace(-8, 8, 65))[:, None]
    cuts = np.concatenate([special.betaincinv(a, b, tails), 1 - special.betaincinv(b, a, tails)])
    cuts = np.unique(np.clip(np.append(cuts.ravel(), [0.0, 1.0]), 0.0, 1.0))
    theta, w = pieces(np.arcsin(np.sqrt(cuts)), 16)
    sine, cosine = np.sin(theta)[:, None], np.cos(theta)[:, None]
    log_cdf = np.log(np.maximum(special.betainc(a, b, sine**2), 1e-300))
    powers = special.xlogy(2 * a - 1, sine) + special.xlogy(2 * b - 1, cosine)
    others = log_cdf.sum(axis=1, keepdims=True) - log_cdf
    return 2.0 * w @ np.exp(powers - special.betaln(a, b) + others)


# --- normal scores ----------------------------------------------------------------------


@given(
    means=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    scales=st.tuples(st.floats(-4, 0), st.floats(-4, 0)),
)
def test_two_arms_have_a_closed_form(means: tuple[float, float], scales: tuple[float, float]):
    centre, spread = np.array(means), 10.0 ** np.array(scales)
    first = special.ndtr((centre[0] - centre[1]) / np.hypot(*spread))
    np.testing.assert_allclose(normal(centre, spread), [first, 1.0 - first], atol=1e-10)


def test_a_new_arm_against_a_mature_one():
    p = normal(np.array([0.10, 0.11]), np.array([0.05, 0.0005]))
    np.testing.assert_allclose(p, [0.4207, 0.5793], atol=5e-5)


def test_gauss_hermite_would_fall_into_that_trap():
    z, w = np.polynomial.hermite_e.hermegauss(32)
    score = 0.11 + 0.0005 * z
    wrong = (w * special.ndtr((score - 0.10) / 0.05)).sum() / np.sqrt(2 * np.pi)
    assert wrong == pytest.approx(0.5793, abs=5e-5)  # right by its own density ...
    score = 0.10 + 0.05 * z
    wrong = (w * special.ndtr((score - 0.11) / 0.0005)).sum() / np.sqrt(2 * np.pi)
    assert abs(wrong - 0.4207) > 0.01  # ... wrong by the new arm's


@FEW
@given(k=st.integers(1, 30), decades=st.sampled_from([0, 1, 2, 4]), seed=st.integers(0, 10**9))
def test_normal_arms_match_dense_integration(k: int, decades: int, seed: int):
    random = np.random.default_rng(seed)
    spread = 10.0 ** random.uniform(-decades, 0, k)
    centre = random.normal(0, random.choice([0.0, 0.05, 0.5, 2.0]), k)
    np.testing.assert_allclose(normal(centre, spread), dense_normal(centre, spread), atol=1e-9)


def test_the_dense_reference_agrees_with_adaptive_quadrature():
    centre, spread = np.array([0.1, 0.11, 0.3]), np.array([0.5, 0.05, 0.2])

    def density(t: float) -> float:
        return float(
            stats.norm.pdf(t, centre[0], spread[0])
            * np.prod(stats.norm.cdf(t, centre[1:], spread[1:]))
        )

    marks = [*centre, 0.06, 0.16]
    expected, _ = integrate.quad(density, -5, 5, points=marks, epsabs=1e-12, limit=500)
    np.testing.assert_allclose(dense_normal(centre, spread)[0], expected, atol=1e-11)


@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_equal_arms_share_alike(k: int):
    np.testing.assert_allclose(normal(np.full(k, 0.3), np.full(k, 0.01)), 1.0 / k, atol=1e-10)


def dense_thousand(centre: Floats, spread: Floats) -> Floats:
    """Integrate as ``dense_normal`` does, on cuts a tenth of a standard deviation apart."""
    low, high = (centre - 9.5 * spread).max(), (centre + 9.5 * spread).max()
    cuts = (centre[:, None] + spread[:, None] * np.linspace(-9.5, 9.5, 39)).ravel()
    apart, kept = 0.1 * np.repeat(spread, 39), [low]
    for i in np.argsort(cuts):
        if cuts[i] > kept[-1] + apart[i]:
            kept.append(cuts[i])
    t, w = pieces(np.unique([*kept, max(high, kept[-1])]), 12)
    out = np.zeros(len(centre))
    for some in np.array_split(np.arange(len(t)), len(t) // 500 + 1):
        z = (t[some, None] - centre) / spread
        log_cdf = special.log_ndtr(z)
        others = log_cdf.sum(axis=1, keepdims=True) - log_cdf
        out += w[some] @ (stats.norm.pdf(z) / spread * np.exp(others))
    return out


NEW, MATURE = 0.5, 5e-5


@pytest.mark.parametrize(
    "case", ["alike", "all widths", "new among mature", "mature among new", "narrow on top"]
)
def test_a_thousand_arms_match_dense_integration(case: str):
    """Error below 1e-6 with widths up to four decades apart."""
    random, k = np.random.default_rng(1), 1_000
    near, few = random.normal(0.1, 0.01, k), np.arange(k) < 5
    centre, spread = {
        "alike": (np.full(k, 0.3), np.full(k, 0.01)),
        "all widths": (5 * near, 10.0 ** random.uniform(-4, 0, k)),
        "new among mature": (near, np.where(few, NEW, MATURE)),
        "mature among new": (near, np.where(few, MATURE, NEW)),
        "narrow on top": (np.where(few, 2.8, near), np.where(few, 1e-4, 0.9)),
    }[case]
    exact = dense_thousand(centre, spread)
    assert exact.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(normal(centre, spread), exact, rtol=0, atol=1e-6)
    assert np.abs(normal(centre, 1.01 * spread) - exact).max() > 1e-6 or case == "alike"


def test_a_hopeless_arm_gets_nothing_and_spoils_nothing():
    p = normal(np.array([0.0, -1e6, 0.0]), np.array([1.0, 1e-3, 1.0]))
    np.testing.assert_allclose(p, [0.5, 0.0, 0.5], atol=1e-10)


@given(seed=st.integers(0, 10**9), data=st.data())
def test_arms_that_are_not_eligible_do_not_count(seed: int, data: st.DataObject):
    random = np.random.default_rng(seed)
    centre, spread = random.normal(0, 1, 6), 10.0 ** random.uniform(-2, 0, 6)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6).filter(any)))
    p = normal(centre, spread, eligible)
    np.testing.assert_array_equal(p[~eligible], 0.0)
    np.testing.assert_allclose(p[eligible], normal(centre[eligible], spread[eligible]), atol=1e-12)


@given(shift=st.floats(-1e3, 1e3), scale=st.floats(-3, 3), seed=st.integers(0, 10**9))
def test_units_and_origin_do_not_matter(shift: float, scale: float, seed: int):
    random = np.random.default_rng(seed)
    centre, spread = random.normal(0, 1, 5), random.uniform(0.1, 1, 5)
    moved = normal((centre + shift) * 10.0**scale, spread * 10.0**scale)
    np.testing.assert_allclose(moved, normal(centre, spread), atol=1e-9)


# --- Beta scores ------------------------------------------------------------------------


def test_the_example_of_russo_et_al():
    """A Tutorial on Thompson Sampling (2018), section 3: about .82, 0 and .18."""
    p = beta(np.array([601, 401, 2]), np.array([401, 601, 3]))
    np.testing.assert_allclose(p, [0.820, 0.0, 0.180], atol=5e-4)


@pytest.mark.parametrize(("a", "b"), [((1, 1), (1, 1)), ((2, 1), (1, 1)), ((3, 2), (4, 7))])
def test_two_beta_arms_have_a_closed_form(a: tuple[int, int], b: tuple[int, int]):
    """P(first > second) for whole parameters: Evan Miller's sum over the first's successes."""
    i = np.arange(a[0])
    log_terms = (
        special.betaln(a[1] + i, b[0] + b[1])
        - np.log(b[0] + i)
        - special.betaln(1 + i, b[0])
        - special.betaln(a[1], b[1])
    )
    first = np.exp(log_terms).sum()
    np.testing.assert_allclose(beta(np.array(a), np.array(b)), [first, 1 - first], atol=1e-9)


@FEW
@given(
    k=st.integers(1, 12),
    decades=st.sampled_from([0, 1, 3, 5]),
    rate=st.sampled_from([0.02, 0.3, 0.9]),
    seed=st.integers(0, 10**9),
)
def test_beta_arms_match_dense_integration(k: int, decades: int, rate: float, seed: int):
    random = np.random.default_rng(seed)
    trials, rates = 10.0 ** random.uniform(0, decades, k), random.beta(20 * rate, 20 - 20 * rate, k)
    a, b = np.maximum(trials * rates, 0.5), np.maximum(trials * (1.0 - rates), 0.5)
    np.testing.assert_allclose(beta(a, b), dense_beta(a, b), atol=1e-6)


def test_many_beta_arms_still_add_up_to_one():
    random = np.random.default_rng(1)
    p = beta(1 + random.gamma(2, 2, 200), 20 + random.gamma(2, 20, 200))
    assert p.sum() == pytest.approx(1.0, abs=1e-9)


def dense_best(a: Floats, b: Floats) -> Floats:
    """Integrate as ``dense_beta`` does, cutting no finer than a fifth of the arm's width."""
    tails = special.ndtr(np.linspace(-8, 0, 33))[:, None]
    below, above = special.betaincinv(a, b, tails), special.betainccinv(a, b, tails)
    low, high = np.arcsin(np.sqrt([below[0].max(), above[0].max()]))
    theta = np.arcsin(np.sqrt(np.concatenate([below, above]).ravel()))
    width = np.tile(0.5 / np.sqrt(a + b), 66)
    kept = [low]
    for i in np.argsort(theta):
        if high > theta[i] > kept[-1] + 0.2 * width[i]:
            kept.append(theta[i])
    angle, w = pieces(np.append(kept, high), 12)
    total = np.zeros(len(a))
    for part in np.array_split(np.arange(len(angle)), 20):
        sine, cosine = np.log(np.sin(angle[part]))[:, None], np.log(np.cos(angle[part]))[:, None]
        log_cdf = np.log(np.maximum(special.betainc(a, b, np.exp(2 * sine)), 1e-300))
        others = log_cdf.sum(axis=1, keepdims=True) - log_cdf
        powers = (2 * a - 1) * sine + (2 * b - 1) * cosine - special.betaln(a, b)
        total += 2.0 * w[part] @ np.exp(powers + others)
    return total


MATURITY = {
    "new": (0, 1.5),
    "young": (2, 3),
    "mature": (4, 5),
    "old": (6, 6.3),
    "mixed": (0, 5),
    "wide": (0, 7),
}


@pytest.mark.parametrize("decades", MATURITY.values(), ids=MATURITY)
@pytest.mark.parametrize("k", [47, 250])
def test_many_beta_arms_match_dense_integration(k: int, decades: tuple[float, float]):
    random = np.random.default_rng(1)
    trials, rates = 10.0 ** random.uniform(*decades, k), random.beta(2, 98, k)
    a, b = np.maximum(trials * rates, 0.5), np.maximum(trials * (1.0 - rates), 0.5)
    np.testing.assert_allclose(beta(a, b), dense_best(a, b), atol=1e-6)
    eligible = random.uniform(size=k) < 0.5
    eligible[np.argsort(a / b)[-k // 10 :]] = False
    np.testing.assert_allclose(
        beta(a, b, eligible)[eligible], dense_best(a[eligible], b[eligible]), atol=1e-6
    )


@pytest.mark.parametrize("new", [1, 500])
def test_a_thousand_beta_arms_match_dense_integration(new: int):
    random = np.random.default_rng(1)
    trials, rates = 10.0 ** random.uniform(4, 6, 1_000), random.beta(2, 98, 1_000)
    a, b = trials * rates + 1.0, trials * (1.0 - rates) + 1.0
    a[:new] = b[:new] = 1.0
    np.testing.assert_allclose(beta(a, b), dense_best(a, b), atol=1e-6)


@pytest.mark.parametrize("k", [47, 1_000, 2_000])
def test_many_equal_beta_arms_share_alike(k: int):
    p = beta(np.full(k, 2_000.0), np.full(k, 98_000.0))
    np.testing.assert_allclose(p, 1.0 / k, rtol=1e-6)


def test_few_and_many_beta_arms_agree():
    """46 arms are tabulated by the incomplete beta function, 47 by integration."""
    random = np.random.default_rng(3)
    a, b = 1.0 + random.gamma(2, 20, 47), 20.0 + random.gamma(2, 400, 47)
    eligible = np.arange(47) < 46
    np.testing.assert_allclose(beta(a, b, eligible)[:46], beta(a[:46], b[:46]), atol=1e-8)


def test_a_table_of_many_arms_is_bounded():
    random = np.random.default_rng(1)
    trials, rates = 10.0 ** random.uniform(7, 8, 400), random.beta(2, 98, 400)
    cdf, density = beta_table(trials * rates + 1.0, trials * (1.0 - rates) + 1.0)
    assert len(cdf) == len(density) <= 8 * 512
    assert (np.diff(cdf, axis=0) >= -0.01).all()  # they are hundreds of widths apart
    assert ((cdf >= 0.0) & (cdf <= 1.0)).all()
    np.testing.assert_allclose(density.sum(axis=0), 1.0, rtol=1e-12)


def test_beta_arms_that_are_not_eligible_do_not_count():
    eligible = np.array([True, False, True, True])
    a, b = np.array([20.0, 30, 25, 4]), np.array([80.0, 70, 75, 16])
    p = beta(a, b, eligible)
    np.testing.assert_allclose(p[eligible], beta(a[eligible], b[eligible]), atol=1e-9)
    assert p[1] == 0.0


def test_the_best_beta_arm_may_be_excluded():
    eligible = np.array([False, True, True])
    p = beta(np.array([9001.0, 101, 201]), np.array([1001.0, 901, 801]), eligible)
    np.testing.assert_allclose(p, [0.0, 0.0, 1.0], atol=1e-6)


# --- arms of no width -------------------------------------------------------------------


@given(scores=st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=1, max_size=6), data=st.data())
def test_without_width_the_first_of_the_best_takes_all(scores: list[float], data: st.DataObject):
    k = len(scores)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k).filter(any)))
    out = np.empty(k)
    propensities.table_propensities(*rank_table(np.array(scores)), eligible, out)
    best = np.argmax(np.where(eligible, scores, -np.inf))
    np.testing.assert_array_equal(out, np.eye(k)[best])


def test_the_nodes_are_those_of_gauss_and_legendre():
    expected = np.column_stack(np.polynomial.legendre.leggauss(8))
    np.testing.assert_allclose(NODES, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("centre", "spread", "expected"),
    [
        ([0.1, 0.2], [0.0, 0.1], [0.15865525393145707, 0.8413447460685429]),
        ([0.1, 0.3, 0.2], [0.0, 0.0, 0.1], [0.0, 0.8413447460685429, 0.15865525393145707]),
        ([1e12, 1e12 + 1e4], [1e-6, 1e-6], [0.0, 1.0]),
        ([0.1, 0.2], [1e-20, 0.1], [0.15865525393145707, 0.8413447460685429]),
    ],
)
def test_spreads_below_the_resolution_of_numbers_lose_nothing(
    centre: list[float], spread: list[float], expected: list[float]
):
    out = np.empty(len(centre))
    everyone = np.ones(len(centre), dtype=np.bool_)
    propensities.normal_propensities(
        np.array(centre), np.array(spread), everyone, NODES, MARKS, out
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)
