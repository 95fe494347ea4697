"""The engine in a benchmark harness of contextual-bandit engines, registered as ``ours``.

The harness gives arrays: contexts are feature rows, arms are numbers, arms that share a model have
feature rows ``Z``. What a user may choose per problem is in the grid - the link, whether to forget,
random features or not - and nothing else; everything else is the default of the specification.
Forgetting is counted in surprise, of which one half-life fits many problems: docs/math/online.md.
"""

import numpy as np
from adapters import Adapter, engine  # type: ignore[import-not-found]  # the harness's own module

from bandit import rng
from bandit.actions import FACTORS, ActionSpace, Level
from bandit.context import ContextField, ContextSchema
from bandit.features import Encoder, FeatureMap, Term, default_terms
from bandit.fourier import Fourier
from bandit.kernels.compiling import Floats, Ints
from bandit.logistic import LogisticPosterior
from bandit.online import begin
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


class Waves:
    """Random Fourier features of contexts whose first number is the intercept."""

    def __init__(self, columns: int) -> None:
        fields = tuple(
            ContextField(name=f"x{i}", kind="number", bounds=(-1.0, 1.0)) for i in range(columns)
        )
        self._encoder = Encoder(ContextSchema(fields=fields), Fourier())
        self.width = self._encoder.width

    def __call__(self, x: Floats) -> Floats:
        """Encode one context."""
        row: Floats = self._encoder.encode(x[None, 1:])[0]
        return row


@engine(
    "ours",
    grid=(
        {},
        {"link": "logistic"},
        {"surprise_half_life": 350.0},
        {"fourier": True},
    ),
    v=None,
)
class Ours(Adapter):  # type: ignore[misc]
    """Learn at once: a belief renewed by every reward, one decision or thousands a call."""

    shared = adds_arms = native_batch_decide = native_batch_update = True

    def setup(self) -> None:
        """Build the model from what a specification would say."""
        low, high = self.hp.get("range", (0.0, 1.0))
        is_logistic = self.hp.get("link") == "logistic" and (low, high) == (0, 1)  # successes only
        space, terms = self.problem()
        self.waves = Waves(self.d - 1) if self.hp.get("fourier") else None
        width = self.d if self.waves is None else self.waves.width
        features = FeatureMap(space=space, terms=terms, width=width)
        posterior: GaussianPosterior | LogisticPosterior
        if is_logistic:
            posterior = LogisticPosterior(features)
        else:
            noise = Noise() if self.v is None else Noise(sd=self.v)
            posterior = GaussianPosterior(features, noise, outcome_range=high - low)
        self.model = begin(
            posterior,
            exploration=self.hp.get("exploration", DEFAULTS.exploration) if self.v is None else 1.0,
            stream=rng.snapshot_stream(b"a secret for benchmarks", "peers", self.seed),
            half_life=self.hp.get("half_life"),
            surprise_half_life=self.hp.get("surprise_half_life"),
        )
        self.number = 0

    def problem(self) -> tuple[ActionSpace, tuple[Term, ...]]:
        """Give the action space and the terms: the defaults of a specification."""
        sizes = None if self.Z is None else one_hot_factors(self.Z)
        if self.Z is not None and sizes is None:
            names = [f"z{i}" for i in range(self.Z.shape[1])]
            described = tuple(
                Level(name=str(a), attributes=tuple(zip(names, row.tolist(), strict=True)))
                for a, row in enumerate(self.Z)
            )
            space = ActionSpace(variants=described, channels=(Level(name="one"),))
            return space, default_terms(space)
        levels = [tuple(Level(name=str(i)) for i in range(n)) for n in sizes or [self.k, 1, 1]]
        space = ActionSpace(variants=levels[0], channels=levels[1], slots=levels[2])
        several = [n for n, ls in zip(FACTORS, space.factors, strict=True) if len(ls) > 1]
        known = {k: v for k, v in self.hp.items() if k == "prior_sd"}
        if self.v is not None:
            known = {"prior_sd": self.lam**-0.5}
        return space, tuple(Term(of=f"context:{name}", **known) for name in several)

    def decide(self, x: Floats) -> int:
        """Draw one arm."""
        self.number = number = self.number + 1
        if self.waves:
            x = self.waves(x)
        return self.model.draw(x, None, number)

    def decide_batch(self, x: Floats) -> Ints:
        """Draw an arm for every row, each with a draw of its own."""
        self.number += len(x)
        rows = x if self.waves is None else np.array([self.waves(row) for row in x])
        return self.model.draw_batch(rows, None, self.number - len(x) + 1)

    def update(self, x: Floats, a: int, r: float, ticket: object = None) -> None:  # noqa: ARG002
        """Learn one reward; the clock ticks once a decision."""
        row = x if self.waves is None else self.waves(x)
        self.model.learn(row, a, r, self.number)

    def update_batch(self, x: Floats, a: Ints, r: Floats, tickets: object = None) -> None:  # noqa: ARG002
        """Learn rewards in order."""
        rows = x if self.waves is None else np.array([self.waves(row) for row in x])
        self.model.learn_batch(rows, np.asarray(a, dtype=np.int64), np.asarray(r, dtype=np.float64))

    def add_arms(self, n: int) -> None:
        """Add arms that start from the prior."""
        self.model.add_arms(n)

    def scores(self, x: Floats, n: int) -> Floats:
        """Sample every arm's score ``n`` times, shape (n, k)."""
        self.number += n
        return np.array([self.model.scores(x, self.number - i) for i in range(n)])
