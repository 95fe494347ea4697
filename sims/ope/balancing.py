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
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.log import Log
from sims.ope import models
from sims.ope.design import Contexts, Design, codes_of
from sims.ope.sampling import folds_of, taken
from sims.ope.targets import Policy, Target, probabilities


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
        ``boosting``: trees; ``logistic``: linear in context, action and their products.
    fit_rows
        Most rows of the log that are fitted; each gives a row for every action the target takes.
    largest
        No weight is larger.
    """

    kind: Literal["boosting", "logistic"] = "boosting"
    fit_rows: int = 20_000
    largest: float = 1e3
    model: models.RewardModel = field(default_factory=models.RewardModel)

    def fit(self, sample: Log, numbers: Ints, target: Target, *, seed: int) -> "Balanced":
        """Fit a classifier for every fold, each without it.

        Parameters
        ----------
        sample, numbers
            As in ``models.cross_fit``.
        target
            The policy that is evaluated; a matrix has the rows of the sample.
        """
        pi = probabilities(target, sample)
        contexts = Contexts(sample, self.model.encode)
        columns = contexts.columns(sample)
        folds = folds_of(sample, numbers, self.model.folds, seed)
        parts = []
        for fold in range(self.model.folds):
            rest = np.flatnonzero(folds != fold)
            if not len(rest):
                raise InvalidInputError(
                    "all rows are in one fold; give more rows or customers",
                    field="balancing.model.folds",
                )
            parts.append(self._fit(columns[rest], taken(sample, rest), pi[rest], seed))
        return Balanced(self, contexts, parts, seed, sample.size)

    def _fit(self, columns: Floats, log: Log, target: Floats, seed: int) -> Any:  # noqa: ANN401
        """Tell rows of the log, class 0, from the same contexts with actions of the target."""
        who, action = np.nonzero(target)
        rows = np.concatenate([np.arange(len(log)), who])
        actions = np.concatenate([log.actions, action])
        classes = np.repeat([0.0, 1.0], [len(log), len(who)])
        weights = np.concatenate([np.ones(len(log)), target[who, action]])
        with threadpool_limits(1):  # sums in a fixed order
            if self.kind == "logistic":
                table = Design.of(self.model.features, self.model.levels, log.size).table(
                    columns[rows], actions
                )
                one = LogisticRegression(C=1.0 / self.model.penalty, max_iter=300)
                return one.fit(table, classes, sample_weight=weights)
            codes = codes_of(self.model.levels, log.size)
            trees = models.trees(columns.shape[1], codes, seed, is_classifier=True)
            table = np.hstack([columns[rows], codes[actions]])
            return trees.fit(table, classes, sample_weight=weights)


class Balanced:
    """A classifier of every fold; see ``Balancer.fit``."""

    def __init__(
        self, balancer: Balancer, contexts: Contexts, parts: list[Any], seed: int, size: int
    ) -> None:
        self._balancer, self._contexts, self._parts, self._seed = balancer, contexts, parts, seed
        model = balancer.model
        self._codes = codes_of(model.levels, size)
        self._design = Design.of(model.features, model.levels, size)

    def weights(self, log: Log, *, start: int = 0) -> Floats:
        """Give the odds that the logged action is one of the target, (n,)."""
        numbers = np.arange(start, start + len(log))
        folds = folds_of(log, numbers, len(self._parts), self._seed)
        columns = self._contexts.columns(log)
        found = np.empty(len(log))
        with threadpool_limits(1, user_api="blas"):
            for fold, part in enumerate(self._parts):
                here = np.flatnonzero(folds == fold)
                if not len(here):
                    continue
                actions = log.actions[here]
                if self._balancer.kind == "logistic":
                    table = self._design.table(columns[here], actions)
                else:
                    table = np.hstack([columns[here], self._codes[actions]])
                chance = models.tree_output(part, table)
                found[here] = chance / np.maximum(1.0 - chance, 1e-12)
        return np.minimum(found, self._balancer.largest)
