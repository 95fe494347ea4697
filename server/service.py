"""The RPCs, as plain functions from message to message: read, decide, write, answer.

They know nothing of gRPC: errors rise as domain errors, and the caller's tenant comes in
beside the message. Another transport could carry them.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.engine import Connection

from bandit import spec_file
from bandit.errors import (
    BanditError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from server import (
    audit_log,
    catalogue,
    convert,
    ledger,
    omissions,
    packed,
    ranking,
    reporting,
    revisions,
    storage,
)
from server.access import Caller
from server.audit_log import Change
from server.catalogue import State
from server.clock import Clock
from server.deciding import Asking, Plan
from server.gatekeeping import Gatekeeper
from server.live import Live, LiveExperiment
from server.moving import Mover, newest, shown, stored
from server.named import asked_together, asking
from server.omissions import Omitted
from server.pages import Pages
from server.pb import bandit_pb2 as pb
from server.retention import check_reach
from server.revising import Reviser
from server.schema import AnyRow
from server.sheets import Sheet, decide_sheet
from server.writer import AppendDecisions, AppendEvents, Call, Job, Writer

MAX_PAGE = 1_000
MAX_LISTED = 1_000_000
"""Entries of propensities and removed actions in one answer."""


class Pending(NamedTuple):
    """A call that waits for the writer: its job, and its answer once the job is done.

    ``answer`` raises what the job failed with.
    """

    job: Job[Any]
    answer: Callable[[], Any]


class DecisionService:
    """Implements ``bandit.v1.DecisionService``.

    Parameters
    ----------
    live
        Experiments and their published beliefs.
    reader
        Reads the log.
    writer
        Makes durable what is answered.
    clock
        Stamps decisions and events.
    learned
        Called when a reported fact may have closed or corrected an outcome.
    """

    def __init__(
        self,
        live: Live,
        reader: Engine,
        writer: Writer,
        clock: Clock,
        learned: Callable[[], None],
    ) -> None:
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._learned = learned

    def Decide(self, request: pb.DecideRequest, caller: Caller) -> pb.DecideResponse:
        """Choose an action for one customer, and commit the choice before answering."""
        pending = self._decision(
            request, self._live.find(caller.tenant, _name(request.experiment, "experiment"))
        )
        self._writer.write(pending.job, caller.expires)
        answer: pb.DecideResponse = pending.answer()
        return answer

    def begin_decide(self, request: pb.DecideRequest, caller: Caller) -> Pending | None:
        """Read a request to decide; the writer does the rest. None: it takes a thread to wait."""
        live = self._live.here(caller.tenant, request.experiment)
        return None if live is None else self._decision(request, live)

    def _decision(self, request: pb.DecideRequest, live: LiveExperiment) -> Pending:
        now = self._clock()
        asked = asking(request, live.experiment, live.tenant, now)
        job = self._job(live, (asked,), now)

        def answer() -> pb.DecideResponse:
            [logged] = job.outcome()
            shows = request.include_removed
            told = revisions.teller(self._reader, live, [logged], removed=shows)
            return pb.DecideResponse(decision=convert.decision(told, logged, include_removed=shows))

        return Pending(job, answer)

    def BatchDecide(self, request: pb.BatchDecideRequest, caller: Caller) -> pb.BatchDecideResponse:
        """Choose for many customers of one experiment, in one transaction."""
        requests = request.requests
        if request.HasField("packed"):
            _check_alone(len(requests), "requests")
            packed_answer = self._decide_packed(request.packed, caller)
            return pb.BatchDecideResponse(packed=packed_answer)
        _check_batch(len(requests), "requests")
        name = _name(requests[0].experiment, "requests[0].experiment")
        for i, one in enumerate(requests):
            if one.experiment != name:
                raise InvalidInputError(
                    f"must be {name!r} as in requests[0]: a batch is for one experiment",
                    field=f"requests[{i}].experiment",
                )
        live = self._live.find(caller.tenant, name, "requests[0].experiment")
        lists = sum(one.include_propensities + one.include_removed for one in requests)
        if lists * live.experiment.spec.actions.size > MAX_LISTED:
            raise InvalidInputError(
                f"ask for propensities and removed actions of at most {MAX_LISTED} actions in all",
                field="requests",
            )
        now = self._clock()
        logged = self._decide_sheet(live, asked_together(requests, live, now), now, caller.expires)
        actions: convert.Actions = {}
        return pb.BatchDecideResponse(
            decisions=[
                convert.decision(
                    revisions.teller(self._reader, live, [entry], removed=one.include_removed),
                    entry,
                    include_removed=one.include_removed,
                    actions=actions,
                )
                for entry, one in zip(logged, requests, strict=True)
            ]
        )

    def _decide_packed(self, asked: pb.PackedContexts, caller: Caller) -> pb.PackedDecisions:
        path = "packed.experiment"
        live = self._live.find(caller.tenant, _name(asked.experiment, path), path)
        now = self._clock()
        read = packed.read_contexts(asked, live, now)
        try:
            logged = self._decide_sheet(live, read, now, caller.expires)
        except ConflictError as error:
            raise ConflictError(error.message, field="packed.request_ids") from None
        return packed.decisions_message(revisions.teller(self._reader, live, logged), logged)

    def _decide_sheet(
        self, live: LiveExperiment, asked: Sheet, now: int, expires: float
    ) -> list[storage.Logged]:
        """Decide for many here, for others not to wait for the engine, and commit."""
        job: Job[list[storage.Logged]]
        try:
            plan = Plan(live, (), now, self._live.refused(live))
        except StateError as error:
            job = self._repeat(live, list(zip(asked.request_ids, asked.hashes, strict=True)), error)
        else:
            job = AppendDecisions(plan, decide_sheet(live, asked, now, plan.refused))
            job.rows = len(asked)
        return self._writer.write(job, expires)

    def Rank(self, request: pb.RankRequest, caller: Caller) -> pb.RankResponse:
        """Choose several actions in order for one customer, in one transaction."""
        live = self._live.find(caller.tenant, _name(request.experiment, "experiment"))
        job = ranking.job(request, live, self._clock(), self._live.refused)
        logged = self._writer.write(job, caller.expires)
        told = revisions.teller(self._reader, live, logged, removed=request.include_removed)
        return ranking.answer(request, told, logged)

    def RecordReward(
        self, request: pb.RecordRewardRequest, caller: Caller
    ) -> pb.RecordRewardResponse:
        """Record one reward event, durably."""
        live = self._live.find(caller.tenant, _name(request.experiment, "experiment"))
        pending = self._event(request, live, caller)
        self._writer.write(pending.job, caller.expires)
        answer: pb.RecordRewardResponse = pending.answer()
        return answer

    def begin_record(self, request: pb.RecordRewardRequest, caller: Caller) -> Pending | None:
        """Read a reward event; the writer does the rest. None: it takes a thread to wait."""
        live = self._live.here(caller.tenant, request.experiment)
        return None if live is None else self._event(request, live, caller)

    def _event(
        self, request: pb.RecordRewardRequest, live: LiveExperiment, caller: Caller
    ) -> Pending:
        job = self._events(live, [request], caller, "")

        def answer() -> pb.RecordRewardResponse:
            [result] = job.outcome()
            if isinstance(result, BanditError):
                raise result
            self._tell_learner(job)
            return pb.RecordRewardResponse(
                disposition=convert.disposition(result), sequence=result.seq
            )

        return Pending(job, answer)

    def BatchRecordRewards(
        self, request: pb.BatchRecordRewardsRequest, caller: Caller
    ) -> pb.BatchRecordRewardsResponse:
        """Record many reward events of one experiment; each succeeds or fails alone."""
        events = request.events
        if request.HasField("packed"):
            _check_alone(len(events), "events")
            told = self._record_packed(request.packed, caller)
            return pb.BatchRecordRewardsResponse(packed=told)
        _check_batch(len(events), "events")
        for i, event in enumerate(events):
            if event.experiment != events[0].experiment:
                raise InvalidInputError(
                    "must be as in events[0]: a batch is for one experiment",
                    field=f"events[{i}].experiment",
                )
        path = "events[0].experiment"
        live = self._live.find(caller.tenant, _name(events[0].experiment, path), path)
        job = self._events(live, events, caller, "events")
        results = self._writer.write(job, caller.expires)
        self._tell_learner(job)
        return pb.BatchRecordRewardsResponse(
            results=[
                convert.reward_result(event.event_id, result)
                for event, result in zip(events, results, strict=True)
            ]
        )

    def _record_packed(self, told: pb.PackedRewards, caller: Caller) -> pb.PackedRewardResults:
        path = "packed.experiment"
        live = self._live.find(caller.tenant, _name(told.experiment, path), path)
        now = self._clock()
        events = packed.read_rewards(told, live.experiment, now, caller.who)
        job = AppendEvents(live.id, live.experiment.spec.outcome, events, now)
        results = self._writer.write(job, caller.expires)
        self._tell_learner(job)
        return packed.results_message(results)

    def ConfirmExposure(
        self, request: pb.ConfirmExposureRequest, caller: Caller
    ) -> pb.ConfirmExposureResponse:
        """Record that a decision was shown, durably."""
        live = self._live.find(caller.tenant, _name(request.experiment, "experiment"))
        now = self._clock()
        rule = live.experiment.spec.outcome
        row = convert.exposure_row(request, now)
        [result] = self._writer.call(
            lambda c: ledger.append_exposures(c, live.id, rule, [row], now),
            experiment_id=live.id,
            expires=caller.expires,
        )
        if isinstance(result, BanditError):
            raise result
        self._learned()
        return pb.ConfirmExposureResponse(
            disposition=convert.disposition(result), sequence=result.seq
        )

    def GetDecision(self, request: pb.GetDecisionRequest, caller: Caller) -> pb.GetDecisionResponse:
        """Give a logged decision with its events and outcome."""
        live = self._live.find(caller.tenant, _name(request.experiment, "experiment"))
        one = convert.decision_id(request.decision_id)
        with self._reader.connect() as connection:
            row = storage.find_decision(connection, live.id, one)
            if row is None:
                raise NotFoundError("no such decision in this experiment", field="decision_id")
            live = revisions.at(connection, live, row.snapshot_version)
            events = storage.find_events(connection, live.id, row.seq)
            outcomes = storage.find_outcomes(connection, live.id, row.seq)
            exposures = storage.find_exposures(connection, live.id, row.seq)
        logged = storage.logged(row)._replace(repeated=False)
        return pb.GetDecisionResponse(
            decision=convert.decision(live, logged, include_removed=True),
            context=convert.context(live.experiment.spec.schema, row.context),
            events=[convert.reward_event(event) for event in events],
            outcome=outcomes[-1].value if outcomes else None,
            exposures=[convert.exposure(one) for one in exposures],
            outcomes=[convert.outcome(one) for one in outcomes],
        )

    def _job(
        self, live: LiveExperiment, asked: Sequence[Asking], now: int
    ) -> Job[list[storage.Logged]]:
        """Give the job that decides; where nothing is decided any more, that repeats answers."""
        try:
            return AppendDecisions(Plan(live, asked, now, self._live.refused(live)))
        except StateError as error:
            return self._repeat(live, [(a.request_id, a.request_hash) for a in asked], error)

    @staticmethod
    def _repeat(
        live: LiveExperiment, keys: Sequence[tuple[str, bytes]], refusal: StateError
    ) -> Job[list[storage.Logged]]:
        def repeat(connection: Connection) -> list[storage.Logged]:
            found = storage.repeated(connection, live.id, keys)
            if found is None:
                raise refusal
            return found

        return Call(repeat)

    def _events(
        self,
        live: LiveExperiment,
        requests: Sequence[pb.RecordRewardRequest],
        caller: Caller,
        batch: str,
    ) -> AppendEvents:
        now = self._clock()
        events = []
        for i, request in enumerate(requests):
            try:
                events.append(convert.event_row(request, live.experiment, now, caller.who))
            except BanditError as error:
                raise error.under(f"{batch}[{i}]" if batch else "") from None
        return AppendEvents(live.id, live.experiment.spec.outcome, events, now)

    def _tell_learner(self, job: AppendEvents) -> None:
        """Wake the learner if an event may have closed or corrected an outcome."""
        by_name = job.rule.by_name
        if job.rule.is_correcting or any(by_name[e.name].terminal for e in job.events):
            self._learned()


class ExperimentService:
    """Implements ``bandit.v1.ExperimentService``.

    Parameters
    ----------
    live
        Told of every change.
    reader, writer
        The database.
    clock
        Stamps experiments.
    secret
        Keys page tokens.
    most
        Experiments that a tenant may have.
    learned
        Called when what is learned changes.
    is_gated
        Whether a draft needs a passing verdict to start.
    """

    def __init__(  # noqa: PLR0913
        self,
        live: Live,
        reader: Engine,
        writer: Writer,
        clock: Clock,
        secret: bytes,
        most: int = 1_000,
        learned: Callable[[], None] = lambda: None,
        *,
        is_gated: bool = True,
    ) -> None:
        self._live = live
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._pages = Pages(secret)
        self._most = most
        self._learned = learned
        self._gate = Gatekeeper(live, reader, writer, clock, is_required=is_gated)
        self._mover = Mover(live, reader, writer, clock, self._gate)
        self._reviser = Reviser(live, reader, writer, clock, self._gate)

    def CreateExperiment(
        self, request: pb.CreateExperimentRequest, caller: Caller
    ) -> pb.CreateExperimentResponse:
        """Create an experiment in state DRAFT."""
        request_id = convert.text(request.request_id, "request_id")
        if not request.HasField("spec"):
            raise InvalidInputError("is required", field="spec")
        spec = convert.spec(request.spec)
        written = spec_file.to_json(spec)
        self._live.check(written, caller.tenant)
        now = self._clock()

        def create(connection: Connection) -> AnyRow:
            is_new = catalogue.find_experiment(connection, caller.tenant, spec.name) is None
            row = catalogue.add_experiment(
                connection,
                tenant=caller.tenant,
                name=spec.name,
                request_id=request_id,
                spec=written,
                now=now,
                most=self._most,
                who=caller.who,
            )
            if is_new:  # not the repeated request of one that was answered before
                after = {**shown(row), "spec": json.loads(written)}
                change = Change(
                    caller.tenant, caller.who, "experiment.create", spec.name, None, after
                )
                audit_log.record(connection, change, now)
            return row

        row = self._writer.call(create, expires=caller.expires)
        if row.revision == 1:
            live = self._live.add(row)
        else:  # made before, and started or edited, perhaps by another process
            live, _ = newest(self._live, self._reader, caller.tenant, spec.name)
        return pb.CreateExperimentResponse(experiment=self._message(live))

    def GetExperiment(
        self, request: pb.GetExperimentRequest, caller: Caller
    ) -> pb.GetExperimentResponse:
        """Give one experiment."""
        live = self._live.find(caller.tenant, _name(request.name, "name"), "name")
        return pb.GetExperimentResponse(experiment=self._message(live))

    def ListExperiments(
        self, request: pb.ListExperimentsRequest, caller: Caller
    ) -> pb.ListExperimentsResponse:
        """List experiments by name, a page at a time."""
        if request.page_size < 0:
            raise InvalidInputError("must not be negative", field="page_size")
        size = min(request.page_size or 100, MAX_PAGE)
        after = self._pages.after(request.page_token, caller.tenant)
        mine = [
            live
            for live in self._live.entries()
            if live.tenant == caller.tenant and live.experiment.spec.name > after
        ]
        page = mine[:size]
        token = ""
        if len(mine) > size:
            token = self._pages.token(page[-1].experiment.spec.name, caller.tenant)
        return pb.ListExperimentsResponse(
            experiments=[self._message(live) for live in page], next_page_token=token
        )

    def StartExperiment(
        self, request: pb.StartExperimentRequest, caller: Caller
    ) -> pb.StartExperimentResponse:
        """Start a draft, or resume a paused experiment."""
        allowed = (State.DRAFT, State.PAUSED, State.RUNNING)
        live = self._mover.move(request, caller, State.RUNNING, allowed)
        return pb.StartExperimentResponse(experiment=self._message(live))

    def PauseExperiment(
        self, request: pb.PauseExperimentRequest, caller: Caller
    ) -> pb.PauseExperimentResponse:
        """Pause a running experiment."""
        live = self._mover.move(request, caller, State.PAUSED, (State.RUNNING, State.PAUSED))
        return pb.PauseExperimentResponse(experiment=self._message(live))

    def ArchiveExperiment(
        self, request: pb.ArchiveExperimentRequest, caller: Caller
    ) -> pb.ArchiveExperimentResponse:
        """End an experiment for good."""
        live = self._mover.move(request, caller, State.ARCHIVED, tuple(State))
        return pb.ArchiveExperimentResponse(experiment=self._message(live))

    def GetReport(self, request: pb.GetReportRequest, caller: Caller) -> pb.GetReportResponse:
        """Report traffic, reward and lift."""
        live = self._live.find(caller.tenant, _name(request.name, "name"), "name")
        with self._reader.connect() as connection:
            row = stored(connection, caller.tenant, request.name)
            live = self._live.catch_up(connection, row)  # its levels name what is counted
            found = reporting.report(connection, live)
            length = reporting.log_length(connection, live.id)
        return convert.report(live, found, length)

    def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, caller: Caller
    ) -> pb.ListAuditEntriesResponse:
        """List administrative changes, newest first."""
        if request.page_size < 0:
            raise InvalidInputError("must not be negative", field="page_size")
        name = request.name and _name(request.name, "name")
        after = self._pages.after(request.page_token, caller.tenant, "audit")
        below, _, asked = after.partition(" ")
        if request.page_token and asked != name:
            raise InvalidInputError("belongs to a request with another name", field="page_token")
        size, end = min(request.page_size or 100, MAX_PAGE), int(below or 0)
        with self._reader.connect() as connection:
            page, is_more = audit_log.page(
                connection, caller.tenant, experiment=name, below=end, limit=size
            )
        last = f"{page[-1].seq} {name}" if is_more else ""
        token = self._pages.token(last, caller.tenant, "audit") if is_more else ""
        return pb.ListAuditEntriesResponse(
            entries=[convert.audit_entry(row) for row in page], next_page_token=token
        )

    def Rollback(self, request: pb.RollbackRequest, caller: Caller) -> pb.RollbackResponse:
        """Leave out of the belief what should not have been learned; the learner does the rest."""
        live = self._live.find(caller.tenant, _name(request.name, "name"), "name")
        now = self._clock()
        asked = convert.rollback(request)

        def leave_out(connection: Connection) -> Omitted:
            after_seq = omissions.place_of_snapshot(connection, live.id, request.to_snapshot)
            scope, seq = asked._replace(after_seq=after_seq), storage.next_seq(connection, live.id)
            omitted = omissions.append(
                *(connection, live.id, scope),
                request_id=request.request_id,
                reason=request.reason,
                made_by=caller.who,
                now=now,
            )
            if omitted.seq == seq:  # not the answer to a request that was answered before
                if request.HasField("to_snapshot"):
                    check_reach(connection, live.id, after_seq)
                left_out = {**scope._asdict(), **omitted._asdict()}
                action, name = "experiment.rollback", live.experiment.spec.name
                change = Change(
                    caller.tenant, caller.who, action, name, None, left_out, request.reason
                )
                audit_log.record(connection, change, now)
            return omitted

        omitted = self._writer.call(leave_out, experiment_id=live.id, expires=caller.expires)
        self._learned()
        return pb.RollbackResponse(
            sequence=omitted.seq, events=omitted.events, outcomes=omitted.outcomes
        )

    def SubmitVerdict(
        self, request: pb.SubmitVerdictRequest, caller: Caller
    ) -> pb.SubmitVerdictResponse:
        """Store what the gate found of a specification."""
        return self._gate.submit(request, caller)

    def GetVerdict(self, request: pb.GetVerdictRequest, caller: Caller) -> pb.GetVerdictResponse:
        """Give the newest verdict on an experiment's specification."""
        return self._gate.newest(_name(request.name, "name"), caller)

    def UpdateExperiment(
        self, request: pb.UpdateExperimentRequest, caller: Caller
    ) -> pb.UpdateExperimentResponse:
        """Edit an experiment's specification."""
        live, made = self._reviser.update(request, caller)
        return pb.UpdateExperimentResponse(experiment=self._message(live), revision=made)

    def AddLevel(self, request: pb.AddLevelRequest, caller: Caller) -> pb.AddLevelResponse:
        """Add a level to a factor."""
        live, made = self._reviser.add_level(request, caller)
        return pb.AddLevelResponse(experiment=self._message(live), revision=made)

    def RetireLevel(self, request: pb.RetireLevelRequest, caller: Caller) -> pb.RetireLevelResponse:
        """Retire a level of a factor."""
        live, made = self._reviser.retire_level(request, caller)
        return pb.RetireLevelResponse(experiment=self._message(live), revision=made)

    def _message(self, live: LiveExperiment) -> pb.Experiment:
        with self._reader.connect() as connection:
            return convert.experiment(live, reporting.log_length(connection, live.id))


def _name(name: str, field: str) -> str:
    return convert.text(name, field, 64)


def _check_alone(n: int, field: str) -> None:
    if n:
        raise InvalidInputError(f"give either {field} or packed, not both", field="packed")


def _check_batch(n: int, field: str) -> None:
    if not 0 < n <= convert.MAX_BATCH:
        raise InvalidInputError(f"needs 1 to {convert.MAX_BATCH}, got {n}", field=field)
