"""``banditctl demo``: a whole campaign in a minute, on a real server over a real socket."""

import heapq
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from uuid import UUID

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.engine import Connection

from bandit.decision import Group
from bandit.errors import BanditError
from bandit.spec import ExperimentSpec
from server import catalogue, storage
from server.client import Answer, BanditClient, Fact
from server.commands import options, show
from server.commands.local import LocalServer
from server.database import Database
from server.pb import bandit_pb2 as pb
from sims import worlds
from sims.worlds import EXAMPLES, Context, Course

TIME_ZONES = ("Europe/Berlin", "Europe/Lisbon", "Europe/Helsinki")
CONTRASTING: dict[str, Context] = {
    "a student with the app, new": {
        "age": 22.0, "segment": "new", "has_app": True, "basket": 20.0, "visit_hour": 20.0,
    },
    "a retired regular without the app": {
        "age": 71.0, "segment": "regular", "has_app": False, "basket": 120.0, "visit_hour": 9.0,
    },
}  # fmt: skip


@dataclass(slots=True)
class _Played:
    """What the clients did, and what the server acknowledged to them."""

    decisions: list[str] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def demo(
    customers: Annotated[int, typer.Option(min=100, help="How many are simulated.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Draws the customers.")] = 1,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Concurrent client threads.")] = 8,
) -> None:
    """Play a campaign: decisions over gRPC, delayed rewards, learning, a report."""
    spec = options.read_spec(EXAMPLES / "spring_sale.toml")
    world = worlds.read(EXAMPLES / "spring_sale_world.toml")
    course = Course(world, spec, seed=seed)
    with tempfile.TemporaryDirectory(prefix="bandit-demo-") as name:
        folder = Path(name)
        typer.echo("demo: starting a server (its first start compiles the kernels)")
        server = LocalServer(folder)
        try:
            played = _Played()
            with BanditClient(server.address, timeout=20.0) as client:
                client.create_experiment(spec, request_id="demo")
                why = "a demonstration with simulated customers"
                client.start_experiment(spec.name, override=why)
                _Players(client, course, played).play(customers, clients)
                report = _await_closed(client, spec.name)
                _show(client, spec, report, played)
        finally:
            status = server.stop()
        lost = _lost(server.database, spec.name, played)
    _last_line(report, played, lost)
    if lost or status:
        raise BanditError(f"{lost} acknowledged entries are not in the log; exit status {status}")


class _Players:
    """Client threads that play customers; responses are reported when they come.

    Parameters
    ----------
    client
        Shared by all threads.
    course
        The experiment, its customers and how they behave.
    played
        What was acknowledged.
    """

    def __init__(self, client: BanditClient, course: Course, played: _Played) -> None:
        self._client = client
        self._course = course
        self._spec = course.spec
        self._played = played
        self._stopping = False
        self._waiting: list[tuple[float, str]] = []

    def play(self, customers: int, clients: int) -> None:
        """Play every customer once, several at a time, behind a live progress line."""
        done = threading.Event()
        with ThreadPoolExecutor(clients) as pool:
            parts = [range(k, customers, clients) for k in range(clients)]
            futures = [pool.submit(self._work, part) for part in parts]
            futures[-1].add_done_callback(lambda _: done.set())
            try:
                _watch(self._client, self._spec, self._played, done, customers)
                for future in futures:
                    future.result()
            finally:
                self._stopping = True
        while self._waiting:
            self._report_due()
            time.sleep(0.01)

    def _work(self, part: Sequence[int]) -> None:
        for i in part:
            if self._stopping:
                return
            self._one(i)
            self._report_due()

    def _one(self, i: int) -> None:
        """Decide for one customer, who may click later."""
        arrivals = self._course.arrivals(i, i + 1)
        context = self._spec.schema.values(arrivals.rows[0])
        zone = TIME_ZONES[i % len(TIME_ZONES)]
        answer = self._client.decide(
            self._spec.name, f"customer-{i}", context, request_id=f"demo-{i}", time_zone=zone
        )
        expected = self._course.expected(arrivals, i, self._course.history())
        action = np.array([-1 if answer.action is None else answer.action])
        events = self._course.events(arrivals, i, action, expected)
        clicks = not np.isnan(events.values[0])
        due = time.monotonic() + float(events.times[0] - arrivals.times[0])
        with self._played.lock:
            self._played.decisions.append(answer.decision_id)
            if clicks:
                heapq.heappush(self._waiting, (due, answer.decision_id))

    def _report_due(self) -> None:
        """Report the responses whose time has come."""
        while True:
            with self._played.lock:
                if not self._waiting or self._waiting[0][0] > time.monotonic():
                    return
                _, decision_id = heapq.heappop(self._waiting)
            event = f"click-{decision_id}"
            fact = Fact(decision_id=decision_id, name=self._course.world.reward, event_id=event)
            self._client.record_reward(self._spec.name, fact)
            with self._played.lock:
                self._played.rewards.append(event)


