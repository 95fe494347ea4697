"""Bearer tokens in the database: only their hashes, never the tokens.

A token is 256 random bits, so its plain SHA-256 can not be turned back by guessing, and needs
no salt. Functions take a connection whose transaction the caller owns.
"""

import secrets
from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import sha256

from sqlalchemy import insert, or_, select, update
from sqlalchemy.engine import Connection

from bandit.errors import InvalidInputError, NotFoundError
from server import audit_log
from server.audit_log import Change
from server.schema import AnyRow, tokens

PREFIX = "bandit_"
MAX_TOKEN = 100
MAX_NAME = 64


class Role(StrEnum):
    """What a token lets its bearer do."""

    DECIDE = "decide"
    REPORT = "report"
    READ = "read"
    ADMIN = "admin"


def digest(token: str) -> bytes:
    """Give what is stored of a token."""
    return sha256(token.encode(errors="replace")).digest()


def create(  # noqa: PLR0913
    connection: Connection,
    *,
    name: str,
    tenant: str,
    roles: Iterable[Role],
    who: str,
    now: int,
    expires_at: int | None = None,
    reason: str = "",
) -> tuple[int, str]:
    """Make a token; give its id, and the token itself, which is kept nowhere.

    Raises
    ------
    InvalidInputError
        If a name is empty, too long or not printable, or no role is given.
    """
    for field, text in (("name", name), ("tenant", tenant)):
        if not (0 < len(text) <= MAX_NAME and text.isprintable()):
            raise InvalidInputError(f"needs 1 to {MAX_NAME} printable characters", field=field)
    chosen = [role for role in Role if role in set(roles)]
    if not chosen:
        raise InvalidInputError(f"needs at least one of {', '.join(Role)}", field="role")
    token = PREFIX + secrets.token_urlsafe(32)
    row = {
        "name": name,
        "tenant": tenant,
        "roles": ",".join(chosen),
        "hash": digest(token),
        "created_at": now,
        "expires_at": expires_at,
    }
    made = connection.execute(insert(tokens).returning(tokens), row).one()
    change = Change(tenant, who, "token.create", name, None, _shown(made), reason)
    audit_log.record(connection, change, now)
    return made.id, token


def revoke(connection: Connection, token_id: int, *, who: str, now: int, reason: str = "") -> bool:
    """Revoke a token for good; give whether it was in force until now.

    Raises
    ------
    NotFoundError
        If there is none of this id.
    """
    row = connection.execute(select(tokens).where(tokens.c.id == token_id)).first()
    if row is None:
        raise NotFoundError(f"no token {token_id}; 'banditctl tokens list' shows them", field="id")
    if row.revoked_at is not None:
        return False
    changed = connection.execute(
        update(tokens).where(tokens.c.id == token_id).values(revoked_at=now).returning(tokens)
    ).one()
    shown = (_shown(row), _shown(changed))
    audit_log.record(
        connection, Change(row.tenant, who, "token.revoke", row.name, *shown, reason), now
    )
    return True


def list_tokens(connection: Connection, tenant: str = "") -> Sequence[AnyRow]:
    """Read all tokens, of one tenant or of all, in the order they were made."""
    chosen = select(tokens).order_by(tokens.c.id)
    if tenant:
        chosen = chosen.where(tokens.c.tenant == tenant)
    return connection.execute(chosen).all()


def in_force(connection: Connection, now: int) -> Sequence[AnyRow]:
    """Read the tokens that are neither revoked nor expired."""
    columns = tokens.c
    is_young = or_(columns.expires_at.is_(None), columns.expires_at > now)
    return connection.execute(select(tokens).where(columns.revoked_at.is_(None), is_young)).all()


def _shown(row: AnyRow) -> dict[str, object]:
    """Give what an audit entry tells of a token: all but its hash."""
    names = ("id", "roles", "expires_at", "revoked_at")
    return {name: row._mapping[name] for name in names if row._mapping[name] is not None}
