"""Parts of a rollout: shards of replications, pure functions that play them, and their sum."""

from collections.abc import Callable, Sequence

import numpy as np

from bandit.errors import InvalidInputError
from sims.rollouts import stage
from sims.rollouts.plan import AtOnce, Plan
from sims.rollouts.records import Rollout
from sims.rollouts.shelving import Shard, cut
from sims.rollouts.tracks import Track, Tracker, combined, joined_policies


def shards(plan: Plan, size: int = 1) -> list[Shard]:
    """Cut the replications into shards of one size, the last one shorter.

    Raises
    ------
    InvalidInputError
        If the size is not positive.
    """
    return cut([Shard(0, plan.replications)], size)


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
                passed(len(scene.which))
    return joined_policies(replication, trackers)
