"""Contexts as feature vectors."""

import math

import numpy as np

from bandit.kernels.arithmetic import log, sin_cos
from bandit.kernels.compiling import Floats, Words, kernel
from bandit.kernels.streams import fill_normals

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
def frequencies(stream: Words, columns: int, count: int) -> Floats:
    """Draw frequencies of the Matern-3/2 kernel of length scale 1, orthogonal in groups.

    Returns
    -------
    (columns, count)
        Each is Student-t with 3 degrees of freedom; each group of ``columns`` of them is
        orthogonal.

    Notes
    -----
    Source: Yu et al., Orthogonal random features, NeurIPS 2016, section 3. Gram-Schmidt, done
    twice; the lengths come from normals of their own.
    """
    out = np.empty((columns, count))
    units = np.empty((min(columns, count), columns))
    normals = np.empty(2 * columns + 3)
    for f in range(count):
        fill_normals(stream, f * (columns + 2), normals)
        at = f % columns
        unit = units[at]
        unit[:] = normals[:columns]
        for _ in range(2):
            for g in range(at):
                dot = 0.0
                for c in range(columns):
                    dot += units[g, c] * unit[c]
                for c in range(columns):
                    unit[c] -= dot * units[g, c]
        norm, length = 0.0, 0.0
        for c in range(columns):
            norm += unit[c] * unit[c]
            length += normals[columns + c] * normals[columns + c]
        a, b, c3 = normals[2 * columns], normals[2 * columns + 1], normals[2 * columns + 2]
        norm = math.sqrt(norm)
        length = math.sqrt(3.0 * length / (a * a + b * b + c3 * c3))
        for c in range(columns):
            unit[c] /= norm
            out[c, f] = length * unit[c]
    return out


@kernel
def add_waves(x: Floats, turns: Floats) -> None:
    """Fill the last columns of ``x : (n, 1 + c + 2 p)`` with the waves of its columns 1 to c.

    Parameters
    ----------
    turns : (c, p)
        Frequencies in turns per unit of a column.

    Notes
    -----
    ``sqrt(1 / p)`` times cosine and sine of every frequency, so the squares add up to 1.
    O(n p (non-zero columns + 1)).
    """
    columns, count = turns.shape
    scale = 1.0 / math.sqrt(count)
    phases = np.empty(count)
    for i in range(x.shape[0]):
        phases[:] = 0.0
        for c in range(columns):
            value = x[i, 1 + c]
            if value != 0.0:
                for f in range(count):
                    phases[f] += turns[c, f] * value
        at = 1 + columns
        for f in range(count):
            sine, cosine = sin_cos(phases[f])
            x[i, at], x[i, at + 1] = scale * cosine, scale * sine
            at += 2


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
