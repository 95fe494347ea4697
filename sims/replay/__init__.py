"""Replay: a uniform log past a policy, and our own logs decided again, bit for bit."""

from sims.replay.uniform import Rejection, Replayed, constants, rejection, replay

__all__ = ["Rejection", "Replayed", "constants", "rejection", "replay"]
