"""Fixed arithmetic: elementary functions of ``+ - * /`` and bits alone, the same everywhere."""

import math

import numpy as np

from bandit.kernels.compiling import kernel


@kernel
def log(x: float) -> float:
    """Natural logarithm of a positive normal number, the same bits everywhere.

    ``2 atanh((m - 1) / (m + 1))`` by its series, with ``x = m 2**e`` and m in [0.7, 1.42].
    """
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m *= 2.0
        e -= 1
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    total = 0.0
    for k in range(25, 0, -2):
        total = total * z + 1.0 / k
    return 2.0 * s * total + e * 0.6931471805599453


@kernel
def exp(x: float) -> float:
    """Exponential, relative error below 1e-15; x is clipped to [-708, 709].

    ``2**n exp(r)`` with |r| <= log(2) / 2 and a Taylor series of degree 13. No branch and no
    conversion, so that a loop over it vectorises: n is read off the low bits of ``x / log 2``
    plus 1.5 * 2**52.
    """
    x = -708.0 if x < -708.0 else (min(x, 709.0))
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = (p * r) * r + r + 1.0
    power = (np.float64(shifted).view(np.int64) << np.int64(52)) + np.int64(1023 << 52)
    return p * np.int64(power).view(np.float64)


@kernel
def logistic(eta: float) -> float:
    """``1 / (1 + exp(-eta))``, the probability of success at a linear predictor."""
    return 1.0 / (1.0 + exp(-eta))


@kernel
def normal_tail(z: float, peak: float) -> float:
    """``P(Z > z)`` for z >= 0 and ``peak = exp(-z**2 / 2)``, absolute error below 1e-15.

    Source: Hart et al., Computer Approximations, 1968, algorithm 5666, as given by West,
    Wilmott magazine, May 2005.
    """
    a = 3.52624965998911e-2 * z + 0.700383064443688
    a = a * z + 6.37396220353165
    a = a * z + 33.912866078383
    a = a * z + 112.079291497871
    a = a * z + 221.213596169931
    a = a * z + 220.206867912376
    b = 8.83883476483184e-2 * z + 1.75566716318264
    b = b * z + 16.064177579207
    b = b * z + 86.7807322029461
    b = b * z + 296.564248779674
    b = b * z + 637.333633378831
    b = b * z + 793.826512519948
    b = b * z + 440.413735824752
    return peak * a / b


@kernel
def sin_cos(turns: float) -> tuple[float, float]:
    """Sine and cosine of ``2 pi turns`` by Taylor series on an eighth of the circle."""
    t = turns - math.floor(turns)
    octant = int(t * 8.0 + 0.5)
    r = (t - octant * 0.125) * 6.283185307179586
    z = r * r
    s, c = 0.0, 0.0
    for k in range(18, 0, -2):
        s = 1.0 - s * z / (k * (k + 1.0))
        c = 1.0 - c * z / (k * (k - 1.0))
    s *= r
    h = 0.7071067811865476
    o = octant % 8
    if o % 2 == 1:
        s, c = (s + c) * h, (c - s) * h
    quarter = o // 2
    if quarter == 1:
        s, c = c, -s
    elif quarter == 2:
        s, c = -s, -c
    elif quarter == 3:
        s, c = -c, s
    return s, c


@kernel
def central_quantile(q: float) -> float:
    """``normal_quantile(0.5 + q)`` for |q| <= 0.425, without a branch, so that loops vectorise."""
    r = 0.180625 - q * q
    a = (
        (2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4
    ) * r + 4.5921953931549871457e4
    a = (
        ((a * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r
        + 1.3314166789178437745e2
    ) * r + 3.3871328727963666080e0
    b = (
        (5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4
    ) * r + 2.1213794301586595867e4
    b = (
        ((b * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r
        + 4.2313330701600911252e1
    ) * r + 1.0
    return q * a / b


@kernel
def normal_quantile(p: float) -> float:
    """Inverse of the standard normal CDF for p in (0, 1), relative error below 1e-15.

    Source: Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37, 1988.
    """
    q = p - 0.5
    if abs(q) <= 0.425:
        return central_quantile(q)
    r = p if q < 0.0 else 1.0 - p
    r = math.sqrt(-log(r))
    if r <= 5.0:
        r -= 1.6
        a = (
            (7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r
            + 2.41780725177450611770e-1
        ) * r + 1.27045825245236838258e0
        a = (
            ((a * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r
            + 4.63033784615654529590e0
        ) * r + 1.42343711074968357734e0
        b = (
            (1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r
            + 1.51986665636164571966e-2
        ) * r + 1.48103976427480074590e-1
        b = (
            ((b * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
            + 2.05319162663775882187e0
        ) * r + 1.0
    else:
        r -= 5.0
        a = (
            (2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r
            + 1.24266094738807843860e-3
        ) * r + 2.65321895265761230930e-2
        a = (
            ((a * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0) * r
            + 5.46378491116411436990e0
        ) * r + 6.65790464350110377720e0
        b = (
            (2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r
            + 1.84631831751005468180e-5
        ) * r + 7.86869131145613259100e-4
        b = (
            ((b * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
            + 5.99832206555887937690e-1
        ) * r + 1.0
    x = a / b
    return -x if q < 0.0 else x
