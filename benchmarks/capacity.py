"""What a thousand experiments of twenty actions cost: ``python -m benchmarks.capacity``.

Every experiment is started, decides, and learns, so that each holds a published belief and a
learner's own; then the server is started anew, as after a crash.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from benchmarks.recovery import end, serve
from server.client import Ask, BanditClient, Fact

GOAL = 1_000.0
"""Megabytes."""
_FIELDS = 12


def experiment(number: int) -> ExperimentSpec:
    """Give an experiment of 20 actions and 12 context fields."""
    return from_data(
        {
            "name": f"campaign-{number}",
            "actions": {
                "variants": [f"v{i}" for i in range(5)],
                "channels": ["email", "push"],
                "slots": [{"name": "morning", "time": "09:00"}, {"name": "late", "time": "20:00"}],
            },
            "context": [
                {"name": f"f{i}", "kind": "number", "bounds": [0, 1]} for i in range(_FIELDS)
            ],
            "outcome": {"window": 86_400, "rewards": [{"name": "click", "terminal": True}]},
        }
    )


def main() -> None:
    """Measure and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiments", type=int, default=1_000)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served, address = serve(folder)
        held = psutil.Process(served.pid).memory_info
        print(f"empty: {held().rss / 2**20:.0f} MB", flush=True)
        with BanditClient(address, timeout=120.0) as client:
            for number in range(told.experiments):
                use(client, experiment(number))
                if (number + 1) % 250 == 0:
                    print(f"  {number + 1}: {held().rss / 2**20:.0f} MB", flush=True)
        used = held().rss / 2**20
        end(served)
        began = time.perf_counter()
        served, address = serve(folder)
        took = time.perf_counter() - began
        anew = psutil.Process(served.pid).memory_info().rss / 2**20
        end(served)
    worst = max(used, anew)
    print(f"started anew in {took:.1f} s, {anew:.0f} MB")
    print(
        f"{told.experiments} experiments of 20 actions: {worst:.0f} MB, goal {GOAL:.0f}: "
        f"{'reached' if worst < GOAL else 'MISSED'}"
    )
    sys.exit(worst >= GOAL)


def use(client: BanditClient, spec: ExperimentSpec) -> None:
    """Create and start an experiment; decide ten times, and let it learn from each."""
    client.create_experiment(spec)
    client.start_experiment(spec.name, override="a measurement")
    context = {f"f{i}": 0.5 for i in range(_FIELDS)}
    asks = [Ask(customer_id=f"c{i}", context=context, request_id=f"r{i}") for i in range(10)]
    made = client.decide_batch(spec.name, asks)
    facts = [Fact(decision_id=m.decision_id, name="click", event_id=m.decision_id) for m in made]
    client.record_rewards(spec.name, facts)


if __name__ == "__main__":
    main()
