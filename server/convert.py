"""Wire to domain and back: the only module that reads or builds messages."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from bandit import spec_file, timing
from bandit.actions import MAX_EXCLUSIONS, MAX_LEVELS, Exclusion
from bandit.context import MAX_FIELDS, ContextSchema
from bandit.decision import Group, Reason
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.features import MAX_TERMS
from bandit.outcome import MAX_REWARDS
from bandit.spec import ExperimentSpec
from server.bounds import check_counts
from server.live import LiveExperiment
from server.omissions import Scope
from server.pb import bandit_pb2 as pb
from server.reporting import GroupLine, Report
from server.schema import AnyRow
from server.status import code_of, reason_of
from server.storage import DecisionRow, EventRow, ExposureRow, Logged, Recorded

MAX_BATCH = 1_000
MAX_ID = 128
MAX_CUSTOMER_ID = 256
_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z in seconds


def parse(kind: type[Message], data: bytes) -> Any:  # noqa: ANN401  a message of that kind
    """Read a message; refuse bytes that are none, and fields that this release does not know.

    Raises
    ------
    InvalidInputError
        With the path of the unknown field, or of a list that is longer than any may be.
    """
    check_counts(kind, data)
    message = kind()
    try:
        message.ParseFromString(data)
    except Exception:  # noqa: BLE001  protobuf's DecodeError, and what its decoders let through
        raise InvalidInputError(f"these bytes are no {kind.DESCRIPTOR.name}") from None
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        message.ParseFromString(data)
        raise InvalidInputError(
            "is not known to this release; upgrade the server, or leave it out",
            field=_unknown_field(message),
        )
    return message


def _unknown_field(message: Message) -> str:
    """Find the path of the first field that the contract does not have."""
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]
        return f"(field number {unknown.field_number})"
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for path, item in islice(_items(field, value), MAX_BATCH):
            if isinstance(item, Message) and (found := _unknown_field(item)):
                return f"{path}.{found}"
    return ""


def _items(field: Any, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Give the messages of a field with their paths."""
    if field.message_type.GetOptions().map_entry:
        yield from ((f'{field.name}["{k}"]', v) for k, v in value.items())
    elif isinstance(value, Message):
        yield field.name, value
    else:
        yield from ((f"{field.name}[{i}]", v) for i, v in enumerate(value))


# --- requests ---------------------------------------------------------------------------


def text(value: str, field: str, most: int = MAX_ID) -> str:
    """Refuse a text that is empty, too long, or holds a NUL.

    Raises
    ------
    InvalidInputError
        With ``field`` as the path.
    """
    if not value:
        raise InvalidInputError("is required", field=field)
    if len(value) > most:
        raise InvalidInputError(f"{len(value)} characters, at most {most} are allowed", field=field)
    if "\0" in value:
        raise InvalidInputError("holds a NUL character", field=field)
    return value


def exclusions(messages: Sequence[pb.Exclusion]) -> tuple[Exclusion, ...]:
    """Read rules; errors have the path ``exclusions[i]``."""
    if not messages:
        return ()
    if len(messages) > MAX_EXCLUSIONS:
        raise InvalidInputError(
            f"{len(messages)} rules, at most {MAX_EXCLUSIONS} are allowed", field="exclusions"
        )
    rules: list[Exclusion] = []
    for i, message in enumerate(messages):
        named = {
            name: getattr(message, name)
            for name in ("variant", "channel", "slot")
            if message.HasField(name)
        }
        try:
            rules.append(Exclusion(reason=message.reason, **named))
        except InvalidInputError as error:
            raise error.under(f"exclusions[{i}]") from None
    return tuple(rules)


def read_exclusions(written: str | None) -> tuple[Exclusion, ...]:
    """Read rules from the log."""
    return tuple(Exclusion(**rule) for rule in json.loads(written)) if written else ()


def exclusions_text(rules: tuple[Exclusion, ...]) -> str | None:
    """Write rules for the log."""
    if not rules:
        return None
    fields = ("variant", "channel", "slot", "reason")
    return json.dumps(
        [{n: getattr(r, n) for n in fields if getattr(r, n) is not None} for r in rules],
        ensure_ascii=False,
        separators=(",", ":"),
    )


