"""Rollouts: any policies on simulated customers, with common random numbers.

``rollout`` is the front door; ``task`` and ``reduce`` are its parts for many processes.
"""

from sims.rollout.plan import AtOnce, Learning, Plan, Published, named
from sims.rollout.records import Estimate, Line, Rollout
from sims.rollout.run import Shard, plan_of, reduce, rollout, shards, task
from sims.rollout.tracks import Track

__all__ = [
    "AtOnce",
    "Estimate",
    "Learning",
    "Line",
    "Plan",
    "Published",
    "Rollout",
    "Shard",
    "Track",
    "named",
    "plan_of",
    "reduce",
    "rollout",
    "shards",
    "task",
]
