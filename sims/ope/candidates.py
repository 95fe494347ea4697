"""Candidates: policies that a log is asked about, by name, or learned from its first part."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from bandit.errors import InvalidInputError, NotFoundError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.policy import ActionName
from bandit.posterior import Posterior
from bandit.snapshot import Asked
from bandit.spec import ExperimentSpec
from sims.log import Log, taken
from sims.ope.targets import Policy, constant, fixed, target_of

NAMED = ("uniform", "baseline", "prior", "learned")
BELIEVING = ("prior", "learned")
"""Those that choose by a belief."""

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
    if name in BELIEVING:
        return policy_of(experiment, learned(experiment, first if name == "learned" else None))
    return fixed(action_of(name, spec))


def learned(experiment: Experiment, first: Iterable[Log] | None) -> Posterior:
    """Give what an experiment believes after a part of a log; None: before any.

    Raises
    ------
    InvalidInputError
        If there are no rows to learn from.
    """
    posterior = experiment.prior()
    rows = 0
    for log in first or ():
        _learn(experiment, posterior, log)
        rows += len(log)
    if first is not None and not rows:
        raise InvalidInputError("there is nothing to learn from", field="policy")
    return posterior


def policy_of(experiment: Experiment, posterior: Posterior) -> Policy:
    """Give the policy of an experiment with a belief, without learning on."""
    return in_steps(target_of(experiment, experiment.publish(posterior, version=1)))


def belief_of(experiment: Experiment, posterior: Posterior, log: Log) -> tuple[Floats, Floats]:
    """Give the mean score of every action over the rows of a log, and its spread, (k,).

    Exploration is left out: what is believed, not how it is acted upon.
    """
    if log.rows is None:
        raise InvalidInputError("needs contexts", field="log")
    spec, n = experiment.spec, len(log)
    plain = Experiment(
        replace(spec, policy=replace(spec.policy, exploration=1.0)), secret=experiment.secret
    ).publish(posterior, version=0)
    x = spec.encoder.encode(np.ascontiguousarray(log.rows))
    streams = np.zeros((n, 4), dtype=np.uint32)
    mask = spec.actions.mask.reshape(1, -1)
    asked = Asked(x, np.zeros(n, dtype=np.int64), mask, streams)
    means, sds = plain.belief.moments(asked)
    return means.mean(axis=0), sds.mean(axis=0)


def _learn(experiment: Experiment, posterior: Posterior, log: Log) -> None:
    if log.rows is None:
        raise InvalidInputError("needs contexts", field="log")
    experiment.learn(
        posterior,
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
