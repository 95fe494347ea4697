"""A server that is killed, or told to end, under load: nothing acknowledged is lost.

Clients journal every acknowledgement with fsync before they go on, as a crash of their own
machine would demand. What the journal holds must be in the log exactly once afterwards.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from bandit.errors import BanditError, DeadlineError, UnavailableError
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from server import storage
from server.audit import Findings, audit
from server.client import Answer, Ask, BanditClient, Fact
from server.commands.local import LocalServer
from server.database import Database
from server.live import Live
from server.settings import Settings, load_secret

CLIENTS = 6
SPEC: ExperimentSpec = from_data(
    {
        "name": "stormy",
        "actions": {"variants": ["a", "b", "c"], "channels": ["email", "push"]},
        "context": [{"name": "age", "kind": "number", "bounds": [18, 90]}],
        "outcome": {
            "window": 0.5,
            "rewards": [{"name": "click"}, {"name": "buy", "terminal": True}],
        },
        "groups": {"random": 0.2},
        "publishing": {"outcomes": 25, "seconds": 0.05},
    }
)


class Journal:
    """Lines that are on disk when ``write`` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._path = path
        self.lines = 0

    def write(self, *fields: object) -> None:
        os.write(self._file, ("\t".join(map(str, fields)) + "\n").encode())
        os.fsync(self._file)
        self.lines += 1

    def close(self) -> None:
        os.close(self._file)

    def read(self, kind: str) -> list[list[str]]:
        lines = [line.split("\t") for line in self._path.read_text().splitlines()]
        return [fields[1:] for fields in lines if fields[0] == kind]


class Crowd:
    """Clients that decide and reward until they are told to stop, or nobody answers."""

    def __init__(self, address: str, journals: list[Journal], *, patience: float) -> None:
        self._stop = threading.Event()
        self._journals = journals
        self._patience = patience
        self._address = address
        self.errors: list[BanditError] = []
        self._threads = [
            threading.Thread(target=self._work, args=(k, journal))
            for k, journal in enumerate(journals)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def acknowledged(self) -> int:
        return sum(journal.lines for journal in self._journals)

    def await_more(self, n: int) -> None:
        """Wait until so many more calls are acknowledged."""
        wanted = self.acknowledged + n
        end = time.monotonic() + 60
        while self.acknowledged < wanted:
            assert time.monotonic() < end, "no progress"
            time.sleep(0.005)

    def leave(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, k: int, journal: Journal) -> None:
        with BanditClient(self._address, timeout=self._patience) as client:
            i = 0
            while not self._stop.is_set():
                try:
                    self._visit(client, journal, f"{k}-{i}", i)
                except BanditError as error:
                    self.errors.append(error)
                    return
                i += 1

    def _visit(self, client: BanditClient, journal: Journal, request: str, i: int) -> None:
        asked = ask(request)
        if i % 5:
            answers = [
                client.decide(
                    SPEC.name, asked.customer_id, asked.context, request_id=asked.request_id
                )
            ]
        else:
            more = [asked, ask(f"{request}b")]
            answers = client.decide_batch(SPEC.name, more)
            journal.write("D", f"{request}b", *shown(answers[1]))
        journal.write("D", request, *shown(answers[0]))
        if i % 2:
            one = answers[0].decision_id
            fact = Fact(decision_id=one, name="buy" if i % 3 else "click", event_id=request)
            client.record_reward(SPEC.name, fact)
            journal.write("E", request)


def ask(request: str) -> Ask:
    """Ask for a customer who is wholly given by the request's id."""
    age = 18 + sum(map(ord, request)) % 70
    return Ask(customer_id=f"customer {request}", context={"age": age}, request_id=request)


def shown(answer: Answer) -> tuple[object, ...]:
    return answer.decision_id, answer.action, answer.propensity.hex(), answer.snapshot_version


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[list[Journal]]:
    made = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    yield made
    for journal in made:
        journal.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[LocalServer]]:
    """Give a list with a server; the last one in it is stopped in the end."""
    servers = [LocalServer(tmp_path)]
    with BanditClient(servers[0].address, timeout=20) as client:
        client.create_experiment(SPEC, request_id="create")
        client.start_experiment(SPEC.name)
    yield servers
    servers[-1].stop()


def examine(
    database: str, look: Callable[..., None], *, secret_file: Path | None = None
) -> Findings:
    """Look at the log of a server that has ended; give what the audit finds."""
    opened = Database(database, read_only=True)
    try:
        live = Live(load_secret(Settings(database=database, secret_file=secret_file)))
        with opened.reader.connect() as connection:
            live.load(connection)
            [one] = live.entries()
            look(connection, one.id)
            return audit(connection, one)
    finally:
        opened.close()


def check(database: str, journals: list[Journal], *, secret_file: Path | None = None) -> Findings:
    """Expect all that was acknowledged in the log, exactly once and as it was answered."""
    decided = [fields for journal in journals for fields in journal.read("D")]
    told = [event for journal in journals for [event] in journal.read("E")]

    def look(connection: object, experiment: int) -> None:
        rows = storage.decided_after(connection, experiment, 0, 1_000_000)
        stored = {
            row.request_id: [
                str(UUID(bytes=row.decision_id)),
                str(row.action),
                row.propensity.hex(),
                str(row.snapshot_version),
            ]
            for row in rows
        }
        assert len(stored) == len(rows)
        assert {request: fields for request, *fields in decided}.items() <= stored.items()
        assert len({request for request, *_ in decided}) == len(decided)
        assert set(told) <= storage.logged_ids(connection, experiment).events

    return examine(database, look, secret_file=secret_file)


def test_killed_again_and_again(
    running: list[LocalServer], journals: list[Journal], tmp_path: Path
):
    address = running[0].address
    port = int(address.rpartition(":")[2])
    crowd = Crowd(address, journals, patience=60)
    try:
        for _ in range(2):
            crowd.await_more(200)
            running[-1].kill()
            running.append(LocalServer(tmp_path, port=port))
        crowd.await_more(200)
    finally:
        crowd.leave()
    assert crowd.errors == []

    decided = [fields for journal in journals for fields in journal.read("D")]
    with BanditClient(address, timeout=20) as client:
        for start in range(0, len(decided), 500):
            part = decided[start : start + 500]
            answers = client.decide_batch(SPEC.name, [ask(request) for request, *_ in part])
            assert all(answer.is_repeated for answer in answers)  # and identical:
            assert [list(map(str, shown(a))) for a in answers] == [f for _, *f in part]

    assert running[-1].stop() == 0
    found = check(running[-1].database, journals)
    assert found.problems == []
    assert found.repeated == found.decisions >= len(decided)
    assert found.snapshots > 0


def test_told_to_end_under_load(running: list[LocalServer], journals: list[Journal]):
    crowd = Crowd(running[0].address, journals, patience=2)
    crowd.await_more(300)
    status = running[0].stop()
    crowd.leave()
    assert status == 0
    assert len(crowd.errors) == CLIENTS  # nobody was answered after the end
    other = [e for e in crowd.errors if not isinstance(e, UnavailableError | DeadlineError)]
    assert other == []
    found = check(running[0].database, journals)
    assert found.problems == []
    assert found.decisions <= crowd.acknowledged + 2 * CLIENTS
