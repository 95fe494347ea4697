"""Top-two sampling against Thompson sampling, and what each policy costs a decision.

Run with ``python -m benchmarks.policies``: the numbers of ``docs/math/policies.md``.
"""

import numpy as np

from bandit.actions import ActionSpace
from bandit.choosing import EpsilonGreedy, LinUCB, Policy, Softmax, ThompsonSampling, TopTwo
from bandit.features import FeatureMap, Term, default_terms
from bandit.kernels.compiling import Floats
from bandit.posterior import GaussianPosterior, Noise, Outcomes
from bandit.snapshot import Asked
from benchmarks.engine import measure
from benchmarks.shared_weights import asked, levels, published

MEANS, NOISE = np.array([0.5, 0.44, 0.2, 0.1]), 0.3
POLICIES: dict[str, Policy] = {
    "thompson_sampling": ThompsonSampling(),
    "top_two": TopTwo(),
    "linucb": LinUCB(),
    "epsilon_greedy": EpsilonGreedy(),
    "softmax": Softmax(),
}
SURE, MOST, BATCH, RUNS = 0.99, 10_000, 10, 64


def outcomes_until_sure(policy: Policy, seed: int) -> int:
    """Count outcomes until some action is the best with a probability of 99 %."""
    space = ActionSpace(variants=levels("v", len(MEANS)), channels=levels("c", 1))
    features = FeatureMap(space=space, terms=(Term(of="context:variant"),), width=1)
    posterior, random = GaussianPosterior(features, Noise(sd=NOISE)), np.random.default_rng(seed)
    which, masks = np.zeros(BATCH, dtype=np.int64), np.ones((1, len(MEANS)), dtype=np.bool_)
    for done in range(0, MOST, BATCH):
        streams = random.integers(0, 2**32, (BATCH, 4), dtype=np.uint32)
        ask, belief = Asked(np.ones((BATCH, 1)), which, masks, streams), published(posterior).belief
        p = belief.decide(ask, 0.0).propensities
        if p is not None and p[0].max() >= SURE:
            return done
        chosen = policy.choose(belief, ask, propensities=False).actions
        rewards = MEANS[chosen] + NOISE * random.standard_normal(BATCH)
        posterior.fold(Outcomes(ask.x, chosen, rewards), seq=done + BATCH)
    return MOST


def taught(sizes: tuple[int, int, int], width: int) -> tuple[GaussianPosterior, Floats]:
    """Give a posterior of default terms that learned 300 outcomes, and their contexts."""
    space = ActionSpace(
        variants=levels("v", sizes[0]), channels=levels("c", sizes[1]), slots=levels("s", sizes[2])
    )
    features = FeatureMap(space=space, terms=default_terms(space), width=width)
    posterior, random = GaussianPosterior(features, Noise()), np.random.default_rng(1)
    x = np.column_stack([np.ones(300), random.standard_normal((300, width - 1))])
    actions = random.integers(0, space.size, 300)
    posterior.fold(Outcomes(x, actions, random.standard_normal(300)), seq=300)
    return posterior, x


def main() -> None:
    """Print both tables."""
    print(f"outcomes until an action is the best with {SURE:.0%}, mean of {RUNS} runs")
    for name in ("thompson_sampling", "top_two"):
        found = [outcomes_until_sure(POLICIES[name], seed) for seed in range(RUNS)]
        error = 2.0 * np.std(found, ddof=1) / RUNS**0.5
        print(f"  {name:18s} {np.mean(found):.0f} +- {error:.0f}")
    print("microseconds a decision with all propensities, below the front door")
    for sizes, width in (((10, 1, 1), 20), ((50, 1, 1), 32), ((20, 5, 24), 8)):
        posterior, x = taught(sizes, width)
        belief, space = published(posterior).belief, posterior.features.space
        ask = asked(Outcomes(x, np.zeros(0), np.zeros(0)), np.ones(space.size, dtype=np.bool_))
        for name, policy in POLICIES.items():
            us = measure(
                lambda p=policy, a=ask, b=belief: p.choose(b, a, propensities=True),  # type: ignore[misc]
                number=100,
            )
            weights = posterior.features.weights * posterior.features.blocks
            print(f"  {space.size} x {width}, {weights} weights, {name:18s} {us:6.0f}", flush=True)


if __name__ == "__main__":
    main()