def decision_id(value: str) -> bytes:
    """Read a decision's id.

    Raises
    ------
    InvalidInputError
        If it is no UUID.
    """
    text(value, "decision_id")
    try:
        return UUID(value).bytes
    except ValueError:
        raise InvalidInputError(f"{value[:64]!r} is no UUID", field="decision_id") from None


def event_row(
    request: pb.RecordRewardRequest, experiment: Experiment, now: int, reporter: str = "local"
) -> EventRow:
    """Read a reward event.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    event_id = text(request.event_id, "event_id")
    one = decision_id(request.decision_id)
    name = text(request.name, "name")
    experiment.spec.outcome.check(name, request.value)
    at = _happened(request, "occurred_at", now)
    return EventRow(event_id, one, name, request.value, at, now, reporter)


def exposure_row(request: pb.ConfirmExposureRequest, now: int) -> ExposureRow:
    """Read an exposure.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    one = decision_id(request.decision_id)
    event_id = text(request.event_id, "event_id")
    return ExposureRow(event_id, one, _happened(request, "exposed_at", now), now)


def _happened(request: Message, field: str, now: int) -> int:
    """Read when something happened; now if that is not said."""
    if not request.HasField(field):
        return now
    at = _instant(getattr(request, field), field)
    if at > now + 86_400_000_000:
        raise InvalidInputError("lies more than a day in the future", field=field)
    return at


