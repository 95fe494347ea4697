"""``banditctl retain``: drop what is old, and keep what it taught."""

from typing import Annotated

import typer

from server import audit_log, retention
from server.app import check_secret
from server.audit_log import Change
from server.clock import system_clock
from server.commands import options, show
from server.commands.options import DatabaseUrl, SecretFile
from server.database import Database
from server.live import Live, LiveExperiment
from server.settings import load_secret
from server.settings import read as read_settings

DAY = 86_400 * 1_000_000


def retain(
    older_than: Annotated[float, typer.Option(help="Days to keep.", min=0.0)],
    database: DatabaseUrl = options.DEFAULT_DATABASE,
    secret_file: SecretFile = None,
) -> None:
    """Drop settled, learned decisions older than so many days, with their events and outcomes.

    The belief stays, and goes on from where it is. A dropped request id is unknown again: the
    same request would be decided anew. May run beside a server on PostgreSQL; on SQLite stop
    the server first.
    """
    settings = read_settings(database=database, secret_file=secret_file)
    secret = load_secret(settings)
    opened = Database(settings.database, beside=True)
    made = show.table("Dropped", ["experiment", "decisions", "entries", "log begins after"])
    try:
        live = Live(secret)
        with opened.reader.connect() as connection:
            check_secret(connection, secret)
            live.load(connection)
        decisions = entries = 0
        for entry in live.entries():
            dropped = _retain(opened, entry, older_than)
            made.add_row(entry.experiment.spec.name, *map(str, dropped))
            decisions += dropped[0]
            entries += dropped[1]
    finally:
        opened.close()
    show.console.print(made)
    typer.echo(f"dropped: {decisions} decisions, {entries} log entries")


def _retain(opened: Database, live: LiveExperiment, older_than: float) -> tuple[int, int, int]:
    """Move the base, then drop in small transactions, so that a server is not held up long."""
    now = system_clock()
    with opened.turn.taken(), opened.writer.begin() as connection:
        began = retention.place(connection, live.id)
        cut = retention.advance(connection, live, now - round(older_than * DAY), now)
        if cut.seq:
            audit_log.record(connection, _change(live, older_than, began, cut.seq), now)
    decisions = entries = 0
    after: int | None = 0
    while after is not None:
        with opened.turn.taken(), opened.writer.begin() as connection:
            gone = retention.drop(connection, live.id, cut, after)
        decisions, entries, after = decisions + gone.decisions, entries + gone.entries, gone.last
    return decisions, entries, cut.seq


def _change(live: LiveExperiment, older_than: float, began: int, begins: int) -> Change:
    """Give what the audit log tells; it is there before the first entry goes."""
    before, after = {"base": began}, {"base": begins, "older_than_days": older_than}
    name = live.experiment.spec.name
    return Change(live.tenant, options.operator(), "experiment.retain", name, before, after)
