"""The engine in a benchmark harness of contextual-bandit engines, registered as ``ours``.

The harness gives arrays: contexts are feature rows, arms are numbers, arms that share a model have
feature rows ``Z``. What a user may choose per problem is in the grid - the link, the half-life,
random features or not - and nothing else; everything else is the default of the specification.
"""

import numpy as np
from adapters import Adapter, engine  # type: ignore[import-not-found]  # the harness's own module

from bandit import rng
from bandit.actions import ActionSpace, Level
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Floats
from bandit.online import OnlineArms, OnlineBelief, OnlineWeights
from bandit.policy import PolicySpec
from bandit.posterior import GaussianPosterior, Noise

DEFAULTS = PolicySpec()


def one_hot_factors(z: Floats) -> list[int] | None:
    """Give the sizes of three factors whose product the rows of Z spell out, if they do."""
    if not np.isin(z, (0.0, 1.0)).all() or not (z.sum(axis=1) == 3).all():
        return None
    places = np.argwhere(z)[:, 1].reshape(-1, 3)
    sizes = [len(set(column.tolist())) for column in places.T]
    return sizes if sum(sizes) == z.shape[1] and np.prod(sizes) == len(z) else None


@engine("ours", grid=({},), v=None)
class Ours(Adapter):  # type: ignore[misc]
    """Learn at once: a belief renewed by every reward, one decision or thousands a call."""

    shared = adds_arms = native_batch_decide = native_batch_update = True

    def setup(self) -> None:
        """Build the model from what a specification would say."""
        space, terms = self.problem()
        known = {} if self.v is None else {"sd": self.v}
        noise = Noise(**known)
        features = FeatureMap(space=space, terms=terms, width=self.d)
        posterior = GaussianPosterior(features, noise)
        prior = posterior.moments()
        settings = {
            "exploration": DEFAULTS.exploration if self.v is None else 1.0,
            "stream": rng.snapshot_stream(b"a secret for benchmarks", "peers", self.seed),
            "noise_sd": noise.sd,
        }
        self.model: OnlineBelief
        if features.is_disjoint:
            self.model = OnlineArms(prior, prior, **settings)
        else:
            self.model = OnlineWeights(prior, prior, features=features, **settings)
        self.everyone = np.ones(space.size, dtype=np.bool_)
        self.number = 0

    def problem(self) -> tuple[ActionSpace, tuple[Term, ...]]:
        """Give the action space and the terms."""
        scale = 1.0 if self.v is None else self.lam**-0.5
        sizes = None if self.Z is None else one_hot_factors(self.Z)
        if sizes is None:
            sizes = [self.k, 1, 1]
        levels = [tuple(Level(name=str(i)) for i in range(size)) for size in sizes]
        space = ActionSpace(variants=levels[0], channels=levels[1], slots=levels[2])
        names = [n for n, s in zip(("variant", "channel", "slot"), sizes, strict=True) if s > 1]
        return space, tuple(Term(of=f"context:{name}", prior_sd=scale) for name in names)

    def decide(self, x: Floats) -> int:
        """Draw one arm."""
        self.number += 1
        return self.model.draw(x, self.everyone, self.number)

    def decide_batch(self, x: Floats) -> Floats:
        """Draw an arm for every row, each with a draw of its own."""
        self.number += len(x)
        return self.model.draw_batch(x, self.everyone, self.number - len(x) + 1)

    def update(self, x: Floats, a: int, r: float, ticket: object = None) -> None:  # noqa: ARG002
        """Learn one reward."""
        self.model.learn(x, a, r)

    def update_batch(self, x: Floats, a: Floats, r: Floats, tickets: object = None) -> None:  # noqa: ARG002
        """Learn rewards in order."""
        self.model.learn_batch(x, np.asarray(a, dtype=np.int64), np.asarray(r, dtype=np.float64))

    def add_arms(self, n: int) -> None:
        """Add arms that start from the prior."""
        self.model.add_arms(n)
        self.everyone = np.ones(len(self.everyone) + n, dtype=np.bool_)

    def scores(self, x: Floats, n: int) -> Floats:
        """Sample every arm's score ``n`` times, shape (n, k)."""
        self.number += n
        return np.array([self.model.scores(x, self.number - i) for i in range(n)])
