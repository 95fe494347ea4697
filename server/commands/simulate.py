"""``banditctl simulate``: policies on simulated customers, before one real customer is touched."""

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from bandit.errors import BanditError, InvalidInputError
from bandit.policy import PolicySpec
from bandit.spec import ExperimentSpec
from server.commands import options, show, simulated, through_server
from server.commands.simulated import PresetName, Spec, WorldFile
from sims.backends import Backend
from sims.rollouts import (
    AtOnce,
    Estimate,
    Learning,
    Plan,
    Published,
    Rollout,
    detection,
    named,
    plan_of,
    played,
    reduce,
)
from sims.rollouts.plan import BASELINE, UNIFORM


def simulate(  # noqa: PLR0913  one per option
    spec: Spec = None,
    world: WorldFile = None,
    preset: PresetName = "",
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
    at_once: Annotated[  # noqa: FBT002
        bool, typer.Option("--at-once", help="Learn each outcome when it is due (the default).")
    ] = False,
    publish_every: Annotated[
        int | None,
        typer.Option(help="Learn as a server does: publish after so many outcomes."),
    ] = None,
    publish_seconds: Annotated[
        float | None, typer.Option(help="... or so long after the first, in the world's time.")
    ] = None,
    through_server: Annotated[  # noqa: FBT002
        bool,
        typer.Option(
            "--through-server", help="Play a real server, too, and compare every decision."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report and figures, and for finished shards: the same again goes on."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; else this one, or one per core with --backend.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="here, loky (the default with --workers), dask or ray.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Address of a running Dask scheduler, or Ray cluster.")
    ] = "",
) -> None:
    """Let policies decide for the same simulated customers: regret, reward, lift, time to detect.

    The exit status is 1 if a server, where one is asked for, decides otherwise than the engine.
    """
    _, experiment, of = simulated.asked(spec, world, preset)
    learning = _learning(experiment, (publish_every, publish_seconds), at_once=at_once)
    plan = plan_of(
        experiment,
        of,
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
    how = Backend.of(workers, backend, scheduler)
    if through_server and how.kind != "here":
        raise InvalidInputError("goes without --through-server", field="backend")
    if out is not None:
        _made(out)
    found = _through(plan) if through_server else _played(plan, how, out)
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


def _played(plan: Plan, how: Backend, out: Path | None) -> Rollout:
    """Play all replications somewhere, behind a progress bar."""
    with _progress() as progress:
        bar = progress.add_task("simulate", total=_decisions(plan))
        return played(
            plan,
            how,
            folder=out,
            passed=partial(progress.advance, bar),
            told=partial(typer.echo, err=True),
        )


def _through(plan: Plan) -> Rollout:
    """Play all replications in process and through servers; end if they differ."""
    with _progress() as progress:
        bar = progress.add_task("through a server", total=_decisions(plan))
        found = through_server.compare(plan, partial(progress.advance, bar))
    if found.difference is not None:
        label, replication, customer, column, here, there = found.difference
        raise BanditError(
            f"the server decides otherwise: policy {label!r}, replication {replication}, customer "
            f"{customer}: {column} is {here!r} in process and {there!r} through the server"
        )
    typer.echo(f"through the server: the same {found.decisions:,} decisions, bit for bit")
    return reduce(plan, [found.track])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=show.progress_console,
    )


def _decisions(plan: Plan) -> int:
    return plan.customers * plan.replications * len(plan.policies)


def _show(found: Rollout) -> None:
    """Print the figures at the end, and how soon a better policy is seen."""
    plan = found.plan
    learning = plan.learning
    how = (
        f"published every {learning.outcomes:,} outcomes or {learning.seconds:,.6g} s"
        if isinstance(learning, Published)
        else "learning at once"
    )
    made = show.table(
        f"{plan.customers:,} customers, {plan.replications} replications, {how}",
        ["policy", "regret", "reward", "best action", "on baseline", "on uniform"],
    )
    for line in found.lines(only_last=True):
        made.add_row(
            line.policy,
            _figure(line.regret, "{:,.1f}"),
            _figure(line.reward, "{:.4f}"),
            _figure(line.best_share, "{:.1%}"),
            _figure(line.lift_baseline, "{:+.1%}"),
            _figure(line.lift_uniform, "{:+.1%}"),
        )
    made.caption = (
        "means +- half of the 95 % interval over replications; on baseline, on uniform: lift of "
        "the expected outcome"
    )
    show.console.print(made)
    if plan.replications > 1:
        show.console.print(_detections(found))


def _detections(found: Rollout) -> Table:
    against = BASELINE if BASELINE in found.labels else UNIFORM
    made = show.table(
        f"Customers of each arm until a test sees more than {against}",
        ["policy", "power 80 %", "looking any time", "seen at the end"],
    )
    for label in found.labels:
        if label == against:
            continue
        one = detection(found, label, against)
        made.add_row(
            label,
            _count(one.customers_for(0.8)),
            _count(one.median),
            f"{one.seen[-1].better:.0%} better, {one.seen[-1].worse:.0%} worse",
        )
    made.caption = (
        "power 80 %: eight of ten tests of that size see it; looking any time: the median of when "
        f"a confidence sequence does; looked at every {found.plan.checkpoints[0]:,}; -: not by then"
    )
    return made


def _figure(estimate: Estimate, form: str) -> str:
    if math.isnan(estimate.mean):
        return "-"
    shown = form.format(estimate.mean)
    if math.isnan(estimate.low):
        return shown
    return f"{shown}\n+- {form.format(estimate.high - estimate.mean).removeprefix('+')}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _write(found: Rollout, out: Path) -> None:
    """Write all figures as Parquet, and those at the end as JSON."""
    plan = found.plan
    tables = {
        "rollout": found.table(),
        "replications": found.replications(),
        "allocation": found.allocation(),
    }
    for name, made in tables.items():
        pq.write_table(made, out / f"{name}.parquet")
    summary = {
        "experiment": plan.spec.name,
        "customers": plan.customers,
        "replications": plan.replications,
        "seed": plan.seed,
        "learning": {"kind": type(plan.learning).__name__, **asdict(plan.learning)},
        "policies": {label: asdict(policy) for label, policy in plan.policies},
        "figures": [
            {
                "policy": line.policy,
                "customers": line.customers,
                **{
                    name: {part: _plain(value) for part, value in figure._asdict().items()}
                    for name, figure in zip(line._fields[2:], line[2:], strict=True)
                },
            }
            for line in found.lines(only_last=True)
        ],
    }
    (out / "rollout.json").write_text(json.dumps(summary, indent=2) + "\n")
    from sims import report  # matplotlib takes a second that no other run needs

    paths = report.write(report.of_rollout(found), out)
    names = [*(path.name for path in paths), *(f"{name}.parquet" for name in tables)]
    typer.echo(f"written: {', '.join(names)}, rollout.json in {out}")


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _made(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{out}: {error.strerror}", field="out") from None
