"""Features of a context and an action, for models of rewards and of who logged a row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.log import Log


class Contexts:
    """From a log to standardised columns, fitted on a sample.

    Parameters
    ----------
    sample
        Rows that give centre and scale.
    encode
        As in ``RewardModel``.

    Notes
    -----
    A column that is missing somewhere in the sample gets another that says so; columns that do
    not vary are dropped. Positions are one column each, less one.
    """

    def __init__(self, sample: Log, encode: Callable[[Floats], Floats] | None) -> None:
        self._encode = encode
        self._positions = (
            np.unique(sample.positions)[1:] if sample.positions is not None else np.zeros(0, int)
        )
        raw = self.raw(sample)
        missing = np.isnan(raw)
        self._gaps = missing.any(axis=0)
        count = np.maximum((~missing).sum(axis=0), 1)
        self._centre = np.where(missing, 0.0, raw).sum(axis=0) / count
        filled = self._filled(raw)
        scale = filled.std(axis=0)
        self._varies = scale > 1e-12 * np.maximum(np.abs(filled).max(axis=0, initial=0.0), 1e-300)
        self._shift = filled.mean(axis=0)[self._varies]
        self._scale = scale[self._varies]

    def raw(self, log: Log) -> Floats:
        """Give the columns before they are standardised, NaN where missing."""
        parts = [np.zeros((len(log), 0))]
        if log.rows is not None:
            parts.append(log.rows if self._encode is None else self._encode(log.rows))
        if len(self._positions):
            if log.positions is None:
                raise InvalidInputError("is in some batches only", field="log.positions")
            parts.append((log.positions[:, None] == self._positions).astype(np.float64))
        return np.hstack(parts)

    def _filled(self, raw: Floats) -> Floats:
        missing = np.isnan(raw)
        filled = np.where(missing, self._centre, raw)
        return np.hstack([filled, missing[:, self._gaps].astype(np.float64)])

    def columns(self, log: Log) -> Floats:
        """Give the standardised columns, (n, d)."""
        found: Floats = (self._filled(self.raw(log))[:, self._varies] - self._shift) / self._scale
        return found


class Design(NamedTuple):
    """Features of a context and an action for models that are linear in them.

    Attributes
    ----------
    actions : (k, m)
        One column for every level of every factor.
    is_shared
        Whether the context has weights that all actions share.
    is_interacted
        Whether there are products of context and action.
    """

    actions: Floats
    is_shared: bool
    is_interacted: bool

    @classmethod
    def of(cls, features: str, levels: Ints | None, size: int) -> "Design":
        """Give the design of ``size`` actions; see ``models.RewardModel``."""
        return cls(_one_hot(levels, size), features != "per_action", features != "additive")

    def table(self, contexts: Floats, actions: Ints) -> Any:  # noqa: ANN401  scipy is not typed
        """Give the features of rows, sparse (n, columns)."""
        n, d = contexts.shape
        levels = sparse.csr_array(self.actions)[actions]
        parts = [sparse.csr_array(contexts)] if self.is_shared and d else []
        parts.append(levels)
        if self.is_interacted and d:
            coordinates = levels.tocoo()
            rows, columns, loads = coordinates.row, coordinates.col, coordinates.data
            m = self.actions.shape[1]
            at = (columns[:, None] * d + np.arange(d)).ravel()
            values = (loads[:, None] * contexts[rows]).ravel()
            crossed = sparse.coo_array((values, (np.repeat(rows, d), at)), shape=(n, m * d))
            parts.append(crossed)
        return sparse.hstack(parts, format="csr")

    def scores(self, weights: Floats, contexts: Floats) -> Floats:
        """Give the weighted sum of features for every action, (n, k)."""
        d, m = contexts.shape[1], self.actions.shape[1]
        shared = d if self.is_shared else 0
        of_levels = weights[shared : shared + m]
        found = np.tile(self.actions @ of_levels, (len(contexts), 1))
        if d and self.is_shared:
            found += (contexts @ weights[:shared])[:, None]
        if d and self.is_interacted:
            found += contexts @ (self.actions @ weights[shared + m :].reshape(m, d)).T
        return found


def codes_of(levels: Ints | None, size: int) -> Ints:
    """Give the levels of every action, (k, factors) from 0; factors with one level are dropped.

    Raises
    ------
    InvalidInputError
        If there is not one row for every action.
    """
    if levels is None:
        return np.arange(size)[:, None]
    if levels.ndim != 2 or len(levels) != size:
        raise InvalidInputError(
            f"have shape {levels.shape}, but the log has {size} actions", field="model.levels"
        )
    columns = [np.unique(column, return_inverse=True)[1] for column in levels.T]
    kept = [column for column in columns if column.max(initial=0) > 0]
    return np.column_stack(kept) if kept else np.zeros((size, 1), dtype=np.int64)


def _one_hot(levels: Ints | None, size: int) -> Floats:
    codes = codes_of(levels, size)
    return np.hstack([np.eye(int(column.max()) + 1)[column] for column in codes.T])
