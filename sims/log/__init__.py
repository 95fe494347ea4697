"""Logs: what was decided, with which probability, and what came of it.

A log is a Parquet file as ``banditctl export`` writes it (``docs/reference/log-format.md``), or
anybody's Parquet or CSV file whose columns are named. It is read a batch at a time, and every
cell is checked against the experiment's specification before a number is made of it.
"""

from sims.log.reading import LEARNED, batches, read
from sims.log.record import COLUMNS, Log, join, taken

__all__ = ["COLUMNS", "LEARNED", "Log", "batches", "join", "read", "taken"]
