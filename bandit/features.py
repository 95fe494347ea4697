"""Features: a context as a vector, and which weights an action's score adds up.

The linear predictor is ``eta(x, a) = sum over terms of w[term, cell(a)] . x`` (or of a single
weight per cell). A term is a set of names such as ``context:variant`` (one weight vector per
variant) or ``variant:channel`` (one number per pair); no design matrix is ever built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bandit.actions import FACTORS, ActionSpace
from bandit.context import MAX_TURNS, ContextSchema
from bandit.errors import InvalidInputError
from bandit.kernels import contexts
from bandit.kernels.compiling import Bools, Cells, Floats, Ints

MAX_TERMS = 16
MAX_WEIGHTS = 2_048
MAX_STATISTICS = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One block of weights.

    Parameters
    ----------
    of
        Names joined by ``:``, from context, variant, channel, slot.
    prior_sd
        Prior standard deviation of each weight, in units of the reward noise.

    Raises
    ------
    InvalidInputError
        For unknown or repeated names, or a scale that is not positive.
    """

    of: str
    prior_sd: float = 1.0

    def __post_init__(self) -> None:
        names = self.of.split(":")
        for name in names:
            if name not in ("context", *FACTORS):
                raise InvalidInputError(
                    f"{name[:40]!r} is none of context, {', '.join(FACTORS)}", field="of"
                )
        if len(set(names)) < len(names):
            raise InvalidInputError(f"{self.of!r} repeats a name", field="of")
        if not 1e-3 <= self.prior_sd <= 1e3:
            raise InvalidInputError(
                f"must be in [1e-3, 1e3], got {self.prior_sd}", field="prior_sd"
            )

    @property
    def names(self) -> frozenset[str]:
        """The names of the term."""
        return frozenset(self.of.split(":"))


class Planes(NamedTuple):
    """Terms gathered by the factors they depend on.

    Attributes
    ----------
    homes : (t,)
        Plane of each term, or -1.
    places : (t, max(sizes))
        Cell of a term in each cell of its plane.
    cells : (p, k)
        Cell of every action in each plane.
    sizes : (p,)
        Number of cells of each plane.
    """

    homes: Cells
    places: Cells
    cells: Cells
    sizes: Ints


def default_terms(space: ActionSpace) -> tuple[Term, ...]:
    """Give the terms of an experiment that declares none.

    One factor with more than one level: the disjoint bandit. More: a shared block, one block
    per level of each factor, and one number per pair of levels.
    """
    several = [f for f, levels in zip(FACTORS, space.factors, strict=True) if len(levels) > 1]
    if len(several) <= 1:
        return (Term(of=f"context:{several[0] if several else 'variant'}"),)
    pairs = [f"{a}:{b}" for i, a in enumerate(several) for b in several[i + 1 :]]
    crossed = [f"context:{factor}" for factor in several]
    return tuple(Term(of=of) for of in ("context", *crossed, *pairs))


