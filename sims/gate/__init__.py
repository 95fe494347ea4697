"""The gate before a start: checks with limits, from worlds and logs, to one verdict."""

from sims.gate.verdict import Findings, examine, validate

__all__ = ["Findings", "examine", "validate"]
