"""What is believed about the weights, as additive statistics of the outcomes seen.

A posterior is a fold: statistics after entries 1..n are a pure function of those entries in
order, bit for bit. Derived quantities (means, factors, banks) are computed when a snapshot
is published, never stored.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bandit.errors import CorruptionError, InvalidInputError
from bandit.features import FeatureMap
from bandit.kernels import factors, folding, forgetting, pooling
from bandit.kernels.compiling import Floats, Ints
from bandit.pooling import Prior, declared_prior, pooled_beta, pooled_prior

LARGEST_OUTCOME = 1e15
LATEST_TIME = 1e12
ONE = np.ones(1)
"""The weights of one outcome, made once: that is a sixth of the time that folding it takes."""


_TIMELESS = np.empty(0)
_TIMELESS.flags.writeable = False


class Outcomes(NamedTuple):
    """Outcomes in log order.

    Attributes
    ----------
    x : (n, d)
        Features of the contexts decided on.
    actions : (n,)
    rewards : (n,)
        In the reward's own unit.
    times : (n,)
        When the decisions were made, in seconds; read, and needed, only where a half-life is
        set.
    replaced : (n,)
        For a correction the outcome that was folded before and that it replaces, else NaN; empty:
        there is no correction.
    """

    x: Floats
    actions: Ints
    rewards: Floats
    times: Floats = _TIMELESS
    replaced: Floats = _TIMELESS

    def part(self, start: int, stop: int) -> "Outcomes":
        """Give some neighbours."""
        x, actions, rewards, times, replaced = self
        here = slice(start, stop)
        return Outcomes(x[here], actions[here], rewards[here], times[here], replaced[here])


def are_rates(outcomes: Outcomes) -> bool:
    """Whether rewards, and the outcomes they replace, lie in [0, 1]."""
    rewards, replaced = outcomes.rewards, outcomes.replaced
    known = replaced[~np.isnan(replaced)]
    return all(((part >= 0.0) & (part <= 1.0)).all() for part in (rewards, known))


class Posterior(ABC):
    """Statistics of one experiment; changed only by ``fold``.

    Attributes
    ----------
    actions
        Number of actions ``k``.
    half_life
        Seconds after which an outcome weighs half; None keeps all at weight 1.
    clock : (3,)
        Time of the first outcome, seconds; the landmark at which a weight is 1, in half-lives
        after it; time of the latest outcome, seconds.
    seq
        Log position up to which entries were folded.
    count
        Number of outcomes folded, forgotten ones included.

    Notes
    -----
    Forward decay (Cormode, Shkapenyuk, Srivastava & Xu, ICDE 2009): an outcome enters with
    weight ``2**((time - landmark) / half_life)``, so that nothing folded is ever touched again
    and statistics stay sums. See ``docs/math/forgetting.md``.
    """

    kind: str
    actions: int
    half_life: float | None = None
    seq: int = 0
    count: int = 0

    def __init__(self, half_life: float | None = None) -> None:
        self.half_life = half_life
        self.clock = np.zeros(3)

    def fold(self, outcomes: Outcomes, *, seq: int) -> None:
        """Learn from outcomes, in order, and move to log position ``seq``.

        Raises
        ------
        InvalidInputError
            If a number is not finite or beyond +-1e15, a time is missing where a half-life is
            set, or an action is unknown; nothing is changed then.
        """
        if seq < self.seq:
            raise InvalidInputError(f"log position {seq} lies before {self.seq}", field="seq")
        self._check(outcomes)
        n = len(outcomes.rewards)
        half_life = self.half_life
        if n and half_life is None:
            self._take(outcomes, np.ones(n) if n > 1 else ONE)
        elif n and half_life is not None:
            self._fold_fading(outcomes, half_life)
        corrections = len(outcomes.replaced) and np.count_nonzero(~np.isnan(outcomes.replaced))
        self.count += n - int(corrections)
        self.seq = seq

    def _take(self, outcomes: Outcomes, weights: Floats) -> None:
        """Add outcomes and correct earlier ones, in order; runs of either go at once."""
        if len(outcomes.replaced) == 0:
            self._add(outcomes, weights)
            return
        corrects = ~np.isnan(outcomes.replaced)
        turns = np.flatnonzero(np.diff(corrects)) + 1
        for start, stop in pairwise([0, *turns.tolist(), len(weights)]):
            if corrects[start]:
                self._correct(outcomes.part(start, stop), weights[start:stop])
            else:
                self._add(outcomes.part(start, stop), weights[start:stop])

    def _check(self, outcomes: Outcomes) -> None:
        """Refuse outcomes of which one can not be folded."""
        n = len(outcomes.rewards)
        if not len(outcomes.x) == len(outcomes.actions) == n:
            raise InvalidInputError(
                "need as many contexts and actions as rewards", field="outcomes"
            )
        x, actions, rewards, _, replaced = outcomes
        if len(replaced) and not (
            len(replaced) == n
            and (np.abs(replaced) <= LARGEST_OUTCOME).all(where=~np.isnan(replaced))
        ):
            raise InvalidInputError(
                "need NaN or an outcome within +-1e15 for every reward", field="replaced"
            )
        fault = folding.are_sound(x, actions, rewards, self.actions, LARGEST_OUTCOME)
        if fault == 1:
            raise InvalidInputError("outcomes must be finite and within +-1e15", field="outcomes")
        if fault == 2:
            raise InvalidInputError(
                f"name an action outside 0 to {self.actions - 1}", field="outcomes"
            )
        if self.half_life is None:
            return
        if len(outcomes.times) != n:
            raise InvalidInputError(
                f"{len(outcomes.times)} for {n} outcomes: a half-life needs the time of every "
                "decision, in seconds",
                field="times",
            )
        if not (np.abs(outcomes.times) <= LATEST_TIME).all():
            raise InvalidInputError("must be finite seconds within +-1e12", field="times")

    def _fold_fading(self, outcomes: Outcomes, half_life: float) -> None:
        """Add outcomes by their weights; move the landmark where one is too far past it."""
        times, n = outcomes.times, len(outcomes.times)
        weights = np.empty(n)
        if self.count == 0:
            self.clock[:] = times[0], 0.0, times[0]
        start = 0
        while True:
            stop = forgetting.weigh(times, start, half_life, self.clock, weights)
            if stop > start:
                self._take(outcomes.part(start, stop), weights[start:stop])
            if stop == n:
                return
            whole, _ = forgetting.half_lives(times[stop] - self.clock[0], half_life)
            self._move_landmark(whole)
            start = stop

    def _move_landmark(self, to: float) -> None:
        """Count weights from a later whole half-life on: an exact power of two."""
        halvings = int(min(to - self.clock[1], 2_000.0))
        self.clock[1] = to
        for array in self.statistics().values():
            array *= math.ldexp(1.0, -halvings)

    @abstractmethod
    def _add(self, outcomes: Outcomes, weights: Floats) -> None:
        """Add outcomes that were checked; ``weights : (n,)`` counts them from the landmark."""

    @abstractmethod
    def _correct(self, outcomes: Outcomes, weights: Floats) -> None:
        """Let each of ``replaced`` leave and its reward enter; the context was added before."""

    @abstractmethod
    def statistics(self) -> dict[str, Floats]:
        """Give the sums by name, without the prior; weights count from the landmark."""

    def present(self) -> dict[str, Floats]:
        """Give the sums as of the latest outcome, which weighs 1 there."""
        if self.half_life is None:
            return self.statistics()
        factor = forgetting.present(self.half_life, self.clock)
        return {name: factor * array for name, array in self.statistics().items()}

    def arrays(self) -> dict[str, Floats]:
        """Give all that is stored by name: the statistics, and the clock of a half-life."""
        clock = {} if self.half_life is None else {"clock": self.clock}
        return {**self.statistics(), **clock}

    def load(self, arrays: dict[str, Floats], *, seq: int, count: int) -> None:
        """Replace the statistics by stored ones.

        Raises
        ------
        CorruptionError
            If names or shapes are not this posterior's, or a number is not finite.
        """
        mine = self.arrays()
        if {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in mine.items()}:
            raise CorruptionError("stored statistics do not fit the experiment's model")
        for name in mine:
            if not np.isfinite(arrays[name]).all():
                raise CorruptionError(
                    f"stored statistics {name!r} hold a number that is not finite"
                )
        for name, array in mine.items():
            array[...] = arrays[name]
        self.seq, self.count = seq, count


_NOISE = {"sd": (1e-15, 1e15), "shape": (1e-9, 1e9), "scale": (1e-40, 1e40)}
"""Limits; those of the scale leave room for what ``scale_for`` gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is believed about the reward noise.

    Parameters
    ----------
    sd
        Known standard deviation of the noise in the reward's unit, 1e-15 to 1e15; None learns it.
    shape, scale
        Inverse-gamma prior of the noise variance when it is learned (a0, b0). A scale of None
        stands for ``shape`` times a tenth of the square of the outcome's range: noise that is
        believed small before the best outcomes were met would also shrink the prior of the
        weights, which is in its units, and end exploration.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or both ``sd`` and ``scale`` are given.
    """

    sd: float | None = None
    shape: float = 1.0
    scale: float | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _NOISE.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidInputError(f"must be in [{least}, {most}], got {value}", field=name)
        if self.sd is not None and self.scale is not None:
            raise InvalidInputError(
                "is the prior of a noise that is learned, and sd says that it is known; give one "
                "of them",
                field="scale",
            )

    def scale_for(self, outcome_range: float = 1.0) -> float:
        """Give the scale, for outcomes that may differ by ``outcome_range``."""
        if self.scale is not None:
            return self.scale
        return max(self.shape * 0.1 * outcome_range * outcome_range, _NOISE["scale"][0])


class Moments(NamedTuple):
    """Derived quantities of a Gaussian posterior with b blocks of m weights.

    Attributes
    ----------
    mean : (b, m)
    lower : (b, m, m)
        Cholesky factors of the precision in units of the noise precision, so the
        covariance is ``noise_variance * inv(lower @ lower.T)``.
    noise_variance
        Known, or its estimate b_n / a_n.
    shape, scale
        Parameters (a_n, b_n) of the noise variance's inverse-gamma posterior.
    """

    mean: Floats
    lower: Floats
    noise_variance: float
    shape: float
    scale: float

    def of_blocks(self, count: int) -> "Moments":
        """Give ``count`` blocks that are all like the one there is, without copying it."""
        m = self.mean.shape[1]
        mean = np.broadcast_to(self.mean, (count, m))
        return Moments(mean, np.broadcast_to(self.lower, (count, m, m)), *self[2:])


class GaussianPosterior(Posterior):
    """Gaussian weights with known or learned noise (normal-inverse-gamma).

    ``P = prior + sum x x'`` and ``h = sum r x`` per block; blocks share one noise.

    Parameters
    ----------
    features
        Which weights every action uses.
    noise
        Known noise, or its prior.
    half_life
        Seconds after which an outcome weighs half; None never forgets.
    outcome_range
        How far outcomes may differ; sets the noise's prior where its scale is not declared.
    pooled
        Whether blocks share a prior that is fitted from all their statistics.

    Notes
    -----
    Source: Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3 and
    exercise 3.12. A fold costs O(z**2) per outcome for z non-zero features, ``moments``
    O(b m**3 / 3). Memory: ``b m**2`` floats.
    """

    kind = "gaussian"

    def __init__(
        self,
        features: FeatureMap,
        noise: Noise,
        half_life: float | None = None,
        *,
        pooled: bool = False,
        outcome_range: float = 1.0,
    ) -> None:
        super().__init__(half_life)
        self._declared = (features, noise, half_life, pooled, outcome_range)
        self.noise_scale = noise.scale_for(outcome_range)
        self.features = features
        self.actions = features.space.size
        self.noise = noise
        self.pooled = pooled
        b, m = features.blocks, features.weights
        self.precision = np.zeros((b, m, m))
        self.shift = np.zeros((b, m))
        self.sums = np.zeros((b, 2))

    def statistics(self) -> dict[str, Floats]:
        """Give ``precision (b, m, m)``, ``shift (b, m)`` and ``sums (b, 2)``, without the prior."""
        return {"precision": self.precision, "shift": self.shift, "sums": self.sums}

    def _add(self, outcomes: Outcomes, weights: Floats) -> None:
        x, actions, rewards, _, _ = outcomes
        state = self.precision, self.shift, self.sums
        if self.features.is_disjoint:
            folding.fold_dense(x, actions, rewards, weights, *state)
        else:
            folding.fold_sparse(x, actions, rewards, weights, self.features.layout, *state)

    def _correct(self, outcomes: Outcomes, weights: Floats) -> None:
        x, actions, rewards, _, replaced = outcomes
        state = self.shift, self.sums
        if self.features.is_disjoint:
            folding.correct_dense(x, actions, rewards, replaced, weights, *state)
        else:
            layout = self.features.layout
            folding.correct_sparse(x, actions, rewards, replaced, weights, layout, *state)

    def empty(self) -> "GaussianPosterior":
        """Give the same posterior before any outcome."""
        features, noise, half_life, pooled, outcome_range = self._declared
        return GaussianPosterior(
            features, noise, half_life, pooled=pooled, outcome_range=outcome_range
        )

    def prior_moments(self) -> Moments:
        """Give the moments of one block before any outcome."""
        precision = self.features.prior_precision
        mean, lower = np.zeros((1, len(precision))), np.diag(np.sqrt(precision))[None]
        shape, scale, known = self.noise.shape, self.noise_scale, self.noise.sd
        variance = scale / shape if known is None else known * known
        return Moments(mean, lower, variance, shape, scale)

    def prior(self) -> Prior:
        """Give the prior of every block: the declared one, or the one fitted to all blocks."""
        declared = self.features.prior_precision
        if not self.pooled:
            return declared_prior(declared, len(self.shift))
        noise, now = self.noise, self.present()
        return pooled_prior(
            *(now["precision"], now["shift"], now["sums"], declared),
            variance=None if noise.sd is None else noise.sd * noise.sd,
            shape=noise.shape,
            scale=self.noise_scale,
        )

    def moments(self) -> Moments:
        """Derive means, factors and the noise estimate.

        Notes
        -----
        The residual is a difference of sums, known to about ``eps (n + m)`` of their size; one
        below that is taken to be that, so that lost digits widen the belief.
        """
        now = self.present()
        precision, shift, sums = now["precision"], now["shift"], now["sums"]
        b, m = shift.shape
        mean, lower = np.empty((b, m)), np.empty((b, m, m))
        residual = 0.0
        prior = self.prior()
        for i in range(b):
            lower[i] = factors.cholesky(precision[i], prior.precision[i])
            rest, common = shift[i], 0.0
            if self.pooled:
                rest, common = pooling.centre(precision[i], rest, prior.mean[i])
            mean[i], explained = factors.solve_mean(lower[i], rest)
            mean[i] += prior.mean[i]
            count, squares = sums[i]
            least = factors.EPSILON * (count + m) * squares
            residual += max(squares - common - explained, least)
        shape = self.noise.shape + 0.5 * float(sums[:, 0].sum())
        scale = self.noise_scale + 0.5 * residual
        known = self.noise.sd
        variance = scale / shape if known is None else known * known
        return Moments(mean, lower, variance, shape, scale)


class BetaBernoulliPosterior(Posterior):
    """Counts of success and failure per action, for outcomes in [0, 1] and no context.

    Parameters
    ----------
    size
        Number of actions ``k``.
    prior : (successes, failures)
        Pseudo-counts of every action, at least 0.5 each.
    half_life
        Seconds after which an outcome weighs half; None never forgets.
    pooled
        Whether the prior is fitted from the counts of all actions.
    """

    kind = "beta_bernoulli"

    def __init__(
        self,
        size: int,
        prior: tuple[float, float],
        half_life: float | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__(half_life)
        self.declared = prior
        self.pooled = pooled
        self.actions = size
        self.counts = np.zeros((size, 2))

    def statistics(self) -> dict[str, Floats]:
        """Give ``counts (k, 2)``, without the prior."""
        return {"counts": self.counts}

    def _check(self, outcomes: Outcomes) -> None:
        super()._check(outcomes)
        if not are_rates(outcomes):
            raise InvalidInputError("Beta-Bernoulli outcomes must be in [0, 1]", field="outcomes")

    def _add(self, outcomes: Outcomes, weights: Floats) -> None:
        folding.fold_counts(outcomes.actions, outcomes.rewards, weights, self.counts)

    def _correct(self, outcomes: Outcomes, weights: Floats) -> None:
        folding.correct_counts(
            outcomes.actions, outcomes.rewards, outcomes.replaced, weights, self.counts
        )

    def prior(self) -> tuple[float, float]:
        """Give the prior pseudo-counts: the declared ones, or those fitted to all counts."""
        return (
            pooled_beta(self.present()["counts"], self.declared) if self.pooled else self.declared
        )

    def parameters(self) -> tuple[Floats, Floats]:
        """Give the Beta parameters of every action, two arrays of shape (k,)."""
        successes, failures = self.prior()
        counts = self.present()["counts"]
        return counts[:, 0] + successes, counts[:, 1] + failures
