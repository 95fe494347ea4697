"""Balanced weights: of the mixture of all loggers, or as a classifier finds them.

A log that several versions of a policy wrote may be read as if one policy had, their mixture;
its propensities are seldom small, so weights are (Agarwal et al. 2017). Where the versions'
policies are not kept, a classifier that tells rows of the log from rows with actions of the
target gives weights as its odds (Sondhi, Arbour & Dimmery 2020).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.log import Log
from sims.ope import models
from sims.ope.design import Contexts, Design, codes_of
from sims.ope.sampling import folds_of
from sims.ope.targets import Policy, probabilities

SMALLEST = 1e-6
"""Probabilities of the target below this are not fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Balance by the mixture of the policies that logged.

    Parameters
    ----------
    policies
        The policy of every version in the log, such as ``targets.target_of`` of its snapshot.
    """

    policies: Mapping[int, Policy]

    def weights(self, log: Log, target: Floats, shares: Mapping[int, float]) -> Floats:
        """Give target over mixture for the logged actions, (n,).

        Parameters
        ----------
        target : (n, k)
        shares
            Share of every version of the rows of the whole log.

        Raises
        ------
        InvalidInputError
            If a version has no policy, or the mixture never takes a logged action.

        Notes
        -----
        O(versions n k): every version is asked about every row.
        """
        places = np.arange(len(log))
        mixed = np.zeros(len(log))
        for version, share in shares.items():
            if version not in self.policies:
                raise InvalidInputError(
                    f"has rows of version {version}, whose policy is not given",
                    field="balancing.policies",
                )
            policy = probabilities(self.policies[version], log)
            mixed += share * policy[places, log.actions]
        if (mixed <= 0.0).any():
            row = int(np.flatnonzero(mixed <= 0.0)[0])
            raise InvalidInputError(
                f"no version takes action {log.actions[row]} of row {row} of a batch: the "
                "policies are not those that logged",
                field="balancing.policies",
            )
        found: Floats = target[places, log.actions] / mixed
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancer:
    """Balance by a classifier; logged propensities are not looked at.

    Parameters
    ----------
    kind
        ``logistic``: linear in context, action and their products, and in the logarithm of the
        target's probability; ``boosting``: trees on these.
    model
        Features, folds and penalty; its ``kind`` is not looked at.
    fit_rows
        Most rows of the log that are fitted; each gives a row for every action the target takes.
    largest
        No weight is larger.

    Raises
    ------
    InvalidInputError
        For an unknown kind, or a number out of range.

    Notes
    -----
    Consistent only as far as the classifier is: there is no unbiasedness as with propensities.
    """

    kind: Literal["logistic", "boosting"] = "logistic"
    model: models.RewardModel = field(default_factory=models.RewardModel)
    fit_rows: int = 20_000
    largest: float = 1e3

    def __post_init__(self) -> None:
        if self.kind not in ("logistic", "boosting"):
            raise InvalidInputError(
                f"{self.kind!r} is neither logistic nor boosting", field="balancing.kind"
            )
        if self.fit_rows < 10 or not self.largest > 0.0:
            raise InvalidInputError(
                "needs at least 10 rows and a positive largest weight", field="balancing"
            )

    def fit(self, sample: Log, target: Floats, numbers: Ints, *, seed: int) -> "Balanced":
        """Fit a classifier for every fold, each without it.

        Parameters
        ----------
        sample, numbers
            As in ``models.cross_fit``.
        target : (n, k)
            Of the rows of the sample.

        Raises
        ------
        InvalidInputError
            If the target never takes an action that was logged in the fitted rows, or all rows
            are in one fold.
        """
        here = np.flatnonzero(target[np.arange(len(sample)), sample.actions] > 0.0)
        contexts = Contexts(sample, self.model.encode)
        columns = contexts.columns(sample)
        folds = folds_of(sample, numbers, self.model.folds, seed)
        found = Balanced(self, contexts, seed, sample.size)
        for fold in range(self.model.folds):
            rest = np.flatnonzero(folds != fold)
            logged = here[folds[here] != fold]
            if not len(logged):
                raise InvalidInputError(
                    "no row outside of a fold has an action that the target takes; give more rows",
                    field="balancing.fit_rows",
                )
            who, actions = np.nonzero(target[rest] > SMALLEST)
            rows = np.concatenate([logged, rest[who]])
            every = np.concatenate([sample.actions[logged], actions])
            classes = np.repeat([0.0, 1.0], [len(logged), len(who)])
            weights = np.concatenate([np.ones(len(logged)), target[rest[who], actions]])
            table = found.table(columns[rows], every, target[rows, every])
            with threadpool_limits(1):  # sums in a fixed order
                found.parts.append(
                    self._new(columns.shape[1], found.codes, seed).fit(
                        table, classes, sample_weight=weights
                    )
                )
        return found

    def _new(self, width: int, codes: Ints, seed: int) -> Any:  # noqa: ANN401  not typed
        if self.kind == "logistic":
            return LogisticRegression(C=1.0 / self.model.penalty, max_iter=300)
        return models.trees(width + 1, codes, seed, is_classifier=True)


class Balanced:
    """A classifier of every fold; see ``Balancer.fit``."""

    def __init__(self, balancer: Balancer, contexts: Contexts, seed: int, size: int) -> None:
        self._balancer, self._contexts, self._seed = balancer, contexts, seed
        model = balancer.model
        self.codes = codes_of(model.levels, size)
        self.parts: list[Any] = []
        self._design = Design.of(model.features, model.levels, size)

    def table(self, columns: Floats, actions: Ints, probabilities: Floats) -> Any:  # noqa: ANN401
        """Give the features of contexts, actions and the target's probability of these.

        Notes
        -----
        The log odds that are sought are ``log target - log logged``: the first part is known.
        """
        known = np.log(np.maximum(probabilities, SMALLEST))[:, None]
        if self._balancer.kind == "boosting":
            return np.hstack([columns, known, self.codes[actions]])
        table = self._design.table(columns, actions)
        return sparse.hstack([table, sparse.csr_array(known)], format="csr")

    def weights(self, log: Log, target: Floats, numbers: Ints) -> Floats:
        """Give the odds that the logged action is one of the target, (n,).

        Parameters
        ----------
        target : (n, k)
        numbers : (n,)
            Of the rows in the whole log, from 0.

        Returns
        -------
        0 where the target never takes the logged action.
        """
        folds = folds_of(log, numbers, len(self.parts), self._seed)
        columns = self._contexts.columns(log)
        own = target[np.arange(len(log)), log.actions]
        found = np.zeros(len(log))
        with threadpool_limits(1, user_api="blas"):
            for fold, part in enumerate(self.parts):
                here = np.flatnonzero((folds == fold) & (own > 0.0))
                if len(here):
                    table = self.table(columns[here], log.actions[here], own[here])
                    chance = models.expectation(part, table)
                    found[here] = chance / np.maximum(1.0 - chance, 1e-12)
        return np.minimum(found, self._balancer.largest)
