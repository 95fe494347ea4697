"""What is counted while the server works: plain numbers, added to once for a whole commit.

Nothing here knows Prometheus; ``server/metrics.py`` reads these numbers when it is asked.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from bandit.decision import Reason
from bandit.errors import BanditError, ConflictError, NotFoundError
from server.live import LiveExperiment
from server.storage import DecisionRow, EventRow, Recorded
from server.writer import AppendDecisions, AppendEvents, Job

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip
"""Upper ends of the buckets of durations: a decision takes less than most defaults begin with."""
ROWS = tuple(2.0**i for i in range(13))
LAGS = tuple(
    float(s) for s in (1, 10, 60, 600, 3_600, 6 * 3_600, 86_400, 3 * 86_400, 7 * 86_400,
                       14 * 86_400, 30 * 86_400)
)  # fmt: skip

_PAIR = attrgetter("traffic_group", "reason")
_AT_FLOOR = 1.0 + 1e-6
"""A propensity is at the floor up to what rounding adds."""


class Distribution:
    """A histogram: how many values fell into each bucket, and their sum.

    Parameters
    ----------
    bounds
        Upper ends of the buckets, growing; a value equal to one belongs to it.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class ExperimentTally:
    """What was committed for one experiment since this process began."""

    def __init__(self) -> None:
        self.decisions: Counter[tuple[int, int]] = Counter()
        self.rewards: Counter[tuple[str, str]] = Counter()
        self.repeated = 0
        self.unjoined = 0
        self.floor_hits = 0
        self._floor = 0.0
        self._floor_of: object = None

    def decided(self, live: LiveExperiment, rows: Sequence[DecisionRow]) -> None:
        """Count new decisions by group and reason, and those the policy left at its floor."""
        if self._floor_of is not live.experiment:
            self._floor_of = live.experiment
            self._floor = (live.experiment.spec.full_policy.floor or 0.0) * _AT_FLOOR
        self.decisions.update(map(_PAIR, rows))
        floor = self._floor
        if floor > 0.0:
            for row in rows:
                if row.propensity <= floor and row.reason == Reason.POLICY:
                    self.floor_hits += 1

    def merge(self, other: "ExperimentTally") -> None:
        """Add what another one counted."""
        self.decisions.update(Counter(dict(other.decisions)))
        self.rewards.update(Counter(dict(other.rewards)))
        self.repeated += other.repeated
        self.unjoined += other.unjoined
        self.floor_hits += other.floor_hits


class MethodTally:
    """How the calls of one method ended, by status code, and how long they took."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shed = 0
        self.by_code: dict[str, Distribution] = {}
        self._lock = threading.Lock()  # calls end in several threads

    def ended(self, code: str, seconds: float) -> None:
        """Count a call."""
        with self._lock:
            found = self.by_code.get(code)
            if found is None:
                found = self.by_code[code] = Distribution(SECONDS)
            found.add(seconds)

    def turned_away(self) -> None:
        """Count a call that found the server full."""
        with self._lock:
            self.shed += 1


class Counters:
    """Everything one process counts.

    Notes
    -----
    ``committed`` is called by the writer's thread alone, so its numbers need no lock; a reader
    may see a commit half counted, which the next look mends.
    """

    def __init__(self) -> None:
        self.experiments: dict[int, ExperimentTally] = {}
        self.methods: dict[str, MethodTally] = {}
        self.commit_seconds = Distribution(SECONDS)
        self.commit_rows = Distribution(ROWS)
        self.reward_lag = Distribution(LAGS)
        self.reward_delay = Distribution(LAGS)

    def method(self, name: str) -> MethodTally:
        """Give the tally of a method; called once for each when the server is built."""
        return self.methods.setdefault(name, MethodTally(name))

    def committed(self, jobs: Sequence[Job[Any]], seconds: float) -> None:
        """Count one transaction that is durable."""
        rows = 0
        fresh: dict[int, tuple[LiveExperiment, list[DecisionRow]]] = {}
        for job in jobs:
            rows += job.rows
            if job.error is not None or job.result is None:
                continue
            if isinstance(job, AppendDecisions):
                _, mine = fresh.setdefault(job.experiment_id, (job.plan.live, []))
                new = [row for _, row, repeated in job.result if not repeated]
                mine += new
                if len(new) < len(job.result):
                    self._tally(job.experiment_id).repeated += len(job.result) - len(new)
            elif isinstance(job, AppendEvents):
                self._recorded(job)
        for experiment_id, (live, mine) in fresh.items():
            self._tally(experiment_id).decided(live, mine)
        self.commit_rows.add(rows)
        self.commit_seconds.add(seconds)

    def _recorded(self, job: AppendEvents) -> None:
        tally = self._tally(job.experiment_id)
        for event, result in zip(job.events, job.result or (), strict=True):
            what = disposition(result)
            tally.rewards[event.name, what] += 1
            if what == "unknown_decision":
                tally.unjoined += 1
            elif what in ("recorded", "late"):
                self.reward_lag.add(max(event.received_at - event.occurred_at, 0) / 1e6)
                self.reward_delay.add(max(event.received_at - _decided_at(event), 0) / 1e6)

    def _tally(self, experiment_id: int) -> ExperimentTally:
        found = self.experiments.get(experiment_id)
        if found is None:
            found = self.experiments[experiment_id] = ExperimentTally()
        return found


def disposition(result: Recorded | BanditError) -> str:
    """Say in a word what became of a reward event."""
    if isinstance(result, NotFoundError):
        return "unknown_decision"
    if isinstance(result, ConflictError):
        return "conflict"
    if isinstance(result, BanditError):
        return "refused"
    if result.duplicate:
        return "duplicate"
    return "late" if result.late else "recorded"


def _decided_at(event: EventRow) -> int:
    """Read when a decision was made from its id, whose first 48 bits are milliseconds."""
    return int.from_bytes(event.decision_id[:6], "big") * 1_000
