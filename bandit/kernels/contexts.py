"""Contexts as feature vectors."""

import math

import numpy as np

from bandit.kernels.arithmetic import log, sin_cos
from bandit.kernels.compiling import Floats, kernel

NUMBER, LOG_NUMBER, CATEGORY, FLAG, CYCLIC = range(5)


@kernel
def encode(rows: Floats, table: Floats, width: int) -> Floats:
    """Encode contexts as feature vectors, intercept first.

    Parameters
    ----------
    rows : (n, f)
        Packed contexts, NaN where missing.
    table : (f, 6)
        Per field: kind, low (or period), high, first column, levels, missing column or -1.

    Returns
    -------
    (n, width)
    """
    out = np.zeros((rows.shape[0], width))
    for i in range(rows.shape[0]):
        out[i, 0] = 1.0
        for f in range(rows.shape[1]):
            value, kind, at = rows[i, f], int(table[f, 0]), int(table[f, 3])
            if math.isnan(value):
                out[i, int(table[f, 5])] = 1.0
            elif kind <= LOG_NUMBER:
                low, high = table[f, 1], table[f, 2]
                value = min(max(value, low), high)
                if kind == LOG_NUMBER:
                    low, high, value = log(1.0 + low), log(1.0 + high), log(1.0 + value)
                out[i, at] = 2.0 * ((value - low) / (high - low)) - 1.0
            elif kind == CATEGORY:
                out[i, at + (int(value) if value >= 0 else int(table[f, 4]))] = 1.0
            elif kind == FLAG:
                out[i, at] = value
            else:
                s, c = sin_cos(value / table[f, 1])
                out[i, at], out[i, at + 1] = s, c
    return out


@kernel
def is_sound(rows: Floats, table: Floats, turns: float) -> bool:
    """Whether ``encode`` may have these rows: the same test as ``ContextSchema.check_rows``.

    Parameters
    ----------
    rows, table
        As in ``encode``.
    turns
        Periods from 0 that a cyclic value may lie.

    Notes
    -----
    O(n f). Bounds are not looked at: ``encode`` clips to them.
    """
    for i in range(rows.shape[0]):
        for f in range(rows.shape[1]):
            value, kind = rows[i, f], int(table[f, 0])
            if math.isnan(value):
                good = table[f, 5] >= 0.0
            elif kind == CATEGORY:
                good = value == math.floor(value) and -1.0 <= value < table[f, 4]
            elif kind == FLAG:
                good = value == 0.0 or value == 1.0
            elif kind == CYCLIC:
                good = abs(value) <= turns * table[f, 1]
            else:
                good = not math.isinf(value)
            if not good:
                return False
    return True