class Encoder:
    """Turns context rows into feature vectors: a pure function of the schema.

    Parameters
    ----------
    schema
        Fields in order; each takes one column or more, after the intercept.
    """

    def __init__(self, schema: ContextSchema) -> None:
        self.names = ["(intercept)"]
        table = np.zeros((len(schema.fields), 6))
        for i, field in enumerate(schema.fields):
            low, high = field.bounds or (field.period or 0.0, 0.0)
            kind = {
                "number": contexts.LOG_NUMBER if field.scale == "log1p" else contexts.NUMBER,
                "category": contexts.CATEGORY,
                "flag": contexts.FLAG,
                "cyclic": contexts.CYCLIC,
            }[field.kind]
            columns = {
                "category": [f"{field.name}={level}" for level in (*field.levels, "(other)")],
                "cyclic": [f"sin({field.name})", f"cos({field.name})"],
            }.get(field.kind, [field.name])
            first = len(self.names)
            self.names += columns
            missing = -1 if field.required else len(self.names)
            if not field.required:
                self.names.append(f"{field.name} missing")
            table[i] = kind, low, high, first, len(field.levels), missing
        self._table = table
        self.width = len(self.names)

    def encode(self, rows: Floats) -> Floats:
        """Encode packed contexts, (n, fields) to (n, width); intercept first.

        Notes
        -----
        O(n (fields + width)).
        """
        return contexts.encode(rows, self._table, self.width)

    def takes(self, rows: Floats) -> bool:
        """Whether rows of the right length hold what ``encode`` can read; O(n fields)."""
        return contexts.is_sound(rows, self._table, MAX_TURNS)


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Which weights every action uses.

    Parameters
    ----------
    space
        The actions, ``k`` of them.
    terms
        Blocks of weights.
    width
        Length ``d`` of a feature vector.

    Raises
    ------
    InvalidInputError
        If terms repeat, do not tell two actions apart, or need too many weights.
    """

    space: ActionSpace
    terms: tuple[Term, ...]
    width: int

    def __post_init__(self) -> None:
        if not 0 < len(self.terms) <= MAX_TERMS:
            raise InvalidInputError(f"need 1 to {MAX_TERMS}, got {len(self.terms)}", field="terms")
        if len({t.names for t in self.terms}) < len(self.terms):
            raise InvalidInputError("are repeated", field="terms")
        used = frozenset[str]().union(*(t.names for t in self.terms))
        for factor, levels in zip(FACTORS, self.space.factors, strict=True):
            if len(levels) > 1 and factor not in used:
                raise InvalidInputError(
                    f"no term names {factor}, so its {len(levels)} levels can not be told apart",
                    field="terms",
                )
        if self.weights > MAX_WEIGHTS:
            raise InvalidInputError(
                f"need {self.weights} weights in a block, at most {MAX_WEIGHTS} are allowed",
                field="terms",
            )
        if self.blocks * self.weights**2 > MAX_STATISTICS:
            raise InvalidInputError(
                f"need {self.blocks} x {self.weights}**2 statistics, at most {MAX_STATISTICS} "
                "are allowed; use fewer levels, fields or crossed factors",
                field="terms",
            )

    @cached_property
    def cells(self) -> Cells:
        """Cell of every action in every term, shape (t, k)."""
        return np.array([self._cell(term.names) for term in self.terms], dtype=np.int32)

    @cached_property
    def counts(self) -> Ints:
        """Number of cells of every term, shape (t,)."""
        counts: Ints = self.cells.max(axis=1).astype(np.int64) + 1
        return counts

    @cached_property
    def crossed(self) -> Bools:
        """Whether a term's cells hold a vector (crossed with the context), shape (t,)."""
        return np.array(["context" in term.names for term in self.terms], dtype=np.bool_)

    @cached_property
    def offsets(self) -> Ints:
        """First weight of every term, shape (t,)."""
        return np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(np.int64)

    @cached_property
    def _sizes(self) -> Ints:
        sizes: Ints = self.counts * np.where(self.crossed, self.width, 1)
        return sizes

    @cached_property
    def planes(self) -> Planes:
        """Terms by the factors they depend on, so that few sums are made per action.

        A term goes to a plane whose factors include its own; a term that is the same for
        every action (the shared block) decides nothing and goes to none.
        """
        several = {f for f, ls in zip(FACTORS, self.space.factors, strict=True) if len(ls) > 1}
        wanted = [frozenset(term.names & several) for term in self.terms]
        planes: list[frozenset[str]] = []
        for factors in sorted(set(wanted), key=lambda f: (-len(f), sorted(f))):
            if factors and not any(factors <= plane for plane in planes):
                planes.append(factors)
        planes = planes or [frozenset()]  # a single action: one plane of one cell
        cells = np.array([self._cell(plane) for plane in planes], dtype=np.int32)
        sizes = cells.max(axis=1).astype(np.int64) + 1
        homes = [
            min(
                (i for i, plane in enumerate(planes) if f <= plane and (f or not plane)),
                key=sizes.__getitem__,
                default=-1,
            )
            for f in wanted
        ]
        places = np.zeros((len(self.terms), int(sizes.max())), dtype=np.int32)
        for j, home in enumerate(homes):
            if home >= 0:
                places[j, cells[home]] = self.cells[j]
        return Planes(np.array(homes, dtype=np.int32), places, cells, sizes)

    def _cell(self, names: frozenset[str]) -> Cells:
        """Give every action's cell in the product of some factors, shape (k,)."""
        cell = np.zeros(self.space.size, dtype=np.int32)
        for column, (factor, levels) in enumerate(zip(FACTORS, self.space.factors, strict=True)):
            if factor in names:
                cell = cell * np.int32(len(levels)) + self.space.table[:, column]
        return cell

    @cached_property
    def is_disjoint(self) -> bool:
        """Whether every action has weights of its own, so that scores are independent."""
        same = self.counts[0] == self.space.size
        return len(self.terms) == 1 and bool(same) and bool(self.crossed[0])

    @property
    def blocks(self) -> int:
        """Number of independent blocks of weights: ``k`` if disjoint, else 1."""
        return self.space.size if self.is_disjoint else 1

    @property
    def weights(self) -> int:
        """Number of weights ``m`` in a block."""
        return self.width if self.is_disjoint else int(self._sizes.sum())

    @cached_property
    def prior_precision(self) -> Floats:
        """Prior precision of a block's weights in units of the noise precision, shape (m,)."""
        if self.is_disjoint:
            return np.full(self.width, self.terms[0].prior_sd ** -2.0)
        scales: Sequence[float] = [term.prior_sd**-2.0 for term in self.terms]
        return np.repeat(np.array(scales), self._sizes)
