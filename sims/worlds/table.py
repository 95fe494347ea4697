"""Logs as tables: contexts, what was sent, and what came of it, from CSV or Parquet."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bandit.actions import FACTORS
from bandit.context import ContextField
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from bandit.spec import ExperimentSpec

_DELIMITERS = (",", ";", "\t")
_TRUE = ("true", "yes", "1")
_FALSE = ("false", "no", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table mean what.

    Parameters
    ----------
    variant, channel, slot
        Columns of the levels that were sent; None: the column of that name. A factor with one
        level needs none.
    outcome
        Column of the outcome: a number, or yes and no.
    context
        Columns of fields that are called otherwise; else that of the field's name, or
        ``context.NAME`` as ``banditctl export`` writes it.
    """

    variant: str | None = None
    channel: str | None = None
    slot: str | None = None
    outcome: str = "outcome"
    context: Mapping[str, str] = field(default_factory=dict)


class Table(NamedTuple):
    """Rows of a log that can be learned from.

    Attributes
    ----------
    rows : (n, fields)
        Contexts in schema order.
    actions : (n,)
    outcomes : (n,)
    excluded
        How many rows were left out, by reason.
    """

    rows: Floats
    actions: Ints
    outcomes: Floats
    excluded: dict[str, int]

    def take(self, which: Ints) -> "Table":
        """Give some of the rows."""
        return Table(self.rows[which], self.actions[which], self.outcomes[which], self.excluded)

    def split(self, share: float, seed: int) -> tuple["Table", "Table"]:
        """Give the rows to learn from, and a random share that is held out.

        Raises
        ------
        InvalidInputError
            If the share is not in (0, 1) or leaves one of the two empty.
        """
        n = len(self.actions)
        held = round(share * n) if 0.0 < share < 1.0 else 0
        if not 0 < held < n:
            raise InvalidInputError(
                f"{share} of {n} rows leaves nothing on one side", field="held_out"
            )
        order = np.random.default_rng([seed, n]).permutation(n)
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))


def read(path: Path, spec: ExperimentSpec, columns: Columns) -> Table:
    """Read a log: ``.parquet``, or ``.csv`` with comma, semicolon or tab, compressed or not.

    Rows without an action or without an outcome are left out and counted.

    Raises
    ------
    InvalidInputError
        Naming the file, and the row and column that can not be right; rows count from 1.
    """
    table = _load(path)
    if not table.num_rows:
        raise InvalidInputError("has no row", field=str(path))
    try:
        rows = _contexts(table, spec, columns)
        levels = _levels(table, spec, columns)
        outcomes = _outcomes(table, columns.outcome)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(path)) from None
    sent = (levels >= 0).all(axis=1)
    heard = ~np.isnan(outcomes)
    excluded = Counter(
        {"nothing sent": int((~sent).sum()), "no outcome": int((sent & ~heard).sum())}
    )
    kept = np.flatnonzero(sent & heard)
    if not len(kept):
        raise InvalidInputError("has no row with an action and an outcome", field=str(path))
    table_of = {tuple(row): a for a, row in enumerate(spec.actions.table.tolist())}
    actions = np.array([table_of[tuple(row)] for row in levels[kept].tolist()], dtype=np.int64)
    return Table(rows[kept], actions, outcomes[kept], {k: v for k, v in excluded.items() if v})


def _load(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        with pa.input_stream(str(path)) as stream:
            head = stream.read(65_536).partition(b"\n")[0].decode()
        delimiter = max(_DELIMITERS, key=head.count)
        names = [name.strip().strip('"') for name in head.split(delimiter)]
        return pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(path)) from None


def _column(table: pa.Table, *names: str) -> tuple[str, pa.ChunkedArray]:
    for name in names:
        if name in table.column_names:
            return name, table.column(name)
    known = ", ".join(table.column_names[:30])
    raise InvalidInputError(f"no column {names[0]!r}; there are {known}", field="columns")


def _coded(column: pa.ChunkedArray) -> tuple[list[object], Ints]:
    """Give the different values of a column, and which of them stands in each row, -1 for null."""
    coded = column.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    return coded.dictionary.to_pylist(), coded.indices.fill_null(-1).to_numpy(
        zero_copy_only=False
    ).astype(np.int64)


def _contexts(table: pa.Table, spec: ExperimentSpec, columns: Columns) -> Floats:
    for name in columns.context:
        if name not in {f.name for f in spec.context}:
            raise InvalidInputError(f"no {name!r} in the context", field="columns")
    rows = np.full((table.num_rows, len(spec.context)), np.nan)
    for place, one in enumerate(spec.context):
        given = columns.context.get(one.name)
        wanted = (given,) if given else (f"context.{one.name}", one.name)
        name, column = _column(table, *wanted)
        values, codes = _coded(column)
        numbers = np.full(len(values) + 1, np.nan)
        for i, value in enumerate(values):
            if value is None:
                continue
            try:
                numbers[i] = one.number(_typed(one, value))
            except (InvalidInputError, ValueError) as error:
                at = int(np.flatnonzero(codes == i)[0]) + 1
                raise InvalidInputError(f"row {at}: {error}", field=name) from None
        rows[:, place] = numbers[codes]
        if one.required and np.isnan(rows[:, place]).any():
            at = int(np.flatnonzero(np.isnan(rows[:, place]))[0]) + 1
            raise InvalidInputError(f"row {at}: is required and missing", field=name)
    return rows


def _typed(one: ContextField, value: object) -> object:
    """Give a cell as the type that its field takes."""
    if one.kind == "category":
        return str(value)
    if one.kind == "flag":
        return _flag(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise InvalidInputError(f"{value[:40]!r} is not a number") from None
    return value


def _flag(value: object) -> bool:
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise InvalidInputError(f"{text[:40]!r} is neither yes nor no")
    return text in _TRUE


def _levels(table: pa.Table, spec: ExperimentSpec, columns: Columns) -> Ints:
    """Give the places of the levels that were sent, (n, 3); -1: none."""
    places = np.zeros((table.num_rows, 3), dtype=np.int64)
    for at, (factor, levels) in enumerate(zip(FACTORS, spec.actions.factors, strict=True)):
        given: str | None = getattr(columns, factor)
        if given is None and len(levels) == 1:
            continue
        name, column = _column(table, given or factor)
        values, codes = _coded(column)
        names = [level.name for level in levels]
        found = np.full(len(values) + 1, -1)
        for i, value in enumerate(values):
            if value is None:
                continue
            if str(value) not in names:
                row = int(np.flatnonzero(codes == i)[0]) + 1
                known = ", ".join(names[:20])
                raise InvalidInputError(
                    f"row {row}: no {factor} {str(value)[:64]!r}; there are {known}", field=name
                )
            found[i] = names.index(str(value))
        places[:, at] = found[codes]
    return places


def _outcomes(table: pa.Table, wanted: str) -> Floats:
    name, column = _column(table, wanted)
    values, codes = _coded(column)
    numbers = np.full(len(values) + 1, np.nan)
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            numbers[i] = float(_number_of(value))
        except (InvalidInputError, ValueError, TypeError):
            numbers[i] = math.inf
        if math.isinf(numbers[i]):
            row = int(np.flatnonzero(codes == i)[0]) + 1
            raise InvalidInputError(
                f"row {row}: {str(value)[:40]!r} is neither a number nor yes or no", field=name
            )
    return numbers[codes]


def _number_of(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float(_flag(value))
