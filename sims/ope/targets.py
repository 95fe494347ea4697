"""The policy that is evaluated: probabilities of every action, for rows of a log.

A target is a matrix (n, k), or a function from a batch of a log to such a matrix; the helpers
here make the common ones.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from bandit import rng
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.groups import Groups
from bandit.kernels.compiling import Floats
from bandit.question import Questions
from bandit.snapshot import Snapshot
from sims.kernels import weighing
from sims.log import Log

Policy = Callable[[Log], Floats]
"""From a batch of a log to the probability of every action, shape (n, k)."""

Target = Floats | Policy

TOLERANCE = 1e-6
"""How far from 1 the probabilities of a row may sum."""


def uniform(log: Log) -> Floats:
    """Every action as likely as every other."""
    return np.full((len(log), log.size), 1.0 / log.size)


def fixed(action: int) -> Policy:
    """Give the policy that always takes one action."""

    def policy(log: Log) -> Floats:
        if not 0 <= action < log.size:
            raise InvalidInputError(
                f"must be in [0, {log.size - 1}], got {action}", field="target.action"
            )
        probabilities = np.zeros((len(log), log.size))
        probabilities[:, action] = 1.0
        return probabilities

    return policy


def constant(probabilities: ArrayLike) -> Policy:
    """Give a policy that does not look at the context.

    Parameters
    ----------
    probabilities : (k,) or (k, positions)
        Of every action; for every position where the log has them, as in the Open Bandit data.
    """
    table = np.asarray(probabilities, dtype=np.float64)

    def policy(log: Log) -> Floats:
        if table.ndim not in (1, 2) or len(table) != log.size:
            raise InvalidInputError(
                f"has shape {table.shape}, but the log has {log.size} actions", field="target"
            )
        if table.ndim == 1:
            return np.tile(table, (len(log), 1))
        if log.positions is None:
            raise InvalidInputError(
                "differs by position, and the log has no positions", field="target"
            )
        if len(log) and not 0 <= log.positions.min() <= log.positions.max() < table.shape[1]:
            raise InvalidInputError(
                f"has {table.shape[1]} positions, the log has {log.positions.max()}",
                field="target",
            )
        return np.ascontiguousarray(table.T[log.positions])

    return policy


def target_of(experiment: Experiment, snapshot: Snapshot) -> Policy:
    """Give the policy of an experiment with one published belief, for customers of the bandit.

    Parameters
    ----------
    snapshot
        From ``experiment.publish``: the belief as it would serve, without learning on.

    Raises
    ------
    InvalidInputError
        If the snapshot is of another experiment.

    Notes
    -----
    Propensities are those of ``Experiment.decide_columns``. Everybody is in the bandit group,
    so the random group and the baseline are no part of the policy. Exclusions of single requests
    are not in a log, so only the experiment's own rules hold.
    """
    experiment.check_snapshot(snapshot)
    everyone = Groups(random=0.0, baseline=0.0, no_contact=0.0)
    bandit = Experiment(replace(experiment.spec, groups=everyone), secret=experiment.secret)
    name = bandit.spec.name
    one = rng.decision_ids(bandit.secret, name, ["target"], at_ms=0)
    customer = rng.customer_keys(bandit.secret, name, ["target"])

    def policy(log: Log) -> Floats:
        if log.rows is None:
            raise InvalidInputError("has no contexts to decide for", field="log.rows")
        n = len(log)
        same = np.zeros(n, dtype=np.int64)
        questions = Questions(one[same], customer[same], log.rows)
        found = bandit.decide_columns(snapshot, questions, propensities=True).propensities
        assert found is not None  # noqa: S101  asked for
        return found

    return policy


def probabilities(target: Target, log: Log, *, start: int = 0) -> Floats:
    """Give the probabilities of a batch: of a function, or rows of a matrix.

    Parameters
    ----------
    start
        Number of rows of the log before this batch.

    Raises
    ------
    InvalidInputError
        If they do not fit the batch, or a row is no distribution.
    """
    found = target(log) if callable(target) else target[start : start + len(log)]
    check_probabilities(found, log, start=start)
    return found


def check_probabilities(target: Floats, log: Log, *, start: int = 0) -> None:
    """Refuse what is no table of distributions.

    Raises
    ------
    InvalidInputError
        Naming row and column, both from 0.
    """
    _check_shape(target, log, "target")
    packed = np.ascontiguousarray(target, dtype=np.float64)
    row, column, value = weighing.first_bad_row(packed, TOLERANCE)
    if row >= 0 and column >= 0:
        raise InvalidInputError(
            f"must be a probability, got {value}", field=f"target[{start + row}, {column}]"
        )
    if row >= 0:
        raise InvalidInputError(
            f"probabilities must sum to 1, got {value}", field=f"target[{start + row}]"
        )


def check_predictions(predicted: Floats, log: Log, *, start: int = 0) -> None:
    """Refuse predictions that are not a finite number for every action.

    Raises
    ------
    InvalidInputError
        Naming row and column, both from 0.
    """
    _check_shape(predicted, log, "predicted")
    if not np.isfinite(predicted).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(predicted))[0])
        raise InvalidInputError(
            f"must be finite, got {predicted[row, column]}",
            field=f"predicted[{start + row}, {column}]",
        )


def _check_shape(table: Floats, log: Log, name: str) -> None:
    if table.dtype.kind != "f":
        raise InvalidInputError("must be an array of real numbers", field=name)
    if table.shape != (len(log), log.size):
        raise InvalidInputError(
            f"has shape {table.shape}, but there are {len(log)} rows and {log.size} actions",
            field=name,
        )
