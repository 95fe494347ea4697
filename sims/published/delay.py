"""Late feedback: Chapelle & Li's items that come and go (NIPS 2011, table 1)."""

import numpy as np

from sims.kernels.delayed import delayed
from sims.published.result import Result, reproduced

PUBLISHED = {1: 9_105.0, 3: 9_199.0, 10: 9_049.0, 32: 9_451.0, 100: 11_550.0}
"""Regret of Thompson sampling by the steps between two deliveries of feedback."""
STEPS = 1_000_000


def items(runs: int) -> list[Result]:
    """Run ten items, each replaced once in a thousand steps."""
    found = []
    for delay, published in PUBLISHED.items():
        regrets = [
            delayed(np.random.default_rng((seed, delay)), STEPS, 10, delay, 1e-3)
            for seed in range(runs)
        ]
        found.append(
            reproduced(
                f"feedback every {delay} steps, Thompson sampling, regret",
                "Chapelle & Li 2011, table 1", published, regrets, within=0.1 * published,
            )
        )  # fmt: skip
    return found
