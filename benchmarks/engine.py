"""How long one decision takes in the engine, at 10 arms and 20 features."""

import json
import timeit
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandit import propensity, rng
from bandit.experiment import Experiment
from bandit.kernels import deciding
from bandit.spec_file import from_data
from bandit.warm_up import warm_up

ARMS, FEATURES = 10, 20


class Timing(NamedTuple):
    """One line of the table: what, microseconds, and the goal if there is one."""

    what: str
    us: float
    goal: float | None


def measure(call: Callable[[], object], number: int = 2_000, repeats: int = 9) -> float:
    """Give the best of several repeats, in microseconds a call."""
    return min(timeit.repeat(call, number=number, repeat=repeats)) / number * 1e6


def experiment() -> Experiment:
    """Give a disjoint linear experiment: 10 arms, 19 numbers and the intercept."""
    fields = [
        {"name": f"f{i}", "kind": "number", "bounds": [-3, 3], "required": True}
        for i in range(FEATURES - 1)
    ]
    spec = {
        "name": "bench",
        "actions": {"variants": [f"v{i}" for i in range(ARMS)], "channels": ["email"]},
        "context": fields,
        "outcome": {"window": 1, "rewards": [{"name": "r", "bounds": [-100, 100]}]},
        "groups": {"random": 0},
    }
    return Experiment(from_data(spec), secret=b"a secret for benchmarks")


def run() -> list[Timing]:
    """Measure kernel and front door."""
    warm_up()
    random = np.random.default_rng(1)
    of = experiment()
    posterior = of.prior()
    rows = random.uniform(-3, 3, (400, FEATURES - 1))
    of.learn(posterior, rows, random.integers(0, ARMS, 400), random.normal(size=400), seq=400)
    snapshot = of.publish(posterior, version=1)
    context = {f"f{i}": float(value) for i, value in enumerate(rows[0])}
    one = rng.decision_id(of.secret, "bench", "request", at_ms=0)
    x = of.spec.encoder.encode(rows[:1])
    which, masks = np.zeros(1, dtype=np.int64), of.spec.actions.mask.reshape(1, -1).copy()
    stream = rng.words(rng.decision_stream(of.secret, "bench", one)).reshape(1, 4)
    belief = snapshot.belief
    arrays = (x, which, masks, stream, belief.mean, belief.root)  # type: ignore[attr-defined]

    def decide(*, propensities: bool) -> object:
        return of.decide(
            snapshot, context, decision_id=one, customer=b"c", propensities=propensities
        )

    return [
        Timing("kernel: one draw", measure(lambda: deciding.draw_independent(*arrays, 0.0)), 10.0),
        Timing(
            "kernel: exact propensities",
            measure(
                lambda: deciding.decide_independent(
                    *arrays, propensity.NODES, propensity.MARKS, 0.0
                ),
                number=300,
            ),
            None,
        ),
        Timing("front door, no propensities", measure(lambda: decide(propensities=False)), 40.0),
        Timing("front door", measure(lambda: decide(propensities=True), number=300), None),
    ]


def main() -> list[Timing]:
    """Print the table."""
    found = run()
    print(f"Engine, {ARMS} arms x {FEATURES} features, one core, warm")
    for what, us, goal in found:
        verdict = (
            "" if goal is None else f"   goal {goal:.0f}: {'reached' if us < goal else 'MISSED'}"
        )
        print(f"  {what:32s} {us:8.1f} us{verdict}")
    print(json.dumps({what: round(us, 2) for what, us, _ in found}))
    return found


if __name__ == "__main__":
    main()
