"""Offline simulation, replay and off-policy evaluation: the proof before the traffic.

Four functions are the front door, for programs and notebooks (``docs/how-to/notebook.md``):

- ``rollout``: policies on simulated customers;
- ``read``: a log from a file;
- ``evaluate``: what a policy would have earned on a log;
- ``validate``: the gate before a start.

The rooms behind it: ``worlds`` and ``rollouts``, ``log``, ``replay``, ``ope`` (off-policy
evaluation), ``gate``, ``report``, ``datasets``, ``published``, ``kernels``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sims.gate import validate
    from sims.log import read
    from sims.ope.evaluate import evaluate
    from sims.rollouts import rollout

__all__ = ["evaluate", "read", "rollout", "validate"]

_ROOMS = {"evaluate": "ope.evaluate", "read": "log", "rollout": "rollouts", "validate": "gate"}


def __getattr__(name: str) -> object:
    """Open a room when something in it is asked for: reward models alone take a second."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
