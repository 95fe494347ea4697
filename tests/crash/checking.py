"""The checker: whether a log kept what the journals say was acknowledged."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from server import storage
from server.audit import audit
from server.client import BanditClient
from server.database import Database
from server.live import Live
from server.schema import outcomes, reward_events
from tests.crash.crowd import SPEC, Lines, ask, fact, shown


@dataclass
class Checked:
    """What was found.

    Attributes
    ----------
    acknowledged
        Decisions and events that the journals hold.
    lost
        Those that the log does not hold as they were acknowledged.
    duplicated
        Ids that stand more than once.
    problems
        What else is wrong, for people: gaps, halves, a snapshot that is not the fold.
    """

    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    decisions: int = 0
    snapshots: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.problems)


def check(url: str, secret: Path, journals: Sequence[Lines], *, again: bool = True) -> Checked:
    """Compare the log of a server that has ended with the journals, and audit it.

    Parameters
    ----------
    again
        Whether to decide every decision again, too.
    """
    acknowledged = {f"decision {f[0]}": f[1:] for j in journals for f in j.read("D")}
    acknowledged |= {f"event {f[0]}": f[1:] for j in journals for f in j.read("E")}
    found = Checked(acknowledged=len(acknowledged))
    opened = Database(url, read_only=True)
    try:
        live = Live(secret.read_bytes().strip())
        with opened.reader.connect() as connection:
            live.load(connection)
            one = next((e for e in live.entries() if e.experiment.spec.name == SPEC.name), None)
            if one is None:
                found.lost = sorted(acknowledged)
                return found
            stored, closed = _stored(connection, one.id)
            audited = audit(connection, one, again=again)
    finally:
        opened.close()
    found.duplicated = [name for name, n in Counter(name for name, _ in stored).items() if n > 1]
    kept = dict(stored)
    found.lost = [name for name, told in acknowledged.items() if kept.get(name) != told]
    found.problems = [*audited.problems, *_halves(kept, closed, journals)]
    found.decisions, found.snapshots = audited.decisions, audited.snapshots
    return found


def _stored(connection, experiment: int) -> tuple[list[tuple[str, list[str]]], set[str]]:  # noqa: ANN001
    """Read what a client was told of every entry, and the decisions that have an outcome.

    A decision that was told of late needs none yet: its window ends it, not the event.
    """
    rows = storage.decided_after(connection, experiment, 0, 10_000_000)
    ids = {row.seq: str(UUID(bytes=row.decision_id)) for row in rows}
    stored = [
        (
            f"decision {row.request_id}",
            [ids[row.seq], str(row.action), row.propensity.hex(), str(row.snapshot_version)],
        )
        for row in rows
    ]
    chosen = select(reward_events).where(reward_events.c.experiment_id == experiment)
    events = connection.execute(chosen).all()
    stored += [
        (f"event {row.event_id}", [ids.get(row.decision_seq, "nobody"), row.name]) for row in events
    ]
    late = {ids[row.decision_seq] for row in events if row.late and row.decision_seq in ids}
    settled = select(outcomes.c.decision_seq).where(outcomes.c.experiment_id == experiment)
    closed = {ids[seq] for seq in connection.execute(settled).scalars() if seq in ids}
    return stored, closed | late


def _halves(kept: dict[str, list[str]], closed: set[str], journals: Iterable[Lines]) -> list[str]:
    """Find calls of which only a part is there."""
    found = []
    for attempt in (attempt for journal in journals for attempt in journal.attempts):
        there = [f"decision {request}" in kept for request in attempt]
        if any(there) and not all(there):
            found.append(f"half of the batch {attempt} is there")
    for name, told in kept.items():
        if name.startswith("event ") and told[1] == "buy" and told[0] not in closed:
            found.append(f"{name} is there, but not the outcome it closes")
    return found


def retry(address: str, journals: Sequence[Lines], most: int = 2_000) -> list[str]:
    """Repeat the newest acknowledged calls; give those that were answered otherwise."""
    changed = []
    with BanditClient(address, timeout=60) as client:
        decided = [f for j in journals for f in j.read("D")[-most // len(journals) :]]
        for at in range(0, len(decided), 500):
            part = decided[at : at + 500]
            answers = client.decide_batch(SPEC.name, [ask(request) for request, *_ in part])
            for answer, (request, *told) in zip(answers, part, strict=True):
                if not answer.is_repeated or list(map(str, shown(answer))) != told:
                    changed.append(f"decision {request}")
        for journal in journals:
            for event, decision_id, name in journal.read("E")[-20:]:
                told = fact(event, decision_id, 1 if name == "buy" else 0)
                if client.record_reward(SPEC.name, told) != "duplicate":
                    changed.append(f"event {event}")
    return changed


def settle(address: str, journals: Sequence[Lines]) -> list[str]:
    """Ask everything that was ever begun once more, twice; give what got two answers.

    What was not acknowledged may be there or not; asking decides it, once.
    """
    changed = []
    with BanditClient(address, timeout=60) as client:
        for attempt in (attempt for journal in journals for attempt in journal.attempts):
            asked = [ask(request) for request in attempt]
            first = client.decide_batch(SPEC.name, asked)
            second = client.decide_batch(SPEC.name, asked)
            changed += [
                f"decision {request}"
                for request, a, b in zip(attempt, first, second, strict=True)
                if shown(a) != shown(b) or not b.is_repeated
            ]
    return changed
