"""Small experiments, worlds and plans that the tests of rollouts share."""

from collections.abc import Callable

import numpy as np

from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from sims.rollouts import (
    Plan,
    stage,
)
from sims.worlds import (
    Availability,
    Delay,
    Fatigue,
    Generated,
    Traffic,
    World,
)

TERMS = [{"of": "context:variant"}, {"of": "context:channel"}]
OWN = [{"of": "context:variant:channel"}]


def spec(**policy: object) -> ExperimentSpec:
    """Give six actions, two numbers and a flag, an outcome that may be anything."""
    return from_data(
        {
            "name": "six",
            "actions": {"variants": ["a", "b", "c"], "channels": ["email", "push"]},
            "context": [
                {"name": "age", "kind": "number", "bounds": [0, 1]},
                {"name": "spend", "kind": "number", "bounds": [0, 1]},
                {"name": "app", "kind": "flag"},
            ],
            "outcome": {
                "window": 3_600,
                "aggregation": "first",
                "rewards": [
                    {"name": "r", "terminal": True, "bounds": policy.pop("bounds", [0, 1])}
                ],
            },
            "baseline": {"variant": "a", "channel": "email"},
            "policy": policy,
        }
    )


def world(**parts: object) -> World:
    """Give clicks by what customers like."""
    return World(
        **{
            "reward": "r",
            "base": -1.5,
            "generated": Generated(seed=3, levels=0.6, context=0.8),
            **parts,
        }
    )


LINEAR = {"response": "linear", "noise": 1.0, "base": 0.0}
LATE = {
    "delay": Delay(mean=600.0),
    "missing": 0.1,
    "traffic": Traffic(per_hour=60.0),
}


def plan(of: ExperimentSpec, its: World, customers: int = 300, **given: object) -> Plan:
    """Give the plan of the experiment's own policy."""
    given.setdefault("policies", (("policy", of.policy),))
    return Plan(spec=of, world=its, customers=customers, **given)


def played(of: Plan, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Give actions and rewards of the first policy in the first replication."""
    course = of.course(0)
    performer = stage.performer(of, 0, 0, course)
    scenes = stage.Scenes(of, course, all_outcomes=True)
    parts = [
        performer.perform(scenes.read(start, min(start + size, of.customers)))
        for start in range(0, of.customers, size)
    ]
    return np.concatenate([p.actions for p in parts]), np.concatenate([p.rewards for p in parts])


MODELS: dict[str, Callable[[], tuple[ExperimentSpec, World]]] = {
    "own weights": lambda: (spec(bounds=[-50, 50], terms=OWN), world(**LINEAR)),
    "own weights, late and lost": lambda: (
        spec(bounds=[-50, 50], terms=OWN),
        world(**LINEAR, **LATE),
    ),
    "shared weights": lambda: (spec(bounds=[-50, 50], terms=TERMS, floor=0), world(**LINEAR)),
    "shared, late and lost": lambda: (spec(terms=TERMS, floor=0), world(**LATE)),
    "logistic": lambda: (spec(posterior="logistic", base_rate=0.2, terms=OWN), world()),
    "logistic and shared": lambda: (
        spec(posterior="logistic", base_rate=0.2, terms=TERMS, floor=0),
        world(**LATE),
    ),
    "a floor": lambda: (spec(floor=0.1, terms=OWN), world()),
    "a shared floor": lambda: (spec(floor=0.1, terms=TERMS), world()),
    "levels that come": lambda: (
        spec(),
        world(
            availability=(Availability(variant="b", appears=0.1),),
            traffic=Traffic(per_hour=60.0),
        ),
    ),
    "customers who tire": lambda: (
        spec(),
        world(
            fatigue=Fatigue(per_message=0.5, half_life=1.0),
            traffic=Traffic(per_hour=60.0, customers=40),
            delay=Delay(mean=600.0),
        ),
    ),
}
