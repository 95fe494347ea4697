"""``banditctl update`` and ``banditctl levels``: change an experiment, also while it runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bandit import spec_file
from bandit.actions import FACTORS
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from server import convert
from server.client import BanditClient
from server.commands import options, show
from server.commands.options import Override, Server
from server.edits import differences
from server.pb import bandit_pb2 as pb

app = typer.Typer(
    help="Add, retire and list the levels of an experiment, also while it runs.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="Name of the experiment.")]
Factor = Annotated[str, typer.Argument(help="variant, channel or slot.")]
LevelName = Annotated[str, typer.Argument(help="Name of the level.")]
Why = Annotated[str, typer.Option(help="Why; for the audit log.")]
RequestId = Annotated[str, typer.Option(help="Idempotency key; new if left out.")]


@options.calls_server()
def update(  # noqa: PLR0913
    name: Name,
    server: Server,
    file: Annotated[Path, typer.Option("--spec", help="The new specification.")],
    reason: Why,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Take over only this part, such as policy.exploration; repeatable."),
    ] = None,
    override: Override = "",
    request_id: RequestId = "",
) -> None:
    """Edit an experiment's specification, also while it runs; nothing learned is lost.

    A draft may change altogether. What has been started keeps its context, its outcome and its
    levels; the server says what can not change. Shows what did.
    """
    spec = options.read_spec(file)
    with server.client(30.0) as client:
        before = client.get_experiment(name)
        made = client.update_experiment(
            name,
            spec,
            reason=reason,
            only=only or (),
            etag="" if request_id else before.etag,  # so that what is shown is what was changed
            override=override,
            request_id=request_id,
        )
    _tell(made.revision, changes(before, made.experiment), name)


@app.command()
@options.calls_server()
def add(  # noqa: PLR0913
    name: Name,
    factor: Factor,
    level: LevelName,
    server: Server,
    reason: Why,
    time: Annotated[str | None, typer.Option(help="Slots: local time HH:MM; else at once.")] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER; as many as the factor's other levels have."),
    ] = None,
    override: Override = "",
    request_id: RequestId = "",
) -> None:
    """Add a level to a factor. It starts from what the others have in common."""
    with server.client(30.0) as client:
        made = client.add_level(
            name,
            factor,
            level,
            reason=reason,
            time=time,
            attributes=read_attributes(attribute or ()),
            override=override,
            request_id=request_id,
        )
    show.console.print(levels(made.experiment, factor))
    _tell(made.revision, None, name)


@app.command()
@options.calls_server()
def retire(  # noqa: PLR0913
    name: Name,
    factor: Factor,
    level: LevelName,
    server: Server,
    reason: Why,
    request_id: RequestId = "",
) -> None:
    """Choose a level no more, from now on. What was learned of it stays."""
    with server.client(30.0) as client:
        made = client.retire_level(name, factor, level, reason=reason, request_id=request_id)
    show.console.print(levels(made.experiment, factor))
    _tell(made.revision, None, name)


@app.command("list")
@options.calls_server()
def list_all(name: Name, server: Server) -> None:
    """List the levels of an experiment, retired ones too."""
    with server.client() as client:
        found = client.get_experiment(name)
    for factor in FACTORS:
        show.console.print(levels(found, factor))


def levels(found: pb.Experiment, factor: str) -> Table:
    """Show the levels of one factor."""
    made = show.table(f"{factor.capitalize()}s", ["level", "state", "time", "attributes"], left=4)
    for level in getattr(found.spec.actions, f"{factor}s"):
        told = ", ".join(f"{name} {value:g}" for name, value in sorted(level.attributes.items()))
        state = "retired" if level.retired else "in use"
        made.add_row(level.name, state, level.time or "-", told or "-")
    return made


def changes(before: pb.Experiment, after: pb.Experiment) -> Table | None:
    """Show what differs between two specifications, a path each; None if nothing does."""
    was, is_now = differences(convert.spec(before.spec), convert.spec(after.spec))
    if not was:
        return None
    made = show.table("Changed", ["what", "before", "after"], left=3)
    for path in was:
        made.add_row(path, _short(was[path]), _short(is_now[path]))
    return made


def _short(value: object) -> str:
    written = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 200 else f"{written[:197]}..."


def _tell(made: pb.Revision, changed: Table | None, name: str) -> None:
    if changed is not None:
        show.console.print(changed)
    decided = f"; it decides from snapshot {made.snapshot_version} on"
    typer.echo(f"{name!r} has revision {made.number}{decided if made.snapshot_version else ''}")


def read_attributes(given: Sequence[str]) -> dict[str, float]:
    """Read attributes given as ``NAME=NUMBER``.

    Raises
    ------
    InvalidInputError
        If one is not, or is given twice.
    """
    found: dict[str, float] = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            name, value = "", 0.0
        if not name or name in found:
            raise InvalidInputError(f"{one!r} is not NAME=NUMBER, once each", field="attribute")
        found[name] = value
    return found


def written(client: BanditClient, name: str) -> str:
    """Give an experiment's specification as JSON for people, as ``update`` takes it."""
    spec: ExperimentSpec = convert.spec(client.get_experiment(name).spec)
    return json.dumps(spec_file.to_data(spec), indent=2, ensure_ascii=False)
