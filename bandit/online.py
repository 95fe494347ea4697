"""Learn at once: a belief renewed after every outcome, for embedded use and for simulation.

A server publishes snapshots; a program that decides and learns one by one would publish after
every reward. These beliefs keep what a publication derives - means and square roots of the
covariance - up to date by rank-one updates instead. ``docs/math/online.md`` has the derivation.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
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
    by_surprise
        Whether the half-life is counted in surprise instead: see ``learn``.
    landmark
        Time at which what was learned so far weighs as it does; None is the first outcome's.
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
        by_surprise: bool = False,
        landmark: float | None = None,
    ) -> None:
        known = 1.0 if is_logistic else (noise_sd or 0.0) ** 2
        self._state = np.zeros(7)
        self._state[:5] = start.shape, start.scale, known, exploration, is_logistic
        online.stream_of(self._state)[:] = stream
        last = Moments(prior.mean[-1:].copy(), prior.lower[-1:].copy(), *prior[2:])
        self._prior = last  # all blocks have the same prior, and there may be thousands
        self._half_life = half_life
        self._by_surprise = by_surprise
        self._landmark = landmark
        self._surprise = 0.0  # the sum of all so far

    @abstractmethod
    def draw(self, x: Floats, eligible: Bools | None, number: int) -> int:
        """Give decision ``number`` for ``x : (d,)`` among ``eligible : (k,)``; None is all."""

    @abstractmethod
    def draw_batch(self, x: Floats, eligible: Bools | None, number: int) -> Ints:
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

        Counted in surprise, ``time`` is not used: the clock goes on by the squared error of the
        prediction over its variance, 1 in the mean while nothing changes (Fortescue,
        Kershenbaum & Ydstie, Automatica 17, 1981). One outcome makes it go on by a half-life at
        most. The noise is not forgotten then, or what surprises would soon be expected.
        """
        if self._half_life is None:
            self.add(x, action, reward, 1.0)
        else:
            self._learn_fading(x, action, reward, time)

    def _learn_fading(self, x: Floats, action: int, reward: float, time: float) -> None:
        if not self._by_surprise:
            self.add(x, action, reward, self._fade(time))
            return
        weight = self._fade(self._surprise)
        shape, scale, known = self._state[:3].tolist()
        self.add(x, action, reward, weight)
        # What an update adds to the noise's scale is half the weighted square of the error,
        # already divided by how much wider than the noise the prediction was.
        squared = 2.0 * (float(self._state[1]) - scale) / weight
        self._surprise += min(squared / (known or scale / shape), self._half_life or 0.0)

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
        """Keep a share in (0, 1] of all that was learned; the prior stays.

        So does the noise where the half-life is counted in surprise.
        """

    def _faded(self, mean: Floats, precision: Floats, share: float) -> "_Faded":
        """Give a block as it would be if its data had counted ``share``."""
        prior = factors.multiply_lower(self._prior.lower[-1])
        pull = _times(precision, mean)
        before = float((mean * pull).sum())
        pull = share * pull + (1.0 - share) * _times(prior, self._prior.mean[-1])
        mixed = share * precision + (1.0 - share) * prior
        lower = factors.cholesky(mixed, np.zeros(len(mean)))
        faded, after = factors.solve_mean(lower, pull)
        return _Faded(faded, lower, before, after)

    def _fade_noise(self, share: float, before: float, after: float) -> None:
        """Fade the sum of squares that the noise's scale holds beside what means explain."""
        if self._by_surprise:
            return
        shape, scale = self._state[:2]
        squares = share * (2.0 * (scale - self._prior.scale) + before)
        residual = max(squares - after, factors.EPSILON * squares)
        self._state[0] = self._prior.shape + share * (shape - self._prior.shape)
        self._state[1] = self._prior.scale + 0.5 * residual


class _Faded(NamedTuple):
    """Mean and factor of a block's precision, and ``mean' P mean`` before and after."""

    mean: Floats
    lower: Floats
    before: float
    after: float


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
    surprise_half_life: float | None = None,
) -> "OnlineArms | OnlineWeights":
    """Go on from a posterior, learning at once.

    Parameters
    ----------
    posterior
        Where to start; not changed.
    exploration, stream
        As in ``OnlineBelief``.
    half_life
        As in ``OnlineBelief``; None takes the posterior's.
    surprise_half_life
        Half-life in outcomes' worth of surprise, instead of in time; Gaussian posteriors only.

    Raises
    ------
    InvalidInputError
        If the posterior pools its prior, which would have to be fitted anew after every outcome,
        or has another half-life; if the half-life in surprise is not positive, comes beside one
        in time, or is asked for of a logistic posterior.
    """
    own = posterior.half_life
    if half_life is not None and own is not None and half_life != own:
        raise InvalidInputError(f"is {own} in the posterior, got {half_life}", field="half_life")
    if posterior.pooled:
        raise InvalidInputError("can not be learned at once", field="pooled")
    features, is_logistic = posterior.features, isinstance(posterior, LogisticPosterior)
    if surprise_half_life is not None:
        _check_surprise(surprise_half_life, is_logistic, half_life if own is None else own)
        half_life = surprise_half_life
    noise_sd = posterior.noise.sd if isinstance(posterior, GaussianPosterior) else None
    settings: dict[str, object] = {
        "exploration": exploration,
        "stream": stream,
        "noise_sd": noise_sd,
        "is_logistic": is_logistic,
        "half_life": half_life if own is None else own,
        "by_surprise": surprise_half_life is not None,
        "landmark": float(posterior.clock[2]) if own is not None and posterior.count else None,
    }
    prior = posterior.prior_moments()
    start = posterior.moments() if posterior.count else prior.of_blocks(features.blocks)
    if features.is_disjoint:
        return OnlineArms(prior, start, **settings)
    return OnlineWeights(prior, start, features=features, **settings)


