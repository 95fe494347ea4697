"""Features: a context as a vector, and which weights an action's score adds up.

The linear predictor is ``eta(x, a) = sum over terms of w[term, cell(a)] . x`` (or of a single
weight per cell). A term is a set of names such as ``context:variant`` (one weight vector per
variant) or ``variant:channel`` (one number per pair); no design matrix is ever built. A term such
as ``context:variant.attributes`` has one weight vector per attribute, and an action adds up all
of them, each times the number that its level declares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np

from bandit.actions import FACTORS, ActionSpace
from bandit.context import MAX_TURNS, ContextSchema
from bandit.errors import InvalidInputError
from bandit.fourier import Fourier
from bandit.kernels import contexts
from bandit.kernels.compiling import Bools, Cells, Floats, Ints
from bandit.kernels.layouts import Planes, Terms

MAX_TERMS = 16
MAX_WEIGHTS = 2_048
MAX_STATISTICS = 16_000_000
MAX_WORK = 10_000_000_000
MAX_LOADS = 1_000_000
OWN_EFFECT_SD = 0.2
ATTRIBUTES = tuple(f"{factor}.attributes" for factor in FACTORS)
_TERM_NAMES = ("context", *FACTORS, *ATTRIBUTES)
INTERCEPT, WAVES = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One block of weights.

    Parameters
    ----------
    of
        Names joined by ``:``, from context, variant, channel, slot, and variant.attributes,
        channel.attributes, slot.attributes; of a factor either its levels or their attributes.
    prior_sd
        Prior standard deviation of each weight, in units of the reward noise (logistic: of
        log-odds).

    Raises
    ------
    InvalidInputError
        For unknown or repeated names, or a scale that is not positive.
    """

    of: str
    prior_sd: float = 2.0

    def __post_init__(self) -> None:
        names = self.of.split(":")
        for name in names:
            if name not in _TERM_NAMES:
                raise InvalidInputError(
                    f"{name[:40]!r} is none of {', '.join(_TERM_NAMES)}", field="of"
                )
        if len(set(names)) < len(names):
            raise InvalidInputError(f"{self.of!r} repeats a name", field="of")
        if len({name.partition(".")[0] for name in names}) < len(names):
            raise InvalidInputError(
                f"{self.of!r} names a factor and its attributes; use two terms", field="of"
            )
        if not 1e-3 <= self.prior_sd <= 1e3:
            raise InvalidInputError(
                f"must be in [1e-3, 1e3], got {self.prior_sd}", field="prior_sd"
            )

    @property
    def names(self) -> frozenset[str]:
        """The names of the term."""
        return frozenset(self.of.split(":"))

    @property
    def factors(self) -> frozenset[str]:
        """The factors whose levels, or whose levels' attributes, the term depends on."""
        return frozenset(name.partition(".")[0] for name in self.names) - {"context"}

    @property
    def has_attributes(self) -> bool:
        """Whether the term names attributes."""
        return "." in self.of


def default_terms(space: ActionSpace) -> tuple[Term, ...]:
    """Give the terms of an experiment that declares none.

    One factor with more than one level: the disjoint bandit. More: a shared block, one block
    per level of each factor, and one number per pair of levels. A factor whose levels have
    attributes gets one block per attribute and one number per level instead of a block per
    level: what attributes predict is learned from all levels, and a new one starts from it.
    Such a factor has its terms with one level, too, so that they stay when levels are added.
    """
    pairs = list(zip(FACTORS, space.factors, strict=True))
    described = {factor for factor, levels in pairs if levels[0].attributes}
    several = [factor for factor, levels in pairs if len(levels) > 1 or factor in described]
    if len(several) <= 1 and not described:
        return (Term(of=f"context:{next(iter(several), 'variant')}"),)
    terms = [Term(of="context")]
    for factor in several:
        if factor in described:
            terms.append(Term(of=f"context:{factor}.attributes"))
            terms.append(Term(of=factor, prior_sd=OWN_EFFECT_SD))
        else:
            terms.append(Term(of=f"context:{factor}"))
    return (*terms, *(Term(of=f"{a}:{b}") for a, b in combinations(several, 2)))


