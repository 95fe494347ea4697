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
from bandit.experiment import Experiment
from bandit.question import Question
from bandit.slates import draw_slate, slate_probability
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
kinds = ["top_two", "linucb", "epsilon_greedy", "softmax"]
policies += [{"kind": kind} for kind in kinds]
policies += [{"kind": kind, "posterior": "beta_bernoulli"} for kind in kinds]
policies.append({"posterior": "beta_bernoulli", "pooled": True})
policies.append({"terms": [{"of": "context:variant:channel"}], "pooled": True})
policies.append({"posterior": "logistic"})
own = {"terms": [{"of": "context:variant:channel"}]}
policies.append({**own, "posterior": "logistic", "pooled": True})
many = 17_000
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
        rows = np.zeros((many, len(spec.context)))
        experiment.learn(posterior, rows, [0, 1] * (many // 2), np.ones(many), seq=2)
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
            experiment.decide_slates(snapshot, asked, size=2)
p = np.array([0.5, 0.3, 0.2])
slate = draw_slate(p, 2, rng.words(bytes(16)))
slate_probability(p, slate.actions.tolist())
print(sorted(compiled() - before))
"""


def test_nothing_is_compiled_after_the_warm_up():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
