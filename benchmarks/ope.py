"""Off-policy evaluation of a large log: seconds, memory, and how far from a plain pass.

Run with ``python -m benchmarks.ope [ROWS] [REPLICATES]``: 1,000,000 rows, 10 actions and 1,000
bootstrap replicates unless told otherwise, all estimators with a cross-fitted model.
"""

import resource
import sys
import time

import numpy as np
from scipy import special

from bandit.kernels.compiling import Floats
from sims.log import Log
from sims.ope.evaluate import Evaluation, evaluate

ACTIONS, FIELDS = 10, 5


def make(rows: int, seed: int = 1) -> tuple[Log, Floats, float]:
    """Draw a log of a policy that looks at the context, a better policy, and its true value."""
    random = np.random.default_rng(seed)
    contexts = random.standard_normal((rows, FIELDS))
    tastes = 0.5 * random.standard_normal((FIELDS, ACTIONS))
    expected = special.expit(contexts @ tastes - 1.0)
    habits = 0.3 * random.standard_normal((FIELDS, ACTIONS))
    logging = special.softmax(contexts @ habits, axis=1)
    target = special.softmax(2.0 * (contexts @ tastes), axis=1)
    actions = (logging.cumsum(axis=1) > random.random((rows, 1))).argmax(axis=1)
    places = np.arange(rows)
    log = Log(
        actions=actions,
        rewards=(random.random(rows) < expected[places, actions]).astype(np.float64),
        propensities=logging[places, actions],
        size=ACTIONS,
        rows=contexts,
    )
    return log, target, float((target * expected).sum(axis=1).mean())


def plain(log: Log, target: Floats, predicted: Floats) -> float:
    """Compute IPS and doubly robust the plain way; give the seconds."""
    began = time.perf_counter()
    places = np.arange(len(log))
    weights = target[places, log.actions] / log.propensities
    direct = (target * predicted).sum(axis=1)
    residuals = log.rewards - predicted[places, log.actions]
    _ = (weights * log.rewards).mean(), (direct + weights * residuals).mean()
    return time.perf_counter() - began


class Clock:
    """Adds up the seconds of every stage that an evaluation tells of."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def tell(self, stage: str, _: int) -> None:
        """Count the time since the last word for this stage."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def peak() -> float:
    """Give the largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def shown(found: Evaluation, truth: float) -> None:
    """Print every estimate beside the truth."""
    print(f"  truth {truth:.5f}")
    for name, one in found.estimates.items():
        if one.value is None:
            print(f"  {name:12s} withheld: {one.withheld}")
        else:
            ends = one.intervals[-1]
            print(f"  {name:12s} {one.value:.5f} [{ends.low:.5f}, {ends.high:.5f}]")


def main() -> dict[str, float]:
    """Measure one evaluation, after a small one that compiles the kernels."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    replicates = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
    small, policy, _ = make(2_000, seed=2)
    evaluate(small, policy, replicates=40)
    log, target, truth = make(rows)
    before, clock = peak(), Clock()
    began = time.perf_counter()
    found = evaluate(log, target, replicates=replicates, progress=clock.tell)
    took = time.perf_counter() - began
    bare = min(plain(log, target, target) for _ in range(3))
    shown(found, truth)
    for stage, seconds in clock.seconds.items():
        print(f"  {stage:20s} {seconds:7.2f} s up to this word")
    print(
        f"{rows:,} rows, {ACTIONS} actions, {len(found.estimates)} estimates, {replicates:,} "
        f"replicates: {took:.1f} s, {peak():.2f} GB at most ({before:.2f} before); a plain numpy "
        f"pass for IPS and DR {bare:.3f} s, ratio {took / bare:.0f}"
    )
    return {"seconds": took, "peak_gb": peak(), "plain_seconds": bare}


if __name__ == "__main__":
    main()
