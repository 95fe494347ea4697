"""Candidates: policies that a log is asked about, by name, or learned from its first part."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from bandit.errors import InvalidInputError, NotFoundError
from bandit.experiment import Experiment
from bandit.policy import ActionName
from bandit.spec import ExperimentSpec
from sims.log import Log, taken
from sims.ope.targets import Policy, constant, fixed, target_of

NAMED = ("uniform", "baseline", "prior", "learned")
STEP = 8_192

Open = Callable[[], Iterable[Log]]
"""Opens a log anew, batch by batch."""


def parts(opened: Open, last: int) -> tuple[Open, Open]:
    """Cut a log into the rows of its file up to a place, and those behind it.

    Parameters
    ----------
    last
        Last row of the first part; 0: there is no first part.
    """

    def first() -> Iterator[Log]:
        for log in opened():
            if log.places is None or not len(log) or log.places[0] > last:
                return
            yield taken(log, log.places <= last)

    def rest() -> Iterator[Log]:
        for log in opened():
            if log.places is None:
                raise InvalidInputError("does not tell the places of its rows", field="log")
            if log.places[-1] > last:
                yield log if log.places[0] > last else taken(log, log.places > last)

    return first, rest


def candidate(name: str, experiment: Experiment, first: Iterable[Log] = ()) -> Policy:
    """Give a policy by its name.

    Parameters
    ----------
    name
        ``uniform`` over the actions that the experiment's own rules leave; ``baseline``, the
        declared action; ``prior``, the experiment's policy as it begins; ``learned``, the same
        after it learned from the first part of the log; or an action as
        ``VARIANT,CHANNEL,SLOT``, where factors with one level may be left out.
    first
        What is learned from; not the rows that the policy is evaluated on, or its own luck would
        be taken for its worth.

    Raises
    ------
    InvalidInputError
        If there is no such policy.
    """
    spec = experiment.spec
    if name == "uniform":
        mask = spec.actions.mask
        return constant(mask / mask.sum())
    if name == "baseline":
        if experiment.baseline is None:
            raise InvalidInputError("the experiment declares no baseline", field="policy")
        return fixed(experiment.baseline)
    if name in ("prior", "learned"):
        posterior = experiment.prior()
        rows = 0
        for log in first if name == "learned" else ():
            _learn(experiment, posterior, log)
            rows += len(log)
        if name == "learned" and not rows:
            raise InvalidInputError("there is nothing to learn from", field="policy")
        snapshot = experiment.publish(posterior, version=int(name == "learned"))
        return in_steps(target_of(experiment, snapshot))
    return fixed(action_of(name, spec))


def _learn(experiment: Experiment, posterior: object, log: Log) -> None:
    if log.rows is None:
        raise InvalidInputError("needs contexts", field="log")
    experiment.learn(
        posterior,  # type: ignore[arg-type]
        log.rows,
        log.actions.tolist(),
        log.rewards,
        seq=int(log.places[-1]) if log.places is not None and len(log) else 0,
        times=log.times if log.times is not None else np.zeros(len(log)),
    )


def in_steps(policy: Policy) -> Policy:
    """Ask a policy about few rows at a time, so that memory does not grow with the batch."""

    def asked(log: Log) -> np.ndarray:
        if len(log) <= STEP:
            return policy(log)
        starts = range(0, len(log), STEP)
        return np.concatenate([policy(taken(log, slice(s, s + STEP))) for s in starts])

    return asked


def action_of(name: str, spec: ExperimentSpec) -> int:
    """Give the action that is named by its levels, with commas between.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    words = [word.strip() for word in name.split(",")]
    several = [levels for levels in spec.actions.factors if len(levels) > 1]
    if len(words) == len(several) < 3:
        given = iter(words)
        words = [
            next(given) if len(levels) > 1 else levels[0].name for levels in spec.actions.factors
        ]
    if len(words) != 3:
        raise InvalidInputError(
            f"{name[:64]!r} is none of {', '.join(NAMED)}, nor an action as VARIANT,CHANNEL,SLOT",
            field="policy",
        )
    try:
        one = ActionName(variant=words[0], channel=words[1], slot=words[2])
        return spec.actions.index(one.variant, one.channel, one.slot)
    except NotFoundError as error:
        raise InvalidInputError(
            f"{error.message}; a policy is one of {', '.join(NAMED)}, or an action", field="policy"
        ) from None
