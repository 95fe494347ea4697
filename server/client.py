"""A blocking client: typed answers, deadlines, retries that can not decide twice.

Every call carries a deadline. Only UNAVAILABLE is retried, with the same request id, so a
retry gets the first answer. Where a fallback is declared, ``decide`` answers it when the
server can not be reached in time, and says so; a message can always be sent.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bandit.actions import Exclusion
from bandit.decision import Group, Reason
from bandit.errors import BanditError, DeadlineError, InvalidInputError, UnavailableError
from bandit.policy import ActionName
from bandit.spec import ExperimentSpec
from bandit.verdict import Verdict
from server import convert, verdict_messages
from server.client_edits import Edits
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from server.status import DETAILS_KEY, STATUS
from server.tls import Security

R = TypeVar("R")

_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""Nothing was answered: no server there, or it ended meanwhile; a repeated request is safe."""

_ERRORS: dict[grpc.StatusCode, type[BanditError]] = {
    **{code: kind for kind, (code, _) in STATUS.items()},
    grpc.StatusCode.CANCELLED: UnavailableError,
}

_TLS_SIGNS = {
    "WRONG_VERSION_NU": "in plain text, not TLS: leave TLS and authorities out",
    "CERTIFICATE_VERI": "its certificate is of no authority that is trusted here, or is for "
    "another name: name the right authorities (--ca) and the name in the certificate",
    "Socket closed": "hangs up: does it speak TLS? Then say so, or name its authorities (--ca)",
}
"""What gRPC says of a server that speaks otherwise, and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decision as a client sees it.

    Attributes
    ----------
    decision_id
        Rewards refer to it; empty if the client's own fallback answered.
    variant, channel, slot
        What to send, where and when; None: send nothing.
    send_at
        When, as an instant; None: send nothing, or (client's fallback) at once.
    propensity
        Probability with which this action was chosen.
    group, reason
        Who decided, and why; a client's own fallback has none.
    propensities
        Probability of every action by index, if asked for.
    removed
        Reason of every removed action by index, if asked for.
    is_fallback
        Whether a declared fallback answered, the server's or the client's.
    """

    decision_id: str
    action: int | None
    variant: str | None
    channel: str | None
    slot: str | None
    send_at: datetime | None
    propensity: float
    group: Group | None
    reason: Reason | None
    snapshot_version: int
    propensities: tuple[float, ...] = ()
    removed: Mapping[int, str]
    is_fallback: bool = False
    is_repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One decision to ask for.

    Parameters
    ----------
    customer_id
        The caller's id of the customer.
    context
        Values by field name: numbers, texts, flags, or None where missing.
    request_id
        Idempotency key; a new UUID if left out.
    exclusions
        Rules of this request.
    time_zone
        IANA name; empty means UTC.
    """

    customer_id: str
    context: Mapping[str, object]
    request_id: str = ""
    exclusions: Sequence[Exclusion] = ()
    time_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One reward event to report.

    Parameters
    ----------
    decision_id
        The decision it belongs to.
    name, value
        Kind of event, and its value in the kind's own unit.
    event_id
        Idempotency key; a new UUID if left out.
    occurred_at
        Aware instant; None means now.
    """

    decision_id: str
    name: str
    value: float = 1.0
    event_id: str = ""
    occurred_at: datetime | None = None


