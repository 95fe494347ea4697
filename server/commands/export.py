"""``banditctl export``: the log as Parquet, for analysis elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from bandit.errors import InvalidInputError, UnavailableError
from server import catalogue, learned, parquet, reporting
from server.commands import options, show
from server.commands.options import DatabaseUrl
from server.database import Database
from server.live import Live


def export(
    experiment: Annotated[str, typer.Argument(help="Name of the experiment.")],
    out: Annotated[Path, typer.Argument(help="File to write, .parquet.")],
    database: DatabaseUrl = options.DEFAULT_DATABASE,
    learned_file: Annotated[
        Path | None,
        typer.Option("--learned", help="Also write what was learned, in order: for rerun."),
    ] = None,
) -> None:
    """Write an experiment's decisions, with context, propensity and outcome, as Parquet."""
    opened = Database(database, read_only=True)
    try:
        with opened.reader.connect() as connection:
            row = next(
                (r for r in catalogue.list_experiments(connection) if r.name == experiment), None
            )
            if row is None:
                raise InvalidInputError(f"no experiment {experiment!r}", field="experiment")
            live = Live(secret=bytes(32)).add(row)
            total = reporting.decisions_logged(connection, live.id)
            with Progress(
                console=show.progress_console, transient=True, disable=show.is_unseen
            ) as progress:
                task = progress.add_task("export", total=total)
                written = parquet.write(
                    connection, live, out, lambda n: progress.update(task, advance=n)
                )
                if learned_file is not None:
                    task = progress.add_task("learned", total=None)
                    learned.write(
                        *(connection, live, learned_file),
                        lambda n: progress.update(task, advance=n),
                    )
    except OSError as error:
        raise UnavailableError(f"can not be written: {error}", field=str(out)) from None
    finally:
        opened.close()
    typer.echo(f"exported: {written} decisions to {out}")
    if learned_file is not None:
        typer.echo(f"learned: {learned_file}")
