"""How fast rollouts are, as ratios that one run measures: ``python -m benchmarks.sims``.

One core: a simulated decision with 10 actions and 20 features, learning after each reward, world
included, beside the same steps taken one by one from Python and beside the bare draws and
updates; then 2,400 actions with shared weights; then two processes beside one.
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from bandit import online, rng
from bandit.kernels.compiling import Floats, Ints
from bandit.online import OnlineBelief
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from sims.backends import Backend
from sims.rollouts import Plan, Shard, named, reduce, task
from sims.rollouts.stage import Scene, Scenes
from sims.worlds import Generated, Traffic, World

CUSTOMERS, MANY = 100_000, 6_000
GOALS = {"10 actions": 150_000.0, "2,400 actions": 2_500.0, "two processes": 1.8}


def linear() -> tuple[ExperimentSpec, World]:
    """Give 10 actions with weights of their own and 20 features: 19 numbers and the intercept."""
    return _experiment({"variants": [f"v{i}" for i in range(10)], "channels": ["email"]}, 19, [])


def factored() -> tuple[ExperimentSpec, World]:
    """Give 2,400 actions that share 392 weights: 8 features for every level."""
    actions = {
        "variants": [f"v{i}" for i in range(20)],
        "channels": [f"c{i}" for i in range(5)],
        "slots": [f"s{i}" for i in range(24)],
    }
    terms = [{"of": f"context:{name}"} for name in ("variant", "channel", "slot")]
    return _experiment(actions, 7, terms)


def _experiment(
    actions: dict[str, list[str]], numbers: int, terms: list[dict[str, str]]
) -> tuple[ExperimentSpec, World]:
    names = [f"f{i}" for i in range(numbers)]
    spec = {
        "name": "bench",
        "actions": actions,
        "context": [
            {"name": name, "kind": "number", "bounds": [-1, 1], "required": True} for name in names
        ],
        "outcome": {"window": 1, "rewards": [{"name": "r", "bounds": [-100, 100]}]},
        "policy": {"terms": terms, "noise": {"sd": 1.0}},
        "groups": {"random": 0},
    }
    world = World(
        reward="r",
        response="linear",
        noise=1.0,
        generated=Generated(levels=0.3, context=0.3, actions=0.3, action_context=0.3 * (not terms)),
        traffic=Traffic(spacing="even"),
    )
    return from_data(spec), world


def plan(of: tuple[ExperimentSpec, World], customers: int, replications: int = 1) -> Plan:
    """Give the plan of one learning policy alone."""
    spec, world = of
    policies = (("policy", named(spec, "thompson")),)
    return Plan(
        spec=spec, world=world, policies=policies, customers=customers, replications=replications
    )


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Give the best of several repeats, in this process's own time: others may be at work."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def drawn(of: Plan) -> Scene:
    """Give one block of customers with all that may come of them."""
    return Scenes(of, of.course(0), all_outcomes=True).read(0, 4_096)


def stepwise(of: Plan, scene: Scene) -> Callable[[], Ints]:
    """Give the same steps, each a call from Python: draw, look up, learn."""
    x = of.spec.encoder.encode(scene.arrivals.rows)
    earned = scene.earned

    def run() -> Ints:
        belief, actions = begun(of), np.empty(len(x), dtype=np.int64)
        for t in range(len(x)):
            action = belief.draw(x[t], None, t)
            belief.learn(x[t], action, float(earned[t, action]))  # type: ignore[index]
            actions[t] = action
        return actions

    return run


def begun(of: Plan) -> OnlineBelief:
    """Give a fresh belief."""
    experiment = of.experiment(0, 0)
    stream = rng.snapshot_stream(experiment.secret, "bench", 0)
    posterior = experiment.prior()
    return online.begin(posterior, exploration=0.35, stream=stream)  # type: ignore[arg-type]


def bare(of: Plan, scene: Scene) -> Callable[[], None]:
    """Give draws and updates in two compiled loops, without a world and without choices between."""
    x: Floats = of.spec.encoder.encode(scene.arrivals.rows)
    rewards = np.zeros(len(x))

    def run() -> None:
        belief = begun(of)
        belief.learn_batch(x, belief.draw_batch(x, None, 0), rewards)

    return run


def main() -> None:
    """Print the table, and all of it as JSON."""
    one = plan(linear(), CUSTOMERS)
    scene = drawn(one)
    task(plan(linear(), 5_000), Shard(0, 1))  # compiles
    whole = CUSTOMERS / seconds(lambda: task(one, Shard(0, 1)))
    world = 4_096 / seconds(lambda: drawn(one))
    steps = 4_096 / seconds(stepwise(one, scene))
    bones = 4_096 / seconds(bare(one, scene))
    many = plan(factored(), MANY)
    task(plan(factored(), 300), Shard(0, 1))
    wide = MANY / seconds(lambda: task(many, Shard(0, 1)), repeats=2)
    ratio = two_processes()
    lines = [
        ("10 actions, 20 features, learning at once, world included", whole, "10 actions"),
        ("  the world alone", world, ""),
        ("  draws and updates alone, in separate compiled loops", bones, ""),
        ("  the same steps from Python, without the world", steps, ""),
        ("2,400 actions, 392 shared weights", wide, "2,400 actions"),
    ]
    print("Rollouts, simulated decisions a second on one core")
    for what, rate, goal in lines:
        print(f"  {what:60s} {rate:10,.0f}{_verdict(rate, goal)}")
    print(f"  {'compiled loop with its world over steps from Python':60s} {whole / steps:10.1f} x")
    print(f"  {'two processes over one':60s} {ratio:10.2f} x{_verdict(ratio, 'two processes')}")
    figures = {"rollout": whole, "world": world, "bare": bones, "steps": steps, "many": wide}
    rounded = {name: round(value) for name, value in figures.items()}
    print(json.dumps({**rounded, "two_processes": round(ratio, 3)}))


def two_processes(replications: int = 8) -> float:
    """Give how much faster two processes are than one, start-up left out; the same bits."""
    of = plan(linear(), CUSTOMERS, replications)
    shards = [Shard(r, r + 1) for r in range(replications)]
    warm = plan(linear(), 5_000, 2)
    taken: dict[int, float] = {}
    found = {}
    for how in (Backend(), Backend(kind="loky", workers=2)):
        list(how.run(partial(task, warm), shards[:2]))  # its processes stay for what follows
        taken[how.workers] = math.inf
        for _ in range(2):  # the first may still find a process that starts
            start = time.perf_counter()
            tracks = dict(how.run(partial(task, of), shards))
            taken[how.workers] = min(taken[how.workers], time.perf_counter() - start)
        found[how.workers] = reduce(of, [tracks[r] for r in range(replications)]).track
    for mine, theirs in zip(found[1], found[2], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    return taken[1] / taken[2]


def _verdict(value: float, goal: str) -> str:
    if not goal:
        return ""
    wanted = GOALS[goal]
    return f"   goal {wanted:,.10g}: {'reached' if value >= wanted else 'MISSED'}"


if __name__ == "__main__":
    main()
