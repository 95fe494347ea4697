"""Rollouts: any policies on simulated customers, with common random numbers.

``rollout`` is the front door; ``task`` and ``reduce`` are its parts for many processes.
"""

from sims.rollout.detect import Detection, Seen, detection
from sims.rollout.many import played
from sims.rollout.plan import AtOnce, Learning, Plan, Published, named
from sims.rollout.power import Power, SampleSize, sample_size
from sims.rollout.records import Estimate, Line, Rollout
from sims.rollout.run import plan_of, rollout
from sims.rollout.tasks import reduce, shards, task
from sims.rollout.tracks import Track
from sims.shards import Shard

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
