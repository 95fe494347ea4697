"""Poisson bootstrap: every row's weight in every replicate has a name."""

import numpy as np

from bandit.kernels.compiling import Floats, Ints, Words, kernel

_MASK = 0xFFFFFFFF
ROWS = 512
"""Rows of a block: sums of blocks are added up in order."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32 = np.uint64(_MASK), np.uint64(32)


@kernel
def _poisson(word: np.uint64) -> float:
    """Turn 32 random bits into a Poisson number of mean 1.

    The thresholds are ``2**32 P(K <= k)``; what lies beyond 12 has less than one bit pattern.
    """
    u = np.int64(word)
    k = (u >= 1580030169) + (u >= 3160060337) + (u >= 3950075422) + (u >= 4213413783)
    k += (u >= 4279248374) + (u >= 4292415292) + (u >= 4294609778) + (u >= 4294923276)
    k += (u >= 4294962463) + (u >= 4294966817) + (u >= 4294967253) + (u >= 4294967292)
    return np.float64(k)


@kernel
def draw_weights(seed: Words, group: int, names: Ints, weights: Floats) -> None:
    """Draw how often each row is in four replicates.

    Parameters
    ----------
    seed : (2,)
        The key.
    group
        Replicates ``4 group .. 4 group + 3``.
    names : (n,)
        Name of every row, or of the cluster it belongs to: one name, one weight.
    weights : (4, n)
        Where the weights go.

    Notes
    -----
    Philox4x32-10 as in ``bandit.kernels.streams`` (whose known answers are tests), written as
    one loop without branches so that it vectorises: about 1 ns a weight. Counter: the name in
    two words, the group, and a word for this purpose.
    """
    c2_start = np.uint64(group)
    for i in range(names.shape[0]):
        name = np.uint64(names[i])
        c0, c1 = name & _LOW, name >> _32
        c2, c3 = c2_start, np.uint64(0x626F6F74)
        k0, k1 = np.uint64(seed[0]), np.uint64(seed[1])
        for _ in range(10):
            p0, p1 = c0 * _M0, c2 * _M1
            c0, c2 = (p1 >> _32) ^ c1 ^ k0, (p0 >> _32) ^ c3 ^ k1
            c1, c3 = p1 & _LOW, p0 & _LOW
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        weights[0, i], weights[1, i] = _poisson(c0), _poisson(c1)
        weights[2, i], weights[3, i] = _poisson(c2), _poisson(c3)


@kernel
def add_replicates(seed: Words, first: int, names: Ints, columns: Floats, sums: Floats) -> None:
    """Add weighted sums of every column in some replicates.

    Parameters
    ----------
    seed : (2,)
        The key.
    first
        Number of the first group of four replicates.
    names : (n,)
        As in ``draw_weights``.
    columns : (n, m)
        What is summed.
    sums : (groups, 4, m)
        Added to, block by block of 512 rows: whoever adds a log in parts cuts it there, and
        gets the same bits.

    Notes
    -----
    O(n groups (4 + 4 m)).
    """
    n, m = columns.shape
    weights = np.empty((4, ROWS))
    part = np.empty((4, m))
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        for g in range(sums.shape[0]):
            draw_weights(seed, first + g, names[start:stop], weights)
            part[:] = 0.0
            for i in range(stop - start):
                w0, w1, w2, w3 = weights[0, i], weights[1, i], weights[2, i], weights[3, i]
                for j in range(m):
                    x = columns[start + i, j]
                    part[0, j] += w0 * x
                    part[1, j] += w1 * x
                    part[2, j] += w2 * x
                    part[3, j] += w3 * x
            for r in range(4):
                for j in range(m):
                    sums[g, r, j] += part[r, j]


@kernel
def add_totals(columns: Floats, sums: Floats) -> None:
    """Add the sums of every column, ``columns : (n, m)``, block by block as ``add_replicates``."""
    n, m = columns.shape
    part = np.empty(m)
    for start in range(0, n, ROWS):
        part[:] = 0.0
        for i in range(start, min(start + ROWS, n)):
            for j in range(m):
                part[j] += columns[i, j]
        for j in range(m):
            sums[j] += part[j]
