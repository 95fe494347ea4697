"""When a slot's message goes out: local time of day to an instant, right across DST."""

from datetime import UTC, datetime, time, timedelta
from functools import cache, lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from bandit.actions import Level
from bandit.errors import InvalidInputError


def check_zone(name: str) -> None:
    """Refuse a name that is no IANA time zone.

    Raises
    ------
    InvalidInputError
        With the path ``time_zone``.
    """
    _zone(name)


def send_at(slot: Level, decided_at: datetime, time_zone: str) -> datetime:
    """Give the instant, in UTC, at which a slot's message goes out.

    Parameters
    ----------
    slot
        With a local time of day, or without one: at once.
    decided_at
        Aware instant of the decision.
    time_zone
        IANA name of the customer's zone; empty means UTC.

    Returns
    -------
    The next instant, at or after ``decided_at``, of the slot's time of day. A time that DST
    skips goes out as much later as the clock was moved; of a time that DST repeats only the
    first counts.

    Raises
    ------
    InvalidInputError
        For an unknown zone.

    Examples
    --------
    >>> night = datetime(2026, 3, 28, 22, tzinfo=UTC)
    >>> send_at(Level(name="early", time="02:30"), night, "Europe/Berlin").isoformat()
    '2026-03-29T01:30:00+00:00'
    """
    if slot.time is None:
        return decided_at.astimezone(UTC)
    zone = _zone(time_zone)
    clock = time(int(slot.time[:2]), int(slot.time[3:]))
    day = decided_at.astimezone(zone).date()
    for ahead in range(3):
        wall = datetime.combine(day + timedelta(days=ahead), clock, tzinfo=zone)
        instant = wall.astimezone(UTC)  # fold=0: the first of two, the later of a gap
        if instant >= decided_at:
            return instant
    raise AssertionError("a day has at most 48 hours")


def send_at_us(slot: Level, decided_at: int, time_zone: str) -> int:
    """Give ``send_at`` in microseconds since 1970, remembering the last answer of every slot.

    Between two of its times a slot has one next time, so most calls only look it up.
    """
    if slot.time is None:
        return decided_at
    known = _NEXT.get((slot.time, time_zone))
    if known is None or not known[0] <= decided_at <= known[1]:
        moment = _EPOCH + timedelta(microseconds=decided_at)
        instant = send_at(slot, moment, time_zone)
        known = decided_at, (instant - _EPOCH) // timedelta(microseconds=1)
        if len(_NEXT) >= _MOST_NEXT:
            _NEXT.clear()
        _NEXT[slot.time, time_zone] = known
    return known[1]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_NEXT = 10_000
_NEXT: dict[tuple[str, str], tuple[int, int]] = {}
"""For a slot's time in a zone: from when to when the second number is the next time."""


@cache
def _known_zones() -> frozenset[str]:
    """Give the zones that mean the same on every machine (``localtime`` does not)."""
    return frozenset(available_timezones()) - {"localtime", "posixrules", "Factory"}


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name if name in _known_zones() else f"unknown {name}" if name else "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInputError(
            f"{name[:64]!r} is no IANA time zone such as Europe/Berlin", field="time_zone"
        ) from None
