"""The gate: one verdict on one specification, from worlds and, where there is one, a log."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from bandit import spec_file
from bandit.errors import BanditError, InvalidInputError
from bandit.spec import ExperimentSpec
from bandit.verdict import Check, Verdict
from sims.gate.logs import Judged, check_log, judge
from sims.gate.measures import check_trial
from sims.gate.static import check_spec
from sims.gate.trial import Trial, trial
from sims.log import Log
from sims.worlds import World

Progress = Callable[[int, int], None]
"""Told how many customers of how many are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A verdict, and all that it was made of.

    Attributes
    ----------
    spec
        What was validated.
    verdict
        The result.
    trials
        One for each world.
    judged
        What the log said; None without one.
    """

    spec: ExperimentSpec
    verdict: Verdict
    trials: tuple[Trial, ...] = ()
    judged: Judged | None = None


def validate(
    spec: ExperimentSpec,
    worlds: Mapping[str, World],
    log: Log | None = None,
    *,
    seed: int = 1,
) -> Verdict:
    """Give the verdict alone; see ``examine``.

    Raises
    ------
    InvalidInputError
        As ``examine``.
    """
    return examine(spec, worlds, log, seed=seed).verdict


def examine(  # noqa: PLR0913  what a verdict is made of
    spec: ExperimentSpec,
    worlds: Mapping[str, World],
    log: Log | None = None,
    *,
    log_name: str = "",
    seed: int = 1,
    progress: Progress | None = None,
) -> Findings:
    """Check a specification by itself, on the customers of worlds, and against a log.

    Parameters
    ----------
    worlds
        By name, at least one.
    log
        Rows in the order of time.
    log_name
        Name of the log, for the verdict.
    seed
        The same seed gives the same verdict.
    progress
        Called as customers are done.

    Raises
    ------
    InvalidInputError
        If there is no world, or a world or the log does not fit the experiment.
    """
    if not worlds:
        raise InvalidInputError(
            "needs at least one: without customers nothing is shown", field="worlds"
        )
    total, done = len(worlds) * spec.gate.customers * spec.gate.replications, 0

    def passed(customers: int) -> None:
        nonlocal done
        done += customers
        if progress is not None:
            progress(done, total)

    checks: list[Check] = check_spec(spec)
    trials = []
    for name, world in worlds.items():
        try:
            found = trial(spec, world, name=name, seed=seed, passed=passed)
        except BanditError as error:
            raise error.under(f"world {name}") from None
        trials.append(found)
        checks += check_trial(spec, found)
    judged = None
    if log is not None:
        judged = judge(spec, log)
        checks += check_log(spec, log, judged, log_name or "given")
    verdict = Verdict(
        experiment=spec.name,
        spec_hash=spec_file.digest(spec),
        checks=tuple(checks),
        worlds=tuple(f"{name} {digest(world)}" for name, world in worlds.items()),
        log="" if log is None else f"{log_name or 'given'} {digest_of_log(log)}",
        seed=seed,
        engine=_engine(),
    )
    return Findings(spec=spec, verdict=verdict, trials=tuple(trials), judged=judged)


def digest(world: World) -> str:
    """Give the first 16 hexadecimal digits of a world's SHA-256."""
    return hashlib.sha256(repr(world).encode()).hexdigest()[:16]


def digest_of_log(log: Log) -> str:
    """Give the first 16 hexadecimal digits of the SHA-256 of what is read of a log."""
    made = hashlib.sha256()
    for column in (log.actions, log.rewards, log.propensities, log.rows, log.times):
        made.update(b"" if column is None else column.tobytes())
    return made.hexdigest()[:16]


def _engine() -> str:
    try:
        return f"banditctl {metadata.version('banditctl')}"
    except metadata.PackageNotFoundError:
        return "banditctl"
