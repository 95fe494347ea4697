"""``banditctl verify``: prove that the log is whole and that everything follows from it."""

from typing import Annotated

import typer
from rich.progress import Progress

from bandit.errors import CorruptionError, InvalidInputError
from server import catalogue
from server.app import check_secret
from server.audit import Findings, audit
from server.commands import options, show
from server.commands.options import DatabaseUrl, SecretFile
from server.database import Database
from server.live import Live
from server.settings import load_secret
from server.settings import read as read_settings


def verify(
    database: DatabaseUrl = options.DEFAULT_DATABASE,
    secret_file: SecretFile = None,
    experiment: Annotated[str, typer.Option(help="Only this experiment.")] = "",
    decisions: Annotated[bool, typer.Option(help="Also decide every decision again.")] = True,  # noqa: FBT002
) -> None:
    """Fold every log from scratch and compare with what is stored, bit for bit.

    Checks that sequences are dense, that outcomes follow from reward events, that every
    snapshot is the fold of the log up to its place, and that every decision comes out again.
    """
    settings = read_settings(database=database, secret_file=secret_file)
    opened = Database(settings.database, read_only=True)
    try:
        live = Live(load_secret(settings))
        with opened.reader.connect() as connection:
            if catalogue.fact(connection, "secret_fingerprint") is not None:
                check_secret(connection, load_secret(settings))
            live.load(connection)
            chosen = [e for e in live.entries() if experiment in ("", e.experiment.spec.name)]
            if experiment and not chosen:
                raise InvalidInputError(f"no experiment {experiment!r}", field="experiment")
            findings = []
            with Progress(
                console=show.progress_console, transient=True, disable=show.is_unseen
            ) as progress:
                for entry in chosen:
                    task = progress.add_task(entry.experiment.spec.name, total=None)

                    def step(done: int, total: int, task: object = task) -> None:
                        progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

                    findings.append(audit(connection, entry, again=decisions, step=step))
    finally:
        opened.close()
    _show(findings)
    wrong = [problem for found in findings for problem in found.problems]
    if wrong:
        raise CorruptionError(f"{len(wrong)} findings; the first: {wrong[0]}")
    typer.echo(
        f"verified: {sum(f.entries for f in findings)} log entries, "
        f"{sum(f.snapshots for f in findings)} snapshots equal their fold bit for bit, "
        f"{sum(f.repeated for f in findings)} decisions repeated"
    )


def _show(findings: list[Findings]) -> None:
    columns = ["experiment", "entries", "decisions", "events", "outcomes", "snapshots", "findings"]
    made = show.table("Verified", columns)
    for found in findings:
        counts = (found.entries, found.decisions, found.events, found.outcomes, found.snapshots)
        made.add_row(found.name, *map(str, counts), str(len(found.problems)))
        if found.start:
            made.add_row(f"  after place {found.start}: older entries were dropped")
        for problem in found.problems[:10]:
            made.add_row(f"  {problem}")
    show.console.print(made)
