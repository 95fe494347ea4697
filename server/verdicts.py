"""Verdicts in the database: functions on the caller's transaction.

A verdict belongs to the hash of a specification, not to an experiment: it may be stored before
the experiment is created, and says nothing of one whose specification is another.
"""

import dataclasses
import json
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.engine import Connection

from bandit.errors import BanditError, ConflictError, CorruptionError, StateError
from bandit.verdict import Check, Verdict
from server import audit_log
from server.audit_log import Change
from server.schema import AnyRow, verdicts

MOST = 10_000
"""Verdicts that a tenant may store."""


def add(  # noqa: PLR0913
    connection: Connection,
    verdict: Verdict,
    *,
    tenant: str,
    who: str,
    override: str,
    request_id: str,
    now: int,
) -> AnyRow:
    """Store a verdict with its entry in the audit log, or give the one this request stored.

    Raises
    ------
    ConflictError
        If the request id was used with another verdict.
    StateError
        If the tenant has too many.
    """
    content = _written(verdict)
    columns = verdicts.c
    mine = columns.tenant == tenant
    before = connection.execute(
        select(verdicts).where(mine, columns.request_id == request_id)
    ).first()
    if before is not None:
        if (before.content, before.override) != (content, override):
            raise ConflictError(
                f"request id {request_id!r} was used before with another verdict",
                field="request_id",
            )
        return before
    if connection.execute(select(func.count()).where(mine)).scalar_one() >= MOST:
        raise StateError(f"{MOST} verdicts, and no more are allowed", field="verdict")
    told: dict[str, object] = {
        "spec_hash": verdict.spec_hash,
        "passed": verdict.passed,
        "stopped_by": sorted({check.name for check in verdict.stopped_by}),
    }
    change = Change(tenant, who, "experiment.verdict", verdict.experiment, None, told, override)
    row = {
        "tenant": tenant,
        "audit_seq": audit_log.record(connection, change, now),
        "request_id": request_id,
        "experiment": verdict.experiment,
        "spec_hash": verdict.spec_hash,
        "passed": verdict.passed,
        "override": override,
        "content": content,
        "made_by": who,
        "made_at": now,
    }
    return connection.execute(insert(verdicts).returning(verdicts), row).one()


def newest(connection: Connection, tenant: str, spec_hash: str) -> AnyRow | None:
    """Read the newest verdict on a specification, or None."""
    columns = verdicts.c
    return connection.execute(
        select(verdicts)
        .where(columns.tenant == tenant, columns.spec_hash == spec_hash)
        .order_by(columns.audit_seq.desc())
        .limit(1)
    ).first()


def read(row: AnyRow) -> Verdict:
    """Give a stored verdict back.

    Raises
    ------
    CorruptionError
        If its content is not what was written.
    """
    try:
        data: dict[str, Any] = json.loads(row.content)
        checks = tuple(Check(**check) for check in data.pop("checks"))
        return Verdict(**data | {"checks": checks, "worlds": tuple(data["worlds"])})
    except (ValueError, TypeError, KeyError, BanditError) as error:
        raise CorruptionError(f"verdict {row.audit_seq}: {error}") from None


def _written(verdict: Verdict) -> str:
    data = dataclasses.asdict(verdict)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
