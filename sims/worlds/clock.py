"""When customers come: a Poisson or even process whose rate repeats every week."""

import threading

import numpy as np

from bandit.kernels.compiling import Floats
from sims.worlds import draws
from sims.worlds.world import Traffic

HOUR, DAY, WEEK = 3_600.0, 86_400.0, 604_800.0
_MONDAY = 4 * DAY  # 1970 began on a Thursday
_BLOCK = 4_096


class Clock:
    """Times of visits by their number.

    Parameters
    ----------
    traffic
        Rate and profile.
    seed, replication
        Draw the gaps.

    Notes
    -----
    A Poisson process of rate 1, stretched by the inverse of the cumulated rate (Cinlar,
    Introduction to Stochastic Processes, 1975, section 4.7). Visit number i needs the gaps of
    all before it: they are summed in blocks whose ends are kept. Thread-safe.
    """

    def __init__(self, traffic: Traffic, seed: int, replication: int) -> None:
        self.begin = traffic.begin
        self._is_even = traffic.spacing == "even"
        self._stream = draws.stream("gaps", seed, replication)
        hours = np.array(traffic.hours or (1.0,) * 24)
        days = np.array(traffic.weekdays or (1.0,) * 7)
        busy = np.outer(days, hours).ravel()
        rates = traffic.per_hour * busy * (len(busy) / busy.sum())
        self._counts = np.concatenate([[0.0], np.cumsum(rates)])
        self._week = np.floor((self.begin - _MONDAY) / WEEK) * WEEK + _MONDAY
        self._first = self._count(self.begin)
        self._ends = [0.0]
        self._lock = threading.Lock()

    def times(self, start: int, stop: int) -> Floats:
        """Give the times of visits ``start`` to ``stop - 1``, seconds since 1970."""
        if self._is_even:
            counts = np.arange(start, stop, dtype=np.float64)
        else:
            first, last = start // _BLOCK, (max(stop, start + 1) - 1) // _BLOCK
            parts = [self._block(b) for b in range(first, last + 1)]
            counts = np.concatenate(parts)[start - first * _BLOCK :][: stop - start]
        return self._moments(counts + self._first)

    def hours(self, times: Floats) -> Floats:
        """Give the hour of the day in [0, 24), UTC."""
        return np.mod(times, DAY) / HOUR

    def weekdays(self, times: Floats) -> Floats:
        """Give the day of the week, 0 for Monday, UTC."""
        return np.floor(np.mod(times - _MONDAY, WEEK) / DAY)

    def days(self, times: Floats) -> Floats:
        """Give the days since the start."""
        return (times - self.begin) / DAY

    def _block(self, number: int) -> Floats:
        """Give the cumulated gaps of one block."""
        with self._lock:
            while len(self._ends) <= number:
                at = len(self._ends) - 1
                self._ends.append(float(self._gaps(at, self._ends[at])[-1]))
            begin = self._ends[number]
        return self._gaps(number, begin)

    def _gaps(self, number: int, begin: float) -> Floats:
        numbers = np.arange(number * _BLOCK, (number + 1) * _BLOCK)
        gaps = draws.as_exponentials(draws.uniforms(self._stream, numbers, 1)[:, 0])
        gaps[0] += begin
        return np.cumsum(gaps)

    def _count(self, time: float) -> float:
        """Give how many visits are expected from the week's beginning until a time in it."""
        passed = (time - self._week) / HOUR
        return float(np.interp(passed, np.arange(len(self._counts)), self._counts))

    def _moments(self, counts: Floats) -> Floats:
        """Invert the cumulated rate."""
        total = self._counts[-1]
        weeks = np.floor(counts / total)
        rest = counts - weeks * total
        hour = np.searchsorted(self._counts, rest, side="right") - 1
        hour = np.minimum(hour, len(self._counts) - 2)
        rate = self._counts[hour + 1] - self._counts[hour]
        share = np.minimum((rest - self._counts[hour]) / np.where(rate > 0, rate, 1.0), 1.0)
        moments: Floats = self._week + weeks * WEEK + (hour + share) * HOUR
        return moments
