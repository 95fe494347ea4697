"""For whom and when an effect holds."""

from typing import NamedTuple

import numpy as np

from bandit.features import Encoder
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.spec import ExperimentSpec
from sims.worlds.clock import Clock
from sims.worlds.effects import WEEKDAYS, Effect, Wanted
from sims.worlds.world import World


class Visits(NamedTuple):
    """What conditions look at: contexts (n, fields), times (n,) and places of segments (n,)."""

    rows: Floats
    times: Floats
    segments: Ints


class Conditions:
    """Looks for whom effects hold.

    Parameters
    ----------
    world, spec
        A world that fits the experiment.
    clock
        Tells hour, weekday and day.

    Attributes
    ----------
    encoder
        Contexts to features, as the model sees them.
    """

    def __init__(self, world: World, spec: ExperimentSpec, clock: Clock) -> None:
        self.encoder = Encoder(spec.schema)
        self._fields = spec.context
        self._segments = [segment.name for segment in world.segments]
        self._clock = clock

    def column(self, effect: Effect, visits: Visits, encoded: Floats) -> Floats:
        """Give how much of an effect every visit has: 0 or 1, times its slope; shape (n,)."""
        holds = self._holds(effect, visits).astype(np.float64)
        if effect.slope is None:
            return holds
        return np.asarray(holds * encoded[:, self.encoder.names.index(effect.slope)])

    def _holds(self, effect: Effect, visits: Visits) -> Bools:
        rows, times, segments = visits
        holds = np.ones(len(rows), dtype=np.bool_)
        if effect.segment is not None:
            holds &= segments == self._segments.index(effect.segment)
        for name, wanted in (effect.when or {}).items():
            holds &= self._meets(name, wanted, rows)
        if effect.hours is not None:
            begin, end = effect.hours
            hour = self._clock.hours(times)
            late, early = hour >= begin, hour < end
            holds &= late & early if begin < end else late | early
        if effect.weekdays is not None:
            days = [WEEKDAYS.index(day) for day in effect.weekdays]
            holds &= np.isin(self._clock.weekdays(times), days)
        if effect.begins is not None:
            holds &= self._clock.days(times) >= effect.begins
        if effect.ends is not None:
            holds &= self._clock.days(times) < effect.ends
        return holds

    def _meets(self, name: str, wanted: Wanted, rows: Floats) -> Bools:
        place = [field.name for field in self._fields].index(name)
        column = rows[:, place]
        if isinstance(wanted, tuple):
            return np.asarray((column >= wanted[0]) & (column < wanted[1]))
        if isinstance(wanted, bool):
            return np.asarray(column == float(wanted))
        return np.asarray(column == self._fields[place].levels.index(wanted))
