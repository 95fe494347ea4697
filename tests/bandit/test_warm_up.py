"""After the warm-up no request waits for the compiler."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

import numpy as np
from bandit import rng
from bandit.actions import Exclusion
from bandit.experiment import Experiment, Question
from bandit.spec_file import from_data
from bandit.warm_up import specs, warm_up

def compiled():
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("bandit.kernels.")]
    found = {(n, k) for m in modules for n, k in vars(m).items() if hasattr(k, "signatures")}
    assert len(found) > 20
    return {(name, str(s)) for name, kernel in found for s in kernel.signatures}

warm_up()
before = compiled()
policies = [{}, {"posterior": "beta_bernoulli"}, {"kind": "uniform"}, {"exploration": 0.0}]
policies += [{"fourier": {}}]
for channels in (["x"], ["x", "y"]):
    for policy in policies:
        spec = from_data({
            "name": "e", "actions": {"variants": ["a", "b", "c"], "channels": channels},
            "outcome": {"window": 1, "rewards": [{"name": "r"}], "aggregation": "max"},
            "policy": policy,
            "context": [{"name": "f", "kind": "flag"}] * ("fourier" in policy),
        })
        experiment = Experiment(spec, secret=b"sixteen bytes or more")
        posterior = experiment.prior()
        experiment.learn(posterior, np.zeros((2, len(spec.context))), [0, 1], np.ones(2), seq=2)
        snapshot = experiment.publish(posterior, version=1)
        row = [0.0] * len(spec.context)
        rules = [(), (Exclusion(variant="a", reason="r"),)]
        for questions in (1, 30):
            asked = [
                Question(rng.decision_id(b"", "e", str(i), 0), str(i).encode(), row, rules[i % 2])
                for i in range(questions)
            ]
            for propensities in (True, False):
                experiment.decide_batch(snapshot, asked, propensities=propensities)
print(sorted(compiled() - before))
"""


def test_nothing_is_compiled_after_the_warm_up():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
