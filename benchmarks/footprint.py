"""What a process pays before its first decision, and what a model holds in memory.

Run with ``python -m benchmarks.footprint``. Each line comes from a process of its own; memory is
what the process grew by, so that whatever a model keeps beside its arrays counts too.
"""

import os
import subprocess
import sys
import tempfile

FIRST_DECISION = """
import time
begun = time.perf_counter()
from bandit import rng
from benchmarks.engine import FEATURES, experiment
of = experiment()
snapshot = of.publish(of.prior(), version=1)
one = rng.decision_id(of.secret, "bench", "request", at_ms=0)
context = {f"f{i}": 0.5 for i in range(FEATURES - 1)}
of.decide(snapshot, context, decision_id=one, customer=b"c")
print(time.perf_counter() - begun)
"""

MODEL = """
import psutil
from bandit.online import begin
from benchmarks.shared_weights import STREAM, learned, published
def held():
    return psutil.Process().memory_info().rss / 2**20
def build(levels):
    posterior, _ = learned(*levels)
    return posterior, published(posterior).belief if {served} else None
def at_once(levels):
    return begin(build(levels)[0], exploration=1.0, stream=STREAM)
make = build if {served} else at_once
make(({small}))
before = held()
model = make(({levels}))
print(held() - before)
"""


def run(code: str, **variables: str) -> float:
    """Run code in a process of its own, and give the number it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    return float(result.stdout)


def main() -> None:
    """Print seconds and megabytes."""
    run(FIRST_DECISION)  # fills the cache
    print(f"first decision, kernels cached  {min(run(FIRST_DECISION) for _ in range(3)):6.2f} s")
    with tempfile.TemporaryDirectory() as empty:
        seconds = run(FIRST_DECISION, NUMBA_CACHE_DIR=empty)
    print(f"first decision, nothing cached  {seconds:6.2f} s")
    for what, small, levels in (
        ("1,000 arms x 32 features", "2, 1, 1, 32", "1000, 1, 1, 32"),
        ("2,400 actions, 392 weights", "2, 2, 2, 8", "20, 5, 24, 8"),
    ):
        for how, served in (("learned at once", "False"), ("posterior and snapshot", "True")):
            code = MODEL.format(small=small, levels=levels, served=served)
            print(f"{what}, {how:22s} {run(code):6.1f} MB")


if __name__ == "__main__":
    main()