def rollback(request: pb.RollbackRequest) -> Scope:
    """Read what to leave out; where the snapshot ends is for the caller to find.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    text(request.request_id, "request_id")
    text(request.reason, "reason", 1_000)
    reporter = request.without_reporter or None
    if reporter is not None:
        text(reporter, "without_reporter", 64)
    since = _instant(request.since, "since") if request.HasField("since") else None
    until = _instant(request.until, "until") if request.HasField("until") else None
    if since is not None and until is not None and since >= until:
        raise InvalidInputError("must lie after since", field="until")
    if not request.HasField("to_snapshot") and (reporter, since, until) == (None, None, None):
        raise InvalidInputError(
            "say what to leave out: to_snapshot, without_reporter, since or until",
            field="to_snapshot",
        )
    return Scope(0, reporter, since, until)


def _instant(stamp: Timestamp, field: str) -> int:
    if not (0 <= stamp.seconds <= _LATEST and 0 <= stamp.nanos < 1_000_000_000):
        raise InvalidInputError("is no instant from 1970 to 9999", field=field)
    return stamp.seconds * 1_000_000 + stamp.nanos // 1_000


def spec(message: pb.ExperimentSpec) -> ExperimentSpec:
    """Read a specification; it has the same fields as a file, and the same reader."""
    actions = message.actions
    parts: list[tuple[str, int, int]] = [
        ("actions.variants", len(actions.variants), MAX_LEVELS),
        ("actions.channels", len(actions.channels), MAX_LEVELS),
        ("actions.slots", len(actions.slots), MAX_LEVELS),
        ("actions.exclusions", len(actions.exclusions), MAX_EXCLUSIONS),
        ("context", len(message.context), MAX_FIELDS),
        ("outcome.rewards", len(message.outcome.rewards), MAX_REWARDS),
        ("policy.terms", len(message.policy.terms), MAX_TERMS),
    ]
    for field, found, most in parts:  # counted before anything is built of them
        if found > most:
            raise InvalidInputError(
                f"{found} entries, at most {most} are allowed", field=f"spec.{field}"
            )
    try:
        return spec_file.from_data(_as_data(message))
    except InvalidInputError as error:
        raise error.under("spec") from None


def _as_data(message: pb.ExperimentSpec) -> dict[str, Any]:
    data: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return data


# --- answers ----------------------------------------------------------------------------


def _shown_id(one: bytes) -> str:
    """Write 16 bytes as a UUID; twice as fast as ``uuid`` does."""
    h = one.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def timestamp(us: int) -> Timestamp:
    """Give microseconds since 1970 as a message."""
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1_000)


Actions = dict[tuple[int, int, str], pb.Action]
"""Messages of actions by index, moment of the decision and time zone."""


def decision(
    live: LiveExperiment,
    logged: Logged,
    *,
    include_removed: bool = False,
    actions: Actions | None = None,
) -> pb.Decision:
    """Give a logged decision as a message: the same for a first and for a repeated answer.

    Parameters
    ----------
    actions
        Messages already made; a batch has few kinds.
    """
    row = logged.row
    message = pb.Decision(
        decision_id=_shown_id(row.decision_id),
        experiment=live.experiment.spec.name,
        request_id=row.request_id,
        propensity=row.propensity,
        group=row.traffic_group,  # type: ignore[arg-type]
        reason=row.reason,  # type: ignore[arg-type]
        snapshot_version=row.snapshot_version,
        sequence=logged.seq,
        decided_at=timestamp(row.decided_at),
        repeated_request=logged.repeated,
        action=None if row.action is None else _action_of(live, row, row.action, actions),
    )
    if row.propensities is not None:
        numbers = np.frombuffer(row.propensities, dtype="<f8").tolist()
        message.propensities.extend(
            [pb.ActionPropensity(action_index=i, propensity=p) for i, p in enumerate(numbers)]
        )
    if include_removed:
        rules = read_exclusions(row.exclusions)
        message.removed.extend(
            [
                pb.RemovedAction(action_index=index, reason=reason)
                for index, reason in live.experiment.spec.actions.removed(rules)
            ]
        )
    return message


def _action_of(
    live: LiveExperiment, row: DecisionRow, index: int, known: Actions | None
) -> pb.Action:
    if known is None:
        return action(live.experiment.spec, index, row)
    key = (index, row.decided_at, row.time_zone)
    found = known.get(key)
    if found is None:
        found = known[key] = action(live.experiment.spec, index, row)
    return found


def action(spec: ExperimentSpec, index: int, row: DecisionRow | None = None) -> pb.Action:
    """Give an action as a message, with its instant if it was decided on."""
    variant, channel, slot = spec.actions.levels(index)
    at = None
    if row is not None:
        at = timestamp(timing.send_at_us(slot, row.decided_at, row.time_zone))
    return pb.Action(
        index=index, variant=variant.name, channel=channel.name, slot=slot.name, send_at=at
    )


def context(schema: ContextSchema, row: bytes) -> pb.Context:
    """Give a logged context back as a message."""
    message = pb.Context()
    for name, value in schema.values(np.frombuffer(row, dtype="<f8")).items():
        if isinstance(value, bool):
            message.values[name].flag = value
        elif isinstance(value, str):
            message.values[name].category = value
        elif value is not None:
            message.values[name].number = value
    return message


def disposition(recorded: Recorded) -> pb.Disposition.ValueType:
    """Say what became of an event."""
    if recorded.duplicate:
        return pb.DISPOSITION_DUPLICATE
    if recorded.corrects:
        return pb.DISPOSITION_CORRECTION
    return pb.DISPOSITION_LATE if recorded.late else pb.DISPOSITION_RECORDED


def reward_result(event_id: str, result: Recorded | BanditError) -> pb.RewardResult:
    """Give one line of a batch's answer."""
    if isinstance(result, BanditError):
        error = pb.ItemError(code=code_of(result), reason=reason_of(result), message=str(result))
        return pb.RewardResult(event_id=event_id, error=error)
    return pb.RewardResult(event_id=event_id, disposition=disposition(result), sequence=result.seq)


def reward_event(row: AnyRow) -> pb.RewardEvent:
    """Give a logged reward event as a message."""
    return pb.RewardEvent(
        event_id=row.event_id,
        name=row.name,
        value=row.value,
        occurred_at=timestamp(row.occurred_at),
        received_at=timestamp(row.received_at),
        sequence=row.seq,
        late=row.late,
        reporter=row.reporter,
    )


def exposure(row: AnyRow) -> pb.Exposure:
    """Give a logged exposure as a message."""
    return pb.Exposure(
        event_id=row.event_id,
        exposed_at=timestamp(row.exposed_at),
        received_at=timestamp(row.received_at),
        sequence=row.seq,
        late=row.late,
    )


