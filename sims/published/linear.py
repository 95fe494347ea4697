"""Linear Thompson sampling: the shuttle of Statlog, and Gaussian rewards in twenty weights.

The published LinFullPost believes in every arm apart (weights and noise), and draws the noise's
variance, too, at each step. ``Arms`` plays it with the engine's posteriors; ``Engine`` is what
an experiment of this engine does by itself: arms share what is known of the noise.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bandit import rng
from bandit.actions import ActionSpace, Level
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats, Ints
from bandit.online import OnlineArms, begin
from bandit.posterior import GaussianPosterior, Noise
from sims.datasets import content
from sims.published.result import Result, beaten, reproduced

SHUTTLE = "statlog_shuttle.trn.gz"
SHUTTLE_SHA256 = "87b24ee9fb5137e1d417659cf905d84d0e15342bbaa60770f1ae83da1a38200a"
_ONE = (Level(name="one"),)
_RIQUELME = "Riquelme et al. 2018; Wen et al. 2020, table 3"
_SHOWDOWN = "Feel-good Thompson sampling showdown, NeurIPS 2025"


def features(arms: int, width: int, prior_sd: float) -> FeatureMap:
    """Give arms with weights of their own."""
    levels = tuple(Level(name=f"arm-{i}") for i in range(arms))
    space = ActionSpace(variants=levels, channels=_ONE)
    terms = (Term(of="context:variant", prior_sd=prior_sd),)
    return FeatureMap(space=space, terms=terms, width=width)


class Engine:
    """Thompson sampling as an experiment of this engine does it."""

    def __init__(self, arms: int, width: int, seed: int, prior_sd: float, noise: Noise) -> None:
        posterior = GaussianPosterior(features(arms, width, prior_sd), noise)
        stream = rng.snapshot_stream(b"published", "engine", seed)
        self._belief = begin(posterior, exploration=1.0, stream=stream)

    def choose(self, x: Floats, number: int) -> int:
        """Choose an arm."""
        return self._belief.draw(x, None, number)

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        """Learn one reward."""
        self._belief.learn(x, arm, reward)


class Arms:
    """LinFullPost: a normal-inverse-gamma belief per arm, and its noise drawn at every step."""

    def __init__(self, arms: int, width: int, seed: int, prior_sd: float, noise: Noise) -> None:
        posterior = GaussianPosterior(features(1, width, prior_sd), noise)
        streams = [rng.snapshot_stream(b"published", f"arm-{i}", seed) for i in range(arms)]
        beliefs = [begin(posterior, exploration=1.0, stream=one) for one in streams]
        self._beliefs = [one for one in beliefs if isinstance(one, OnlineArms)]
        self._counts = np.zeros(arms)
        self._shape = noise.shape
        self._random = np.random.default_rng((seed, arms))

    def choose(self, x: Floats, number: int) -> int:
        """Draw noise and weights of every arm, and take the best score."""
        shapes = self._shape + self._counts / 2.0
        # The belief scales its draws by the noise's estimate b / a; a draw of the noise is
        # b / Gamma(a), so that the spread of a score is wider by the root of a / Gamma(a).
        wider = np.sqrt(shapes / self._random.gamma(shapes))
        scores = np.array([one.scores(x, number)[0] for one in self._beliefs])
        means = np.array([x @ one.belief().mean[:, 0] for one in self._beliefs])
        return int((means + wider * (scores - means)).argmax())

    def learn(self, x: Floats, arm: int, reward: float) -> None:
        """Learn one reward of one arm."""
        self._beliefs[arm].learn(x, 0, reward)
        self._counts[arm] += 1.0


Policy = Callable[[int, int, int, float, Noise], Engine | Arms]


def load_shuttle(path: Path) -> tuple[Floats, Ints]:
    """Read the shuttle's columns, and the rewarded arms.

    Raises
    ------
    InvalidInputError
        If the file can not be read, or is another one.
    """
    _, data = content.read(path, "is not the Statlog shuttle", {"shuttle": SHUTTLE_SHA256})
    table = np.loadtxt(data.decode().splitlines())
    arms: Ints = table[:, -1].astype(np.int64) - 1
    return table[:, :-1], arms


def contexts(columns: Floats) -> Floats:
    """Give standardised columns, but for constant ones, and an intercept."""
    kept = columns[:, columns.std(axis=0) > 0.0]
    kept = (kept - kept.mean(axis=0)) / kept.std(axis=0)
    return np.hstack([kept, np.ones((len(kept), 1))])


def play_classes(policy: Policy, x: Floats, right: Ints, seed: int) -> float:
    """Give the regret in percent of uniform choice's; two forced pulls of every arm first."""
    arms = 7
    player = policy(arms, x.shape[1], seed, 2.0, Noise(shape=6.0, scale=6.0))
    wrong = 0
    for number, (row, best) in enumerate(zip(x, right.tolist(), strict=True)):
        arm = number % arms if number < 2 * arms else player.choose(row, number)
        wrong += arm != best
        player.learn(row, arm, float(arm == best))
    return 100.0 * wrong / (len(x) * (1.0 - 1.0 / arms))


