"""Reward models: what every action would earn, predicted by a model that did not see the row.

scikit-learn fits; this module makes the features, the folds and the predictions for all actions.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from scipy import special
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from bandit.spec import ExperimentSpec
from sims.log import Log, taken
from sims.ope.design import Contexts, Design, codes_of
from sims.ope.sampling import folds_of

Kind = Literal["auto", "logistic", "ridge", "boosting"]
Features = Literal["interacted", "additive", "per_action"]

MAX_CATEGORIES = 255
"""Levels of a factor that scikit-learn's boosted trees can tell apart."""

_CELLS = 1 << 22
"""Numbers of expanded features at a time, so that the memory of predictions is bounded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardModel:
    """How expected rewards are modelled.

    Parameters
    ----------
    kind
        ``logistic`` for rewards that are 0 or 1, ``ridge`` for numbers, ``boosting`` for trees on
        either; ``auto`` is logistic where all rewards are 0 or 1, else ridge.
    features
        Of the linear kinds. ``interacted``: context, action, and context times action;
        ``additive``: without the last; ``per_action``: every action has weights of its own, and
        shares none. Trees find interactions themselves.
    folds
        A row is predicted by a model that was fitted without its fold.
    fit_rows
        Most rows that are fitted; of a larger log a sample.
    penalty
        Of squared weights, on standardised columns.
    encode
        From contexts (n, fields) to features (n, d) without gaps, such as
        ``spec.encoder.encode``; None: contexts as they are, with a column for what is missing.
    levels : (k, factors) or None
        Levels of every action, such as ``spec.actions.table``: actions share what their levels
        share. None: every action is a level.

    Raises
    ------
    InvalidInputError
        For an unknown word, or a number out of range.
    """

    kind: Kind = "auto"
    features: Features = "interacted"
    folds: int = 3
    fit_rows: int = 100_000
    penalty: float = 1.0
    encode: Callable[[Floats], Floats] | None = None
    levels: Ints | None = None

    def __post_init__(self) -> None:
        words = {
            "kind": ("auto", "logistic", "ridge", "boosting"),
            "features": ("interacted", "additive", "per_action"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise InvalidInputError(
                    f"{getattr(self, name)!r} is not one of {', '.join(known)}",
                    field=f"model.{name}",
                )
        if self.folds < 2:
            raise InvalidInputError(f"must be at least 2, got {self.folds}", field="model.folds")
        if self.fit_rows < 10:
            raise InvalidInputError(
                f"must be at least 10, got {self.fit_rows}", field="model.fit_rows"
            )
        if not 0.0 < self.penalty < np.inf:
            raise InvalidInputError(f"must be positive, got {self.penalty}", field="model.penalty")


def model_of(spec: ExperimentSpec, **settings: Any) -> RewardModel:  # noqa: ANN401  passed on
    """Give a model that sees contexts and levels as the experiment does.

    Parameters
    ----------
    settings
        Of ``RewardModel``.
    """
    levels = spec.actions.table.astype(np.int64)
    return RewardModel(encode=spec.encoder.encode, levels=levels, **settings)


class Predictor(Protocol):
    """What was fitted on one part of a sample."""

    def predict(self, contexts: Floats) -> Floats:
        """Give what every action is expected to earn, (n, k)."""
        ...  # pragma: no cover


class _Constant(NamedTuple):
    """All rewards of the fitted part were the same."""

    value: float
    size: int

    def predict(self, contexts: Floats) -> Floats:
        return np.full((len(contexts), self.size), self.value)


class _Linear(NamedTuple):
    design: Design
    weights: Floats
    intercept: float
    is_logistic: bool

    def predict(self, contexts: Floats) -> Floats:
        scores = self.design.scores(self.weights, contexts) + self.intercept
        return np.asarray(special.expit(scores)) if self.is_logistic else scores


class _Trees(NamedTuple):
    model: Any
    codes: Floats

    def predict(self, contexts: Floats) -> Floats:
        k = len(self.codes)
        step = max(_CELLS // (k * (contexts.shape[1] + self.codes.shape[1])), 1)
        found = np.empty((len(contexts), k))
        for start in range(0, len(contexts), step):
            part = contexts[start : start + step]
            table = np.hstack([np.repeat(part, k, axis=0), np.tile(self.codes, (len(part), 1))])
            found[start : start + step] = expectation(self.model, table).reshape(len(part), k)
        return found


class Fitted:
    """A model of every fold.

    Parameters
    ----------
    contexts
        What standardises.
    parts
        One predictor for every fold, fitted without it.
    seed
        Names the folds.
    kind
        What was fitted.
    """

    def __init__(self, contexts: Contexts, parts: list[Predictor], seed: int, kind: str) -> None:
        self.contexts, self.parts, self.seed, self.kind = contexts, parts, seed, kind

    def predict(self, log: Log, numbers: Ints) -> Floats:
        """Give what every action is expected to earn, by a model that did not see the row.

        Parameters
        ----------
        numbers : (n,)
            Of the rows in the whole log, from 0: as when the sample was taken.

        Returns
        -------
        (n, k)
        """
        folds = folds_of(log, numbers, len(self.parts), self.seed)
        contexts = self.contexts.columns(log)
        found = np.empty((len(log), log.size))
        with threadpool_limits(1, user_api="blas"):  # the same bits however many cores
            for fold, part in enumerate(self.parts):
                here = np.flatnonzero(folds == fold)
                if len(here):
                    found[here] = part.predict(contexts[here])
        return found


def cross_fit(model: RewardModel, sample: Log, numbers: Ints, *, seed: int) -> Fitted:
    """Fit a model for every fold, each without it.

    Parameters
    ----------
    sample, numbers
        Rows, and their numbers in the log; see ``sampling.Sample``.
    seed
        Names the folds, and the draws of boosted trees.

    Raises
    ------
    InvalidInputError
        If a fold or the rest of it is empty, or the rewards do not fit the kind.
    """
    contexts = Contexts(sample, model.encode)
    columns = contexts.columns(sample)
    folds = folds_of(sample, numbers, model.folds, seed)
    kind = kind_of(model, sample.rewards)
    parts: list[Predictor] = []
    for fold in range(model.folds):
        rest = np.flatnonzero(folds != fold)
        if not len(rest):
            raise InvalidInputError(
                f"all rows are in one of {model.folds} folds; give more rows or customers",
                field="model.folds",
            )
        parts.append(fitted_on(model, kind, columns[rest], taken(sample, rest), seed))
    return Fitted(contexts, parts, seed, kind)


def kind_of(model: RewardModel, rewards: Floats) -> str:
    """Give what is fitted to such rewards.

    Raises
    ------
    InvalidInputError
        If the rewards do not fit the kind that is asked for.
    """
    is_binary = bool(((rewards == 0.0) | (rewards == 1.0)).all())
    if model.kind == "logistic" and not is_binary:
        raise InvalidInputError(
            "logistic needs rewards that are 0 or 1; use ridge or boosting", field="model.kind"
        )
    if model.kind == "auto":
        return "logistic" if is_binary else "ridge"
    if model.kind == "boosting":
        return "trees of odds" if is_binary else "trees"
    return model.kind


def fitted_on(model: RewardModel, kind: str, columns: Floats, log: Log, seed: int) -> Predictor:
    """Fit some rows."""
    if log.rewards.min() == log.rewards.max():
        return _Constant(float(log.rewards[0]), log.size)
    if kind.startswith("trees"):
        codes = codes_of(model.levels, log.size)
        estimator = trees(columns.shape[1], codes, seed, is_classifier=kind != "trees")
        table = np.hstack([columns, codes[log.actions]])
        with threadpool_limits(1):  # sums in a fixed order
            estimator.fit(table, log.rewards)
        return _Trees(estimator, codes.astype(np.float64))
    design = Design.of(model.features, model.levels, log.size)
    table = design.table(columns, log.actions)
    is_logistic = kind == "logistic"
    estimator = (
        LogisticRegression(C=1.0 / model.penalty, max_iter=300)
        if is_logistic
        else Ridge(alpha=model.penalty, solver="sparse_cg", max_iter=300, tol=1e-6)
    )
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # a fit that stopped early is a coarser model, and no estimate relies on a good one
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(table, log.rewards)
    weights = np.asarray(estimator.coef_, dtype=np.float64).ravel()
    return _Linear(design, weights, float(np.ravel(estimator.intercept_)[0]), is_logistic)


def trees(width: int, codes: Ints, seed: int, *, is_classifier: bool) -> Any:  # noqa: ANN401
    """Give boosted trees on ``width`` numbers and the levels of the action.

    Raises
    ------
    InvalidInputError
        If a factor has more levels than trees can tell apart.
    """
    if int(codes.max(initial=0)) >= MAX_CATEGORIES:
        raise InvalidInputError(
            f"boosting can tell {MAX_CATEGORIES} levels apart, and there are "
            f"{int(codes.max()) + 1}; give the factors of the actions, or use a linear kind",
            field="model.levels",
        )
    kind = HistGradientBoostingClassifier if is_classifier else HistGradientBoostingRegressor
    return kind(
        random_state=seed % 2**32,
        early_stopping=False,
        max_leaf_nodes=15,  # few rows of most actions: large trees fit their noise
        categorical_features=list(range(width, width + codes.shape[1])),
    )


def expectation(model: Any, table: Floats) -> Floats:  # noqa: ANN401  scikit-learn is not typed
    """Give the expectation, or the probability of the second class."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(table)[:, 1])
    return np.asarray(model.predict(table))
