"""Who comes: contexts of customers by their numbers."""

from collections.abc import Sequence

import numpy as np

from bandit.context import ContextField
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.spec import ExperimentSpec
from sims.worlds import draws
from sims.worlds.clock import Clock
from sims.worlds.effects import WEEKDAYS
from sims.worlds.traits import Trait
from sims.worlds.world import World

NO_SEGMENT = -1


class Customers:
    """The customers of one replication.

    Parameters
    ----------
    world, spec
        A world that fits the experiment.
    clock
        For traits that follow the time.
    rows
        Contexts of real customers in schema order, (m, fields); None: all is drawn from traits.
    seed, replication
        Draw them.

    Notes
    -----
    What a customer is like is drawn by the customer's number, so that who comes again is the
    same; what a visit is like by the visit's.
    """

    def __init__(  # noqa: PLR0913
        self,
        world: World,
        spec: ExperimentSpec,
        clock: Clock,
        *,
        rows: Floats | None,
        seed: int,
        replication: int,
    ) -> None:
        self._world = world
        self._fields = spec.context
        self._clock = clock
        self._rows = rows
        purposes = ("who", "kind", "traits", "visit", "row")
        self._streams = {p: draws.stream(p, seed, replication) for p in purposes}
        own = {trait.field: trait for trait in world.traits}
        kinds = [{t.field: t for t in segment.traits} for segment in world.segments]
        self._traits = [[{**own, **kind}.get(f.name) for f in spec.context] for kind in kinds]
        self._traits.append([own.get(f.name) for f in spec.context])
        self._shares = np.cumsum([segment.share for segment in world.segments])
        self._has_visits = any(t is not None and t.each_visit for ts in self._traits for t in ts)

    def numbers(self, visits: Ints) -> Ints:
        """Give the number of the customer of every visit."""
        count = self._world.traffic.customers
        if count is None:
            return visits
        return (draws.uniforms(self._streams["who"], visits, 1)[:, 0] * count).astype(np.int64)

    def segments(self, customers: Ints) -> Ints:
        """Give the place of every customer's segment, -1 for none."""
        if not len(self._shares):
            return np.full(len(customers), NO_SEGMENT)
        drawn = draws.uniforms(self._streams["kind"], customers, 2)[:, 0]
        found = np.searchsorted(self._shares, drawn, side="right")
        return np.where(found < len(self._shares), found, NO_SEGMENT)

    def bots(self, customers: Ints) -> Bools:
        """Mark the customers that respond to everything."""
        if not self._world.bots:
            return np.zeros(len(customers), dtype=np.bool_)
        drawn = draws.uniforms(self._streams["kind"], customers, 2)[:, 1]
        return np.asarray(drawn < self._world.bots)

    def rows(self, customers: Ints, visits: Ints, times: Floats) -> Floats:
        """Give contexts in schema order, (n, fields)."""
        n, width = len(customers), len(self._fields)
        rows = np.full((n, width), np.nan)
        if not width:
            return rows
        if self._rows is not None:
            drawn = draws.uniforms(self._streams["row"], customers, 1)[:, 0]
            rows[:] = self._rows[(drawn * len(self._rows)).astype(np.int64)]
        own = draws.uniforms(self._streams["traits"], customers, 2 * width)
        anew = (
            draws.uniforms(self._streams["visit"], visits, 2 * width) if self._has_visits else own
        )
        segments = self.segments(customers)
        for kind, traits in enumerate(self._traits):
            is_last = kind == len(self._traits) - 1
            members = segments == (NO_SEGMENT if is_last else kind)
            for place, trait in enumerate(traits):
                if trait is not None:
                    drawn = (anew if trait.each_visit else own)[members, 2 * place : 2 * place + 2]
                    rows[members, place] = self._draw(place, trait, drawn, times[members])
                elif self._rows is None and self._world.generated is not None:
                    rows[members, place] = _uniform(self._fields[place], own[members, 2 * place])
        if self._world.wheel is not None:
            self._turn(rows, own)
        return rows

    def _draw(self, place: int, trait: Trait, drawn: Floats, times: Floats) -> Floats:
        """Give one field of some customers from two uniforms each."""
        field, u = self._fields[place], drawn[:, 0].copy()
        if trait.clock is not None:
            values = self._told(field, trait.clock, times)
        elif trait.levels is not None:
            weights = np.cumsum(list(trait.levels.values()))
            found = np.searchsorted(weights / weights[-1], u, side="right")
            positions = [float(field.levels.index(name)) for name in trait.levels]
            values = np.array(positions)[np.minimum(found, len(positions) - 1)]
        elif trait.share is not None:
            values = (u < trait.share).astype(np.float64)
        else:
            values = _number(trait, u)
        return np.where(drawn[:, 1] < trait.missing, np.nan, values)

    def _told(self, field: ContextField, clock: str, times: Floats) -> Floats:
        if clock == "hour":
            return self._clock.hours(times)
        days = self._clock.weekdays(times)
        if field.kind != "category":
            return days
        positions = [float(field.levels.index(name)) for name in WEEKDAYS]
        return np.array(positions)[days.astype(np.int64)]

    def _turn(self, rows: Floats, own: Floats) -> None:
        """Place customers of the wheel in the unit disc: the radius is the root of a uniform."""
        places = [[f.name for f in self._fields].index(name) for name in self._wheel_fields]
        radius, angle = np.sqrt(own[:, 2 * places[0]]), 2 * np.pi * own[:, 2 * places[1]]
        rows[:, places[0]] = radius * np.cos(angle)
        rows[:, places[1]] = radius * np.sin(angle)

    @property
    def _wheel_fields(self) -> Sequence[str]:
        return () if self._world.wheel is None else self._world.wheel.fields


def _number(trait: Trait, u: Floats) -> Floats:
    if trait.mean is not None and trait.sd is not None:
        values = trait.mean + trait.sd * draws.as_normals(u)
    elif trait.low is not None and trait.high is not None:
        low, high = (np.log(v) if trait.log else v for v in (trait.low, trait.high))
        values = low + u * (high - low)
    else:
        raise AssertionError(trait)
    return draws.exponentials_of(values) if trait.log else values


def _uniform(field: ContextField, u: Floats) -> Floats:
    """Draw a field that nothing is said about."""
    if field.kind == "category":
        return np.floor(u * len(field.levels))
    if field.kind == "flag":
        return (u < 0.5).astype(np.float64)
    low, high = field.bounds or (0.0, field.period or 0.0)
    return low + u * (high - low)