def outcome(row: AnyRow) -> pb.Outcome:
    """Give a logged outcome as a message."""
    return pb.Outcome(
        value=row.value,
        sequence=row.seq,
        closed_at=timestamp(row.closed_at),
        replaces=row.replaces,
    )


def experiment(live: LiveExperiment, log_length: int) -> pb.Experiment:
    """Give an experiment as a message."""
    snapshot = pb.SnapshotInfo(
        version=live.snapshot.version,
        sequence=live.snapshot.seq,
        outcomes=live.snapshot.count,
    )
    if live.published_at is not None:
        snapshot.published_at.CopyFrom(timestamp(live.published_at))
    return pb.Experiment(
        spec=ParseDict(spec_file.to_data(live.experiment.spec), pb.ExperimentSpec()),
        state=int(live.state),  # type: ignore[arg-type]
        created_at=timestamp(live.created_at),
        etag=live.etag,
        log_length=log_length,
        snapshot=snapshot,
    )


def audit_entry(row: AnyRow) -> pb.AuditEntry:
    """Write an administrative change."""
    return pb.AuditEntry(
        sequence=row.seq,
        at=timestamp(row.at),
        who=row.who,
        action=row.action,
        what=row.what,
        before=row.before or "",
        after=row.after or "",
        reason=row.reason,
    )


def spec_message(spec: ExperimentSpec) -> pb.ExperimentSpec:
    """Give a specification as a message, defaults written out."""
    return ParseDict(spec_file.to_data(spec), pb.ExperimentSpec())


def report(live: LiveExperiment, found: Report, log_length: int) -> pb.GetReportResponse:
    """Give a report as a message; what is not known is not set."""
    message = pb.GetReportResponse(
        experiment=experiment(live, log_length),
        reward_events=found.reward_events,
        late_events=found.late_events,
        open_decisions=found.open_decisions,
        corrections=found.corrections,
        exposures=found.exposures,
    )
    if not math.isnan(found.sample_ratio_p_value):
        message.sample_ratio_p_value = found.sample_ratio_p_value
    for group, line in found.groups.items():
        _add_group(message, group, line)
    for against, lift in found.lifts.items():
        entry = message.lifts.add(
            group=pb.GROUP_BANDIT,
            against=int(against),
            difference=lift.difference,
            difference_interval=[lift.low, lift.high],
        )
        if not math.isnan(lift.relative):
            entry.relative = lift.relative
            entry.relative_interval.extend([lift.relative_low, lift.relative_high])
    for row in found.actions:
        shown = message.actions.add(
            action=action(live.experiment.spec, row.action),
            bandit_decisions=row.bandit,
            random_decisions=row.random,
            outcomes=row.n,
        )
        if row.n:
            shown.mean = row.total / row.n
    return message


def _add_group(message: pb.GetReportResponse, group: Group, line: GroupLine) -> None:
    entry = message.groups.add(
        group=int(group),
        decisions=line.decisions,
        contacts=line.contacts,
        outcomes=line.sample.n,
    )
    if line.sample.n:
        entry.mean = line.sample.mean
    if line.sample.customers > 1:
        entry.interval.extend(line.sample.interval)


def enum_name(kind: type[Group] | type[Reason], number: int) -> str:
    """Give the lower-case name of a group or reason."""
    return kind(number).name.lower()


Values = Mapping[str, object]
"""A context by name, as a client gives it."""


def context_message(values: Values) -> pb.Context:
    """Give named values as a message.

    Raises
    ------
    InvalidInputError
        For a value that is no number, text, flag or None; the path is ``values["name"]``.
    """
    message = pb.Context()
    for name, value in values.items():
        if isinstance(value, bool | np.bool_):
            message.values[name].flag = bool(value)
        elif isinstance(value, int | float | np.number):
            message.values[name].number = float(value)
        elif isinstance(value, str):
            message.values[name].category = value
        elif value is None:
            message.values[name].SetInParent()
        else:
            raise InvalidInputError(
                f"needs a number, text, flag or None, got {type(value).__name__}",
                field=f'values["{name}"]',
            )
    return message
