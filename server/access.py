"""Who may call what: the credential of a call, its tenant and its roles.

The tenant of a call comes from its credential and from nowhere else. Transports ask ``admit``
before they read a message; it costs a hash and two lookups, and touches no database.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from hmac import compare_digest
from typing import NamedTuple, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from bandit.errors import ForbiddenError, UnauthenticatedError, UnavailableError
from server import tokens
from server.clock import Clock, system_clock
from server.tokens import Role

log = logging.getLogger(__name__)

DEFAULT_TENANT = "default"
ANONYMOUS = "anonymous"

REREAD = 1.0
"""Seconds between two looks at the tokens in the database."""
TRUSTED = 10.0
"""Seconds that the tokens last read are trusted while the database does not answer."""

ROLES: Mapping[str, Role] = {
    "DecisionService/Decide": Role.DECIDE,
    "DecisionService/BatchDecide": Role.DECIDE,
    "DecisionService/Rank": Role.DECIDE,
    "DecisionService/RecordReward": Role.REPORT,
    "DecisionService/BatchRecordRewards": Role.REPORT,
    "DecisionService/ConfirmExposure": Role.REPORT,
    "DecisionService/GetDecision": Role.READ,
    "ExperimentService/CreateExperiment": Role.ADMIN,
    "ExperimentService/GetExperiment": Role.READ,
    "ExperimentService/ListExperiments": Role.READ,
    "ExperimentService/StartExperiment": Role.ADMIN,
    "ExperimentService/PauseExperiment": Role.ADMIN,
    "ExperimentService/ArchiveExperiment": Role.ADMIN,
    "ExperimentService/GetReport": Role.READ,
    "ExperimentService/ListAuditEntries": Role.READ,
    "ExperimentService/Rollback": Role.ADMIN,
    "ExperimentService/SubmitVerdict": Role.ADMIN,
    "ExperimentService/GetVerdict": Role.READ,
    "ExperimentService/UpdateExperiment": Role.ADMIN,
    "ExperimentService/AddLevel": Role.ADMIN,
    "ExperimentService/RetireLevel": Role.ADMIN,
}
"""The role that each RPC needs; ``admin`` may do everything. A method without one is not served."""

Metadata = Callable[[], Iterable[tuple[str, str | bytes]]]
"""Gives the metadata of a call; called only where a token is needed."""


class Caller(NamedTuple):
    """Who calls, and how long they wait.

    Attributes
    ----------
    tenant
        Whose data the call may see.
    who
        Name of the credential.
    expires
        Monotonic seconds after which nobody waits for the answer.
    """

    tenant: str
    who: str = ANONYMOUS
    expires: float = math.inf


class Access(Protocol):
    """Decides who may call."""

    def admit(self, metadata: Metadata, role: Role | None) -> Caller:
        """Give the caller, or raise; without a role any credential will do."""


class OpenAccess:
    """Lets everybody do everything, as one tenant: for a server that only this machine reaches."""

    def __init__(self) -> None:
        self._everybody = Caller(DEFAULT_TENANT)

    def admit(self, metadata: Metadata, role: Role | None) -> Caller:  # noqa: ARG002
        """Give the one caller there is."""
        return self._everybody


class _Known(NamedTuple):
    """A credential in force."""

    digest: bytes
    caller: Caller
    roles: frozenset[str]


class TokenAccess:
    """Lets in who bears a token that is stored, in force, and of the right role.

    Parameters
    ----------
    reader
        Where the tokens are; they are read again every second, by a thread of its own.
    clock
        Tells which have expired.

    Notes
    -----
    A new token works, and a revoked or expired one stops working, within ``REREAD`` seconds and
    the time of one read; if the database does not answer, nobody is let in after ``TRUSTED``.
    """

    def __init__(self, reader: Engine, clock: Clock = system_clock) -> None:
        self._reader = reader
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._trusted_until = -math.inf
        self._refused = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tokens", daemon=True)

    def start(self) -> None:
        """Read the tokens, and go on reading them."""
        self.read()
        if not self._known:
            log.warning("no token is in force: make one with 'banditctl tokens create'")
        self._thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def admit(self, metadata: Metadata, role: Role | None) -> Caller:
        """Give the caller whose token the metadata carry.

        Raises
        ------
        UnauthenticatedError
            If there is none, or none that is in force.
        ForbiddenError
            If its roles do not allow the call.
        UnavailableError
            If the tokens could not be read for too long.
        """
        if time.monotonic() > self._trusted_until:
            raise UnavailableError("tokens can not be checked now; try again")
        digest = tokens.digest(_bearer(metadata()))
        known = self._known.get(digest[:16])
        if known is None or not compare_digest(known.digest, digest):
            self._refused += 1
            raise UnauthenticatedError(
                "needs a token in force, in the metadata 'authorization: Bearer TOKEN'"
            )
        if role is not None and role not in known.roles:
            raise ForbiddenError(f"needs a token with the role {role.value!r}")
        return known.caller

    def read(self) -> None:
        """Read the tokens in force once."""
        began = time.monotonic()
        with self._reader.connect() as connection:
            rows = tokens.in_force(connection, self._clock())
        known = {}
        for row in rows:
            roles = frozenset(row.roles.split(","))
            roles = frozenset(Role) if Role.ADMIN in roles else roles
            caller = Caller(row.tenant, row.name)
            known[row.hash[:16]] = _Known(row.hash, caller, roles)
        self._known = known
        self._trusted_until = began + TRUSTED

    def _run(self) -> None:
        while not self._end.wait(REREAD):
            try:
                self.read()
            except SQLAlchemyError as error:
                log.warning("tokens could not be read: %s", type(error).__name__)
            refused, self._refused = self._refused, 0
            if refused:
                log.warning("%d calls without a valid token were refused", refused)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Give the one bearer token of a call's metadata; empty if there is none, or not just one."""
    found: str | bytes = ""
    for key, value in metadata:
        if key == "authorization":
            if found:
                return ""
            found = value
    if not isinstance(found, str) or len(found) > tokens.MAX_TOKEN:
        return ""
    return found[7:] if found.startswith(("Bearer ", "bearer ")) else ""
