"""A log in memory, or one batch of it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Log:
    """Rows of a log in memory, or one batch of it.

    Parameters
    ----------
    actions : (n,)
        0 to ``size - 1``.
    rewards : (n,)
        Outcomes.
    propensities : (n,)
        Of the logged action, in (0, 1].
    size
        Number of actions ``k``.
    rows : (n, fields) or None
        Contexts in schema order, NaN where missing.
    times : (n,) or None
        Seconds since 1970.
    versions : (n,) or None
        Of the snapshot that decided.
    customers : (n,) or None
        A number for every customer: equal where the customer is.
    positions : (n,) or None
        Place on the page or in the slate, from 0.
    groups : (n,) or None
        Numbers of ``bandit.decision.Group``.
    places : (n,) or None
        Row in the file, from 1.
    separated
        Rows that are no evidence, by why: nothing was chosen, or the outcome is not known.
    excluded
        Bad rows that were left out because that was asked for, by what is wrong.

    Raises
    ------
    InvalidInputError
        Naming the part and the row, from 1, that does not fit.
    """

    actions: Ints
    rewards: Floats
    propensities: Floats
    size: int
    rows: Floats | None = None
    times: Floats | None = None
    versions: Ints | None = None
    customers: Ints | None = None
    positions: Ints | None = None
    groups: Ints | None = None
    places: Ints | None = None
    separated: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            column = getattr(self, name)
            if column is None:
                continue
            ndim, kind = (2, "f") if name == "rows" else (1, _KINDS.get(name, "i"))
            if not isinstance(column, np.ndarray) or column.dtype.kind != kind:
                noun = "real" if kind == "f" else "whole"
                raise InvalidInputError(f"need an array of {noun} numbers", field=name)
            if column.ndim != ndim or len(column) != len(self.actions):
                raise InvalidInputError(
                    f"have shape {column.shape}, but there are {len(self.actions)} actions",
                    field=name,
                )
        a, p, r = self.actions, self.propensities, self.rewards
        _refuse("actions", a, (a < 0) | (a >= self.size), f"must be in [0, {self.size - 1}]")
        _refuse("propensities", p, ~((p > 0.0) & (p <= 1.0)), "must be in (0, 1]")
        _refuse("rewards", r, ~np.isfinite(r), "must be finite")
        if self.times is not None:
            _refuse("times", self.times, ~np.isfinite(self.times), "must be finite")
        if self.rows is not None:
            infinite = np.asarray(np.isinf(self.rows).any(axis=1))
            _refuse("rows", self.rows, infinite, "must not be infinite")

    def __len__(self) -> int:
        return len(self.actions)


_KINDS = {"rewards": "f", "propensities": "f", "times": "f"}
COLUMNS = (
    *("actions", "rewards", "propensities", "rows", "times", "versions"),
    *("customers", "positions", "groups", "places"),
)


def _refuse(name: str, column: Floats | Ints, bad: Bools, need: str) -> None:
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise InvalidInputError(f"{need}, got {column[i]} in row {i + 1}", field=name)


def taken(log: Log, which: Ints | Bools | slice) -> Log:
    """Give some rows of a log."""
    columns = {name: getattr(log, name) for name in COLUMNS}
    chosen: dict[str, Any] = {n: None if c is None else c[which] for n, c in columns.items()}
    return replace(log, **chosen)


def join(logs: Collection[Log]) -> Log:
    """Put batches of one log together.

    Raises
    ------
    InvalidInputError
        If there are none, or they are not of one log.
    """
    parts = list(logs)
    if not parts:
        raise InvalidInputError("there are no batches", field="logs")
    first = parts[0]
    joined: dict[str, Floats | Ints] = {}
    for name in COLUMNS:
        column = [getattr(part, name) for part in parts]
        if any((c is None) != (column[0] is None) for c in column):
            raise InvalidInputError("are in some batches only", field=name)
        if column[0] is not None:
            joined[name] = np.concatenate(column)
    if any(part.size != first.size for part in parts):
        raise InvalidInputError("differs between batches", field="size")
    return Log(
        **joined,  # type: ignore[arg-type]
        size=first.size,
        separated=_sum(part.separated for part in parts),
        excluded=_sum(part.excluded for part in parts),
    )


def _sum(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
