"""The rows of a log: every cell checked against the specification, then made a number."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from bandit.actions import FACTORS
from bandit.context import MAX_TURNS, OTHER, ContextField
from bandit.decision import Group, Reason
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.outcome import LARGEST_SUM, OutcomeRule
from bandit.spec import ExperimentSpec
from sims.log.columns import (
    NOTHING,
    UNKNOWN,
    Numbers,
    Seen,
    codes,
    flags,
    is_bytes,
    is_instant,
    is_number,
    is_text,
    is_whole,
    names,
    numbers,
    seconds,
    whole,
)
from sims.log.sieve import Sieve, shown
from sims.log.tables import Batch, Source

CLOCKS = 60.0
"""Seconds by which times may go back in a log that has its order from ``sequence``."""

_KINDS = {
    "sequence": "whole numbers",
    "decision_id": "texts or whole numbers",
    "customer_key": "texts or whole numbers",
    "decided_at": "times",
    "group": "texts",
    "reason": "texts",
    "snapshot_version": "whole numbers",
    "action": "whole numbers",
    "variant": "texts",
    "channel": "texts",
    "slot": "texts",
    "propensity": "numbers",
    "outcome": "numbers",
    "reward": "numbers",
    "position": "whole numbers",
}
"""What every column holds, by our name of it."""

_GROUPS = tuple(group.name.lower() for group in Group)
_REASONS = tuple(reason.name.lower() for reason in Reason)
_CHOSEN = {Group.BANDIT: Reason.POLICY, Group.RANDOM: Reason.RANDOM_GROUP}


class Rows:
    """Makes numbers of a log's batches, in order.

    Parameters
    ----------
    source
        The file.
    spec
        The experiment.
    given
        Our name of a column to the file's.
    groups
        Traffic groups to read.
    exclude
        Whether bad rows are left out.
    contexts
        Whether contexts are read.

    Attributes
    ----------
    columns
        Those of the file that are read.

    Raises
    ------
    InvalidInputError
        If a column is not there that is needed, or holds another kind of thing.
    """

    def __init__(  # noqa: PLR0913  how a log is read
        self,
        source: Source,
        spec: ExperimentSpec,
        given: Mapping[str, str],
        groups: frozenset[Group],
        *,
        exclude: bool,
        contexts: bool,
    ) -> None:
        self._source = source
        self._spec = spec
        self._groups = groups
        self._exclude = exclude
        self._fields = spec.context if contexts else ()
        self._has_contexts = contexts
        self._names = self._resolved(given)
        self.columns = tuple(dict.fromkeys(self._names.values()))
        self._places = np.full([len(f) for f in spec.actions.factors], UNKNOWN, dtype=np.int64)
        table = spec.actions.table
        self._places[table[:, 0], table[:, 1], table[:, 2]] = np.arange(spec.actions.size)
        self._range = outcome_range(spec.outcome)
        self._seen = Seen()
        self._last = -1
        self._latest = -np.inf

    # --- columns ------------------------------------------------------------------------

    def _resolved(self, given: Mapping[str, str]) -> dict[str, str]:
        """Give the file's name of every column that is read."""
        kinds = _KINDS | {f"context.{f.name}": _kind(f) for f in self._spec.context}
        types = self._source.types
        for ours, theirs in given.items():
            if ours not in kinds:
                close = get_close_matches(ours[:64], kinds, n=1)
                known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(kinds)}"
                raise InvalidInputError(f"no column of a log is called {ours[:64]!r}; {known}")
            if theirs not in types:
                raise self._absent(ours, theirs)
        if not self._has_contexts:
            kinds = {name: kind for name, kind in kinds.items() if not name.startswith("context.")}
        taken = set(given.values())  # a column that is said to be ours is not another, too
        found = {
            ours: given.get(ours, ours) for ours in kinds if ours in given or ours not in taken
        }
        found = {ours: theirs for ours, theirs in found.items() if theirs in types}
        self._check_present(found)
        for ours, theirs in found.items():
            if not _holds(types[theirs], kinds[ours], is_csv=self._source.is_text):
                raise InvalidInputError(
                    f"holds {types[theirs]}, needs {kinds[ours]}",
                    field=f'{self._source.path}: column "{theirs}"',
                )
        return found

    def _check_present(self, found: Mapping[str, str]) -> None:
        if "propensity" not in found:
            raise self._absent("propensity", "propensity")
        if "outcome" not in found and "reward" not in found:
            raise self._absent("outcome", "outcome")
        if "action" not in found:
            for factor, levels in zip(FACTORS, self._spec.actions.factors, strict=True):
                if factor not in found and len(levels) > 1:
                    raise self._absent(f"action or {factor}", factor)
        for one in self._fields:
            if f"context.{one.name}" not in found:
                raise self._absent(f"context.{one.name}", f"context.{one.name}")

    def _absent(self, ours: str, theirs: str) -> InvalidInputError:
        names = list(self._source.types)
        there = ", ".join(shown(name) for name in names[:20])
        key = theirs if theirs in _KINDS else ours.split()[-1]
        advice = f'say which one it is: --column {key}=NAME, or columns={{"{key}": "NAME"}}'
        if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
            advice = "columns of a CSV file are separated by commas"
        return InvalidInputError(
            f"no column {shown(theirs)} for {ours}; there are {there}; {advice}",
            field=str(self._source.path),
        )

    def _kept(self, batch: Batch, ours: str) -> Any:  # noqa: ANN401  pyarrow has no types
        return batch.columns[self._names[ours]]

    # --- rows ---------------------------------------------------------------------------

    def read(self, batch: Batch) -> tuple[dict[str, Any], Sieve]:
        """Read a batch; give the parts of a ``Log`` and what was left out.

        Raises
        ------
        InvalidInputError
            For the first bad row, unless bad rows are left out.
        """
        sieve = Sieve(batch, str(self._source.path), exclude=self._exclude)
        self._check_ids(batch, sieve)
        times = self._times(batch, sieve)
        groups = self._traffic(batch, sieve)
        actions = self._actions(batch, sieve)
        rewards = self._rewards(batch, sieve)
        propensities = self._number(batch, sieve, "propensity").values
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            usable = (propensities > 0.0) & (propensities <= 1.0) & np.isfinite(1.0 / propensities)
        sieve.refuse(~usable, self._names["propensity"], "must be in (0, 1]")
        parts: dict[str, Any] = {
            "actions": actions,
            "rewards": rewards,
            "propensities": propensities,
            "times": times,
            "groups": groups,
            "versions": self._whole(batch, sieve, "snapshot_version"),
            "positions": self._whole(batch, sieve, "position"),
            "customers": self._customers(batch, sieve),
            "places": np.arange(batch.first, batch.first + batch.size, dtype=np.int64),
        }
        if self._has_contexts:
            parts["rows"] = self._contexts(batch, sieve)
        kept = sieve.alive
        return {name: None if c is None else c[kept] for name, c in parts.items()}, sieve

    def _check_ids(self, batch: Batch, sieve: Sieve) -> None:
        """Refuse places that do not rise, and decisions that were there before."""
        if "sequence" in self._names:
            name = self._names["sequence"]
            found = whole(self._kept(batch, "sequence"))
            sieve.refuse(found.missing | found.broken, name, "needs a whole number")
            order = np.where(sieve.alive, found.values, -np.inf)
            before = np.maximum.accumulate(np.concatenate([[self._last], order]))
            sieve.refuse(order <= before[:-1], name, "must be more than in every row before")
            self._last = before[-1]
        if "decision_id" in self._names:
            name = self._names["decision_id"]
            column = self._kept(batch, "decision_id")
            sieve.refuse(column.is_null().to_numpy(zero_copy_only=False), name, "needs an id")
            again = self._seen.add(names(column)) & sieve.alive
            if again.any():
                i = int(np.flatnonzero(again)[0])
                row = batch.first + i
                first = row if self._exclude else self._first_row(name, column[i].as_py(), row)
                if first:
                    found_at = f"got {shown(column[i].as_py())}, which row {first} has, too"
                    sieve.refuse(again, name, "must not come twice", found_at)

    def _first_row(self, name: str, value: object, before: int) -> int:
        """Find the first row with an id; 0 if there is none before ``before``."""
        for batch in self._source.batches([name]):
            for i, other in enumerate(batch.columns[name].to_pylist(), batch.first):
                if i >= before:
                    return 0
                if other == value:
                    return i
        return 0

    def _times(self, batch: Batch, sieve: Sieve) -> Floats | None:
        if "decided_at" not in self._names:
            return None
        name = self._names["decided_at"]
        found = seconds(self._kept(batch, "decided_at"))
        bad = found.missing | found.broken
        sieve.refuse(bad, name, "needs a time, or seconds since 1970")
        slack = CLOCKS if "sequence" in self._names else 0.0
        at = np.where(sieve.alive, found.values, -np.inf)
        before = np.maximum.accumulate(np.concatenate([[self._latest], at]))
        sieve.refuse(at < before[:-1] - slack, name, "must not be before the rows above")
        self._latest = before[-1]
        return found.values

    def _traffic(self, batch: Batch, sieve: Sieve) -> Ints | None:
        """Set apart whom nothing was drawn for, and the groups that are not asked for."""
        groups = None
        if "group" in self._names:
            groups = self._coded(batch, sieve, "group", _GROUPS) + 1
        if "reason" in self._names:
            reasons = self._coded(batch, sieve, "reason", _REASONS) + 1
            if groups is not None:
                fits = np.ones(batch.size, dtype=np.bool_)
                for group, reason in _CHOSEN.items():
                    fits &= (reasons != reason) | (groups == group)
                told = "which is of another group"
                sieve.refuse(~fits, self._names["reason"], "must go with the group", told)
            else:
                groups = np.where(reasons == Reason.RANDOM_GROUP, int(Group.RANDOM), 1)
            for reason in Reason:
                if reason not in _CHOSEN.values():
                    sieve.separate(reasons == reason, reason.name.lower())
        if groups is not None:
            for group in Group:
                if group not in self._groups:
                    sieve.separate(groups == group, f"group {group.name.lower()}")
        return groups

    def _coded(self, batch: Batch, sieve: Sieve, ours: str, known: tuple[str, ...]) -> Ints:
        found = codes(self._kept(batch, ours), known)
        sieve.refuse(found < 0, self._names[ours], f"must be one of {', '.join(known)}")
        return found

    def _actions(self, batch: Batch, sieve: Sieve) -> Ints:
        """Read the action by its index, by the names of its levels, or by both."""
        named = self._named(batch, sieve)
        if "action" not in self._names:
            return named
        name, size = self._names["action"], self._spec.actions.size
        found = whole(self._kept(batch, "action"))
        if "reason" not in self._names:
            sieve.separate(found.missing, "nothing was sent")
        with np.errstate(invalid="ignore"):
            fits = (found.values >= 0) & (found.values < size) & ~found.broken & ~found.missing
        sieve.refuse(~fits, name, f"must be a whole number in [0, {size - 1}]")
        actions = np.where(fits, np.nan_to_num(found.values, posinf=0.0, neginf=0.0), 0)
        actions = actions.astype(np.int64)
        other = (named != NOTHING) & (named != actions)
        for i in np.flatnonzero(other & sieve.alive)[:1].tolist():
            levels = self._spec.actions.levels(int(actions[i]))
            said = ", ".join(level.name for level in levels)
            found_here = f"got {actions[i]}, which the specification calls {said}"
            sieve.refuse(other, name, "must be the action that the row names", found_here)
        return actions

    def _named(self, batch: Batch, sieve: Sieve) -> Ints:
        """Give the action that the names of levels say; ``NOTHING`` where they say none."""
        is_needed = "action" not in self._names
        places: list[Ints] = []
        for factor, levels in zip(FACTORS, self._spec.actions.factors, strict=True):
            if factor not in self._names:
                first = 0 if len(levels) == 1 else NOTHING
                places.append(np.full(batch.size, first, dtype=np.int64))
                continue
            found = codes(self._kept(batch, factor), [level.name for level in levels])
            known = ", ".join(level.name for level in levels[:8])
            if is_needed and "reason" not in self._names:
                sieve.separate(found == NOTHING, "nothing was sent")
            unknown = found == UNKNOWN
            if is_needed:
                unknown |= found == NOTHING
            sieve.refuse(unknown, self._names[factor], f"must be a {factor}, such as {known}")
            places.append(found)
        whole_rows = np.all([p >= 0 for p in places], axis=0)
        index = self._places[tuple(np.where(whole_rows, p, 0) for p in places)]
        return np.where(whole_rows, index, NOTHING)

    def _rewards(self, batch: Batch, sieve: Sieve) -> Floats:
        """Read outcomes; in a column ``outcome`` one may be missing, for it may be open."""
        ours = "outcome" if "outcome" in self._names else "reward"
        name = self._names[ours]
        if ours == "outcome":
            missing = self._kept(batch, ours).is_null().to_numpy(zero_copy_only=False)
            sieve.separate(missing, "no outcome")
        values = self._number(batch, sieve, ours).values
        sieve.refuse(~np.isfinite(values), name, "must be a finite number")
        low, high = self._range
        slack = 1e-9 * (high - low)  # a mean is rounded
        with np.errstate(invalid="ignore"):
            outside = ~((values >= low - slack) & (values <= high + slack))
        sieve.refuse(outside, name, f"must be in [{low:g}, {high:g}], as outcome.rewards say")
        return values

    def _number(self, batch: Batch, sieve: Sieve, ours: str) -> Numbers:
        found = numbers(self._kept(batch, ours))
        sieve.refuse(found.missing | found.broken, self._names[ours], "needs a number")
        return found

    def _whole(self, batch: Batch, sieve: Sieve, ours: str) -> Ints | None:
        if ours not in self._names:
            return None
        found = whole(self._kept(batch, ours))
        with np.errstate(invalid="ignore"):
            bad = found.missing | found.broken | (found.values < 0)
        sieve.refuse(bad, self._names[ours], "needs a whole number, 0 or more")
        return np.where(bad, 0, found.values).astype(np.int64)

    def _customers(self, batch: Batch, sieve: Sieve) -> Ints | None:
        if "customer_key" not in self._names:
            return None
        column = self._kept(batch, "customer_key")
        missing = column.is_null().to_numpy(zero_copy_only=False)
        sieve.refuse(missing, self._names["customer_key"], "needs a customer")
        return names(column)

    def _contexts(self, batch: Batch, sieve: Sieve) -> Floats:
        return context_cells(batch, self._fields, sieve, self._names)