class BanditClient(Edits):
    """Talks to one server.

    Parameters
    ----------
    address
        ``host:port``.
    timeout
        Seconds that a call may take, retries included.
    fallback
        What ``decide`` and ``rank`` answer when the server can not be reached; None raises.
    security
        Token and TLS; None sends no token, in plain text.

    Examples
    --------
    >>> client = BanditClient("127.0.0.1:1", timeout=0.2, fallback=ActionName(
    ...     variant="newsletter", channel="email"))
    >>> answer = client.decide("welcome", "customer-1", {"age": 41})
    >>> answer.variant, answer.is_fallback
    ('newsletter', True)
    >>> client.close()
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = 5.0,
        fallback: ActionName | None = None,
        security: Security | None = None,
    ) -> None:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise InvalidInputError(f"{address[:100]!r} is not host:port", field="address")
        self._address = address
        self._timeout = timeout
        self._fallback = fallback
        security = security or Security()
        self._metadata = security.metadata
        self._channel = security.channel(host, port)
        self._decisions = stubs.DecisionServiceStub(self._channel)
        self._experiments = stubs.ExperimentServiceStub(self._channel)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def decide(  # noqa: PLR0913  what a request may say
        self,
        experiment: str,
        customer_id: str,
        context: Mapping[str, object],
        *,
        request_id: str = "",
        exclusions: Sequence[Exclusion] = (),
        time_zone: str = "",
        include_propensities: bool = False,
        include_removed: bool = False,
    ) -> Answer:
        """Ask for one decision.

        Raises
        ------
        BanditError
            What the server refused; or, without a fallback, that it can not be reached.
        """
        ask = Ask(
            customer_id=customer_id,
            context=context,
            request_id=request_id,
            exclusions=exclusions,
            time_zone=time_zone,
        )
        request = _decide_request(experiment, ask)
        request.include_propensities = include_propensities
        request.include_removed = include_removed
        try:
            return _answer(self._call(self._decisions.Decide, request).decision)
        except (UnavailableError, DeadlineError):
            if self._fallback is None:
                raise
            return _own_fallback(self._fallback)

    def rank(
        self,
        experiment: str,
        ask: Ask,
        *,
        count: int,
        include_propensities: bool = False,
        include_removed: bool = False,
    ) -> list[Answer]:
        """Ask for up to ``count`` alternatives for one customer, in the order to offer them.

        Raises
        ------
        BanditError
            What the server refused (then nothing is stored); or, without a fallback, that it can
            not be reached.
        """
        request = _decide_request(experiment, ask)
        request.include_propensities = include_propensities
        request.include_removed = include_removed
        message = pb.RankRequest.FromString(request.SerializeToString())
        message.count = count
        try:
            return [_answer(one) for one in self._call(self._decisions.Rank, message).decisions]
        except (UnavailableError, DeadlineError):
            if self._fallback is None:
                raise
            return [_own_fallback(self._fallback)]

    def decide_batch(self, experiment: str, asks: Iterable[Ask]) -> list[Answer]:
        """Ask for up to 1000 decisions in one transaction.

        Raises
        ------
        BanditError
            What the server refused (then nothing is stored), or that it can not be reached.
        """
        requests = [_decide_request(experiment, ask) for ask in asks]
        answer = self._call(self._decisions.BatchDecide, pb.BatchDecideRequest(requests=requests))
        return [_answer(decision) for decision in answer.decisions]

    def decide_packed(self, asked: pb.PackedContexts) -> pb.PackedDecisions:
        """Ask for up to 10,000 decisions as columns, in one transaction.

        Raises
        ------
        BanditError
            What the server refused (then nothing is stored), or that it can not be reached.
        """
        request = pb.BatchDecideRequest(packed=asked)
        return self._call(self._decisions.BatchDecide, request).packed

    def record_packed(self, told: pb.PackedRewards) -> pb.PackedRewardResults:
        """Report up to 10,000 events as columns; what became of each is in the answer.

        Raises
        ------
        BanditError
            What the server refused of the batch, or that it can not be reached. An event that
            is not recorded raises nothing: it is among the answer's errors.
        """
        request = pb.BatchRecordRewardsRequest(packed=told)
        return self._call(self._decisions.BatchRecordRewards, request).packed

    def record_reward(self, experiment: str, fact: Fact) -> str:
        """Report one event; give its disposition: recorded, duplicate, late, correction.

        Raises
        ------
        BanditError
            What the server refused, or that it can not be reached.
        """
        request = _reward_request(experiment, fact)
        return _disposition(self._call(self._decisions.RecordReward, request).disposition)

    def record_rewards(self, experiment: str, facts: Iterable[Fact]) -> list[str]:
        """Report up to 1000 events; give each one's disposition.

        Raises
        ------
        BanditError
            What the server refused, of the batch or of one event; those that were accepted
            are recorded, and sending all again is safe.
        """
        requests = [_reward_request(experiment, fact) for fact in facts]
        message = pb.BatchRecordRewardsRequest(events=requests)
        results = self._call(self._decisions.BatchRecordRewards, message).results
        for i, result in enumerate(results):
            if result.HasField("error"):
                code = next(c for c in grpc.StatusCode if c.value[0] == result.error.code)
                raise _ERRORS[code](result.error.message, field=f"events[{i}]")
        return [_disposition(result.disposition) for result in results]

    def confirm_exposure(
        self,
        experiment: str,
        decision_id: str,
        *,
        event_id: str = "",
        exposed_at: datetime | None = None,
    ) -> str:
        """Report that a decision was shown; give the disposition: recorded, duplicate or late.

        Parameters
        ----------
        event_id
            Idempotency key; a new UUID if left out.
        exposed_at
            Aware instant; None means now.

        Raises
        ------
        BanditError
            What the server refused, or that it can not be reached.
        """
        request = pb.ConfirmExposureRequest(
            experiment=experiment, decision_id=decision_id, event_id=event_id or str(uuid4())
        )
        if exposed_at is not None:
            request.exposed_at.FromDatetime(exposed_at.astimezone(UTC))
        return _disposition(self._call(self._decisions.ConfirmExposure, request).disposition)

    def get_decision(self, experiment: str, decision_id: str) -> pb.GetDecisionResponse:
        """Read a logged decision, its events and its outcome."""
        request = pb.GetDecisionRequest(experiment=experiment, decision_id=decision_id)
        return self._call(self._decisions.GetDecision, request)

    def create_experiment(self, spec: ExperimentSpec, *, request_id: str = "") -> pb.Experiment:
        """Create an experiment in state DRAFT."""
        message = convert.spec_message(spec)
        request = pb.CreateExperimentRequest(spec=message, request_id=request_id or str(uuid4()))
        return self._call(self._experiments.CreateExperiment, request).experiment

    def get_experiment(self, name: str) -> pb.Experiment:
        """Read an experiment."""
        request = pb.GetExperimentRequest(name=name)
        return self._call(self._experiments.GetExperiment, request).experiment

    def list_experiments(self) -> list[pb.Experiment]:
        """Read all experiments, page by page."""
        found: list[pb.Experiment] = []
        token = ""
        while True:
            request = pb.ListExperimentsRequest(page_token=token)
            page = self._call(self._experiments.ListExperiments, request)
            found.extend(page.experiments)
            token = page.next_page_token
            if not token:
                return found

    def start_experiment(self, name: str, *, reason: str = "", override: str = "") -> pb.Experiment:
        """Start or resume an experiment.

        Parameters
        ----------
        reason
            Why, for the audit log.
        override
            Why a draft starts without a passing verdict; empty: it needs one.
        """
        request = pb.StartExperimentRequest(name=name, reason=reason, override=override)
        return self._call(self._experiments.StartExperiment, request).experiment

    def submit_verdict(
        self, verdict: Verdict, *, override: str = "", request_id: str = ""
    ) -> pb.SubmitVerdictResponse:
        """Store what the gate found of a specification.

        Parameters
        ----------
        override
            Why the experiment may start although a check does not hold; empty: it may not.
        """
        request = pb.SubmitVerdictRequest(
            verdict=verdict_messages.write(verdict),
            override=override,
            request_id=request_id or str(uuid4()),
        )
        return self._call(self._experiments.SubmitVerdict, request)

    def get_verdict(self, name: str) -> pb.GetVerdictResponse:
        """Read the newest verdict on an experiment's specification."""
        request = pb.GetVerdictRequest(name=name)
        return self._call(self._experiments.GetVerdict, request)

    def pause_experiment(self, name: str, *, reason: str = "") -> pb.Experiment:
        """Pause an experiment."""
        request = pb.PauseExperimentRequest(name=name, reason=reason)
        return self._call(self._experiments.PauseExperiment, request).experiment

    def archive_experiment(self, name: str, *, reason: str = "") -> pb.Experiment:
        """End an experiment for good."""
        request = pb.ArchiveExperimentRequest(name=name, reason=reason)
        return self._call(self._experiments.ArchiveExperiment, request).experiment

    def audit_entries(self, *, experiment: str = "", most: int = 100) -> list[pb.AuditEntry]:
        """Read administrative changes, newest first, of one experiment or of anything."""
        found: list[pb.AuditEntry] = []
        token = ""
        while True:
            request = pb.ListAuditEntriesRequest(
                name=experiment, page_size=min(most - len(found), 1_000), page_token=token
            )
            page = self._call(self._experiments.ListAuditEntries, request)
            found.extend(page.entries)
            token = page.next_page_token
            if not token or len(found) >= most:
                return found

    def is_ready(self) -> bool:
        """Ask the server's health whether requests are welcome.

        Raises
        ------
        BanditError
            If it can not be reached.
        """
        request = health_pb2.HealthCheckRequest()
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        answer = self._call(stub.Check, request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def report(self, name: str) -> pb.GetReportResponse:
        """Read an experiment's report."""
        return self._call(self._experiments.GetReport, pb.GetReportRequest(name=name))

    def rollback(  # noqa: PLR0913  what may be left out
        self,
        name: str,
        *,
        reason: str,
        to_snapshot: int | None = None,
        without_reporter: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        request_id: str = "",
    ) -> pb.RollbackResponse:
        """Leave out of the belief what should not have been learned.

        Parameters
        ----------
        reason
            Why; it is kept.
        to_snapshot
            Leave out only what follows this snapshot; None: the whole log.
        without_reporter
            Leave out this reporter's events; empty: outcomes, whoever reported.
        since, until
            Leave out only what was received, or closed, in this time; aware instants.
        request_id
            Idempotency key; a new UUID if left out.
        """
        request = pb.RollbackRequest(
            name=name,
            to_snapshot=to_snapshot,
            without_reporter=without_reporter,
            reason=reason,
            request_id=request_id or str(uuid4()),
        )
        for field, instant in (("since", since), ("until", until)):
            if instant is not None:
                getattr(request, field).FromDatetime(instant.astimezone(UTC))
        return self._call(self._experiments.Rollback, request)

    def _call(self, method: Callable[..., R], request: Any) -> R:  # noqa: ANN401  a message
        """Call with a deadline over all tries; retry with a growing, jittered pause."""
        end = time.monotonic() + self._timeout
        for attempt in count():
            try:
                timeout = max(end - time.monotonic(), 0.001)
                return method(request, timeout=timeout, metadata=self._metadata)
            except grpc.RpcError as error:
                pause = min(0.025 * 2.0**attempt, 1.0) * random.uniform(0.5, 1.0)  # noqa: S311
                is_late = time.monotonic() + pause > end
                if error.code() not in _RETRIED or is_late:
                    raise _domain_error(error, self._address) from None
                time.sleep(pause)
        raise AssertionError("the loop ends by returning or raising")


def _domain_error(error: grpc.RpcError, address: str) -> BanditError:
    kind = _ERRORS.get(error.code(), BanditError)
    details = error.details() or error.code().name.lower()
    trailers: Any = error.trailing_metadata() or ()
    has_answered = any(key == DETAILS_KEY for key, _ in trailers)
    if kind is UnavailableError and not has_answered:
        for sign, why in _TLS_SIGNS.items():
            if sign in details:
                return kind(f"{address} answers, but {why} ({details.splitlines()[0][:300]})")
        return kind(
            f"no server answers at {address}; start one with 'banditctl serve', or name another "
            f"address ({details.splitlines()[0][:200]})"
        )
    if kind is DeadlineError and not has_answered:
        return kind(f"no answer from {address} in time; it may still be starting")
    return kind(details)


def _decide_request(experiment: str, ask: Ask) -> pb.DecideRequest:
    return pb.DecideRequest(
        experiment=experiment,
        request_id=ask.request_id or str(uuid4()),
        customer_id=ask.customer_id,
        context=convert.context_message(ask.context),
        exclusions=[
            pb.Exclusion(variant=e.variant, channel=e.channel, slot=e.slot, reason=e.reason)
            for e in ask.exclusions
        ],
        time_zone=ask.time_zone,
    )


def _reward_request(experiment: str, fact: Fact) -> pb.RecordRewardRequest:
    request = pb.RecordRewardRequest(
        experiment=experiment,
        event_id=fact.event_id or str(uuid4()),
        decision_id=fact.decision_id,
        name=fact.name,
        value=fact.value,
    )
    if fact.occurred_at is not None:
        request.occurred_at.FromDatetime(fact.occurred_at.astimezone(UTC))
    return request


def _answer(decision: pb.Decision) -> Answer:
    sends, action = decision.HasField("action"), decision.action
    reason = Reason(decision.reason)
    return Answer(
        decision_id=decision.decision_id,
        action=action.index if sends else None,
        variant=action.variant if sends else None,
        channel=action.channel if sends else None,
        slot=action.slot if sends else None,
        send_at=action.send_at.ToDatetime(tzinfo=UTC) if sends else None,
        propensity=decision.propensity,
        group=Group(decision.group),
        reason=reason,
        snapshot_version=decision.snapshot_version,
        propensities=tuple(p.propensity for p in decision.propensities),
        removed={r.action_index: r.reason for r in decision.removed},
        is_fallback=reason.is_fallback,
        is_repeated=decision.repeated_request,
    )


def _own_fallback(action: ActionName) -> Answer:
    return Answer(
        decision_id="",
        action=None,
        variant=action.variant,
        channel=action.channel,
        slot=action.slot,
        send_at=None,
        propensity=1.0,
        group=None,
        reason=None,
        snapshot_version=0,
        removed={},
        is_fallback=True,
    )


def _disposition(number: int) -> str:
    return pb.Disposition.Name(number).removeprefix("DISPOSITION_").lower()  # type: ignore[arg-type]