def _watch(
    client: BanditClient,
    spec: ExperimentSpec,
    played: _Played,
    done: threading.Event,
    customers: int,
) -> None:
    """Print a live progress line until every customer is played."""
    with Progress(
        TextColumn("customers"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        console=show.progress_console,
    ) as progress:
        task = progress.add_task("demo", total=customers, state="")
        while not done.wait(0.5):
            snapshot = client.get_experiment(spec.name).snapshot
            with played.lock:
                n, rewards = len(played.decisions), len(played.rewards)
            state = f"{rewards} rewards, {snapshot.outcomes} learned, snapshot {snapshot.version}"
            progress.update(task, completed=n, state=state)
        progress.update(task, completed=len(played.decisions))


def _await_closed(client: BanditClient, name: str, patience: float = 30.0) -> pb.GetReportResponse:
    """Wait until every outcome is closed, then give the report."""
    end = time.monotonic() + patience
    while True:
        report = client.report(name)
        if report.open_decisions == 0 or time.monotonic() > end:
            return report
        time.sleep(0.2)


def _show(
    client: BanditClient, spec: ExperimentSpec, report: pb.GetReportResponse, played: _Played
) -> None:
    for table in show.report(report, most=8):
        show.console.print(table)
    for who, context in CONTRASTING.items():
        answer = _preview(client, spec, who, context, played)
        columns = ["variant", "channel", "slot", "probability of being chosen"]
        made = show.table(f"Best for {who}", columns, left=3)
        best = np.argsort(answer.propensities)[::-1][:3]
        for action in best.tolist():
            levels = [level.name for level in spec.actions.levels(action)]
            made.add_row(*levels, f"{answer.propensities[action]:.3f}")
        show.console.print(made)


def _preview(
    client: BanditClient, spec: ExperimentSpec, who: str, context: Context, played: _Played
) -> Answer:
    """Decide for a customer of this kind who is in the bandit group."""
    for i in range(1_000):
        answer = client.decide(
            spec.name, f"{who} {i}", context, request_id=f"{who} {i}", include_propensities=True
        )
        played.decisions.append(answer.decision_id)
        if answer.group is Group.BANDIT:
            return answer
    raise BanditError("no customer of the bandit group in a thousand")


def _lost(database: str, experiment: str, played: _Played) -> int:
    """Count what was acknowledged and is not in the log exactly once."""
    opened = Database(database, read_only=True)
    try:
        with opened.reader.connect() as connection:
            return _missing(connection, experiment, played)
    finally:
        opened.close()


def _missing(connection: Connection, experiment: str, played: _Played) -> int:
    row = next(r for r in catalogue.list_experiments(connection) if r.name == experiment)
    logged = storage.logged_ids(connection, row.id)
    decided = {UUID(one).bytes for one in played.decisions}
    return len(decided - logged.decisions) + len(set(played.rewards) - logged.events)


def _last_line(report: pb.GetReportResponse, played: _Played, lost: int) -> None:
    shown = "- [-, -]"
    for line in report.lifts:
        if line.against == pb.GROUP_RANDOM and line.HasField("relative"):
            low, high = line.relative_interval
            shown = f"{100 * line.relative:+.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    typer.echo(
        f"demo: lift over random {shown}, {len(played.decisions)} decisions, "
        f"{len(played.rewards)} rewards, {lost} lost"
    )
