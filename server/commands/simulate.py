"""``banditctl simulate``: policies on simulated customers, before one real customer is touched."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from bandit.errors import BanditError, InvalidInputError
from bandit.policy import PolicySpec
from bandit.spec import ExperimentSpec
from server.commands import options, show, through_server
from sims import worlds
from sims.rollout import (
    AtOnce,
    Estimate,
    Learning,
    Plan,
    Published,
    Rollout,
    detection,
    named,
    plan_of,
    reduce,
    shards,
    task,
)
from sims.rollout.plan import BASELINE, UNIFORM
from sims.worlds import World


def simulate(  # noqa: PLR0913  one per option
    spec: Annotated[Path, typer.Argument(help="The experiment: .toml, .yaml or .json.")],
    world: Annotated[
        Path | None, typer.Option(help="How customers behave; else SPEC's name with .world.toml.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=KIND, such as ucb=linucb or best=fixed:variant/channel, or LABEL=FILE: "
            "the policy of another experiment file. Again for each; else the experiment's own."
        ),
    ] = None,
    customers: Annotated[int, typer.Option(help="How many each policy decides for.")] = 10_000,
    replications: Annotated[int, typer.Option(help="How often, from scratch.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 1,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Learn each outcome when it is due (the default).")
    ] = False,
    publish_every: Annotated[
        int | None,
        typer.Option(help="Learn as a server does: publish after so many outcomes."),
    ] = None,
    publish_seconds: Annotated[
        float | None, typer.Option(help="... or so long after the first, in the world's time.")
    ] = None,
    through_server: Annotated[
        bool,
        typer.Option(
            "--through-server", help="Play a real server, too, and compare every decision."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON and Parquet.")] = None,
) -> None:
    """Let policies decide for the same simulated customers: regret, reward, lift, time to detect.

    The exit status is 1 if a server, where one is asked for, decides otherwise than the engine.
    """
    experiment = options.read_spec(spec)
    learning = _learning(experiment, (publish_every, publish_seconds), at_once=at_once)
    plan = plan_of(
        experiment,
        _world(world, spec),
        _policies(experiment, policy or []),
        customers=customers,
        replications=replications,
        seed=seed,
        learning=learning,
    )
    if through_server and not isinstance(learning, Published):
        raise InvalidInputError(
            "a server publishes now and then; give --publish-every", field="through_server"
        )
    if out is not None:
        _made(out)
    found = _through(plan) if through_server else _played(plan)
    _show(found)
    if out is not None:
        _write(found, out)


def _learning(
    spec: ExperimentSpec, every: tuple[int | None, float | None], *, at_once: bool
) -> Learning:
    outcomes, seconds = every
    if outcomes is None and seconds is None:
        return AtOnce()
    if at_once:
        raise InvalidInputError("goes without --publish-every", field="at_once")
    declared = spec.publishing
    return Published(
        outcomes=declared.outcomes if outcomes is None else outcomes,
        seconds=86_400.0 if seconds is None else seconds,
    )


def _world(path: Path | None, spec: Path) -> World:
    """Read the world that is named, or the one beside the experiment."""
    if path is None:
        path = next(
            (p for p in (spec.with_suffix(".world.toml"), _beside(spec)) if p.exists()), None
        )
    if path is None:
        raise InvalidInputError(
            f"name one with --world: there is no {spec.with_suffix('.world.toml').name} beside "
            "the experiment",
            field="world",
        )
    return worlds.read(path)


def _beside(spec: Path) -> Path:
    return spec.with_name(f"{spec.stem}_world.toml")


def _policies(spec: ExperimentSpec, asked: list[str]) -> dict[str, PolicySpec | str] | None:
    found: dict[str, PolicySpec | str] = {}
    for one in asked:
        label, equals, what = one.partition("=")
        if not (label and equals and what):
            raise InvalidInputError(f"{one!r} is not LABEL=KIND or LABEL=FILE", field="policy")
        if label in found:
            raise InvalidInputError(f"repeats the label {label!r}", field="policy")
        is_file = Path(what).suffix.lower() in (".toml", ".yaml", ".yml", ".json")
        found[label] = options.read_spec(Path(what)).policy if is_file else named(spec, what)
    return found or None


def _played(plan: Plan) -> Rollout:
    """Play all replications in this process, behind a progress bar."""
    with _progress("simulate") as (progress, bar):
        tracks = [
            task(plan, shard, lambda n: progress.advance(bar, n)) for shard in _all(plan, progress)
        ]
    return reduce(plan, tracks)


def _through(plan: Plan) -> Rollout:
    """Play all replications in process and through servers; end if they differ."""
    with _progress("through the server") as (progress, bar):
        progress.update(bar, total=plan.customers * plan.replications * len(plan.policies))
        found = through_server.compare(plan, lambda n: progress.advance(bar, n))
    if found.difference is not None:
        label, replication, customer, column, here, there = found.difference
        raise BanditError(
            f"the server decides otherwise: policy {label!r}, replication {replication}, customer "
            f"{customer}: {column} is {here!r} in process and {there!r} through the server"
        )
    typer.echo(f"through the server: the same {found.decisions:,} decisions, bit for bit")
    return reduce(plan, [found.track])


class _progress:  # noqa: N801  used as a function
    def __init__(self, what: str) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            TaskProgressColumn(show_speed=True),
            TimeRemainingColumn(),
            console=show.console,
        )
