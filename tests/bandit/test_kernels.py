"""Each kernel against its dense NumPy or SciPy twin."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from bandit import rng
from bandit.kernels import arithmetic, contexts, factors, folding, propensities, scoring, streams
from bandit.kernels.compiling import Floats, Ints
from bandit.kernels.contexts import CATEGORY, CYCLIC, FLAG, LOG_NUMBER, NUMBER
from bandit.kernels.layouts import Terms

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 12)


def stream(*parts: int) -> np.ndarray:
    """Name a stream as the engine does: read-only words."""
    return rng.words(b"".join(part.to_bytes(4, "little") for part in parts))


def factor(random: np.random.Generator, m: int) -> tuple[Floats, Floats, Floats]:
    """Give the statistics, the prior and the dense precision of a random regression."""
    x = random.standard_normal((m + 3, m))
    prior = random.uniform(0.1, 4.0, m)
    return np.tril(x.T @ x), prior, x.T @ x + np.diag(prior)


# --- fixed arithmetic -------------------------------------------------------------------


@given(x=st.floats(2.3e-308, 1.7e308))
def test_log_matches_numpy(x: float):
    np.testing.assert_allclose(arithmetic.log(x), np.log(x), rtol=1e-15, atol=1e-300)


@given(x=st.floats(-1e-3, 1e-3))
def test_log_is_relatively_exact_near_one(x: float):
    np.testing.assert_allclose(arithmetic.log(1.0 + x), np.log(1.0 + x), rtol=1e-15)


@given(x=st.floats(-708.0, 709.0))
def test_exp_matches_numpy(x: float):
    np.testing.assert_allclose(arithmetic.exp(x), np.exp(x), rtol=2e-15)


@pytest.mark.parametrize("x", [-np.inf, -1e300, -709.0])
def test_exp_is_clipped_below(x: float):
    assert arithmetic.exp(x) == arithmetic.exp(-708.0) > 0.0


@given(eta=st.floats(-700.0, 700.0))
def test_logistic_matches_scipy(eta: float):
    np.testing.assert_allclose(arithmetic.logistic(eta), special.expit(eta), rtol=3e-15)


@given(z=st.floats(0.0, 40.0))
def test_normal_tail_matches_scipy(z: float):
    tail = arithmetic.normal_tail(z, arithmetic.exp(-0.5 * z * z))
    np.testing.assert_allclose(tail, special.ndtr(-z), rtol=0.0, atol=2e-15)


@given(turns=st.floats(-3, 3))
def test_sin_cos_match_numpy(turns: float):
    turns = np.round(turns * 2**30) / 2**30  # so that the fraction of a turn is exact
    expected = np.sin(2 * np.pi * (turns % 1.0)), np.cos(2 * np.pi * (turns % 1.0))
    np.testing.assert_allclose(arithmetic.sin_cos(turns), expected, atol=1e-15)


@pytest.mark.parametrize("eighth", range(-8, 17))
def test_sin_cos_are_exact_on_the_quarters(eighth: int):
    sine, cosine = arithmetic.sin_cos(eighth / 8)
    quarter = {0: (0, 1), 2: (1, 0), 4: (0, -1), 6: (-1, 0)}.get(eighth % 8)
    assert quarter is None or (sine, cosine) == quarter


@given(p=st.floats(1e-300, 1.0, exclude_max=True))
def test_normal_quantile_matches_scipy(p: float):
    np.testing.assert_allclose(
        arithmetic.normal_quantile(p), special.ndtri(p), rtol=2e-14, atol=1e-16
    )


@given(exponent=st.floats(-300, -0.31))
def test_normal_quantile_matches_scipy_far_out(exponent: float):
    p = 10.0**exponent
    np.testing.assert_allclose(arithmetic.normal_quantile(p), special.ndtri(p), rtol=2e-14)


# --- random numbers by name -------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
):
    block = np.uint64(counter[0] | counter[1] << 32)
    assert streams.philox(stream(*key, *counter[2:]), block) == expected


@given(block=st.integers(0, 2**62))
def test_blocks_wider_than_a_word_do_not_repeat(block: int):
    name = stream(1, 2, 3, 4)
    assert streams.philox(name, block) != streams.philox(name, block + 2**32)


def test_units_below_a_half_are_the_middles_of_53_bit_cells():
    assert streams.to_unit(np.uint64(0), np.uint64(0)) == 2.0**-54
    assert streams.to_unit(np.uint64(2**30), np.uint64(0)) == 0.25 + 2.0**-54
    assert streams.to_unit(np.uint64(0), np.uint64(2**11)) == 1.5 * 2.0**-53


def test_units_stay_below_one():
    assert streams.to_unit(np.uint64(2**32 - 1), np.uint64(2**32 - 1)) < 1.0


@given(n=st.integers(0, 9), first=st.integers(0, 2**40), seed=SEEDS)
def test_normals_are_quantiles_of_the_words(n: int, first: int, seed: int):
    name, z = stream(seed, 1, 2, 3), np.empty(n)
    streams.fill_normals(name, first, z)
    for i in range(n):
        w = streams.philox(name, first + i // 2)[2 * (i % 2) :][:2]
        assert z[i] == arithmetic.normal_quantile(streams.to_unit(*map(np.uint64, w)))


def test_a_longer_fill_begins_like_a_shorter_one():
    short, long = np.empty(5), np.empty(8)
    streams.fill_normals(stream(1, 2, 3, 4), 7, short)
    streams.fill_normals(stream(1, 2, 3, 4), 7, long)
    np.testing.assert_array_equal(long[:5], short)


# --- features ---------------------------------------------------------------------------

KINDS = [  # kind, low or period, high, first column, levels, missing column
    (NUMBER, -5.0, 5.0, 1, 0, 2),
    (LOG_NUMBER, 0.0, 100.0, 3, 0, 4),
    (CATEGORY, 0.0, 0.0, 5, 2, 8),
    (FLAG, 0.0, 0.0, 9, 0, 10),
    (CYCLIC, 24.0, 0.0, 11, 0, 13),
]
CELL = st.just(math.nan)
ROWS = st.tuples(
    CELL | st.floats(-9, 9),
    CELL | st.floats(-50, 200),
    CELL | st.sampled_from([-1.0, 0.0, 1.0]),
    CELL | st.sampled_from([0.0, 1.0]),
    CELL | st.floats(-48, 48),
)


def encoded(row: tuple[float, ...]) -> list[float]:
    """Encode one row as a person would on paper."""
    number, log_number, category, flag, hour = row
    out = [1.0]
    gone = [float(math.isnan(cell)) for cell in row]
    clipped = min(max(number, -5.0), 5.0) / 5.0
    out += [0.0 if gone[0] else clipped, gone[0]]
    share = 0.0 if gone[1] else math.log1p(min(max(log_number, 0.0), 100.0)) / math.log1p(100.0)
    out += [0.0 if gone[1] else 2.0 * share - 1.0, gone[1]]
    out += [float(category == level) for level in (0.0, 1.0, -1.0)] + [gone[2]]
    out += [0.0 if gone[3] else flag, gone[3]]
    angle = 0.0 if gone[4] else 2.0 * math.pi * (hour % 24.0) / 24.0
    return out + ([0.0, 0.0, 1.0] if gone[4] else [math.sin(angle), math.cos(angle), 0.0])


@given(rows=st.lists(ROWS, min_size=1, max_size=4))
def test_encode_matches_plain_python(rows: list[tuple[float, ...]]):
    x = contexts.encode(np.array(rows), np.array(KINDS, dtype=np.float64), 14)
    np.testing.assert_allclose(x, [encoded(row) for row in rows], atol=1e-12)


def test_no_fields_leave_the_intercept():
    x = contexts.encode(np.zeros((3, 0)), np.zeros((0, 6)), 1)
    np.testing.assert_array_equal(x, np.ones((3, 1)))


# --- folding ----------------------------------------------------------------------------


@given(n=st.integers(1, 20), d=st.integers(1, 5), b=st.integers(1, 4), seed=SEEDS)
def test_fold_dense_matches_weighted_least_squares(n: int, d: int, b: int, seed: int):
    random = np.random.default_rng(seed)
    x, r, w = random.standard_normal((n, d)), random.standard_normal(n), random.uniform(0, 2, n)
    block = random.integers(0, b, n)
    p, h, s = np.zeros((b, d, d)), np.zeros((b, d)), np.zeros((b, 2))
    folding.fold_dense(x, block, r, w, p, h, s)
    for i in range(b):
        mine = block == i
        xw = x[mine] * w[mine, None]
        np.testing.assert_allclose(p[i], np.tril(xw.T @ x[mine]), atol=1e-12)
        np.testing.assert_allclose(h[i], xw.T @ r[mine], atol=1e-12)
        np.testing.assert_allclose(s[i], [w[mine].sum(), (w * r * r)[mine].sum()], atol=1e-12)


TABLE = np.array([(a, c) for a in range(3) for c in range(2)])


def joint_design(x: Floats, action: Ints) -> Floats:
    """Give phi of the terms context, context:a, c and a:c over 3 x 2 actions, row by row."""
    rows = []
    for context, (a, c) in zip(x, TABLE[action], strict=True):
        one_a, one_c = np.eye(3)[a], np.eye(2)[c]
        rows.append(
            np.concatenate([context, np.kron(one_a, context), one_c, np.kron(one_a, one_c)])
        )
    return np.array(rows)


def joint_terms(d: int) -> Terms:
    return Terms(
        cells=np.array([[0] * 6, TABLE[:, 0], TABLE[:, 1], range(6)], dtype=np.int32),
        offsets=np.array([0, d, 4 * d, 4 * d + 2]),
        counts=np.array([1, 3, 2, 6]),
        crossed=np.array([True, True, False, False]),
        parts=np.zeros(4, dtype=np.int64),  # no term has attributes
        loads=np.zeros((4, 0, 0)),
    )


@given(n=st.integers(1, 20), d=st.integers(1, 4), seed=SEEDS)
def test_fold_sparse_matches_the_explicit_design(n: int, d: int, seed: int):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d)) * random.integers(0, 2, (n, d))  # with zeros to skip
    action, m = random.integers(0, 6, n), 4 * d + 8
    r, w = random.standard_normal(n), random.uniform(0, 2, n)
    p, h, s = np.zeros((1, m, m)), np.zeros((1, m)), np.zeros((1, 2))
    folding.fold_sparse(x, action, r, w, joint_terms(d), p, h, s)
    phi = joint_design(x, action)
    np.testing.assert_allclose(p[0], np.tril((phi * w[:, None]).T @ phi), atol=1e-12)
    np.testing.assert_allclose(h[0], phi.T @ (w * r), atol=1e-12)
    np.testing.assert_allclose(s[0], [w.sum(), (w * r * r).sum()], atol=1e-12)


def test_counts_split_a_reward_into_success_and_failure():
    counts = np.zeros((2, 2))
    weights = np.array([1.0, 2.0, 0.5])
    folding.fold_counts(np.array([0, 1, 0]), np.array([1.0, 0.25, 0.0]), weights, counts)
    np.testing.assert_array_equal(counts, [[1.0, 0.5], [0.5, 1.5]])


# --- publishing -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1e2, 1e6, 1e9, 1e12])
def test_a_pivot_is_never_below_prior_or_rounding(n: float):
    """Two features that are one, n times, with the rounding errors that n sums may have."""
    for error in (-n, 0.0, n):
        p = n * np.array([[1.0, 0.0], [1.0, 1.0 + error * 2.0**-53]])
        lower = factors.cholesky(p, np.array([1e-6, 1e-6]))
        least = max(1e-6, 2.0**-52 * p.max() * p[1, 1])
        assert lower[1, 1] ** 2 >= least * (1.0 - 1e-9)
        mean, _ = factors.solve_mean(lower, 3.0 * n * np.array([1.0, 1.0]))
        assert mean.sum() == pytest.approx(3.0, rel=1e-3)


@given(m=SIZES, seed=SEEDS)
def test_cholesky_matches_numpy_and_reads_the_lower_triangle(m: int, seed: int):
    p, prior, dense = factor(np.random.default_rng(seed), m)
    lower = factors.cholesky(p + np.triu(np.full((m, m), np.nan), 1), prior)
    np.testing.assert_allclose(lower, np.linalg.cholesky(dense), rtol=1e-9, atol=1e-12)


@given(m=SIZES, seed=SEEDS)
def test_solve_mean_matches_numpy(m: int, seed: int):
    random = np.random.default_rng(seed)
    _, _, dense = factor(random, m)
    h = random.standard_normal(m)
    mean, explained = factors.solve_mean(np.linalg.cholesky(dense), h)
    expected = np.linalg.solve(dense, h)
    np.testing.assert_allclose(mean, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(explained, expected @ dense @ expected, rtol=1e-8)


@given(m=SIZES, seed=SEEDS)
def test_invert_lower_packs_the_inverse_by_rows(m: int, seed: int):
    lower = np.linalg.cholesky(factor(np.random.default_rng(seed), m)[2])
    packed = factors.invert_lower(lower)
    np.testing.assert_allclose(
        packed, np.linalg.inv(lower)[np.tril_indices(m)], rtol=1e-8, atol=1e-10
    )


@given(m=SIZES, draws=st.integers(1, 9), scale=st.floats(0, 3), seed=SEEDS)
def test_draw_bank_solves_for_the_streams_normals(m: int, draws: int, scale: float, seed: int):
    random = np.random.default_rng(seed)
    lower, mean = np.linalg.cholesky(factor(random, m)[2]), random.standard_normal(m)
    name, z = stream(seed, 5, 6, 7), np.empty((m, draws))
    for i in range(m):
        streams.fill_normals(name, i * ((draws + 1) // 2), z[i])
    bank = factors.draw_bank(mean, lower, scale, name, draws)
    expected = mean[:, None] + scale * np.linalg.solve(lower.T, z)
    np.testing.assert_allclose(bank, expected, rtol=1e-8, atol=1e-9)


# --- scoring ----------------------------------------------------------------------------


@given(d=st.integers(1, 6), k=SIZES, seed=SEEDS)
def test_score_moments_match_the_quadratic_form(d: int, k: int, seed: int):
    random = np.random.default_rng(seed)
    x, mean = random.standard_normal(d), random.standard_normal((d, k))
    precisions = [factor(random, d)[2] for _ in range(k)]
    root = np.array([factors.invert_lower(np.linalg.cholesky(p)) for p in precisions])
    centre, spread = np.empty(k), np.empty(k)
    scoring.score_moments(x, mean, np.ascontiguousarray(root.T), centre, spread)
    np.testing.assert_allclose(centre, x @ mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        spread, [np.sqrt(x @ np.linalg.solve(p, x)) for p in precisions], rtol=1e-8
    )


def test_the_first_among_equals_is_best():
    assert scoring.best_of(np.array([9.0, 1.0, 1.0]), np.array([False, True, True])) == 1


@pytest.mark.parametrize("low", [-np.inf, -1e300])
def test_the_best_of_hopeless_scores_is_still_eligible(low: float):
    assert scoring.best_of(np.array([0.0, low, low]), np.array([False, True, True])) == 1


# --- from propensities to an action -----------------------------------------------------


@given(k=SIZES, seed=SEEDS, data=st.data())
def test_add_best_is_a_density_times_the_other_cdfs(k: int, seed: int, data: st.DataObject):
    random = np.random.default_rng(seed)
    cdf, density = random.uniform(0, 1, k) * random.integers(0, 2, k), random.uniform(0, 1, k)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k)))
    out = np.zeros(k)
    propensities.add_best(cdf, density, eligible, np.empty(k), out)
    for a in range(k):
        others = eligible & (np.arange(k) != a)
        expected = density[a] * np.prod(cdf[others]) if eligible[a] else 0.0
        np.testing.assert_allclose(out[a], expected, rtol=1e-12)


@given(k=SIZES, seed=SEEDS, share=st.floats(0, 0.999), data=st.data())
def test_the_floor_is_mixed_in(k: int, seed: int, share: float, data: st.DataObject):
    p = np.random.default_rng(seed).uniform(0, 5, k)
    eligible = np.array(data.draw(st.lists(st.booleans(), min_size=k, max_size=k).filter(any)))
    n, floor = eligible.sum(), share / eligible.sum()
    out = p.copy()
    propensities.apply_floor(eligible, floor, out)
    expected = np.where(eligible, floor + (1.0 - n * floor) * p / p[eligible].sum(), 0.0)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert (out[eligible] >= floor).all()


def test_where_nothing_sums_the_first_eligible_takes_all():
    out = np.zeros(3)
    propensities.apply_floor(np.array([False, True, True]), 0.1, out)
    np.testing.assert_allclose(out, [0.0, 0.9, 0.1])


@given(k=SIZES, seed=SEEDS, u=st.floats(0, 1, exclude_min=True))
def test_pick_inverts_the_running_sum(k: int, seed: int, u: float):
    p = np.random.default_rng(seed).dirichlet(np.ones(k))
    p[0] = 0.0
    p /= p.sum() or 1.0
    expected = np.flatnonzero(p)[-1] if p.any() else -1
    above = np.flatnonzero(np.cumsum(p) > u)
    assert propensities.pick(p, u) == (above[0] if len(above) else expected)


@pytest.mark.parametrize(("u", "action"), [(1e-9, 1), (0.49, 1), (0.51, 3), (1.0, 3)])
def test_pick_uniform_gives_each_eligible_action_its_share(u: float, action: int):
    assert propensities.pick_uniform(np.array([False, True, False, True, False]), u) == action


def test_pick_uniform_has_nothing_to_pick_among_none():
    assert propensities.pick_uniform(np.zeros(3, dtype=np.bool_), 0.5) == -1


@given(u=st.floats(1e-9, 1.0, exclude_max=True))
def test_the_floor_spends_its_share_of_the_uniform(u: float):
    eligible = np.array([True, False, True])
    action, left = propensities.floor_draw(eligible, 0.125, u)
    if u < 0.25:
        assert action == (0 if u < 0.125 else 2)
    else:
        assert action == -1
        assert left == pytest.approx((u - 0.25) / 0.75)


def test_without_a_floor_the_uniform_is_kept():
    assert propensities.floor_draw(np.ones(3, dtype=np.bool_), 0.0, 0.3) == (-1, 0.3)
