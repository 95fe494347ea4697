"""Compile every kernel before the first request."""

import numpy as np

from bandit import rng
from bandit.experiment import Experiment, Question
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data

_SECRET = b"compile, do not decide"
_CONTEXT = [
    {"name": "n", "kind": "number", "bounds": [0, 1]},
    {"name": "l", "kind": "number", "bounds": [0, 1], "scale": "log1p"},
    {"name": "c", "kind": "category", "levels": ["a"]},
    {"name": "f", "kind": "flag"},
    {"name": "h", "kind": "cyclic", "period": 24},
]


def specs() -> list[ExperimentSpec]:
    """Give small experiments that together reach every kernel."""
    reward = {"window": 1, "rewards": [{"name": "r"}], "aggregation": "max"}
    one, two = ["a", "b"], ["c", "d"]
    parts: list[dict[str, object]] = [
        {"actions": {"variants": one, "channels": ["c"]}},
        {"actions": {"variants": one, "channels": two}, "policy": {"half_life": 60}},
        {"actions": {"variants": one, "channels": two}, "policy": {"posterior": "beta_bernoulli"}},
    ]
    return [
        from_data({"name": "warm", "context": _CONTEXT, "outcome": reward, **part})
        for part in parts
    ]


def warm_up() -> None:
    """Compile every kernel, or load it from the disk cache.

    Notes
    -----
    About half a minute on one core with an empty cache, a second with a full one.
    """
    for spec in specs():
        experiment = Experiment(spec, secret=_SECRET)
        posterior = experiment.prior()
        rows = np.array([[0.5, 0.5, 0.0, 1.0, 6.0], [np.nan] * 5])
        times = np.array([0.0, 1e6])
        experiment.learn(posterior, rows, [0, 1], np.array([0.0, 1.0]), times=times, seq=2)
        snapshot = experiment.publish(posterior, version=1)
        questions = [
            Question(rng.decision_id(_SECRET, "warm", str(i), 0), str(i).encode(), rows[i % 2])
            for i in range(64)
        ]
        for propensities in (True, False):
            experiment.decide_batch(snapshot, questions, propensities=propensities)
