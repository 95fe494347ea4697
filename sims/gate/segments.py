"""Segments: kinds of customers that the gate looks at one by one.

Every level of a category and all its other values together, both values of a flag, the lower and
the upper half of a number, each quarter of a cycle; and of every field those in whom it is
missing.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bandit.context import OTHER, ContextField
from bandit.kernels.compiling import Bools, Floats
from bandit.spec import ExperimentSpec

MOST = 500
"""Segments looked at; fields beyond are left out."""


class Segment(NamedTuple):
    """One kind of customers: a name, and who belongs to it by the values of one field."""

    name: str
    column: int
    holds: Callable[[Floats], Bools]

    def members(self, rows: Floats) -> Bools:
        """Mark the rows that belong to it."""
        return self.holds(rows[:, self.column])


def segments_of(spec: ExperimentSpec, rows: Floats) -> tuple[Segment, ...]:
    """Give the segments of an experiment; ``rows`` say where the middle of a number lies."""
    found: list[Segment] = []
    for column, field in enumerate(spec.context):
        for name, holds in _parts(field, rows[:, column]):
            found.append(Segment(f"{field.name} {name}", column, holds))
    return tuple(found[:MOST])


def _parts(field: ContextField, values: Floats) -> Iterator[tuple[str, Callable[[Floats], Bools]]]:
    if field.kind == "category":
        for place, level in enumerate(field.levels):
            yield f"= {level}"[:60], _equal(float(place))
        yield "is none of the levels", _equal(OTHER)
    elif field.kind == "flag":
        yield "= yes", _equal(1.0)
        yield "= no", _equal(0.0)
    elif field.kind == "cyclic":
        quarter = (field.period or 1.0) / 4.0
        for i in range(4):
            low, high = i * quarter, (i + 1) * quarter
            yield f"in [{low:g}, {high:g})", _between(low, high)
    else:
        known = values[~np.isnan(values)]
        middle = float(np.median(known)) if known.size else 0.0
        yield f"below {middle:.4g}", _between(-np.inf, middle)
        yield f"from {middle:.4g}", _between(middle, np.inf)
    yield "missing", np.isnan


def _equal(wanted: float) -> Callable[[Floats], Bools]:
    return lambda values: np.asarray(values == wanted)


def _between(low: float, high: float) -> Callable[[Floats], Bools]:
    return lambda values: np.asarray((values >= low) & (values < high))
