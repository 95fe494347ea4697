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
from bandit.kernels import forgetting, logistic, pooling
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.pooling import Prior, pooled_prior
from bandit.posterior import Moments, Outcomes, Posterior, are_rates

WINDOW_FLOATS = 262_144
LARGEST_FEATURE = 1e6
EXPANSIONS = (2, 4, 8)
"""Rounds of the pooled prior's fixed point, for each time the likelihood is expanded."""

LEAST_SHARE = 0.02
"""Least precision of a pooled prior, as a share of the declared one: above what thinning may
take from the curvature (``kernels.logistic.SPARE``), so that the log posterior has one mode."""


class Rows(NamedTuple):
    """The outcomes held that inform one block of weights.

    Attributes
    ----------
    order : (n,)
        Places in the window.
    x : (n, d)
    base : (n, t)
        First weight of the outcome's action in each term; a term with attributes counts once
        for each of its parts.
    load : (n, t)
        What multiplies it: 1, or an attribute.
    crossed : (t,)
    weights : (n,)
    """

    order: Ints
    x: Floats
    base: Ints
    load: Floats
    crossed: Bools
    weights: Floats


def capacity(width: int) -> int:
    """Give the number of outcomes that are kept as they are, for features of length ``width``.

    About 2 MB of them: 16,384 up to width 14, 5,041 at 50, never under 1,024.
    """
    return min(max(WINDOW_FLOATS // (width + 2), 1_024), 16_384)


def prior_mean(features: FeatureMap, base_rate: float) -> Floats:
    """Give the weights that predict ``base_rate`` for every action and context, shape (b, m).

    The first term without attributes carries it: the intercepts of its cells, or its numbers.
    """
    mean = np.zeros((features.blocks, features.weights))
    log_odds = math.log(base_rate / (1.0 - base_rate))
    if features.is_disjoint:
        mean[:, 0] = log_odds
        return mean
    plain = np.flatnonzero(features.parts == 0)
    if len(plain):
        j = int(plain[0])
        stride = features.width if features.crossed[j] else 1
        first = int(features.offsets[j])
        mean[0, first : first + int(features.counts[j]) * stride : stride] = log_odds
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
    half_life
        Seconds after which an outcome weighs half; None never forgets.
    pooled
        Whether blocks share a prior that is fitted from all their outcomes, whenever moments
        are derived and whenever outcomes are thinned; for actions with weights of their own.

    Notes
    -----
    Source: Bishop, Pattern Recognition and Machine Learning, 2006, section 4.5. A fold costs
    O(z) per outcome for z non-zero features, and O(n z**2 + m**3) once in ``capacity / 2``
    outcomes; ``moments`` O(n z**2 / 2 + b m**3 / 3) for each of some 6 Newton steps.
    Memory: ``b m**2`` floats and 2 MB.
    """

    kind = "logistic"

    def __init__(
        self,
        features: FeatureMap,
        base_rate: float = 0.5,
        half_life: float | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__(half_life)
        self._declared = (features, base_rate, half_life)
        self.pooled = pooled
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
        self._peak = np.ones(1)

    def empty(self) -> "LogisticPosterior":
        """Give the same posterior before any outcome."""
        return LogisticPosterior(*self._declared, pooled=self.pooled)

    def statistics(self) -> dict[str, Floats]:
        """Give what fades: ``precision (b, m, m)``, ``shift (b, m)``, ``weights (held,)``.

        With a half-life also ``peak (1,)``, the largest weight that entered.
        """
        peak = {} if self.half_life is None else {"peak": self._peak}
        weights = self._weights[: self.held]
        return {"precision": self.precision, "shift": self.shift, "weights": weights, **peak}

    def arrays(self) -> dict[str, Floats]:
        """Give all that is stored: what fades, and ``held`` rows of the window.

        ``mode (b, m)``, ``contexts (held, d)``, ``chosen (held,)``.
        """
        held = slice(self.held)
        window = {"contexts": self._contexts[held], "chosen": self._chosen[held]}
        return {**super().arrays(), "mode": self.mode, **window}

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

    def _move_landmark(self, to: float) -> None:
        super()._move_landmark(to)
        if self._peak[0] == 0.0:  # all is forgotten, to the last digit
            self._peak[0] = np.finfo(np.float64).tiny
            self.held = 0

    def _check(self, outcomes: Outcomes) -> None:
        super()._check(outcomes)
        if not are_rates(outcomes):
            raise InvalidInputError("logistic outcomes must be in [0, 1]", field="outcomes")
        if not (np.abs(outcomes.x) <= LARGEST_FEATURE).all():
            raise InvalidInputError("features must be within +-1e6", field="outcomes")

    def _add(self, outcomes: Outcomes, weights: Floats) -> None:
        x, actions, rewards = outcomes.x, outcomes.actions, outcomes.rewards
        success = weights * rewards
        block = actions if self.features.is_disjoint else np.zeros_like(actions)
        base, load, crossed = self._places(actions)
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
                x[new], base[new], load[new], crossed, block[new], success[new], self.shift
            )
            if self.half_life is not None:
                self._peak[0] = max(self._peak[0], weights[new].max())
            self.held += more
            done += more

    def _correct(self, outcomes: Outcomes, weights: Floats) -> None:
        """Move the sum that rewards enter by; rows, thinned or not, hold contexts alone."""
        actions = outcomes.actions
        rise = weights * (outcomes.rewards - outcomes.replaced)
        block = actions if self.features.is_disjoint else np.zeros_like(actions)
        logistic.add_successes(outcomes.x, *self._places(actions), block, rise, self.shift)

    def _places(self, actions: Ints) -> tuple[Ints, Floats, Bools]:
        """Give ``base``, ``load`` and ``crossed`` of ``Rows`` for some actions."""
        f, n = self.features, len(actions)
        if f.is_disjoint:
            return np.zeros((n, 1), dtype=np.int64), np.ones((n, 1)), f.crossed
        base: list[Ints] = []
        load: list[Floats] = []
        crossed: list[bool] = []
        for j, first in enumerate(f.offsets.tolist()):
            stride, cells, parts = f.width if f.crossed[j] else 1, f.cells[j, actions], f.parts[j]
            if parts == 0:
                base.append(first + cells.astype(np.int64) * stride)
                load.append(np.ones(n))
            for part in range(int(parts)):
                base.append(np.full(n, first + part * stride))
                load.append(f.loads[j, cells, part])
            crossed += [bool(f.crossed[j])] * max(int(parts), 1)
        columns = np.ascontiguousarray(np.array(base, dtype=np.int64).reshape(len(base), n).T)
        loads = np.ascontiguousarray(np.array(load).reshape(len(load), n).T)
        return columns, loads, np.array(crossed, dtype=np.bool_)

    def _blocks(self) -> list[Rows]:
        """Sort the window by block."""
        chosen = self._chosen[: self.held].astype(np.int64)
        base, load, crossed = self._places(chosen)
        if not self.features.is_disjoint:
            order = np.arange(self.held)
            held = self._contexts[: self.held]
            return [Rows(order, held, base, load, crossed, self._weights[: self.held])]
        order = np.argsort(chosen, kind="stable")
        x, weights = self._contexts[order], self._weights[order]
        ends = np.cumsum(np.bincount(chosen, minlength=self.actions)).tolist()
        return [
            Rows(order[a:b], x[a:b], base[a:b], load[a:b], crossed, weights[a:b])
            for a, b in pairwise([0, *ends])
        ]

    def _fit(
        self, rows: Rows, i: int, factor: float, prior: Prior, start: Floats
    ) -> tuple[Floats, Floats]:
        """Give the mode of block i and the factor of the curvature there.

        ``factor`` turns weights at the landmark into weights now.
        """
        return logistic.fit(
            *rows[1:-1],
            factor * rows.weights,
            factor * self.shift[i],
            factor * self.precision[i],
            prior.precision[i],
            prior.mean[i],
            start[i],
        )

    def _thin(self) -> None:
        """Thin the rows of the largest blocks, so that half of the window is free."""
        blocks, factor = self._blocks(), 1.0 / self._peak[0]
        most = _level(np.array([len(rows.order) for rows in blocks]), len(self._chosen) // 2)
        prior, start = self._prior(blocks, factor)
        for i, rows in enumerate(blocks):
            if len(rows.order) > most:
                self.mode[i], _ = self._fit(rows, i, factor, prior, start)
                self._weights[rows.order] = logistic.thin(
                    *rows[1:],
                    most,
                    self.mode[i],
                    self._peak[0] * self.prior_precision[i],
                    self.precision[i],
                    self.shift[i],
                )
        left = np.flatnonzero(self._weights[: self.held])
        self.held = len(left)
        for array in (self._contexts, self._chosen, self._weights):
            array[: self.held] = array[left]

    def prior_moments(self) -> Moments:
        """Give the moments of one block before any outcome."""
        lower = np.diag(np.sqrt(self.prior_precision[-1]))[None]
        return Moments(self.prior_mean[-1:].copy(), lower, 1.0, 1.0, 1.0)

    def _prior(self, blocks: list[Rows], factor: float) -> tuple[Prior, Floats]:
        """Give the prior of every block, and weights from which to look for the modes.

        A pooled prior is fitted to quadratics that have the likelihoods' slopes and curvatures
        at the modes, which move as the prior does.
        """
        prior, start = Prior(self.prior_mean, self.prior_precision), self.mode
        if not self.pooled:
            return prior, start
        start, sums = start.copy(), np.zeros((len(blocks), 2))
        precision, shift = np.zeros_like(self.precision), np.zeros_like(self.shift)
        for rounds in EXPANSIONS:
            for i, rows in enumerate(blocks):
                if len(rows.order) == 0 and not self.precision[i].any():
                    continue
                start[i], _ = self._fit(rows, i, factor, prior, start)
                precision[i], pull = logistic.expand(
                    *rows[1:-1],
                    factor * rows.weights,
                    factor * self.shift[i],
                    factor * self.precision[i],
                    start[i],
                )
                shift[i], _ = pooling.centre(precision[i], pull, self.prior_mean[i])
            declared = self.features.prior_precision
            mean, fitted = pooled_prior(
                precision, shift, sums, declared, variance=1.0, rounds=rounds
            )
            prior = Prior(
                self.prior_mean + mean, np.maximum(fitted, LEAST_SHARE * self.prior_precision)
            )
        return prior, start

    def _now(self) -> float:
        """Give what turns weights at the landmark into weights now."""
        return 1.0 if self.half_life is None else forgetting.present(self.half_life, self.clock)

    def prior(self) -> Prior:
        """Give the prior of every block: the declared one, or the one fitted to all blocks."""
        return self._prior(self._blocks(), self._now())[0]

    def moments(self) -> Moments:
        """Find the mode and the curvature of the log posterior; the noise variance is 1."""
        b, m = self.shift.shape
        mean, lower = np.empty((b, m)), np.empty((b, m, m))
        blocks, factor = self._blocks(), self._now()
        prior, start = self._prior(blocks, factor)
        for i, rows in enumerate(blocks):
            mean[i], lower[i] = self._fit(rows, i, factor, prior, start)
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
