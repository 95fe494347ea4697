"""Whether the groups are as large as declared, looked at in the background for the metrics.

A wrong split is the surest sign of lost or doubled traffic. The look is a query, so a thread of
its own makes it, for one experiment after the other and with long pauses: it takes a small
share of a core whatever the number of experiments.
"""

import logging
import threading
import time
from typing import NamedTuple

from sqlalchemy import Engine, func, select
from sqlalchemy.engine import Connection

from bandit.decision import Group
from bandit.measurement import sample_ratio_p_value
from server import revisions
from server.live import Live, LiveExperiment
from server.reporting import log_length
from server.schema import decisions

log = logging.getLogger(__name__)

WINDOW = 100_000
"""Newest log entries that are looked at."""
ENOUGH = 100
"""Customers from which on a snapshot is judged alone."""
EVERY = 30.0
"""Seconds between two looks at everything."""
_REST = 20.0
"""Pause after a look, in looks: about a twentieth of a core at most."""


class Ratio(NamedTuple):
    """What was found for a part of the newest decisions.

    Attributes
    ----------
    snapshot
        ``newest`` or ``previous`` snapshot that decided for enough customers, or ``recent``: all
        newest decisions together. Three words, so that versions do not make ever new series.
    version
        Of the snapshot; the newest one for ``recent``.
    customers
        How many there were.
    p_value
        Chance of group sizes at least this far from the declared shares.
    """

    snapshot: str
    version: int
    customers: int
    p_value: float


def ratios(connection: Connection, live: LiveExperiment) -> list[Ratio]:
    """Judge the split of an experiment's newest decisions, by snapshot and together.

    Decisions from before the shares of the groups were edited are left out.

    Notes
    -----
    O(min(log entries, ``WINDOW``)), along the primary key.
    """
    first = log_length(connection, live.id) - WINDOW
    since = revisions.groups_since(connection, live)
    mine = (decisions.c.experiment_id == live.id) & (decisions.c.seq > first)
    mine &= decisions.c.snapshot_version >= since
    customers = func.count(decisions.c.customer.distinct())
    together = connection.execute(
        select(decisions.c.traffic_group, customers, func.max(decisions.c.snapshot_version))
        .where(mine)
        .group_by(decisions.c.traffic_group)
    ).all()
    if not together:
        return []
    by_version: dict[int, dict[Group, int]] = {}
    for version, group, n in connection.execute(
        select(decisions.c.snapshot_version, decisions.c.traffic_group, customers)
        .where(mine)
        .group_by(decisions.c.snapshot_version, decisions.c.traffic_group)
    ):
        by_version.setdefault(version, {})[Group(group)] = n
    judged = [v for v in sorted(by_version, reverse=True) if sum(by_version[v].values()) >= ENOUGH]
    parts = [(word, v, by_version[v]) for word, v in zip(("newest", "previous"), judged)]  # noqa: B905
    all_groups = {Group(group): n for group, n, _ in together}
    parts.append(("recent", max(version for *_, version in together), all_groups))
    shares = live.experiment.spec.groups
    return [
        Ratio(word, version, sum(sizes.values()), sample_ratio_p_value(sizes, shares))
        for word, version, sizes in parts
    ]


class SampleRatios:
    """Keeps what was found last for every experiment.

    Parameters
    ----------
    live
        All experiments.
    reader
        Reads the log.
    """

    def __init__(self, live: Live, reader: Engine) -> None:
        self._live = live
        self._reader = reader
        self._found: dict[int, list[Ratio]] = {}
        self._lengths: dict[int, int] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sample ratios", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End looking."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    def of(self, experiment_id: int) -> list[Ratio]:
        """Give what was found last; nothing before the first look."""
        return self._found.get(experiment_id, [])

    def look(self, live: LiveExperiment) -> bool:
        """Look at one experiment; give whether there was anything new."""
        with self._reader.connect() as connection:
            length = log_length(connection, live.id)
            if self._lengths.get(live.id) == length:
                return False
            self._found[live.id] = ratios(connection, live)
            self._lengths[live.id] = length
        return True

    def _run(self) -> None:
        while not self._ending.is_set():
            began = time.monotonic()
            for live in self._live.entries():
                at = time.monotonic()
                try:
                    self.look(live)
                except Exception:
                    log.exception("sample ratio", extra={"experiment": live.experiment.spec.name})
                if self._ending.wait(_REST * (time.monotonic() - at)):
                    return
            self._ending.wait(max(EVERY - (time.monotonic() - began), 1.0))