def context_cells(
    batch: Batch,
    fields: tuple[ContextField, ...],
    sieve: Sieve,
    known: Mapping[str, str] | None = None,
) -> Floats:
    """Read contexts as rows in schema order, shape (n, fields); NaN where missing.

    Parameters
    ----------
    known
        The file's name of every column ``context.NAME``, where it is another.
    """
    rows = np.empty((batch.size, len(fields)))
    for place, one in enumerate(fields):
        ours = f"context.{one.name}"
        name = (known or {}).get(ours, ours)
        rows[:, place] = _context(batch.columns[name], one, sieve, name)
    return rows


def _context(column: Any, one: ContextField, sieve: Sieve, name: str) -> Floats:  # noqa: ANN401
    """Read one field of the context as ``ContextSchema.row`` would; NaN where missing."""
    if one.kind == "category":
        places = codes(column, one.levels)
        values = np.where(places == UNKNOWN, OTHER, places.astype(np.float64))
        found = Numbers(values, places == NOTHING, np.zeros(len(values), dtype=np.bool_))
    elif one.kind == "flag":
        found = flags(column)
        sieve.refuse(found.broken, name, "must be true or false")
    else:
        found = numbers(column)
        bad = (found.broken | ~np.isfinite(found.values)) & ~found.missing
        sieve.refuse(bad, name, "must be a finite number, or nothing where it is not known")
    if one.required:
        sieve.refuse(found.missing, name, "is required")
    values = np.where(found.missing, np.nan, found.values)
    with np.errstate(invalid="ignore"):
        if one.period is not None:
            far = np.abs(values) > MAX_TURNS * one.period
            sieve.refuse(far, name, f"must be within {MAX_TURNS:g} periods of {one.period:g}")
        elif one.bounds is not None and one.outside == "reject":
            low, high = one.bounds
            outside: Bools = (values < low) | (values > high)
            sieve.refuse(outside, name, f"must be in [{low:g}, {high:g}], the field's bounds")
    return values


def outcome_range(rule: OutcomeRule) -> tuple[float, float]:
    """Give the smallest and the largest outcome that the rule can give."""
    if rule.aggregation == "sum":
        return -LARGEST_SUM, LARGEST_SUM
    ends = [r.weight * end for r in rule.rewards for end in r.bounds]
    if rule.silence == "default":
        ends.append(rule.default)
    return min(ends), max(ends)


def declared_range(rule: OutcomeRule) -> tuple[float, float] | None:
    """Give the range of outcomes, None where none is declared that bounds them."""
    low, high = outcome_range(rule)
    return None if rule.aggregation == "sum" or not low < high else (low, high)


def _kind(one: ContextField) -> str:
    return {"category": "texts", "flag": "truth values"}.get(one.kind, "numbers")


def _holds(kind: Any, need: str, *, is_csv: bool) -> bool:  # noqa: ANN401
    """Whether a column of this type can hold what is needed; a CSV holds texts that spell it."""
    if is_csv:
        return True
    match need:
        case "texts":
            return is_text(kind) or is_whole(kind)
        case "texts or whole numbers":
            return is_text(kind) or is_whole(kind) or is_bytes(kind)
        case "times":
            return is_instant(kind)
        case _:
            return is_number(kind)
