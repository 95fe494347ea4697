"""The commands of ``banditctl``, one module each; a command is imported when it is called."""

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from bandit.errors import BanditError, UnauthenticatedError
from server.commands.loading import Entry, group

COMMANDS = (
    Entry("serve", "serve:serve", "Run a server until SIGTERM or SIGINT, then drain."),
    Entry(
        "status",
        "status:status",
        "Show health, experiments, snapshots, lag and rates; status 1 if it is not ready.",
    ),
    Entry(
        "demo",
        "demo:demo",
        "Play a campaign: decisions over gRPC, delayed rewards, learning, a report.",
    ),
    Entry("experiments", "experiments:app", "Create, start, pause, list and read experiments."),
    Entry(
        "update",
        "revising:update",
        "Edit an experiment's specification, also while it runs; nothing learned is lost.",
    ),
    Entry(
        "levels",
        "revising:app",
        "Add, retire and list the levels of an experiment, also while it runs.",
    ),
    Entry(
        "tokens",
        "tokens:app",
        "Make, list and revoke the tokens that callers need. They work on the database, also while "
        "the server runs; it takes notice within two seconds.",
    ),
    Entry(
        "validate",
        "validate:validate",
        "Check an experiment on simulated customers, and by a log, before it meets real ones.",
    ),
    Entry("verdicts", "verdicts:app", "Send a verdict that was written to a file to a server."),
    Entry("decide", "decisions:decide", "Ask for one decision."),
    Entry("reward", "decisions:reward", "Report one reward event."),
    Entry("expose", "ledger:expose", "Report that a decision was shown to its customer."),
    Entry("audit-log", "audit_log:audit_log", "Show administrative changes, newest first."),
    Entry(
        "decide-file",
        "campaigns:decide_file",
        "Decide for every customer of a file; run it again to go on after an interruption.",
    ),
    Entry(
        "reward-file",
        "campaigns:reward_file",
        "Report an event for every row of a file; running it again changes nothing.",
    ),
    Entry(
        "rollback",
        "ledger:rollback",
        "Fold the belief anew without what should not have been learned.",
    ),
    Entry(
        "worlds", "worlds:app", "Simulated customers: worlds that ship, fitted to a log, checked."
    ),
    Entry(
        "simulate",
        "simulate:simulate",
        "Let policies decide for the same simulated customers: regret, reward, lift, time to "
        "detect.",
    ),
    Entry(
        "sample-size",
        "sample_size:sample_size",
        "Find how many customers a test needs to see a lift, by simulated tests.",
    ),
    Entry(
        "evaluate",
        "evaluate:evaluate",
        "Estimate what policies would have earned on a log, or say why that can not be said.",
    ),
    Entry(
        "replay",
        "replay:replay",
        "Stream the Hillstrom customers through Decide; learn where decision and log agree.",
    ),
    Entry(
        "rerun",
        "rerun:rerun",
        "Decide everything in an exported log again, and compare bit for bit.",
    ),
    Entry(
        "verify",
        "verify:verify",
        "Fold every log from scratch and compare with what is stored, bit for bit.",
    ),
    Entry(
        "retain",
        "retain:retain",
        "Drop settled, learned decisions older than so many days, with their events and outcomes.",
    ),
    Entry(
        "export",
        "export:export",
        "Write an experiment's decisions, with context, propensity and outcome, as Parquet.",
    ),
)

app = typer.Typer(
    name="banditctl",
    cls=group(COMMANDS),
    help="Decide what to say to a customer, where and when; learn from what they do.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,  # noqa: FBT002
) -> None:
    """Decide what to say to a customer, where and when; learn from what they do."""
    if version:
        typer.echo(f"banditctl {metadata.version('banditctl')}")
        raise typer.Exit


_HOW_TO_BE_KNOWN = (
    "give one as BANDIT_TOKEN or --token; on the server's machine 'banditctl tokens list' says "
    "which are expired or revoked, and 'banditctl tokens create' makes one"
)


def run() -> int:
    """Run the command line; give its exit status."""
    try:
        app(standalone_mode=True)
    except UnauthenticatedError as error:
        typer.echo(f"error: {error}; {_HOW_TO_BE_KNOWN}", err=True)
        return 1
    except BanditError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = _storage(error)
        if not told:
            raise
        typer.echo(f"error: {told}", err=True)
        return 1
    return 0


def _storage(error: Exception) -> str:
    """Tell an error of the database in one line; empty if it is something else."""
    if "sqlalchemy" not in sys.modules:  # then no command has touched a database
        return ""
    from sqlalchemy.exc import SQLAlchemyError

    from server.database import storage_error

    return str(storage_error(error)) if isinstance(error, SQLAlchemyError) else ""
