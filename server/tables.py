"""Arrow tables to packed columns and back: what a campaign's files hold, checked cell by cell.

An error names the row, counted from 1, and the column.
"""

from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandit.context import MAX_TEXT, MAX_TURNS, ContextField, ContextSchema
from bandit.decision import Group, Reason
from bandit.errors import InvalidInputError
from server.pb import bandit_pb2 as pb

_INSTANT = pa.timestamp("us", tz="UTC")
_LARGEST = float(np.finfo(np.float32).max)
Bad = NDArray[np.bool_]


def column(table: pa.Table, name: str) -> pa.Array:
    """Give one column as one array.

    Raises
    ------
    InvalidInputError
        If there is none of this name, or several.
    """
    found = [i for i, one in enumerate(table.column_names) if one == name]
    if len(found) != 1:
        known = ", ".join(table.column_names[:30])
        problem = "there are several of this name" if found else f"is missing; there are: {known}"
        raise InvalidInputError(problem, field=f'column "{name}"')
    return table.column(found[0]).combine_chunks()


def texts(table: pa.Table, name: str, most: int, *, first: int = 0) -> list[str]:
    """Read a column of ids: texts or whole numbers, none missing, 1 to ``most`` characters."""
    array = column(table, name)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if not (_is_text(kind) or _is_integer(kind)):
        raise InvalidInputError(
            f"has type {kind}; needs texts or whole numbers", field=f'column "{name}"'
        )
    _refuse(_flags(array.is_null()), "is missing", name, first)
    values: list[str] = array.cast(pa.string()).to_pylist()
    lengths = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    _refuse((lengths < 1) | (lengths > most), f"needs 1 to {most} characters", name, first)
    if any("\0" in value for value in values):
        bad = np.array(["\0" in value for value in values])
        _refuse(bad, "holds a NUL character", name, first)
    return values


def matrix(table: pa.Table, schema: ContextSchema, *, first: int = 0) -> NDArray[np.float32]:
    """Read the columns named for the context's fields into packed rows.

    Parameters
    ----------
    table
        A column for every field: numbers for ``number`` and ``cyclic``, texts for ``category``,
        booleans for ``flag``; null where a value is not known. Other columns are not looked at.
    first
        Rows before this table, for errors.

    Returns
    -------
    (n, fields)

    Raises
    ------
    InvalidInputError
        Naming row and column of the first value that no context may hold.
    """
    rows = np.empty((table.num_rows, len(schema.fields)), dtype="<f4")
    for place, field in enumerate(schema.fields):
        array = column(table, field.name)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        missing = _flags(array.is_null())
        if field.required:
            _refuse(missing, "is missing, and the field is required", field.name, first)
        rows[:, place] = _read(array, field, missing, first)
        rows[missing, place] = np.nan
    return rows


def _read(array: pa.Array, field: ContextField, missing: Bad, first: int) -> NDArray[Any]:
    """Read one field's values; what stands where one is missing does not matter."""
    kind, is_null = array.type, pa.types.is_null(array.type)
    if is_null:
        return np.full(len(array), np.nan)
    if field.kind == "category":
        _check_type(
            pa.types.is_string(kind) or pa.types.is_large_string(kind), "texts", field, kind
        )
        long = _flags(pc.fill_null(pc.greater(pc.utf8_length(array), MAX_TEXT), False))  # noqa: FBT003
        _refuse(long, f"has more than {MAX_TEXT} characters", field.name, first)
        levels = pa.array(field.levels, type=kind)
        places = pc.fill_null(pc.index_in(array, value_set=levels), -1)
        found: NDArray[Any] = places.to_numpy(zero_copy_only=False)
        return found
    if field.kind == "flag":
        _check_type(pa.types.is_boolean(kind), "true or false", field, kind)
        return _flags(pc.fill_null(array, False))  # noqa: FBT003
    number = _is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    _check_type(number, "numbers", field, kind)
    values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return _numbers(np.where(missing, 0.0, values), field, missing, first)


def _numbers(
    values: NDArray[np.float64], field: ContextField, missing: Bad, first: int
) -> NDArray[np.float32]:
    there = ~missing
    _refuse(there & np.isnan(values), "is NaN; leave it null if not known", field.name, first)
    _refuse(there & ~(np.abs(values) <= _LARGEST), "is too large", field.name, first)
    packed = values.astype("<f4")
    if field.period is not None:
        most = MAX_TURNS * field.period
        _refuse(
            there & (np.abs(packed.astype(np.float64)) > most), "is too large", field.name, first
        )
    if field.outside == "reject" and field.bounds is not None:
        low, high = field.bounds
        outside = there & ((values < low) | (values > high))
        _refuse(outside, f"is outside [{low}, {high}]", field.name, first)
        wide = packed.astype(np.float64)  # rounding may have left the bounds
        packed[wide > high] = np.nextafter(np.float32(high), np.float32(-np.inf))
        packed[wide < low] = np.nextafter(np.float32(low), np.float32(np.inf))
    return packed


