"""What is known about the customer: a typed schema, and contexts as rows of numbers.

A context is kept as one float64 per declared field, in schema order: a number or cyclic
value as it came, a flag as 0 or 1, a category as the position of its level (-1 for one
never declared), NaN where the value is missing. That row is what the log stores, what a
packed batch carries and what ``bandit.features`` encodes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.actions import check_name
from bandit.errors import InvalidInputError

KINDS = ("number", "category", "flag", "cyclic")
MAX_FIELDS = 256
MAX_CATEGORY_LEVELS = 1_000
MAX_TEXT = 256
MAX_TURNS = 1e9
OTHER = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextField:
    """One typed field of the context.

    Parameters
    ----------
    name
        1 to 64 characters, unique in the schema.
    kind
        ``number``, ``category``, ``flag`` or ``cyclic``.
    bounds
        Numbers only: the (low, high) that are mapped to -1 and 1.
    scale
        Numbers only: ``linear``, or ``log1p`` for counts and amounts (low >= 0).
    outside
        Numbers only: ``clip`` a value outside the bounds, or ``reject`` the request.
    levels
        Categories only: the declared levels; anything else is "other".
    period
        Cyclic only: length of the cycle in the field's own unit, such as 24 for hours.
    required
        Refuse requests without this field; otherwise a missing value is legal and the
        model learns what its absence means.

    Raises
    ------
    InvalidInputError
        If the parameters do not fit the kind.
    """

    name: str
    kind: str
    bounds: tuple[float, float] | None = None
    scale: str = "linear"
    outside: str = "clip"
    levels: tuple[str, ...] = ()
    period: float | None = None
    required: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.kind not in KINDS:
            raise InvalidInputError(f"{self.kind!r} is none of {', '.join(KINDS)}", field="kind")
        self._check_number()
        self._check_category()
        if (self.period is not None) != (self.kind == "cyclic"):
            raise InvalidInputError("goes with kind = cyclic, and only there", field="period")
        if self.period is not None and not 0 < self.period < math.inf:
            raise InvalidInputError(f"must be positive, got {self.period}", field="period")

    def _check_number(self) -> None:
        if (self.bounds is not None) != (self.kind == "number"):
            raise InvalidInputError("go with kind = number, and only there", field="bounds")
        if self.scale not in ("linear", "log1p"):
            raise InvalidInputError(f"{self.scale!r} is neither linear nor log1p", field="scale")
        if self.outside not in ("clip", "reject"):
            raise InvalidInputError(f"{self.outside!r} is neither clip nor reject", field="outside")
        if self.bounds is None:
            for name, default in (("scale", "linear"), ("outside", "clip")):
                if getattr(self, name) != default:
                    raise InvalidInputError("goes with kind = number, and only there", field=name)
            return
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InvalidInputError(f"need low < high, got {self.bounds}", field="bounds")
        if not math.isfinite(high - low):
            raise InvalidInputError("are too far apart", field="bounds")
        if self.scale == "log1p" and (low < 0 or math.log((1 + high) / (1 + low)) < 1e-9):
            raise InvalidInputError(
                f"log1p needs 0 <= low and bounds whose logarithms differ, got {self.bounds}",
                field="bounds",
            )

    def _check_category(self) -> None:
        if bool(self.levels) != (self.kind == "category"):
            raise InvalidInputError("go with kind = category, and only there", field="levels")
        if len(self.levels) > MAX_CATEGORY_LEVELS:
            raise InvalidInputError(
                f"{len(self.levels)} levels, at most {MAX_CATEGORY_LEVELS} are allowed",
                field="levels",
            )
        if len(set(self.levels)) != len(self.levels):
            raise InvalidInputError("are repeated", field="levels")
        if any(not 0 < len(level) <= MAX_TEXT for level in self.levels):
            raise InvalidInputError(f"must have 1 to {MAX_TEXT} characters", field="levels")

    def number(self, value: object) -> float:
        """Read one value into its place in the row.

        Raises
        ------
        InvalidInputError
            If the type is wrong, the number is not finite, or it is outside bounds that reject.
        """
        if self.kind == "category":
            if not isinstance(value, str):
                raise InvalidInputError(f"needs a text, got {_shown(value)}")
            if len(value) > MAX_TEXT:
                raise InvalidInputError(f"{len(value)} characters, at most {MAX_TEXT} are allowed")
            return _positions(self.levels).get(value, OTHER)
        if self.kind == "flag":
            if not isinstance(value, bool):
                raise InvalidInputError(f"needs true or false, got {_shown(value)}")
            return float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(f"needs a number, got {_shown(value)}")
        return self._finite(value)

    def _finite(self, value: float) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise InvalidInputError("is not a finite number; leave the field out if unknown")
        if self.period is not None and abs(number) > MAX_TURNS * self.period:
            raise InvalidInputError(f"{number} is more than {MAX_TURNS:.0e} periods from 0")
        if self.outside == "reject" and self.bounds is not None:
            low, high = self.bounds
            if not low <= number <= high:
                raise InvalidInputError(f"{number} is outside [{low}, {high}]")
        return number


@lru_cache(maxsize=4096)
def _positions(levels: tuple[str, ...]) -> dict[str, float]:
    return {level: float(i) for i, level in enumerate(levels)}


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


@dataclass(frozen=True, kw_only=True)
class ContextSchema:
    """The ordered fields of a context.

    Raises
    ------
    InvalidInputError
        If there are too many fields or a name is repeated.
    """

    fields: tuple[ContextField, ...] = ()

    def __post_init__(self) -> None:
        if len(self.fields) > MAX_FIELDS:
            raise InvalidInputError(f"{len(self.fields)} fields, at most {MAX_FIELDS} are allowed")
        if len(self._places) < len(self.fields):
            names = [f.name for f in self.fields]
            twice = next(i for i, name in enumerate(names) if name in names[:i])
            raise InvalidInputError(f"{names[twice]!r} is repeated", field=f"[{twice}].name")

    @cached_property
    def _places(self) -> dict[str, tuple[int, ContextField, type | None, Mapping[Any, float]]]:
        """Place and field by name; a type of value, and its numbers, that need no other look.

        Of floats any finite one will do.
        """
        quick: dict[str, tuple[type, Mapping[Any, float]]] = {
            f.name: (float, {}) for f in self.fields if f.kind == "number" and f.outside == "clip"
        }
        quick |= {f.name: (str, _positions(f.levels)) for f in self.fields if f.levels}
        quick |= {f.name: (bool, {False: 0.0, True: 1.0}) for f in self.fields if f.kind == "flag"}
        return {f.name: (i, f, *quick.get(f.name, (None, {}))) for i, f in enumerate(self.fields)}

    @cached_property
    def _required(self) -> tuple[int, ...]:
        return tuple(i for i, f in enumerate(self.fields) if f.required)

    def row(self, values: Mapping[str, object]) -> list[float]:
        """Read named values into a row, one float per field, NaN where missing.

        Parameters
        ----------
        values
            Name to number, text or flag; None counts as missing.

        Raises
        ------
        InvalidInputError
            For an unknown name, a wrong type, a value that is not finite, or a required
            field left out; the path is ``values["name"]``.

        Notes
        -----
        O(values given + fields).
        """
        row = [math.nan] * len(self.fields)
        places = self._places
        for name, value in values.items():
            known = places.get(name)
            if known is None:
                raise InvalidInputError(self._unknown(name), field=f'values["{name[:64]}"]')
            place, field, kind, numbers = known
            if type(value) is kind:
                number: Any = numbers.get(value) if kind is not float else value
                if number is not None and number - number == 0.0:  # finite
                    row[place] = number
                    continue
            if value is not None:
                try:
                    row[place] = field.number(value)
                except InvalidInputError as error:
                    raise InvalidInputError(error.message, field=f'values["{name}"]') from None
        if self._required:
            self._check_required(row)
        return row

    def check_rows(self, rows: NDArray[np.float64]) -> None:
        """Refuse rows that no context could have given.

        Parameters
        ----------
        rows : (n, fields)
            Packed contexts in schema order.

        Raises
        ------
        InvalidInputError
            With the path ``[i].values["name"]`` of the first bad cell.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.fields):
            raise InvalidInputError(f"has shape {rows.shape}, needs (n, {len(self.fields)})")
        for place, field in enumerate(self.fields):
            column = rows[:, place]
            bad = np.isinf(column)
            if field.kind == "category":
                ok = (column == np.floor(column)) & (column >= OTHER)
                bad |= ~(np.isnan(column) | (ok & (column < len(field.levels))))
            elif field.kind == "flag":
                bad |= ~(np.isnan(column) | (column == 0) | (column == 1))
            elif field.period is not None:
                bad |= np.abs(column) > MAX_TURNS * field.period
            elif field.outside == "reject" and field.bounds is not None:
                bad |= (column < field.bounds[0]) | (column > field.bounds[1])
            if field.required:
                bad |= np.isnan(column)
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                raise InvalidInputError(
                    f"{column[i]} is no {field.kind} of this field",
                    field=f'[{i}].values["{field.name}"]',
                )

    def values(self, row: NDArray[np.float64]) -> dict[str, float | str | bool | None]:
        """Give a row's values back by name; a category never declared reads as ``(other)``."""
        named: dict[str, float | str | bool | None] = {}
        for field, number in zip(self.fields, row.tolist(), strict=True):
            if math.isnan(number):
                named[field.name] = None
            elif field.kind == "category":
                named[field.name] = field.levels[int(number)] if number >= 0 else "(other)"
            elif field.kind == "flag":
                named[field.name] = number == 1.0
            else:
                named[field.name] = number
        return named

    def _check_required(self, row: list[float]) -> None:
        for place in self._required:
            if math.isnan(row[place]):
                name = self.fields[place].name
                raise InvalidInputError("is required", field=f'values["{name}"]')

    def _unknown(self, name: str) -> str:
        if not self._places:
            return "this experiment takes no context"
        close = get_close_matches(name[:64], self._places, n=1)
        known = ", ".join(list(self._places)[:20])
        return f"is not in the schema; did you mean {close[0]!r}?" if close else f"known: {known}"
