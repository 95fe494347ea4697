"""The published belief that decisions read: immutable, versioned, and fast to score.

Three forms, by the structure of the posterior: independent arms (moments of every score),
shared weights (a bank of joint draws), and no context (tabulated scores). Each gives the
propensity of every action and the draw from it; see ``docs/decisions/0003-propensities.md``.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bandit import propensity
from bandit.errors import BanditError, CorruptionError
from bandit.features import FeatureMap
from bandit.kernels import deciding, factors, moments
from bandit.kernels.compiling import Bools, Floats, Ints, Words
from bandit.logistic import LogisticPosterior
from bandit.posterior import BetaBernoulliPosterior, GaussianPosterior, Posterior


class Asked(NamedTuple):
    """A batch of decisions to make.

    Attributes
    ----------
    x : (n, d)
        Features of the contexts.
    which : (n,)
        Row of ``masks`` that holds each decision's eligible actions, at least one.
    masks : (e, k)
    streams : (n, 4)
        Name of each decision's random stream.
    """

    x: Floats
    which: Ints
    masks: Bools
    streams: Words


class Choices(NamedTuple):
    """Chosen actions, shape (n,), and propensities of all actions, (n, k) or None."""

    actions: Ints
    propensities: Floats | None


class Belief(Protocol):
    """A published posterior."""

    def decide(self, asked: Asked, floor: float) -> Choices:
        """Compute every eligible action's propensity, at least ``floor``, and draw from them."""
        ...

    def draw(self, asked: Asked, floor: float) -> Choices:
        """Draw from the same distribution without computing it."""
        ...

    def moments(self, asked: Asked) -> tuple[Floats, Floats]:
        """Give mean and standard deviation, exploration included, of every action's score.

        Returns
        -------
        (n, k) and (n, k)
            Of all actions, eligible or not, in the reward's unit.
        """
        ...

    def means(self, asked: Asked) -> Floats:
        """Give the means of ``moments`` alone, where they are cheaper."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class IndependentScores:
    """Arms with weights of their own: score moments in closed form, exact propensities.

    Attributes
    ----------
    mean : (d, k)
        Posterior means, arm-minor.
    root : (d (d + 1) / 2, k)
        Packed triangular roots of the covariances times the exploration scale, arm-minor.
    """

    mean: Floats
    root: Floats

    def decide(self, asked: Asked, floor: float) -> Choices:
        """Decide with propensities exact to about 1e-10 (piecewise Gauss-Legendre)."""
        nodes, marks = propensity.NODES, propensity.MARKS
        return Choices(
            *deciding.decide_independent(*asked, self.mean, self.root, nodes, marks, floor)
        )

    def draw(self, asked: Asked, floor: float) -> Choices:
        """Draw one score per arm and take the best."""
        return Choices(deciding.draw_independent(*asked, self.mean, self.root, floor), None)

    def moments(self, asked: Asked) -> tuple[Floats, Floats]:
        """Give the moments in closed form."""
        k = asked.masks.shape[1]
        return moments.independent_moments(asked.x, self.mean, self.root, k)

    def means(self, asked: Asked) -> Floats:
        """Give the means."""
        return self.moments(asked)[0]


@dataclass(frozen=True, slots=True, eq=False)
class SampleBank:
    """Shared weights: joint draws made once; a propensity is a share of their wins.

    Attributes
    ----------
    bank : (m, draws)
    features
        Which weights every action uses.
    mean : (m,)
        Posterior means of the weights.
    """

    bank: Floats
    features: FeatureMap
    mean: Floats

    def decide(self, asked: Asked, floor: float) -> Choices:
        """Decide by the shares of wins, mixed with the floor."""
        f = self.features
        return Choices(
            *deciding.decide_joint(
                *asked,
                self.bank,
                f.layout,
                f.planes,
                floor,
            )
        )

    def draw(self, asked: Asked, floor: float) -> Choices:
        """Take the best action of one member of the bank."""
        f = self.features
        actions = deciding.draw_joint(*asked, self.bank, f.layout, f.planes, floor)
        return Choices(actions, None)

    def moments(self, asked: Asked) -> tuple[Floats, Floats]:
        """Give exact means, and spreads of the bank: their error is about 1 / sqrt(2 draws)."""
        f = self.features
        return moments.joint_moments(asked.x, self.mean, self.bank, f.layout, f.planes)

    def means(self, asked: Asked) -> Floats:
        """Give the means without a look at the bank."""
        f = self.features
        return moments.joint_means(asked.x, self.mean, f.layout, f.planes)


@dataclass(frozen=True, slots=True, eq=False)
class TabulatedScores:
    """Arms without context: CDF and density of every arm at common nodes.

    Attributes
    ----------
    cdf, density : (g, k)
    mean, sd : (k,)
        Mean, and standard deviation times the exploration scale, of every arm.
    """

    cdf: Floats
    density: Floats
    mean: Floats
    sd: Floats

    def decide(self, asked: Asked, floor: float) -> Choices:
        """Decide with exact propensities."""
        _, which, masks, streams = asked
        return Choices(
            *deciding.decide_tabulated(which, masks, streams, self.cdf, self.density, floor)
        )

    def draw(self, asked: Asked, floor: float) -> Choices:
        """Draw from the computed propensities: they cost one pass over the table."""
        return Choices(self.decide(asked, floor).actions, None)

    def moments(self, asked: Asked) -> tuple[Floats, Floats]:
        """Give the same moments to every context."""
        n = len(asked.which)
        return np.tile(self.mean, (n, 1)), np.tile(self.sd, (n, 1))

    def means(self, asked: Asked) -> Floats:
        """Give the same means to every context."""
        return np.tile(self.mean, (len(asked.which), 1))


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A published copy of the posterior.

    Attributes
    ----------
    version
        Counts publications; 0 is the prior.
    seq
        Log position up to which outcomes were folded.
    count
        Outcomes folded.
    belief
        What policies read.
    model_id
        Of the experiment that it decides for: ``ExperimentSpec.model_id``.
    """

    version: int
    seq: int
    count: int
    belief: Belief
    model_id: bytes = b""