def decided(
    keys: list[str], customers: list[str], request_ids: list[str], found: pb.PackedDecisions
) -> pa.Table:
    """Give packed decisions as a table, beside the rows that were asked for."""
    actions = np.frombuffer(found.actions, dtype="<i4")
    names = {a.index: (a.variant, a.channel, a.slot) for a in found.used_actions}
    levels = [names.get(action, (None, None, None)) for action in actions.tolist()]
    nothing = actions < 0
    raw = found.decision_ids
    groups = {g.value: g.name.lower() for g in Group}
    reasons = {r.value: r.name.lower() for r in Reason}
    return pa.table(
        {
            "id": pa.array(keys, pa.string()),
            "customer_id": pa.array(customers, pa.string()),
            "request_id": pa.array(request_ids, pa.string()),
            "decision_id": [str(UUID(bytes=raw[at : at + 16])) for at in range(0, len(raw), 16)],
            "action": pa.array(actions, mask=nothing),
            "variant": pa.array([one[0] for one in levels], pa.string()),
            "channel": pa.array([one[1] for one in levels], pa.string()),
            "slot": pa.array([one[2] for one in levels], pa.string()),
            "send_at": pa.array(
                np.frombuffer(found.send_at, dtype="<i8"), type=_INSTANT, mask=nothing
            ),
            "propensity": np.frombuffer(found.propensities, dtype="<f8"),
            "group": pa.array([groups[g] for g in found.groups], pa.string()),
            "reason": pa.array([reasons[r] for r in found.reasons], pa.string()),
            "snapshot_version": np.frombuffer(found.snapshot_versions, dtype="<i8"),
            "sequence": np.frombuffer(found.sequences, dtype="<i8"),
            "decided_at": pa.array(np.frombuffer(found.decided_at, dtype="<i8"), type=_INSTANT),
        }
    )


def uuids(table: pa.Table, name: str, *, first: int = 0) -> bytes:
    """Read a column of UUIDs as 16 bytes each."""
    parts = []
    for i, text in enumerate(texts(table, name, 64, first=first)):
        try:
            parts.append(UUID(text).bytes)
        except ValueError:
            raise InvalidInputError(
                f"{text[:64]!r} is no UUID", field=_cell(name, first + i)
            ) from None
    return b"".join(parts)


def values(table: pa.Table, name: str, *, first: int = 0) -> NDArray[np.float64]:
    """Read a column of numbers, none missing."""
    array = column(table, name)
    kind = array.type
    if not (_is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InvalidInputError(f"has type {kind}; needs numbers", field=f'column "{name}"')
    _refuse(_flags(array.is_null()), "is missing", name, first)
    found = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    _refuse(~np.isfinite(found), "is no finite number", name, first)
    read: NDArray[np.float64] = found
    return read


def instants(table: pa.Table, name: str, *, first: int = 0) -> NDArray[np.int64]:
    """Read a column of timestamps as microseconds since 1970; one without a zone is in UTC."""
    array = column(table, name)
    if not pa.types.is_timestamp(array.type):
        raise InvalidInputError(
            f"has type {array.type}; needs timestamps", field=f'column "{name}"'
        )
    _refuse(_flags(array.is_null()), "is missing", name, first)
    plain = array.cast(pa.timestamp("us", tz=array.type.tz), safe=False).cast(pa.int64())
    found: NDArray[np.int64] = plain.to_numpy(zero_copy_only=False)
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _flags(array: pa.Array) -> Bad:
    found: Bad = np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)
    return found


def _check_type(fits: object, needed: str, field: ContextField, kind: pa.DataType) -> None:
    if not fits:
        raise InvalidInputError(
            f"has type {kind}; a {field.kind} needs {needed}", field=f'column "{field.name}"'
        )


def _refuse(bad: Bad, message: str, name: str, first: int) -> None:
    if bad.any():
        raise InvalidInputError(message, field=_cell(name, first + int(bad.argmax())))


def _cell(name: str, row: int) -> str:
    return f'row {row + 1}, column "{name}"'
