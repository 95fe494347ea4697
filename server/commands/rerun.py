"""``banditctl rerun``: make every decision of an exported log again, bit for bit."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from bandit.errors import CorruptionError
from bandit.experiment import Experiment
from server.commands import options, show
from server.commands.options import DatabaseUrl, SecretFile
from server.live import tenant_secret
from server.settings import load_secret
from server.settings import read as read_settings
from sims.replay import rerun as runner
from sims.replay.rerun import Rerun


def rerun(
    log: Annotated[Path, typer.Argument(help="From 'banditctl export'.")],
    learned: Annotated[Path, typer.Argument(help="From 'banditctl export --learned'.")],
    database: DatabaseUrl = options.DEFAULT_DATABASE,
    secret_file: SecretFile = None,
) -> None:
    """Decide everything in an exported log again, and compare bit for bit.

    Needs no database: the specification is in the log, and the option only tells where the
    secret lies. Reads both files, and changes nothing.
    """
    settings = read_settings(database=database, secret_file=secret_file)
    spec, tenant = runner.described(log)
    experiment = Experiment(spec, secret=tenant_secret(load_secret(settings), tenant))
    with Progress(
        console=show.progress_console, transient=True, disable=show.is_unseen
    ) as progress:
        task = progress.add_task("rerun", total=None)
        found = runner.rerun(
            *(log, learned, experiment),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    _show(found)
    if found.wrong:
        first = found.differences[0]
        ids = sum(one.column == "decision_id" for one in found.differences)
        hint = "; is the secret the server's?" if ids > 1 and found.wrong >= found.decisions else ""
        raise CorruptionError(f"{found.wrong} differences; the first: {first}{hint}")
    dropped = f"; {found.dropped} of beliefs that retention dropped" if found.dropped else ""
    typer.echo(
        f"rerun: {found.repeated} of {found.decisions} decisions come out again bit for bit, "
        f"{found.snapshots} snapshots from {found.outcomes} outcomes{dropped}"
    )


def _show(found: Rerun, most: int = 10) -> None:
    made = show.table("Rerun", ["what", "number"])
    for name, number in (
        ("decisions", found.decisions),
        ("come out again", found.repeated),
        ("of beliefs that retention dropped", found.dropped),
        ("not tried: their belief differs", found.undone),
        ("outcomes folded", found.outcomes),
        ("snapshots that come out again", found.snapshots),
        ("differences", found.wrong),
    ):
        made.add_row(name, str(number))
    show.console.print(made)
    if found.differences:
        listed = show.table("Differences", ["where", "logged", "comes out"], left=3)
        for one in found.differences[:most]:
            name = Path(one.file).name
            listed.add_row(f"{name}, row {one.row}, {one.column}", one.logged, one.again)
        if found.wrong > most:
            listed.caption = f"{found.wrong - most} more"
        show.console.print(listed)