def publish(  # noqa: PLR0913  named, and all but the posterior come from the experiment
    posterior: Posterior,
    *,
    version: int,
    exploration: float,
    draws: int,
    stream: Words,
    model_id: bytes = b"",
) -> Snapshot:
    """Derive from the posterior what decisions read.

    Parameters
    ----------
    exploration
        Multiplies the posterior standard deviation; 1 is calibrated, 0 is greedy.
    draws
        Size of the sample bank, where one is used.
    stream
        Name of the bank's random stream.
    model_id
        Of the experiment; without it policies can read the belief, but no experiment takes it.

    Notes
    -----
    Independent arms: O(k d**3 / 2). Shared weights: O(m**3 / 3 + draws m**2 / 2).
    """
    match posterior:
        case GaussianPosterior() | LogisticPosterior():
            belief = _gaussian(posterior, exploration, draws, stream)
        case BetaBernoulliPosterior():
            belief = _beta(posterior, exploration)
        case _:
            raise BanditError(f"no published form for {type(posterior).__name__}")
    return Snapshot(version, posterior.seq, posterior.count, belief, model_id)


def _gaussian(
    posterior: GaussianPosterior | LogisticPosterior, exploration: float, draws: int, stream: Words
) -> Belief:
    mean, lower, variance, _, _ = posterior.moments()
    scale = exploration * float(np.sqrt(variance))
    if not posterior.features.is_disjoint:
        bank = factors.draw_bank(mean[0], lower[0], scale, stream, draws)
        _check_finite(bank)
        return SampleBank(bank, posterior.features, mean[0])
    roots = [scale * factors.invert_lower(factor) for factor in lower]
    root = np.ascontiguousarray(np.array(roots).T)
    _check_finite(mean, root)
    return IndependentScores(np.ascontiguousarray(mean.T), root)


def _check_finite(*arrays: Floats) -> None:
    """Refuse to publish a belief that is none; the snapshot before it goes on deciding."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise CorruptionError("the posterior is numerically singular; use a smaller prior_sd")


def _beta(posterior: BetaBernoulliPosterior, exploration: float) -> Belief:
    successes, failures = posterior.parameters()
    total = successes + failures
    mean = successes / total
    sd = exploration * np.sqrt(mean * (failures / total) / (total + 1.0))
    if exploration == 0.0:
        return TabulatedScores(*propensity.rank_table(mean), mean, sd)
    narrow = exploration**-2.0
    table = propensity.beta_table(
        np.maximum(successes * narrow, 0.5), np.maximum(failures * narrow, 0.5)
    )
    return TabulatedScores(*table, mean, sd)
