"""What is wrong with the rows of a table: an error that names row and column, or a count."""

from collections import Counter
from typing import Any

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools
from sims.log.tables import Batch


class Sieve:
    """The rows of a batch that are still good.

    Parameters
    ----------
    batch
        Whose rows.
    where
        What an error names before the row: the file.
    exclude
        Whether bad rows are left out and counted, instead of refused.

    Attributes
    ----------
    alive : (n,)
        Rows that nothing was found wrong with, and that were not set apart.
    excluded, separated
        How many rows went, by why.
    """

    def __init__(self, batch: Batch, where: str, *, exclude: bool) -> None:
        self.alive: Bools = np.ones(batch.size, dtype=np.bool_)
        self.excluded: Counter[str] = Counter()
        self.separated: Counter[str] = Counter()
        self._batch = batch
        self._where = where
        self._exclude = exclude

    def refuse(self, bad: Bools, column: str, need: str, told: str = "") -> None:
        """Refuse rows because of what one column holds.

        Parameters
        ----------
        bad : (n,)
        column
            The column's name in the file.
        need
            What would be right.
        told
            What is there, if not the cell's own value.

        Raises
        ------
        InvalidInputError
            For the first of them, unless bad rows are to be left out.
        """
        mine = bad & self.alive
        if not mine.any():
            return
        if not self._exclude:
            i = int(np.flatnonzero(mine)[0])
            found = told or "got " + cell(self._batch, column, i)
            raise InvalidInputError(
                f"{need}, {found}",
                field=f'{self._where}: row {self._batch.first + i}, column "{shown_name(column)}"',
            )
        self.excluded[f"{shown_name(column)}: {need}"] += int(mine.sum())
        self.alive &= ~mine

    def separate(self, rows: Bools, why: str) -> None:
        """Set rows apart that are not wrong, but are no evidence."""
        mine = rows & self.alive
        if mine.any():
            self.separated[why] += int(mine.sum())
            self.alive &= ~mine


def cell(batch: Batch, column: str, i: int) -> str:
    """Show a cell."""
    try:
        return shown(batch.columns[column][i].as_py())
    except (OverflowError, ValueError):  # a date that Python does not have
        return "a value that can not be shown"


def shown(value: Any) -> str:  # noqa: ANN401  whatever a cell holds
    """Show a value that is not trusted: quoted, without control characters, and not long."""
    if value is None:
        return "nothing"
    text = ascii(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown_name(name: str) -> str:
    """Show the name of a column in the same way, without quotes."""
    return shown(name)[1:-1] if not name.isidentifier() else name[:64]
