"""Rollouts: any policies on simulated customers, with common random numbers.

``rollout`` is the front door; ``task`` and ``reduce`` are its parts for many processes.
"""

from sims.rollouts.detect import Detection, Seen, detection
from sims.rollouts.many import played
from sims.rollouts.plan import AtOnce, Learning, Plan, Published, named
from sims.rollouts.power import Power, SampleSize, sample_size
from sims.rollouts.records import Estimate, Line, Rollout
from sims.rollouts.run import plan_of, rollout
from sims.rollouts.shelving import Shard
from sims.rollouts.tasks import reduce, shards, task
from sims.rollouts.tracks import Track

__all__ = [
    "AtOnce",
    "Detection",
    "Estimate",
    "Learning",
    "Line",
    "Plan",
    "Power",
    "Published",
    "Rollout",
    "SampleSize",
    "Seen",
    "Shard",
    "Track",
    "detection",
    "named",
    "plan_of",
    "played",
    "reduce",
    "rollout",
    "sample_size",
    "shards",
    "task",
]
