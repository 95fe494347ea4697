"""What customers really think of every action: log-odds or mean values."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from bandit.actions import FACTORS
from bandit.kernels.compiling import Floats, Ints
from bandit.spec import ExperimentSpec
from sims.kernels import worlds as kernels
from sims.worlds import draws
from sims.worlds.clock import Clock
from sims.worlds.conditions import Conditions, Visits
from sims.worlds.effects import Effect, Generated
from sims.worlds.walks import Walk
from sims.worlds.world import World

_PARTS = [part for size in range(4) for part in combinations(range(3), size)]
"""Sets of factors: none, each, each pair, all."""


class Truth:
    """The linear predictor of a world for one experiment and replication.

    Parameters
    ----------
    world, spec
        A world that fits the experiment.
    clock
        Of the same replication.
    seed, replication
        Draw walks, and weights that every replication has anew.

    Notes
    -----
    Every effect adds to one cell: a combination of the levels it names. An action gets the sum of
    its cells, of which it has at most eight. Effects with the same condition share a column.
    """

    def __init__(
        self, world: World, spec: ExperimentSpec, clock: Clock, *, seed: int, replication: int
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._effects: list[Effect] = []
        self._conditions = Conditions(world, spec, clock)
        self._walks: dict[int, Walk] = {}
        self._encoder = self._conditions.encoder
        self._table = spec.actions.table.astype(np.int64)
        self._sizes = [len(levels) for levels in spec.actions.factors]
        self._offsets: dict[tuple[int, ...], int] = {}
        cells: list[list[tuple[int, float]]] = [[(self._cell({}), world.base)]]
        places: dict[object, int] = {}
        for i, effect in enumerate(world.effects):
            place = places.setdefault(_condition(effect, i), len(cells))
            if place == len(cells):
                cells.append([])
                self._effects.append(effect)
                if effect.walk:
                    self._walks[place - 1] = Walk(effect.walk, clock.begin, i, seed, replication)
            cells[place].append((self._cell(self._named(effect)), _constant(effect)))
        self._generated = world.generated
        if world.generated is not None:
            cells += self._drawn(world.generated, seed, replication)
        self._starts = np.cumsum([0, *map(len, cells)])
        self._cells = np.array([cell for column in cells for cell, _ in column], dtype=np.int64)
        self._weights = np.array([weight for column in cells for _, weight in column])
        gather = [self._of_actions(part) for part in self._offsets]
        self._gather = np.ascontiguousarray(np.stack(gather, axis=1))

    def scores(self, rows: Floats, times: Floats, segments: Ints) -> Floats:
        """Give log-odds or means of every action, shape (n, k)."""
        active = self._active(rows, times, segments)
        out = np.empty((len(rows), len(self._table)))
        kernels.fill_scores(active, self._starts, self._cells, self._weights, self._gather, out)
        return out

    def _active(self, rows: Floats, times: Floats, segments: Ints) -> Floats:
        """Give how much of every column's condition each row has, (n, columns)."""
        visits = Visits(rows, times, segments)
        active = np.empty((len(rows), len(self._starts) - 1))
        active[:, 0] = 1.0
        encoded = self._encoder.encode(np.ascontiguousarray(rows))
        for place, effect in enumerate(self._effects):
            column = self._conditions.column(effect, visits, encoded)
            active[:, place + 1] = column * self._factor(place, effect, times)
        if self._generated is not None:
            first, width = len(self._effects) + 1, self._encoder.width
            active[:, first : first + width] = encoded
            if self._generated.turn is not None:
                turns = 0.25 * self._clock.days(times) / self._generated.turn
                active[:, first + width :] = encoded * np.sin(2 * np.pi * turns)[:, None]
                active[:, first : first + width] *= np.cos(2 * np.pi * turns)[:, None]
        return active

    def _factor(self, place: int, effect: Effect, times: Floats) -> Floats | float:
        """Give what a changing effect adds at each time; 1 for one whose weight is constant."""
        if not _is_changing(effect):
            return 1.0
        value = effect.adds + effect.per_day * self._clock.days(times)
        if place in self._walks:
            value = value + self._walks[place].at(times)
        return value

    def _named(self, effect: Effect) -> Mapping[int, int]:
        """Give the levels that an effect names, by factor."""
        named = {}
        for column, (factor, levels) in enumerate(
            zip(FACTORS, self._spec.actions.factors, strict=True)
        ):
            name = getattr(effect, factor)
            if name is not None:
                named[column] = [level.name for level in levels].index(name)
        return named

    def _cell(self, named: Mapping[int, int]) -> int:
        """Give the cell of a combination of levels."""
        part = tuple(sorted(named))
        return self._offset(part) + int(
            np.ravel_multi_index([named[c] for c in part], [self._sizes[c] for c in part])
            if part
            else 0
        )

    def _offset(self, part: tuple[int, ...]) -> int:
        if part not in self._offsets:
            used = sum(self._count(other) for other in self._offsets)
            self._offsets[part] = used
        return self._offsets[part]

    def _count(self, part: tuple[int, ...]) -> int:
        return int(np.prod([self._sizes[c] for c in part], dtype=np.int64))

    def _of_actions(self, part: tuple[int, ...]) -> Ints:
        """Give every action's cell of one part."""
        at = np.full(len(self._table), self._offsets[part])
        if part:
            levels = tuple(self._table[:, c] for c in part)
            at = at + np.ravel_multi_index(levels, [self._sizes[c] for c in part])
        return at

    def _drawn(
        self, generated: Generated, seed: int, replication: int
    ) -> list[list[tuple[int, float]]]:
        """Draw random weights: a column of cells for every feature, intercept first."""
        own = (seed, replication) if generated.each_replication else ()
        columns: list[list[tuple[int, float]]] = []
        for phase in range(1 if generated.turn is None else 2):
            drawn: list[list[tuple[int, float]]] = [[] for _ in range(self._encoder.width)]
            for part in _PARTS[1:]:
                scales = _scales(generated, len(part))
                first, count = self._offset(part) if any(scales) else 0, self._count(part)
                for feature, column in enumerate(drawn):
                    scale = scales[min(feature, 1)]
                    if scale:
                        name = draws.stream(f"weights {part} {phase}", generated.seed, *own)
                        weights = draws.normals(name, np.array([feature]), count)[0]
                        column += zip(range(first, first + count), scale * weights, strict=True)
            columns += drawn
        return columns


def _scales(generated: Generated, size: int) -> tuple[float, float]:
    """Give the scales of weights of the intercept and of the context, for parts of one size."""
    return {
        1: (generated.levels, generated.context),
        2: (generated.pairs, generated.pair_context),
        3: (generated.actions, generated.action_context),
    }[size]


def _is_changing(effect: Effect) -> bool:
    return bool(effect.per_day or effect.walk)


def _constant(effect: Effect) -> float:
    """Give the weight of an effect; that of a changing one stands in its column."""
    return 1.0 if _is_changing(effect) else effect.adds


def _condition(effect: Effect, number: int) -> object:
    """Give what effects that share a column have in common."""
    if _is_changing(effect):
        return number
    when = tuple(sorted((effect.when or {}).items()))
    times = effect.hours, effect.weekdays, effect.begins, effect.ends
    return when, effect.slope, effect.segment, times