def _played(policy: Policy, path: Path, n: int, runs: int) -> list[float]:
    columns, right = load_shuttle(path)
    regrets = []
    for seed in range(runs):
        chosen = np.random.default_rng((seed, n)).permutation(len(right))[:n]
        regrets.append(play_classes(policy, contexts(columns[chosen]), right[chosen], seed))
    return regrets


def shuttle(path: Path, runs: int) -> list[Result]:
    """Run 2,000 rows of the shuttle."""
    what = "Statlog shuttle, 2,000 contexts, % of uniform's regret"
    theirs, ours = (_played(policy, path, 2_000, runs) for policy in (Arms, Engine))
    return [
        reproduced(f"{what}, LinFullPost", _RIQUELME, 19.00, theirs, within=1.03),
        beaten(f"{what}, this engine's own policy", _RIQUELME, 19.00, ours),
    ]


def long_shuttle(path: Path, runs: int) -> list[Result]:
    """Run all rows of the shuttle."""
    what = "Statlog shuttle, 43,500 contexts, % of uniform's regret"
    source = "published protocol, plain numpy"
    theirs, ours = (_played(policy, path, 43_500, runs) for policy in (Arms, Engine))
    return [
        reproduced(f"{what}, LinFullPost", source, 7.36, theirs, within=0.4),
        beaten(f"{what}, this engine's own policy", source, 7.36, ours),
    ]


def play_gaussian(noise_sd: float, seed: int, steps: int = 10_000) -> float:
    """Give the regret with 5 arms of 4 weights, noise of sd 0.5, believed to be ``noise_sd``."""
    random = np.random.default_rng((seed, 20))
    weights = random.standard_normal((5, 4))
    x = random.standard_normal((steps, 4))
    means = x @ weights.T
    luck = 0.5 * random.standard_normal(steps)
    prior_sd = 0.01**-0.5 / noise_sd  # in units of the noise
    player = Engine(5, 4, seed, prior_sd, Noise(sd=noise_sd))
    regret = 0.0
    for number in range(steps):
        arm = player.choose(x[number], number)
        player.learn(x[number], arm, float(means[number, arm] + luck[number]))
        regret += float(means[number].max() - means[number, arm])
    return regret


def gaussian(runs: int) -> list[Result]:
    """Run Gaussian rewards in twenty weights."""
    what = "linear, d = 20, 10,000 steps, Thompson sampling"
    loose, right = ([play_gaussian(sd, seed) for seed in range(runs)] for sd in (1.0, 0.5))
    return [
        reproduced(f"{what} at unit scale, regret", _SHOWDOWN, 114.7, loose, within=8.8),
        beaten(f"{what} at the scale of the noise, regret", _SHOWDOWN, 114.7, right),
    ]
