"""What is believed about the weights, as additive statistics of the outcomes seen.

A posterior is a fold: statistics after entries 1..n are a pure function of those entries in
order, bit for bit. Derived quantities (means, factors, banks) are computed when a snapshot
is published, never stored.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bandit.errors import CorruptionError, InvalidInputError
from bandit.features import FeatureMap
from bandit.kernels import factors, folding, pooling
from bandit.kernels.compiling import Floats, Ints
from bandit.pooling import Prior, declared_prior, pooled_beta, pooled_prior

LARGEST_OUTCOME = 1e15


class Outcomes(NamedTuple):
    """Outcomes in log order.

    Attributes
    ----------
    x : (n, d)
        Features of the contexts decided on.
    actions : (n,)
    rewards : (n,)
        In the reward's own unit.
    """

    x: Floats
    actions: Ints
    rewards: Floats


class Posterior(ABC):
    """Statistics of one experiment; changed only by ``fold``.

    Attributes
    ----------
    actions
        Number of actions ``k``.
    seq
        Log position up to which entries were folded.
    count
        Number of outcomes folded.
    """

    kind: str
    actions: int
    seq: int
    count: int

    def fold(self, outcomes: Outcomes, *, seq: int) -> None:
        """Learn from outcomes, in order, and move to log position ``seq``.

        Raises
        ------
        InvalidInputError
            If a number is not finite or beyond +-1e15; nothing is changed then.
        """
        if seq < self.seq:
            raise InvalidInputError(f"log position {seq} lies before {self.seq}", field="seq")
        if not (
            np.isfinite(outcomes.x).all() and (np.abs(outcomes.rewards) <= LARGEST_OUTCOME).all()
        ):
            raise InvalidInputError("outcomes must be finite and within +-1e15", field="outcomes")
        n = len(outcomes.rewards)
        if not len(outcomes.x) == len(outcomes.actions) == n:
            raise InvalidInputError(
                "need as many contexts and actions as rewards", field="outcomes"
            )
        if not ((outcomes.actions >= 0) & (outcomes.actions < self.actions)).all():
            raise InvalidInputError(
                f"name an action outside 0 to {self.actions - 1}", field="outcomes"
            )
        if n:
            self._add(outcomes)
        self.count += len(outcomes.rewards)
        self.seq = seq

    @abstractmethod
    def _add(self, outcomes: Outcomes) -> None: ...

    @abstractmethod
    def arrays(self) -> dict[str, Floats]:
        """Give the statistics by name."""

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
        for name, array in mine.items():
            if not np.isfinite(arrays[name]).all():
                raise CorruptionError(
                    f"stored statistics {name!r} hold a number that is not finite"
                )
            array[...] = arrays[name]
        self.seq, self.count = seq, count


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is believed about the reward noise.

    Parameters
    ----------
    sd
        Known standard deviation of the noise in the reward's unit; None learns it.
    shape, scale
        Inverse-gamma prior of the noise variance when it is learned (a0, b0).

    Raises
    ------
    InvalidInputError
        If a value is not positive.
    """

    sd: float | None = None
    shape: float = 1.0
    scale: float = 0.1

    def __post_init__(self) -> None:
        for name in ("sd", "shape", "scale"):
            value = getattr(self, name)
            if value is not None and not 1e-9 <= value <= 1e9:
                raise InvalidInputError(f"must be in [1e-9, 1e9], got {value}", field=name)


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


class GaussianPosterior(Posterior):
    """Gaussian weights with known or learned noise (normal-inverse-gamma).

    ``P = prior + sum x x'`` and ``h = sum r x`` per block; blocks share one noise.

    Parameters
    ----------
    features
        Which weights every action uses.
    noise
        Known noise, or its prior.
    pooled
        Whether blocks share a prior that is fitted from all their statistics.

    Notes
    -----
    Source: Bishop, Pattern Recognition and Machine Learning, 2006, section 3.3 and
    exercise 3.12. A fold costs O(z**2) per outcome for z non-zero features, ``moments``
    O(b m**3 / 3). Memory: ``b m**2`` floats.
    """

    kind = "gaussian"

    def __init__(self, features: FeatureMap, noise: Noise, *, pooled: bool = False) -> None:
        self.features = features
        self.actions = features.space.size
        self.noise = noise
        self.pooled = pooled
        b, m = features.blocks, features.weights
        self.precision = np.zeros((b, m, m))
        self.shift = np.zeros((b, m))
        self.sums = np.zeros((b, 2))
        self.seq = self.count = 0

    def arrays(self) -> dict[str, Floats]:
        """Give ``precision (b, m, m)``, ``shift (b, m)`` and ``sums (b, 2)``, without the prior."""
        return {"precision": self.precision, "shift": self.shift, "sums": self.sums}

    def _add(self, outcomes: Outcomes) -> None:
        x, actions, rewards = outcomes
        weights = np.ones(len(rewards))
        state = self.precision, self.shift, self.sums
        if self.features.is_disjoint:
            folding.fold_dense(x, actions, rewards, weights, *state)
        else:
            folding.fold_sparse(x, actions, rewards, weights, self.features.layout, *state)

    def prior(self) -> Prior:
        """Give the prior of every block: the declared one, or the one fitted to all blocks."""
        declared = self.features.prior_precision
        if not self.pooled:
            return declared_prior(declared, len(self.shift))
        noise = self.noise
        return pooled_prior(
            *(self.precision, self.shift, self.sums, declared),
            variance=None if noise.sd is None else noise.sd * noise.sd,
            shape=noise.shape,
            scale=noise.scale,
        )

    def moments(self) -> Moments:
        """Derive means, factors and the noise estimate."""
        b, m = self.shift.shape
        mean, lower = np.empty((b, m)), np.empty((b, m, m))
        residual = 0.0
        prior = self.prior()
        for i in range(b):
            lower[i] = factors.cholesky(self.precision[i], prior.precision[i])
            rest, common = self.shift[i], 0.0
            if self.pooled:
                rest, common = pooling.centre(self.precision[i], rest, prior.mean[i])
            mean[i], explained = factors.solve_mean(lower[i], rest)
            mean[i] += prior.mean[i]
            residual += max(self.sums[i, 1] - common - explained, 0.0)
        shape = self.noise.shape + 0.5 * float(self.sums[:, 0].sum())
        scale = self.noise.scale + 0.5 * residual
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
    pooled
        Whether the prior is fitted from the counts of all actions.
    """

    kind = "beta_bernoulli"

    def __init__(self, size: int, prior: tuple[float, float], *, pooled: bool = False) -> None:
        self.declared = prior
        self.pooled = pooled
        self.actions = size
        self.counts = np.zeros((size, 2))
        self.seq = self.count = 0

    def arrays(self) -> dict[str, Floats]:
        """Give ``counts (k, 2)``, without the prior."""
        return {"counts": self.counts}

    def _add(self, outcomes: Outcomes) -> None:
        rewards = outcomes.rewards
        if not ((rewards >= 0.0) & (rewards <= 1.0)).all():
            raise InvalidInputError("Beta-Bernoulli outcomes must be in [0, 1]", field="outcomes")
        folding.fold_counts(outcomes.actions, rewards, self.counts)

    def prior(self) -> tuple[float, float]:
        """Give the prior pseudo-counts: the declared ones, or those fitted to all counts."""
        return pooled_beta(self.counts, self.declared) if self.pooled else self.declared

    def parameters(self) -> tuple[Floats, Floats]:
        """Give the Beta parameters of every action, two arrays of shape (k,)."""
        successes, failures = self.prior()
        return self.counts[:, 0] + successes, self.counts[:, 1] + failures
