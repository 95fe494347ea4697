"""Late feedback: Chapelle & Li's items that come and go (NIPS 2011, table 1)."""

import numpy as np

from sims.kernels.delayed import delayed
from sims.published.result import Result, reproduced

PUBLISHED = {1: 9_105.0, 3: 9_199.0, 10: 9_049.0, 32: 9_451.0, 100: 11_550.0}
"""Regret of Thompson sampling by the steps between two deliveries of feedback."""
STEPS = 1_000_000


def items(delay: int, runs: int) -> list[Result]:
    """Run ten items, one of which is replaced every thousand steps."""
    regrets = [
        delayed(np.random.default_rng((seed, delay)), STEPS, 10, delay, 1e-3)
        for seed in range(runs)
    ]
    published = PUBLISHED[delay]
    what = f"feedback every {delay} steps, Thompson sampling, regret"
    source = "Chapelle & Li 2011, table 1"
    return [reproduced(what, source, published, regrets, within=0.1 * published)]
