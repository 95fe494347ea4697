"""The one place that reads the time, so that everything else can be given another."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], int]
"""Gives microseconds since 1970, UTC."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def system_clock() -> int:
    """Give the machine's time in microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


def to_datetime(us: int) -> datetime:
    """Turn microseconds since 1970 into an aware instant, exactly."""
    return _EPOCH + timedelta(microseconds=us)


def to_us(instant: datetime) -> int:
    """Turn an aware instant into microseconds since 1970, exactly."""
    return (instant - _EPOCH) // timedelta(microseconds=1)
