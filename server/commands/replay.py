"""``banditctl replay``: a real campaign's log, past the real server."""

import dataclasses
import hashlib
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bandit.errors import ConflictError, DeadlineError, InvalidInputError
from bandit.spec import ExperimentSpec
from server.client import Ask, BanditClient, Fact
from server.commands import options, replay_log, show
from server.commands.local import LocalServer
from server.commands.options import Server
from sims.datasets import hillstrom
from sims.replay import Replayed, constants
from sims.replay import replay as play
from sims.worlds import EXAMPLES


@options.calls_server(address="")
def replay(  # noqa: PLR0913  one per option
    *,
    server: Server,
    data: Annotated[
        Path | None, typer.Option(help="The Hillstrom campaign, .csv or .csv.gz.")
    ] = None,
    reward: Annotated[str, typer.Option(help="visit, conversion or spend.")] = "visit",
    seed: Annotated[int, typer.Option(help="Order of the customers, and the server's secret.")] = 1,
    log: Annotated[
        Path | None, typer.Option(help="Instead: a uniform log, Parquet or CSV.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="With --log: the specification.")] = None,
    column: options.Columns = None,
    group: options.LogGroups = None,
    exclude: options.Exclude = False,
    every: Annotated[int, typer.Option(help="With --log: rows between publications.")] = 256,
) -> None:
    """Stream the Hillstrom customers through Decide; learn where decision and log agree.

    Without an address, a server is started for the replay. With --log and --spec any uniform
    log is played past the policy of a specification, in this process.
    """
    if log is not None:
        if data is not None or spec is None or server.address:
            raise InvalidInputError(
                "goes with --spec, and not with --data or a server", field="log"
            )
        reading = {"columns": options.read_columns(column), "exclude": exclude}
        if group:
            reading["groups"] = group
        replay_log.play(log, options.read_spec(spec), secret(seed), reading, every=every)
        return
    if data is None:
        raise InvalidInputError("name the campaign, or a log with --log", field="data")
    if reward not in hillstrom.REWARDS:
        raise InvalidInputError(
            f"{reward!r} is none of {', '.join(hillstrom.REWARDS)}", field="reward"
        )
    rows = hillstrom.load(data)
    made = experiment(reward, seed)
    with ExitStack() as stack:
        if not server.address:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            own = stack.enter_context(LocalServer(folder, secret=secret(seed)))
            server = options.Server(address=own.address, security=server.security)
        client = stack.enter_context(server.client(timeout=60.0))
        found = _play(client, made, rows, reward, seed)
    _show(found, rows, reward)


def experiment(reward: str, seed: int) -> ExperimentSpec:
    """Give the experiment of one replay, told of one reward."""
    spec = options.read_spec(EXAMPLES / "hillstrom.toml")
    outcome = dataclasses.replace(spec.outcome, rewards=(spec.outcome.by_name[reward],))
    return dataclasses.replace(spec, name=f"hillstrom-{reward}-{seed}", outcome=outcome)


def secret(seed: int) -> bytes:
    """Give the secret of a replay's own server, so that a seed gives the same decisions."""
    return hashlib.sha256(f"replay {seed}".encode()).hexdigest().encode()


def _play(
    client: BanditClient,
    spec: ExperimentSpec,
    rows: Sequence[hillstrom.Row],
    reward: str,
    seed: int,
) -> Replayed:
    try:
        client.create_experiment(spec, request_id=spec.name)
    except ConflictError:
        raise ConflictError(
            f"the server holds another experiment {spec.name!r}; use another --seed"
        ) from None
    client.start_experiment(spec.name, override="a replay of a finished campaign")
    learned = 0

    def decide(asked: Sequence[tuple[str, hillstrom.Row]]) -> list[tuple[str, str | None]]:
        asks = [Ask(customer_id=name, context=row.context, request_id=name) for name, row in asked]
        return [(a.decision_id, a.variant) for a in client.decide_batch(spec.name, asks)]

    def tell(told: Sequence[tuple[str, float]]) -> None:
        nonlocal learned
        client.record_rewards(
            spec.name,
            [Fact(decision_id=d, name=reward, value=value, event_id=d) for d, value in told],
        )
        learned += len(told)
        _await_learned(client, spec.name, learned)

    found = Replayed()
    with Progress(
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=show.progress_console,
        disable=show.is_unseen,
    ) as progress:
        task = progress.add_task("replay", total=len(rows), rate="")
        for found in play(rows, reward, seed, decide, tell):
            rate = f"{reward} {found.sample.mean:.4f} on {found.sample.n} rows"
            progress.update(task, completed=found.rows, rate=rate)
    return found


def _await_learned(client: BanditClient, name: str, outcomes: int, patience: float = 60.0) -> None:
    """Wait until the published belief has seen so many outcomes, so that a seed repeats."""
    end = time.monotonic() + patience
    while client.get_experiment(name).snapshot.outcomes < outcomes:
        if time.monotonic() > end:
            raise DeadlineError(f"the server has not learned {outcomes} outcomes in {patience} s")
        time.sleep(0.002)


def _show(found: Replayed, rows: Sequence[hillstrom.Row], reward: str) -> None:
    made = show.table(
        f"Replay of {len(rows)} customers", ["policy", "rows", reward, "95 % interval"]
    )
    for name, sample in {**constants(rows, reward), "this policy": found.sample}.items():
        made.add_row(name, str(sample.n), show.number(sample.mean), show.interval(sample.interval))
    share = ", ".join(f"{name} {n / found.rows:.0%}" for name, n in sorted(found.chosen.items()))
    made.caption = f"chosen: {share}"
    show.console.print(made)
    low, high = found.sample.interval
    noun = {"visit": "visit rate", "conversion": "conversion rate"}.get(reward, reward)
    typer.echo(
        f"matched {noun}: {found.sample.mean:.4f} [{low:.4f}, {high:.4f}] on {found.sample.n} rows"
    )
