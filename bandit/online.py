"""Learn at once: a belief renewed after every outcome, for embedded use and for simulation.

A server publishes snapshots; a program that decides and learns one by one would publish after
every reward. These beliefs keep what a publication derives - means and square roots of the
covariance - up to date by rank-one updates instead. ``docs/math/online.md`` has the derivation.
"""

from abc import ABC, abstractmethod

import numpy as np

from bandit.features import FeatureMap
from bandit.kernels import factors, online
from bandit.kernels.compiling import Bools, Floats, Ints, Words
from bandit.logistic import LogisticPosterior
from bandit.posterior import GaussianPosterior, Moments
from bandit.snapshot import IndependentScores


class OnlineBelief(ABC):
    """A Gaussian belief about weights that is renewed by every outcome.

    Decisions are named by their number: the same belief gives the same number the same draw.
    Reads are thread-safe among themselves, not beside ``learn``.

    Parameters
    ----------
    prior, start
        Moments of the empty posterior and of the one to start from.
    exploration
        Multiplies the posterior standard deviation.
    stream
        Names the draws.
    noise_sd
        Known noise, or None if it is learned.
    is_logistic
        Whether rewards are successes of a logistic model, on whose scale the weights live.
    half_life
        After which an outcome weighs half, in the unit of the times given to ``learn``.
    """

    def __init__(  # noqa: PLR0913  what a belief consists of
        self,
        prior: Moments,
        start: Moments,
        *,
        exploration: float,
        stream: Words,
        noise_sd: float | None = None,
        is_logistic: bool = False,
        half_life: float | None = None,
    ) -> None:
        known = 1.0 if is_logistic else (noise_sd or 0.0) ** 2
        noise = [start.shape, start.scale, known, exploration]
        self._state = np.array([*noise, *stream.astype(np.float64), float(is_logistic)])
        last = Moments(prior.mean[-1:].copy(), prior.lower[-1:].copy(), *prior[2:])
        self._prior = last  # all blocks have the same prior, and there may be thousands
        self._half_life = half_life
        self._landmark: float | None = None

    @abstractmethod
    def draw(self, x: Floats, eligible: Bools, number: int) -> int:
        """Give decision ``number`` for features ``x : (d,)`` among ``eligible : (k,)``."""

    @abstractmethod
    def draw_batch(self, x: Floats, eligible: Bools, number: int) -> Ints:
        """Give decisions ``number`` and on for ``x : (n, d)``: as ``draw`` does, bit for bit."""

    @abstractmethod
    def learn_batch(self, x: Floats, actions: Ints, rewards: Floats) -> None:
        """Add outcomes in order, as ``learn`` does one by one."""

    def learn(self, x: Floats, action: int, reward: float, time: float = 0.0) -> None:
        """Add one outcome, of a decision made at ``time``.

        Notes
        -----
        With a half-life, outcomes weigh ``2**((time - landmark) / half_life)`` (forward decay)
        and the landmark moves, with a refactoring, every fiftieth of a half-life: until then
        the prior weighs up to 1.4 % too little.
        """
        self.add(x, action, reward, 1.0 if self._half_life is None else self._fade(time))

    def _fade(self, time: float) -> float:
        half_life = self._half_life or 1.0
        if self._landmark is None:
            self._landmark = time
        passed = (time - self._landmark) / half_life
        if passed > 0.02:
            self.forget(2.0**-passed)
            self._landmark, passed = time, 0.0
        return float(2.0**passed)

    @abstractmethod
    def add(self, x: Floats, action: int, reward: float, weight: float) -> None:
        """Add one outcome that counts ``weight``."""

    @abstractmethod
    def forget(self, share: float) -> None:
        """Keep a share in (0, 1] of all that was learned; the prior stays."""

    def _faded(self, mean: Floats, precision: Floats, share: float) -> tuple[Floats, Floats]:
        """Give mean and factor of a block's precision when its data count ``share``."""
        prior = factors.multiply_lower(self._prior.lower[-1])
        pull = share * _times(precision, mean)
        pull += (1.0 - share) * _times(prior, self._prior.mean[-1])
        mixed = share * precision + (1.0 - share) * prior
        kept = factors.cholesky(mixed, np.zeros(len(mean)))
        return factors.solve_mean(kept, pull)[0], kept

    def _fade_noise(self, share: float) -> None:
        prior = np.array([self._prior.shape, self._prior.scale])
        self._state[:2] = prior + share * (self._state[:2] - prior)


def _times(lower: Floats, vector: Floats) -> Floats:
    """Multiply by the symmetric matrix whose lower triangle is given."""
    whole = lower + np.tril(lower, -1).T
    return np.asarray((whole * vector).sum(axis=1))


def begin(
    posterior: GaussianPosterior | LogisticPosterior,
    *,
    exploration: float,
    stream: Words,
    half_life: float | None = None,
) -> "OnlineArms | OnlineWeights":
    """Go on from a posterior, learning at once.

    Parameters
    ----------
    posterior
        Where to start; not changed.
    exploration, stream, half_life
        As in ``OnlineBelief``.
    """
    features, is_logistic = posterior.features, isinstance(posterior, LogisticPosterior)
    noise_sd = posterior.noise.sd if isinstance(posterior, GaussianPosterior) else None
    settings: dict[str, object] = {
        "exploration": exploration,
        "stream": stream,
        "noise_sd": noise_sd,
        "is_logistic": is_logistic,
        "half_life": half_life,
    }
    prior, start = posterior.empty().moments(), posterior.moments()
    if features.is_disjoint:
        return OnlineArms(prior, start, **settings)
    return OnlineWeights(prior, start, features=features, **settings)


