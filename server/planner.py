"""What SQLite's planner is told of the log: that it is large, and its keys are not.

Without statistics the planner takes ten entries for an experiment's whole log, and so reads all
of it where a few hundred keys are looked up at once: the cost of a batch grows with the log.
``ANALYZE`` would tell the truth of the moment it runs; a log that begins empty needs to be told
what it will be. PostgreSQL gathers its own.
"""

from sqlalchemy.engine import Connection

ROWS, OF_EXPERIMENT, OF_DECISION = 100_000_000, 10_000_000, 3
LOG = ("decisions", "reward_events", "outcomes", "exposures", "open_windows")


def tell(connection: Connection) -> None:
    """Store what the planner shall assume, if it is told anything else.

    Notes
    -----
    ``sqlite_stat1`` may be written by programs, and is read when a connection is opened or by
    ``ANALYZE sqlite_schema`` (https://sqlite.org/fileformat2.html#stat1tab).
    """
    if connection.dialect.name != "sqlite":
        return
    run = connection.exec_driver_sql
    wanted = {line for table in LOG for line in _of_table(connection, table)}
    if not run("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'").first():
        run("ANALYZE alembic_version")  # nothing else may make that table
    told = {tuple(line) for line in run("SELECT tbl, idx, stat FROM sqlite_stat1")}
    if wanted <= told:
        return
    names = ", ".join(f"'{table}'" for table in LOG)
    run(f"DELETE FROM sqlite_stat1 WHERE tbl IN ({names})")  # noqa: S608  our own names
    run("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", sorted(wanted))
    run("ANALYZE sqlite_schema")


def _of_table(connection: Connection, table: str) -> list[tuple[str, str, str]]:
    """Give a line for each index: rows, and how many share its first one, two ... columns."""
    lines = []
    for index in connection.exec_driver_sql(f"PRAGMA index_list({table})"):
        width = len(connection.exec_driver_sql(f"PRAGMA index_info('{index.name}')").all())
        share = [OF_EXPERIMENT] + [OF_DECISION] * (width - 1)
        if index.unique:
            share[-1] = 1
        name = table if index.origin == "pk" else index.name
        lines.append((table, name, " ".join(map(str, [ROWS, *share]))))
    return lines
