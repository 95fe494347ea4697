"""``banditctl worlds``: simulated customers that ship, are fitted to a log, and are checked."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Shown

from bandit.actions import Level
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Bools, Floats
from bandit.spec import ExperimentSpec
from server.commands import options, show
from sims import worlds
from sims.worlds import Course, Preset, fidelity, fitting, table
from sims.worlds.fidelity import Fidelity
from sims.worlds.table import Columns, Table

app = typer.Typer(
    help="Simulated customers: worlds that ship, fitted to a log, checked.", no_args_is_help=True
)

Log = Annotated[Path, typer.Argument(help="Table: .parquet, or .csv and .csv.gz.")]
Experiment = Annotated[Path, typer.Option(help="The experiment's specification.")]
Variant = Annotated[str | None, typer.Option(help="Column of the variant sent.")]
Channel = Annotated[str | None, typer.Option(help="Column of the channel sent.")]
Slot = Annotated[str | None, typer.Option(help="Column of the slot sent.")]
Outcome = Annotated[str, typer.Option(help="Column of the outcome.")]
Renamed = Annotated[
    list[str] | None, typer.Option("--context", help="FIELD=COLUMN, where names differ.")
]
Seed = Annotated[int, typer.Option(min=0, help="Draws what is random.")]
_VISITS = 5_000


@app.command("list")
def list_worlds() -> None:
    """List the worlds that ship, and the question each is for."""
    made = show.table("Worlds", ["name", "question", "actions", "fields"], left=2)
    for name in worlds.names():
        spec = worlds.preset(name).spec
        made.add_row(name, spec.description, str(spec.actions.size), str(len(spec.context)))
    show.console.print(made)


@app.command("show")
def show_world(
    name: Annotated[str, typer.Argument(help="Name of a world that ships, or a world's file.")],
    spec: Annotated[
        Path | None, typer.Option(help="Its experiment; needed for a file, and only there.")
    ] = None,
    seed: Seed = 1,
) -> None:
    """Show what a world's customers do: the optimum, constant messages, and chance."""
    found = _find(name, spec)
    course = Course(found.world, found.spec, seed=seed)
    count = min(_VISITS, 20_000_000 // found.spec.actions.size)
    arrivals = course.arrivals(0, count)
    expected = course.expected(arrivals, 0, course.history())
    eligible = course.eligible(arrivals)
    show.console.print(_policies(found, course, expected, eligible))
    show.console.print(_actions(found.spec, np.where(eligible, expected, -np.inf)))
    days = (arrivals.times[-1] - arrivals.times[0]) / 86_400
    optimum = course.optimum(arrivals, expected).mean()
    typer.echo(f"{count} visits in {days:.2f} days, nobody tired yet: optimum {optimum:.4f}")


@app.command("fit")
def fit(  # noqa: PLR0913  one per option
    log: Log,
    out: Annotated[Path, typer.Option(help="The world's file, .toml, to write.")],
    spec: Experiment,
    variant: Variant = None,
    channel: Channel = None,
    slot: Slot = None,
    outcome: Outcome = "outcome",
    context: Renamed = None,
    reward: Annotated[str | None, typer.Option(help="Reward event that the outcome is.")] = None,
    response: Annotated[str, typer.Option(help="logistic (yes or no) or linear.")] = "logistic",
    strength: Annotated[
        float | None, typer.Option(help="Of the data against the penalty; else tried out.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of rows to check with, not fitted.")] = 0.3,
    seed: Seed = 1,
) -> None:
    """Fit a world to a log, and check it with rows that were held out."""
    experiment = options.read_spec(spec)
    if reward is None:
        reward = experiment.outcome.rewards[0].name
    if strength is not None and not 1e-6 <= strength <= 1e6:
        raise InvalidInputError(f"must be in [1e-6, 1e6], got {strength}", field="strength")
    if out.suffix != ".toml":
        raise InvalidInputError("needs a name that ends in .toml", field=str(out))
    if not out.parent.is_dir():
        raise InvalidInputError("is no folder", field=str(out.parent))
    rows = table.read(log, experiment, _columns(variant, channel, slot, outcome, context))
    fitted, others = rows.split(held_out, seed)
    fitting.check(fitted, experiment, reward, response)
    if strength is None:
        strength = _try_strengths(fitted, experiment, response, seed)
    stem = out.name.removesuffix(".toml").removesuffix(".world")
    world = fitting.fit(
        fitted,
        experiment,
        reward=reward,
        response=response,
        strength=strength,
        folder=out.parent,
        stem=stem,
        seed=seed,
    )
    worlds.write(out, world)
    _tell(rows)
    unseen = experiment.actions.size - len(np.unique(fitted.actions))
    if unseen:
        typer.echo(f"{unseen} of {experiment.actions.size} actions were never sent: extrapolated")
    typer.echo(f"wrote {out}: {len(world.effects)} effects, strength {strength:g}")
    _verdict(fidelity.compare(worlds.read(out), experiment, others))


@app.command("check")
def check(  # noqa: PLR0913  one per option
    world: Annotated[Path, typer.Argument(help="The world's file, .toml.")],
    log: Annotated[Path, typer.Option(help="Table: .parquet, or .csv and .csv.gz.")],
    spec: Experiment,
    variant: Variant = None,
    channel: Channel = None,
    slot: Slot = None,
    outcome: Outcome = "outcome",
    context: Renamed = None,
    held_out: Annotated[
        float | None, typer.Option(help="Only the rows that 'fit' held out with the same seed.")
    ] = None,
    seed: Seed = 1,
) -> None:
    """Check how well a world reproduces a log; status 1 if it does not."""
    experiment = options.read_spec(spec)
    made = worlds.read(world)
    rows = table.read(log, experiment, _columns(variant, channel, slot, outcome, context))
    if held_out is not None:
        rows = rows.split(held_out, seed)[1]
    _tell(rows)
    _verdict(fidelity.compare(made, experiment, rows))


def _find(name: str, spec: Path | None) -> Preset:
    if name.endswith(".toml"):
        if spec is None:
            raise InvalidInputError("is needed beside a world's file", field="--spec")
        return worlds.load(spec, Path(name))
    if spec is not None:
        raise InvalidInputError("goes with a world's file, and only there", field="--spec")
    return worlds.preset(name)


def _policies(found: Preset, course: Course, expected: Floats, eligible: Bools) -> Shown:
    """Show what simple policies earn."""
    made = show.table(f"{found.name}: {found.spec.description}", ["policy", "expected outcome"])
    names = [level.name for level in _best_levels(found.spec, expected, eligible)]
    best = np.where(eligible, expected, -np.inf).max(axis=1).mean()
    always = np.where(eligible.all(axis=0), expected.mean(axis=0), -np.inf).max()
    chance = ((expected * eligible).sum(axis=1) / eligible.sum(axis=1)).mean()
    made.add_row("the best action for each customer", f"{best:.4f}")
    made.add_row(f"always {' by '.join(names[:2])}, {names[2]}", f"{always:.4f}")
    made.add_row("an action by chance", f"{chance:.4f}")
    made.add_row("no message", f"{course.without_message:.4f}")
    return made


def _best_levels(spec: ExperimentSpec, expected: Floats, eligible: Bools) -> tuple[Level, ...]:
    mean = np.where(eligible.all(axis=0), expected.mean(axis=0), -np.inf)
    return spec.actions.levels(int(mean.argmax()))


def _actions(spec: ExperimentSpec, expected: Floats, most: int = 8) -> Shown:
    """Show the actions that are the best of someone."""
    columns = ["variant", "channel", "slot", "best for", "expected outcome"]
    made = show.table("Actions that are someone's best", columns, left=3)
    shares = np.bincount(expected.argmax(axis=1), minlength=spec.actions.size) / len(expected)
    for action in np.argsort(-shares, kind="stable")[:most].tolist():
        if shares[action] > 0:
            levels = [level.name for level in spec.actions.levels(action)]
            known = expected[:, action][np.isfinite(expected[:, action])]
            made.add_row(*levels, f"{shares[action]:.1%}", f"{known.mean():.4f}")
    if (shares > 0).sum() > most:
        made.caption = f"{(shares > 0).sum() - most} more"
    return made


def _columns(
    variant: str | None,
    channel: str | None,
    slot: str | None,
    outcome: str,
    context: list[str] | None,
) -> Columns:
    pairs = [one.partition("=") for one in context or ()]
    for field, sign, column in pairs:
        if not (field and sign and column):
            raise InvalidInputError("needs FIELD=COLUMN", field="--context")
    renamed = {field: column for field, _, column in pairs}
    return Columns(variant=variant, channel=channel, slot=slot, outcome=outcome, context=renamed)


def _try_strengths(rows: Table, spec: ExperimentSpec, response: str, seed: int) -> float:
    """Try strengths behind a progress line; give the best."""
    done = []
    with Progress(
        TextColumn("fit"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]}"),
        TimeElapsedColumn(),
        console=show.progress_console,
    ) as progress:
        task = progress.add_task("fit", total=len(fitting.STRENGTHS), found="")
        for trial in fitting.trials(rows, spec, response=response, seed=seed):
            done.append(trial)
            found = f"strength {trial.strength:g}: loss {trial.loss:.5f}"
            progress.update(task, completed=len(done), found=found)
        progress.update(task, total=len(done))
    return min(done, key=lambda trial: trial.loss).strength


