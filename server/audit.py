"""The audit: whether the log is whole, and all that is stored follows from it bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from uuid import UUID

from sqlalchemy import and_, exists, func, select, union_all
from sqlalchemy.engine import Connection

from bandit import encoding
from bandit.decision import Reason
from bandit.outcome import OutcomeRule, RewardEvent
from bandit.posterior import Posterior
from bandit.question import Question
from bandit.snapshot import Snapshot
from server import catalogue, ledger, retention, revisions, storage
from server.convert import read_exclusions
from server.lessons import rows_of
from server.live import LiveExperiment
from server.schema import ENTRIES, AnyRow, decisions, experiments, open_windows, outcomes

BATCH = 1_000
Step = Callable[[int, int], None]


@dataclass(slots=True)
class Findings:
    """What the audit of one experiment found.

    Attributes
    ----------
    start
        Place of the base that retention left: what is before it was believed. 0: nothing was.
    entries, decisions, exposures, events, outcomes, omissions, snapshots
        How many there are.
    repeated
        Decisions that came out again.
    problems
        What is wrong, for people; empty if nothing is.
    """

    name: str
    start: int = 0
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
    start = retention.version(connection, live.id)
    stages = revisions.in_order(connection, live, since=start)
    base = retention.base(connection, stages[0])
    found.start = base.seq if base is not None else 0
    _check_revisions(connection, live, found)
    _check_sequence(connection, live, found)
    _check_outcomes(connection, live, found)
    _check_open(connection, live, found)
    with closing(storage.by_snapshot(connection, live.id)) as rows:
        refolded = _refold(connection, stages, base, found)
        _repeat(rows if again else iter(()), refolded, base, found, step)
    return found


def _repeat(
    decided: Iterator[AnyRow],
    refolded: Iterator[tuple[LiveExperiment, Posterior, int]],
    base: Posterior | None,
    found: Findings,
    step: Step | None,
) -> None:
    """Fold to every snapshot, and decide again what it decided."""
    parts = groupby(decided, lambda row: row.snapshot_version)
    waiting = next(parts, None)
    done = 0
    for then, posterior, version in refolded:
        while base is not None and waiting is not None and waiting[0] < version:
            waiting = next(parts, None)  # older than the base: what decided them was dropped
        if waiting is not None and waiting[0] == version:
            snapshot = then.experiment.publish(posterior, version=version)
            for rows in _batches(waiting[1]):
                _decide_again(then, snapshot, rows, found)
                done += len(rows)
                if step is not None:
                    step(done, found.decisions)
            waiting = next(parts, None)
    if waiting is not None:
        found.problems.append(f"decisions name snapshot {waiting[0]}, which is not there")


def _check_revisions(connection: Connection, live: LiveExperiment, found: Findings) -> None:
    """Look for holes in the revisions, and for one whose snapshots are not there."""
    rows = revisions.every(connection, live.id)
    if [row.number for row in rows] != list(range(1, len(rows) + 1)):
        found.problems.append("the revisions are not numbered from 1 without gaps")
    versions = [row.version for row in rows]
    known = {0, *(row.version for row in catalogue.list_snapshots(connection, live.id))}
    if versions != sorted(versions) or not known.issuperset(versions):
        found.problems.append("a revision begins with a snapshot that is not its own")
    if rows[-1].spec != catalogue.stored_spec(connection, live.id):
        found.problems.append("the specification is not that of the newest revision")


def _check_sequence(connection: Connection, live: LiveExperiment, found: Findings) -> None:
    counts = []
    for table in ENTRIES:
        chosen = select(func.count()).where(table.c.experiment_id == live.id)
        counts.append(int(connection.execute(chosen).scalar_one()))
    found.decisions, found.exposures, found.events, found.outcomes, found.omissions = counts
    found.entries = sum(counts)
    places = union_all(
        *(
            select(table.c.seq).where(table.c.experiment_id == live.id, table.c.seq > found.start)
            for table in ENTRIES
        )
    ).subquery()
    seq = places.c.seq
    columns = (func.count(), func.count(seq.distinct()), func.min(seq), func.max(seq))
    entries, distinct, low, high = connection.execute(select(*columns)).one()
    next_seq = connection.execute(
        select(experiments.c.next_seq).where(experiments.c.id == live.id)
    ).scalar_one()
    dense = distinct == entries == next_seq - 1 - found.start
    if entries and not (dense and low == found.start + 1 and high == next_seq - 1):
        found.problems.append(
            f"the sequence is not dense: {entries} entries, {distinct} places, "
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


def _check_open(connection: Connection, live: LiveExperiment, found: Findings) -> None:
    """Look for windows that nobody would close: decisions without outcome that wait for nothing."""
    rule = live.experiment.spec.outcome
    chosen = select(experiments.c.closed_seq).where(experiments.c.id == live.id)
    closed = connection.execute(chosen).scalar_one()
    last = 0
    while rows := _without_outcome(connection, live.id, last):
        last = rows[-1].decision_seq
        starts = ledger.starts_of(connection, live.id, rule, rows)
        facts = ledger.facts_of(connection, live.id, rule, [row.decision_seq for row in rows])
        for row in rows:
            seq, start = row.decision_seq, starts.get(row.decision_seq)
            if row.due_at is not None:
                if not rule.is_confirmed or start is None or row.due_at != start + rule.window_us:
                    found.problems.append(f"the window of the decision at {seq} is not its own")
                continue
            is_over = seq <= closed or (rule.is_confirmed and row.action is not None)
            if start is None or not is_over:
                continue
            value = rule.outcome(facts.get(seq, []), start)
            if value is not None:
                found.problems.append(
                    f"the decision at {seq} has no outcome and no open window; it should be {value}"
                )
    columns = open_windows.c
    ended = exists().where(
        outcomes.c.experiment_id == live.id, outcomes.c.decision_seq == columns.decision_seq
    )
    known = exists().where(
        decisions.c.experiment_id == live.id, decisions.c.seq == columns.decision_seq
    )
    wrong = select(columns.decision_seq).where(columns.experiment_id == live.id, ended | ~known)
    found.problems += [
        f"the window of the decision at {seq} is open, and has an outcome or no decision"
        for seq in connection.execute(wrong.order_by(columns.decision_seq)).scalars()
    ]


def _without_outcome(connection: Connection, experiment_id: int, after: int) -> Sequence[AnyRow]:
    """Read decisions that have no outcome, and when their window ends, in log order."""
    columns = decisions.c
    settled = exists().where(
        outcomes.c.experiment_id == experiment_id, outcomes.c.decision_seq == columns.seq
    )
    window = and_(
        open_windows.c.experiment_id == columns.experiment_id,
        open_windows.c.decision_seq == columns.seq,
    )
    return connection.execute(
        select(
            *(columns.seq.label("decision_seq"), columns.decided_at, columns.action),
            open_windows.c.due_at,
        )
        .outerjoin_from(decisions, open_windows, window)
        .where(columns.experiment_id == experiment_id, columns.seq > after, ~settled)
        .order_by(columns.seq)
        .limit(BATCH)
    ).all()


def _fact(event: AnyRow) -> RewardEvent:
    return RewardEvent(event.name, event.value, event.occurred_at)


def _refold(
    connection: Connection, stages: list[LiveExperiment], base: Posterior | None, found: Findings
) -> Iterator[tuple[LiveExperiment, Posterior, int]]:
    """Fold the log from its start; stop at every snapshot and compare. The prior is version 0.

    Each snapshot is folded with the specification that it was published with, one of ``stages``.
    """
    then, later = stages[0], stages[1:]
    posterior = base or then.experiment.prior()
    first = then.spec_version if base is None else retention.version(connection, then.id)
    if base is None:
        yield then, posterior, 0
    for row in catalogue.list_snapshots(connection, then.id):
        if row.seq < found.start or row.version < first:
            continue
        while later and later[0].spec_version <= row.version:
            posterior = revisions.carry(then, posterior, later[0])
            then, later = later[0], later[1:]
        found.snapshots += 1
        reached = retention.fold(connection, then, posterior, row.seq)
        if reached is None:
            found.problems.append(f"no outcome at {row.seq}, where snapshot {row.version} ends")
            return
        posterior = reached
        data = encoding.to_bytes(posterior)
        if encoding.digest(data) != row.digest or posterior.count != row.outcomes:
            found.problems.append(f"snapshot {row.version} is not the fold of the log to {row.seq}")
        if row.posterior is not None and row.posterior != data:
            found.problems.append(f"the stored posterior of snapshot {row.version} was changed")
        yield then, posterior, row.version


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
