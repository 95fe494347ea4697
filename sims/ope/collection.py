"""How a log came about: by one policy that did not change, or by one that learned on the way."""

from typing import NamedTuple

import numpy as np

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.log import Log

BACK = 60.0
"""Seconds by which times may go back from row to row: clocks of several servers differ."""


class Collection(NamedTuple):
    """Whether the policy that logged learned from the log's own rows.

    Attributes
    ----------
    is_adaptive
        If so, rows are not independent, and intervals that take them so do not hold.
    why
        How that is known.
    """

    is_adaptive: bool
    why: str


class Watch:
    """Gathers from batches, in the order of the log, what tells how it came about."""

    def __init__(self) -> None:
        self._versions: set[int] = set()
        self._knows_versions = True
        self._ranges: dict[int, Floats] = {}
        self._rows = 0
        self._last = -np.inf
        self._back: int | None = None

    def add(self, log: Log) -> None:
        """Look at the next batch."""
        if not len(log):
            return
        own = slice(None) if log.groups is None else log.groups == int(Group.BANDIT)
        if log.versions is None:
            self._knows_versions = False
        else:
            self._versions |= set(np.unique(log.versions[own]).tolist())
        self._add_ranges(log)
        if log.times is not None and self._back is None:
            latest = np.maximum.accumulate(np.concatenate([[self._last], log.times]))
            back = log.times < latest[:-1] - BACK
            self._last = float(latest[-1])
            if back.any():
                self._back = self._rows + int(np.argmax(back))
        self._rows += len(log)

    def _add_ranges(self, log: Log) -> None:
        """Keep the smallest and largest propensity of every action, by group and position."""
        cells = np.zeros(len(log), dtype=np.int64)
        for column in (log.groups, log.positions):
            cells = cells * 2**16 + (0 if column is None else column)
        for cell in np.unique(cells).tolist():
            here = cells == cell
            found = self._ranges.setdefault(
                cell, np.stack([np.full(log.size, np.inf), np.zeros(log.size)])
            )
            np.minimum.at(found[0], log.actions[here], log.propensities[here])
            np.maximum.at(found[1], log.actions[here], log.propensities[here])

    @property
    def _is_constant(self) -> bool:
        return all(bool((high <= low * (1 + 1e-9)).all()) for low, high in self._ranges.values())

    def found(self, declared: bool | None) -> Collection:  # noqa: FBT001  a plan's own setting
        """Give what is declared, or what the log tells.

        Raises
        ------
        InvalidInputError
            If the policy learned and rows are not in the order of time: naming the row, from 0.
        """
        made = self._told() if declared is None else Collection(declared, _DECLARED[declared])
        if made.is_adaptive and self._back is not None:
            raise InvalidInputError(
                f"is more than {BACK:g} s before a row above; the policy of this log learned, so "
                "rows must be in the order of time",
                field=f"log.times[{self._back}]",
            )
        return made

    def _told(self) -> Collection:
        many = len(self._versions)
        if not self._knows_versions:
            return Collection(
                is_adaptive=False,
                why="the log does not say which snapshot decided, and is taken to be of a policy "
                "that did not change",
            )
        if many < 2:
            return Collection(is_adaptive=False, why="one snapshot decided all rows")
        if self._is_constant:
            return Collection(
                is_adaptive=False,
                why=f"{many} snapshots decided, all with the same propensity for an action",
            )
        return Collection(
            is_adaptive=True,
            why=f"{many} snapshots decided, so earlier outcomes moved later choices and rows are "
            "not independent",
        )


_DECLARED = {
    True: "the policy that logged is declared to have learned on the way",
    False: "the policy that logged is declared not to have changed",
}