def _tell(rows: Table) -> None:
    for reason, count in rows.excluded.items():
        typer.echo(f"left out {count} rows: {reason}")


def _verdict(found: Fidelity) -> None:
    """Show how well a world reproduces the rows; end with status 1 if it does not."""
    columns = ["rows where", "rows", "observed", "95 % interval", "world"]
    made = show.table(f"World and log on {found.rows} rows", columns)
    for line in found.lines:
        mark = "" if line.is_reproduced else " !"
        made.add_row(
            f"{line.of} {line.name}"[:30],
            str(line.rows),
            show.number(line.observed),
            f"[{line.low:.3f}, {line.high:.3f}]",
            show.number(line.expected) + mark,
        )
    if found.outside:
        made.caption = "! outside of the 99.9 % interval of what was observed"
    show.console.print(made)
    kind = "log-loss" if found.is_logistic else "mean squared error"
    typer.echo(f"{kind}: world {found.loss:.4f}, a constant {found.constant_loss:.4f}")
    typer.echo(f"outcomes: observed {found.observed:.0f}, expected {found.expected:.1f}")
    typer.echo(f"actions in their 95 % interval: {found.cells_inside} of {found.cells}")
    verdict = "reproduced" if found.is_reproduced else "NOT reproduced"
    typer.echo(f"verdict: {verdict}; {found.outside} of {len(found.lines)} lines differ")
    if not found.is_reproduced:
        raise typer.Exit(1)