class OnlineArms(OnlineBelief):
    """Arms with weights of their own: a triangular root per arm, arm-minor.

    Notes
    -----
    ``draw`` costs O(k d**2 / 2), ``learn`` O(1.5 d**2). Memory: k (d + d (d + 1) / 2) floats.
    """

    def __init__(self, prior: Moments, start: Moments, **settings: object) -> None:
        super().__init__(prior, start, **settings)  # type: ignore[arg-type]
        roots = [factors.invert_lower(lower) for lower in start.lower]
        self._arms = np.ascontiguousarray(np.hstack([start.mean, np.array(roots)]).T)

    def draw(self, x: Floats, eligible: Bools, number: int) -> int:
        """Draw every arm's score and take the best."""
        return online.draw_arm(x, eligible, number, self._arms, self._state)

    def draw_batch(self, x: Floats, eligible: Bools, number: int) -> Ints:
        """Draw for many contexts, several at a time."""
        return online.draw_arms(x, eligible, number, self._arms, self._state)

    def learn(self, x: Floats, action: int, reward: float, time: float = 0.0) -> None:
        """Update one arm's root and mean; as for every belief, without a call in between."""
        weight = 1.0 if self._half_life is None else self._fade(time)
        online.learn_arm(x, action, reward, weight, self._arms, self._state)

    def add(self, x: Floats, action: int, reward: float, weight: float) -> None:
        """Update one arm's root and mean."""
        online.learn_arm(x, action, reward, weight, self._arms, self._state)

    def learn_batch(self, x: Floats, actions: Ints, rewards: Floats) -> None:
        """Update in one call."""
        online.learn_arms(x, actions, rewards, self._arms, self._state)

    def forget(self, share: float) -> None:
        """Refactor every arm: O(k d**3)."""
        d = self._prior.mean.shape[1]
        for a in range(self._arms.shape[1]):
            root = factors.unpack_lower(self._arms[d:, a].copy(), d)
            lower = factors.unpack_lower(factors.invert_lower(root), d)
            precision = factors.multiply_lower(lower)
            mean, kept = self._faded(self._arms[:d, a].copy(), precision, share)
            self._arms[:d, a] = mean
            self._arms[d:, a] = factors.invert_lower(kept)
        self._fade_noise(share)

    def add_arms(self, count: int) -> None:
        """Add arms at the end that start from the prior."""
        root = factors.invert_lower(self._prior.lower[-1])
        column = np.concatenate([self._prior.mean[-1], root])[:, None]
        self._arms = np.hstack([self._arms, np.repeat(column, count, axis=1)])

    def scores(self, x: Floats, number: int) -> Floats:
        """Give the scores that decision ``number`` compares, shape (k,)."""
        return online.score_arms(x, number, self._arms, self._state)

    def belief(self) -> IndependentScores:
        """Publish: the belief as policies and propensities read it."""
        d = self._prior.mean.shape[1]
        scale = online.scale_of(self._state)
        return IndependentScores(self._arms[:d].copy(), scale * self._arms[d:])


class OnlineWeights(OnlineBelief):
    """Weights that actions share: one square root of the whole covariance.

    Notes
    -----
    ``draw`` costs O(m**2), ``learn`` O(2 m**2). Memory: m**2 floats.
    """

    def __init__(
        self, prior: Moments, start: Moments, *, features: FeatureMap, **settings: object
    ) -> None:
        super().__init__(prior, start, **settings)  # type: ignore[arg-type]
        self._features = features
        self._set(start.mean[0], start.lower[0])

    def _set(self, mean: Floats, lower: Floats) -> None:
        self._mean = mean.copy()
        self._root = factors.unpack_lower(factors.invert_lower(lower), len(mean))

    def draw(self, x: Floats, eligible: Bools, number: int) -> int:
        """Draw all weights jointly and take the best action."""
        f = self._features
        return online.draw_shared(
            x,
            eligible,
            number,
            self._mean,
            self._root,
            self._state,
            f.layout,
            f.planes,
        )

    def draw_batch(self, x: Floats, eligible: Bools, number: int) -> Ints:
        """Draw for one context after the other."""
        return np.array([self.draw(row, eligible, number + i) for i, row in enumerate(x)])

    def add(self, x: Floats, action: int, reward: float, weight: float) -> None:
        """Update the root and the mean."""
        f = self._features
        online.learn_shared(
            x,
            action,
            reward,
            weight,
            f.layout,
            self._mean,
            self._root,
            self._state,
        )

    def learn_batch(self, x: Floats, actions: Ints, rewards: Floats) -> None:
        """Update one by one."""
        for row, action, reward in zip(x, actions.tolist(), rewards.tolist(), strict=True):
            self.add(row, action, reward, 1.0)

    def forget(self, share: float) -> None:
        """Refactor: O(m**3)."""
        m = len(self._mean)
        lower = factors.cholesky(factors.gram(self._root), np.zeros(m))
        precision = factors.gram(factors.unpack_lower(factors.invert_lower(lower), m))
        self._set(*self._faded(self._mean, precision, share))
        self._fade_noise(share)
