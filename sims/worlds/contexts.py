"""Contexts of real customers in Parquet: a typed column for every field of the schema."""

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bandit.context import OTHER, ContextField, ContextSchema
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.worlds.world import Contexts

_UNDECLARED = "(other)"


def write(path: Path, schema: ContextSchema, rows: Floats) -> Contexts:
    """Write contexts in schema order, (n, fields); give how a world refers to them."""
    columns = {
        field.name: _column(field, rows[:, place]) for place, field in enumerate(schema.fields)
    }
    pq.write_table(pa.table(columns), path)
    return Contexts(file=path.name, sha256=digest(path))


@lru_cache(maxsize=4)
def read(contexts: Contexts, schema: ContextSchema) -> Floats:
    """Read contexts in schema order, (n, fields).

    Raises
    ------
    InvalidInputError
        Naming the file, and the row and column that no context could have given.
    """
    path = Path(contexts.file)
    found = digest(path)
    if found != contexts.sha256:
        raise InvalidInputError(
            f"has sha256 {found}, the world was made with {contexts.sha256}", field=str(path)
        )
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError(f"is no Parquet: {error}", field=str(path)) from None
    missing = [f.name for f in schema.fields if f.name not in table.column_names]
    if missing:
        raise InvalidInputError(f"has no column {', '.join(missing)}", field=str(path))
    if not table.num_rows:
        raise InvalidInputError("has no row", field=str(path))
    rows = np.full((table.num_rows, len(schema.fields)), np.nan)
    for place, field in enumerate(schema.fields):
        for i, value in enumerate(table.column(field.name).to_pylist()):
            if value is not None:
                try:
                    rows[i, place] = field.number(value)
                except InvalidInputError as error:
                    at = f"{path}: row {i + 1}: {field.name}"
                    raise InvalidInputError(error.message, field=at) from None
    try:
        schema.check_rows(rows)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), field=str(path)) from None
    rows.flags.writeable = False
    return rows


def _column(field: ContextField, values: Floats) -> pa.Array:
    known = np.isfinite(values)
    if field.kind == "category":
        names = [*field.levels, _UNDECLARED]  # OTHER is -1: the last one
        places = np.where(known, values, OTHER).astype(np.int64)
        listed = [names[at] if ok else None for at, ok in zip(places, known, strict=True)]
        return pa.array(listed, pa.string())
    kind = pa.bool_() if field.kind == "flag" else pa.float64()
    return pa.array(values == 1.0 if field.kind == "flag" else values, kind, mask=~known)


def digest(path: Path) -> str:
    """Give the SHA-256 of a file.

    Raises
    ------
    InvalidInputError
        If it can not be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(path)) from None
