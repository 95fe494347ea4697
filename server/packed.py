"""Packed batches on the wire: columns of bytes to arrays and back, without boxing a number.

Every length is checked against the number of rows before anything is made of it.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit import timing
from bandit.context import ContextSchema
from bandit.errors import BanditError, InvalidInputError, StateError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.outcome import MAX_REWARDS
from server import convert
from server.deciding import hashed_rest
from server.live import LiveExperiment
from server.pb import bandit_pb2 as pb
from server.sheets import Sheet, Wish, sheet
from server.status import code_of, reason_of
from server.storage import EventRow, Logged, Recorded

MAX_ROWS = 10_000
MAX_LISTED = 1_000_000
MAX_PREFIX = 100
_LATEST = 253_402_300_800 * 1_000_000


@lru_cache(maxsize=1024)
def schema_hash(schema: ContextSchema) -> bytes:
    """Stand for a schema in 16 bytes: another order, name, kind or level gives another."""
    fields = [
        [f.name, f.kind, f.bounds, f.scale, f.outside, f.levels, f.period, f.required]
        for f in schema.fields
    ]
    return hashlib.blake2b(json.dumps(fields).encode(), digest_size=16).digest()


# --- requests ---------------------------------------------------------------------------


def read_contexts(message: pb.PackedContexts, live: LiveExperiment, now: int) -> Sheet:
    """Read a packed request to decide.

    Raises
    ------
    InvalidInputError
        With the path of the first column or cell that does not fit.
    StateError
        If the experiment's fields are not those that the caller packed for.
    """
    spec = live.experiment.spec
    if message.schema_hash and message.schema_hash != schema_hash(spec.schema):
        raise StateError(
            "the experiment's context fields have changed; read it again and pack anew",
            field="packed.schema_hash",
        )
    n, width = len(message.customer_ids), len(spec.schema.fields)
    _check_count(n, "packed.customer_ids")
    if message.columns != width:
        raise InvalidInputError(
            f"{message.columns} columns, the experiment has {width} fields", field="packed.columns"
        )
    if message.include_propensities and n * spec.actions.size > MAX_LISTED:
        raise InvalidInputError(
            f"ask for propensities of at most {MAX_LISTED} actions in all",
            field="packed.include_propensities",
        )
    if message.time_zone:
        try:
            timing.check_zone(message.time_zone)
        except BanditError as error:
            raise error.under("packed") from None
    data = message.rows
    _check_length(data, 4 * n * width, "packed.rows")
    request_ids = _ids(
        message.request_ids, message.request_prefix, message.first_number, n, "request"
    )
    customers = list(message.customer_ids)
    _check_texts(customers, "packed.customer_ids", convert.MAX_CUSTOMER_ID)
    keeps = message.include_propensities
    told = hashed_rest(message.time_zone, None, keeps_propensities=keeps)
    return sheet(
        live,
        request_ids,
        customers,
        _rows(np.frombuffer(data, dtype="<f4").reshape(n, width), spec.schema),
        [Wish(message.time_zone, (), None, keeps, told)] * n,
        now,
    )


def _rows(packed: NDArray[np.float32], schema: ContextSchema) -> Floats:
    """Widen packed contexts to the rows that named values of the same numbers give."""
    rows = packed.astype(np.float64)
    try:
        schema.check_rows(rows)
    except InvalidInputError as error:
        raise error.under("packed.rows") from None
    rows[np.isnan(rows)] = np.nan  # one of the many: rows are hashed and stored as bytes
    for place, field in enumerate(schema.fields):
        if field.kind in ("category", "flag"):
            rows[:, place] += 0.0  # -0 becomes 0
    return rows


def read_rewards(
    message: pb.PackedRewards, experiment: Experiment, now: int, reporter: str
) -> list[EventRow]:
    """Read packed reward events.

    Raises
    ------
    InvalidInputError
        With the path of the first column or cell that does not fit.
    """
    n = len(message.decision_ids) // 16
    _check_count(n, "packed.decision_ids")
    _check_length(message.decision_ids, 16 * n, "packed.decision_ids")
    names = list(message.names)
    _check_length(message.values, 8 * n, "packed.values")
    values = np.frombuffer(message.values, dtype="<f8")
    kinds = _kinds(message.kinds, names, n)
    ids = _ids(message.event_ids, message.event_prefix, message.first_number, n, "event")
    for place, name in enumerate(names):
        _check_values(experiment, name, values, kinds == place, place)
    return list(
        map(
            EventRow,
            ids,
            [message.decision_ids[at : at + 16] for at in range(0, 16 * n, 16)],
            [names[kind] for kind in kinds.tolist()],
            values.tolist(),
            _instants(message.occurred_at, n, now),
            [now] * n,
            [reporter] * n,
        )
    )


def _kinds(data: bytes, names: Sequence[str], n: int) -> NDArray[np.uint8]:
    """Read the kind of every event as its place in ``names``."""
    if not 0 < len(names) <= MAX_REWARDS:
        raise InvalidInputError(f"needs 1 to {MAX_REWARDS}, got {len(names)}", field="packed.names")
    if not data:
        return np.zeros(n, dtype=np.uint8)
    _check_length(data, n, "packed.kinds")
    kinds = np.frombuffer(data, dtype=np.uint8)
    _refuse(kinds >= len(names), f"is none of the {len(names)} names", "packed.kinds")
    return kinds


def _check_values(
    experiment: Experiment, name: str, values: Floats, mine: NDArray[np.bool_], place: int
) -> None:
    rule = experiment.spec.outcome
    try:
        rule.check(name, rule.by_name[name].bounds[0] if name in rule.by_name else 0.0)
    except InvalidInputError as error:
        raise InvalidInputError(error.message, field=f"packed.names[{place}]") from None
    low, high = rule.by_name[name].bounds
    is_bad = mine & ~((values >= low) & (values <= high))  # also NaN
    _refuse(is_bad, f"a {name} is outside [{low}, {high}]", "packed.values")


def _instants(data: bytes, n: int, now: int) -> list[int]:
    if not data:
        return [now] * n
    _check_length(data, 8 * n, "packed.occurred_at")
    at = np.frombuffer(data, dtype="<i8")
    field = "packed.occurred_at"
    _refuse((at < 0) | (at >= _LATEST), "is no instant from 1970 to 9999", field)
    _refuse(at > now + 86_400_000_000, "lies more than a day in the future", field)
    found: list[int] = at.tolist()
    return found


def _ids(given: Sequence[str], prefix: str, first: int, n: int, kind: str) -> list[str]:
    """Give the idempotency keys of all rows: as given, or counted behind a prefix."""
    many, one = f"packed.{kind}_ids", f"packed.{kind}_prefix"
    if bool(given) == bool(prefix):
        raise InvalidInputError(f"give either this or {one}", field=many)
    if not prefix:
        if len(given) != n:
            raise InvalidInputError(f"{len(given)} for {n} rows", field=many)
        ids = list(given)
        _check_texts(ids, many, convert.MAX_ID)
        return ids
    convert.text(prefix, one, MAX_PREFIX)
    if first + n > 1 << 63:
        raise InvalidInputError("is too large", field="packed.first_number")
    return [f"{prefix}-{number:06d}" for number in range(first, first + n)]


def _check_count(n: int, field: str) -> None:
    if not 0 < n <= MAX_ROWS:
        raise InvalidInputError(f"needs 1 to {MAX_ROWS} rows, got {n}", field=field)


def _check_length(data: bytes, wanted: int, field: str) -> None:
    if len(data) != wanted:
        raise InvalidInputError(f"{len(data)} bytes, needs {wanted}", field=field)


def _check_texts(texts: Sequence[str], field: str, most: int) -> None:
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    if lengths.min() < 1 or lengths.max() > most or "\0" in "".join(texts):
        for i, one in enumerate(texts):
            convert.text(one, f"{field}[{i}]", most)


def _refuse(is_bad: NDArray[np.bool_], message: str, field: str) -> None:
    if is_bad.any():
        raise InvalidInputError(message, field=f"{field}[{int(is_bad.argmax())}]")


# --- answers ----------------------------------------------------------------------------


def decisions_message(live: LiveExperiment, logged: Sequence[Logged]) -> pb.PackedDecisions:
    """Give logged decisions as columns: the same for a first and for a repeated answer."""
    rows = [entry.row for entry in logged]
    actions = [-1 if row.action is None else row.action for row in rows]
    spec = live.experiment.spec
    used = sorted({action for action in actions if action >= 0})
    message = pb.PackedDecisions(
        experiment=spec.name,
        actions=_bytes(actions, "<i4"),
        propensities=_bytes([row.propensity for row in rows], "<f8"),
        decision_ids=b"".join([row.decision_id for row in rows]),
        groups=bytes([row.traffic_group for row in rows]),
        reasons=bytes([row.reason for row in rows]),
        sequences=_bytes([entry.seq for entry in logged], "<i8"),
        snapshot_versions=_bytes([row.snapshot_version for row in rows], "<i8"),
        repeated_requests=bytes([entry.repeated for entry in logged]),
        decided_at=_bytes([row.decided_at for row in rows], "<i8"),
        send_at=_bytes(_send_times(live, logged), "<i8"),
        used_actions=[convert.action(spec, index) for index in used],
        schema_hash=schema_hash(spec.schema),
    )
    if rows[0].propensities is not None:
        message.all_propensities = b"".join([row.propensities or b"" for row in rows])
    return message


def _send_times(live: LiveExperiment, logged: Sequence[Logged]) -> list[int]:
    """Give the instants to send at; most rows share their moment, zone and slot."""
    known: dict[tuple[int | None, int, str], int] = {}
    times = []
    for _, row, _ in logged:
        key = (row.action, row.decided_at, row.time_zone)
        if key not in known:
            known[key] = 0
            if row.action is not None:
                slot = live.experiment.spec.actions.levels(row.action)[2]
                known[key] = timing.send_at_us(slot, row.decided_at, row.time_zone)
        times.append(known[key])
    return times


def results_message(results: Sequence[Recorded | BanditError]) -> pb.PackedRewardResults:
    """Say what became of packed events."""
    message = pb.PackedRewardResults(
        dispositions=bytes(
            [0 if isinstance(one, BanditError) else convert.disposition(one) for one in results]
        ),
        sequences=_bytes(
            [0 if isinstance(one, BanditError) else one.seq for one in results], "<i8"
        ),
    )
    for i, one in enumerate(results):
        if isinstance(one, BanditError):
            error = pb.ItemError(code=code_of(one), reason=reason_of(one), message=str(one))
            message.errors.add(index=i, error=error)
    return message


def _bytes(numbers: Sequence[Any], kind: str) -> bytes:
    return np.array(numbers, dtype=kind).tobytes()
