"""The audit log: every administrative change, by whom and why; in the change's transaction.

Not to be taken for ``server.audit``, which proves that the log of decisions and the snapshots
agree. Functions here take a connection whose transaction the caller owns, so a change and its
entry are stored together or not at all.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection

from server.schema import AnyRow, audit_log, facts

MAX_REASON = 500
MAX_PAGE_CHARACTERS = 2**20
"""A page ends after the entry with which it holds so much."""


class Change(NamedTuple):
    """One administrative change.

    Attributes
    ----------
    tenant
        In whose log it belongs.
    who
        Name of the credential that asked for it.
    action
        Kind of thing and verb, such as ``experiment.start``.
    what
        Name of the thing.
    before, after
        What changed, as far as it tells the change; None where there was or is nothing.
    reason
        Why, in the words of who asked; may be empty.
    """

    tenant: str
    who: str
    action: str
    what: str
    before: Mapping[str, object] | None = None
    after: Mapping[str, object] | None = None
    reason: str = ""


def record(connection: Connection, change: Change, now: int) -> int:
    """Append a change to its tenant's log; give its place there, from 1 without gaps."""
    lock = update(facts).where(facts.c.name == "audit_log").values(value=facts.c.value)
    connection.execute(lock)  # one at a time, also where several processes write
    last = select(func.max(audit_log.c.seq)).where(audit_log.c.tenant == change.tenant)
    seq = (connection.execute(last).scalar_one() or 0) + 1
    row = {
        **change._asdict(),
        "seq": seq,
        "at": now,
        "before": _written(change.before),
        "after": _written(change.after),
    }
    connection.execute(insert(audit_log), row)
    return int(seq)


def entries(
    connection: Connection, tenant: str, *, experiment: str = "", below: int = 0, limit: int = 100
) -> Sequence[AnyRow]:
    """Read a tenant's entries, newest first.

    Parameters
    ----------
    experiment
        Only the changes of this one; empty means all changes of anything.
    below
        Only places before this one; 0 means all.
    """
    columns = audit_log.c
    chosen = select(audit_log).where(columns.tenant == tenant)
    if experiment:
        chosen = chosen.where(columns.what == experiment, columns.action.like("experiment.%"))
    if below:
        chosen = chosen.where(columns.seq < below)
    return connection.execute(chosen.order_by(columns.seq.desc()).limit(limit)).all()


def page(
    connection: Connection, tenant: str, *, experiment: str, below: int, limit: int
) -> tuple[Sequence[AnyRow], bool]:
    """Read as many entries as fit a page, see ``entries``; and whether there are more."""
    found = entries(connection, tenant, experiment=experiment, below=below, limit=limit + 1)
    taken: list[AnyRow] = []
    characters = 0
    for row in found[:limit]:
        taken.append(row)
        characters += len(row.before or "") + len(row.after or "")
        if characters > MAX_PAGE_CHARACTERS:
            break
    return taken, len(found) > len(taken)


def _written(part: Mapping[str, object] | None) -> str | None:
    return None if part is None else json.dumps(part, sort_keys=True, separators=(",", ":"))
