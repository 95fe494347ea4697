"""Regret by prior scale and exploration: the table behind decision 0008.

Run ``python -m benchmarks.defaults [PROBLEM ...]`` in the environment of ``make bench-engine``.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import HARNESS, HERE

PAIRS = ((1.0, 1.0), (1.0, 0.5), (2.0, 0.35), (3.0, 0.25))
Chosen = tuple[str, dict[str, Any]]
PLAIN = ("linear", "newarms", "digits", "delayed")


def smooth(envs: Any, fields: int) -> Callable[[int], Any]:  # noqa: ANN401  the harness's module
    """Give problems with linear scores over bounded fields: ten arms, noise 0.5."""

    def build(seed: int) -> Any:  # noqa: ANN401
        random = np.random.default_rng([77, fields, seed])
        x = np.column_stack([np.ones(10_000), random.uniform(-1, 1, (10_000, fields))])
        weights = random.standard_normal((10, fields + 1)) / (fields + 1) ** 0.5
        return envs.Env(x, x @ weights.T, noise=0.5, rng=random, vw_range=(-3, 3))

    return build


def main() -> None:
    """Print mean regret, uniform choice = 100, and twice its standard error."""
    sys.path[:0] = [str(HARNESS), str(HERE)]
    bench, envs = importlib.import_module("bench"), importlib.import_module("envs")
    importlib.import_module("peers_adapter")
    usual: list[Chosen] = [("ours", {"prior_sd": sd, "exploration": e}) for sd, e in PAIRS]
    usual.append(("numba-limit", {"v": 0.1}))
    clicks: list[Chosen] = [
        ("ours", {"prior_sd": sd, "exploration": 0.35, "link": "logistic"}) for sd in (1.0, 2.0)
    ]
    clicks.append(("ours", {"prior_sd": 2.0, "exploration": 0.35}))
    problems: list[tuple[str, Callable[[int], Any], range]] = [
        (name, envs.ENVS[name], range(10)) for name in PLAIN
    ]
    problems.append(("logistic", envs.ENVS["logistic"], range(10)))
    problems += [(f"smooth-{n}", smooth(envs, n), range(100, 116)) for n in (2, 5)]
    for problem, build, seeds in problems:
        if sys.argv[1:] and problem not in sys.argv[1:]:
            continue
        for engine, chosen in clicks if problem == "logistic" else usual:
            found = []
            for seed in seeds:
                env = build(seed)
                found.append(bench.index(bench.play(engine, env, seed, chosen)[0], env)[-1])
            error = 2.0 * np.std(found) / len(found) ** 0.5
            print(
                f"{problem:10s} {engine} {chosen}: {np.mean(found):.2f} +- {error:.2f}", flush=True
            )


if __name__ == "__main__":
    main()
