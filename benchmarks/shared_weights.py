"""How long the parts of a decision among 2,400 actions with 392 shared weights take.

Run with ``python -m benchmarks.shared_weights``; also exact propensities of 50 arms x 32 features.
"""

import numpy as np

from bandit import rng
from bandit.actions import FACTORS, ActionSpace, Level
from bandit.features import FeatureMap, Term
from bandit.kernels.compiling import Bools
from bandit.posterior import GaussianPosterior, Noise, Outcomes
from bandit.snapshot import Asked, Snapshot, publish
from benchmarks.engine import measure

STREAM = rng.snapshot_stream(b"a secret for benchmarks", "shared", 1)


def levels(name: str, count: int) -> tuple[Level, ...]:
    """Give numbered levels."""
    return tuple(Level(name=f"{name}{i}") for i in range(count))


def learned(
    variants: int, channels: int, slots: int, width: int
) -> tuple[GaussianPosterior, Outcomes]:
    """Give a posterior with one block of weights per level, and 300 outcomes it has learned."""
    space = ActionSpace(
        variants=levels("v", variants), channels=levels("c", channels), slots=levels("s", slots)
    )
    several = [n for n, ls in zip(FACTORS, space.factors, strict=True) if len(ls) > 1]
    terms = tuple(Term(of=f"context:{name}") for name in several)
    posterior = GaussianPosterior(FeatureMap(space=space, terms=terms, width=width), Noise())
    random = np.random.default_rng(1)
    x = np.column_stack([np.ones(300), random.standard_normal((300, width - 1))])
    outcomes = Outcomes(x, random.integers(0, space.size, 300), random.standard_normal(300))
    posterior.fold(outcomes, seq=300)
    return posterior, outcomes


def published(posterior: GaussianPosterior) -> Snapshot:
    """Publish with a bank of 256 draws."""
    return publish(posterior, version=1, exploration=1.0, draws=256, stream=STREAM)


def asked(outcomes: Outcomes, mask: Bools) -> Asked:
    """Ask for the first context."""
    words = STREAM.reshape(1, 4)
    return Asked(outcomes.x[:1], np.zeros(1, dtype=np.int64), mask.reshape(1, -1).copy(), words)


def main() -> None:
    """Print the best of several repeats, in microseconds."""
    posterior, outcomes = learned(20, 5, 24, 8)
    one = Outcomes(outcomes.x[:1], outcomes.actions[:1], outcomes.rewards[:1])
    belief = published(posterior).belief
    product = np.zeros((20, 5, 24), dtype=np.bool_)
    product[:15, :3, 4:20] = True
    masks = {
        "no rule": np.ones(2_400, dtype=np.bool_),
        "product mask": product.ravel(),
        "any mask": np.random.default_rng(2).random(2_400) < 0.7,
    }
    print("2,400 actions, 392 shared weights, 256 draws, one core, warm")
    fold = measure(lambda: posterior.fold(one, seq=300), number=500)
    print(f"  fold one reward                  {fold:8.1f} us")
    publication = measure(lambda: published(posterior), number=3, repeats=5)
    print(f"  publish, bank included           {publication / 1e3:8.1f} ms")
    for name, mask in masks.items():
        ask = asked(outcomes, mask)
        us = measure(lambda ask=ask: belief.decide(ask, 0.0), number=200)  # type: ignore[misc]
        print(f"  decide with propensities, {name:12s} {us:4.1f} us")
    for arms, width in ((10, 20), (50, 32)):
        posterior, outcomes = learned(arms, 1, 1, width)
        ask, belief = asked(outcomes, np.ones(arms, dtype=np.bool_)), published(posterior).belief
        us = measure(lambda ask=ask, b=belief: b.decide(ask, 0.0), number=200)  # type: ignore[misc]
        print(f"  exact propensities, {arms} x {width}      {us:8.1f} us")


if __name__ == "__main__":
    main()