class Encoder:
    """Turns context rows into feature vectors: a pure function of schema and specification.

    Parameters
    ----------
    schema
        Fields in order; each takes one column or more, after the intercept.
    fourier
        Random Fourier features of all fields together, after their own columns; None: none.

    Attributes
    ----------
    names
        Name of every column.
    owners
        Place of the field that a column belongs to; ``INTERCEPT`` or ``WAVES`` if to none.
    width
        Number of columns.

    Raises
    ------
    InvalidInputError
        For Fourier features of no fields.
    """

    def __init__(self, schema: ContextSchema, fourier: Fourier | None = None) -> None:
        self.names = ["(intercept)"]
        self.owners = [INTERCEPT]
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
            self.owners += [i] * (len(self.names) - first)
        self._table = table
        self._turns: Floats | None = None
        if fourier is not None:
            if not schema.fields:
                raise InvalidInputError("needs a context to be a function of", field="fourier")
            self._turns = fourier.frequencies(len(self.names) - 1, len(schema.fields))
            self.names += fourier.names
            self.owners += [WAVES] * fourier.features
        self.width = len(self.names)

    def encode(self, rows: Floats) -> Floats:
        """Encode packed contexts, (n, fields) to (n, width); intercept first.

        Notes
        -----
        O(n (fields + width)), and O(features x columns in use) for Fourier features.
        """
        x = contexts.encode(rows, self._table, self.width)
        if self._turns is not None:
            contexts.add_waves(x, self._turns)
        return x

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
        self._check_factors()
        rows = int(self.counts[self.parts > 0].max(initial=0))
        loads = len(self.terms) * rows * int(self.parts.max())
        if loads > MAX_LOADS:
            raise InvalidInputError(
                f"need {loads} coefficients of attributes, at most {MAX_LOADS} are allowed; "
                "use fewer attributes, or cross them with fewer levels",
                field="terms",
            )
        if self.weights > MAX_WEIGHTS:
            raise InvalidInputError(
                f"need {self.weights} weights in a block, at most {MAX_WEIGHTS} are allowed",
                field="terms",
            )
        if self.blocks * self.weights**3 > MAX_WORK:
            raise InvalidInputError(
                f"need {self.blocks} x {self.weights}**3 steps to publish, at most {MAX_WORK} are "
                "allowed; use fewer levels, fields, waves or crossed factors",
                field="terms",
            )
        if self.blocks * self.weights**2 > MAX_STATISTICS:
            raise InvalidInputError(
                f"need {self.blocks} x {self.weights}**2 statistics, at most {MAX_STATISTICS} "
                "are allowed; use fewer levels, fields or crossed factors",
                field="terms",
            )

    def _check_factors(self) -> None:
        """Refuse terms that name attributes which are not there, or leave levels alike."""
        used = frozenset[str]().union(*(t.names for t in self.terms))
        for factor, levels in zip(FACTORS, self.space.factors, strict=True):
            described = f"{factor}.attributes"
            if described in used and not levels[0].attributes:
                raise InvalidInputError(
                    f"name {described}, but the levels of {factor} declare none", field="terms"
                )
            if len(levels) == 1 or factor in used:
                continue
            if described not in used:
                raise InvalidInputError(
                    f"no term names {factor}, so its {len(levels)} levels can not be told apart",
                    field="terms",
                )
            first: dict[object, str] = {}
            for level in levels:
                twin = first.setdefault(level.attributes, level.name)
                if twin != level.name:
                    raise InvalidInputError(
                        f"can not tell {twin!r} from {level.name!r}, whose attributes are the "
                        f"same; add a term that names {factor}",
                        field="terms",
                    )

    @cached_property
    def cells(self) -> Cells:
        """Cell of every action in every term, shape (t, k).

        The place of its levels in the product of the term's factors: the weights' place, or the
        row of ``loads`` where the term has attributes.
        """
        return np.array([self._cell(term.factors) for term in self.terms], dtype=np.int32)

    @cached_property
    def counts(self) -> Ints:
        """Number of cells of every term, shape (t,)."""
        counts: Ints = self.cells.max(axis=1).astype(np.int64) + 1
        return counts

    @cached_property
    def parts(self) -> Ints:
        """Cells with weights of every term that has attributes, shape (t,); 0 for others.

        One for each attribute; where the term names other factors too, for each attribute and
        each combination of their levels.
        """
        return np.array([self._parts(term) for term in self.terms], dtype=np.int64)

    def _parts(self, term: Term) -> int:
        if not term.has_attributes:
            return 0
        parts = 1
        for factor, levels in zip(FACTORS, self.space.factors, strict=True):
            if factor in term.names:
                parts *= len(levels)
            elif factor in term.factors:
                parts *= len(levels[0].attributes)
        return parts

    @cached_property
    def loads(self) -> Floats:
        """How much of each part an action takes, shape (t, max(counts), max(parts)).

        The maxima are over terms with attributes. Row ``loads[j, cells[j, a]]`` holds the
        coefficients of action a's features in term j: its level's attributes.
        """
        described = self.parts > 0
        rows = int(self.counts[described].max(initial=0))
        loads = np.zeros((len(self.terms), rows, int(self.parts.max(initial=0))))
        for j in np.flatnonzero(described):
            loads[j, : self.counts[j], : self.parts[j]] = self._loads(self.terms[j])
        return loads

    def _loads(self, term: Term) -> Floats:
        """Give the Kronecker product of one-hot levels and attributes, shape (cells, parts)."""
        rows: Floats = np.ones((1, 1))
        for factor, levels in zip(FACTORS, self.space.factors, strict=True):
            if factor in term.names:
                rows = np.kron(rows, np.eye(len(levels))).astype(np.float64)
            elif factor in term.factors:
                values = [[value for _, value in level.attributes] for level in levels]
                rows = np.kron(rows, values).astype(np.float64)
        return rows

    @cached_property
    def crossed(self) -> Bools:
        """Whether a term's cells hold a vector (crossed with the context), shape (t,)."""
        return np.array(["context" in term.names for term in self.terms], dtype=np.bool_)

    @cached_property
    def offsets(self) -> Ints:
        """First weight of every term, shape (t,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @cached_property
    def sizes(self) -> Ints:
        """Number of weights of every term, shape (t,)."""
        cells = np.where(self.parts > 0, self.parts, self.counts)
        sizes: Ints = cells * np.where(self.crossed, self.width, 1)
        return sizes

    @cached_property
    def layout(self) -> Terms:
        """The terms as kernels read them."""
        return Terms(self.cells, self.offsets, self.counts, self.crossed, self.parts, self.loads)

    @cached_property
    def planes(self) -> Planes:
        """Terms by the factors they depend on, so that few sums are made per action.

        A term goes to a plane whose factors include its own; a term that is the same for
        every action (the shared block) decides nothing and goes to none.
        """
        several = {f for f, ls in zip(FACTORS, self.space.factors, strict=True) if len(ls) > 1}
        wanted = [frozenset(term.factors & several) for term in self.terms]
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
        uses = np.zeros((len(self.terms), int(sizes.max())), dtype=np.int32)
        for j, home in enumerate(homes):
            if home >= 0:
                uses[j, cells[home]] = self.cells[j]
        grid, inner = self._grid(planes)
        varies = np.array([inner in plane for plane in planes], dtype=np.bool_)
        alike = varies.sum() == 1 and planes[int(varies.argmax())] == {inner}
        found = np.array(homes, dtype=np.int32)
        return Planes(found, uses, cells, sizes, grid, varies, bool(alike))

    def _grid(self, planes: Sequence[frozenset[str]]) -> tuple[Cells, str]:
        """Give every action in a table, and the factor whose levels are its columns.

        Best a factor on which one plane depends alone: then rows are alike.
        """
        several = [f for f, ls in zip(FACTORS, self.space.factors, strict=True) if len(ls) > 1]
        users = {f: [plane for plane in planes if f in plane] for f in several}
        alone = [f for f in several if users[f] == [{f}]]
        inner = (alone or several or ["slot"])[-1]
        others = self._cell(frozenset(FACTORS) - {inner})
        width = len(self.space.factors[FACTORS.index(inner)])
        levels = self.space.table[:, FACTORS.index(inner)]
        grid = np.zeros((self.space.size // width, width), dtype=np.int32)
        grid[others, levels] = np.arange(self.space.size)
        return grid, inner

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
        term = self.terms[0]
        same = self.counts[0] == self.space.size
        alone = len(self.terms) == 1 and not term.has_attributes
        return alone and bool(same) and bool(self.crossed[0])

    @property
    def blocks(self) -> int:
        """Number of independent blocks of weights: ``k`` if disjoint, else 1."""
        return self.space.size if self.is_disjoint else 1

    @property
    def weights(self) -> int:
        """Number of weights ``m`` in a block."""
        return self.width if self.is_disjoint else int(self.sizes.sum())

    @cached_property
    def prior_precision(self) -> Floats:
        """Prior precision of a block's weights in units of the noise precision, shape (m,)."""
        if self.is_disjoint:
            return np.full(self.width, self.terms[0].prior_sd ** -2.0)
        scales: Sequence[float] = [term.prior_sd**-2.0 for term in self.terms]
        return np.repeat(np.array(scales), self.sizes)

    def weight_names(self, columns: Sequence[str]) -> list[str]:
        """Name every weight of a block, such as ``age:variant=short`` or ``variant.length``.

        Parameters
        ----------
        columns : (d,)
            Names of the features, from ``Encoder``.

        Returns
        -------
        (m,)
            In a disjoint model the features' names: blocks differ by their action.
        """
        if self.is_disjoint:
            return list(columns)
        names: list[str] = []
        for term in self.terms:
            choices: list[list[str]] = []
            for factor, levels in zip(FACTORS, self.space.factors, strict=True):
                if factor in term.names:
                    choices.append([f"{factor}={level.name}" for level in levels])
                elif factor in term.factors:
                    choices.append([f"{factor}.{name}" for name, _ in levels[0].attributes])
            context = [[*columns]] if "context" in term.names else []
            crossed = [
                (*cell[len(choices) :], *cell[: len(choices)])
                for cell in product(*choices, *context)
            ]
            names += [":".join(parts) for parts in crossed]
        return names

    def design(self, x: Floats, action: int) -> Floats:
        """Give phi(x, a), the coefficients of an action's weights, shape (m,).

        For explanations and tests: decisions never build it.
        """
        if self.is_disjoint:
            return x.copy()
        phi = np.zeros(self.weights)
        for j, first in enumerate(self.offsets.tolist()):
            block = x if self.crossed[j] else np.ones(1)
            cell = int(self.cells[j, action])
            if self.parts[j]:
                block = np.outer(self.loads[j, cell, : self.parts[j]], block).ravel()
                cell = 0
            start = first + cell * len(block)
            phi[start : start + len(block)] = block
        return phi
