"""A world fitted to a log: how its customers responded, and who they were.

A regularised regression on effects that a world can declare: main effects of levels and of the
context, context with levels, and pairs of levels. ``docs/how-to/fit-a-world.md`` shows it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from bandit.actions import FACTORS
from bandit.context import ContextField
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims.worlds import contexts
from sims.worlds.clock import Clock
from sims.worlds.conditions import Conditions, Visits
from sims.worlds.effects import Effect
from sims.worlds.table import Table
from sims.worlds.world import World

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Of the data against the penalty, from which the best on rows set aside is taken."""

MOST_CONTEXTS = 20_000
_BINS = 5
_FAR = 1e16
_SMALLEST = 0.005
_SET_ASIDE = 0.25


class Trial(NamedTuple):
    """One strength, and the loss on rows set aside: log-loss, or mean squared error."""

    strength: float
    loss: float


class Design:
    """Effects that may hold, as columns of a regression.

    Parameters
    ----------
    spec
        Whose levels and fields may matter.
    table
        Rows to fit, whose quantiles cut numbers into ranges.
    """

    def __init__(self, spec: ExperimentSpec, table: Table) -> None:
        self.effects = _candidates(spec, table)
        self._spec = spec
        world = World(reward="")
        self._conditions = Conditions(world, spec, Clock(world.traffic, 0, 0))

    def matrix(self, table: Table) -> sparse.csr_array:
        """Give how much of every effect each row has, (n, effects)."""
        n = len(table.actions)
        visits = Visits(table.rows, np.zeros(n), np.full(n, -1))
        encoded = self._conditions.encoder.encode(np.ascontiguousarray(table.rows))
        levels = self._spec.actions.table[table.actions]
        names = [[level.name for level in factor] for factor in self._spec.actions.factors]
        held: dict[object, Floats] = {}
        columns = []
        for effect in self.effects:
            key = effect.slope, tuple((effect.when or {}).items())
            if key not in held:
                held[key] = self._conditions.column(effect, visits, encoded)
            column = held[key]
            for at, factor in enumerate(FACTORS):
                name = getattr(effect, factor)
                if name is not None:
                    column = column * (levels[:, at] == names[at].index(name))
            columns.append(sparse.csc_array(column[:, None]))
        return sparse.hstack(columns, format="csr")


def trials(table: Table, spec: ExperimentSpec, *, response: str, seed: int) -> Iterator[Trial]:
    """Try strengths until two in a row are no better: fit three quarters, look at the others."""
    design = Design(spec, table)
    fitted, others = table.split(_SET_ASIDE, seed)
    x, y = design.matrix(fitted), fitted.outcomes
    x_others, y_others = design.matrix(others), others.outcomes
    losses = [math.inf]
    for strength in STRENGTHS:
        base, weights, _ = _regress(x, y, response, strength)
        scores = base + x_others @ weights
        if response == "logistic":
            loss = float((np.logaddexp(0.0, scores) - y_others * scores).mean())
        else:
            loss = float(np.square(y_others - scores).mean())
        yield Trial(strength, loss)
        losses.append(loss)
        if min(losses[-2:]) > min(losses):
            return


def fit(  # noqa: PLR0913  what a fit consists of
    table: Table,
    spec: ExperimentSpec,
    *,
    reward: str,
    response: str = "logistic",
    strength: float,
    folder: Path | None = None,
    stem: str = "world",
    seed: int = 0,
) -> World:
    """Fit a world to the rows of a log.

    Parameters
    ----------
    table
        Outcomes of 0 and 1 for a logistic world.
    spec
        The experiment that the log is of, or could be.
    reward
        Name of the reward event whose value is the outcome.
    response
        ``logistic`` or ``linear``.
    strength
        Of the data against the L2 penalty, as from ``trials``.
    folder, stem
        Where a sample of the contexts is written as ``STEM.contexts.parquet``, from which the
        world draws its customers; None: it has none.
    seed
        Draws that sample.

    Raises
    ------
    InvalidInputError
        If the experiment has no such reward, or outcomes do not suit the response.

    Notes
    -----
    Effects smaller than 0.005 are left out, and the others kept to four digits.
    """
    check(table, spec, reward, response)
    design = Design(spec, table)
    base, weights, noise = _regress(design.matrix(table), table.outcomes, response, strength)
    effects = [
        replace(effect, adds=float(f"{weight:.4g}"))
        for effect, weight in zip(design.effects, weights.tolist(), strict=True)
        if abs(weight) >= _SMALLEST * (1.0 if response == "logistic" else noise)
    ]
    kept = None
    if folder is not None and spec.context:
        rows = table.rows
        if len(rows) > MOST_CONTEXTS:
            chosen = np.random.default_rng(seed).choice(len(rows), MOST_CONTEXTS, replace=False)
            rows = rows[np.sort(chosen)]
        path = folder / f"{stem}.contexts.parquet"
        kept = replace(contexts.write(path, spec.schema, rows), file=str(path))
    return World(
        reward=reward,
        response=response,
        base=float(f"{base:.6g}"),
        noise=float(f"{noise:.6g}") if response == "linear" else None,
        effects=tuple(effects),
        contexts=kept,
    )


