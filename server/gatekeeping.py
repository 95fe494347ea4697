"""The gate before a start: verdicts taken in, given out, and asked for.

A draft starts when the newest verdict on its specification passes, or somebody says why it need
not; both are in the audit log. A paused experiment was through the gate and resumes without. An
edit of what has been started needs the same for the new specification, unless it only stops.
"""

from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from bandit import spec_file
from bandit.errors import InvalidInputError, NotFoundError, StateError
from bandit.spec import ExperimentSpec
from server import audit_log, catalogue, convert, verdict_messages, verdicts
from server.access import Caller
from server.audit_log import MAX_REASON, Change
from server.clock import Clock
from server.live import Live
from server.pb import bandit_pb2 as pb
from server.schema import AnyRow
from server.writer import Writer


class Gatekeeper:
    """Keeps verdicts, and asks for one before a start.

    Parameters
    ----------
    live
        Finds experiments.
    reader, writer
        The database.
    clock
        Stamps verdicts.
    is_required
        Whether a draft needs a passing verdict.
    """

    def __init__(
        self, live: Live, reader: Engine, writer: Writer, clock: Clock, *, is_required: bool
    ) -> None:
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._is_required = is_required

    def submit(self, request: pb.SubmitVerdictRequest, caller: Caller) -> pb.SubmitVerdictResponse:
        """Store a verdict."""
        request_id = convert.text(request.request_id, "request_id")
        if not request.HasField("verdict"):
            raise InvalidInputError("is required", field="verdict")
        verdict = verdict_messages.read(request.verdict)
        override = given(request.override)
        if verdict.passed and override:
            raise InvalidInputError("every check holds, nothing to override", field="override")

        def store(connection: Connection) -> tuple[AnyRow, AnyRow | None]:
            row = verdicts.add(
                connection,
                verdict,
                tenant=caller.tenant,
                who=caller.who,
                override=override,
                request_id=request_id,
                now=self._clock(),
            )
            return row, catalogue.find_experiment(connection, caller.tenant, verdict.experiment)

        row, stored = self._writer.call(store, expires=caller.expires)
        return pb.SubmitVerdictResponse(
            verdict=verdict_messages.stored(row),
            matches=stored is not None and _digest(stored) == verdict.spec_hash,
        )

    def newest(self, name: str, caller: Caller) -> pb.GetVerdictResponse:
        """Give the newest verdict on an experiment's specification."""
        self._live.find(caller.tenant, name, "name")
        with self._reader.connect() as connection:
            row = catalogue.find_experiment(connection, caller.tenant, name)
            if row is None:
                raise NotFoundError(f"no experiment {name!r}", field="name")
            spec_hash = _digest(row)
            found = verdicts.newest(connection, caller.tenant, spec_hash)
        answer = pb.GetVerdictResponse(spec_hash=spec_hash)
        if found is not None:
            answer.verdict.CopyFrom(verdict_messages.stored(found))
        return answer

    def admit(self, connection: Connection, row: AnyRow, override: str, caller: Caller) -> None:
        """Refuse to start a draft without a passing verdict or a reason; note the reason.

        Raises
        ------
        StateError
            Saying what is missing, and what to do.
        """
        told = "or start it with an override that says why"
        self._ask(connection, row.name, _digest(row), (override, "started_with", told), caller)

    def admit_edit(
        self, connection: Connection, spec: ExperimentSpec, override: str, caller: Caller
    ) -> None:
        """Refuse an edit of what has been started, as ``admit`` refuses a start.

        Raises
        ------
        StateError
            Saying what is missing, and what to do.
        """
        told = "or edit it with an override that says why"
        spec_hash = spec_file.digest(spec)
        self._ask(connection, spec.name, spec_hash, (override, "edited_with", told), caller)

    def _ask(
        self,
        connection: Connection,
        name: str,
        spec_hash: str,
        words: tuple[str, str, str],
        caller: Caller,
    ) -> None:
        """Ask for a verdict or a reason; ``words``: the reason, and what else is told."""
        override, noted, advice = words
        override = given(override)
        if not self._is_required:
            return
        found = verdicts.newest(connection, caller.tenant, spec_hash)
        if found is not None and (found.passed or found.override):
            return
        lack = _lack(found, spec_hash)
        if not override:
            raise StateError(
                f"experiment {name!r} has {lack}; run 'banditctl validate SPEC --address "
                f"HOST:PORT', {advice}",
                field="name",
            )
        told: dict[str, object] = {"spec_hash": spec_hash, noted: lack}
        change = Change(
            caller.tenant, caller.who, "experiment.override", name, None, told, override
        )
        audit_log.record(connection, change, self._clock())


def given(override: str) -> str:
    """Give why the gate is gone around, empty if it is not; blanks are no reason."""
    if override and not override.strip():
        raise InvalidInputError("holds only blanks: say why", field="override")
    return override and convert.text(override, "override", MAX_REASON)


def _digest(row: AnyRow) -> str:
    """Give the hash of a stored specification as this release writes it."""
    return spec_file.digest(spec_file.parse(row.spec, "json"))


def _lack(found: AnyRow | None, spec_hash: str) -> str:
    if found is None:
        return f"no verdict on its specification ({spec_hash[:12]})"
    names = sorted({check.name for check in verdicts.read(found).stopped_by})
    return f"a verdict that stops it ({', '.join(names)})"
