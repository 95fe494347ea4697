"""``banditctl verdicts``: verdicts that were made elsewhere, or before; and what is said of one."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.table import Table
from rich.text import Text

from bandit.errors import BanditError, InvalidInputError
from bandit.verdict import Check, Verdict
from server.commands import options, show
from server.commands.options import Override, Server

app = typer.Typer(
    help="Send a verdict that was written to a file to a server.", no_args_is_help=True
)

PATIENCE = 60.0
"""Seconds to wait for a server: its first start compiles."""
PASSED, STOPPED, BAD_INPUT = 0, 1, 2
LARGEST = 10_000_000
"""Bytes of a file that is read: a thousand checks are a tenth of that."""

Command = Callable[..., None]


def bad_input_is_two(command: Command) -> Command:
    """Tell bad input from a verdict that stops: one line, and status 2."""

    @functools.wraps(command)
    def run(**given: object) -> None:
        try:
            command(**given)
        except BanditError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from None

    return run


@app.command("send")
@bad_input_is_two
@options.calls_server()
def send(
    file: Annotated[Path, typer.Argument(help="The verdict.json of 'banditctl validate --out'.")],
    server: Server,
    override: Override = "",
) -> None:
    """Store a verdict that 'banditctl validate --out' wrote, as if it had been made with --address.

    The exit status is the verdict: 0 it may start, 1 the gate stops it, 2 the input is bad.
    """
    verdict = read(file)
    tell(verdict)
    submit(server, verdict, override)
    last_line(verdict, override)
    raise typer.Exit(status(verdict, override))


@app.callback()
def _group() -> None:
    """Keep ``send`` a command of a group, though it is the only one."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: Verdict
    passed: bool


def read(path: Path) -> Verdict:
    """Read a verdict that ``write`` wrote.

    Raises
    ------
    InvalidInputError
        Naming the file and what is wrong; also if the verdict calls itself passed and a check does
        not hold.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InvalidInputError(f"is larger than {LARGEST:,} bytes", field=str(path))
        data = json.loads(text)
    except OSError as error:
        raise InvalidInputError(f"can not be read: {error.strerror}", field=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"is not JSON: {error}", field=str(path)) from None
    if not isinstance(data, dict) or "passed" not in data:
        raise InvalidInputError(
            "is no verdict: 'banditctl validate --out' writes verdict.json", field=str(path)
        )
    passed = data.pop("passed")
    try:
        text = json.dumps({"verdict": data, "passed": passed}).encode()
        found = _Document.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "verdict")
        raise InvalidInputError(f"{place}: {first['msg']}", field=str(path)) from None
    if found.passed is not found.verdict.passed:
        raise InvalidInputError(
            f"passed: is {str(found.passed).lower()}, and the checks say otherwise",
            field=str(path),
        )
    return found.verdict


def write(verdict: Verdict, path: Path) -> None:
    """Write a verdict to a file."""
    data = {**asdict(verdict), "passed": verdict.passed}
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tell(verdict: Verdict) -> None:
    """Show every check, those that stop first, and why these matter."""
    made = Table(title=f"Verdict on {verdict.experiment}", title_justify="left", title_style="bold")
    made.add_column("", overflow="fold")
    made.add_column("check", overflow="fold")
    made.add_column("where", overflow="fold")
    made.add_column("value", justify="right", overflow="fold")
    made.add_column("limit", overflow="fold")
    for check in sorted(verdict.checks, key=lambda c: c.passed):
        mark = Text("passed", "green") if check.passed else Text("STOPS", "bold red")
        made.add_row(mark, check.name, check.source, _number(check.value), _limit(check))
    show.console.print(made)
    for check in verdict.stopped_by:
        show.console.print(Text(f"{check.name}: {check.found}. {check.why}"))


def submit(server: Server, verdict: Verdict, override: str) -> None:
    """Store a verdict on a server, and say where."""
    override = "" if verdict.passed else override
    with server.client(timeout=PATIENCE) as client:
        answer = client.submit_verdict(verdict, override=override)
    typer.echo(
        f"stored on {server.address} as entry {answer.verdict.audit_sequence} of the audit log"
    )
    if not answer.matches:
        typer.echo(
            f"no experiment {verdict.experiment!r} with this specification is there yet: "
            "'banditctl experiments create' makes it"
        )


def last_line(verdict: Verdict, override: str) -> None:
    """Say whether it may start."""
    bound = f"specification {verdict.spec_hash[:12]}, {len(verdict.checks)} checks"
    if verdict.passed:
        typer.echo(f"verdict: passed ({bound})")
        return
    names = ", ".join(sorted({check.name for check in verdict.stopped_by}))
    told = f"overridden: {override}" if override else "it does not start"
    typer.echo(f"verdict: stopped by {names} ({bound}); {told}")


def status(verdict: Verdict, override: str) -> int:
    """Give the exit status of a verdict."""
    return PASSED if verdict.passed or override else STOPPED


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _limit(check: Check) -> str:
    return "" if check.limit is None else f"{check.bound} {check.limit:.4g}"
