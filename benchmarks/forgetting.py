"""Regret by how a belief forgets: in time or in surprise, the table of ``docs/math/online.md``.

Run with ``python -m benchmarks.forgetting`` in the environment of ``make bench-engine``.
"""

import argparse
import importlib
import sys
from typing import Any

import numpy as np

from benchmarks.peers import HARNESS, HERE

SETTINGS: tuple[dict[str, float], ...] = (
    {},
    {"half_life": 250.0},
    {"half_life": 1_000.0},
    {"surprise_half_life": 250.0},
    {"surprise_half_life": 350.0},
    {"surprise_half_life": 500.0},
    {"surprise_half_life": 1_000.0},
)


def wandering(envs: Any, seed: int) -> Any:  # noqa: ANN401  the harness's module
    """Give scores whose weights wander: after 2,000 decisions half of one is left."""
    random = np.random.default_rng([78, seed])
    x = np.column_stack([np.ones(20_000), random.standard_normal((20_000, 7))])
    keep, weights = 0.5 ** (1 / 2_000), random.standard_normal((6, 8)) / 8**0.5
    means = np.empty((20_000, 6))
    for t in range(20_000):
        means[t] = weights @ x[t]
        step = random.standard_normal((6, 8)) / 8**0.5
        weights = keep * weights + (1.0 - keep * keep) ** 0.5 * step
    return envs.Env(x, means, noise=0.5, rng=random, vw_range=(-3, 3))


def heavy(envs: Any, seed: int) -> Any:  # noqa: ANN401
    """Give the drift of the harness with noise of the same size from Student's t, 3 degrees."""
    env = envs.drift(seed)
    env.u = np.random.default_rng([79, seed]).standard_t(3, env.T) * 0.5 / 3**0.5
    return env


def noisier(envs: Any, seed: int) -> Any:  # noqa: ANN401
    """Give a problem that stays, but whose noise doubles at half time."""
    env = envs.linear(seed)
    env.u[env.T // 2 :] *= 2.0
    return env


def main() -> None:
    """Print mean regret, uniform choice = 100, and twice its standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed0", type=int, default=0)
    arguments = parser.parse_args()
    sys.path[:0] = [str(HARNESS), str(HERE)]
    bench, envs = importlib.import_module("bench"), importlib.import_module("envs")
    importlib.import_module("peers_adapter")
    problems = {
        "drift": envs.drift,
        "drift, heavy tails": lambda seed: heavy(envs, seed),
        "wandering": lambda seed: wandering(envs, seed),
        "linear, stays": envs.linear,
        "linear, noisier": lambda seed: noisier(envs, seed),
    }
    for problem, build in problems.items():
        made = [build(seed) for seed in range(arguments.seed0, arguments.seed0 + 10)]
        for chosen in SETTINGS:
            found = [
                bench.index(bench.play("ours", env, arguments.seed0 + i, chosen)[0], env)[-1]
                for i, env in enumerate(made)
            ]
            error = 2.0 * np.std(found, ddof=1) / len(found) ** 0.5
            print(f"{problem:20s} {chosen}: {np.mean(found):.2f} +- {error:.2f}", flush=True)


if __name__ == "__main__":
    main()
