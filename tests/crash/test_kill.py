"""A server that is killed, or told to end, under load: nothing acknowledged is lost.

``make crash`` runs the same rounds, more of them.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandit.errors import DeadlineError, UnavailableError
from tests.crash.backends import BACKENDS, Backend, Served
from tests.crash.checking import check
from tests.crash.crowd import CLIENTS, Crowd, Journal
from tests.crash.rounds import begin, read, run


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.close()


def test_killed_again_and_again(backend: Backend, tmp_path: Path):
    verdict = run(backend, tmp_path, rounds=2, calls=250)
    assert verdict.is_kept, verdict
    assert verdict.last.acknowledged > 250
    assert verdict.last.snapshots > 0
    assert str(verdict).endswith("0 lost, 0 duplicated, snapshot == fold")


def test_a_server_that_answers_early_is_found(backend: Backend, tmp_path: Path):
    """The same rounds end otherwise where answers leave a while before their commit."""
    module = ("tests.crash.launcher", "answer_early", "300")
    verdict = run(backend, tmp_path, rounds=1, calls=30, module=module)
    assert verdict.lost
    assert not verdict.is_kept
    assert " 0 lost" not in str(verdict)


def test_told_to_end_under_load(backend: Backend, tmp_path: Path):
    """It ends in time, although many wait, and what it answered to the last is there."""
    server = Served(backend, tmp_path / "server.log")
    begin(server.address)
    journals = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    crowd = Crowd(server.address, journals, patience=2)
    crowd.await_more(300)
    began = time.monotonic()
    status = server.stop(seconds=60)
    took = time.monotonic() - began
    crowd.join()
    for journal in journals:
        journal.close()
    assert status == 0
    assert took < 10 + 5 + 5  # grace, hard deadline, and a slow machine
    assert len(crowd.errors) == CLIENTS  # nobody was answered after the end
    other = [e for e in crowd.errors if not isinstance(e, UnavailableError | DeadlineError)]
    assert other == []
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.is_kept, found
    assert found.decisions <= crowd.acknowledged + 2 * CLIENTS