def check(table: Table, spec: ExperimentSpec, reward: str, response: str) -> None:
    """Refuse outcomes that no world of this response can have.

    Raises
    ------
    InvalidInputError
        With the path ``reward``, ``response`` or ``outcome``.
    """
    if reward not in spec.outcome.by_name:
        known = ", ".join(spec.outcome.by_name)
        raise InvalidInputError(f"no reward {reward!r}; known: {known}", field="reward")
    if response not in ("logistic", "linear"):
        raise InvalidInputError(f"{response!r} is neither logistic nor linear", field="response")
    values = set(np.unique(table.outcomes).tolist())
    if response == "logistic" and not values <= {0.0, 1.0}:
        other = next(iter(values - {0.0, 1.0}))
        raise InvalidInputError(
            f"a logistic world needs outcomes of 0 and 1, got {other}; use response = linear",
            field="outcome",
        )
    if len(values) < 2:
        raise InvalidInputError(f"are all {values.pop()}: nothing to fit", field="outcome")


def _regress(
    x: sparse.csr_array, y: Floats, response: str, strength: float
) -> tuple[float, Floats, float]:
    """Give intercept, weights and, if linear, the standard deviation around the fit."""
    from sklearn.linear_model import LogisticRegression, Ridge  # takes a second

    if response == "logistic":
        model = LogisticRegression(C=strength, tol=1e-6, max_iter=2_000)
        model.fit(x, y)
        return float(model.intercept_[0]), model.coef_[0], 0.0
    model = Ridge(alpha=1.0 / strength, solver="sparse_cg", tol=1e-8)
    model.fit(x, y)
    noise = float(np.std(y - model.predict(x)))
    return float(model.intercept_), model.coef_, noise


def _candidates(spec: ExperimentSpec, table: Table) -> list[Effect]:
    """Give the effects that may hold, each of size 1."""
    levels = {
        factor: [level.name for level in given] if len(given) > 1 else []
        for factor, given in zip(FACTORS, spec.actions.factors, strict=True)
    }
    nothing = Effect(adds=1.0)
    own = [_at(nothing, **{f: name}) for f in FACTORS for name in levels[f]]
    pairs = [
        _at(nothing, **{f: a, g: b})
        for f, g in combinations(FACTORS, 2)
        for a in levels[f]
        for b in levels[g]
    ]
    context = [
        effect
        for place, field in enumerate(spec.context)
        for effect in _of_field(field, table.rows[:, place])
    ]
    crossed = [
        _at(effect, **{f: name})
        for effect in context
        if not _is_range(effect)
        for f in FACTORS
        for name in levels[f]
    ]
    return [*own, *pairs, *context, *crossed]


def _at(
    effect: Effect,
    *,
    variant: str | None = None,
    channel: str | None = None,
    slot: str | None = None,
) -> Effect:
    """Give an effect that holds for some levels alone."""
    return replace(effect, variant=variant, channel=channel, slot=slot)


def _is_range(effect: Effect) -> bool:
    return any(isinstance(wanted, tuple) for wanted in (effect.when or {}).values())


def _of_field(field: ContextField, values: Floats) -> Sequence[Effect]:
    """Give the effects of one field: of each category, of a flag, or a slope and ranges."""
    if field.kind == "category":
        return [Effect(adds=1.0, when={field.name: level}) for level in field.levels]
    if field.kind == "flag":
        return [Effect(adds=1.0, slope=field.name)]
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    inner = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    cuts = [-_FAR, *(float(f"{cut:.6g}") for cut in inner), _FAR]
    ranges = [
        Effect(adds=1.0, when={field.name: (low, high)})
        for low, high in pairwise(cuts)
        if low < high
    ]
    slope = [] if field.kind == "cyclic" else [Effect(adds=1.0, slope=field.name)]
    return [*slope, *ranges]
