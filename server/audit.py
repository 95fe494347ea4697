"""The audit: whether the log is whole, and all that is stored follows from it bit for bit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from uuid import UUID

from sqlalchemy import func, select, union
from sqlalchemy.engine import Connection

from bandit import encoding
from bandit.decision import Reason
from bandit.experiment import Question
from bandit.outcome import OutcomeRule, RewardEvent
from bandit.posterior import Posterior
from bandit.snapshot import Snapshot
from server import catalogue, ledger, lessons, omissions, storage
from server.convert import read_exclusions
from server.lessons import rows_of
from server.live import LiveExperiment
from server.omissions import Omission
from server.schema import ENTRIES, AnyRow, experiments

BATCH = 1_000
Step = Callable[[int, int], None]


@dataclass(slots=True)
class Findings:
    """What the audit of one experiment found.

    Attributes
    ----------
    entries, decisions, exposures, events, outcomes, omissions, snapshots
        How many there are.
    repeated
        Decisions that came out again.
    problems
        What is wrong, for people; empty if nothing is.
    """

    name: str
    entries: int = 0
    decisions: int = 0
    exposures: int = 0
    events: int = 0
    outcomes: int = 0
    omissions: int = 0
    snapshots: int = 0
    repeated: int = 0
    problems: list[str] = field(default_factory=list)


def audit(
    connection: Connection, live: LiveExperiment, *, again: bool = True, step: Step | None = None
) -> Findings:
    """Check one experiment's log and all that was derived from it.

    Parameters
    ----------
    again
        Whether to decide every decision again, too.
    step
        Told of progress: decisions done, and in all.

    Notes
    -----
    O(log entries); memory is bounded by a batch of rows.
    """
    found = Findings(live.experiment.spec.name)
    _check_sequence(connection, live, found)
    _check_outcomes(connection, live, found)
    decided = groupby(storage.by_snapshot(connection, live.id), lambda row: row.snapshot_version)
    waiting = next(decided, None) if again else None
    done = 0
    for posterior, version in _refold(connection, live, found):
        if waiting is not None and waiting[0] == version:
            snapshot = live.experiment.publish(posterior, version=version)
            for rows in _batches(waiting[1]):
                _decide_again(live, snapshot, rows, found)
                done += len(rows)
                if step is not None:
                    step(done, found.decisions)
            waiting = next(decided, None)
    if waiting is not None:
        found.problems.append(f"decisions name snapshot {waiting[0]}, which is not there")
    return found


def _check_sequence(connection: Connection, live: LiveExperiment, found: Findings) -> None:
    counts = []
    for table in ENTRIES:
        columns = (func.count(), func.min(table.c.seq), func.max(table.c.seq))
        chosen = select(*columns).where(table.c.experiment_id == live.id)
        counts.append(connection.execute(chosen).one())
    found.decisions, found.exposures, found.events, found.outcomes, found.omissions = (
        int(c[0]) for c in counts
    )
    found.entries = sum(int(c[0]) for c in counts)
    next_seq = connection.execute(
        select(experiments.c.next_seq).where(experiments.c.id == live.id)
    ).scalar_one()
    every = union(
        *(select(table.c.seq).where(table.c.experiment_id == live.id) for table in ENTRIES)
    )
    distinct = connection.execute(select(func.count()).select_from(every.subquery())).scalar_one()
    ends = [c[1:] for c in counts if c[0]]
    low, high = min((e[0] for e in ends), default=1), max((e[1] for e in ends), default=0)
    dense = distinct == found.entries and low == 1 and high == found.entries == next_seq - 1
    if found.entries and not dense:
        found.problems.append(
            f"the sequence is not dense: {found.entries} entries, {distinct} places, "
            f"from {low} to {high}, next is {next_seq}"
        )


def _check_outcomes(connection: Connection, live: LiveExperiment, found: Findings) -> None:
    """Compute every outcome again from the facts before it, and the newest from all of them."""
    rule = live.experiment.spec.outcome
    last = 0
    while rows := storage.settled_after(connection, live.id, last, BATCH):
        last = rows[-1].seq
        seqs = sorted({row.decision_seq for row in rows})
        starts = ledger.starts_of(connection, live.id, rule, rows)
        newest = ledger.newest_outcomes(connection, live.id, seqs)
        before = ledger.replaced_by(connection, live.id, [row.seq for row in rows])
        events: dict[int, list[AnyRow]] = {}
        for event in ledger.counted_events(connection, live.id, rule, seqs):
            events.setdefault(event.decision_seq, []).append(event)
        for row in rows:
            if row.is_learned != (row.reason in storage.LEARNED_REASONS):
                found.problems.append(
                    f"the outcome at {row.seq} is {'' if row.is_learned else 'not '}learned from, "
                    f"against its decision's reason"
                )
            if row.replaces != before[row.seq]:
                found.problems.append(
                    f"the outcome at {row.seq} replaces {row.replaces}, not {before[row.seq]}"
                )
            facts = events.get(row.decision_seq, [])
            _check_value(rule, row, facts, starts.get(row.decision_seq), found)
            start = starts.get(row.decision_seq)
            if start is not None and newest[row.decision_seq].seq == row.seq:
                value = rule.outcome([_fact(event) for event in facts], start)
                if value != row.value:
                    found.problems.append(
                        f"the outcome at {row.seq} is {row.value}, and was not corrected to {value}"
                    )


def _check_value(
    rule: OutcomeRule, row: AnyRow, events: list[AnyRow], start: int | None, found: Findings
) -> None:
    if start is None:
        found.problems.append(f"the outcome at {row.seq} is of a decision that was never shown")
        return
    value = rule.outcome([_fact(event) for event in events if event.seq < row.seq], start)
    if value != row.value:
        found.problems.append(f"the outcome at {row.seq} is {row.value}, its events give {value}")


def _fact(event: AnyRow) -> RewardEvent:
    return RewardEvent(event.name, event.value, event.occurred_at)


def _refold(
    connection: Connection, live: LiveExperiment, found: Findings
) -> Iterator[tuple[Posterior, int]]:
    """Fold the log from scratch; stop at every snapshot and compare. The prior is version 0."""
    experiment = live.experiment
    posterior, at = experiment.prior(), 0
    yield posterior, 0
    every = omissions.after(connection, live.id, 0)
    heard: list[Omission] = []
    for row in catalogue.list_snapshots(connection, live.id):
        found.snapshots += 1
        now = [omission for omission in every if omission.seq <= row.seq]
        if len(now) > len(heard):
            posterior = lessons.refold(connection, experiment, live.id, now)
            heard, at = now, posterior.seq
        while at < row.seq:
            part = lessons.read(
                *(connection, live.id, experiment.spec.outcome),
                after=at,
                upto=row.seq,
                left_out=heard,
            )
            if not part.read:
                break
            lessons.learn(experiment, posterior, part.rows)
            at = part.last
        if posterior.seq != row.seq:
            found.problems.append(f"no outcome at {row.seq}, where snapshot {row.version} ends")
            return
        data = encoding.to_bytes(posterior)
        if encoding.digest(data) != row.digest or posterior.count != row.outcomes:
            found.problems.append(f"snapshot {row.version} is not the fold of the log to {row.seq}")
        if row.posterior is not None and row.posterior != data:
            found.problems.append(f"the stored posterior of snapshot {row.version} was changed")
        yield posterior, row.version


def _batches(rows: Iterator[AnyRow]) -> Iterator[list[AnyRow]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def _decide_again(
    live: LiveExperiment, snapshot: Snapshot, rows: list[AnyRow], found: Findings
) -> None:
    """Decide again what a snapshot decided, and compare actions and propensities."""
    for refused in {_refused(row.reason) for row in rows}:
        mine = [row for row in rows if _refused(row.reason) == refused]
        _compare(live, snapshot, mine, refused, found)


def _compare(
    live: LiveExperiment,
    snapshot: Snapshot,
    rows: list[AnyRow],
    refused: Reason | None,
    found: Findings,
) -> None:
    contexts = rows_of([row.context for row in rows])
    questions = [
        Question(UUID(bytes=row.decision_id), row.customer, x, read_exclusions(row.exclusions))
        for row, x in zip(rows, contexts, strict=True)
    ]
    decided = live.experiment.decide_batch(snapshot, questions, refused=refused)
    for row, one in zip(rows, decided, strict=True):
        stored = (row.action, row.propensity, row.traffic_group, row.reason)
        fresh = (one.action, one.propensity, int(one.group), int(one.reason))
        kept = one.propensities.astype("<f8").tobytes() if one.propensities is not None else None
        if stored != fresh or row.propensities not in (None, kept):
            found.problems.append(
                f"the decision at {row.seq} is {stored}, deciding again gives {fresh}"
            )
        else:
            found.repeated += 1


def _refused(reason: int) -> Reason | None:
    """Give the reason that came from outside the engine, if it did."""
    is_outside = reason in (Reason.PAUSED, Reason.STALE_SNAPSHOT)
    return Reason(reason) if is_outside else None
