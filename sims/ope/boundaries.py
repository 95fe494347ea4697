"""Uniform boundaries: curves that a random walk crosses with a small probability, ever.

Each function gives u(v), so that ``P(exists t: S_t >= u(V_t)) <= alpha`` for every sum S_t with
intrinsic time V_t of the kind that is named (Howard, Ramdas, McAuliffe & Sekhon, Time-uniform,
nonparametric, nonasymptotic confidence sequences, Annals of Statistics 49, 2021). A mixture is
tightest about ``v_opt``. Derivation: docs/math/confidence-sequences.md.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats

EPOCH = 2.0
"""How much longer every epoch of a stitched boundary is than the one before."""

SHARING = 1.4
"""Power by which a stitched boundary shares the error among its epochs."""


def _check(v: Floats, alpha: float, **positive: float) -> Floats:
    found = np.atleast_1d(np.asarray(v, dtype=np.float64))
    if not (np.isfinite(found).all() and (found >= 0.0).all()):
        raise InvalidInputError("must be finite and at least 0", field="v")
    if not 0.0 < alpha < 1.0:
        raise InvalidInputError(f"must lie between 0 and 1, got {alpha}", field="alpha")
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0.0):
            raise InvalidInputError(f"must be positive, got {value}", field=name)
    return found


def best_rho(v_opt: float, alpha: float) -> float:
    """Give the precision of a normal mixture that is tightest about ``v_opt``."""
    log = math.log(1.0 / alpha)
    return v_opt / (2.0 * log + math.log1p(2.0 * log))


def normal_mixture(v: Floats, alpha: float, v_opt: float) -> Floats:
    """Two-sided boundary of a sub-Gaussian walk, (n,), by mixing over normal slopes.

    Notes
    -----
    Robbins 1970; Howard et al. 2021, equation 14.
    """
    times = _check(v, alpha, v_opt=v_opt)
    rho = best_rho(v_opt, alpha)
    return np.sqrt((times + rho) * (np.log1p(times / rho) + 2.0 * math.log(1.0 / alpha)))


def normal_mixture_one_sided(v: Floats, alpha: float, v_opt: float) -> Floats:
    """Upper boundary of a sub-Gaussian walk, (n,), by mixing over half-normal slopes.

    Notes
    -----
    Howard et al. 2021, proposition 6.
    """
    times = _check(v, alpha, v_opt=v_opt)
    rho = best_rho(v_opt, min(2.0 * alpha, 0.999))

    def log_mixture(s: float, t: float) -> float:
        total = t + rho
        log = 0.5 * math.log(4.0 * rho / total) + s * s / (2.0 * total)
        return log + float(special.log_ndtr(s / math.sqrt(total)))

    return _crossings(log_mixture, times, alpha)


def gamma_exponential_mixture(v: Floats, alpha: float, v_opt: float, c: float = 1.0) -> Floats:
    """Upper boundary of a sub-exponential walk of scale ``c``, (n,): of centred sums above -c.

    Notes
    -----
    Howard et al. 2021, proposition 9.
    """
    times = _check(v, alpha, v_opt=v_opt, c=c)
    rho = best_rho(v_opt, min(2.0 * alpha, 0.999)) / c**2
    constant = rho * math.log(rho) - math.lgamma(rho) - math.log(special.gammainc(rho, rho))

    def log_mixture(s: float, t: float) -> float:
        shape, reach = t / c**2 + rho, (c * s + t) / c**2 + rho
        log = constant + math.lgamma(shape) + math.log(special.gammainc(shape, reach))
        return log - shape * math.log(reach) + reach - rho

    return _crossings(log_mixture, times, alpha)


def beta_binomial_mixture(v: Floats, alpha: float, v_opt: float, g: float, h: float) -> Floats:
    """Boundary of a sub-Bernoulli walk with steps in [-g, h], (n,), for both sides together.

    Notes
    -----
    Howard et al. 2021, proposition 7. A walk can not rise above ``v / g``; where even that is
    no evidence, the boundary is there.
    """
    times = _check(v, alpha, v_opt=v_opt, g=g, h=h)
    precision = beta_binomial_precision(v_opt, alpha, g, h)
    found = np.empty(len(times))
    for i, t in enumerate(times.tolist()):

        def above(s: float, t: float = t) -> float:
            return log_beta_binomial(s, t, precision, g, h) - math.log(1.0 / alpha)

        top = t / g
        found[i] = top if above(top) <= 0.0 else root(above, 0.0, top)
    return found


def beta_binomial_precision(v_opt: float, alpha: float, g: float, h: float) -> float:
    """Give the precision of a beta-binomial mixture that is about tightest at ``v_opt``."""
    return max(best_rho(v_opt, alpha) - g * h, 1e-3 * g * h)


def log_beta_binomial(s: float, v: float, precision: float, g: float, h: float) -> float:
    """Give the log of the two-sided beta-binomial mixture of a walk at ``s`` and time ``v``."""
    range_ = g + h
    log = v / (g * h) * math.log(range_)
    log -= (v + h * s) / (h * range_) * math.log(g) + (v - g * s) / (g * range_) * math.log(h)
    left, right = (precision + v - g * s) / (g * range_), (precision + v + h * s) / (h * range_)
    before = precision / (g * range_), precision / (h * range_)
    return log + float(special.betaln(left, right) - special.betaln(*before))


def poly_stitching(v: Floats, alpha: float, v_min: float, c: float = 0.0) -> Floats:
    """Upper boundary that grows like ``sqrt(v log log v)``, (n,), stitched from straight lines.

    Parameters
    ----------
    v_min
        Time from which on it is tight.
    c
        Scale of a sub-gamma walk; 0: sub-Gaussian.

    Notes
    -----
    Howard et al. 2021, theorem 1, with epochs each ``EPOCH`` times as long as the last, and the
    error shared among them as ``(k + 1)**-SHARING``.
    """
    times = np.maximum(_check(v, alpha, v_min=v_min), v_min)
    if not (math.isfinite(c) and c >= 0.0):
        raise InvalidInputError(f"must be finite and at least 0, got {c}", field="c")
    spent = math.log(float(special.zeta(SHARING)) / (alpha * math.log(EPOCH) ** SHARING))
    logs = SHARING * np.log(np.log(EPOCH * times / v_min)) + spent
    first = (EPOCH**0.25 + EPOCH**-0.25) / math.sqrt(2.0)
    second = (math.sqrt(EPOCH) + 1.0) / 2.0 * c * logs
    found: Floats = np.sqrt(first**2 * times * logs + second**2) + second
    return found


def _crossings(log_mixture: Callable[[float, float], float], times: Floats, alpha: float) -> Floats:
    """Give for every time where the log of a mixture, which grows with s, reaches 1 / alpha."""
    threshold = math.log(1.0 / alpha)
    found = np.empty(len(times))
    for i, t in enumerate(times.tolist()):

        def above(s: float, t: float = t) -> float:
            return log_mixture(s, t) - threshold

        top = 1.0
        while above(top) < 0.0:
            top *= 2.0
        found[i] = root(above, 0.0, top)
    return found


def root(above: Callable[[float], float], low: float, high: float) -> float:
    """Find where a function changes sign between two points, to about 13 digits."""
    size = max(abs(low), abs(high))
    return float(optimize.brentq(above, low, high, xtol=1e-15 * size, rtol=1e-14, maxiter=500))