def _check_surprise(half_life: float, is_logistic: bool, in_time: float | None) -> None:  # noqa: FBT001
    """Refuse a half-life in surprise that has no meaning."""
    at = "surprise_half_life"
    if not 1.0 <= half_life <= 1e12:
        raise InvalidInputError(f"must be in [1, 1e12] outcomes, got {half_life}", field=at)
    if is_logistic:
        raise InvalidInputError("needs a Gaussian posterior; use half_life", field=at)
    if in_time is not None:
        raise InvalidInputError(f"can not be set beside a half-life of {in_time} in time", field=at)


class OnlineArms(OnlineBelief):
    """Arms with weights of their own: a triangular root per arm, arm-minor.

    Notes
    -----
    ``draw`` costs O(k d**2 / 2), ``learn`` O(1.5 d**2). Memory: k (d + d (d + 1) / 2) floats.
    """

    def __init__(self, prior: Moments, start: Moments, **settings: object) -> None:
        super().__init__(prior, start, **settings)  # type: ignore[arg-type]
        k, d = start.mean.shape
        arms = np.empty((d + d * (d + 1) // 2, k))
        arms[:d] = start.mean.T
        for a in range(k):
            arms[d:, a] = factors.invert_lower(start.lower[a])
        self._hold(arms)

    @property
    def arrays(self) -> tuple[Floats, Floats]:
        """What ``bandit.kernels.online`` takes and changes: arms and state, not copied."""
        return self._arms, self._state

    def _hold(self, arms: Floats) -> None:
        self._arms = arms
        self._draw = online.draw_few if arms.shape[1] < 8 else online.draw_arm

    def draw(self, x: Floats, eligible: Bools | None, number: int) -> int:
        """Draw every arm's score and take the best."""
        return self._draw(x, eligible, number, self._arms, self._state)

    def draw_batch(self, x: Floats, eligible: Bools | None, number: int) -> Ints:
        """Draw for many contexts, several at a time."""
        return online.draw_arms(x, eligible, number, self._arms, self._state)

    def learn(self, x: Floats, action: int, reward: float, time: float = 0.0) -> None:
        """Update one arm's root and mean; as for every belief, without a call in between."""
        if self._half_life is None:
            online.learn_arm(x, action, reward, 1.0, self._arms, self._state)
        else:
            self._learn_fading(x, action, reward, time)

    def add(self, x: Floats, action: int, reward: float, weight: float) -> None:
        """Update one arm's root and mean."""
        online.learn_arm(x, action, reward, weight, self._arms, self._state)

    def learn_batch(self, x: Floats, actions: Ints, rewards: Floats) -> None:
        """Update in one call, or one by one where each says how much is forgotten."""
        if self._by_surprise:
            for row, action, reward in zip(x, actions.tolist(), rewards.tolist(), strict=True):
                self.learn(row, action, reward)
        else:
            online.learn_arms(x, actions, rewards, self._arms, self._state)

    def forget(self, share: float) -> None:
        """Refactor every arm: O(k d**3)."""
        d, before, after = self._prior.mean.shape[1], 0.0, 0.0
        for a in range(self._arms.shape[1]):
            root = factors.unpack_lower(self._arms[d:, a].copy(), d)
            lower = factors.unpack_lower(factors.invert_lower(root), d)
            precision = factors.multiply_lower(lower)
            faded = self._faded(self._arms[:d, a].copy(), precision, share)
            self._arms[:d, a] = faded.mean
            self._arms[d:, a] = factors.invert_lower(faded.lower)
            before += faded.before
            after += faded.after
        self._fade_noise(share, before, after)

    def add_arms(self, count: int) -> None:
        """Add arms at the end that start from the prior."""
        root = factors.invert_lower(self._prior.lower[-1])
        column = np.concatenate([self._prior.mean[-1], root])[:, None]
        self._hold(np.hstack([self._arms, np.repeat(column, count, axis=1)]))

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
        self._everyone = np.ones(features.space.size, dtype=np.bool_)
        self._set(start.mean[0], start.lower[0])

    @property
    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """What ``bandit.kernels.online`` takes and changes: mean, root and state, not copied."""
        return self._mean, self._root, self._state

    def _set(self, mean: Floats, lower: Floats) -> None:
        self._mean = mean.copy()
        self._root = factors.unpack_lower(factors.invert_lower(lower), len(mean))

    def draw(self, x: Floats, eligible: Bools | None, number: int) -> int:
        """Draw all weights jointly and take the best action."""
        f = self._features
        return online.draw_shared(
            x,
            self._everyone if eligible is None else eligible,
            number,
            self._mean,
            self._root,
            self._state,
            f.layout,
            f.planes,
        )

    def draw_batch(self, x: Floats, eligible: Bools | None, number: int) -> Ints:
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
            if self._by_surprise:
                self.learn(row, action, reward)
            else:
                self.add(row, action, reward, 1.0)

    def forget(self, share: float) -> None:
        """Refactor: O(m**3)."""
        m = len(self._mean)
        lower = factors.cholesky(factors.gram(self._root), np.zeros(m))
        precision = factors.gram(factors.unpack_lower(factors.invert_lower(lower), m))
        faded = self._faded(self._mean, precision, share)
        self._set(faded.mean, faded.lower)
        self._fade_noise(share, faded.before, faded.after)
