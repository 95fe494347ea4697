"""From a column of a table to numbers, with a mark at every cell that is none."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit.kernels.compiling import Bools, Floats, Ints

NOTHING, UNKNOWN = -2, -1
"""Codes of a missing cell, and of a text that is none of the levels."""

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_LATEST = 1e11
_ODD = np.uint64(0x9E3779B97F4A7C15)
_TRUTH = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}


class Numbers(NamedTuple):
    """A column as numbers: NaN where ``missing``, and anything where ``broken``.

    Attributes
    ----------
    values, missing, broken : (n,)
    """

    values: Floats
    missing: Bools
    broken: Bools


def is_text(kind: Any) -> bool:  # noqa: ANN401  pyarrow has no types
    """Whether a column of this type holds texts, or numbers of texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_number(kind: Any) -> bool:  # noqa: ANN401
    """Whether a column of this type holds numbers or truth values."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def is_whole(kind: Any) -> bool:  # noqa: ANN401
    """Whether a column of this type holds whole numbers."""
    return bool(pa.types.is_integer(kind))


def is_bytes(kind: Any) -> bool:  # noqa: ANN401
    """Whether a column of this type holds bytes, such as those of a UUID."""
    return bool(
        pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def is_instant(kind: Any) -> bool:  # noqa: ANN401
    """Whether a column of this type holds times: instants, or seconds as numbers."""
    return bool(pa.types.is_timestamp(kind) or is_number(kind))


def numbers(column: Any) -> Numbers:  # noqa: ANN401
    """Read numbers; truth values count 0 and 1, and a text is read as the number it spells."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    broken = np.zeros(len(column), dtype=np.bool_)
    if is_text(column.type):
        column, broken = _spelled(column)
    elif pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return Numbers(np.array(values, dtype=np.float64), missing, broken)


def _spelled(column: Any) -> tuple[Any, Bools]:  # noqa: ANN401
    try:
        read = pc.cast(column, pa.float64())
        return read, np.zeros(len(column), dtype=np.bool_)
    except pa.ArrowInvalid:
        pass
    values = [None if text is None else _number(text) for text in column.to_pylist()]
    broken = np.array([math.isinf(v) and v < 0 if v is not None else False for v in values])
    return pa.array(values, pa.float64()), broken.astype(np.bool_)


def _number(text: str) -> float:
    """Read one number; minus infinity, which is refused anyway, stands for none."""
    try:
        return float(text.replace("_", "?"))
    except ValueError:
        return -math.inf


def whole(column: Any) -> Numbers:  # noqa: ANN401
    """Read whole numbers below 2**53; any other is broken."""
    found = numbers(column)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(found.values) < 2.0**53) & (found.values == np.floor(found.values))
    return found._replace(broken=found.broken | ~(fits | found.missing))


def flags(column: Any) -> Numbers:  # noqa: ANN401
    """Read truth values, written as such, as 0 and 1, or as words."""
    if not is_text(column.type):
        found = numbers(column)
        fits = (found.values == 0.0) | (found.values == 1.0)
        return found._replace(broken=~(fits | found.missing))
    read = [None if text is None else _TRUTH.get(text.lower(), 2.0) for text in column.to_pylist()]
    values = np.array([math.nan if v is None else v for v in read], dtype=np.float64)
    return Numbers(values, np.isnan(values), values == 2.0)


def seconds(column: Any) -> Numbers:  # noqa: ANN401
    """Read times as seconds since 1970; without a zone they are in UTC."""
    if pa.types.is_timestamp(column.type):
        missing = column.is_null().to_numpy(zero_copy_only=False)
        ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        values = ticks / _PER_SECOND[column.type.unit]
        values[missing] = np.nan
        found = Numbers(values, missing, np.zeros(len(values), dtype=np.bool_))
    else:
        found = numbers(column)
        if is_text(column.type) and found.broken.any():
            found = _dated(column)
    with np.errstate(invalid="ignore"):
        fits = np.abs(found.values) < _LATEST
    return found._replace(broken=found.broken | ~(fits | found.missing))


def _dated(column: Any) -> Numbers:  # noqa: ANN401
    values = [math.nan if text is None else _moment(text) for text in column.to_pylist()]
    read = np.array(values, dtype=np.float64)
    return Numbers(read, np.isnan(read), np.isinf(read))


def _moment(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return _number(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def codes(column: Any, levels: Sequence[str]) -> Ints:  # noqa: ANN401
    """Give every text's place among the levels; ``UNKNOWN`` or ``NOTHING`` where it has none."""
    texts = column.cast(pa.string())
    found = pc.index_in(texts, value_set=pa.array(levels, pa.string())).fill_null(UNKNOWN)
    places = np.array(found.to_numpy(zero_copy_only=False), dtype=np.int64)
    places[column.is_null().to_numpy(zero_copy_only=False)] = NOTHING
    return places


def names(column: Any) -> Ints:  # noqa: ANN401
    """Give every text or whole number as a number that is equal where it is.

    Notes
    -----
    Whole numbers stand for themselves. Texts are hashed to 63 bits, the same in every batch
    and process: among 10**7 texts two are given one number with a chance of 5e-6.
    """
    if pa.types.is_integer(column.type):
        return np.array(column.fill_null(UNKNOWN).cast(pa.int64(), safe=False))
    texts = column.cast(pa.large_string() if is_text(column.type) else pa.large_binary())
    texts = texts.fill_null("")
    lengths = np.array(pc.binary_length(texts), dtype=np.int64)
    data = pa.concat_arrays([texts])
    _, at, content = data.buffers()
    starts = np.frombuffer(at, dtype="<i8")[data.offset : data.offset + len(data)]
    letters = np.frombuffer(content, dtype=np.uint8) if content else np.zeros(0, dtype=np.uint8)
    found = np.zeros(len(data), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        mine = np.flatnonzero(lengths == length)
        width = max(-(-length // 8) * 8, 8)
        cells = np.zeros((len(mine), width), dtype=np.uint8)
        if length:
            cells[:, :length] = letters[starts[mine][:, None] + np.arange(length)]
        found[mine] = _mixed(cells.view("<u8"), length)
    return (found >> np.uint64(1)).astype(np.int64)


def _mixed(words: np.ndarray, length: int) -> np.ndarray:
    """Mix words one by one, with the finalizer of SplitMix64 (Steele, Lea & Flood, 2014)."""
    state = np.full(len(words), length, dtype=np.uint64)
    for column in range(words.shape[1]):
        state = (state ^ words[:, column]) + _ODD
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state ^= state >> np.uint64(31)
    return state


class Seen:
    """Which numbers came before, in memory of 8 bytes each.

    Notes
    -----
    Sorted runs, merged where one is not longer than the next, so that n numbers cost
    O(n log**2 n).
    """

    def __init__(self) -> None:
        self._runs: list[Ints] = []

    def add(self, found: Ints) -> Bools:
        """Add numbers; mark those that came before, in an earlier call or in this one."""
        order = np.argsort(found, kind="stable")
        ordered = found[order]
        again = np.zeros(len(found), dtype=np.bool_)
        again[order[1:]] = ordered[1:] == ordered[:-1]
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, found), len(run) - 1)
            again |= run[at] == found
        if len(ordered):
            self._runs.append(ordered)
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort(kind="stable")
            self._runs.append(merged)
        return again
