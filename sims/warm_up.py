"""Compile the kernels of simulation before the first run: ``python -m sims.warm_up``.

Those that decide and learn in a server are compiled by ``bandit.warm_up``.
"""

import numpy as np

from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from sims.kernels.delayed import delayed
from sims.log import Log
from sims.ope.evaluate import evaluate
from sims.rollouts import rollout
from sims.worlds import Delay, World, draws

_OWN = [{"of": "context:variant:channel"}]
_KINDS = ("thompson_sampling", "linucb", "epsilon_greedy")


def specs() -> list[ExperimentSpec]:
    """Give small experiments that together reach every loop that learns at once."""
    parts: list[dict[str, object]] = [{"kind": kind, "terms": _OWN} for kind in _KINDS]
    parts += [{"kind": kind} for kind in _KINDS]
    parts += [{"posterior": "logistic", "terms": _OWN}, {"posterior": "logistic"}]
    return [
        from_data(
            {
                "name": "warm",
                "actions": {"variants": ["a", "b"], "channels": ["c", "d"]},
                "context": [{"name": "n", "kind": "number", "bounds": [0, 1]}],
                "outcome": {"window": 60, "rewards": [{"name": "r"}], "aggregation": "max"},
                "policy": part,
            }
        )
        for part in parts
    ]


def warm_up() -> None:
    """Compile what rollouts, worlds and evaluations run, or load it from the disk cache.

    Notes
    -----
    Less than a minute on one core with an empty cache.
    """
    world = World(reward="r", base=-1.0, delay=Delay(mean=30.0))
    linear = World(reward="r", response="linear", noise=1.0)
    for spec in specs():
        rollout(spec, world, customers=20, replications=1)
    rollout(specs()[0], linear, customers=20, replications=1)
    draws.exponentials_of(np.ones(2))  # for delays and traits that are log-normal
    delayed(np.random.default_rng(1), 10, 2, 1, 0.1)
    random = np.random.default_rng(1)
    log = Log(
        actions=random.integers(0, 2, 400),
        rewards=(random.random(400) < 0.5).astype(np.float64),
        propensities=np.full(400, 0.5),
        size=2,
        rows=random.random((400, 1)),
    )
    for kinds in (["student", "bca"], ["stabilised", "betting"]):
        evaluate(
            log,
            np.full((400, 2), 0.5),
            intervals=kinds,
            bounds=(0.0, 1.0),
            largest_weight=2.0,
            replicates=40,
        )


if __name__ == "__main__":
    warm_up()
