"""Random numbers by name: a counter-based generator, so that any draw can be made again."""

import numpy as np

from bandit.kernels.arithmetic import central_quantile, normal_quantile
from bandit.kernels.compiling import Floats, Words, kernel

_MASK = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_32 = np.uint64(32)


@kernel
def philox(stream: Words, block: int) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Give four random 32-bit words: block number ``block`` of a named stream.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
    Philox4x32-10. Counter: (block, 0) and two words of the name; key: the other two.
    """
    c0, c1 = np.uint64(block) & _MASK, np.uint64(block) >> _32
    c2, c3 = np.uint64(stream[2]), np.uint64(stream[3])
    k0, k1 = np.uint64(stream[0]), np.uint64(stream[1])
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c2 = (p1 >> _32) ^ c1 ^ k0, (p0 >> _32) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@kernel
def to_unit(high: np.uint64, low: np.uint64) -> float:
    """Turn 64 random bits into a number in the open interval (0, 1), 53 bits fine."""
    bits = ((high << _32) | low) >> np.uint64(11)
    unit = (np.float64(bits) + 0.5) * 1.1102230246251565e-16
    return min(unit, 0.9999999999999999)  # rounding may reach 1


@kernel
def uniform(stream: Words, block: int) -> float:
    """Give the first uniform of a block, in (0, 1)."""
    w0, w1, _, _ = philox(stream, block)
    return to_unit(w0, w1)


@kernel
def fill_normals(stream: Words, first: int, out: Floats) -> None:
    """Fill ``out : (n,)`` with standard normals from blocks ``first, first + 1, ...``.

    Notes
    -----
    About 10 ns each in the thousands: uniforms and central quantiles in loops that vectorise,
    then the 15 % in the tails one by one. Until its turn a tail's uniform waits in ``out``,
    scaled by an exact 2**-600, where no quantile can be.
    """
    n = out.shape[0]
    for i in range(n // 2):
        w0, w1, w2, w3 = philox(stream, first + i)
        out[2 * i], out[2 * i + 1] = to_unit(w0, w1), to_unit(w2, w3)
    if n % 2:
        out[n - 1] = uniform(stream, first + n // 2)
    for i in range(n):
        q = out[i] - 0.5
        out[i] = central_quantile(q) if abs(q) <= 0.425 else out[i] * 2.409919865102884e-181
    for i in range(n):
        if 0.0 < out[i] < 1e-100:
            out[i] = normal_quantile(out[i] * 4.149515568880993e180)
