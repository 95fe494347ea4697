"""A log made of arrays that are not trusted: bad rows are named, or left out and counted."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats
from sims.log import COLUMNS, Log

_WHOLE = ("versions", "customers", "positions", "groups", "places")


def log_of(
    actions: ArrayLike,
    rewards: ArrayLike,
    propensities: ArrayLike,
    size: int,
    **columns: Any,  # noqa: ANN401  by name, and checked here
) -> Log:
    """Make a log of arrays.

    Parameters
    ----------
    actions, rewards, propensities : (n,)
        Actions count from 0 to ``size - 1``.
    size
        Number of actions.
    columns
        Other columns of ``Log`` by name, and ``exclude``: whether bad rows are left out and
        counted in ``Log.excluded``; else the first is an error.

    Raises
    ------
    InvalidInputError
        Naming column and row, from 0.

    Examples
    --------
    >>> log = log_of([0, 1, 5], [1.0, float("nan"), 0.0], [0.5, 0.5, 0.5], 2, exclude=True)
    >>> len(log), log.excluded
    (1, {'rewards must be finite': 1, 'actions must be in [0, 1]': 1})
    """
    exclude = bool(columns.pop("exclude", False))
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise InvalidInputError(
            f"is not a column; there are {', '.join(COLUMNS)}", field=unknown[0]
        )
    given = {"actions": actions, "rewards": rewards, "propensities": propensities, **columns}
    table = {name: _numbers(name, c) for name, c in given.items() if c is not None}
    n = len(table["actions"])
    for name, column in table.items():
        if column.ndim != (2 if name == "rows" else 1) or len(column) != n:
            raise InvalidInputError(f"has shape {column.shape}, there are {n} rows", field=name)
    a, r, p = table["actions"], table["rewards"], table["propensities"]
    checks: list[tuple[str, str, Bools]] = [
        ("propensities", "must be in (0, 1]", ~((p > 0.0) & (p <= 1.0))),
        ("rewards", "must be finite", ~np.isfinite(r)),
        ("actions", f"must be in [0, {size - 1}]", ~((a >= 0) & (a < size) & (a == np.floor(a)))),
    ]
    checks += [
        (name, "must be whole numbers", ~(np.isfinite(table[name]) & (table[name] % 1.0 == 0.0)))
        for name in _WHOLE
        if name in table
    ]
    kept, excluded = np.ones(n, dtype=np.bool_), dict[str, int]()
    for name, need, bad in checks:
        if bad.any() and not exclude:
            row = int(np.argmax(bad))
            raise InvalidInputError(f"{need}, got {table[name][row]}", field=f"{name}[{row}]")
        if (bad & kept).any():
            excluded[f"{name} {need}"] = int((bad & kept).sum())
        kept &= ~bad
    cast = {
        name: column[kept].astype(np.int64) if name in ("actions", *_WHOLE) else column[kept]
        for name, column in table.items()
    }
    return Log(size=size, excluded=excluded, **cast)  # type: ignore[arg-type]


def _numbers(name: str, column: object) -> Floats:
    try:
        return np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"are no numbers: {error}", field=name) from None
