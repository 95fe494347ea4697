"""The front door: policies on common random numbers, many replications, plain records."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bandit.policy import PolicySpec
from bandit.spec import ExperimentSpec
from sims.backends import Backend
from sims.rollouts.many import played
from sims.rollouts.plan import AtOnce, Learning, Plan, named, with_references
from sims.rollouts.records import Rollout
from sims.worlds import World

Progress = Callable[[int, int], None]
"""Told how many customers of how many are done, all policies and replications counted."""


def plan_of(  # noqa: PLR0913  what a rollout is made of
    spec: ExperimentSpec,
    world: World,
    policies: Mapping[str, PolicySpec | str] | None = None,
    *,
    customers: int = 10_000,
    replications: int = 20,
    seed: int = 1,
    learning: Learning | None = None,
    checkpoints: Sequence[int] = (),
) -> Plan:
    """Give the plan of a rollout, references included; see ``rollout``."""
    asked: Mapping[str, PolicySpec | str] = (
        {"policy": spec.policy} if policies is None else policies
    )
    made = {
        label: named(spec, policy) if isinstance(policy, str) else policy
        for label, policy in asked.items()
    }
    return Plan(
        spec=spec,
        world=world,
        policies=with_references(spec, made),
        customers=customers,
        replications=replications,
        seed=seed,
        learning=AtOnce() if learning is None else learning,
        checkpoints=tuple(checkpoints),
    )


def rollout(  # noqa: PLR0913  what a rollout is made of
    spec: ExperimentSpec,
    world: World,
    policies: Mapping[str, PolicySpec | str] | None = None,
    *,
    customers: int = 10_000,
    replications: int = 20,
    seed: int = 1,
    learning: Learning | None = None,
    checkpoints: Sequence[int] = (),
    progress: Progress | None = None,
    workers: int | None = None,
    backend: str | None = None,
    scheduler: str = "",
    folder: Path | None = None,
) -> Rollout:
    """Let policies decide for the same simulated customers, again and again.

    Parameters
    ----------
    spec
        The experiment: actions, context, outcome.
    world
        How customers behave.
    policies
        By label: a policy, or the kind of one (``"linucb"``, ``"fixed:variant/channel"``).
        None compares the experiment's own. The references ``uniform`` and, where one is
        declared, ``baseline`` are added.
    customers, replications
        How many each policy decides for, and how often that is repeated from scratch.
    seed
        The same seed gives the same bits.
    learning
        ``AtOnce()`` (None), or ``Published(outcomes=..., seconds=...)``: a server's cadence.
    checkpoints
        Customers after which figures are kept; empty: fifty alike.
    progress
        Called as customers are done.
    workers, backend, scheduler
        Processes, and where: ``here``, ``loky``, ``dask`` or ``ray``; see ``Backend``. None is
        this process. The bits are the same.
    folder
        Finished shards are kept in it, and a run that was ended goes on with them.

    Raises
    ------
    InvalidInputError
        If something is out of range, or world and policies do not fit the experiment.
    UnavailableError
        If a worker dies, or a cluster can not be reached.
    """
    how = Backend.of(workers, backend, scheduler)
    plan = plan_of(
        spec,
        world,
        policies,
        customers=customers,
        replications=replications,
        seed=seed,
        learning=learning,
        checkpoints=checkpoints,
    )
    total, done = customers * replications * len(plan.policies), 0

    def passed(decisions: int) -> None:
        nonlocal done
        done += decisions
        if progress is not None:
            progress(done, total)

    return played(plan, how, folder=folder, passed=passed)
