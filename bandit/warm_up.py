"""Compile every kernel before the first request."""

import numpy as np

from bandit import rng, slates
from bandit.experiment import Experiment
from bandit.logistic import capacity
from bandit.question import Question
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
        {"actions": {"variants": one, "channels": ["c"]}, "policy": {"pooled": True}},
        {
            "actions": {"variants": one, "channels": two},
            "policy": {"posterior": "beta_bernoulli", "pooled": True},
        },
        {"actions": {"variants": one, "channels": ["c"]}, "policy": {"posterior": "logistic"}},
        {"actions": {"variants": one, "channels": two}, "policy": {"posterior": "logistic"}},
        {
            "actions": {"variants": one, "channels": ["c"]},
            "policy": {"posterior": "logistic", "pooled": True},
        },
        {"actions": {"variants": one, "channels": ["c"]}, "policy": {"fourier": {"features": 2}}},
    ]
    parts += [
        {"actions": {"variants": one, "channels": channels}, "policy": {"kind": kind}}
        for channels, kind in (
            (["c"], "linucb"),
            (two, "linucb"),
            (two, "top_two"),
            (two, "epsilon_greedy"),
            (two, "softmax"),
        )
    ]
    return [
        from_data({"name": "warm", "context": _CONTEXT, "outcome": reward, **part})
        for part in parts
    ]


def warm_up() -> None:
    """Compile every kernel that decides, learns or publishes, or load it from the disk cache.

    Notes
    -----
    About half a minute on one core with an empty cache, a second with a full one.
    """
    for spec in specs():
        experiment = Experiment(spec, secret=_SECRET)
        posterior = experiment.prior()
        rows = np.array([[0.5, 0.5, 0.0, 1.0, 6.0], [np.nan] * 5])
        pairs = capacity(spec.encoder.width) // 2 + 1  # enough to thin a logistic posterior's rows
        outcomes, times = np.tile([0.0, 1.0], pairs), np.tile([0.0, 1e6], pairs)
        many = np.tile(rows, (pairs, 1))
        experiment.learn(posterior, many, [0, 1] * pairs, outcomes, times=times, seq=2)
        changed = outcomes[:2]
        experiment.learn(
            *(posterior, rows, [0, 1], 1.0 - changed), times=times[:2], replaced=changed, seq=2
        )
        snapshot = experiment.publish(posterior, version=1)
        questions = [
            Question(rng.decision_id(_SECRET, "warm", str(i), 0), str(i).encode(), rows[i % 2])
            for i in range(64)
        ]
        for propensities in (True, False):
            experiment.decide_batch(snapshot, questions, propensities=propensities)
        experiment.decide_slates(snapshot, questions, size=2)
    p = np.array([0.5, 0.5])
    slates.draw_slate(p, 2, rng.snapshot_stream(_SECRET, "warm", 0))
    slates.slate_probability(p, [0, 1])
