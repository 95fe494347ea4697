"""Send times: DST gaps and repeats, far zones, and a walk through the minutes."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bandit.actions import Level
from bandit.errors import InvalidInputError
from bandit.timing import check_zone, send_at, send_at_us

MINUTE = timedelta(minutes=1)
ZONES = (
    "UTC",
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/Havana",
    "America/New_York",
    "America/Santiago",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Asia/Tokyo",
    "Atlantic/Azores",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Dublin",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Pacific/Kiritimati",
    "Pacific/Niue",
)


def slot(clock: str) -> Level:
    return Level(name="slot", time=clock)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "clock", "decided_at", "goes_out"),
    [
        ("Europe/Berlin", "09:00", "2026-01-10 07:00", "2026-01-10 08:00"),
        ("Europe/Berlin", "09:00", "2026-01-10 08:00", "2026-01-10 08:00"),  # just now
        ("Europe/Berlin", "09:00", "2026-01-10 08:01", "2026-01-11 08:00"),
        ("Europe/Berlin", "09:00", "2026-03-28 12:00", "2026-03-29 07:00"),  # over the change
        ("Europe/Berlin", "02:30", "2026-03-28 22:00", "2026-03-29 01:30"),  # skipped: 03:30
        ("Europe/Berlin", "02:30", "2026-10-24 22:00", "2026-10-25 00:30"),  # repeated: first
        ("Europe/Berlin", "02:30", "2026-10-25 00:45", "2026-10-26 01:30"),  # ... is over
        ("America/Sao_Paulo", "00:30", "2017-10-15 01:00", "2017-10-15 03:30"),  # midnight gap
        ("Australia/Lord_Howe", "02:15", "2026-10-03 12:00", "2026-10-03 15:45"),  # half an hour
        ("Asia/Kathmandu", "00:00", "2026-06-01 12:00", "2026-06-01 18:15"),
        ("Pacific/Kiritimati", "08:00", "2026-06-01 12:00", "2026-06-01 18:00"),
        ("Pacific/Niue", "08:00", "2026-06-01 12:00", "2026-06-01 19:00"),
        ("Pacific/Apia", "12:00", "2011-12-29 23:00", "2011-12-30 22:00"),  # a day that was not
        ("", "08:00", "2026-06-01 12:00", "2026-06-02 08:00"),
    ],
)
def test_a_slot_goes_out_when_the_customers_clock_shows_it(
    zone: str, clock: str, decided_at: str, goes_out: str
):
    assert send_at(slot(clock), utc(decided_at), zone) == utc(goes_out)


def test_a_slot_without_a_time_goes_out_at_once_in_utc():
    decided_at = datetime(2026, 6, 1, 12, tzinfo=ZoneInfo("Asia/Tokyo"))
    instant = send_at(Level(name="now"), decided_at, "Europe/Berlin")
    assert instant == decided_at
    assert instant.tzinfo is UTC


@pytest.mark.parametrize(
    "zone",
    [
        "Mars/Olympus",
        "Europe",
        "../../etc/passwd",
        "/etc/passwd",
        "Europe/Berlin\0",
        "x" * 9_999,
        " ",
    ],
)
def test_what_is_no_zone_is_refused(zone: str):
    for ask in (check_zone, lambda z: send_at(slot("08:00"), utc("2026-06-01 12:00"), z)):
        with pytest.raises(InvalidInputError) as caught:
            ask(zone)
        assert caught.value.field == "time_zone"
        assert len(str(caught.value)) < 200


def is_skipped(day: datetime, clock: time, zone: ZoneInfo) -> bool:
    wall = datetime.combine(day, clock, tzinfo=zone)
    return wall.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != wall.replace(tzinfo=None)


@given(
    zone=st.sampled_from(ZONES),
    clock=st.times().map(lambda t: t.replace(second=0, microsecond=0)),
    decided_at=st.integers(788_918_400, 2_114_380_800).map(
        lambda s: datetime.fromtimestamp(s, UTC)
    ),
)
@example(zone="Europe/Berlin", clock=time(2, 30), decided_at=utc("2026-03-28 22:00"))
@example(zone="Europe/Berlin", clock=time(2, 30), decided_at=utc("2026-10-25 00:31"))
@example(zone="Pacific/Apia", clock=time(12), decided_at=utc("2011-12-29 23:00"))
def test_it_is_the_first_instant_that_shows_the_time(zone: str, clock: time, decided_at: datetime):
    here = ZoneInfo(zone)
    instant = send_at(slot(f"{clock:%H:%M}"), decided_at, zone)
    assert decided_at <= instant <= decided_at + timedelta(hours=26)
    shown = instant.astimezone(here)
    if shown.time() != clock:
        days = (shown, shown - timedelta(days=1))
        assert any(is_skipped(day, clock, here) for day in days)
    walk = decided_at.replace(second=0, microsecond=0)
    while (walk := walk + MINUTE) < instant:
        passed = walk.astimezone(here)
        assert passed.time() != clock or passed.fold == 1  # the second showing does not count


@given(
    zone=st.sampled_from(ZONES),
    clock=st.sampled_from(["02:30", "09:00", "23:59"]),
    moments=st.lists(st.integers(1_774_000_000, 1_793_000_000), min_size=1, max_size=5),
)
def test_what_is_remembered_is_what_would_be_computed(zone: str, clock: str, moments: list[int]):
    for moment in moments:
        for at in (moment, moment + 1, moment + 3_600):
            expected = send_at(slot(clock), datetime.fromtimestamp(at, UTC), zone)
            assert send_at_us(slot(clock), at * 10**6, zone) == expected.timestamp() * 10**6
    assert send_at_us(Level(name="now"), 123, zone) == 123
