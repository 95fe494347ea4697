"""Worlds: simulated customers whose behaviour is known, so that regret is exact.

A world is a small declarative file (``docs/reference/worlds.md``); a course is one replication
of it for one experiment. ``sims/examples`` holds worlds beside the experiments they are made for.
"""

from pathlib import Path

from sims.worlds.catalogue import Preset, load, names, preset
from sims.worlds.course import Arrivals, Course, Events, Responses
from sims.worlds.effects import Effect, Generated, Wheel
from sims.worlds.history import History
from sims.worlds.matching import check
from sims.worlds.traits import Segment, Trait
from sims.worlds.world import (
    Availability,
    Contexts,
    Delay,
    Fatigue,
    Traffic,
    Unsubscribes,
    World,
)
from sims.worlds.world_file import read, write

Context = dict[str, float | str | bool | None]
"""What is known about a customer, by name; None where missing."""

EXAMPLES = Path(__file__).parents[1] / "examples"

__all__ = [
    "EXAMPLES",
    "Arrivals",
    "Availability",
    "Context",
    "Contexts",
    "Course",
    "Delay",
    "Effect",
    "Events",
    "Fatigue",
    "Generated",
    "History",
    "Preset",
    "Responses",
    "Segment",
    "Traffic",
    "Trait",
    "Unsubscribes",
    "Wheel",
    "World",
    "check",
    "load",
    "names",
    "preset",
    "read",
    "write",
]
