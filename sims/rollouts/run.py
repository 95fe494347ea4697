"""The front door: policies on common random numbers, many replications, plain records."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
from bandit.policy import PolicySpec
from bandit.spec import ExperimentSpec
from sims.rollouts import stage
from sims.rollouts.plan import AtOnce, Learning, Plan, named, with_references
from sims.rollouts.records import Rollout
from sims.rollouts.tracks import Track, Tracker, combined, joined_policies
from sims.worlds import World

Progress = Callable[[int, int], None]
"""Told how many customers of how many are done, all policies and replications counted."""


class Shard(NamedTuple):
    """Replications ``first`` to ``stop - 1``."""

    first: int
    stop: int


def plan_of(  # noqa: PLR0913  what a rollout is made of
    spec: ExperimentSpec,
    world: World,
    policies: Mapping[str, PolicySpec | str] | None = None,
    *,
    customers: int = 10_000,
    replications: int = 20,
    seed: int = 1,
    learning: Learning | None = None,
    checkpoints: Sequence[int] = (),
) -> Plan:
    """Give the plan of a rollout, references included; see ``rollout``."""
    asked: Mapping[str, PolicySpec | str] = (
        {"policy": spec.policy} if policies is None else policies
    )
    made = {
        label: named(spec, policy) if isinstance(policy, str) else policy
        for label, policy in asked.items()
    }
    return Plan(
        spec=spec,
        world=world,
        policies=with_references(spec, made),
        customers=customers,
        replications=replications,
        seed=seed,
        learning=AtOnce() if learning is None else learning,
        checkpoints=tuple(checkpoints),
    )


def rollout(  # noqa: PLR0913  what a rollout is made of
    spec: ExperimentSpec,
    world: World,
    policies: Mapping[str, PolicySpec | str] | None = None,
    *,
    customers: int = 10_000,
    replications: int = 20,
    seed: int = 1,
    learning: Learning | None = None,
    checkpoints: Sequence[int] = (),
    progress: Progress | None = None,
) -> Rollout:
    """Let policies decide for the same simulated customers, again and again.

    Parameters
    ----------
    spec
        The experiment: actions, context, outcome.
    world
        How customers behave.
    policies
        By label: a policy, or the kind of one (``"linucb"``, ``"fixed:variant/channel"``).
        None compares the experiment's own. The references ``uniform`` and, where one is
        declared, ``baseline`` are added.
    customers, replications
        How many each policy decides for, and how often that is repeated from scratch.
    seed
        The same seed gives the same bits.
    learning
        ``AtOnce()`` (None), or ``Published(outcomes=..., seconds=...)``: a server's cadence.
    checkpoints
        Customers after which figures are kept; empty: fifty alike.
    progress
        Called as customers are done.

    Raises
    ------
    InvalidInputError
        If something is out of range, or world and policies do not fit the experiment.
    """
    plan = plan_of(
        spec,
        world,
        policies,
        customers=customers,
        replications=replications,
        seed=seed,
        learning=learning,
        checkpoints=checkpoints,
    )
    total, done = customers * replications * len(plan.policies), 0

    def passed(decisions: int) -> None:
        nonlocal done
        done += decisions
        if progress is not None:
            progress(done, total)

    return reduce(plan, [task(plan, shard, passed) for shard in shards(plan)])


def shards(plan: Plan, size: int = 1) -> list[Shard]:
    """Cut the replications into shards of one size, the last one shorter.

    Raises
    ------
    InvalidInputError
        If the size is not positive.
    """
    if size < 1:
        raise InvalidInputError(f"must be at least 1, got {size}", field="size")
    starts = range(0, plan.replications, size)
    return [Shard(first, min(first + size, plan.replications)) for first in starts]


def task(plan: Plan, shard: Shard, passed: Callable[[int], None] | None = None) -> Track:
    """Play a shard of replications: a pure function of plan and shard.

    Parameters
    ----------
    passed
        Told how many decisions were made since it was told last.

    Raises
    ------
    InvalidInputError
        If the world gives what the experiment can not take.
    """
    if not 0 <= shard.first < shard.stop <= plan.replications:
        raise InvalidInputError(
            f"{tuple(shard)} is not within 0 to {plan.replications}", field="shard"
        )
    return combined([_replication(plan, r, passed) for r in range(*shard)])


def reduce(plan: Plan, tracks: Sequence[Track]) -> Rollout:
    """Put the tracks of all shards together, in the order of the shards.

    Raises
    ------
    InvalidInputError
        If replications are missing, repeated or out of order.
    """
    if not tracks:
        raise InvalidInputError("are none", field="tracks")
    track = combined(list(tracks))
    if track.replications.tolist() != list(range(plan.replications)):
        raise InvalidInputError(
            f"hold replications {track.replications.tolist()[:20]}, need 0 to "
            f"{plan.replications - 1} in order",
            field="tracks",
        )
    return Rollout(plan=plan, track=track)


def _replication(plan: Plan, replication: int, passed: Callable[[int], None] | None) -> Track:
    course = plan.course(replication)
    performers = [
        stage.performer(plan, policy, replication, course) for policy in range(len(plan.policies))
    ]
    points = np.array(plan.checkpoints, dtype=np.int64)
    trackers = [Tracker(points, plan.spec.actions.size) for _ in performers]
    scenes = stage.Scenes(plan, course, all_outcomes=isinstance(plan.learning, AtOnce))
    size = stage.block_size(plan.spec.actions.size)
    for start in range(0, plan.customers, size):
        scene = scenes.read(start, min(start + size, plan.customers))
        for performer, tracker in zip(performers, trackers, strict=True):
            tracker.add(performer.perform(scene))
        if passed is not None:
            passed(len(scene.which) * len(performers))
    return joined_policies(replication, trackers)
