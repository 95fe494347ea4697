"""Editing what an experiment declares, also while it runs: nothing that was learned is lost.

An edit is one transaction: the specification, the revision that keeps it, the snapshot that
begins it and the entry in the audit log are stored together or not at all. Whoever decides or
learns with the old specification meanwhile goes on rightly: its decisions name an old snapshot,
and its learner can publish nothing more (``catalogue.check_spec``).
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from google.protobuf.message import Message
from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from bandit import encoding, spec_file
from bandit.errors import ChangedError, InvalidInputError, StateError
from bandit.revision import check_revision
from bandit.spec import ExperimentSpec
from server import audit_log, catalogue, convert, edits, revisions, storage
from server.access import Caller
from server.audit_log import MAX_REASON, Change
from server.catalogue import Published, State
from server.clock import Clock
from server.gatekeeping import Gatekeeper, given
from server.live import Live, LiveExperiment
from server.moving import check_etag, newest, shown, stored
from server.pb import bandit_pb2 as pb
from server.revisions import Revision
from server.schema import AnyRow
from server.writer import Writer

MOST = 1_000
"""Revisions of an experiment; from there on levels can only be retired."""


class _Wish(NamedTuple):
    """An edit as it was asked for.

    Attributes
    ----------
    action
        Its name in the audit log.
    make
        Gives the new specification from the old one, and from whether that is a draft.
    """

    action: str
    name: str
    request_id: str
    request_hash: bytes
    etag: str
    reason: str
    override: str
    make: Callable[[ExperimentSpec, bool], ExperimentSpec]


class _Plan(NamedTuple):
    """What becomes of an experiment as it was when it was looked at.

    Attributes
    ----------
    spec, written
        The new specification, and as it is stored.
    changes
        Whether that is another one than before.
    ahead
        The snapshot that begins it, if none is published meanwhile; None: not made yet.
    """

    live: LiveExperiment
    is_draft: bool
    spec: ExperimentSpec
    written: str
    changes: bool
    ahead: Published | None = None


class Reviser:
    """Edits experiments.

    Parameters
    ----------
    live
        Told of every edit.
    reader, writer
        The database.
    clock
        Stamps revisions and snapshots.
    gate
        Asked for a verdict where an edit needs one.
    """

    def __init__(
        self, live: Live, reader: Engine, writer: Writer, clock: Clock, gate: Gatekeeper
    ) -> None:
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._gate = gate

    def update(
        self, request: pb.UpdateExperimentRequest, caller: Caller
    ) -> tuple[LiveExperiment, pb.Revision]:
        """Edit parts of a specification, or all of it."""
        wish = _wish("experiment.update", request, lambda old, _: edits.updated(old, request))
        return self._edit(wish._replace(override=given(request.override)), caller)

    def add_level(
        self, request: pb.AddLevelRequest, caller: Caller
    ) -> tuple[LiveExperiment, pb.Revision]:
        """Add a level to a factor."""

        def make(old: ExperimentSpec, is_draft: bool) -> ExperimentSpec:  # noqa: FBT001
            return edits.with_level(old, request, is_draft=is_draft)

        wish = _wish("experiment.add_level", request, make)
        return self._edit(wish._replace(override=given(request.override)), caller)

    def retire_level(
        self, request: pb.RetireLevelRequest, caller: Caller
    ) -> tuple[LiveExperiment, pb.Revision]:
        """Retire a level of a factor."""
        wish = _wish(
            "experiment.retire_level", request, lambda old, _: edits.without_level(old, request)
        )
        return self._edit(wish, caller)

    def _edit(self, wish: _Wish, caller: Caller) -> tuple[LiveExperiment, pb.Revision]:
        """Make an edit, or give the revision that the same request made before.

        What is to become is worked out before the transaction, which holds up all other writes;
        if somebody else's edit was faster, it is worked out anew there.
        """
        self._live.find(caller.tenant, wish.name, "name")
        live, row = newest(self._live, self._reader, caller.tenant, wish.name)
        with self._reader.connect() as connection:
            keys = (row.id, wish.request_id, wish.request_hash)
            done = revisions.requested(connection, *keys)
        if done is None:
            _check(row, wish)
            plan = self._ahead(self._plan(live, wish, is_draft=row.state == State.DRAFT))
            done = self._writer.call(
                lambda c: self._store(c, plan, wish, caller),
                experiment_id=live.id,
                expires=caller.expires,
            )
            live, _ = newest(self._live, self._reader, caller.tenant, wish.name)
        return live, edits.revision_message(done)

    def _plan(self, live: LiveExperiment, wish: _Wish, *, is_draft: bool) -> _Plan:
        """Work out the new specification, and refuse one that the experiment can not go on with."""
        old = live.experiment.spec
        new = edits.settled(wish.make(old, is_draft))
        if not is_draft:
            try:
                check_revision(old, new)
            except InvalidInputError as error:
                raise error.under("spec") from None
        elif new.name != old.name:
            raise InvalidInputError("can not change; create another experiment", field="spec.name")
        written = spec_file.to_json(new)
        changes = written != spec_file.to_json(old)
        if changes:
            self._live.check(written, live.tenant)
        return _Plan(live, is_draft, new, written, changes)

    def _ahead(self, plan: _Plan) -> _Plan:
        """Make the snapshot that begins the new specification, as things are now."""
        if plan.is_draft or not plan.changes:
            return plan
        try:
            with self._reader.connect() as connection:
                return plan._replace(ahead=self._grown(connection, plan))
        except ChangedError:  # edited since it was looked at: the transaction looks again
            return plan

    def _store(self, connection: Connection, plan: _Plan, wish: _Wish, caller: Caller) -> AnyRow:
        """Store an edit; give its revision, or the one in force if it changes nothing."""
        storage.next_seq(connection, plan.live.id)  # locks: nobody publishes or edits meanwhile
        row = stored(connection, caller.tenant, wish.name)
        known = revisions.requested(connection, row.id, wish.request_id, wish.request_hash)
        if known is not None:
            return known
        _check(row, wish)
        is_draft = row.state == State.DRAFT
        if (plan.live.spec_revision, plan.is_draft) != (row.spec_revision, is_draft):
            live = self._live.catch_up(connection, row)
            plan = self._plan(live, wish, is_draft=is_draft)
        old = plan.live.experiment.spec
        if not plan.changes:
            return revisions.find(connection, row.id, row.spec_revision)
        version = 0
        stops = edits.only_stops(old, plan.spec)
        if row.spec_revision >= MOST and not stops:
            raise StateError(
                f"has {row.spec_revision} revisions, and no more are allowed", field="name"
            )
        if not is_draft:
            if not stops:
                self._gate.admit_edit(connection, plan.spec, wish.override, caller)
            version = self._publish(connection, plan)
        now = self._clock()
        made = Revision(
            version, plan.written, wish.request_id, wish.request_hash, caller.who, now, wish.reason
        )
        added, edited = revisions.add(connection, row, made)
        before, after = edits.differences(old, plan.spec)
        change = Change(
            caller.tenant,
            caller.who,
            wish.action,
            wish.name,
            {**shown(row), "changed": before},
            {**shown(edited), "changed": after},
            wish.reason,
        )
        audit_log.record(connection, change, now)
        return added

    def _publish(self, connection: Connection, plan: _Plan) -> int:
        """Publish what was learned under the new specification; give the snapshot's version."""
        published = plan.ahead
        if published is None or published.version != catalogue.next_version(
            connection, plan.live.id
        ):
            published = self._grown(connection, plan)
        catalogue.add_snapshot(connection, plan.live.id, published)
        return published.version

    def _grown(self, connection: Connection, plan: _Plan) -> Published:
        """Give the newest snapshot's belief under the new specification."""
        posterior, newest = self._live.restore(connection, plan.live)
        _, grown = plan.live.experiment.revise(posterior, plan.spec)
        data = encoding.to_bytes(grown)
        version = 1 if newest is None else newest.version + 1
        digest, now = encoding.digest(data), self._clock()
        return Published(version, grown.seq, grown.count, digest, now, data)


def _wish(
    action: str,
    request: pb.UpdateExperimentRequest | pb.AddLevelRequest | pb.RetireLevelRequest,
    make: Callable[[ExperimentSpec, bool], ExperimentSpec],
) -> _Wish:
    """Read what all edits have."""
    return _Wish(
        action,
        convert.text(request.name, "name", 64),
        convert.text(request.request_id, "request_id"),
        _content(request),
        request.etag,
        convert.text(request.reason, "reason", MAX_REASON),
        "",
        make,
    )


def _content(request: Message) -> bytes:
    """Hash what an edit asks for, whatever was seen before: the etag may be another on a retry."""
    asked = type(request)()
    asked.CopyFrom(request)
    for field in ("request_id", "etag"):
        asked.ClearField(field)
    written = asked.SerializeToString(deterministic=True)
    told = request.DESCRIPTOR.name.encode() + b"\0" + written
    return hashlib.blake2b(told, digest_size=16).digest()


def _check(row: AnyRow, wish: _Wish) -> None:
    check_etag(row, wish.etag)
    if row.state == State.ARCHIVED:
        raise StateError(f"experiment {wish.name!r} is ARCHIVED: it is not edited", field="name")
