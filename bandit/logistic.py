"""What is believed about log-odds: the logistic posterior, for outcomes in [0, 1].

A Laplace approximation, and not an online one: the most recent rows are kept, so that mode
and curvature are found anew at every publication. ``docs/math/logistic.md`` derives it.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bandit.errors import CorruptionError, InvalidInputError
from bandit.features import FeatureMap
from bandit.kernels import logistic
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.posterior import Moments, Outcomes, Posterior

WINDOW_FLOATS = 262_144
LARGEST_FEATURE = 1e6


class Rows(NamedTuple):
    """The outcomes held that inform one block of weights.

    Attributes
    ----------
    order : (n,)
        Places in the window.
    x : (n, d)
    base : (n, t)
        First weight of the outcome's action in each term.
    crossed : (t,)
    weights : (n,)
    """

    order: Ints
    x: Floats
    base: Ints
    crossed: Bools
    weights: Floats


def capacity(width: int) -> int:
    """Give the number of outcomes that are kept as they are, for features of length ``width``.

    About 2 MB of them: 16,384 up to width 14, 5,041 at 50, never under 1,024.
    """
    return min(max(WINDOW_FLOATS // (width + 2), 1_024), 16_384)


def prior_mean(features: FeatureMap, base_rate: float) -> Floats:
    """Give the weights that predict ``base_rate`` for every action and context, shape (b, m).

    The first term carries it: the intercepts of its cells, or its numbers.
    """
    mean = np.zeros((features.blocks, features.weights))
    log_odds = math.log(base_rate / (1.0 - base_rate))
    if features.is_disjoint:
        mean[:, 0] = log_odds
    else:
        stride = features.width if features.crossed[0] else 1
        mean[0, : int(features.counts[0]) * stride : stride] = log_odds
    return mean


class LogisticPosterior(Posterior):
    """Gaussian belief about the weights of log-odds: mode and curvature of the log posterior.

    Outcomes count as they are until ``capacity`` of them are held. Then those of the blocks
    with most are thinned to half, and quadratic terms in ``precision`` and ``shift`` keep the
    log posterior's slope and curvature where they were.

    Parameters
    ----------
    features
        Which weights every action uses.
    base_rate
        Share of successes expected before the first outcome, in (0, 1).

    Notes
    -----
    Source: Bishop, Pattern Recognition and Machine Learning, 2006, section 4.5. A fold costs
    O(z) per outcome for z non-zero features, and O(n z**2 + m**3) once in ``capacity / 2``
    outcomes; ``moments`` O(n z**2 / 2 + b m**3 / 3) for each of some 6 Newton steps.
    Memory: ``b m**2`` floats and 2 MB.
    """

    kind = "logistic"

    def __init__(self, features: FeatureMap, base_rate: float = 0.5) -> None:
        self.features = features
        self.actions = features.space.size
        b, m, room = features.blocks, features.weights, capacity(features.width)
        self.prior_precision = np.broadcast_to(features.prior_precision, (b, m)).copy()
        self.prior_mean = prior_mean(features, base_rate)
        self.precision = np.zeros((b, m, m))
        self.shift = np.zeros((b, m))
        self.mode = self.prior_mean.copy()
        self.held = 0
        self._contexts = np.empty((room, features.width))
        self._chosen = np.empty(room)
        self._weights = np.empty(room)
        self.seq = self.count = 0

    def arrays(self) -> dict[str, Floats]:
        """Give the statistics, without the prior, and the window of ``held`` outcomes.

        ``precision (b, m, m)``, ``shift (b, m)``, ``mode (b, m)``, ``contexts (held, d)``,
        ``chosen (held,)``, ``weights (held,)``.
        """
        held = slice(self.held)
        return {
            "precision": self.precision,
            "shift": self.shift,
            "mode": self.mode,
            "contexts": self._contexts[held],
            "chosen": self._chosen[held],
            "weights": self._weights[held],
        }

    def load(self, arrays: dict[str, Floats], *, seq: int, count: int) -> None:
        """Replace the statistics by stored ones, whose window may hold more or less.

        Raises
        ------
        CorruptionError
            As for every posterior, and for an action or a weight that can not be.
        """
        try:
            chosen, weights, held = arrays["chosen"], arrays["weights"], len(arrays["contexts"])
        except (KeyError, TypeError):
            raise CorruptionError("stored statistics lack a window of outcomes") from None
        if held > len(self._chosen):
            raise CorruptionError(f"stored statistics hold {held} outcomes, too many")
        actions = np.isin(chosen, np.arange(self.actions))
        if not (actions.all() and (weights >= 0.0).all()):
            raise CorruptionError("stored outcomes hold an action or a weight that can not be")
        before, self.held = self.held, held
        try:
            super().load(arrays, seq=seq, count=count)
        except CorruptionError:
            self.held = before
            raise

    def _add(self, outcomes: Outcomes) -> None:
        x, actions, rewards = outcomes
        if not ((rewards >= 0.0) & (rewards <= 1.0)).all():
            raise InvalidInputError("logistic outcomes must be in [0, 1]", field="outcomes")
        if not (np.abs(x) <= LARGEST_FEATURE).all():
            raise InvalidInputError("features must be within +-1e6", field="outcomes")
        weights = np.ones(len(rewards))
        success = weights * rewards
        block = actions if self.features.is_disjoint else np.zeros_like(actions)
        base = self._base(actions)
        done = 0
        while done < len(rewards):
            if self.held == len(self._chosen):
                self._thin()
            more = min(len(rewards) - done, len(self._chosen) - self.held)
            new, free = slice(done, done + more), slice(self.held, self.held + more)
            self._contexts[free] = x[new]
            self._chosen[free] = actions[new]
            self._weights[free] = weights[new]
            logistic.add_successes(
                x[new], base[new], self.features.crossed, block[new], success[new], self.shift
            )
            self.held += more
            done += more

    def _base(self, actions: Ints) -> Ints:
        """Give the first weight of every action in each term, within its block, shape (n, t)."""
        f = self.features
        if f.is_disjoint:
            return np.zeros((len(actions), 1), dtype=np.int64)
        strides = np.where(f.crossed, f.width, 1)
        return np.ascontiguousarray((f.offsets + f.cells[:, actions].T * strides).astype(np.int64))

    def _blocks(self) -> list[Rows]:
        """Sort the window by block."""
        chosen = self._chosen[: self.held].astype(np.int64)
        base, crossed = self._base(chosen), self.features.crossed
        if not self.features.is_disjoint:
            order = np.arange(self.held)
            held = self._contexts[: self.held]
            return [Rows(order, held, base, crossed, self._weights[: self.held])]
        order = np.argsort(chosen, kind="stable")
        x, weights = self._contexts[order], self._weights[order]
        ends = np.cumsum(np.bincount(chosen, minlength=self.actions)).tolist()
        return [
            Rows(order[a:b], x[a:b], base[a:b], crossed, weights[a:b])
            for a, b in pairwise([0, *ends])
        ]

    def _fit(self, rows: Rows, i: int) -> tuple[Floats, Floats]:
        """Give the mode of block i and the factor of the curvature there."""
        return logistic.fit(
            *rows[1:],
            self.shift[i],
            self.precision[i],
            self.prior_precision[i],
            self.prior_mean[i],
            self.mode[i],
        )

    def _thin(self) -> None:
        """Thin the rows of the largest blocks, so that half of the window is free."""
        blocks = self._blocks()
        most = _level(np.array([len(rows.order) for rows in blocks]), len(self._chosen) // 2)
        for i, rows in enumerate(blocks):
            if len(rows.order) > most:
                self.mode[i], _ = self._fit(rows, i)
                self._weights[rows.order] = logistic.thin(
                    *rows[1:],
                    most,
                    self.mode[i],
                    self.prior_precision[i],
                    self.precision[i],
                    self.shift[i],
                )
        left = np.flatnonzero(self._weights[: self.held])
        self.held = len(left)
        for array in (self._contexts, self._chosen, self._weights):
            array[: self.held] = array[left]

    def moments(self) -> Moments:
        """Find the mode and the curvature of the log posterior; the noise variance is 1."""
        b, m = self.shift.shape
        mean, lower = np.empty((b, m)), np.empty((b, m, m))
        for i, rows in enumerate(self._blocks()):
            mean[i], lower[i] = self._fit(rows, i)
        return Moments(mean, lower, 1.0, 1.0, 1.0)


def _level(counts: Ints, total: int) -> int:
    """Give the largest q with ``sum(min(counts, q)) <= total``."""
    low, high = 0, total + 1
    while high - low > 1:
        middle = (low + high) // 2
        if int(np.minimum(counts, middle).sum()) <= total:
            low = middle
        else:
            high = middle
    return low
