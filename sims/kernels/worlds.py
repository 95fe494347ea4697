"""What simulated customers draw, and what they think of every action.

Every number is a function of a name and of the customer's or visit's own number, and every
row is summed in the same order whatever stands around it: any split of a course gives the
same bits, which a matrix product of varying height does not.
"""

import numpy as np

from bandit.kernels.arithmetic import exp, log, logistic, normal_quantile
from bandit.kernels.compiling import Floats, Ints, Words, kernel
from bandit.kernels.streams import philox, to_unit


@kernel
def fill_uniforms(stream: Words, numbers: Ints, out: Floats) -> None:
    """Fill ``out : (n, m)`` with uniforms in (0, 1) that belong to ``numbers : (n,)``."""
    n, m = out.shape
    blocks = (m + 1) // 2
    for i in range(n):
        first = numbers[i] * blocks
        for j in range(blocks):
            w0, w1, w2, w3 = philox(stream, first + j)
            out[i, 2 * j] = to_unit(w0, w1)
            if 2 * j + 1 < m:
                out[i, 2 * j + 1] = to_unit(w2, w3)


@kernel
def fill_scores(
    active: Floats, starts: Ints, cells: Ints, weights: Floats, gather: Ints, out: Floats
) -> None:
    """Sum what every activity adds to every action.

    Parameters
    ----------
    active : (n, m)
        How much of each activity a row has: 0 or 1 for a condition, a number for a slope.
    starts, cells, weights : (m + 1,), (nonzero,), (nonzero,)
        Cells that an activity adds to, and how much: a sparse matrix by rows.
    gather : (k, parts)
        Cells whose sum an action gets.
    out : (n, k)

    Notes
    -----
    O(nonzero of the row's activities + k parts) a row.
    """
    n, m = active.shape
    k, parts = gather.shape
    sums = np.zeros(gather.max() + 1)
    for i in range(n):
        sums[:] = 0.0
        for j in range(m):
            much = active[i, j]
            if much != 0.0:
                for at in range(starts[j], starts[j + 1]):
                    sums[cells[at]] += much * weights[at]
        for a in range(k):
            total = 0.0
            for p in range(parts):
                total += sums[gather[a, p]]
            out[i, a] = total


@kernel
def logistic_all(scores: Floats) -> None:
    """Turn log-odds ``scores : (n, k)`` into probabilities, in place."""
    n, k = scores.shape
    for i in range(n):
        for a in range(k):
            scores[i, a] = logistic(scores[i, a])


@kernel
def to_normals(uniforms: Floats) -> None:
    """Turn uniforms ``(n,)`` into standard normals, in place."""
    for i in range(len(uniforms)):
        uniforms[i] = normal_quantile(uniforms[i])


@kernel
def to_exponentials(uniforms: Floats) -> None:
    """Turn uniforms ``(n,)`` into exponentials of mean 1, in place."""
    for i in range(len(uniforms)):
        uniforms[i] = -log(uniforms[i])


@kernel
def exp_all(values: Floats) -> None:
    """Replace ``values : (n,)`` by their exponentials."""
    for i in range(len(values)):
        values[i] = exp(values[i])
