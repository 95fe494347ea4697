"""``banditctl validate``: the gate before a start; the exit status is the verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bandit.errors import DeadlineError, InvalidInputError, UnavailableError
from bandit.spec import ExperimentSpec
from server.commands import options, show, verdicts
from server.commands.options import Server
from sims import worlds
from sims.worlds import World

if TYPE_CHECKING:
    from sims.gate import Findings

LOG_ENDINGS = (".log.parquet", ".log.csv", ".log.csv.gz")


@verdicts.bad_input_is_two
@options.calls_server(address="")
def validate(  # noqa: PLR0913  one per option
    spec: Annotated[Path, typer.Argument(help="Specification: .toml, .yaml or .json.")],
    server: Server,
    world: Annotated[
        list[Path] | None, typer.Option(help="A world; several may be given (beside SPEC).")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(help="A world that ships, by name; several may be given.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="A log, Parquet or CSV (beside SPEC, if there is one).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report: HTML, JSON and Parquet.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same verdict.")] = 1,
    override: Annotated[
        str, typer.Option(help="Why it may start although the gate stops it; needs --address.")
    ] = "",
) -> None:
    """Check an experiment on simulated customers, and by a log, before it meets real ones.

    Without --world and --preset the worlds beside the specification are run: NAME.world.toml and
    NAME.*.world.toml for NAME.toml. The exit status is the verdict: 0 it may start, 1 the gate
    stops it, 2 the input is bad. With --address the verdict is stored on that server.
    """
    if override and not server.address:
        raise InvalidInputError(
            "is kept in the audit log of a server: say which with --address", field="override"
        )
    parsed = options.read_spec(spec)
    read = _worlds(spec, world or [], preset or [])
    if server.address:
        _await(server)
    found = _examined(parsed, read, log or _log_beside(spec), seed)
    verdict = found.verdict
    verdicts.tell(verdict)
    if out is not None:
        _write(found, out)
    if server.address:
        verdicts.submit(server, verdict, override)
    verdicts.last_line(verdict, override)
    raise typer.Exit(verdicts.status(verdict, override))


def _await(server: Server) -> None:
    """See that the server is there before minutes of work, which it would be asked to keep."""
    with server.client(timeout=2.0) as client:
        try:
            client.is_ready()
        except (UnavailableError, DeadlineError):
            typer.echo(
                f"waiting for a server at {server.address}, {verdicts.PATIENCE:.0f} s", err=True
            )
        else:
            return
    with server.client(timeout=verdicts.PATIENCE) as client:
        client.is_ready()


def _worlds(spec: Path, given: list[Path], presets: list[str]) -> dict[str, World]:
    """Read the worlds that were named; if none was, those beside the specification."""
    paths = list(given)
    if not given and not presets:
        stem = spec.name.removesuffix(spec.suffix)
        paths = [spec.with_name(f"{stem}.world.toml")]
        paths += sorted(spec.parent.glob(f"{stem}.*.world.toml"))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise InvalidInputError(
                f"there is no {stem}.world.toml beside it: name a world with --world FILE, or "
                "one that ships with --preset NAME",
                field=str(spec),
            )
    found: dict[str, World] = {}
    for path in paths:
        name = path.name.removesuffix(".toml").removesuffix(".world")
        if name in found:
            raise InvalidInputError(f"two worlds are called {name!r}", field="world")
        found[name] = worlds.read(path)
    for name in presets:
        found[name] = _preset(name)
    return found


def _preset(name: str) -> World:
    folder = Path(worlds.__file__).parent / "presets"
    known = sorted(p.name.removesuffix(".world.toml") for p in folder.glob("*.world.toml"))
    if name not in known:
        raise InvalidInputError(
            f"{name[:64]!r} is none of {', '.join(known) or '(none ships)'}", field="preset"
        )
    return worlds.read(folder / f"{name}.world.toml")


def _log_beside(spec: Path) -> Path | None:
    stem = spec.name.removesuffix(spec.suffix)
    paths = [spec.with_name(stem + ending) for ending in LOG_ENDINGS]
    return next((path for path in paths if path.is_file()), None)


def _examined(
    spec: ExperimentSpec, found: dict[str, World], path: Path | None, seed: int
) -> "Findings":
    from sims import log as logs  # seconds of imports that no other command needs
    from sims.gate import examine

    read = None if path is None else logs.read(path, spec)
    if read is not None and read.times is not None and (read.times[1:] < read.times[:-1]).any():
        raise InvalidInputError("must be in the order of time", field=str(path))
    with Progress(
        TextColumn("customers"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=show.progress_console,
        transient=True,
        disable=show.is_unseen,
    ) as progress:
        task = progress.add_task("validate", total=1)
        return examine(
            spec,
            found,
            read,
            log_name="" if path is None else path.name,
            seed=seed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _write(found: "Findings", out: Path) -> None:
    from sims import report  # matplotlib takes a second that no other run needs

    for path in report.write(report.of_findings(found), out):
        typer.echo(f"wrote {path}")
    path = out / "verdict.json"
    verdicts.write(found.verdict, path)
    typer.echo(f"wrote {path}")
