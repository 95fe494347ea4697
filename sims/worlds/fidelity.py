"""How well a world reproduces what was observed: rates by level and decile, loss, counts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from bandit.actions import FACTORS
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats
from bandit.spec import ExperimentSpec
from sims.worlds.course import Arrivals, Course
from sims.worlds.feedback import Feedback
from sims.worlds.table import Table
from sims.worlds.world import World

SHOWN, JUDGED = 0.95, 0.999
MOST_OUTSIDE = 0.05
_BLOCK = 8_192
_FEW = 30


class Line(NamedTuple):
    """One group of rows: what came of them, and what the world expects.

    Attributes
    ----------
    of, name
        Such as ``channel`` and ``email``, or ``decile`` and ``3``.
    rows
        How many.
    observed, low, high
        Mean outcome with its 95 % interval.
    expected
        Mean outcome in the world.
    is_reproduced
        Whether what is expected lies in the 99.9 % interval of what was observed.
    """

    of: str
    name: str
    rows: int
    observed: float
    low: float
    high: float
    expected: float
    is_reproduced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How well a world reproduces a log.

    Parameters
    ----------
    rows
        Of the log.
    is_logistic
        Whether losses are log-losses; else they are mean squared errors.
    loss, constant_loss
        Of the world, and of the log's own mean for every row.
    observed, expected
        Sum of the outcomes.
    lines
        All rows, and by factor level, decile of what is expected, category and flag.
    cells, cells_inside
        Actions with 30 rows or more, and those whose 95 % interval holds what is expected.
    """

    rows: int
    is_logistic: bool
    loss: float
    constant_loss: float
    observed: float
    expected: float
    lines: tuple[Line, ...]
    cells: int
    cells_inside: int

    @property
    def outside(self) -> int:
        """Lines that are not reproduced."""
        return sum(not line.is_reproduced for line in self.lines)

    @property
    def is_reproduced(self) -> bool:
        """Whether the world beats a constant, and at most 5 % of the lines are not reproduced."""
        return self.loss < self.constant_loss and self.outside <= MOST_OUTSIDE * len(self.lines)


def compare(world: World, spec: ExperimentSpec, table: Table) -> Fidelity:
    """Compare a world with the rows of a log, best with rows that it was not fitted to.

    Raises
    ------
    InvalidInputError
        If the world does not fit the experiment, or outcomes are none of a logistic world's.
    """
    expected = _expected(world, spec, table)
    y = table.outcomes
    is_logistic = world.response == "logistic"
    loss, constant = _losses(world, spec, y, expected)
    lines = tuple(_line(of, name, y[of_group], expected[of_group], is_rate=is_logistic)
                  for of, name, of_group in _groups(spec, table, expected))  # fmt: skip
    cells = [
        _line("action", str(a), y[table.actions == a], expected[table.actions == a],
              is_rate=is_logistic)
        for a in np.flatnonzero(np.bincount(table.actions, minlength=spec.actions.size) >= _FEW)
    ]  # fmt: skip
    return Fidelity(
        rows=len(y),
        is_logistic=is_logistic,
        loss=loss,
        constant_loss=constant,
        observed=float(y.sum()),
        expected=float(expected.sum()),
        lines=lines,
        cells=len(cells),
        cells_inside=sum(cell.low <= cell.expected <= cell.high for cell in cells),
    )


def _expected(world: World, spec: ExperimentSpec, table: Table) -> Floats:
    """Give what the world expects of every row's action, (n,)."""
    course = Course(world, spec)
    history = course.history()
    parts = []
    for start in range(0, len(table.actions), _BLOCK):
        rows, actions = table.rows[start : start + _BLOCK], table.actions[start : start + _BLOCK]
        n = len(actions)
        times = np.full(n, world.traffic.begin)
        arrivals = Arrivals(rows, times, np.zeros(n, dtype=np.int64), ())
        parts.append(course.expected(arrivals, 0, history)[np.arange(n), actions])
    return np.concatenate(parts)


def _losses(world: World, spec: ExperimentSpec, y: Floats, expected: Floats) -> tuple[float, float]:
    if world.response != "logistic":
        return float(np.square(y - expected).mean()), float(y.var())
    feedback = Feedback(world, spec)
    success, failure = spec.outcome.by_name[world.reward].weight, feedback.failure
    if not np.isin(y, (success, failure)).all():
        other = y[~np.isin(y, (success, failure))][0]
        raise InvalidInputError(
            f"a logistic world has outcomes of {failure:g} and {success:g}, got {other}",
            field="outcome",
        )
    hit = y == success
    p = np.clip(feedback.means(expected), 1e-12, 1 - 1e-12)
    share = min(max(hit.mean(), 1e-12), 1 - 1e-12)
    return _log_loss(hit, p), _log_loss(hit, np.full(len(y), share))


def _log_loss(hit: Bools, p: Floats) -> float:
    return float(-np.where(hit, np.log(p), np.log1p(-p)).mean())


def _groups(
    spec: ExperimentSpec, table: Table, expected: Floats
) -> Iterator[tuple[str, str, Bools]]:
    """Give the groups of rows that are compared."""
    yield "all", "rows", np.ones(len(table.actions), dtype=np.bool_)
    levels = spec.actions.table[table.actions]
    for at, (factor, given) in enumerate(zip(FACTORS, spec.actions.factors, strict=True)):
        if len(given) > 1:
            for i, level in enumerate(given):
                yield from _some(factor, level.name, levels[:, at] == i)
    order = np.argsort(np.argsort(expected, kind="stable"), kind="stable")
    for i in range(10):
        yield from _some("decile", str(i + 1), order * 10 // len(order) == i)
    for place, field in enumerate(spec.context):
        names = {"category": field.levels, "flag": ("no", "yes")}.get(field.kind, ())
        for i, name in enumerate(names):
            yield from _some(field.name, name, table.rows[:, place] == i)


def _some(of: str, name: str, members: Bools) -> Iterator[tuple[str, str, Bools]]:
    if members.sum() >= _FEW:
        yield of, name, members


def _line(of: str, name: str, y: Floats, expected: Floats, *, is_rate: bool) -> Line:
    mean = float(expected.mean())
    low, high = interval(y, SHOWN, is_rate=is_rate)
    least, most = interval(y, JUDGED, is_rate=is_rate)
    return Line(of, name, len(y), float(y.mean()), low, high, mean, least <= mean <= most)


def interval(y: Floats, level: float, *, is_rate: bool) -> tuple[float, float]:
    """Give an interval for a mean: Wilson's for outcomes of 0 and 1, else the normal one.

    Notes
    -----
    Source: Wilson, Probable inference, the law of succession, JASA 22, 1927.
    """
    z, n = float(ndtri(0.5 + level / 2)), len(y)
    mean = float(y.mean())
    if not is_rate or not np.isin(y, (0.0, 1.0)).all():
        half = z * float(y.std()) / math.sqrt(n)
        return mean - half, mean + half
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return middle - half, middle + half
