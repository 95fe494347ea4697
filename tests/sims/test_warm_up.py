"""After the warm-up no rollout and no evaluation waits for the compiler."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

import numpy as np
from sims.kernels import betting, delayed, resampling, rollout, weighing, worlds
from sims.log import Log
from sims.ope.evaluate import evaluate
from sims.rollouts import rollout as play
from sims.worlds import names, preset
from sims.warm_up import warm_up

def compiled():
    modules = (betting, delayed, resampling, rollout, weighing, worlds)
    found = {
        (n, k) for m in modules for n, k in vars(m).items()
        if hasattr(k, "signatures") and k.__module__ == m.__name__
    }
    assert len(found) > 20
    return {(name, str(s)) for name, kernel in found for s in kernel.signatures}

warm_up()
before = compiled()
kinds = {k: k for k in ("thompson", "linucb", "epsilon-greedy", "softmax")}
for name in set(names()) - {"many-actions"}:
    of = preset(name)
    play(of.spec, of.world, kinds, customers=50, replications=1)
sent = np.arange(600) % 3
log = Log(
    actions=sent, rewards=(sent == 2).astype(float) * (np.arange(600) % 2),
    propensities=np.full(600, 1 / 3), size=3, rows=np.zeros((600, 2)),
    versions=np.arange(600) // 50, customers=np.arange(600) // 2,
)
for adaptive in (True, False):
    evaluate(
        log, np.full((600, 3), 1 / 3), logging_is_adaptive=adaptive, bounds=(0.0, 1.0),
        replicates=40,
    )
print(sorted(compiled() - before))
"""


def test_nothing_is_compiled_after_the_warm_up():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
