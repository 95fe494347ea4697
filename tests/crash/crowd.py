"""Clients that load a server and journal what was acknowledged, on disk before they go on.

A journal is written with fsync, as a crash of the client's own machine would demand: what it
holds, the server has promised.
"""

import os
import threading
import time
from pathlib import Path

from bandit.errors import BanditError
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from server.client import Answer, Ask, BanditClient, Fact

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


class Lines:
    """What a journal held at one moment.

    Parameters
    ----------
    text
        One acknowledgement a line.
    attempts
        Request ids of every call that was begun, answered or not; those of a batch together.
    """

    def __init__(self, text: str, attempts: list[tuple[str, ...]]) -> None:
        self._lines = [line.split("\t") for line in text.splitlines()]
        self.attempts = attempts

    def read(self, kind: str) -> list[list[str]]:
        """Give the fields of all decisions ("D") or events ("E")."""
        return [fields[1:] for fields in self._lines if fields[0] == kind]


class Journal:
    """Lines that are on disk when ``write`` returns.

    Attributes
    ----------
    lines
        How many there are.
    attempts
        Request ids of every call that was begun.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._path = path
        self.lines = 0
        self.attempts: list[tuple[str, ...]] = []

    def write(self, *fields: object) -> None:
        os.write(self._file, ("\t".join(map(str, fields)) + "\n").encode())
        os.fsync(self._file)
        self.lines += 1

    def close(self) -> None:
        os.close(self._file)

    def now(self) -> Lines:
        """Give what it holds at this moment."""
        return Lines(self._path.read_text(), list(self.attempts))


class Crowd:
    """Clients that decide and reward until they are told to stop, or nobody answers.

    Parameters
    ----------
    address
        Of the server; it may come and go.
    journals
        One for every client.
    patience
        Seconds that a call may take, retries included.
    goes_on
        Whether a client whose call failed begins the next, until it is told to stop.
    """

    def __init__(
        self, address: str, journals: list[Journal], *, patience: float, goes_on: bool = False
    ) -> None:
        self._stop = threading.Event()
        self._journals = journals
        self._patience = patience
        self._address = address
        self._goes_on = goes_on
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

    def await_more(self, n: int, seconds: float = 120.0) -> None:
        """Wait until so many more calls are acknowledged."""
        wanted = self.acknowledged + n
        end = time.monotonic() + seconds
        while self.acknowledged < wanted:
            assert time.monotonic() < end, f"no progress: {self.errors[:1]}"
            time.sleep(0.002)

    def leave(self) -> None:
        """Stop, and wait for the calls under way."""
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until every client has given up."""
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
                    if not self._goes_on:
                        return
                i += 1

    def _visit(self, client: BanditClient, journal: Journal, request: str, i: int) -> None:
        asked = ask(request)
        if i % 5:
            journal.attempts.append((request,))
            answers = [
                client.decide(
                    SPEC.name, asked.customer_id, asked.context, request_id=asked.request_id
                )
            ]
        else:
            journal.attempts.append((request, f"{request}b"))
            answers = client.decide_batch(SPEC.name, [asked, ask(f"{request}b")])
            journal.write("D", f"{request}b", *shown(answers[1]))
        journal.write("D", request, *shown(answers[0]))
        if i % 2:
            told = fact(request, answers[0].decision_id, i)
            client.record_reward(SPEC.name, told)
            journal.write("E", request, told.decision_id, told.name)


def ask(request: str) -> Ask:
    """Ask for a customer who is wholly given by the request's id."""
    age = 18 + sum(map(ord, request)) % 70
    return Ask(customer_id=f"customer {request}", context={"age": age}, request_id=request)


def fact(event: str, decision_id: str, i: int) -> Fact:
    """Tell of a click, or of a buy, which closes the outcome at once."""
    return Fact(decision_id=decision_id, name="buy" if i % 3 else "click", event_id=event)


def shown(answer: Answer) -> tuple[object, ...]:
    """Give what a repeated answer must have in common with the first."""
    return answer.decision_id, answer.action, answer.propensity.hex(), answer.snapshot_version
